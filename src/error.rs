//! The library's errors, each in one line: cause and remedy.

use std::io;

use thiserror::Error;

/// The remedy when descriptors run out.
pub const NO_DESCRIPTORS: &str = "raise the limit of open files (ulimit -n)";

/// An error of this library.
#[derive(Debug, Error)]
pub enum Error {
    /// Invalid value of a setting.
    #[error("{name}={value:?} is not valid: it takes {takes}")]
    Setting {
        /// The environment variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// Valid values.
        takes: &'static str,
    },
    /// Invalid filter word.
    #[error("{name}={text:?}: word {at}, {word:?}, must be {takes}")]
    Filter {
        /// The setting.
        name: &'static str,
        /// The whole filter.
        text: String,
        /// The word, or its part between commas.
        word: String,
        /// Position of the word, from 1.
        at: usize,
        /// What is valid there.
        takes: &'static str,
    },
    /// A filter ends where a value is missing.
    #[error("{name}={text:?}: the value is missing at the end: {takes}")]
    FilterEnd {
        /// The setting.
        name: &'static str,
        /// The whole filter.
        text: String,
        /// What is valid there.
        takes: &'static str,
    },
    /// Invalid argument of a `tcpevent_*` function.
    #[error("{what}")]
    Argument {
        /// What is wrong, and what is valid.
        what: &'static str,
        /// Its errno.
        errno: i32,
    },
    /// Invalid value of an option.
    #[error("{name} is {value}: it takes {takes}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
        /// Valid values.
        takes: &'static str,
    },
    /// The kernel cannot be traced. Every rung was tried.
    #[error("cannot watch TCP connections: {cause}; {remedy}")]
    Probe {
        /// Why each rung was refused.
        cause: String,
        /// What the user can do.
        remedy: &'static str,
        /// Its errno.
        errno: i32,
    },
    /// No memory for a queue.
    #[error(
        "{name} is {slots}: there is no memory for so many; ask for fewer, or raise the limit (ulimit -v, ulimit -d)"
    )]
    Memory {
        /// The setting.
        name: &'static str,
        /// Its value.
        slots: usize,
    },
    /// No memory for a caller's request.
    #[error("there is no memory for {what}: ask for less, or raise the limit (ulimit -v, ulimit -d)")]
    NoMemory {
        /// What was requested.
        what: &'static str,
    },
    /// The host closed descriptors that it does not own.
    #[error("the host has closed descriptors of this library (close_range, say), or put others in their place: {lost}")]
    Descriptors {
        /// The consequence.
        lost: &'static str,
    },
    /// A panic.
    #[error("{function} has failed by a bug in this library: please report it")]
    Bug {
        /// The function called.
        function: &'static str,
    },
    /// A probe is already running.
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
    /// Invalid argument.
    pub fn argument(what: &'static str) -> Self {
        Self::Argument { what, errno: libc::EINVAL }
    }

    /// Invalid value of an option.
    pub(crate) fn option<T: ToString + ?Sized>(name: &'static str, value: &T, takes: &'static str) -> Self {
        Self::Option { name, value: value.to_string(), takes }
    }

    /// Its errno, positive.
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
