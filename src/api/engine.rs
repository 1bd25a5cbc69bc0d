//! What runs, counts and stops a probe and its sweeps. Both owners of threads have one: the classic session, whose threads
//! nobody joins, and the watch behind a handle, whose threads are joined.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{ProbeSettings, Rung};
use crate::error::Error;
use crate::event::counters::{Counters, Statistics};
use crate::ingest::{self, Attached};
use crate::queue::sink::Sink;
use crate::queue::{Queue, Queued};
use crate::sockets::sweep::{self, Naming, SweepSettings};
use crate::sys::descriptors::StandardStreams;
use crate::sys::threads::no_descriptor;
use crate::sys::wake::Waker;

/// A queue, and what fills it.
pub struct Engine<E> {
    /// The events that wait for a consumer.
    pub queue: Queue<E>,
    /// Ends [`Self::run_probe`].
    pub probe_waker: Waker,
    /// Ends [`Self::run_sweeps`].
    pub sweep_waker: Waker,
    counters: Counters,
    delivered: AtomicU64,
    attached: Attached,
}

/// What an engine tells of itself.
#[derive(Clone, Debug)]
pub struct WatchStatistics {
    /// What was seen and lost.
    pub counters: Statistics,
    /// The probe's rung.
    pub rung: Option<Rung>,
    /// Events that the queue can hold.
    pub queue_slots: usize,
    /// Events in it.
    pub queued: usize,
    /// Events that were read.
    pub delivered: u64,
    /// Endpoints whose owners are kept.
    pub tracked: u64,
    /// Endpoints whose owners can be kept.
    pub most_tracked: u64,
}

impl<E: Queued> Engine<E> {
    /// An engine in which nothing runs.
    pub fn new(queue: Queue<E>) -> Self {
        Self {
            queue,
            probe_waker: Waker::new(),
            sweep_waker: Waker::new(),
            counters: Counters::default(),
            delivered: AtomicU64::new(0),
            attached: Attached::new(),
        }
    }

    /// The body of a probe's thread: loads, attaches and reads until [`Self::probe_waker`] ends it, or not at all where
    /// `is_over` by then. `when_reading` is called once all that happens is seen.
    pub fn run_probe(
        &self,
        settings: &ProbeSettings,
        sink: &dyn Sink,
        is_over: impl Fn() -> bool,
        when_reading: impl FnOnce(),
    ) -> Result<(), Error> {
        let streams = StandardStreams::hold();
        let sleeper = self.probe_waker.sleeper().map_err(no_descriptor)?;
        // A stop that came before the sleeper was there has woken nobody.
        if is_over() {
            return Ok(());
        }
        ingest::run(settings, &sleeper, streams, sink, &self.counters, &self.attached, when_reading)
    }

    /// The body of a sweeping thread: sweeps until [`Self::sweep_waker`] ends it, or not at all where `is_over` by then.
    pub fn run_sweeps(
        &self,
        interval: Duration,
        naming: Naming,
        probe: &ProbeSettings,
        sink: &dyn Sink,
        is_over: impl Fn() -> bool,
    ) {
        // The classic functions have no place for it.
        let drops = naming == Naming::Comm;
        let settings =
            SweepSettings { interval, naming, drops, filter: &probe.filter, holders: &self.attached.holders };
        sweep::run(&self.sweep_waker, is_over, &settings, sink, &self.counters);
    }

    /// A consumer has taken so many events.
    pub fn count_delivered(&self, events: usize) {
        self.delivered.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// All counters, of all runs; the kernel's as they are now.
    pub fn counters(&self) -> Statistics {
        self.counters.read(self.queue.shed(), &self.attached.counters())
    }

    /// What was seen, and every way in which an event can be lost.
    pub fn statistics(&self) -> WatchStatistics {
        WatchStatistics {
            counters: self.counters(),
            rung: self.attached.rung(),
            queue_slots: self.queue.slots(),
            queued: self.queue.len(),
            delivered: self.delivered.load(Ordering::Relaxed),
            tracked: self.attached.tracked(),
            most_tracked: self.attached.most_tracked(),
        }
    }

    /// Closes a forked child's copies of the probe's descriptors. Async-signal-safe.
    pub fn close_fds_in_child(&self) {
        self.attached.fds.close_in_child();
    }
}
