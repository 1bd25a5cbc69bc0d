//! The kernel's types: what the programs have of them, for libbpf to fit the programs to the kernel; and their numbers.

use std::ffi::CString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::slice;

use libbpf_rs::libbpf_sys;
use rustix::fs::{MemfdFlags, memfd_create};

use super::accesses;
use super::btf_file;
use super::instructions::{self, Fitting};
use super::messages::explain;
use super::object::ACCEPT_GRAFT;
use super::refusal::Stage;
use crate::config::ProbeSettings;
use crate::error::Error;
use crate::probe::btf::{Btf, Meaning};
use crate::sys::files;
use crate::sys::mapping::{Access, Mapping};

/// The kernel's type information.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where changes of state are.
pub(super) const SET_STATE: &str = "tp_btf/inet_sock_set_state";

/// Where SYNs are sent again.
pub(super) const RETRANSMIT: &str = "tp_btf/tcp_retransmit_skb";

/// As many parameters as it has at least where the third one is the error. (In the type there is one more, before them.)
const RETRANSMIT_WITH_ERROR: u32 = 3;

/// The iterator over all open files (since Linux 5.8).
pub(super) const OPEN_FILES: &str = "iter/task_file";

/// Where all ways to connect return, and where a security module refuses them.
pub(super) const CONNECT_EXIT: &str = "fexit/__inet_stream_connect";
pub(super) const CONNECT_REFUSED: &str = "fexit/security_socket_connect";

/// Where accepts are.
pub(super) const ACCEPT_ENTRY: &str = "fentry/security_sock_graft";

/// Sections of the programs that are for something which has a type in the kernel, and that type.
const TARGETS: [(&str, Meaning, &str); 6] = [
    (SET_STATE, Meaning::Typedef, "btf_trace_inet_sock_set_state"),
    (ACCEPT_ENTRY, Meaning::Function, ACCEPT_GRAFT),
    (RETRANSMIT, Meaning::Typedef, "btf_trace_tcp_retransmit_skb"),
    (OPEN_FILES, Meaning::Function, "bpf_iter_task_file"),
    (CONNECT_EXIT, Meaning::Function, "__inet_stream_connect"),
    (CONNECT_REFUSED, Meaning::Function, "security_socket_connect"),
];

/// Structures, unions and enumerations that the programs have.
pub(super) const OF_PROGRAMS: &[&str] = include!(concat!(env!("OUT_DIR"), "/types.rs"));

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
    /// Whether it tells where a segment could not be sent again.
    pub(super) tells_retransmit_errors: bool,
    /// Whether the kernel may give the CPU to another process while a tracepoint's program runs.
    pub(super) preemptible: bool,
}

impl KernelTypes {
    /// Empty where the kernel does not tell. A file's types take the place of the kernel's for libbpf.
    pub(super) fn read(settings: &ProbeSettings) -> Result<Self, Error> {
        let (types, reduced) = Self::of_kernel(OF_PROGRAMS).unwrap_or_else(|| (Self::by_libbpf(), None));
        let reduced = match &settings.btf {
            Some(path) => Some(of_file(path, reduced.as_deref())?),
            None => reduced,
        };
        let reduced = reduced.and_then(|bytes| in_memory(&bytes));
        let types = Self { reduced, ..types };
        if settings.btf.is_some() && types.path().is_none() {
            // By its own path it could be another file by now.
            return Err(no_file(
                "a BTF file cannot be handed to libbpf".to_owned(),
                "mount /proc (mount -t proc none /proc)",
            ));
        }
        Ok(types)
    }

    /// For kernels whose types are written in a way that is not known here: libbpf takes its time.
    fn by_libbpf() -> Self {
        if File::open(KERNEL_BTF).is_err() {
            return Self::default();
        }
        let targets = TARGETS.iter().filter_map(|(section, ..)| {
            let (_, name) = section.split_once('/')?;
            let attach_type = instructions::attach_type_of(section)?;
            let name = CString::new(name).ok()?;
            // SAFETY: a NUL-terminated name.
            let find = || Ok(unsafe { libbpf_sys::libbpf_find_vmlinux_btf_id(name.as_ptr(), attach_type) });
            let id = explain(Stage::Types, find).ok()?;
            Some((*section, u32::try_from(id).ok()?))
        });
        // How many parameters functions have is not known.
        let targets = targets
            .filter(|(section, id)| can_be_had(section, *id) && ![CONNECT_EXIT, CONNECT_REFUSED].contains(section));
        let fitting = Fitting { targets: targets.collect(), ..Fitting::default() };
        // Types that are new to this library are a new kernel's.
        Self { fitting, tells_retransmit_errors: true, preemptible: true, ..Self::default() }
    }

    /// With the kernel's type information, as much as is about names that the programs have.
    fn of_kernel(of_programs: &[&str]) -> Option<(Self, Option<Vec<u8>>)> {
        let kernel = File::open(KERNEL_BTF).ok()?;
        let (mapping, copy);
        let bytes = if let Some(kernel) = mapped(&kernel) {
            mapping = kernel;
            // SAFETY: mapped for as long as `mapping` lives, for reading. The kernel's types never change.
            unsafe { slice::from_raw_parts(mapping.start().cast(), mapping.length()) }
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
        let targets = targets.filter(|(section, id)| can_be_had(section, *id) && has_parameters(&btf, section, *id));
        let rdonly_cast = btf.id(Meaning::Function, RDONLY_CAST);
        let casts = CASTS.map(|name| btf.id(Meaning::Struct, name).unwrap_or(0));
        let rdonly_cast = rdonly_cast.filter(|cast| !casts.contains(&0) && instructions::can_cast(*cast, casts[0]));
        let fitting = Fitting { targets: targets.collect(), rdonly_cast, ..Fitting::default() };
        let has_task = |member| casts[TASK_STRUCT] != 0 && btf.has_member(casts[TASK_STRUCT], member);
        let retransmit = fitting.target(RETRANSMIT).and_then(|id| btf.parameters(id));
        let preemptible = has_task(OF_TRACING_BY_SRCU) && has_task(OF_PREEMPTIBLE_RCU);
        let types = Self {
            reduced: None,
            fitting,
            casts: rdonly_cast.map(|_| casts),
            tells_errors: btf.id(Meaning::Typedef, ERROR_REPORT).is_some(),
            tells_retransmit_errors: retransmit.is_some_and(|parameters| parameters > RETRANSMIT_WITH_ERROR),
            preemptible,
        };
        Some((types, btf.reduced()))
    }

    /// For libbpf. `None` where there are none: it takes the kernel's own then, or says what is wrong.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.reduced.as_ref()?.as_raw_fd()));
        // Not every container has a /proc.
        path.exists().then_some(path)
    }
}

/// Whether this kernel lets programs of a section be loaded, where not all do.
fn can_be_had(section: &str, target: u32) -> bool {
    section != ACCEPT_ENTRY || instructions::can_enter(target)
}

/// Whether a function that a program sees return has as many parameters as the program takes it to have: the result is behind them.
fn has_parameters(btf: &Btf<'_>, section: &str, target: u32) -> bool {
    let count = match section {
        CONNECT_EXIT => 5,
        CONNECT_REFUSED => 3,
        _ => return true,
    };
    btf.parameters(target) == Some(count)
}

/// The types that the programs have, of a user's file that may be right about them. `kernel` is the kernel's own word on those.
fn of_file(path: &Path, kernel: Option<&[u8]>) -> Result<Vec<u8>, Error> {
    const REMEDY: &str = "name a file of type information that was made for this very kernel (uname -r)";

    let refused =
        |why: &dyn Display, remedy| no_file(format!("the BTF file {:?} {why}", path.to_string_lossy()), remedy);
    let file = files::readable_btf(path).ok_or_else(|| refused(&"cannot be read any more", REMEDY))?;
    let bytes = btf_file::read(&file).map_err(|why| refused(&why, REMEDY))?;
    let reduce = |bytes: &[u8]| Btf::read(bytes, OF_PROGRAMS.iter().map(|name| name.as_bytes()))?.reduced();
    let reduced = reduce(&bytes).ok_or_else(|| refused(&"is damaged, or of another machine", REMEDY))?;
    // What is held against the kernel's is what libbpf gets.
    let read = |bytes| Btf::read(bytes, []);
    let kernel = match kernel {
        Some(kernel) => read(kernel),
        // It cannot be said to be right.
        None if File::open(KERNEL_BTF).is_ok() => {
            return Err(refused(
                &"cannot be held against this kernel's own types, which are not understood",
                accesses::OWN,
            ));
        }
        None => None,
    };
    let found = read(&reduced).ok_or_else(|| refused(&"is damaged", REMEDY))?;
    accesses::check(&found, kernel.as_ref()).map_err(|fault| refused(&fault, fault.remedy()))?;
    Ok(reduced)
}

/// The error for a BTF file that cannot be used.
fn no_file(cause: String, remedy: &'static str) -> Error {
    Error::Probe { cause, remedy, errno: libc::EINVAL }
}

/// A file that is nowhere but in memory.
fn in_memory(bytes: &[u8]) -> Option<File> {
    let mut file = File::from(memfd_create("tcpevent-btf", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(bytes).ok()?;
    Some(file)
}

/// A file's bytes, without a copy. The kernel's type information can be mapped since Linux 6.16.
fn mapped(file: &File) -> Option<Mapping> {
    let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
    Mapping::of(file.as_raw_fd(), length, Access::Private).ok()
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
        let mut targets = KernelTypes::of_kernel(&[]).unwrap().0.fitting.targets;
        // But for those whose parameters it does not count.
        targets.retain(|(section, _)| !section.starts_with("fexit/"));
        assert_eq!(targets, KernelTypes::by_libbpf().fitting.targets);
        assert!(targets.iter().any(|(section, _)| *section == SET_STATE));
    }
}
