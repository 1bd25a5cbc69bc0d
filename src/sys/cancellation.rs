//! pthread_cancel(3) of the host's threads while they are in this library.
//!
//! glibc cancels a thread by unwinding its stack from any cancellation point; with asynchronous cancellation, from any
//! instruction. Rust's frames cannot be unwound like that if they have something to drop. So every exported function
//! holds cancellation off until it returns, and the three that wait allow it only while they wait, from a frame that
//! has nothing to drop.
//!
//! What unwinds is "C-unwind" here, the imports included: the libc crate declares them as functions that never unwind.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

use crate::sys::semaphore::Semaphore;
use crate::sys::wake::timespec;

// The same numbers in glibc and musl (pthread.h).
const DISABLE: c_int = 1;
const DEFERRED: c_int = 0;

unsafe extern "C-unwind" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
    fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int;
    fn ppoll(
        fds: *mut libc::pollfd,
        count: libc::nfds_t,
        time: *const libc::timespec,
        mask: *const libc::sigset_t,
    ) -> c_int;
    fn sem_wait(semaphore: *mut libc::sem_t) -> c_int;
}

/// Cancellation of the calling thread is held off. To be released by hand: a value with a destructor would block the
/// unwinding that it allows.
#[derive(Clone, Copy)]
#[must_use]
pub struct Held {
    state: c_int,
}

/// Holds cancellation off.
///
/// Async-signal-safe: with glibc and musl it changes a word of the thread.
pub fn hold() -> Held {
    let mut state = 0;
    // SAFETY: a number to fill. It does not unwind: it disables cancellation and is no cancellation point.
    unsafe { pthread_setcancelstate(DISABLE, &raw mut state) };
    Held { state }
}

impl Held {
    /// Restores the previous state: a pending cancellation may unwind from here.
    #[inline]
    pub fn release(self) {
        // SAFETY: the previous state. The caller has nothing to drop.
        unsafe { pthread_setcancelstate(self.state, ptr::null_mut()) };
    }

    /// As ppoll(2) of one descriptor for reading. A cancellation point, deferred even if the thread's type is
    /// asynchronous.
    #[inline]
    pub fn poll(self, fd: RawFd, time: Option<Duration>) -> c_int {
        let mut fd = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let limit = time.map(timespec);
        let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: one valid pollfd, a valid timespec or none.
        self.let_in(|| unsafe { ppoll(&raw mut fd, 1, limit, ptr::null()) })
    }

    /// As sem_wait(3), and the same kind of cancellation point.
    #[inline]
    pub fn wait(self, semaphore: &Semaphore) -> c_int {
        // SAFETY: an initialised semaphore.
        self.let_in(|| unsafe { sem_wait(semaphore.as_ptr()) })
    }

    #[inline]
    fn let_in(self, wait: impl FnOnce() -> c_int) -> c_int {
        let mut kind = DEFERRED;
        // SAFETY: earlier states and types, and numbers to fill. The callers have nothing to drop.
        unsafe {
            // An asynchronous cancellation could find the thread anywhere.
            pthread_setcanceltype(DEFERRED, &raw mut kind);
            pthread_setcancelstate(self.state, ptr::null_mut());
            let result = wait();
            pthread_setcancelstate(DISABLE, ptr::null_mut());
            // Cancellation is held off: this only restores the type.
            pthread_setcanceltype(kind, ptr::null_mut());
            result
        }
    }
}

/// Runs the body of an exported function that does not wait for events.
#[inline]
pub fn held_off<T: Copy>(body: impl FnOnce() -> T) -> T {
    let held = hold();
    let result = body();
    held.release();
    result
}
