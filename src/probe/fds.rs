//! The descriptors of a probe: those that a forked child has to close, and what each stands for.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::attached::Probe;
use crate::sys::own_fd::Identity;

/// Links, perf events, programs and maps of a probe, at most, without those of a perf buffer.
pub(super) const MOST_HELD: usize = 30;

/// Those of a perf buffer that are noted: a perf event for each processor, and an epoll instance.
const MOST_OF_BUFFER: usize = 256 + 1;

/// What a start may take: also the types of programs and kernel, kprobes' perf events, an epoll instance and eventfds.
pub(super) const MOST_OF_START: usize = MOST_HELD + 10;

/// No descriptor.
const NO_FD: RawFd = -1;

/// Descriptors of the links, programs and maps in force, for a forked child to close: they would keep the probe attached,
/// or loaded, after the parent has ended it.
pub struct BpfFds(Box<[Place]>);

struct Place {
    fd: AtomicI32,
    identity: [AtomicU64; 3],
}

impl Place {
    const fn free() -> Self {
        Self { fd: AtomicI32::new(NO_FD), identity: [const { AtomicU64::new(0) }; 3] }
    }

    fn fill(&self, fd: RawFd) {
        if let Some(identity) = Identity::of(fd) {
            for (to, from) in self.identity.iter().zip(identity.numbers()) {
                to.store(from, Ordering::SeqCst);
            }
            self.fd.store(fd, Ordering::SeqCst);
        }
    }

    fn is_free(&self) -> bool {
        self.fd.load(Ordering::SeqCst) == NO_FD
    }

    fn identity(&self) -> Identity {
        Identity::from_numbers(self.identity.each_ref().map(|number| number.load(Ordering::SeqCst)))
    }
}

impl BpfFds {
    /// None.
    pub fn new() -> Self {
        // Not by way of the stack: the caller's may be small.
        Self((0..MOST_HELD + MOST_OF_BUFFER).map(|_| Place::free()).collect())
    }

    /// A probe is attached.
    pub fn note(&self, probe: &Probe<'_>) {
        self.add(probe.held().into_iter());
    }

    /// There are some more, as long as there are places.
    pub fn add(&self, fds: impl Iterator<Item = RawFd>) {
        for (place, fd) in self.0.iter().filter(|place| place.is_free()).zip(fds) {
            place.fill(fd);
        }
    }

    /// Some were closed.
    pub fn remove(&self, is_one: impl Fn(RawFd) -> bool) {
        for place in self.0.iter().filter(|place| is_one(place.fd.load(Ordering::SeqCst))) {
            place.fd.store(NO_FD, Ordering::SeqCst);
        }
    }

    /// They are about to be closed.
    pub fn forget(&self) {
        for place in &self.0 {
            place.fd.store(NO_FD, Ordering::SeqCst);
        }
    }

    /// Closes a forked child's copies, but for those that the host has put something else in the place of. Async-signal-safe,
    /// as all that runs between fork and exec must be.
    pub fn close_in_child(&self) {
        for place in &self.0 {
            let fd = place.fd.swap(NO_FD, Ordering::SeqCst);
            if fd != NO_FD && place.identity().is_of(fd) {
                // SAFETY: in the child nobody but this function knows the descriptor.
                unsafe { libc::close(fd) };
            }
        }
    }
}
