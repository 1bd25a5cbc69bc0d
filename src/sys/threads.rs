//! Starts the library's own threads.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::{io, mem, ptr};

use crate::error::{Error, NO_DESCRIPTORS};
use crate::sys::memory;

/// The error of a thread that gets no descriptor to sleep on.
pub fn no_descriptor(source: std::io::Error) -> Error {
    Error::System { what: "eventfd", remedy: NO_DESCRIPTORS, source }
}

/// Takes a lock. Ignores poisoning: what our locks protect is whole at all times.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that blocks all signals: the host's handlers run on the host's threads.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    let builder = thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    with_signals_blocked(|| builder.spawn(body)).map_err(|source| {
        // The C library returns EAGAIN for both.
        if memory::is_there(STACK) {
            Error::System { what: "starting a thread", remedy: "raise the limit of processes (ulimit -u)", source }
        } else {
            let source = io::Error::from_raw_os_error(libc::ENOMEM);
            Error::System { what: "taking memory for a thread's stack", remedy: memory::REMEDY, source }
        }
    })
}

/// Bytes of a thread's stack. Set explicitly, so that the environment (RUST_MIN_STACK) does not change it.
const STACK: usize = 2 << 20;

/// A new thread inherits the signal mask of its creator.
fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: `all` is filled before it is read, `before` is written before it is read, and both are locals.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = body();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        result
    }
}
