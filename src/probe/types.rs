//! The kernel's types: what the programs have of them, for libbpf to fit the programs to the kernel; and their numbers.

use std::ffi::{CStr, c_void};
use std::fs::{self, File};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::{ptr, slice};

use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{AsRawLibbpf, OpenObject, libbpf_sys};

use super::instructions::{self, Fitting};
use super::open;
use crate::btf::{Btf, Meaning};
use crate::settings::ProbeSettings;

/// The kernel's type information.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel calls the tracepoint `inet_sk_error_report` (since Linux 5.14) among its types.
pub(super) const ERROR_REPORT: &str = "tp_btf/inet_sk_error_report";

/// Sections of the programs that are for something which has a type in the kernel, and that type.
const TARGETS: [(&str, Meaning, &str); 5] = [
    ("tp_btf/inet_sock_set_state", Meaning::Typedef, "btf_trace_inet_sock_set_state"),
    ("tp_btf/tcp_destroy_sock", Meaning::Typedef, "btf_trace_tcp_destroy_sock"),
    (ERROR_REPORT, Meaning::Typedef, "btf_trace_inet_sk_error_report"),
    ("tp_btf/io_uring_complete", Meaning::Typedef, "btf_trace_io_uring_complete"),
    ("iter/task_file", Meaning::Function, "bpf_iter_task_file"),
];

const RDONLY_CAST: &str = "bpf_rdonly_cast";

/// What pointers are cast to.
const CASTS: [&str; 5] = ["sock", "tcp_sock", "socket", "file", "task_struct"];

/// The kernel's types, as far as the programs need them.
#[derive(Default)]
pub(super) struct KernelTypes {
    /// Those that the programs have. It has no name.
    reduced: Option<File>,
    /// Numbers of types and functions.
    pub(super) fitting: Fitting,
    /// Numbers of the types of [`CASTS`], where pointers can be cast.
    pub(super) casts: Option<[u32; CASTS.len()]>,
}

impl KernelTypes {
    /// Empty where the kernel does not tell, or not in a way that is known here.
    pub(super) fn read(settings: &ProbeSettings, place: &mut MaybeUninit<OpenObject>) -> Self {
        let of_programs = if settings.btf.is_none() { names_of_types(place).unwrap_or_default() } else { Vec::new() };
        Self::of_kernel(&of_programs).unwrap_or_default()
    }

    fn of_kernel(of_programs: &[Vec<u8>]) -> Option<Self> {
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
        let names = names.iter().chain(&[RDONLY_CAST]).chain(&CASTS).map(|name| name.as_bytes());
        let btf = Btf::read(bytes, names.chain(of_programs.iter().map(Vec::as_slice)))?;

        let targets = TARGETS.iter().filter_map(|(section, meaning, name)| Some((*section, btf.id(*meaning, name)?)));
        let rdonly_cast = btf.id(Meaning::Function, RDONLY_CAST);
        let casts = CASTS.map(|name| btf.id(Meaning::Struct, name).unwrap_or(0));
        let rdonly_cast = rdonly_cast.filter(|cast| !casts.contains(&0) && instructions::can_cast(*cast, casts[0]));
        let fitting = Fitting { targets: targets.collect(), rdonly_cast, ..Fitting::default() };
        let reduced = if of_programs.is_empty() { None } else { btf.reduced().and_then(|bytes| in_memory(&bytes)) };
        Some(Self { reduced, fitting, casts: rdonly_cast.map(|_| casts) })
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

/// The names of structures, unions and enumerations that the programs have, without what stands for a version of one.
fn names_of_types(place: &mut MaybeUninit<OpenObject>) -> Option<Vec<Vec<u8>>> {
    let open = open(None, place).ok()?;
    let mut names = Vec::new();
    // SAFETY: the object lives, and so do its types and their names; each ID below the count has a type.
    unsafe {
        let btf = libbpf_sys::bpf_object__btf(open.open_object().as_libbpf_object().as_ptr());
        for id in 1..libbpf_sys::btf__type_cnt(btf) {
            let found = &*libbpf_sys::btf__type_by_id(btf, id);
            let kinds = [libbpf_sys::BTF_KIND_STRUCT, libbpf_sys::BTF_KIND_UNION, libbpf_sys::BTF_KIND_ENUM];
            if found.name_off != 0 && kinds.contains(&(found.info >> 24 & 0x1f)) {
                let name = CStr::from_ptr(libbpf_sys::btf__name_by_offset(btf, found.name_off)).to_bytes();
                let end = name.windows(3).position(|part| part == b"___").unwrap_or(name.len());
                names.push(name[..end].to_vec());
            }
        }
    }
    Some(names)
}
