//! Initialisation once in a process, even across a fork.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Like [`std::sync::Once`], except across a fork: if another thread of the parent was running the body, the child does
/// not wait for that thread, which it does not have, but runs the body itself.
pub struct Once(AtomicU32);

const NOT_YET: u32 = 0;
const DONE: u32 = u32::MAX;

impl Once {
    /// Not done yet.
    pub const fn new() -> Self {
        Self(AtomicU32::new(NOT_YET))
    }

    /// Runs the body, or waits until another thread of this process has. A body begun in the parent is run again.
    pub fn call(&self, body: impl FnOnce()) {
        // A process ID is neither 0 nor as large as DONE.
        let process = std::process::id();
        loop {
            let state = self.0.load(Ordering::Acquire);
            if state == DONE {
                return;
            }
            if state != process && self.0.compare_exchange(state, process, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                body();
                self.0.store(DONE, Ordering::Release);
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_is_done_once_and_awaited() {
        for _ in 0..100 {
            let (once, count) = (Once::new(), AtomicU32::new(0));
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        once.call(|| {
                            thread::yield_now();
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(count.load(Ordering::Relaxed), 1);
                    });
                }
            });
        }
    }

    #[test]
    fn what_another_process_has_begun_is_begun_again() {
        let once = Once(AtomicU32::new(std::process::id() + 1));
        let mut done = false;
        once.call(|| done = true);
        assert!(done);
    }
}
