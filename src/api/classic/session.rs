//! The session behind the classic functions: one queue, and the threads that fill it. It owns every thread, descriptor,
//! map and link.
//!
//! A session outlives its runs: `start` begins one, `stop` ends it, and the queue stays. `stop` must be callable from
//! signal handlers, so it only increments an epoch and wakes the threads; each thread belongs to the epoch in which it
//! was started, and ends when that is over.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::env::Settings;
use crate::api::classic::event::ClassicEvent;
use crate::api::engine::{Engine, WatchStatistics};
use crate::error::Error;
use crate::event::Event;
use crate::queue::Queue;
use crate::queue::sink::Sink;
use crate::sockets::sweep::Naming;
use crate::sys::log::{self, Level, Limited};
use crate::sys::memory;
use crate::sys::per_thread::{self, Abandon};
use crate::sys::semaphore::Semaphore;
use crate::sys::threads::{lock, spawn};

/// No epoch: counting from 0, it is never reached.
const NEVER: u64 = u64::MAX;

static SHEDDING_CLOSES: Limited = Limited::new("Shedding TCP events..");
static SHEDDING_SNAPSHOTS: Limited = Limited::new("Shedding TCP (Netlink) events..");

/// See the module's documentation. Always `'static`: its threads are not joined.
pub struct Session {
    engine: Engine<ClassicEvent>,
    settings: Mutex<Settings>,
    /// Incremented by each stop.
    epoch: AtomicU64,
    /// The epoch in which a probe was last requested.
    probe_epoch: AtomicU64,
    /// The epoch in which records were last being read.
    reading_epoch: AtomicU64,
    /// The epoch in which sweeps are allowed.
    sweeps_allowed: AtomicU64,
    /// The epoch in which the sweeping thread was last started.
    sweep_epoch: AtomicU64,
    /// A consumer has asked for events.
    consumed: AtomicBool,
    /// Held while a probe is loaded, or a sweep thread runs: the next one waits for the last to end.
    probe_turn: Turn,
    sweep_turn: Turn,
}

impl Sink for Session {
    fn put_change(&self, event: Event) {
        if self.engine.queue.push_displacing(ClassicEvent::from(&event)) > 0 {
            SHEDDING_CLOSES.warn();
        }
    }

    fn put_snapshot(&self, event: Event) {
        if !self.engine.queue.push_if_room(ClassicEvent::from(&event)) {
            SHEDDING_SNAPSHOTS.warn();
        }
    }

    fn put_all(&self) {
        self.engine.queue.announce();
    }
}

impl Session {
    /// A session in which nothing runs. If there is no memory for its queue, the queue is as long as memory allows, and
    /// the error says so.
    pub fn new(settings: Settings) -> (Self, Option<Error>) {
        let slots = settings.queue_slots;
        let (queue, error) = match Queue::new(slots) {
            Ok(queue) => (queue, None),
            Err(_) => (shorter_queue(slots), Some(Error::Memory { name: "TCPEVENT_QUEUE", slots })),
        };
        let session = Self {
            engine: Engine::new(queue),
            settings: Mutex::new(settings),
            epoch: AtomicU64::new(0),
            probe_epoch: AtomicU64::new(NEVER),
            reading_epoch: AtomicU64::new(NEVER),
            sweeps_allowed: AtomicU64::new(0),
            sweep_epoch: AtomicU64::new(NEVER),
            consumed: AtomicBool::new(false),
            probe_turn: Turn::new(),
            sweep_turn: Turn::new(),
        };
        (session, error)
    }

    /// Claims the probe of the current epoch for a [`Run`]. A probe that runs already is an error.
    pub fn claim(&'static self, settings: Settings) -> Result<Run, Error> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.probe_epoch.swap(epoch, Ordering::SeqCst) == epoch {
            return Err(Error::Running);
        }
        *lock(&self.settings) = settings;
        self.sweeps_allowed.store(epoch, Ordering::SeqCst);
        if self.consumed.load(Ordering::SeqCst) {
            self.start_sweeps();
        }
        Ok(Run { session: self, epoch })
    }

    /// Whether a probe is attached and its records are being read.
    pub fn is_reading(&self) -> bool {
        self.reading_epoch.load(Ordering::SeqCst) == self.epoch.load(Ordering::SeqCst)
    }

    /// Ends everything that runs, if anything. Returns before it has ended.
    ///
    /// Async-signal-safe: atomics, and write(2) in [`Waker::wake`].
    pub fn stop(&self) {
        self.stop_run(self.epoch.load(Ordering::SeqCst));
    }

    /// The same for one epoch.
    fn stop_run(&self, epoch: u64) {
        let runs = |started: &AtomicU64| started.load(Ordering::SeqCst) == epoch;
        if !runs(&self.probe_epoch) && !runs(&self.sweep_epoch) {
            return;
        }
        let engine = &self.engine;
        for (waker, turn) in [(&engine.probe_waker, &self.probe_turn), (&engine.sweep_waker, &self.sweep_turn)] {
            if !waker.can_wake() {
                turn.abandon(epoch);
            }
        }
        // If another stop was faster, it has ended the same things.
        let _ = self.epoch.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
        // Threads that cannot be woken sleep for ever; nothing waits for them.
        let _ = (engine.probe_waker.wake(), engine.sweep_waker.wake());
    }

    /// The oldest event, if any; otherwise wait for [`Self::announced`]. `has_waited`: the caller has done that. The
    /// first call starts the sweeps.
    pub fn next_event(&'static self, has_waited: bool) -> Option<ClassicEvent> {
        if !self.consumed.swap(true, Ordering::SeqCst) {
            self.start_sweeps();
        }
        let event = if has_waited { self.engine.queue.woken() } else { self.engine.queue.try_pop() };
        self.engine.count_delivered(event.is_some().into());
        event
    }

    /// Posted when events are queued.
    pub fn announced(&self) -> &Semaphore {
        self.engine.queue.announced()
    }

    /// Closes a forked child's copies of the probe's descriptors. Async-signal-safe.
    pub fn close_fds_in_child(&self) {
        self.engine.close_fds_in_child();
    }

    /// What the session has seen, and every loss of an event.
    pub fn statistics(&self) -> WatchStatistics {
        self.engine.statistics()
    }

    /// Starts the sweeping thread, once an epoch, if sweeps are allowed and wanted.
    fn start_sweeps(&'static self) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.sweeps_allowed.load(Ordering::SeqCst) != epoch {
            return;
        }
        let settings = lock(&self.settings).clone();
        let Some(interval) = settings.sweep_interval else {
            return;
        };
        if self.sweep_epoch.swap(epoch, Ordering::SeqCst) == epoch {
            return;
        }
        let body = move || {
            let _turn = self.sweep_turn.take(epoch);
            let is_over = || self.epoch.load(Ordering::SeqCst) != epoch;
            self.engine.run_sweeps(interval, Naming::CommandLine, &settings.probe, self, is_over);
        };
        // Never joined: it ends by itself, and the session is never freed.
        match spawn("tcpevent-sweep", body) {
            Ok(handle) => drop(handle),
            Err(error) => log::line(Level::Warn, error),
        }
    }
}

/// A queue of as many slots as memory allows, at most half of these.
fn shorter_queue(mut slots: usize) -> Queue<ClassicEvent> {
    loop {
        slots /= 2;
        if let Ok(queue) = Queue::new(slots) {
            return queue;
        }
        // Not even memory for one: either that passes, or the process has worse problems.
        if slots == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The right to run the probe of one epoch.
pub struct Run {
    session: &'static Session,
    epoch: u64,
}

impl Run {
    /// Runs on a thread of its own. An error that ends it early goes to `when_failed`, on that thread.
    pub fn spawn(self, when_failed: impl FnOnce(Error) + Send + 'static) -> Result<(), Error> {
        // Never joined, either.
        spawn("tcpevent-probe", move || {
            if let Err(error) = self.run() {
                when_failed(error);
            }
        })
        .map(drop)
    }

    /// Runs on a thread of its own, for a caller that waits for its end.
    pub fn spawn_awaited(self) -> Result<&'static AwaitedRun, Error> {
        let (session, epoch) = (self.session, self.epoch);
        let awaited: &'static AwaitedRun = Box::leak(Box::new(AwaitedRun {
            session,
            epoch,
            ended: Semaphore::new(),
            result: Mutex::new(None),
            sides: AtomicU8::new(2),
        }));
        let body = move || {
            let result = self.run();
            // The epoch must be free before the waiting side learns of the end.
            drop(self);
            *lock(&awaited.result) = Some(result);
            awaited.ended.post();
            awaited.leave();
        };
        if let Err(error) = spawn("tcpevent-probe", body) {
            awaited.leave();
            awaited.leave();
            return Err(error);
        }
        Ok(awaited)
    }

    /// Loads, attaches and reads until the session is stopped.
    pub fn run(&self) -> Result<(), Error> {
        let session = self.session;
        let _turn = session.probe_turn.take(self.epoch);
        memory::check_for_a_start()?;
        let settings = lock(&session.settings).probe.clone();
        let when_reading = || session.reading_epoch.store(self.epoch, Ordering::SeqCst);
        let result = session.engine.run_probe(&settings, session, || self.is_over(), when_reading);
        // It may have ended by itself.
        let _ = session.reading_epoch.compare_exchange(self.epoch, NEVER, Ordering::SeqCst, Ordering::SeqCst);
        match result {
            // Nothing waits for it any more.
            Err(_) if self.is_over() => Ok(()),
            Ok(()) => {
                log::line(Level::Info, session.engine.counters());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn is_over(&self) -> bool {
        self.session.epoch.load(Ordering::SeqCst) != self.epoch
    }
}

/// Whose turn it is: one epoch at a time may run a probe, or the sweeps.
struct Turn {
    epoch: Mutex<Option<u64>>,
    given_back: Condvar,
    /// The epoch of a holder that will never release it.
    abandoned: AtomicU64,
}

/// The turn of one epoch, until it is dropped.
struct Taken<'turn> {
    turn: &'turn Turn,
    epoch: u64,
}

impl Turn {
    const fn new() -> Self {
        Self { epoch: Mutex::new(None), given_back: Condvar::new(), abandoned: AtomicU64::new(NEVER) }
    }

    /// Waits for the previous holder to end, unless it never will.
    fn take(&self, epoch: u64) -> Taken<'_> {
        let mut current = lock(&self.epoch);
        while let Some(before) = *current {
            if before == self.abandoned.load(Ordering::SeqCst) {
                let lost = "a thread and what it had open stay behind";
                log::line(Level::Warn, Error::Descriptors { lost });
                break;
            }
            current = self.given_back.wait(current).unwrap_or_else(PoisonError::into_inner);
        }
        *current = Some(epoch);
        Taken { turn: self, epoch }
    }

    /// Must precede the epoch's end: nothing waits yet. Async-signal-safe.
    fn abandon(&self, epoch: u64) {
        self.abandoned.store(epoch, Ordering::SeqCst);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut current = lock(&self.turn.epoch);
        if *current == Some(self.epoch) {
            *current = None;
            self.turn.given_back.notify_all();
        }
    }
}

/// A run that another thread waits for. That thread may have a small stack, and may be cancelled.
pub struct AwaitedRun {
    session: &'static Session,
    epoch: u64,
    ended: Semaphore,
    result: Mutex<Option<Result<(), Error>>>,
    /// How many of the two threads, the run's and the waiting one, still use this. The last one frees it.
    sides: AtomicU8,
}

impl AwaitedRun {
    /// The calling thread begins to wait for [`Self::ended`]. If it ends before [`Self::end_wait`], the run is stopped.
    pub fn begin_wait(&'static self) {
        let abandon = |this: *const ()| {
            // SAFETY: points to `self` of the call below; `leave` was not called for this side.
            let this: &'static Self = unsafe { &*this.cast() };
            this.session.stop_run(this.epoch);
            this.leave();
        };
        per_thread::set_waiting(Some(Abandon { call: abandon, with: ptr::from_ref(self).cast() }));
    }

    /// Posted once, at the end.
    pub fn ended(&self) -> &Semaphore {
        &self.ended
    }

    /// How the run ended. `None`: it has not, wait again.
    pub fn end_wait(&'static self) -> Option<Result<(), Error>> {
        let result = lock(&self.result).take()?;
        per_thread::set_waiting(None);
        self.leave();
        Some(result)
    }

    fn leave(&'static self) {
        if self.sides.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: it was leaked as a box, and neither side uses it any more.
            drop(unsafe { Box::from_raw(ptr::from_ref(self).cast_mut()) });
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A failed run leaves its epoch to another attempt.
        let _ = self.session.probe_epoch.compare_exchange(self.epoch, NEVER, Ordering::SeqCst, Ordering::SeqCst);
    }
}
