//! Attaches programs to tracepoints, as libbpf does, but without the need that tracefs be mounted.

use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use libbpf_rs::{Link, ProgramMut};

use super::messages::explain;
use crate::probe::tracefs::{TraceFs, owned};
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
) -> Result<Attachment, String> {
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

    let id = tracefs
        .id(category, name)
        .map_err(|error| format!("the tracepoint {category}:{name} cannot be read: {}", errno_name(&error)))?;
    let attributes = Attributes { kind: PERF_TYPE_TRACEPOINT, size: PERF_ATTR_SIZE_VER0, config: id, rest: [0; 6] };
    // A program sees the tracepoint on all processors, whichever its perf event is for.
    // SAFETY: attributes of the size that they say, and numbers.
    let event = owned(unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC)
    })
    .map_err(|error| format!("a perf event for {category}:{name} cannot be opened: {}", errno_name(&error)))?;
    let link = explain(|| program.attach_perf_event(event.as_raw_fd()))?;
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

/// As libbpf tells errors, by which some are known elsewhere.
pub(super) fn errno_name(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES) => "-EACCES".to_owned(),
        Some(libc::EPERM) => "-EPERM".to_owned(),
        Some(libc::EMFILE) => "-EMFILE".to_owned(),
        _ => error.to_string(),
    }
}
