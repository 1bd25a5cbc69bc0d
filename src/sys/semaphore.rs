//! A semaphore of the C library's: what a thread can wait for that a host may cancel (see [`cancellation`]), that a signal
//! may interrupt, and that a forked child can leave behind.
//!
//! [`cancellation`]: crate::sys::cancellation

use std::cell::UnsafeCell;
use std::mem;

/// Counts up, and down again once for each wait that ends.
pub struct Semaphore(Box<UnsafeCell<libc::sem_t>>);

// SAFETY: all access is by the C library's functions, which any thread may call.
unsafe impl Send for Semaphore {}
// SAFETY: likewise.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    /// At 0.
    pub fn new() -> Self {
        // SAFETY: a structure of numbers.
        let semaphore = Self(Box::new(UnsafeCell::new(unsafe { mem::zeroed() })));
        // SAFETY: it is in its place. It fails for a count that is too large only.
        unsafe { libc::sem_init(semaphore.as_ptr(), 0, 0) };
        semaphore
    }

    /// For a call of the C library's.
    pub fn as_ptr(&self) -> *mut libc::sem_t {
        self.0.get()
    }

    /// Ends one wait, this one or the next.
    pub fn post(&self) {
        // SAFETY: an initialised semaphore. It fails only where the count is at its limit, which ends waits as well.
        unsafe { libc::sem_post(self.as_ptr()) };
    }

    /// Whether the next wait ends at once.
    pub fn is_posted(&self) -> bool {
        let mut count = 0;
        // SAFETY: an initialised semaphore, and a number to fill.
        unsafe { libc::sem_getvalue(self.as_ptr(), &raw mut count) };
        count > 0
    }

    /// Waits; a signal handler may end that early.
    pub fn wait(&self) {
        // SAFETY: an initialised semaphore.
        unsafe { libc::sem_wait(self.as_ptr()) };
    }
}
