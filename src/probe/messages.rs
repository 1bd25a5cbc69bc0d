//! What libbpf has to say.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, mem};

use libbpf_rs::libbpf_sys::{self, libbpf_print_fn_t, libbpf_print_level};

use super::refusal::{Refusal, Stage};
use crate::sys::log::{self, Level};

thread_local! {
    /// The last warning of libbpf in this thread: more telling than the errno it returns.
    static LAST_WARNING: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Somebody wants libbpf's other messages, too. To write each of its thousands, for nobody, takes a tenth of a start. Once
/// somebody wants them, they are written for all.
static ALL: AtomicBool = AtomicBool::new(false);

/// Bytes of a message, at most.
const MOST_MESSAGE: usize = 2048;

unsafe extern "C" {
    /// As in stdio.h. A `va_list` that is a parameter is a pointer on all architectures that the probe knows.
    fn vsnprintf(text: *mut c_char, size: usize, format: *const c_char, arguments: *mut c_void) -> c_int;
}

/// Takes the messages of the libbpf inside this library: another one in the same process has its own. Not by
/// `libbpf_rs::set_print`, which takes a lock for each message: a child that is forked meanwhile would wait for it for ever.
fn take_over_messages() {
    type Callback = unsafe extern "C" fn(libbpf_print_level, *const c_char, *mut c_void) -> c_int;

    if log::enabled(Level::Debug) {
        ALL.store(true, Ordering::Relaxed);
    }
    // SAFETY: both are functions of a number and two pointers, as a `va_list` is one.
    let callback = unsafe { mem::transmute::<Callback, libbpf_print_fn_t>(take_message) };
    // SAFETY: a function, which libbpf keeps in an atomic variable.
    unsafe { libbpf_sys::libbpf_set_print(callback) };
}

unsafe extern "C" fn take_message(level: libbpf_print_level, format: *const c_char, arguments: *mut c_void) -> c_int {
    let is_warning = level == libbpf_sys::LIBBPF_WARN;
    if is_warning || ALL.load(Ordering::Relaxed) {
        let mut text = [0; MOST_MESSAGE];
        // SAFETY: room for so many bytes, and what libbpf has handed over for just this.
        if unsafe { vsnprintf(text.as_mut_ptr(), text.len(), format, arguments) } >= 0 {
            // SAFETY: it has ended the text, however long that would have been.
            let text = unsafe { CStr::from_ptr(text.as_ptr()) };
            take_text(is_warning, text.to_string_lossy().trim_end());
        }
    }
    0
}

fn take_text(is_warning: bool, text: &str) {
    // The verifier has many.
    text.lines().for_each(|line| log::line(Level::Debug, line));
    // What is only for the verifier's log is not in the objects: that is no cause of anything.
    if is_warning && !text.contains("skipping all of .BTF.ext line info") {
        let first = text.lines().next().unwrap_or_default();
        let text = first.strip_prefix("libbpf: ").unwrap_or(first).to_owned();
        LAST_WARNING.with_borrow_mut(|last| {
            // The first warning of a call is the cause, those after it are consequences.
            last.get_or_insert(text);
        });
    }
}

/// Calls libbpf. A failure comes with what it has to say about it, and with its errno.
pub(super) fn explain<T>(stage: Stage, call: impl FnOnce() -> libbpf_rs::Result<T>) -> Result<T, Refusal> {
    begin();
    call().map_err(|error| refusal(stage, &error))
}

// Apart, so that there is one of each and not one for each call.
#[inline(never)]
fn begin() {
    take_over_messages();
    LAST_WARNING.take();
}

#[cold]
#[inline(never)]
fn refusal(stage: Stage, error: &libbpf_rs::Error) -> Refusal {
    let left = io::Error::last_os_error();
    let text = LAST_WARNING.take().unwrap_or_else(|| error.to_string());
    Refusal::by_libbpf(stage, error, &left, text)
}

#[cfg(test)]
mod tests {
    use libbpf_rs::MapHandle;

    use super::*;

    /// libbpf-rs has no kind for this one. As root only: others may be refused before.
    #[test]
    fn a_refusal_has_the_errno_that_libbpf_has_left() {
        // SAFETY: it takes nothing and cannot fail.
        if unsafe { libc::geteuid() } == 0 {
            let below_a_file = explain(Stage::Load, || MapHandle::from_pinned_path("/dev/null/map").map(drop));
            assert_eq!(below_a_file.unwrap_err().errno, libc::ENOTDIR);
        }
    }
}
