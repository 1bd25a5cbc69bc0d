//! Tells readers of a queue when there is something to read, through a descriptor that fits into any event loop.
//!
//! An epoll instance holds two eventfds: one is readable while events are queued, the other while wakes are due. The
//! first is written for the first event only, not for each.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::sys::own_fd::OwnFd;
use crate::sys::wake::{new_eventfd, write_eventfd};

/// Nobody reads which descriptor is ready.
const NO_DATA: EventData = EventData::new_u64(0);

/// See the module's documentation.
pub struct Readiness {
    epoll: OwnFd,
    queued: OwnFd,
    /// `queued` is readable, or about to be.
    signalled: AtomicBool,
    wake: OwnFd,
    /// Lower bound on the wakes that `wake` holds: incremented after the write.
    wakes: AtomicU32,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// There may be an event.
    Ready,
    /// A signal handler has run.
    Interrupted,
    /// The timeout has expired.
    TimedOut,
}

impl Readiness {
    /// Whether the host has closed any of the descriptors.
    pub fn is_lost(&self) -> bool {
        ![&self.epoll, &self.queued, &self.wake].into_iter().all(OwnFd::is_ours)
    }

    /// Whether the host has closed the descriptor for events. One system call: epoll_ctl changes an entry only where
    /// this file is registered under this number.
    pub fn has_lost_events(&self) -> bool {
        epoll::modify(&self.epoll, &self.queued, NO_DATA, EventFlags::IN).is_err()
    }

    /// No events and no wakes yet.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let queued = OwnFd::new(new_eventfd(EventfdFlags::empty())?);
        let wake = OwnFd::new(new_eventfd(EventfdFlags::SEMAPHORE)?);
        for fd in [&queued, &wake] {
            epoll::add(&epoll, fd, NO_DATA, EventFlags::IN)?;
        }
        // An epoll instance is identified by what it waits for too, so it is complete by now.
        let epoll = OwnFd::new(epoll);
        Ok(Self { epoll, queued, signalled: AtomicBool::new(false), wake, wakes: AtomicU32::new(0) })
    }

    /// Readable while events are queued or wakes are due.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Events were queued.
    pub fn signal(&self) {
        // Pairs with the fence in `settle`: one of the two sees what the other has done.
        fence(Ordering::SeqCst);
        if !self.signalled.swap(true, Ordering::SeqCst) {
            write(&self.queued, 1);
        }
    }

    /// A reader found the queue empty: clears the readiness, unless events have arrived since.
    pub fn settle(&self, is_empty: impl Fn() -> bool) {
        // In every case: another reader may have cleared the flag before the descriptor was written.
        drain(&self.queued);
        self.signalled.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !is_empty() {
            self.signal();
        }
    }

    /// Makes one [`Self::take_wake`] true. Async-signal-safe.
    pub fn wake(&self) {
        write(&self.wake, 1);
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends all waits, from now on.
    pub fn wake_all(&self) {
        // More than the readers that could take one.
        write(&self.wake, u64::MAX / 2);
    }

    /// Consumes a wake. Returns whether one was due.
    pub fn take_wake(&self) -> bool {
        let taken = self.wakes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |wakes| wakes.checked_sub(1)).is_ok();
        if taken {
            drain(&self.wake);
        }
        taken
    }

    /// Waits until there may be an event.
    #[cfg(test)]
    fn wait(&self, time: Option<std::time::Duration>) -> Waited {
        let fd = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        Waited::of(crate::sys::wake::poll(&mut [fd], time))
    }
}

impl Waited {
    /// From the result of ppoll(2) on [`Readiness::fd`].
    pub fn of(result: i32) -> Self {
        match result {
            0 => Self::TimedOut,
            1.. => Self::Ready,
            // EINTR: it cannot fail otherwise.
            _ => Self::Interrupted,
        }
    }
}

/// Adds to an eventfd, unless the host has another file in its place. Async-signal-safe.
fn write(fd: &OwnFd, value: u64) {
    if fd.may_be_ours() {
        write_eventfd(fd, value);
    }
}

/// Reads an eventfd: its whole count, or one if it is a semaphore. Zero is no error.
fn drain(fd: &OwnFd) {
    if fd.may_be_ours() {
        let _ = rustix::io::read(fd, &mut [0; size_of::<u64>()]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn it_is_readable_while_there_are_events() {
        let ready = Readiness::new().unwrap();
        assert_eq!(ready.wait(AT_ONCE), Waited::TimedOut);
        ready.signal();
        ready.signal();
        assert_eq!(ready.wait(None), Waited::Ready);
        // One event is left.
        ready.settle(|| false);
        assert_eq!(ready.wait(None), Waited::Ready);
        ready.settle(|| true);
        assert_eq!(ready.wait(AT_ONCE), Waited::TimedOut);
    }

    #[test]
    fn each_wake_is_good_for_one() {
        let ready = Readiness::new().unwrap();
        assert!(!ready.take_wake());
        ready.wake();
        ready.wake();
        for _ in 0..2 {
            assert_eq!(ready.wait(None), Waited::Ready);
            assert!(ready.take_wake());
        }
        assert!(!ready.take_wake());
        assert_eq!(ready.wait(AT_ONCE), Waited::TimedOut);
        ready.wake_all();
        for _ in 0..3 {
            assert_eq!(ready.wait(None), Waited::Ready);
        }
    }

    /// A model queue that is only a length: no reader may sleep while it is above 0.
    #[test]
    fn nothing_that_is_queued_is_slept_over() {
        const EVENTS: u64 = 200_000;
        let ready = Readiness::new().unwrap();
        let (queued, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let pop = || queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |length| length.checked_sub(1)).is_ok();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < EVENTS {
                        if pop() {
                            if taken.fetch_add(1, Ordering::SeqCst) + 1 == EVENTS {
                                ready.wake_all();
                            }
                            continue;
                        }
                        ready.settle(|| queued.load(Ordering::SeqCst) == 0);
                        assert_eq!(ready.wait(Some(Duration::from_secs(30))), Waited::Ready, "it slept over an event");
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..EVENTS {
                    queued.fetch_add(1, Ordering::SeqCst);
                    ready.signal();
                }
            });
        });
        assert_eq!(queued.load(Ordering::SeqCst), 0);
    }
}
