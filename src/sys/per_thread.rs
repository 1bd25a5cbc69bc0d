//! What the library keeps for each thread of its host: the text of its last error, and the clean-up if the thread ends
//! while it waits in the library (pthread_cancel, pthread_exit).
//!
//! A key of the C library, not a thread-local of Rust's: that one is gone by the time the host's own destructors run,
//! which may call us (atexit, pthread_key_create). It is a single pointer, because it takes its room from the host's
//! stacks.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::once::Once;

/// See the module's documentation.
#[derive(Default)]
struct PerThread {
    last_error: RefCell<CString>,
    waiting: Cell<Option<Abandon>>,
}

/// Cleans up after a thread that ends while it waits.
#[derive(Clone, Copy)]
pub struct Abandon {
    /// The function to call.
    pub call: fn(*const ()),
    /// Its argument.
    pub with: *const (),
}

/// The key, and [`HAS_KEY`].
static KEY: AtomicU64 = AtomicU64::new(0);

const HAS_KEY: u64 = 1 << 32;

/// `None` if the process has no keys left.
fn key() -> Option<libc::pthread_key_t> {
    static ONCE: Once = Once::new();
    ONCE.call(|| {
        let mut key = 0;
        // SAFETY: a key to fill, and a function of this library, which is never unmapped (-z nodelete).
        if unsafe { libc::pthread_key_create(&raw mut key, Some(end)) } == 0 {
            KEY.store(HAS_KEY | u64::from(key), Ordering::Release);
        }
    });
    KEY.load(Ordering::Acquire).checked_sub(HAS_KEY)?.try_into().ok()
}

/// The calling thread's value, if any.
fn existing() -> Option<&'static PerThread> {
    // SAFETY: `get` has put the value there, and only the thread's end frees it. It does not leave this thread.
    unsafe { libc::pthread_getspecific(key()?).cast::<PerThread>().as_ref() }
}

/// The calling thread's value, created if missing. `None` if that fails.
fn get() -> Option<&'static PerThread> {
    if let Some(existing) = existing() {
        return Some(existing);
    }
    let key = key()?;
    let new = Box::into_raw(Box::<PerThread>::default());
    // SAFETY: as in `existing`; if it fails, the value has no other owner.
    unsafe {
        if libc::pthread_setspecific(key, new.cast()) != 0 {
            drop(Box::from_raw(new));
            return None;
        }
        Some(&*new)
    }
}

/// The thread ends. Called again if another destructor creates a new value.
unsafe extern "C" fn end(value: *mut c_void) {
    // SAFETY: `get` has put it there, and the C library has removed it before the call.
    let this = unsafe { Box::from_raw(value.cast::<PerThread>()) };
    if let Some(Abandon { call, with }) = this.waiting.take() {
        call(with);
    }
}

/// Keeps the text of an error for [`last_error`].
pub fn set_last_error(text: CString) {
    if let Some(this) = get() {
        this.last_error.replace(text);
    }
}

/// The text of the calling thread's last error, NUL-terminated; empty without one.
pub fn last_error() -> *const c_char {
    existing().map_or(c"".as_ptr(), |this| this.last_error.borrow().as_ptr())
}

/// The calling thread begins to wait; with `None`, it has stopped.
pub fn set_waiting(abandon: Option<Abandon>) {
    let this = if abandon.is_some() { get() } else { existing() };
    if let Some(this) = this {
        this.waiting.set(abandon);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn each_thread_has_its_own_error() {
        set_last_error(c"here".to_owned());
        // SAFETY: a text that is valid until the next error.
        let text = || unsafe { CStr::from_ptr(last_error()) }.to_owned();
        let there = thread::spawn(move || {
            let before = text();
            set_last_error(c"there".to_owned());
            (before, text())
        });
        assert_eq!(there.join().unwrap(), (c"".to_owned(), c"there".to_owned()));
        assert_eq!(text(), c"here".to_owned());
    }

    #[test]
    fn a_thread_that_ends_while_it_waits_leaves_order() {
        static LEFT: AtomicUsize = AtomicUsize::new(0);
        let abandon = || Abandon {
            call: |with| {
                LEFT.fetch_add(with.addr(), Ordering::SeqCst);
            },
            with: ptr::without_provenance(7),
        };
        thread::spawn(move || set_waiting(Some(abandon()))).join().unwrap();
        assert_eq!(LEFT.load(Ordering::SeqCst), 7);
        thread::spawn(move || {
            set_waiting(Some(abandon()));
            set_waiting(None);
        })
        .join()
        .unwrap();
        assert_eq!(LEFT.load(Ordering::SeqCst), 7);
    }
}
