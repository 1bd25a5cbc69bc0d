//! What was seen, and every way to lose an event.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the BPF programs and the kernel.
#[derive(Clone, Copy, Default)]
pub struct KernelCounters {
    /// Records lost because the ring was full.
    pub lost_records: u64,
    /// Owners lost because the map was full.
    pub lost_owners: u64,
    /// Changes that only the second look saw.
    pub recovered: u64,
    /// Runs of the main program that the kernel skipped.
    pub skipped_runs: u64,
}

/// Events that a full queue has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // By kind.
pub struct Shed {
    pub states: u64,
    pub closes: u64,
    pub snapshots: u64,
    pub retries: u64,
    pub unsent: u64,
}

/// Counters of a session, over all its runs.
#[derive(Default)]
pub struct Counters {
    /// Changes of state other than closes, read from the ring.
    pub states: AtomicU64,
    /// Closes read from the ring.
    pub closes: AtomicU64,
    /// Snapshots that sweeps found.
    pub snapshots: AtomicU64,
    /// SYNs sent again, read from the ring.
    pub retries: AtomicU64,
    /// Attempts that failed before a SYN, read from the ring.
    pub unsent: AtomicU64,
    /// Sweeps made.
    pub sweeps: AtomicU64,
    /// Records lost because the ring was full.
    pub lost_records: AtomicU64,
    /// Owners lost because the map of owners was full.
    pub lost_owners: AtomicU64,
    /// Runs of the probe that the kernel skipped because it was already running on the same CPU.
    pub skipped_runs: AtomicU64,
    /// Changes in those runs that the second look saw.
    pub recovered: AtomicU64,
    /// Records that could not be decoded.
    pub undecoded: AtomicU64,
    /// Closes without a certain owner.
    pub unowned: AtomicU64,
}

/// The values of all counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // As in Counters.
pub struct Statistics {
    pub states: u64,
    pub closes: u64,
    pub snapshots: u64,
    pub retries: u64,
    pub unsent: u64,
    pub sweeps: u64,
    pub lost_records: u64,
    pub lost_owners: u64,
    pub skipped_runs: u64,
    pub recovered: u64,
    pub undecoded: u64,
    pub unowned: u64,
    /// Events that the full queue dropped or refused.
    pub shed: Shed,
}

impl Counters {
    /// Adds the counters of a probe that has ended.
    pub fn add_kernel(&self, kernel: &KernelCounters) {
        for (counter, value) in [
            (&self.lost_records, kernel.lost_records),
            (&self.lost_owners, kernel.lost_owners),
            (&self.recovered, kernel.recovered),
            (&self.skipped_runs, kernel.skipped_runs),
        ] {
            let add = |before: u64| Some(before.saturating_add(value));
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// Reads all counters, and adds the queue's and those of the attached probe.
    pub fn read(&self, shed: Shed, kernel: &KernelCounters) -> Statistics {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            states: value(&self.states),
            closes: value(&self.closes),
            snapshots: value(&self.snapshots),
            retries: value(&self.retries),
            unsent: value(&self.unsent),
            sweeps: value(&self.sweeps),
            lost_records: value(&self.lost_records).saturating_add(kernel.lost_records),
            lost_owners: value(&self.lost_owners).saturating_add(kernel.lost_owners),
            skipped_runs: value(&self.skipped_runs).saturating_add(kernel.skipped_runs),
            recovered: value(&self.recovered).saturating_add(kernel.recovered),
            undecoded: value(&self.undecoded),
            unowned: value(&self.unowned),
            shed,
        }
    }
}

impl std::fmt::Display for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "closes={} snapshots={} sweeps={} lost_records={} lost_owners={} skipped_runs={} recovered={} \
             undecoded={} unowned={} shed_closes={} shed_snapshots={}",
            self.closes,
            self.snapshots,
            self.sweeps,
            self.lost_records,
            self.lost_owners,
            self.skipped_runs,
            self.recovered,
            self.undecoded,
            self.unowned,
            self.shed.closes,
            self.shed.snapshots
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_with_the_kernels_counters_saturate() {
        let kernel =
            KernelCounters { lost_records: u64::MAX, lost_owners: u64::MAX - 1, recovered: 1, skipped_runs: 3 };
        let counters = Counters::default();
        counters.add_kernel(&kernel);
        counters.add_kernel(&kernel);
        let sums = counters.read(Shed::default(), &kernel);
        assert_eq!((sums.lost_records, sums.lost_owners), (u64::MAX, u64::MAX));
        assert_eq!((sums.recovered, sums.skipped_runs), (3, 9));
    }
}
