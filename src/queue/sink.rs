//! Where the sources of events leave them.

use crate::event::Event;

/// Takes events, on whichever thread they arise.
pub trait Sink: Sync {
    /// A change of state, closes included. When full, the oldest event is dropped.
    fn put_change(&self, event: Event);

    /// A snapshot. When full, it is itself dropped.
    fn put_snapshot(&self, event: Event);

    /// Ends a batch: wakes the consumers for what was put before.
    fn put_all(&self);
}
