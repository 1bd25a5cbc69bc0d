//! The kernel's types: what the programs have of them, for libbpf to fit the programs to the kernel; and their numbers.

use std::ffi::{CString, c_void};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::{ptr, slice};

use libbpf_rs::libbpf_sys;

use super::instructions::{self, Fitting};
use super::messages::explain;
use crate::config::ProbeSettings;
use crate::probe::btf::{Btf, Meaning};

/// The kernel's type information.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where changes of state are.
pub(super) const SET_STATE: &str = "tp_btf/inet_sock_set_state";

/// The iterator over all open files (since Linux 5.8).
pub(super) const OPEN_FILES: &str = "iter/task_file";

/// Sections of the programs that are for something which has a type in the kernel, and that type.
const TARGETS: [(&str, Meaning, &str); 3] = [
    (SET_STATE, Meaning::Typedef, "btf_trace_inet_sock_set_state"),
    ("tp_btf/io_uring_complete", Meaning::Typedef, "btf_trace_io_uring_complete"),
    (OPEN_FILES, Meaning::Function, "bpf_iter_task_file"),
];

/// Structures, unions and enumerations that the programs have.
const OF_PROGRAMS: &[&str] = include!(concat!(env!("OUT_DIR"), "/tcp_event.types.rs"));

/// The tracepoint `inet_sk_error_report`.
const ERROR_REPORT: &str = "btf_trace_inet_sk_error_report";

const RDONLY_CAST: &str = "bpf_rdonly_cast";

/// What pointers are cast to.
const CASTS: [&str; 5] = ["sock", "tcp_sock", "socket", "file", "task_struct"];
const TASK_STRUCT: usize = 4;

/// Members of `struct task_struct`, by which a kernel is known whose tracepoints' programs can be preempted: it guards
/// tracepoints by SRCU and not by disabling preemption (Linux 7.0, commit a46023d5616e), as it does its RCU of tasks since
/// the same version, which can be seen here; and RCU, which guards the programs, is preemptible (`CONFIG_PREEMPT_RCU`).
const OF_TRACING_BY_SRCU: &str = "trc_reader_scp";
const OF_PREEMPTIBLE_RCU: &str = "rcu_read_lock_nesting";

/// The kernel's types, as far as the programs need them.
#[derive(Default)]
pub(super) struct KernelTypes {
    /// Those that the programs have. It has no name.
    reduced: Option<File>,
    /// Numbers of types and functions.
    pub(super) fitting: Fitting,
    /// Numbers of the types of [`CASTS`], where pointers can be cast.
    pub(super) casts: Option<[u32; CASTS.len()]>,
    /// Whether the kernel tells where a connection fails. False where it is not known.
    pub(super) tells_errors: bool,
    /// Whether the kernel may give the CPU to another process while a tracepoint's program runs.
    pub(super) preemptible: bool,
}

impl KernelTypes {
    /// Empty where the kernel does not tell.
    pub(super) fn read(settings: &ProbeSettings) -> Self {
        let of_programs = if settings.btf.is_none() { OF_PROGRAMS } else { &[] };
        Self::of_kernel(of_programs).unwrap_or_else(Self::by_libbpf)
    }

    /// For kernels whose types are written in a way that is not known here: libbpf takes its time.
    fn by_libbpf() -> Self {
        if File::open(KERNEL_BTF).is_err() {
            return Self::default();
        }
        let targets = TARGETS.iter().filter_map(|(section, ..)| {
            let (kind, name) = section.split_once('/')?;
            let attach_type = if kind == "iter" { libbpf_sys::BPF_TRACE_ITER } else { libbpf_sys::BPF_TRACE_RAW_TP };
            let name = CString::new(name).ok()?;
            // SAFETY: a NUL-terminated name.
            let find = || Ok(unsafe { libbpf_sys::libbpf_find_vmlinux_btf_id(name.as_ptr(), attach_type) });
            let id = explain(find).ok()?;
            Some((*section, u32::try_from(id).ok()?))
        });
        let fitting = Fitting { targets: targets.collect(), ..Fitting::default() };
        // Types that are new to this library are a new kernel's.
        Self { fitting, preemptible: true, ..Self::default() }
    }

    fn of_kernel(of_programs: &[&str]) -> Option<Self> {
        let kernel = File::open(KERNEL_BTF).ok()?;
        let (mapped, copy);
        let bytes = if let Some(kernel) = Mapped::of(&kernel) {
            mapped = kernel;
            mapped.bytes()
        } else {
            copy = fs::read(KERNEL_BTF).ok()?;
            &copy
        };
        let names = TARGETS.map(|(_, _, name)| name);
        let names = names
            .iter()
            .chain(&[RDONLY_CAST, ERROR_REPORT])
            .chain(&CASTS)
            .chain(of_programs)
            .map(|name| name.as_bytes());
        let btf = Btf::read(bytes, names)?;

        let targets = TARGETS.iter().filter_map(|(section, meaning, name)| Some((*section, btf.id(*meaning, name)?)));
        let rdonly_cast = btf.id(Meaning::Function, RDONLY_CAST);
        let casts = CASTS.map(|name| btf.id(Meaning::Struct, name).unwrap_or(0));
        let rdonly_cast = rdonly_cast.filter(|cast| !casts.contains(&0) && instructions::can_cast(*cast, casts[0]));
        let fitting = Fitting { targets: targets.collect(), rdonly_cast, ..Fitting::default() };
        let reduced = if of_programs.is_empty() { None } else { btf.reduced().and_then(|bytes| in_memory(&bytes)) };
        let has_task = |member| casts[TASK_STRUCT] != 0 && btf.has_member(casts[TASK_STRUCT], member);
        let preemptible = has_task(OF_TRACING_BY_SRCU) && has_task(OF_PREEMPTIBLE_RCU);
        Some(Self {
            reduced,
            fitting,
            casts: rdonly_cast.map(|_| casts),
            tells_errors: btf.id(Meaning::Typedef, ERROR_REPORT).is_some(),
            preemptible,
        })
    }

    /// For libbpf. `None` where there are none, or the user has other types in mind: it takes the kernel's own then, or
    /// says what is wrong.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.reduced.as_ref()?.as_raw_fd()));
        // Not every container has a /proc.
        path.exists().then_some(path)
    }
}

/// A file that is nowhere but in memory.
fn in_memory(bytes: &[u8]) -> Option<File> {
    // SAFETY: a NUL-terminated name, for /proc/PID/fd.
    let fd = unsafe { libc::memfd_create(c"tcpevent-btf".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just given it, to nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes).ok()?;
    Some(file)
}

/// A file's bytes, without a copy. The kernel's type information can be mapped since Linux 6.16, and never changes.
struct Mapped {
    start: *mut c_void,
    length: usize,
}

impl Mapped {
    /// `None` where the file cannot be mapped.
    fn of(file: &File) -> Option<Self> {
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        (start != libc::MAP_FAILED).then_some(Self { start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as this lives, for reading.
        unsafe { slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn libbpf_finds_the_same_targets() {
        if !Path::new(KERNEL_BTF).exists() {
            return eprintln!("skipped: the kernel shows no types");
        }
        let targets = KernelTypes::of_kernel(&[]).unwrap().fitting.targets;
        assert_eq!(targets, KernelTypes::by_libbpf().fitting.targets);
        assert!(targets.iter().any(|(section, _)| *section == SET_STATE));
    }
}
