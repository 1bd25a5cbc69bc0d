//! What was seen, and every way in which an event can be lost.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a session, over all its runs.
#[derive(Default)]
pub struct Counters {
    /// Closes that were read from the ring.
    pub closes: AtomicU64,
    /// Snapshots that sweeps found.
    pub snapshots: AtomicU64,
    /// Sweeps that were made.
    pub sweeps: AtomicU64,
    /// Records that found the ring full.
    pub lost_records: AtomicU64,
    /// Owners that found the map of owners full.
    pub lost_owners: AtomicU64,
    /// Runs of the probe that the kernel skipped, because it was running already on the same CPU.
    pub skipped_runs: AtomicU64,
    /// Closes among those, which the second look saw.
    pub recovered_closes: AtomicU64,
    /// Records that could not be decoded.
    pub undecoded: AtomicU64,
    /// Closes without an owner that is known for sure.
    pub guesses: AtomicU64,
}

/// The values of all counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // As in Counters.
pub struct Statistics {
    pub closes: u64,
    pub snapshots: u64,
    pub sweeps: u64,
    pub lost_records: u64,
    pub lost_owners: u64,
    pub skipped_runs: u64,
    pub recovered_closes: u64,
    pub undecoded: u64,
    pub guesses: u64,
    /// Closes that the full queue dropped.
    pub shed_closes: u64,
    /// Snapshots that the full queue dropped or refused.
    pub shed_snapshots: u64,
}

impl Counters {
    /// Reads all, and takes the queue's in.
    pub fn read(&self, (shed_closes, shed_snapshots): (u64, u64)) -> Statistics {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            closes: value(&self.closes),
            snapshots: value(&self.snapshots),
            sweeps: value(&self.sweeps),
            lost_records: value(&self.lost_records),
            lost_owners: value(&self.lost_owners),
            skipped_runs: value(&self.skipped_runs),
            recovered_closes: value(&self.recovered_closes),
            undecoded: value(&self.undecoded),
            guesses: value(&self.guesses),
            shed_closes,
            shed_snapshots,
        }
    }
}

impl std::fmt::Display for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "closes={} snapshots={} sweeps={} lost_records={} lost_owners={} skipped_runs={} recovered_closes={} \
             undecoded={} guesses={} shed_closes={} shed_snapshots={}",
            self.closes,
            self.snapshots,
            self.sweeps,
            self.lost_records,
            self.lost_owners,
            self.skipped_runs,
            self.recovered_closes,
            self.undecoded,
            self.guesses,
            self.shed_closes,
            self.shed_snapshots
        )
    }
}
