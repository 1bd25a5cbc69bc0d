//! What this library may do on its host, and what is lost without that.

use std::fmt::Display;
use std::{fs, io};

use crate::sys::log::{self, Level};

/// A privilege, named by the least capability that gives it.
#[derive(Debug, PartialEq, Eq)]
pub struct Capability {
    name: &'static str,
    /// Bits of a capability set (include/uapi/linux/capability.h), any of which is enough.
    given_by: u64,
}

const DAC_OVERRIDE: u32 = 1;
const SYS_ADMIN: u32 = 21;

impl Capability {
    /// Read what belongs to other users: tracefs, and the folders of their processes' descriptors.
    pub const DAC_READ_SEARCH: Self = Self::new("CAP_DAC_READ_SEARCH", 2, DAC_OVERRIDE);
    /// See what a descriptor of another user's process is.
    pub const SYS_PTRACE: Self = Self::new("CAP_SYS_PTRACE", 19, 19);
    /// Attach programs to the kernel's functions and tracepoints.
    pub const PERFMON: Self = Self::new("CAP_PERFMON", 38, SYS_ADMIN);
    /// Load programs and maps.
    pub const BPF: Self = Self::new("CAP_BPF", 39, SYS_ADMIN);
    /// Do everything that only root could before there were finer capabilities.
    const SYS_ADMIN: Self = Self::new("CAP_SYS_ADMIN", SYS_ADMIN, SYS_ADMIN);

    const fn new(name: &'static str, bit: u32, stands_in: u32) -> Self {
        Self { name, given_by: 1 << bit | 1 << stands_in }
    }
}

/// Names those that the calling thread lacks, as in `CAP_BPF and CAP_PERFMON`. `None` if it has all.
pub fn missing(needed: &[Capability]) -> Option<String> {
    // If /proc does not say, it is taken to have all.
    names_missing(needed, effective_set().unwrap_or(u64::MAX))
}

/// Warns of a loss, if the calling thread lacks a capability that would prevent it.
pub fn warn_of_loss(loss: impl Display, needed: &[Capability]) {
    if let Some(names) = missing(needed) {
        log::line(Level::Warn, format_args!("{loss}: run as root, or grant {names}"));
    }
}

/// Whether the kernel restricts perf events to CAP_SYS_ADMIN, and the calling thread lacks that. Debian and Ubuntu have
/// an extra value for that restriction, and set it; elsewhere CAP_PERFMON is enough at any value.
pub fn perf_events_are_restricted() -> bool {
    const MOST_FOR_PERFMON: i32 = 2;

    let paranoia =
        fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok().and_then(|text| text.trim().parse().ok());
    paranoia.is_some_and(|value: i32| value > MOST_FOR_PERFMON) && missing(&[Capability::SYS_ADMIN]).is_some()
}

/// Whether a seccomp filter denies this thread a system call. The calls have invalid arguments, which the kernel itself
/// reports with errors of its own, whatever the caller's privilege.
pub fn seccomp_refuses(call: FilteredCall) -> bool {
    const SECCOMP_MODE_FILTER: libc::c_int = 2;

    // SAFETY: takes nothing more; the only pointer is null, and the numbers are invalid.
    let result = unsafe {
        if libc::prctl(libc::PR_GET_SECCOMP) != SECCOMP_MODE_FILTER {
            return false;
        }
        match call {
            FilteredCall::Bpf => libc::syscall(libc::SYS_bpf, -1, std::ptr::null::<u8>(), 0),
            FilteredCall::PerfEventOpen => {
                libc::syscall(libc::SYS_perf_event_open, std::ptr::null::<u8>(), -1, -1, -1, libc::c_ulong::MAX)
            }
        }
    };
    result < 0 && !matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL | libc::EFAULT | libc::E2BIG))
}

/// System calls that container runtimes and systemd filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilteredCall {
    /// Load programs and maps.
    Bpf,
    /// Attach kprobes, and programs to the tracepoints of system calls.
    PerfEventOpen,
}

/// Whether the capabilities of this process are those of a user namespace: for BPF the kernel requires those of the
/// initial one.
pub fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_of_user_namespace(&map))
}

/// The initial namespace maps all user IDs to themselves (user_namespaces(7)).
fn is_of_user_namespace(uid_map: &str) -> bool {
    !uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn names_missing(needed: &[Capability], set: u64) -> Option<String> {
    let names: Vec<&str> =
        needed.iter().filter(|capability| set & capability.given_by == 0).map(|capability| capability.name).collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

/// The effective set of the calling thread: each thread has its own.
fn effective_set() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all = [Capability::BPF, Capability::PERFMON];
        assert_eq!(names_missing(&all, 0).as_deref(), Some("CAP_BPF and CAP_PERFMON"));
        assert_eq!(names_missing(&all, 1 << 39).as_deref(), Some("CAP_PERFMON"));
        assert_eq!(names_missing(&all, 1 << 39 | 1 << 38), None);
        assert_eq!(names_missing(&[], 0), None);
    }

    #[test]
    fn a_greater_capability_stands_in() {
        assert_eq!(names_missing(&[Capability::BPF, Capability::PERFMON], 1 << SYS_ADMIN), None);
        assert_eq!(names_missing(&[Capability::DAC_READ_SEARCH], 1 << DAC_OVERRIDE), None);
        assert_eq!(names_missing(&[Capability::SYS_PTRACE], 1 << SYS_ADMIN).as_deref(), Some("CAP_SYS_PTRACE"));
    }

    #[test]
    fn a_user_namespace_is_told_from_the_initial_one() {
        assert!(!is_of_user_namespace("         0          0 4294967295\n"));
        assert!(is_of_user_namespace("         0       1000          1\n"));
        assert!(is_of_user_namespace("         0     100000      65536\n"));
    }
}
