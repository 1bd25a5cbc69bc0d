//! What handles stand for, and who may use or free it.
//!
//! A handle is a slot, and how often that was opened and closed before (odd: it is open). Whoever uses a slot counts itself in
//! first and looks at that number then; who closes changes the number first and waits then for the count. So nobody uses
//! what is freed, and neither needs a lock: a signal handler may look a handle up.
//!
//! `tests/slots.rs` includes this file and tries all orders in which threads can come.

use std::ops::Deref;
use std::ptr;

use super::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A place for a value.
pub struct Slot<T> {
    /// From before it is opened until its value is freed.
    pub taken: AtomicBool,
    /// Counts up with each open and close.
    pub generation: AtomicUsize,
    /// Those that may look at the value.
    pub users: AtomicUsize,
    /// Null where there is none.
    pub value: AtomicPtr<T>,
}

/// As many as can be open.
pub struct Slots<T, const N: usize>(pub [Slot<T>; N]);

/// A value in use: it is not freed as long as this lives.
pub struct InUse<'slots, T> {
    pub(super) slot: &'slots Slot<T>,
    pub(super) value: &'slots T,
}

/// A value whose handle is closed, and that is still there.
pub struct Closed<'slots, T> {
    slot: &'slots Slot<T>,
    value: *mut T,
}

/// A slot's generation is odd while a handle is open in it.
fn is_open(generation: usize) -> bool {
    generation % 2 == 1
}

impl<T, const N: usize> Slots<T, N> {
    /// Opens a value, and gives it a handle. `None` where all slots are taken.
    pub fn insert<E>(&self, open: impl FnOnce() -> Result<Box<T>, E>) -> Option<Result<usize, E>> {
        let take =
            |slot: &Slot<T>| slot.taken.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        let (number, slot) = self.0.iter().enumerate().find(|(_, slot)| take(slot))?;
        Some(match open() {
            Ok(value) => {
                slot.value.store(Box::into_raw(value), Ordering::SeqCst);
                let generation = slot.generation.fetch_add(1, Ordering::SeqCst) + 1;
                Ok(generation * N + number)
            }
            Err(error) => {
                slot.taken.store(false, Ordering::SeqCst);
                Err(error)
            }
        })
    }

    fn find(&self, handle: usize) -> (&Slot<T>, usize) {
        (&self.0[handle % N], handle / N)
    }

    /// The value behind a handle; `None` where it is not open. Async-signal-safe, as is the end of its use.
    pub fn get(&self, handle: usize) -> Option<InUse<'_, T>> {
        let (slot, generation) = self.find(handle);
        slot.users.fetch_add(1, Ordering::SeqCst);
        // From here on it is counted, and counted out in each case.
        if !is_open(generation) || slot.generation.load(Ordering::SeqCst) != generation {
            slot.users.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        // SAFETY: the slot is open, and whoever closes it waits for its users before freeing the value.
        let value = unsafe { &*slot.value.load(Ordering::SeqCst) };
        Some(InUse { slot, value })
    }

    /// Closes a handle: from now on nobody gets its value. `None` where it is not open.
    pub fn close(&self, handle: usize) -> Option<Closed<'_, T>> {
        let (slot, generation) = self.find(handle);
        let close = || slot.generation.compare_exchange(generation, generation + 1, Ordering::SeqCst, Ordering::SeqCst);
        (is_open(generation) && close().is_ok()).then(|| Closed { slot, value: slot.value.load(Ordering::SeqCst) })
    }

    /// A forked child has the parent's handles, and none of the threads behind them: they are closed, and what they stand for
    /// is shown to `each` and never freed. Its locks may be held by threads that were not copied.
    pub fn forget_all(&self, each: impl Fn(&T)) {
        for slot in &self.0 {
            if is_open(slot.generation.load(Ordering::SeqCst)) {
                slot.generation.fetch_add(1, Ordering::SeqCst);
                // SAFETY: the parent had it open when it forked, or was about to free it.
                each(unsafe { &*slot.value.load(Ordering::SeqCst) });
            }
            slot.users.store(0, Ordering::SeqCst);
            slot.taken.store(false, Ordering::SeqCst);
        }
    }
}

impl<T> Closed<'_, T> {
    /// Frees the value once nobody uses it any more, and gives its slot back. Hands it back where `may_wait` says that this has
    /// taken too long: then value and slot stay taken for good.
    pub fn free(self, mut may_wait: impl FnMut() -> bool, free: impl FnOnce(Box<T>)) -> Result<(), Self> {
        while self.slot.users.load(Ordering::SeqCst) != 0 {
            if !may_wait() {
                return Err(self);
            }
        }
        // SAFETY: only who has changed the generation, which is one, frees it; and there are no users any more.
        free(unsafe { Box::from_raw(self.value) });
        self.slot.value.store(ptr::null_mut(), Ordering::SeqCst);
        self.slot.taken.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: only who has changed the generation, which is one, frees it.
        unsafe { &*self.value }
    }
}

impl<T> Slot<T> {
    /// A use is over.
    pub fn leave(&self) {
        // A forked child has set it to 0, where a signal handler forked within a read that then goes on.
        let _ = self.users.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |users| users.checked_sub(1));
    }
}

impl<T> Deref for InUse<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> Drop for InUse<'_, T> {
    fn drop(&mut self) {
        self.slot.leave();
    }
}
