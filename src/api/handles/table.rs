//! The handles of the C API: numbers, not addresses, so that one that is closed, or never was, is told from an open one.
//! [`slots`](super::slots) says how that is safe.

use std::mem::ManuallyDrop;
use std::ptr;
use std::time::{Duration, Instant};

use super::slots::{self, Slot, Slots};
use super::sync::{AtomicBool, AtomicPtr, AtomicUsize};
use super::watch::Watch;
use crate::error::Error;
use crate::sys::once::Once;
use crate::sys::per_thread::{self, Abandon};

/// Handles that can be open.
const MOST: usize = 64;

static TABLE: Slots<Watch, MOST> = Slots(
    [const {
        Slot {
            taken: AtomicBool::new(false),
            generation: AtomicUsize::new(0),
            users: AtomicUsize::new(0),
            value: AtomicPtr::new(ptr::null_mut()),
        }
    }; MOST],
);

/// A handle's watch, which is not freed as long as this lives.
pub type InUse = slots::InUse<'static, Watch>;

/// A handle that stays in use while its thread waits, which may end meanwhile: then the use ends too.
#[derive(Clone, Copy)]
#[must_use]
pub struct Waiting(&'static Slot<Watch>, &'static Watch);

impl InUse {
    /// Goes on in a frame that has nothing to drop.
    pub fn wait(self) -> Waiting {
        let this = ManuallyDrop::new(self);
        // SAFETY: as it is handed over below; the table is static.
        let abandon = |slot: *const ()| unsafe { &*slot.cast::<Slot<Watch>>() }.leave();
        per_thread::set_waiting(Some(Abandon { call: abandon, with: ptr::from_ref(this.slot).cast() }));
        Waiting(this.slot, this.value)
    }
}

impl Waiting {
    /// The wait is over.
    pub fn end(self) -> InUse {
        per_thread::set_waiting(None);
        InUse { slot: self.0, value: self.1 }
    }
}

const NOT_OPEN: Error = Error::Argument {
    what: "handle is not open: it was closed, or is none that tcpevent_open has given in this process",
    errno: libc::EBADF,
};

/// Opens a watch, and gives it a handle.
pub fn insert(open: impl FnOnce() -> Result<Watch, Error>) -> Result<usize, Error> {
    static FORKS: Once = Once::new();
    FORKS.call(|| {
        // SAFETY: the handler is a function of this library, which is never unmapped (-z nodelete).
        unsafe { libc::pthread_atfork(None, None, Some(forget_all)) };
    });
    TABLE.insert(|| open().map(Box::new)).unwrap_or(Err(Error::Argument {
        what: "64 handles are open, and a process can have no more: close one",
        errno: libc::EMFILE,
    }))
}

/// The watch behind a handle; `None` where it is not open. Async-signal-safe, as is the end of its use.
pub fn get_in_handler(handle: usize) -> Option<InUse> {
    TABLE.get(handle)
}

/// The watch behind a handle.
pub fn get(handle: usize) -> Result<InUse, Error> {
    get_in_handler(handle).ok_or(NOT_OPEN)
}

/// A read that has been told to end takes no longer than this, but where it never does: a signal handler has jumped out of it
/// (siglongjmp), or a debugger has stopped its thread.
const LONGEST_USE: Duration = Duration::from_secs(2);

/// Closes a handle. Returns once its watch is gone; or has ended, where somebody may still look at it: then its memory and
/// its place stay taken for good.
pub fn remove(handle: usize) -> Result<(), Error> {
    let closed = TABLE.close(handle).ok_or(NOT_OPEN)?;
    closed.end_reads();
    let until = Instant::now() + LONGEST_USE;
    let may_wait = || {
        let is_time_left = Instant::now() <= until;
        if is_time_left {
            std::thread::sleep(Duration::from_micros(100));
        }
        is_time_left
    };
    if let Err(closed) = closed.free(may_wait, drop) {
        closed.end();
    }
    Ok(())
}

extern "C" fn forget_all() {
    TABLE.forget_all(Watch::close_fds_in_child);
}
