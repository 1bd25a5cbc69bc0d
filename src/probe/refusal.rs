//! Why the kernel refused, and what the user can do about it.

use std::fs;
use std::path::Path;

use super::types::KERNEL_BTF;
use crate::config::{ProbeSettings, Rung};
use crate::error::{Error, NO_DESCRIPTORS};
use crate::sys::descriptors;
use crate::sys::log::{self, Level};
use crate::sys::privilege::{self, Capability, FilteredCall};

/// What went wrong in a try.
pub enum Refusal {
    /// Without it there are no events.
    Main(String),
    /// Without it owners are found less well.
    Accept(String),
}

/// What the user can do about a filter that asks for what this rung cannot know.
pub(super) const FILTER_REMEDY: &str = "take netns and cgroup out of the filter, or use a kernel with type information";

/// The cause that goes with it.
pub(super) const FILTER_CAUSE: &str = "it knows neither network namespaces nor cgroups";

/// The start of the cause where there is no tracefs.
pub(super) const TRACEFS_CAUSE: &str = "tracefs cannot be opened";

/// The error for a cause, with its remedy.
pub fn refused(settings: &ProbeSettings, cause: String) -> Error {
    let (remedy, errno) = remedy(settings, &cause);
    Error::Probe { cause, remedy, errno }
}

/// A kprobe is a perf event.
pub(super) const PERF_EVENTS_REMEDY: &str = "run as root, grant CAP_SYS_ADMIN, or set kernel.perf_event_paranoid to 2";

/// Whoever has CAP_SYS_ADMIN mounts it without being told (`tracefs.rs`).
pub(super) const TRACEFS_REMEDY: &str = "mount tracefs: mount -t tracefs none /sys/kernel/tracing";

/// A container's profile, or systemd's SystemCallFilter.
pub(super) const SECCOMP_REMEDY: &str = "a seccomp filter refuses system calls: allow bpf and perf_event_open in the \
                                         profile of the container, or the SystemCallFilter of the service";

/// What the user can most likely do about a kernel that refused every rung, and the errno that says so in short.
fn remedy(settings: &ProbeSettings, cause: &str) -> (&'static str, i32) {
    // libbpf goes on where it gets no descriptor for some small thing, and fails for another reason later.
    if cause.contains("EMFILE") || descriptors::are_few() {
        return (NO_DESCRIPTORS, libc::EMFILE);
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if privilege::in_user_namespace() {
        ("run outside of user namespaces: capabilities in one do not count for BPF", libc::EPERM)
    } else if cause.contains(FILTER_CAUSE) {
        (FILTER_REMEDY, libc::EOPNOTSUPP)
    } else if privilege::missing(&[Capability::BPF, Capability::PERFMON]).is_some() {
        ("run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)", libc::EPERM)
    } else if cause.contains("EACCES") && privilege::perf_events_are_restricted() {
        (PERF_EVENTS_REMEDY, libc::EPERM)
    } else if privilege::seccomp_refuses(FilteredCall::Bpf)
        || (cause.contains("perf event") && privilege::seccomp_refuses(FilteredCall::PerfEventOpen))
    {
        (SECCOMP_REMEDY, libc::EPERM)
    } else if lockdown.contains("[confidentiality]") {
        let remedy = "the kernel is locked down (confidentiality): boot it with lockdown=integrity or without lockdown";
        (remedy, libc::EPERM)
    } else if cause.contains(TRACEFS_CAUSE) {
        if privilege::missing(&[Capability::DAC_READ_SEARCH]).is_some() {
            ("run as root, or grant CAP_DAC_READ_SEARCH: tracefs is root's own", libc::EPERM)
        } else {
            (TRACEFS_REMEDY, libc::EOPNOTSUPP)
        }
    } else if settings.rung == Some(Rung::TpBtf) && !Path::new(KERNEL_BTF).exists() {
        ("leave TCPEVENT_PROBE at auto: tp_btf needs a kernel with CONFIG_DEBUG_INFO_BTF", libc::EOPNOTSUPP)
    } else if settings.btf.is_none() && !Path::new(KERNEL_BTF).exists() {
        let remedy =
            "the kernel has no type information (CONFIG_DEBUG_INFO_BTF): set TCPEVENT_BTF to a BTF file for it";
        (remedy, libc::EOPNOTSUPP)
    } else if ["EPERM", "ENOMEM"].iter().any(|errno| cause.contains(errno)) && memlock_is_small() {
        let remedy = "raise the limit of locked memory (ulimit -l), which kernels before 5.11 charge for BPF maps";
        (remedy, libc::ENOMEM)
    } else {
        ("set TCPEVENT_LOG=debug to see what the kernel refused", libc::EOPNOTSUPP)
    }
}

/// Below what the maps take.
fn memlock_is_small() -> bool {
    const ENOUGH: libc::rlim_t = 64 << 20;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid rlimit to fill.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    got == 0 && limit.rlim_cur < ENOUGH
}

/// Accepts are not seen, for these reasons. Where it is for want of privilege, that is worth a warning.
pub fn warn_of_unseen_accepts(refusals: &[String]) {
    const LOSS: &str = "accepts are not seen, and a connection that its peer resets may come without owner";

    let says = |cause| refusals.iter().any(|refusal| refusal.contains(cause));
    if says("perf event") && privilege::seccomp_refuses(FilteredCall::PerfEventOpen) {
        log::line(Level::Warn, format_args!("{LOSS}: {SECCOMP_REMEDY}"));
        return;
    }
    if !says("EACCES") {
        if says(TRACEFS_CAUSE) && !says("EMFILE") {
            log::line(Level::Warn, format_args!("{LOSS}: {TRACEFS_REMEDY}"));
        }
        return;
    }
    if privilege::perf_events_are_restricted() {
        log::line(Level::Warn, format_args!("{LOSS}: {PERF_EVENTS_REMEDY}"));
    } else {
        // The system calls' tracepoints are found through tracefs, which is root's own.
        privilege::warn_of_loss(LOSS, &[Capability::DAC_READ_SEARCH]);
    }
}
