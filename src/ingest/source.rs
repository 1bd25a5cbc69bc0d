//! What hands out the records of a probe: the ring or the perf buffer. What is the same for both is in [`collect`].
//!
//! [`collect`]: super::collect

use std::io;
use std::os::fd::RawFd;
use std::panic::{UnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::record::{Decoded, LetGo, decode};
use crate::event::counters::Counters;

/// What the probe has written. Nearly all of it is of the first kind.
#[expect(clippy::large_enum_variant, reason = "a change in a box would be an allocation for each")]
pub enum Record {
    /// A close, or another change of state.
    Change(Decoded),
    /// A process has let go of the socket of an earlier close.
    LetGo(LetGo),
}

impl Record {
    /// Of either kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        LetGo::decode(bytes).map(Self::LetGo).or_else(|| decode(bytes).map(Self::Change))
    }
}

/// Adds what was decoded to a batch, or counts it as lost.
pub fn add(batch: &mut Vec<Record>, counters: &Counters, decode: impl FnOnce() -> Option<Record> + UnwindSafe) {
    // A panic must not unwind into libbpf, nor end this thread.
    match catch_unwind(decode) {
        Ok(Some(record)) => push(batch, counters, record),
        Ok(None) | Err(_) => {
            counters.undecoded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Adds a record to a batch, or counts it as lost where there is no memory for it.
pub fn push(batch: &mut Vec<Record>, counters: &Counters, record: Record) {
    if batch.try_reserve(1).is_ok() {
        batch.push(record);
    } else if let Record::Change(_) = record {
        counters.lost_records.fetch_add(1, Ordering::Relaxed);
    }
}

/// Hands out records, to one reader.
pub trait Source {
    /// The reader may look at it at intervals, and is not woken meanwhile.
    const CAN_BE_POLLED: bool;

    /// Records come in the order in which they were written. Otherwise it may be told who has let go of a socket before its
    /// close is.
    const IS_IN_ORDER: bool;

    /// The probe has applied the filter, as far as it knew the owners.
    const IS_FILTERED: bool;

    /// Adds all that is there and complete to a batch.
    fn read(&mut self, batch: &mut Vec<Record>);

    /// Does what a read has found to be due and takes longer. Whether there may be more to read by now.
    fn maintain(&mut self) -> bool {
        false
    }

    /// The reader is about to sleep, and is to be woken from now on. Whether it has to look once more: a record may have come
    /// before that was known.
    fn ask_for_wakes(&mut self) -> bool {
        false
    }

    /// The reader is awake.
    fn end_wakes(&mut self) {}

    /// One of these is readable where there is something to read.
    fn fds(&self) -> [Option<RawFd>; 2];

    /// When there is something to read in any case.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Why no more records will come, if so.
    fn failure(&mut self) -> Option<io::Error> {
        None
    }

    /// Takes the hooks away. What has been written stays readable.
    fn detach(&mut self);

    /// Adds all that is left to a batch, complete or not. Follows [`Self::detach`].
    fn finish(&mut self, batch: &mut Vec<Record>) {
        self.read(batch);
    }
}
