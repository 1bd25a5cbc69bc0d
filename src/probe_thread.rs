//! The life of a probe, from its start to its end, on the thread that owns it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::collector::{self, Completion};
use crate::counters::Counters;
use crate::descriptors::StandardStreams;
use crate::error::Error;
use crate::netlink::owners::HolderIterator;
use crate::probe::{self, BpfFds, Places, Probe, ProbeFds, Variables};
use crate::settings::{ProbeSettings, Rung};
use crate::sink::Sink;
use crate::wake::Sleeper;

/// What others may know of a probe while it is attached.
pub struct Attached {
    /// For forked children.
    pub fds: BpfFds,
    /// For sweeps.
    pub holders: HolderIterator,
    kernel: Mutex<Option<Kernel>>,
}

/// Where the kernel's side counts.
struct Kernel {
    /// Until it is detached.
    fds: Option<ProbeFds>,
    skipped_runs: u64,
    /// Of the program's variables: mapped for as long as the probe lives.
    lost_records: *const AtomicU64,
    lost_owners: *const AtomicU64,
    recovered: *const AtomicU64,
}

// SAFETY: atomics may be read from any thread, and they are there for as long as this is: see `run`.
unsafe impl Send for Kernel {}

/// What the kernel's side has counted.
#[derive(Default)]
pub struct KernelCounters {
    /// Records that found the ring full.
    pub lost_records: u64,
    /// Owners that found the map full.
    pub lost_owners: u64,
    /// Changes that only the second look saw.
    pub recovered: u64,
    /// Runs of the main program that the kernel skipped.
    pub skipped_runs: u64,
}

impl Attached {
    /// Nothing is.
    pub const fn new() -> Self {
        Self { fds: BpfFds::new(), holders: HolderIterator::new(), kernel: Mutex::new(None) }
    }

    /// What the kernel's side has counted since the probe was attached. Nothing where none is: then it has been added to
    /// the session's counters.
    pub fn counters(&self) -> KernelCounters {
        self.kernel.lock().as_ref().map(Kernel::counters).unwrap_or_default()
    }

    /// Endpoints whose owners are kept.
    pub fn tracked(&self) -> u64 {
        self.kernel.lock().as_ref().and_then(|kernel| kernel.fds).map_or(0, |fds| fds.tracked())
    }
}

impl Kernel {
    fn of(probe: &Probe<'_>) -> Self {
        let Variables { lost_records, lost_owners, recovered, .. } = probe.variables();
        Self { fds: Some(probe.fds()), skipped_runs: 0, lost_records, lost_owners, recovered }
    }

    fn counters(&self) -> KernelCounters {
        // SAFETY: the probe lives as long as this: see `run`.
        let value = |counter: *const AtomicU64| unsafe { &*counter }.load(Ordering::Relaxed);
        KernelCounters {
            lost_records: value(self.lost_records),
            lost_owners: value(self.lost_owners),
            recovered: value(self.recovered),
            skipped_runs: self.fds.map_or(self.skipped_runs, |fds| fds.skipped_runs()),
        }
    }
}

/// Loads a probe, attaches it and reads its records until `sleeper` is told. `when_reading` is called once all that
/// happens is seen.
///
/// `streams` keeps the standard descriptors taken while others are made.
pub fn run(
    settings: &ProbeSettings,
    sleeper: &Sleeper<'_>,
    streams: StandardStreams,
    sink: &dyn Sink,
    counters: &Counters,
    attached: &Attached,
    when_reading: impl FnOnce(Rung),
) -> Result<(), Error> {
    let mut places = Places::new();
    let mut probe = Probe::attach(settings, &mut places)?;
    attached.fds.note(&probe);
    attached.holders.set(probe.take_holders());
    // Dropped before the probe is.
    let _ended = Ended { attached, counters };
    let when_reading = |probe: &Probe<'_>| {
        drop(streams);
        *attached.kernel.lock() = Some(Kernel::of(probe));
        when_reading(probe.rung());
    };
    let before_detach = |_: &Probe<'_>| {
        attached.fds.forget();
        attached.holders.set(None);
        if let Some(kernel) = &mut *attached.kernel.lock() {
            kernel.skipped_runs = kernel.counters().skipped_runs;
            kernel.fds = None;
        }
    };
    let completion = Completion { sink, filter: &settings.filter, holders: &attached.holders, counters };
    let result = collector::collect(&mut probe, sleeper, &completion, when_reading, before_detach);
    result.map_err(|error| probe::refused(settings, format!("the ring buffer cannot be read: {error}")))
}

/// Takes `Kernel` away, and adds what it has counted to the counters of all probes.
struct Ended<'run> {
    attached: &'run Attached,
    counters: &'run Counters,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        // Under the lock, so that nobody counts anything twice, or not at all.
        let mut kernel = self.attached.kernel.lock();
        if let Some(kernel) = kernel.take() {
            self.counters.add_kernel(&kernel.counters());
        }
    }
}
