//! The handles of the C API: numbers, not addresses, so that one that is closed, or never was, is told from an open one.
//!
//! A handle is a slot of a table, and how often that was opened and closed before (odd: it is open). Whoever uses a slot
//! counts itself in first and looks at that number then; who closes changes the number first and waits then for the
//! count. So nobody uses what is freed, and neither needs a lock: a signal handler may look a handle up.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::api::handles::watch::Watch;
use crate::error::Error;
use crate::sys::once::Once;
use crate::sys::per_thread::{self, Abandon};

/// Bits of a handle that are the slot's number.
const SLOT_BITS: u32 = 6;

const SLOTS: usize = 1 << SLOT_BITS;

struct Slot {
    taken: AtomicBool,
    /// Counts up with each open and close.
    generation: AtomicUsize,
    users: AtomicUsize,
    watch: AtomicPtr<Watch>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        generation: AtomicUsize::new(0),
        users: AtomicUsize::new(0),
        watch: AtomicPtr::new(ptr::null_mut()),
    }
}; SLOTS];

/// A handle's watch, which is not freed as long as this lives.
pub struct InUse {
    slot: &'static Slot,
    watch: &'static Watch,
}

impl Deref for InUse {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        self.watch
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.slot.leave();
    }
}

impl Slot {
    fn leave(&self) {
        // A forked child has set it to 0, where a signal handler forked within a read that then goes on.
        let _ = self.users.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |users| users.checked_sub(1));
    }
}

/// A handle that stays in use while its thread waits, which may end meanwhile: then the use ends too.
#[derive(Clone, Copy)]
#[must_use]
pub struct Waiting(&'static Slot, &'static Watch);

impl InUse {
    /// Goes on in a frame that has nothing to drop.
    pub fn wait(self) -> Waiting {
        let this = ManuallyDrop::new(self);
        // SAFETY: as it is handed over below; the table is static.
        let abandon = |slot: *const ()| unsafe { &*slot.cast::<Slot>() }.leave();
        per_thread::set_waiting(Some(Abandon { call: abandon, with: ptr::from_ref(this.slot).cast() }));
        Waiting(this.slot, this.watch)
    }
}

impl Waiting {
    /// The wait is over.
    pub fn end(self) -> InUse {
        per_thread::set_waiting(None);
        InUse { slot: self.0, watch: self.1 }
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
    let take = |slot: &&Slot| slot.taken.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    let Some((number, slot)) = TABLE.iter().enumerate().find(|(_, slot)| take(slot)) else {
        return Err(Error::Argument {
            what: "64 handles are open, and a process can have no more: close one",
            errno: libc::EMFILE,
        });
    };
    match open() {
        Ok(watch) => {
            slot.watch.store(Box::into_raw(Box::new(watch)), Ordering::SeqCst);
            let generation = slot.generation.fetch_add(1, Ordering::SeqCst) + 1;
            Ok(generation << SLOT_BITS | number)
        }
        Err(error) => {
            slot.taken.store(false, Ordering::SeqCst);
            Err(error)
        }
    }
}

fn slot_of(handle: usize) -> (&'static Slot, usize) {
    (&TABLE[handle % SLOTS], handle >> SLOT_BITS)
}

/// A slot's generation is odd while a handle is open in it.
fn is_open(generation: usize) -> bool {
    generation % 2 == 1
}

/// The watch behind a handle; `None` where it is not open. Async-signal-safe, as is the end of its use.
pub fn get_in_handler(handle: usize) -> Option<InUse> {
    let (slot, generation) = slot_of(handle);
    slot.users.fetch_add(1, Ordering::SeqCst);
    // From here on it is counted, and counted out in each case.
    if !is_open(generation) || slot.generation.load(Ordering::SeqCst) != generation {
        slot.users.fetch_sub(1, Ordering::SeqCst);
        return None;
    }
    // SAFETY: the slot is open, and whoever closes it waits for its users before freeing the watch.
    let watch = unsafe { &*slot.watch.load(Ordering::SeqCst) };
    Some(InUse { slot, watch })
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
    let (slot, generation) = slot_of(handle);
    if !is_open(generation)
        || slot.generation.compare_exchange(generation, generation + 1, Ordering::SeqCst, Ordering::SeqCst).is_err()
    {
        return Err(NOT_OPEN);
    }
    let watch = slot.watch.load(Ordering::SeqCst);
    // SAFETY: only who has changed the generation, which is one, frees it.
    let in_use = unsafe { &*watch };
    in_use.end_reads();
    let until = Instant::now() + LONGEST_USE;
    while slot.users.load(Ordering::SeqCst) != 0 {
        if Instant::now() > until {
            in_use.end();
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    // SAFETY: likewise, and there are no users any more.
    drop(unsafe { Box::from_raw(watch) });
    slot.watch.store(ptr::null_mut(), Ordering::SeqCst);
    slot.taken.store(false, Ordering::SeqCst);
    Ok(())
}

/// A forked child has the parent's handles, and none of the threads behind them. Their memory stays: its locks may be
/// held by threads that were not copied.
extern "C" fn forget_all() {
    for slot in &TABLE {
        if slot.generation.load(Ordering::SeqCst) % 2 == 1 {
            slot.generation.fetch_add(1, Ordering::SeqCst);
            // SAFETY: the parent had it open when it forked, or was about to free it.
            unsafe { &*slot.watch.load(Ordering::SeqCst) }.close_fds_in_child();
        }
        slot.users.store(0, Ordering::SeqCst);
        slot.taken.store(false, Ordering::SeqCst);
    }
}
