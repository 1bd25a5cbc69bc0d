//! Where the sources of events leave them.

use crate::event::Event;

/// A place for events, on whichever thread they come up.
pub trait Sink: Sync {
    /// A change of state, a close among them: where there is no room, the oldest event gives way.
    fn put_change(&self, event: Event);

    /// A snapshot: where there is no room, it is dropped.
    fn put_snapshot(&self, event: Event);

    /// There will be no more for a while: whoever waits for events is told of those that were put. Must follow them.
    fn put_all(&self);
}
