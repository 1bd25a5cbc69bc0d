//! Where C calls Rust: no panic gets out.

use std::panic::{self, AssertUnwindSafe, catch_unwind};

use crate::sys::log::{self, Level};
use crate::sys::once::Once;

/// Runs the body of an exported function. A panic becomes a line on stderr and `None`.
pub fn guard<T>(function: &'static str, body: impl FnOnce() -> T) -> Option<T> {
    quiet_panics();
    let result = catch_unwind(AssertUnwindSafe(body));
    if result.is_err() {
        log::line(Level::Error, format_args!("{function} failed by a bug in this library"));
    }
    result.ok()
}

/// Sends the messages of panics where the other lines go, instead of to the host's stderr. The hook is that of the Rust
/// library inside this one: a host that is written in Rust has its own.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call(|| panic::set_hook(Box::new(|info| log::line(Level::Error, info))));
}
