//! What can go wrong, in one line each: cause and remedy.

use std::io;

use thiserror::Error;

/// The remedy where descriptors are used up.
pub const NO_DESCRIPTORS: &str = "raise the limit of open files (ulimit -n)";

/// An error of this library.
#[derive(Debug, Error)]
pub enum Error {
    /// A setting has a value that it does not take.
    #[error("{name}={value:?} is not valid: it takes {takes}")]
    Setting {
        /// The environment variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        takes: &'static str,
    },
    /// The kernel cannot be traced. Every way was tried.
    #[error("cannot watch TCP connections: {cause}; {remedy}")]
    Probe {
        /// What each rung refused.
        cause: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A probe runs already.
    #[error("a probe is running already: call cleanup() before starting another")]
    Running,
    /// A system call that needs no privilege failed.
    #[error("{what} failed: {source}; {remedy}")]
    System {
        /// The call.
        what: &'static str,
        /// What the user can do.
        remedy: &'static str,
        /// Its errno.
        source: io::Error,
    },
}
