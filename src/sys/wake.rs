//! Ends the sleep of one thread from anywhere, signal handlers included.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::sys::own_fd::OwnFd;

const NO_FD: RawFd = -1;

/// A new eventfd that never blocks, and is closed on exec.
pub fn new_eventfd(flags: EventfdFlags) -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | flags)?)
}

/// A time as the kernel takes it.
pub fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Waits until one of these is ready (negative numbers are passed over), or for a time. As ppoll(2): how many are, or -1
/// where a signal handler has run.
pub fn poll(fds: &mut [libc::pollfd], time: Option<Duration>) -> i32 {
    let limit = time.map(timespec);
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: valid pollfds, as many as is said, and a valid timespec or none.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit, std::ptr::null()) }
}

/// Adds to an eventfd that is open. A counter that is full (EAGAIN) wakes as well.
///
/// Async-signal-safe: write(2) only, and errno is left as it was.
pub fn write_eventfd(fd: impl AsFd, value: u64) {
    let _ = rustix::io::write(fd, &value.to_ne_bytes());
}

/// Where a thread publishes the eventfd that it sleeps on.
pub struct Waker {
    /// The sleeper's; null where nobody sleeps here.
    bed: AtomicPtr<Bed>,
    writers: AtomicU32,
}

impl Waker {
    /// Nobody sleeps here yet.
    pub const fn new() -> Self {
        Self { bed: AtomicPtr::new(ptr::null_mut()), writers: AtomicU32::new(0) }
    }

    /// Publishes a new eventfd for the calling thread, until the sleeper is dropped.
    pub fn sleeper(&self) -> io::Result<Sleeper<'_>> {
        let bed = Box::new(Bed { fd: OwnFd::new(new_eventfd(EventfdFlags::empty())?), told: AtomicBool::new(false) });
        self.bed.store(ptr::from_ref(&*bed).cast_mut(), Ordering::SeqCst);
        Ok(Sleeper { waker: self, bed })
    }

    /// Whether the sleeper, if there is one, can be woken. Async-signal-safe.
    pub fn can_wake(&self) -> bool {
        self.with_bed(|bed| bed.is_none_or(|bed| bed.fd.is_ours()))
    }

    /// Wakes the sleeper, now and for every later wait. False where that cannot be done: the host has closed the eventfd, and
    /// the sleeper sleeps for ever.
    ///
    /// Async-signal-safe: atomics and system calls only, and errno is left as it was. While a write is under way
    /// `writers` keeps the descriptor open.
    #[must_use]
    pub fn wake(&self) -> bool {
        self.with_bed(|bed| {
            let Some(Bed { fd, told }) = bed else {
                return true;
            };
            told.store(true, Ordering::SeqCst);
            let is_ours = fd.is_ours();
            if is_ours {
                write_eventfd(fd, 1);
            }
            is_ours
        })
    }

    fn with_bed<T>(&self, take: impl FnOnce(Option<&Bed>) -> T) -> T {
        self.writers.fetch_add(1, Ordering::SeqCst);
        // SAFETY: its owner waits for `writers` to become 0 before it frees it.
        let result = take(unsafe { self.bed.load(Ordering::SeqCst).as_ref() });
        self.writers.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// What a sleeper waits for.
struct Bed {
    fd: OwnFd,
    /// It was woken.
    told: AtomicBool,
}

/// The sleeping side of a [`Waker`]; owns the eventfd.
pub struct Sleeper<'waker> {
    waker: &'waker Waker,
    /// In a place of its own: the waker has its address.
    bed: Box<Bed>,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// By [`Waker::wake`].
    Told,
    /// The other descriptor has something to read, or failed.
    Ready,
    /// The time is over.
    TimedOut,
}

impl Sleeper<'_> {
    /// Whether the host has closed the eventfd, so that nobody can tell this thread anything any more.
    pub fn is_lost(&self) -> bool {
        !self.bed.fd.may_be_ours()
    }

    /// Whether it was woken: what takes long looks at this now and then, which costs nothing.
    pub fn is_told(&self) -> bool {
        self.bed.told.load(Ordering::SeqCst)
    }

    /// Waits until told, until `other` is readable, or for a time.
    pub fn wait(&self, other: Option<RawFd>, time: Option<Duration>) -> Woken {
        self.wait_for_any([other, None], time)
    }

    /// The same for any of two.
    pub fn wait_for_any(&self, others: [Option<RawFd>; 2], time: Option<Duration>) -> Woken {
        let mut fds = [Some(self.bed.fd.as_raw_fd()), others[0], others[1]].map(|fd| libc::pollfd {
            fd: fd.unwrap_or(NO_FD),
            events: libc::POLLIN,
            revents: 0,
        });
        let ready = poll(&mut fds, time);
        if ready > 0 && fds[0].revents != 0 {
            Woken::Told
        } else if ready > 0 {
            Woken::Ready
        } else {
            Woken::TimedOut
        }
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.waker.bed.store(ptr::null_mut(), Ordering::SeqCst);
        // A writer is between two instructions of `wake`, maybe in a thread that is not running just now.
        while self.waker.writers.load(Ordering::SeqCst) != 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wait_ends_when_told_and_stays_ended() {
        let waker = Waker::new();
        assert!(waker.wake());
        let sleeper = waker.sleeper().unwrap();
        assert_eq!(sleeper.wait(None, Some(Duration::from_millis(1))), Woken::TimedOut);
        assert!(!sleeper.is_told());
        thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            assert_eq!(sleeper.wait(None, None), Woken::Told);
        });
        assert_eq!(sleeper.wait(None, None), Woken::Told);
        assert!(sleeper.is_told());
    }

    #[test]
    fn another_descriptor_ends_a_wait() {
        let waker = Waker::new();
        let other = Waker::new();
        let sleeper = waker.sleeper().unwrap();
        let ready = other.sleeper().unwrap();
        assert!(other.wake());
        assert_eq!(sleeper.wait(Some(ready.bed.fd.as_raw_fd()), None), Woken::Ready);
    }

    #[test]
    fn wakes_race_with_the_end_of_the_sleeper() {
        let waker = Waker::new();
        let until = Instant::now() + Duration::from_millis(200);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while Instant::now() < until {
                        assert!(waker.wake());
                    }
                });
            }
            while Instant::now() < until {
                let sleeper = waker.sleeper().unwrap();
                sleeper.wait(None, Some(Duration::from_micros(50)));
            }
        });
        assert!(waker.bed.load(Ordering::SeqCst).is_null());
    }

    /// As the session does it: the stop is noted before the wake, and looked at once the sleeper is published.
    #[test]
    fn stops_from_several_threads_are_never_missed() {
        const STOPPERS: usize = 3;
        const ROUNDS: usize = 300;
        let waker = Waker::new();
        let stopped = AtomicU32::new(0);
        let start = Barrier::new(STOPPERS + 1);
        let end = Barrier::new(STOPPERS + 1);
        thread::scope(|scope| {
            let stop = || {
                for _ in 0..ROUNDS {
                    start.wait();
                    stopped.fetch_add(1, Ordering::SeqCst);
                    assert!(waker.wake());
                    end.wait();
                }
            };
            let stoppers: Vec<_> = (0..STOPPERS).map(|_| scope.spawn(stop)).collect();
            for round in 0..ROUNDS {
                start.wait();
                let sleeper = waker.sleeper().unwrap();
                if stopped.load(Ordering::SeqCst) == 0 {
                    assert_eq!(sleeper.wait(None, Some(Duration::from_secs(30))), Woken::Told, "round {round}");
                }
                // Some of the others are still at it.
                drop(sleeper);
                end.wait();
                stopped.store(0, Ordering::SeqCst);
            }
            for stopper in stoppers {
                stopper.join().unwrap();
            }
        });
    }

    #[test]
    fn errno_survives_a_wake() {
        let waker = Waker::new();
        let sleeper = waker.sleeper().unwrap();
        // The second one fails (EAGAIN).
        for most in [0, u64::MAX - 2] {
            write_eventfd(&sleeper.bed.fd, most);
            // SAFETY: errno is thread-local and always there.
            unsafe { *libc::__errno_location() = 4711 };
            assert!(waker.wake());
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(4711));
        }
    }
}
