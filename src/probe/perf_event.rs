//! Attaches programs to tracepoints, as libbpf does, but without the need that tracefs be mounted.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use libbpf_rs::{Link, ProgramMut};

use super::messages::explain;
use super::refusal::{Refusal, Stage};
use crate::probe::tracefs::TraceFs;
use crate::sys::log::{self, Level};

/// A program that is attached to a tracepoint.
pub(super) struct Attachment {
    pub link: Link,
    /// The perf event between the two: the link's own, or, before Linux 5.15, the link itself.
    pub event: RawFd,
}

/// Attaches to a tracepoint, on all processors.
pub(super) fn attach(
    program: &ProgramMut<'_>,
    tracefs: &TraceFs,
    category: &str,
    name: &str,
) -> Result<Attachment, Refusal> {
    // include/uapi/linux/perf_event.h: the first version of struct perf_event_attr.
    const PERF_TYPE_TRACEPOINT: u32 = 1 << 1;
    const PERF_ATTR_SIZE_VER0: u32 = 64;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }

    let id = tracefs.id(category, name).map_err(|error| unreadable(category, name, &error))?;
    let attributes = Attributes { kind: PERF_TYPE_TRACEPOINT, size: PERF_ATTR_SIZE_VER0, config: id, rest: [0; 6] };
    // A program sees the tracepoint on all processors, whichever its perf event is for.
    // SAFETY: attributes of the size that they say, and numbers.
    let event =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC) };
    let event = owned(event).map_err(|error| {
        let what = format!("a perf event for {category}:{name} cannot be opened");
        Refusal::by_system(Stage::PerfEvent, what, &error)
    })?;
    let link = explain(Stage::PerfEvent, || program.attach_perf_event(event.as_raw_fd()))?;
    // The link closes it.
    Ok(Attachment { link, event: event.into_raw_fd() })
}

/// Attaches the program of `bpf/perf_output.h` that tells of processors which are switched on.
pub(super) fn attach_to_processors(program: &ProgramMut<'_>, tracefs: &TraceFs) -> Option<Attachment> {
    attach(program, tracefs, "cpuhp", "cpuhp_exit")
        .inspect_err(|refusal| log::line(Level::Info, format_args!("{UNSEEN_PROCESSORS}: {refusal}")))
        .ok()
}

/// What is lost without.
pub(super) const UNSEEN_PROCESSORS: &str = "connections on processors that will be switched on are not seen";

/// tracefs, by which tracepoints are found.
pub(super) fn open_tracefs() -> Result<TraceFs, Refusal> {
    TraceFs::open().map_err(|error| Refusal::by_system(Stage::TraceFs, "tracefs cannot be opened", &error))
}

/// The refusal of a tracepoint that the kernel does not have, or does not show.
pub(super) fn unreadable(category: &str, name: &str, error: &io::Error) -> Refusal {
    let what = format!("the tracepoint {category}:{name} cannot be read");
    Refusal::by_system(Stage::Tracepoint, what, error)
}

/// A descriptor that a system call has just given, or the error that it has left.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
