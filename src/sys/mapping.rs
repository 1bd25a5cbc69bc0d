//! Files and BPF maps in memory.

use std::os::fd::RawFd;
use std::{io, ptr};

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read what never changes.
    Private,
    /// To read what others write.
    ReadOnly,
    /// To write as well.
    ReadWrite,
}

/// The first bytes of a file, in memory. The file need not stay open.
pub struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

// SAFETY: a place and a length; what may be done with the bytes is up to whoever takes the place.
unsafe impl Send for Mapping {}
// SAFETY: likewise.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps so many bytes.
    pub fn of(fd: RawFd, length: usize, access: Access) -> io::Result<Self> {
        let (protection, flags) = match access {
            Access::Private => (libc::PROT_READ, libc::MAP_PRIVATE),
            Access::ReadOnly => (libc::PROT_READ, libc::MAP_SHARED),
            Access::ReadWrite => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        };
        // SAFETY: a new mapping, at a place that the kernel chooses. Any number may be given for a descriptor.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, length }) }
    }

    /// Where it begins: at the start of a page.
    pub fn start(&self) -> *mut libc::c_void {
        self.start
    }

    /// In bytes.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own.
        unsafe { libc::munmap(self.start, self.length) };
    }
}
