//! Where C calls Rust: no panic gets out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::log::{self, Level};

/// Runs the body of an exported function. A panic becomes a line on stderr and `None`.
pub fn guard<T>(function: &'static str, body: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(body));
    if result.is_err() {
        log::line(Level::Error, format_args!("{function} failed by a bug in this library"));
    }
    result.ok()
}
