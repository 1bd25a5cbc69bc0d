//! What libbpf has to say.

use std::cell::RefCell;
use std::sync::Once;

use libbpf_rs::PrintLevel;

use crate::log::{self, Level};

thread_local! {
    /// The last warning of libbpf in this thread: more telling than the errno it returns.
    static LAST_WARNING: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Sends libbpf's messages where ours go. The callback is that of the libbpf inside this library: another one in the
/// same process has its own.
fn take_over_messages() {
    static WARNINGS: Once = Once::new();
    static ALL: Once = Once::new();
    // To write each of its thousands of messages, for nobody, takes a tenth of a start. Once somebody wants them, they are
    // written for all.
    if log::enabled(Level::Debug) {
        ALL.call_once(|| {
            WARNINGS.call_once(|| {});
            libbpf_rs::set_print(Some((PrintLevel::Debug, take_message)));
        });
    } else {
        WARNINGS.call_once(|| {
            libbpf_rs::set_print(Some((PrintLevel::Warn, take_message)));
        });
    }
}

#[expect(clippy::needless_pass_by_value, reason = "libbpf-rs hands a String")]
fn take_message(level: PrintLevel, message: String) {
    let message = message.trim_end();
    log::line(Level::Debug, message);
    if level == PrintLevel::Warn {
        let first = message.lines().next().unwrap_or_default();
        let text = first.strip_prefix("libbpf: ").unwrap_or(first).to_owned();
        LAST_WARNING.with_borrow_mut(|last| {
            // The first warning of a call is the cause, those after it are consequences.
            last.get_or_insert(text);
        });
    }
}

/// Calls libbpf, and tells what it has to say about a failure.
pub(super) fn explain<T>(call: impl FnOnce() -> libbpf_rs::Result<T>) -> Result<T, String> {
    take_over_messages();
    LAST_WARNING.take();
    call().map_err(|error| match LAST_WARNING.take() {
        Some(warning) => warning,
        None => error.to_string(),
    })
}
