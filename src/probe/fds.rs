//! The descriptors that a forked child has to close.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use libbpf_rs::{AsRawLibbpf, libbpf_sys};

use super::Probe;

/// A probe has at most 7 links, 2 perf events, 6 programs and 9 maps; and where it has a perf buffer, a perf event for
/// each processor of up to 256.
const MOST_FDS: usize = 25 + 256;

/// No descriptor.
const NO_FD: RawFd = -1;

/// Descriptors of the links, programs and maps in force, for a forked child to close: they would keep the probe attached,
/// or loaded, after the parent has ended it.
pub struct BpfFds([AtomicI32; MOST_FDS]);

impl BpfFds {
    /// None.
    pub const fn new() -> Self {
        Self([const { AtomicI32::new(NO_FD) }; _])
    }

    /// A probe is attached.
    pub fn note(&self, probe: &Probe<'_>) {
        let links = probe.links.iter().map(|link| link.as_fd().as_raw_fd());
        let links = links.chain(probe.holders.as_ref().map(AsRawFd::as_raw_fd)).chain(probe.events.iter().copied());
        let object = probe.object();
        // SAFETY: a program of an object that lives. One that is not loaded has a negative number for a descriptor.
        let programs =
            object.progs().map(|program| unsafe { libbpf_sys::bpf_program__fd(program.as_libbpf_object().as_ptr()) });
        let maps = object.maps().map(|map| map.as_fd().as_raw_fd());
        let fds = links.chain(programs).chain(maps).filter(|fd| *fd >= 0);
        for (place, fd) in self.0.iter().zip(fds) {
            place.store(fd, Ordering::SeqCst);
        }
    }

    /// There are some more, as long as there are places.
    pub fn add(&self, fds: impl Iterator<Item = RawFd>) {
        let free = self.0.iter().filter(|place| place.load(Ordering::SeqCst) == NO_FD);
        for (place, fd) in free.zip(fds) {
            place.store(fd, Ordering::SeqCst);
        }
    }

    /// They are about to be closed.
    pub fn forget(&self) {
        for place in &self.0 {
            place.store(NO_FD, Ordering::SeqCst);
        }
    }

    /// Closes a forked child's copies. Async-signal-safe, as all that runs between fork and exec must be.
    pub fn close_in_child(&self) {
        for place in &self.0 {
            let fd = place.swap(NO_FD, Ordering::SeqCst);
            if fd != NO_FD {
                // SAFETY: in the child nobody but this function knows the descriptor.
                unsafe { libc::close(fd) };
            }
        }
    }
}
