//! The text of the last error of each thread: errno's companion.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use crate::error::Error;

thread_local! {
    static TEXT: RefCell<CString> = RefCell::default();
}

/// Keeps an error's text for [`text`], and gives its errno, negative.
pub fn set(error: &Error) -> i32 {
    // No error has a NUL in it: values are shown escaped.
    let text = CString::new(error.to_string()).unwrap_or_default();
    // A thread that is ending has none any more.
    let _ = TEXT.try_with(|last| last.replace(text));
    -error.errno()
}

/// The text of this thread's last error, NUL-terminated; empty where there was none.
pub fn text() -> *const c_char {
    TEXT.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
