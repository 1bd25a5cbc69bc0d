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
    /// A word of a filter is none, or not what belongs there.
    #[error("{name}={text:?}: word {at}, {word:?}, must be {takes}")]
    Filter {
        /// The setting.
        name: &'static str,
        /// All of it.
        text: String,
        /// The word, or the part of it between commas.
        word: String,
        /// Which word, from 1.
        at: usize,
        /// What belongs there.
        takes: &'static str,
    },
    /// A filter ends where a value is missing.
    #[error("{name}={text:?}: the value is missing at the end: {takes}")]
    FilterEnd {
        /// The setting.
        name: &'static str,
        /// All of it.
        text: String,
        /// What belongs there.
        takes: &'static str,
    },
    /// An argument of a `tcpevent_*` function is none that it takes.
    #[error("{what}")]
    Argument {
        /// What is wrong, and what it takes.
        what: &'static str,
        /// The errno that stands for it.
        errno: i32,
    },
    /// An option has a value that it does not take.
    #[error("{name} is {value}: it takes {takes}")]
    Option {
        /// The option.
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
        /// The errno that stands for it.
        errno: i32,
    },
    /// There is no memory for a queue.
    #[error(
        "{name} is {slots}: there is no memory for so many; ask for fewer, or raise the limit (ulimit -v, ulimit -d)"
    )]
    Memory {
        /// The setting.
        name: &'static str,
        /// What it holds.
        slots: usize,
    },
    /// There is no memory for what a caller asks for.
    #[error("there is no memory for {what}: ask for less, or raise the limit (ulimit -v, ulimit -d)")]
    NoMemory {
        /// What that is.
        what: &'static str,
    },
    /// The host has closed what was not its own.
    #[error("the host has closed descriptors of this library (close_range, say), or put others in their place: {lost}")]
    Descriptors {
        /// What came of it.
        lost: &'static str,
    },
    /// A panic.
    #[error("{function} has failed by a bug in this library: please report it")]
    Bug {
        /// The function that was called.
        function: &'static str,
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

impl Error {
    /// An argument that is not valid.
    pub fn argument(what: &'static str) -> Self {
        Self::Argument { what, errno: libc::EINVAL }
    }

    /// An option with a value that it does not take.
    pub(crate) fn option<T: ToString + ?Sized>(name: &'static str, value: &T, takes: &'static str) -> Self {
        Self::Option { name, value: value.to_string(), takes }
    }

    /// The errno that stands for it, positive.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Setting { .. } | Self::Filter { .. } | Self::FilterEnd { .. } | Self::Option { .. } => libc::EINVAL,
            Self::Argument { errno, .. } | Self::Probe { errno, .. } => *errno,
            Self::Memory { .. } | Self::NoMemory { .. } => libc::ENOMEM,
            Self::Running => libc::EBUSY,
            Self::Bug { .. } | Self::Descriptors { .. } => libc::EIO,
            Self::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
