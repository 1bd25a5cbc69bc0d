//! Joins closes with the counters that the kernel tells of them later, by their endpoints. Pure: time is handed in.
//!
//! An endpoint is no identity: a port is used again while its first socket is still held, and other network namespaces,
//! whose sockets nothing is heard of, have the same addresses. Where counters could be those of another close, no close gets
//! them.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::endpoint::Endpoint;
use crate::event::{Direction, Event, Failure, state};
use crate::ingest::record::{Decoded, Sequence, payload_acked};
use crate::sockets::diag::Destroyed;

/// A close waits for its counters until none have come for this long. Most come within a millisecond; they come late where
/// the process still holds the socket, as after a reset, and do not come at all from another network namespace.
const WAIT: Duration = Duration::from_millis(50);

/// It waits no longer than this. The kernel sends notifications from a work queue of its own, which falls behind where
/// all processors are busy: with 10,000 connections a second on two of them, by 130 ms, and more where that goes on.
pub const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Closes that wait at the same time, at most.
const MOST_WAITING: usize = 1 << 15;

/// Closes that do not wait any more, and of whose sockets nothing was heard, that are remembered at most.
const MOST_LATE: usize = 1 << 15;

/// Closes of one endpoint whose counters have not come yet.
#[derive(Default)]
struct Unheard {
    count: usize,
    /// Number of the one that waits, where there is no other.
    waiting: Option<u64>,
}

/// Closes that wait for their counters.
#[derive(Default)]
pub struct Joiner {
    /// In the order in which they came. Those that were taken out leave a gap.
    waiting: VecDeque<Option<(Instant, Decoded)>>,
    /// Number of the first one in `waiting`.
    first: u64,
    by_endpoint: HashMap<Endpoint, Unheard>,
    /// Those that do not wait any more, oldest first; of some the socket was heard of since.
    late: VecDeque<Endpoint>,
    /// When the last counters came, of whatever socket.
    heard: Option<Instant>,
}

impl Joiner {
    /// A close. It is handed back where too many wait already, or there is no memory for another.
    pub fn wait_for_counters(&mut self, mut close: Decoded, now: Instant) -> Option<Decoded> {
        let enough_memory = self.by_endpoint.try_reserve(1).is_ok()
            && self.waiting.try_reserve(1).is_ok()
            && self.late.try_reserve(self.waiting.len() + 1).is_ok();
        if !enough_memory {
            close.event.uncounted = true;
            return Some(close);
        }
        let endpoint = Endpoint::of(&close.event);
        let number = self.first + self.waiting.len() as u64;
        let may_wait = self.waiting.len() < MOST_WAITING;
        let unheard = self.by_endpoint.entry(endpoint).or_default();
        unheard.count += 1;
        unheard.waiting = (unheard.count == 1 && may_wait).then_some(number);
        if !may_wait {
            self.remember(endpoint);
            close.event.uncounted = true;
            return Some(close);
        }
        self.waiting.push_back(Some((now, close)));
        None
    }

    /// The close that these counters belong to, complete. `None` where none waits for them.
    pub fn join(&mut self, destroyed: &Destroyed, now: Instant) -> Option<Decoded> {
        self.heard = Some(now);
        let endpoint = Endpoint::of(&destroyed.event);
        let unheard = self.by_endpoint.get_mut(&endpoint)?;
        let index = unheard.waiting.and_then(|number| usize::try_from(number - self.first).ok());
        let place = index.and_then(|index| self.waiting.get_mut(index));
        let waits = place.as_ref().and_then(|place| place.as_ref());
        // Those of an attempt that has failed before, from the same port: not even its SYN was acknowledged.
        if waits.is_some_and(|(_, close)| close.event.direction == Direction::Connected)
            && destroyed.event.bytes_acked == 0
        {
            return None;
        }
        // Those of a socket that its program has reset: tcp_disconnect() clears them.
        if destroyed.event.segs_in == 0 && destroyed.event.segs_out == 0 {
            return None;
        }
        unheard.count -= 1;
        unheard.waiting = None;
        if unheard.count == 0 {
            self.by_endpoint.remove(&endpoint);
        }
        let (_, mut close) = place?.take()?;
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        add_counters(&mut close, destroyed);
        Some(close)
    }

    /// When the oldest one has waited for long enough. `None` where none waits.
    pub fn due(&self) -> Option<Instant> {
        // The first one is never a gap.
        let (came, _) = self.waiting.front()?.as_ref()?;
        let heard = self.heard.unwrap_or(*came);
        Some((heard.max(*came) + WAIT).min(*came + LONGEST_WAIT))
    }

    /// Takes out one that has waited for long enough.
    pub fn take_overdue(&mut self, now: Instant) -> Option<Decoded> {
        if self.due()? > now {
            return None;
        }
        let (_, mut close) = self.waiting.pop_front()??;
        let number = self.first;
        self.first += 1;
        let endpoint = Endpoint::of(&close.event);
        if let Some(unheard) = self.by_endpoint.get_mut(&endpoint) {
            unheard.waiting = unheard.waiting.filter(|waiting| *waiting != number);
            self.remember(endpoint);
        }
        close.event.uncounted = true;
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        Some(close)
    }

    /// Whether no other close of the same addresses is known, beside one that has just been taken out as overdue.
    pub fn was_alone(&self, close: &Event) -> bool {
        self.by_endpoint.get(&Endpoint::of(close)).is_none_or(|unheard| unheard.count <= 1)
    }

    /// Notes one that does not wait any more. The oldest is forgotten where there are too many.
    fn remember(&mut self, endpoint: Endpoint) {
        self.late.push_back(endpoint);
        if self.late.len() <= MOST_LATE {
            return;
        }
        let Some(oldest) = self.late.pop_front() else { return };
        match self.by_endpoint.get_mut(&oldest) {
            Some(unheard) if unheard.waiting.is_none() => {
                unheard.count -= 1;
                if unheard.count == 0 {
                    self.by_endpoint.remove(&oldest);
                }
            }
            _ => {}
        }
    }
}

fn add_counters(close: &mut Decoded, destroyed: &Destroyed) {
    let from = &destroyed.event;
    let event = &mut close.event;
    // No process reads what comes after its close; so that can only be a FIN.
    let fin_received = close.fin_received || (event.old_state == state::FIN_WAIT2 && destroyed.not_read > 0);
    // Where the probe could not tell one family from the other.
    (event.family, event.local_addr, event.remote_addr) = (from.family, from.local_addr, from.remote_addr);
    event.cookie = from.cookie;
    event.take_counters(from);
    event.payload_received = from.bytes_received.saturating_sub(fin_received.into());
    event.payload_sent = from.payload_sent;
    let sequence = Sequence {
        acked: 0u32.wrapping_sub(destroyed.not_acked),
        sent: 0u32.wrapping_sub(destroyed.not_sent),
        written: 0,
    };
    event.payload_acked = payload_acked(event, &sequence, event.failure != Failure::None);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::event::Kind;

    fn close(port: u16, pid: u32) -> Decoded {
        let mut event = Event {
            pid,
            family: 2,
            local_port: port,
            remote_port: 80,
            old_state: state::LAST_ACK,
            new_state: state::CLOSE,
            direction: Direction::Connected,
            ..Event::of(Kind::Close)
        };
        event.local_addr[..4].copy_from_slice(&[127, 0, 0, 1]);
        Decoded { event, unowned_inode: None, fin_received: true, held: false }
    }

    fn destroyed(port: u16, bytes: u64) -> Destroyed {
        let event = Event {
            bytes_received: bytes,
            bytes_acked: 5_002,
            bytes_sent: Some(5_000),
            payload_sent: 5_000,
            segs_in: 9,
            cookie: 7,
            ..close(port, 0).event
        };
        Destroyed { event, not_acked: 0, not_sent: 0, not_read: 0 }
    }

    #[test]
    fn a_close_gets_its_counters() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.due(), None);
        let now = Instant::now();
        assert_eq!(joiner.join(&destroyed(1, 100), now), None);
        assert_eq!(joiner.wait_for_counters(close(1, 11), now), None);
        assert_eq!(joiner.wait_for_counters(close(2, 12), now), None);
        assert_eq!(joiner.due(), Some(now + WAIT));
        let event = joiner.join(&destroyed(2, 101), now).unwrap().event;
        assert_eq!((event.pid, event.bytes_received, event.payload_received), (12, 101, 100));
        assert_eq!((event.payload_sent, event.payload_acked, event.cookie), (5_000, 5_000, 7));
        assert_eq!(joiner.join(&destroyed(2, 101), now), None);
        assert_eq!(joiner.join(&destroyed(1, 9), now).unwrap().event.bytes_received, 9);
        assert_eq!(joiner.due(), None);
        assert!(joiner.by_endpoint.is_empty());
    }

    #[test]
    fn a_mapped_address_is_that_of_the_other_family_too() {
        let mut joiner = Joiner::default();
        joiner.wait_for_counters(close(1, 11), Instant::now());
        let mut destroyed = destroyed(1, 100);
        let mut mapped = [0; 16];
        mapped[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        (destroyed.event.family, destroyed.event.local_addr) = (10, mapped);
        destroyed.event.remote_addr[10..12].fill(0xff);
        let event = joiner.join(&destroyed, Instant::now()).unwrap().event;
        assert_eq!((event.family, event.local_addr), (10, mapped));
    }

    #[test]
    fn where_counters_could_be_those_of_another_close_none_gets_them() {
        let mut joiner = Joiner::default();
        let now = Instant::now();
        joiner.wait_for_counters(close(1, 11), now);
        joiner.wait_for_counters(close(1, 12), now + WAIT / 2);
        assert_eq!(joiner.take_overdue(now + WAIT / 2), None);
        let first = joiner.take_overdue(now + WAIT).unwrap().event;
        assert_eq!((first.pid, first.uncounted, first.bytes_received), (11, true, 0));
        assert_eq!(joiner.take_overdue(now + WAIT), None);
        // One of the two; then the other.
        assert_eq!(joiner.join(&destroyed(1, 100), now + WAIT), None);
        assert_eq!(joiner.join(&destroyed(1, 9), now + WAIT), None);
        let second = joiner.take_overdue(now + LONGEST_WAIT * 2).unwrap().event;
        assert_eq!((second.pid, second.uncounted, second.bytes_received), (12, true, 0));
        // Both were heard of: the next one is alone.
        joiner.wait_for_counters(close(1, 13), now);
        let third = joiner.join(&destroyed(1, 8), now).unwrap().event;
        assert_eq!((third.pid, third.uncounted, third.bytes_received), (13, false, 8));
        assert!(joiner.by_endpoint.is_empty());
    }

    #[test]
    fn counters_of_an_attempt_that_has_failed_are_not_those_of_a_connection() {
        let mut joiner = Joiner::default();
        let now = Instant::now();
        joiner.wait_for_counters(close(1, 11), now);
        let mut failed = destroyed(1, 0);
        failed.event.bytes_acked = 0;
        assert_eq!(joiner.join(&failed, now), None);
        let mut cleared = destroyed(1, 0);
        cleared.event.segs_in = 0;
        assert_eq!(joiner.join(&cleared, now), None);
        assert_eq!(joiner.join(&destroyed(1, 7), now).unwrap().event.bytes_received, 7);
    }

    #[test]
    fn no_more_are_remembered_than_fit() {
        let mut joiner = Joiner::default();
        let now = Instant::now();
        for number in 0..2 * MOST_LATE {
            let mut close = close(1, 11);
            close.event.remote_addr[..8].copy_from_slice(&number.to_ne_bytes());
            close.event.family = 10;
            joiner.wait_for_counters(close, now);
            joiner.take_overdue(now + LONGEST_WAIT);
        }
        assert_eq!((joiner.late.len(), joiner.by_endpoint.len()), (MOST_LATE, MOST_LATE));
    }

    #[test]
    fn a_fin_that_was_not_acknowledged_is_not_subtracted() {
        let mut joiner = Joiner::default();
        joiner.wait_for_counters(close(1, 11), Instant::now());
        let mut destroyed = destroyed(1, 0);
        destroyed.event.bytes_acked = 5_001;
        destroyed.not_acked = 1;
        assert_eq!(joiner.join(&destroyed, Instant::now()).unwrap().event.payload_acked, 5_000);
    }

    #[test]
    fn a_fin_that_came_after_the_close_is_subtracted() {
        for (old_state, not_read, payload) in
            [(state::FIN_WAIT2, 0, 100), (state::FIN_WAIT2, 1, 99), (state::FIN_WAIT1, 1, 100)]
        {
            let mut joiner = Joiner::default();
            let mut close = close(1, 11);
            (close.event.old_state, close.fin_received) = (old_state, false);
            joiner.wait_for_counters(close, Instant::now());
            let destroyed = Destroyed { not_read, ..destroyed(1, 100) };
            assert_eq!(joiner.join(&destroyed, Instant::now()).unwrap().event.payload_received, payload);
        }
    }

    #[test]
    fn as_long_as_counters_come_more_are_waited_for() {
        let mut joiner = Joiner::default();
        let start = Instant::now();
        joiner.wait_for_counters(close(1, 11), start);
        for round in 1..20 {
            assert_eq!(joiner.join(&destroyed(2, 0), start + round * WAIT), None);
            assert_eq!(joiner.due(), Some((start + (round + 1) * WAIT).min(start + LONGEST_WAIT)));
        }
        assert_eq!(joiner.take_overdue(start + LONGEST_WAIT).unwrap().event.pid, 11);
    }

    #[test]
    fn too_many_are_not_kept_waiting() {
        let mut joiner = Joiner::default();
        let now = Instant::now();
        for _ in 0..MOST_WAITING {
            assert_eq!(joiner.wait_for_counters(close(1, 11), now), None);
        }
        assert!(joiner.wait_for_counters(close(1, 11), now).is_some());
    }

    proptest! {
        /// Each close comes out once, whatever comes in which order; and none waits longer than it should.
        #[test]
        fn none_is_lost_or_doubled(steps in vec((0u16..4, 0u8..4), 0..200)) {
            let mut joiner = Joiner::default();
            let mut now = Instant::now();
            let mut out = Vec::new();
            let mut came = 0;
            for (port, step) in steps {
                match step {
                    0 | 1 => {
                        prop_assert_eq!(joiner.wait_for_counters(close(port, came), now), None);
                        came += 1;
                    }
                    2 => out.extend(joiner.join(&destroyed(port, 1), now).map(|close| close.event.pid)),
                    _ => {
                        now += WAIT / 3;
                        out.extend(std::iter::from_fn(|| joiner.take_overdue(now)).map(|close| close.event.pid));
                        prop_assert!(joiner.due().is_none_or(|due| due > now));
                    }
                }
            }
            now += LONGEST_WAIT;
            out.extend(std::iter::from_fn(|| joiner.take_overdue(now)).map(|close| close.event.pid));
            prop_assert_eq!(joiner.due(), None);
            prop_assert!(joiner.by_endpoint.values().all(|unheard| unheard.waiting.is_none() && unheard.count > 0));
            out.sort_unstable();
            prop_assert_eq!(out, (0..came).collect::<Vec<_>>());
        }
    }
}
