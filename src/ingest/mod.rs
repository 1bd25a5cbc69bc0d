//! The life of a probe, from its start to its end, on the thread that owns it.

mod collect;
mod complete;
mod ending;
mod held;
mod joiner;
mod pace;
mod perf;
mod perf_buffer;
pub mod record;
mod ring;
mod source;
#[cfg(any(test, feature = "synthetic"))]
mod synthetic;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::collect::Collector;
use self::complete::Completion;
use self::perf::Perf;
use self::ring::Ring;
use self::source::Source;
use crate::config::{ProbeSettings, Rung};
use crate::error::Error;
use crate::event::counters::{Counters, KernelCounters};
use crate::probe::{self, BpfFds, Places, Probe, ProbeFds, Refusal, SharedVariables};
use crate::queue::sink::Sink;
use crate::sockets::holders::HolderIterator;
use crate::sys::descriptors::StandardStreams;
#[cfg(any(test, feature = "synthetic"))]
use crate::sys::files;
use crate::sys::threads::lock;
use crate::sys::wake::Sleeper;

/// What others may know of a probe while it is attached.
pub struct Attached {
    /// For forked children.
    pub fds: BpfFds,
    /// For sweeps.
    pub holders: HolderIterator,
    kernel: Mutex<Option<Kernel>>,
    /// Of the probe that is attached, or was last.
    rung: Mutex<Option<Rung>>,
    most_tracked: AtomicU64,
}

/// Where the kernel's side counts.
struct Kernel {
    /// Until it is detached.
    fds: Option<ProbeFds>,
    /// What they told last.
    by_fds: KernelCounters,
    variables: Option<Arc<SharedVariables>>,
}

impl Attached {
    /// Nothing is.
    pub fn new() -> Self {
        Self {
            fds: BpfFds::new(),
            holders: HolderIterator::new(),
            kernel: Mutex::new(None),
            rung: Mutex::new(None),
            most_tracked: AtomicU64::new(0),
        }
    }

    /// What the kernel's side has counted since the probe was attached. Nothing where none is: then it has been added to
    /// the session's counters.
    pub fn counters(&self) -> KernelCounters {
        lock(&self.kernel).as_ref().map(Kernel::counters).unwrap_or_default()
    }

    /// The rung of the probe that is attached, or was last.
    pub fn rung(&self) -> Option<Rung> {
        *lock(&self.rung)
    }

    /// Endpoints whose owners that probe can keep; 0 before the first.
    pub fn most_tracked(&self) -> u64 {
        self.most_tracked.load(Ordering::SeqCst)
    }

    /// Endpoints whose owners are kept.
    pub fn tracked(&self) -> u64 {
        lock(&self.kernel).as_ref().and_then(|kernel| kernel.fds).map_or(0, |fds| fds.tracked())
    }
}

impl Kernel {
    fn of(probe: &Probe<'_>) -> Self {
        let variables = probe.variables().cloned();
        Self { fds: Some(probe.fds()), by_fds: KernelCounters::default(), variables }
    }

    fn counters(&self) -> KernelCounters {
        let mut counters = self.fds.map_or(self.by_fds, |fds| {
            let (lost_records, lost_owners) = fds.lost();
            KernelCounters { lost_records, lost_owners, recovered: 0, skipped_runs: fds.skipped_runs() }
        });
        if let Some(variables) = &self.variables {
            let variables = variables.get();
            counters.lost_records = variables.lost_records.load(Ordering::Relaxed);
            counters.lost_owners = variables.lost_owners.load(Ordering::Relaxed);
            counters.recovered = variables.recovered.load(Ordering::Relaxed);
        }
        counters
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
    when_reading: impl FnOnce(),
) -> Result<(), Error> {
    let completion = Completion { sink, filter: &settings.filter, holders: &attached.holders, counters };
    #[cfg(any(test, feature = "synthetic"))]
    if let Some(socket) = settings.btf.as_deref().filter(|path| files::is_socket(path)) {
        let when_reading = || {
            drop(streams);
            when_reading();
        };
        let source = synthetic::Synthetic::open(socket, counters).map_err(Into::into);
        return source
            .and_then(|source| read(source, sleeper, &completion, when_reading, || {}))
            .map_err(|error| probe::refused(settings, Refusal::of_buffer("synthetic", &error)));
    }
    let mut places = Places::new();
    let mut probe = probe::attach(settings, &mut places)?;
    attached.fds.note(&probe);
    attached.holders.set(probe.take_holders());
    // Dropped before the probe is.
    let _ended = Ended { attached, counters };
    let (kernel, rung, most_tracked) = (Kernel::of(&probe), probe.rung(), probe.fds().most_tracked());
    let when_reading = || {
        drop(streams);
        *lock(&attached.kernel) = Some(kernel);
        *lock(&attached.rung) = Some(rung);
        attached.most_tracked.store(most_tracked, Ordering::SeqCst);
        when_reading();
    };
    let before_detach = || {
        attached.fds.forget();
        attached.holders.set(None);
        if let Some(kernel) = &mut *lock(&attached.kernel) {
            kernel.by_fds = kernel.counters();
            kernel.fds = None;
        }
    };
    let (buffer, result) = if probe.has_ring() {
        let source = Ring::open(&mut probe, counters);
        ("ring", source.and_then(|source| read(source, sleeper, &completion, when_reading, before_detach)))
    } else {
        let source = Perf::open(&mut probe, settings, sleeper, counters, &attached.fds);
        ("perf", source.and_then(|source| read(source, sleeper, &completion, when_reading, before_detach)))
    };
    result.map_err(|error| probe::refused(settings, Refusal::of_buffer(buffer, &error)))?;
    if sleeper.is_lost() {
        return Err(Error::Descriptors { lost: "connections are no longer watched" });
    }
    Ok(())
}

/// Reads a source until `sleeper` is told. `when_reading` is called before the first read, `before_detach` before the hooks are
/// taken away.
fn read(
    source: impl Source,
    sleeper: &Sleeper<'_>,
    completion: &Completion<'_>,
    when_reading: impl FnOnce(),
    before_detach: impl FnOnce(),
) -> libbpf_rs::Result<()> {
    let collector = Collector::new(source, sleeper, completion);
    when_reading();
    Ok(collector.run(before_detach)?)
}

/// Takes `Kernel` away, and adds what it has counted to the counters of all probes.
struct Ended<'run> {
    attached: &'run Attached,
    counters: &'run Counters,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        // Under the lock, so that nobody counts anything twice, or not at all.
        let mut kernel = lock(&self.attached.kernel);
        if let Some(kernel) = kernel.take() {
            self.counters.add_kernel(&kernel.counters());
        }
    }
}
