//! A try that failed: at which step, with which errno, and in which words. What to do about it is in `remedy.rs`.

use std::fmt::{self, Display, Formatter};
use std::io;

use libbpf_rs::ErrorKind;

/// A step of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The kernel lacks what the rung is made of.
    Support,
    /// The rung cannot apply the filter.
    Filter,
    /// The kernel's types are searched for what a program is attached to.
    Types,
    /// The object is opened, and its constants and the sizes of its maps are set.
    Open,
    /// Its maps are made and its programs verified.
    Load,
    /// Its maps are filled.
    Fill,
    /// A kprobe, which is a perf event, is made, and a program attached to it.
    Kprobe,
    /// A program is attached to a tracepoint with type information, or to an iterator.
    Trace,
    /// tracefs is opened, or mounted.
    TraceFs,
    /// A tracepoint's number or format is read.
    Tracepoint,
    /// A perf event for a tracepoint is opened, and a program attached to it.
    PerfEvent,
    /// Records are read.
    Buffer,
}

/// What is lost by a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All events.
    Main,
    /// The owners of some.
    Accept,
}

/// What went wrong in a try.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub(super) part: Part,
    pub(super) stage: Stage,
    /// 0 where there is none.
    pub(super) errno: i32,
    /// For people: libbpf's own words where it has some.
    text: String,
}

impl Refusal {
    /// Without an errno.
    pub(super) fn new(stage: Stage, text: impl Into<String>) -> Self {
        Self { part: Part::Main, stage, errno: 0, text: text.into() }
    }

    /// By libbpf. `left` is what errno was after the call.
    pub(super) fn by_libbpf(stage: Stage, error: &libbpf_rs::Error, left: &io::Error, text: String) -> Self {
        Self { errno: errno_of(error.kind(), left), ..Self::new(stage, text) }
    }

    /// By a system call.
    pub(super) fn by_system(stage: Stage, what: impl Display, error: &io::Error) -> Self {
        let text = match error.raw_os_error() {
            // In libbpf's way.
            Some(libc::EACCES) => format!("{what}: -EACCES"),
            Some(libc::EPERM) => format!("{what}: -EPERM"),
            Some(libc::EMFILE) => format!("{what}: -EMFILE"),
            _ => format!("{what}: {error}"),
        };
        Self { errno: error.raw_os_error().unwrap_or(0), ..Self::new(stage, text) }
    }

    /// The probe's buffer cannot be read.
    pub fn of_buffer(name: &str, error: &libbpf_rs::Error) -> Self {
        let text = format!("the {name} buffer cannot be read: {error}");
        // What errno was is long gone.
        Self { errno: errno_of_kind(error.kind()), ..Self::new(Stage::Buffer, text) }
    }

    /// With another of the same step, which shows no other way.
    pub(super) fn and(self, other: &Self) -> Self {
        Self { text: format!("{self}, {other}"), ..self }
    }

    /// The same of what sees accepts.
    pub(super) fn of_accepts(self) -> Self {
        Self { part: Part::Accept, ..self }
    }
}

impl Display for Refusal {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// libbpf returns an errno and leaves it in errno too, but libbpf-rs gives away its kind alone, in which EPERM and EACCES are
/// one, and EMFILE is none.
fn errno_of(kind: ErrorKind, left: &io::Error) -> i32 {
    match left.raw_os_error() {
        Some(errno) if libbpf_rs::Error::from_raw_os_error(errno).kind() == kind => errno,
        // Something after libbpf's return has changed it.
        _ => errno_of_kind(kind),
    }
}

/// The errno that remedies tell from others and that a kind most likely stands for. 0 where there is none.
fn errno_of_kind(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::PermissionDenied => libc::EPERM,
        ErrorKind::OutOfMemory => libc::ENOMEM,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_is_what_libbpf_has_left_if_that_is_of_the_errors_kind() {
        for (returned, left, expected) in [
            (libc::EACCES, libc::EACCES, libc::EACCES),
            (libc::EPERM, libc::EPERM, libc::EPERM),
            (libc::EMFILE, libc::EMFILE, libc::EMFILE),
            (libc::ENOMEM, libc::ENOMEM, libc::ENOMEM),
            (libc::EACCES, libc::ENOENT, libc::EPERM),
            (libc::ENOMEM, libc::ENOENT, libc::ENOMEM),
            (libc::EMFILE, libc::ENOENT, 0),
        ] {
            let error = libbpf_rs::Error::from_raw_os_error(returned);
            let left = io::Error::from_raw_os_error(left);
            let refusal = Refusal::by_libbpf(Stage::Load, &error, &left, String::new());
            assert_eq!(refusal.errno, expected, "{error}, {left}");
        }
    }

    #[test]
    fn system_calls_are_refused_in_the_words_of_libbpf() {
        for (errno, text) in [
            (libc::EACCES, "it: -EACCES"),
            (libc::EPERM, "it: -EPERM"),
            (libc::EMFILE, "it: -EMFILE"),
            (libc::ENOENT, "it: No such file or directory (os error 2)"),
        ] {
            let refusal = Refusal::by_system(Stage::TraceFs, "it", &io::Error::from_raw_os_error(errno));
            assert_eq!((refusal.to_string().as_str(), refusal.errno, refusal.part), (text, errno, Part::Main));
            assert_eq!(refusal.of_accepts().part, Part::Accept);
        }
        assert_eq!(Refusal::by_system(Stage::TraceFs, "it", &io::ErrorKind::NotFound.into()).errno, 0);
    }
}
