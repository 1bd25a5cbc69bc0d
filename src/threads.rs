//! The library's own threads: how they are started.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::{mem, ptr};

use crate::error::{Error, NO_DESCRIPTORS};

/// The error where a thread gets no descriptor to sleep on.
pub fn no_descriptor(source: std::io::Error) -> Error {
    Error::System { what: "eventfd", remedy: NO_DESCRIPTORS, source }
}

/// Takes a lock. A panic of another thread that had it is that one's matter: what is behind our locks is whole at all times.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that blocks all signals: the host's handlers run on the host's threads.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    let spawned = with_signals_blocked(|| thread::Builder::new().name(name.to_owned()).spawn(body));
    spawned.map_err(|source| Error::System {
        what: "starting a thread",
        remedy: "raise the limit of processes (ulimit -u)",
        source,
    })
}

/// A new thread inherits the mask of the one that creates it.
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
