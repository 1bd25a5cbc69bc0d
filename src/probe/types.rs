//! The kernel's types, as libbpf needs them to fit the programs to the kernel.

use std::ffi::{CStr, c_void};
use std::fs::{self, File};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::{ptr, slice};

use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{AsRawLibbpf, OpenObject, libbpf_sys};

use super::open;
use crate::btf;
use crate::settings::ProbeSettings;

/// The kernel's type information.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel calls the tracepoint `inet_sk_error_report` (since Linux 5.14) among its types.
const ERROR_REPORT: &str = "btf_trace_inet_sk_error_report";

/// The kernel's types, reduced to those that the programs have.
pub(super) struct KernelTypes {
    /// It has no name.
    file: File,
    /// Whether the kernel tells of the errors of sockets.
    pub(super) has_error_report: bool,
}

impl KernelTypes {
    /// `None` where that is not possible, or the user has other types in mind: libbpf takes the kernel's own then, or says
    /// what is wrong.
    pub(super) fn reduced(settings: &ProbeSettings, place: &mut MaybeUninit<OpenObject>) -> Option<Self> {
        if settings.btf.is_some() {
            return None;
        }
        let mut names = names_of_types(place)?;
        names.push(ERROR_REPORT.into());
        let kernel = File::open(KERNEL_BTF).ok()?;
        let reduced = match Mapped::of(&kernel) {
            Some(kernel) => btf::reduce(kernel.bytes(), &names)?,
            None => btf::reduce(&fs::read(KERNEL_BTF).ok()?, &names)?,
        };
        // SAFETY: a NUL-terminated name, for /proc/PID/fd.
        let fd = unsafe { libc::memfd_create(c"tcpevent-btf".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the kernel has just given it, to nobody else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(&reduced).ok()?;
        let this = Self { file, has_error_report: btf::has(&reduced, ERROR_REPORT) };
        // Not every container has a /proc.
        this.path().exists().then_some(this)
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
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
