//! What is behind a handle of the C API: a probe, sweeps, a queue, and the threads that fill it.

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::engine::{Engine, WatchStatistics};
use crate::config::ProbeSettings;
use crate::error::{Error, NO_DESCRIPTORS};
use crate::event::{Event, Kind};
use crate::queue::Queue;
use crate::queue::readiness::Readiness;
use crate::queue::sink::Sink;
use crate::sockets::sweep::Naming;
use crate::sys::descriptors::StandardStreams;
use crate::sys::log::{self, Level, Logger};
use crate::sys::memory;
use crate::sys::threads::{lock, spawn};

/// What to watch, and how.
pub struct Options {
    /// The probe's part.
    pub probe: ProbeSettings,
    /// From sweep to sweep; `None` for no sweeps.
    pub sweep_interval: Option<Duration>,
    /// Events that the queue can hold.
    pub queue_slots: usize,
    /// Takes the lines of all threads of the watch.
    pub logger: Arc<Logger>,
}

/// An open watch. Dropping it ends all threads, and waits for that.
pub struct Watch {
    shared: Arc<Shared>,
    logger: Arc<Logger>,
    /// Until the end.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads of a watch and its readers have in common.
struct Shared {
    engine: Engine<Event>,
    ready: Readiness,
    /// The handle is being closed.
    ending: AtomicBool,
    /// The probe has ended by itself: errno.
    failed: AtomicI32,
    /// How the start of the probe went, once that is known.
    started: Mutex<Option<Result<(), Error>>>,
    start: Condvar,
}

/// How a read has ended.
pub enum ReadEnd {
    /// With so many events; 0 when the time was over.
    Events(usize),
    /// By [`Watch::wake`], or a signal handler.
    Woken,
}

impl Sink for Shared {
    fn put_change(&self, event: Event) {
        // Whoever asks for what there is no way to may do so as often as it likes: that displaces nothing.
        if event.kind == Kind::Unsent {
            self.engine.queue.push_if_room(event);
        } else {
            self.engine.queue.push_displacing(event);
        }
    }

    fn put_snapshot(&self, event: Event) {
        self.engine.queue.push_if_room(event);
    }

    fn put_all(&self) {
        self.ready.signal();
    }
}

impl Watch {
    /// Starts all that is asked for. Returns once the probe is attached.
    pub fn open(options: Options) -> Result<Self, Error> {
        let streams = StandardStreams::hold();
        let ready = Readiness::new().map_err(|source| Error::System {
            what: "epoll or eventfd",
            remedy: NO_DESCRIPTORS,
            source,
        })?;
        drop(streams);
        let queue = Queue::new(options.queue_slots)
            .map_err(|_| Error::Memory { name: "options->queue_slots", slots: options.queue_slots })?;
        memory::check_for_a_start()?;
        let shared = Arc::new(Shared {
            engine: Engine::new(queue),
            ready,
            ending: AtomicBool::new(false),
            failed: AtomicI32::new(0),
            started: Mutex::new(None),
            start: Condvar::new(),
        });
        // From here on its end is that of all threads that run already.
        let Options { probe, sweep_interval, logger, .. } = options;
        let watch = Self { shared, logger: Arc::clone(&logger), threads: Mutex::new(Vec::with_capacity(2)) };
        if probe.needs_probe() {
            let (shared, logger, settings) = (Arc::clone(&watch.shared), Arc::clone(&logger), probe.clone());
            let body = move || log::with_logger(&logger, || shared.run_probe(&settings));
            lock(&watch.threads).push(spawn("tcpevent-probe", body)?);
            watch.shared.wait_for_start()?;
        }
        if let Some(interval) = sweep_interval {
            let shared = Arc::clone(&watch.shared);
            let body = move || log::with_logger(&logger, || shared.run_sweeps(interval, &probe));
            lock(&watch.threads).push(spawn("tcpevent-sweep", body)?);
        }
        Ok(watch)
    }

    /// For poll and the like.
    pub fn fd(&self) -> RawFd {
        self.shared.ready.fd()
    }

    /// Hands up to `count` events to `take`. `None`: there are none; wait for [`Self::fd`].
    pub fn read(&self, count: usize, mut take: impl FnMut(&Event)) -> Result<Option<ReadEnd>, Error> {
        let shared = &*self.shared;
        if shared.ending.load(Ordering::SeqCst) {
            return Err(Error::Argument { what: "handle was closed by another thread", errno: libc::EBADF });
        }
        if shared.ready.take_wake() {
            return Ok(Some(ReadEnd::Woken));
        }
        let taken = std::iter::from_fn(|| shared.engine.queue.try_pop()).take(count).map(|event| take(&event)).count();
        shared.engine.count_delivered(taken);
        let failed = || shared.failed.load(Ordering::SeqCst);
        if shared.engine.queue.is_empty() {
            // A failure is for all readers, and each time.
            shared.ready.settle(|| shared.engine.queue.is_empty() && failed() == 0);
        }
        if taken > 0 {
            return Ok(Some(ReadEnd::Events(taken)));
        }
        match failed() {
            0 => Ok(None),
            errno => Err(Error::Argument { what: "the probe has failed: open another handle", errno }),
        }
    }

    /// Whether [`Self::fd`] is worth waiting for.
    pub fn may_wait(&self) -> bool {
        !self.shared.ready.has_lost_events()
    }

    /// An error where the host has closed what readers wait for.
    pub fn check_descriptors(&self) -> Result<(), Error> {
        if self.shared.ready.is_lost() {
            return Err(Error::Descriptors { lost: "close the handle and open another one" });
        }
        Ok(())
    }

    /// A signal handler has ended a wait.
    pub fn interrupted(&self) -> ReadEnd {
        // It may have called for this very wake.
        self.shared.ready.take_wake();
        ReadEnd::Woken
    }

    /// Makes one read return. Async-signal-safe.
    pub fn wake(&self) {
        self.shared.ready.wake();
    }

    /// What was seen, and every way in which an event can be lost.
    pub fn statistics(&self) -> WatchStatistics {
        self.shared.engine.statistics()
    }

    /// Makes all reads return, now and from now on.
    pub fn end_reads(&self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        self.shared.ready.wake_all();
    }

    /// Closes a forked child's copies of the probe's descriptors. Async-signal-safe.
    pub fn close_fds_in_child(&self) {
        self.shared.engine.close_fds_in_child();
    }

    /// Ends all threads, and waits for that.
    pub fn end(&self) {
        let shared = &*self.shared;
        shared.ending.store(true, Ordering::SeqCst);
        // Both, in each case.
        let can_end = shared.engine.probe_waker.wake() & shared.engine.sweep_waker.wake();
        let threads = std::mem::take(&mut *lock(&self.threads));
        if can_end {
            for thread in threads {
                // One that has panicked is over, too.
                let _ = thread.join();
            }
        } else {
            let lost = "a thread and what it had open stay behind";
            log::with_logger(&self.logger, || log::line(Level::Warn, Error::Descriptors { lost }));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn wait_for_start(&self) -> Result<(), Error> {
        let mut started = lock(&self.started);
        loop {
            match started.take() {
                Some(result) => return result,
                None => started = self.start.wait(started).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn tell_start(&self, result: Result<(), Error>) {
        *lock(&self.started) = Some(result);
        self.start.notify_one();
    }

    /// The body of the probe's thread.
    fn run_probe(&self, settings: &ProbeSettings) {
        let is_started = AtomicBool::new(false);
        let when_reading = || {
            is_started.store(true, Ordering::SeqCst);
            self.tell_start(Ok(()));
        };
        let run = || self.engine.run_probe(settings, self, || self.is_ending(), when_reading);
        // Whoever opens the watch, or reads from it, waits for a word in any case.
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(Error::Bug { function: "the probe's thread" }));
        match result {
            Ok(()) => {}
            Err(error) if is_started.into_inner() => {
                log::line(Level::Warn, &error);
                self.failed.store(libc::EIO, Ordering::SeqCst);
                self.ready.signal();
            }
            Err(error) => self.tell_start(Err(error)),
        }
    }

    /// The body of the sweeping thread.
    fn run_sweeps(&self, interval: Duration, probe: &ProbeSettings) {
        self.engine.run_sweeps(interval, Naming::Comm, probe, self, || self.is_ending());
    }
}
