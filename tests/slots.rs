//! The model of a handle's slot: loom tries every order in which threads can open, use and close it, and everything that they
//! can then see of each other.

#[path = "../src/api/handles/slots.rs"]
#[allow(dead_code)] // The library needs the rest.
mod slots;

use std::convert::Infallible;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use self::slots::{Slot, Slots};
use self::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// loom's atomics under the names of the library's. To loom an access that is SeqCst is no more than acquire and release, but its
/// fences are what they say. So each such access has one before it, as compilers do it for processors whose accesses are
/// weak: all of them come in one order.
mod sync {
    use loom::sync::atomic as model;
    pub use loom::sync::atomic::Ordering;

    fn fence(order: Ordering) -> Ordering {
        if order == Ordering::SeqCst {
            model::fence(Ordering::SeqCst);
        }
        order
    }

    macro_rules! atomic {
        ($name:ident of $value:ty) => {
            pub struct $name(model::$name);

            impl $name {
                pub fn new(value: $value) -> Self {
                    Self(model::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    self.0.load(fence(order))
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, fence(order));
                }

                pub fn compare_exchange(
                    &self,
                    from: $value,
                    to: $value,
                    order: Ordering,
                    otherwise: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange(from, to, fence(order), otherwise)
                }
            }
        };
    }

    atomic!(AtomicBool of bool);
    atomic!(AtomicUsize of usize);

    impl AtomicUsize {
        pub fn fetch_add(&self, value: usize, order: Ordering) -> usize {
            self.0.fetch_add(value, fence(order))
        }

        pub fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
            self.0.fetch_sub(value, fence(order))
        }

        pub fn fetch_update(
            &self,
            order: Ordering,
            otherwise: Ordering,
            update: impl FnMut(usize) -> Option<usize>,
        ) -> Result<usize, usize> {
            self.0.fetch_update(fence(order), otherwise, update)
        }
    }

    pub struct AtomicPtr<T>(model::AtomicPtr<T>);

    impl<T> AtomicPtr<T> {
        pub fn new(value: *mut T) -> Self {
            Self(model::AtomicPtr::new(value))
        }

        pub fn load(&self, order: Ordering) -> *mut T {
            self.0.load(fence(order))
        }

        pub fn store(&self, value: *mut T, order: Ordering) {
            self.0.store(value, fence(order));
        }
    }
}

/// What is behind a handle. loom fails where it is looked at while it is freed, or without knowing of the other.
struct Watch {
    number: usize,
    is_freed: UnsafeCell<bool>,
    is_ending: AtomicBool,
}

// SAFETY: loom watches over the cell.
unsafe impl Sync for Watch {}

impl Watch {
    fn open(number: usize) -> Self {
        Self { number, is_freed: UnsafeCell::new(false), is_ending: AtomicBool::new(false) }
    }

    fn number(&self) -> usize {
        // SAFETY: loom watches over the cell.
        self.is_freed
            .with(|is_freed| assert!(!unsafe { *is_freed }, "watch {} is used after it was freed", self.number));
        self.number
    }

    /// Its memory stays, so that a use after this is a failure and not just undefined.
    fn free(self: Box<Self>) {
        // SAFETY: loom watches over the cell.
        self.is_freed.with_mut(|is_freed| unsafe {
            assert!(!*is_freed, "watch {} is freed twice", self.number);
            *is_freed = true;
        });
        Box::leak(self);
    }
}

/// A process that has room for so many handles.
fn slots<const N: usize>() -> Arc<Slots<Watch, N>> {
    let free = |_| Slot {
        taken: AtomicBool::new(false),
        generation: AtomicUsize::new(0),
        users: AtomicUsize::new(0),
        value: AtomicPtr::new(std::ptr::null_mut()),
    };
    Arc::new(Slots(std::array::from_fn(free)))
}

fn insert<const N: usize>(slots: &Slots<Watch, N>, number: usize) -> Option<usize> {
    slots.insert(|| Ok::<_, Infallible>(Box::new(Watch::open(number)))).map(|opened| opened.unwrap())
}

/// As `table::remove`.
fn close<const N: usize>(slots: &Slots<Watch, N>, handle: usize) -> bool {
    let Some(closed) = slots.close(handle) else { return false };
    closed.is_ending.store(true, Ordering::SeqCst);
    let may_wait = || {
        thread::yield_now();
        true
    };
    assert!(closed.free(may_wait, Watch::free).is_ok());
    true
}

#[test]
fn a_watch_in_use_is_not_freed() {
    loom::model(|| {
        let slots = slots::<1>();
        let handle = insert(&slots, 1).unwrap();
        let reader = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                if let Some(watch) = slots.get(handle) {
                    assert_eq!(watch.number(), 1);
                }
            })
        };
        // From a signal handler, say.
        if let Some(watch) = slots.get(handle) {
            watch.number();
        }
        assert!(close(&slots, handle));
        assert!(slots.get(handle).is_none());
        reader.join().unwrap();
    });
}

/// A read that waits ends once it sees that the handle is being closed; the close waits for that.
#[test]
fn a_close_waits_for_a_use_that_it_has_told_to_end() {
    loom::model(|| {
        let slots = slots::<1>();
        let handle = insert(&slots, 1).unwrap();
        let reader = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                let Some(watch) = slots.get(handle) else { return };
                while !watch.is_ending.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                watch.number();
            })
        };
        assert!(close(&slots, handle));
        reader.join().unwrap();
    });
}

#[test]
fn of_two_closes_one_is_refused() {
    loom::model(|| {
        let slots = slots::<1>();
        let handle = insert(&slots, 1).unwrap();
        let other = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || close(&slots, handle))
        };
        let own = close(&slots, handle);
        assert!(own != other.join().unwrap());
        assert!(!close(&slots, handle));
    });
}

#[test]
fn a_closed_handle_never_leads_to_the_watch_that_comes_after_it() {
    loom::model(|| {
        let slots = slots::<1>();
        let handle = insert(&slots, 1).unwrap();
        let late = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                if let Some(watch) = slots.get(handle) {
                    assert_eq!(watch.number(), 1);
                }
                close(&slots, handle)
            })
        };
        let closed = close(&slots, handle);
        // The other one may not have given the slot back yet.
        let next = insert(&slots, 2);
        assert!(closed != late.join().unwrap());
        if let Some(next) = next {
            assert_ne!(next, handle);
            assert_eq!(slots.get(next).map(|watch| watch.number()), Some(2));
        }
        assert!(slots.get(handle).is_none());
    });
}

#[test]
fn two_opens_get_a_slot_each_and_a_third_none() {
    loom::model(|| {
        let slots = slots::<2>();
        let other = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || insert(&slots, 1).unwrap())
        };
        let own = insert(&slots, 2).unwrap();
        let other = other.join().unwrap();
        assert_ne!(own, other);
        assert!(insert(&slots, 3).is_none());
        assert_eq!(slots.get(own).map(|watch| watch.number()), Some(2));
        assert_eq!(slots.get(other).map(|watch| watch.number()), Some(1));
    });
}

/// A number may be used before it is given: by chance, or by a guess.
#[test]
fn a_number_leads_to_a_whole_watch_once_it_is_a_handle() {
    const FIRST_HANDLE: usize = 1;
    loom::model(|| {
        let slots = slots::<1>();
        let early = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || slots.get(FIRST_HANDLE).map(|watch| watch.number()))
        };
        assert_eq!(insert(&slots, 1), Some(FIRST_HANDLE));
        assert!(matches!(early.join().unwrap(), None | Some(1)));
    });
}

/// A signal handler has jumped out of it.
#[test]
fn a_use_that_never_ends_keeps_the_watch_and_its_slot() {
    loom::model(|| {
        let slots = slots::<1>();
        let handle = insert(&slots, 1).unwrap();
        let closer = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || slots.close(handle).map(|closed| closed.free(|| false, Watch::free).is_ok()))
        };
        let in_use = slots.get(handle);
        let is_freed = closer.join().unwrap().unwrap();
        if let Some(watch) = in_use {
            watch.number();
            assert!(!is_freed);
            std::mem::forget(watch);
        }
        // That one may have been counted for a moment too, although it was refused.
        assert_eq!(insert(&slots, 2).is_some(), is_freed);
    });
}
