//! What a watch tells of itself, the classic one and that of a handle.

use crate::config::Rung;
use crate::event::counters::Statistics;

/// What a watch tells of itself.
pub struct WatchStatistics {
    /// Of all that was seen and lost.
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
}
