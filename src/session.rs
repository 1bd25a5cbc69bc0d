//! The session behind the classic functions: one queue, and the threads that fill it. It owns every thread, descriptor,
//! map and link.
//!
//! A session outlives its runs: `start` begins one, `stop` ends it, and the queue stays. `stop` must be callable from
//! signal handlers, so it does nothing but count up an epoch and wake the threads; each thread belongs to the epoch
//! that it was started in, and ends by itself when that is over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::classic_event::ClassicEvent;
use crate::counters::{Counters, Statistics};
use crate::descriptors::StandardStreams;
use crate::error::Error;
use crate::event::Event;
use crate::log::{self, Level, Limited};
use crate::netlink::sweep::{self, Naming, SweepSettings};
use crate::probe_thread::{self, Attached};
use crate::queue::Queue;
use crate::settings::Settings;
use crate::sink::Sink;
use crate::threads::{no_descriptor, spawn};
use crate::wake::Waker;

/// No epoch: counting from 0, it is never reached.
const NEVER: u64 = u64::MAX;

static SHEDDING_CLOSES: Limited = Limited::new("Shedding TCP events..");
static SHEDDING_SNAPSHOTS: Limited = Limited::new("Shedding TCP (Netlink) events..");

/// See the module's documentation. Always `'static`: its threads are not joined.
pub struct Session {
    queue: Queue<ClassicEvent>,
    counters: Counters,
    settings: Mutex<Settings>,
    /// Counts up with each stop.
    epoch: AtomicU64,
    /// The epoch in which a probe was last asked for.
    probe_epoch: AtomicU64,
    /// The epoch in which records were last being read.
    reading_epoch: AtomicU64,
    /// The epoch in which sweeps are allowed.
    sweeps_allowed: AtomicU64,
    /// The epoch in which the sweeping thread was last started.
    sweep_epoch: AtomicU64,
    /// A consumer has asked for events.
    consumed: AtomicBool,
    /// Held for as long as a probe is loaded, and a sweep thread runs: the next one waits for the end of the last.
    probe_turn: Mutex<()>,
    sweep_turn: Mutex<()>,
    probe_waker: Waker,
    sweep_waker: Waker,
    attached: Attached,
}

impl Sink for Session {
    fn put_change(&self, event: Event) {
        if self.queue.push_displacing(ClassicEvent::from(&event)) > 0 {
            SHEDDING_CLOSES.warn();
        }
    }

    fn put_snapshot(&self, event: Event) {
        if !self.queue.push_if_room(ClassicEvent::from(&event)) {
            SHEDDING_SNAPSHOTS.warn();
        }
    }

    fn put_all(&self) {
        self.queue.announce();
    }
}

impl Session {
    /// A session in which nothing runs.
    pub fn new(settings: Settings) -> Self {
        Self {
            queue: Queue::new(settings.queue_slots),
            counters: Counters::default(),
            settings: Mutex::new(settings),
            epoch: AtomicU64::new(0),
            probe_epoch: AtomicU64::new(NEVER),
            reading_epoch: AtomicU64::new(NEVER),
            sweeps_allowed: AtomicU64::new(0),
            sweep_epoch: AtomicU64::new(NEVER),
            consumed: AtomicBool::new(false),
            probe_turn: Mutex::new(()),
            sweep_turn: Mutex::new(()),
            probe_waker: Waker::new(),
            sweep_waker: Waker::new(),
            attached: Attached::new(),
        }
    }

    /// Claims the probe of the current epoch for a [`Run`]. One that runs already is an error.
    pub fn claim(&'static self, settings: Settings) -> Result<Run, Error> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.probe_epoch.swap(epoch, Ordering::SeqCst) == epoch {
            return Err(Error::Running);
        }
        *self.settings.lock() = settings;
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

    /// Ends everything that runs; nothing where nothing does. Returns before it has ended.
    ///
    /// Async-signal-safe: atomics, and write(2) in [`Waker::wake`].
    pub fn stop(&self) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let runs = |started: &AtomicU64| started.load(Ordering::SeqCst) == epoch;
        if !runs(&self.probe_epoch) && !runs(&self.sweep_epoch) {
            return;
        }
        // Where another stop was faster, it has ended the same things.
        let _ = self.epoch.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
        self.probe_waker.wake();
        self.sweep_waker.wake();
    }

    /// The oldest event; waits until there is one. The first call starts the sweeps.
    pub fn next_event(&'static self) -> ClassicEvent {
        if !self.consumed.swap(true, Ordering::SeqCst) {
            self.start_sweeps();
        }
        self.queue.pop()
    }

    /// Closes a forked child's copies of the probe's descriptors. Async-signal-safe.
    pub fn close_fds_in_child(&self) {
        self.attached.fds.close_in_child();
    }

    /// All counters.
    pub fn statistics(&self) -> Statistics {
        self.counters.read(self.queue.shed(), &self.attached.counters())
    }

    /// Starts the sweeping thread, once an epoch, where sweeps are allowed and wanted.
    fn start_sweeps(&'static self) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.sweeps_allowed.load(Ordering::SeqCst) != epoch {
            return;
        }
        let settings = self.settings.lock().clone();
        let Some(interval) = settings.sweep_interval else {
            return;
        };
        if self.sweep_epoch.swap(epoch, Ordering::SeqCst) == epoch {
            return;
        }
        let body = move || {
            let _turn = self.sweep_turn.lock();
            let (filter, holders) = (&settings.probe.filter, &self.attached.holders);
            let settings = SweepSettings { interval, naming: Naming::CommandLine, filter, holders };
            let is_over = || self.epoch.load(Ordering::SeqCst) != epoch;
            sweep::run(&self.sweep_waker, is_over, &settings, self, &self.counters);
        };
        // Nobody joins it: it ends by itself, and the session is never freed.
        match spawn("tcpevent-sweep", body) {
            Ok(handle) => drop(handle),
            Err(error) => log::line(Level::Warn, error),
        }
    }
}

/// The right to run the probe of one epoch.
pub struct Run {
    session: &'static Session,
    epoch: u64,
}

impl Run {
    /// Runs on a thread of its own. `when_failed` is called there with the error that ended it early.
    pub fn spawn(self, when_failed: impl FnOnce(Error) + Send + 'static) -> Result<(), Error> {
        // Nobody joins it, either.
        spawn("tcpevent-probe", move || {
            if let Err(error) = self.run() {
                when_failed(error);
            }
        })
        .map(drop)
    }

    /// Loads, attaches and reads until the session is stopped.
    pub fn run(&self) -> Result<(), Error> {
        let session = self.session;
        let _turn = session.probe_turn.lock();
        let streams = StandardStreams::hold();
        let sleeper = session.probe_waker.sleeper().map_err(no_descriptor)?;
        if self.is_over() {
            return Ok(());
        }
        let settings = session.settings.lock().probe.clone();
        let when_reading = |_| session.reading_epoch.store(self.epoch, Ordering::SeqCst);
        let (counters, attached) = (&session.counters, &session.attached);
        let result = probe_thread::run(&settings, &sleeper, streams, session, counters, attached, when_reading);
        match result {
            // Nobody waits for it any more.
            Err(_) if self.is_over() => Ok(()),
            Ok(()) => {
                log::line(Level::Info, session.statistics());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn is_over(&self) -> bool {
        self.session.epoch.load(Ordering::SeqCst) != self.epoch
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A run that failed leaves its epoch to another try.
        let _ = self.session.probe_epoch.compare_exchange(self.epoch, NEVER, Ordering::SeqCst, Ordering::SeqCst);
    }
}
