//! A session: one queue, and the threads that fill it. It owns every thread, descriptor, map and link.
//!
//! A session outlives its runs: `start` begins one, `stop` ends it, and the queue stays. `stop` must be callable from
//! signal handlers, so it does nothing but count up an epoch and wake the threads; each thread belongs to the epoch
//! that it was started in, and ends by itself when that is over.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::{mem, ptr};

use parking_lot::Mutex;

use crate::collector;
use crate::counters::{Counters, Statistics};
use crate::descriptors::StandardStreams;
use crate::error::{Error, NO_DESCRIPTORS};
use crate::event::Event;
use crate::log::{self, Level};
use crate::netlink::sweep;
use crate::probe::{self, Places, Probe};
use crate::queue::Queue;
use crate::settings::Settings;
use crate::wake::Waker;

/// No epoch: counting from 0, it is never reached.
const NEVER: u64 = u64::MAX;

/// A probe has one link for its main program, one for the second look, and at most three for its accept hooks.
const MOST_LINKS: usize = 5;

/// No descriptor.
const NO_LINK: i32 = -1;

/// See the module's documentation. Always `'static`: its threads are not joined.
pub struct Session {
    queue: Queue,
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
    /// Descriptors of the links in force, for a forked child to close.
    links: [AtomicI32; MOST_LINKS],
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
            links: [const { AtomicI32::new(NO_LINK) }; _],
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
    pub fn next_event(&'static self) -> Event {
        if !self.consumed.swap(true, Ordering::SeqCst) {
            self.start_sweeps();
        }
        self.queue.pop()
    }

    /// They are about to be closed.
    fn forget_links(&self) {
        for link in &self.links {
            link.store(NO_LINK, Ordering::SeqCst);
        }
    }

    /// Closes a forked child's copies of the links, which would keep the probe attached after the parent has ended it.
    ///
    /// Async-signal-safe, as all that runs between fork and exec must be.
    pub fn close_links_in_child(&self) {
        for link in &self.links {
            let fd = link.swap(NO_LINK, Ordering::SeqCst);
            if fd != NO_LINK {
                // SAFETY: in the child nobody but this function knows the descriptor.
                unsafe { libc::close(fd) };
            }
        }
    }

    /// All counters.
    pub fn statistics(&self) -> Statistics {
        self.counters.read(self.queue.shed())
    }

    /// Starts the sweeping thread, once an epoch, where sweeps are allowed and wanted.
    fn start_sweeps(&'static self) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.sweeps_allowed.load(Ordering::SeqCst) != epoch {
            return;
        }
        let Some(interval) = self.settings.lock().sweep_interval else {
            return;
        };
        if self.sweep_epoch.swap(epoch, Ordering::SeqCst) == epoch {
            return;
        }
        let body = move || {
            let _turn = self.sweep_turn.lock();
            let streams = StandardStreams::hold();
            let sleeper = self.sweep_waker.sleeper();
            drop(streams);
            match sleeper {
                // A stop that came before the sleeper was there has woken nobody.
                Ok(_) if self.epoch.load(Ordering::SeqCst) != epoch => {}
                Ok(sleeper) => sweep::sweep_until_told(&sleeper, interval, &self.queue, &self.counters),
                Err(source) => log::line(Level::Warn, no_descriptor(source)),
            }
        };
        if let Err(error) = spawn("tcpevent-sweep", body) {
            log::line(Level::Warn, error);
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
        spawn("tcpevent-probe", move || {
            if let Err(error) = self.run() {
                when_failed(error);
            }
        })
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
        let settings = session.settings.lock().clone();
        let mut places = Places::new();
        let mut probe = match Probe::attach(&settings, &mut places) {
            Ok(probe) => probe,
            // Nobody waits for it any more.
            Err(_) if self.is_over() => return Ok(()),
            Err(error) => return Err(error),
        };
        let counters = &session.counters;
        let when_reading = |probe: &Probe<'_>| {
            drop(streams);
            for (place, fd) in session.links.iter().zip(probe.link_fds()) {
                place.store(fd, Ordering::SeqCst);
            }
            session.reading_epoch.store(self.epoch, Ordering::SeqCst);
        };
        let before_detach = |probe: &Probe<'_>| {
            session.forget_links();
            counters.skipped_runs.fetch_add(probe.skipped_runs(), Ordering::Relaxed);
        };
        let result = collector::collect(&mut probe, &sleeper, &session.queue, counters, when_reading, before_detach);
        let variables = probe.variables();
        for (lost, counter) in [
            (variables.lost_records, &counters.lost_records),
            (variables.lost_owners, &counters.lost_owners),
            (variables.recovered_closes, &counters.recovered_closes),
        ] {
            counter.fetch_add(lost.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        log::line(Level::Info, session.statistics());
        result.map_err(|error| probe::refused(&settings, format!("the ring buffer cannot be read: {error}")))
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

fn no_descriptor(source: std::io::Error) -> Error {
    Error::System { what: "eventfd", remedy: NO_DESCRIPTORS, source }
}

/// Starts a thread that blocks all signals: the host's handlers run on the host's threads.
fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = with_signals_blocked(|| thread::Builder::new().name(name.to_owned()).spawn(body));
    match spawned {
        // Nobody joins it: it ends by itself, and the session is never freed.
        Ok(handle) => {
            drop(handle);
            Ok(())
        }
        Err(source) => {
            Err(Error::System { what: "starting a thread", remedy: "raise the limit of processes (ulimit -u)", source })
        }
    }
}

/// A new thread inherits the mask of the one that creates it.
fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: `all` is filled before it is read, `before` is written before it is read, and both are locals.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = body();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        result
    }
}
