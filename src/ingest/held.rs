//! Closes of connections that a process still held when they ended, and that no process had a part in: they wait for their
//! owner. Pure: time is handed in.
//!
//! That is the process that lets go of the socket, of which the kernel tells in that moment; or, where it takes its time, the one
//! that holds the socket.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::{COMM_LEN, Event, OwnerBy};
use crate::ingest::record::{Decoded, LetGo};

/// A close waits this long for its process to let go. Most do so within a millisecond: the end of the connection has woken them.
const WAIT: Duration = Duration::from_millis(10);

/// After all sockets of the host were looked through, they are left alone for so many times as long as that took.
const REST: u32 = 4;

/// It waits no longer than this, however many sockets there are.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Closes that wait at the same time, at most.
const MOST_WAITING: usize = 1 << 15;

/// Let-gos that are kept for a close which is yet to come, at most.
const MOST_EARLY: usize = 1 << 12;

/// Closes that wait.
#[derive(Default)]
pub struct HeldCloses {
    /// In the order in which they came.
    waiting: VecDeque<(Instant, Decoded)>,
    /// When each of them has ended: what is looked through is kept together.
    times: VecDeque<u64>,
    /// Those whose close has not come yet.
    early: VecDeque<LetGo>,
    /// No listing before this.
    rested: Option<Instant>,
}

impl HeldCloses {
    /// A close that is held. It is handed back with its owner where that is known, or as it is where too many wait or
    /// there is no memory for another.
    pub fn wait(&mut self, mut close: Decoded, now: Instant) -> Option<Decoded> {
        let time = close.event.monotonic_ns;
        if let Some(early) = self.early.iter().position(|let_go| let_go.close_ns == time) {
            let let_go = self.early.remove(early)?;
            name(&mut close, &let_go);
            return Some(close);
        }
        let enough_memory = self.waiting.try_reserve(1).is_ok() && self.times.try_reserve(1).is_ok();
        if self.waiting.len() >= MOST_WAITING || !enough_memory {
            return Some(close);
        }
        self.times.push_back(time);
        self.waiting.push_back((now, close));
        None
    }

    /// Somebody has let go of a socket. The close that it belongs to, with its owner. `None` where none is waiting, or two could
    /// be meant.
    pub fn let_go(&mut self, let_go: &LetGo) -> Option<Decoded> {
        let mut places = (0..).zip(&self.times).filter(|(_, time)| **time == let_go.close_ns).map(|(place, _)| place);
        let (place, None) = (places.next()?, places.next()) else {
            return None;
        };
        self.times.remove(place);
        let (_, mut close) = self.waiting.remove(place)?;
        name(&mut close, let_go);
        Some(close)
    }

    /// The same where the close may come after it.
    pub fn let_go_early(&mut self, let_go: LetGo) -> Option<Decoded> {
        let close = self.let_go(&let_go);
        if close.is_none() {
            // Where its close is not wanted, it is kept for nothing.
            if self.early.len() >= MOST_EARLY {
                self.early.pop_front();
            }
            if self.early.try_reserve(1).is_ok() {
                self.early.push_back(let_go);
            }
        }
        close
    }

    /// When it is to be looked who holds their sockets. `None` where none waits.
    pub fn due(&self) -> Option<Instant> {
        let (came, _) = self.waiting.front()?;
        let due = *came + WAIT;
        Some(self.rested.map_or(due, |rested| rested.clamp(due, *came + LONGEST_WAIT)))
    }

    /// The sockets of those that wait, by their inodes, with the process that is known of each. Those that come from now on are
    /// not among them.
    pub fn sockets(&self) -> HashMap<u64, u32> {
        let mut sockets = HashMap::new();
        // Without memory for them nobody is looked for here.
        if sockets.try_reserve(self.waiting.len()).is_ok() {
            sockets.extend(self.waiting.iter().map(|(_, close)| (close.event.inode, close.event.pid)));
        }
        sockets
    }

    /// The next one that has come before it was looked who holds their sockets.
    pub fn take(&mut self, looked: Instant) -> Option<Decoded> {
        self.waiting.front().filter(|(came, _)| *came <= looked)?;
        self.times.pop_front();
        self.waiting.pop_front().map(|(_, close)| close)
    }

    /// It was looked who holds sockets.
    pub fn rest(&mut self, now: Instant, took: Duration) {
        self.rested = Some(now + took * REST);
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Who has let go of the socket is the owner, unless that was no act of a process: then it is who was known before.
fn name(close: &mut Decoded, let_go: &LetGo) {
    let event = &mut close.event;
    let is_known = event.pid == let_go.pid && let_go.pid != 0 && event.owner_by != OwnerBy::Unknown;
    if let_go.by_process != 0 && !is_known {
        own(event, let_go.pid, let_go.uid, let_go.comm);
    }
    // It is not held any more.
    close.unowned_inode = (event.owner_by == OwnerBy::Unknown).then_some(0);
}

/// The process that holds an endpoint's socket, or has held it last, is its owner.
pub fn own(event: &mut Event, pid: u32, uid: u32, comm: [u8; COMM_LEN]) {
    (event.pid, event.uid, event.comm, event.owner_by) = (pid, uid, comm, OwnerBy::Inode);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind;

    fn close(time: u64, pid: u32) -> Decoded {
        let owner_by = if pid == 0 { OwnerBy::Unknown } else { OwnerBy::Accept };
        let event = Event { monotonic_ns: time, pid, owner_by, inode: time + 1, ..Event::of(Kind::Close) };
        Decoded { unowned_inode: (pid == 0).then_some(event.inode), event, fin_received: false, held: true }
    }

    fn let_go(time: u64, pid: u32) -> LetGo {
        let mut bytes = [0; size_of::<LetGo>()];
        bytes[..8].copy_from_slice(&time.to_ne_bytes());
        bytes[8..13].copy_from_slice(b"child");
        bytes[24..28].copy_from_slice(&pid.to_ne_bytes());
        bytes[28..32].copy_from_slice(&7u32.to_ne_bytes());
        bytes[32] = u8::from(pid != 0);
        LetGo::decode(&bytes).unwrap()
    }

    #[test]
    fn who_lets_go_is_the_owner() {
        let now = Instant::now();
        for accepter in [0, 100] {
            let mut held = HeldCloses::default();
            assert_eq!(held.wait(close(1, accepter), now), None);
            assert_eq!(held.wait(close(2, accepter), now), None);
            let Decoded { event, unowned_inode, .. } = held.let_go(&let_go(2, 200)).unwrap();
            assert_eq!((event.monotonic_ns, event.pid, event.uid, event.owner_by), (2, 200, 7, OwnerBy::Inode));
            assert_eq!((&event.comm[..6], unowned_inode), (b"child\0".as_slice(), None));
            assert_eq!(held.let_go(&let_go(2, 200)), None);
            assert_eq!(held.let_go(&let_go(1, 300)).unwrap().event.pid, 300);
            assert!(held.is_empty());
        }
    }

    #[test]
    fn an_accepter_that_lets_go_itself_keeps_the_name_it_had() {
        let mut held = HeldCloses::default();
        held.wait(close(1, 100), Instant::now());
        let event = held.let_go(&let_go(1, 100)).unwrap().event;
        assert_eq!(event, close(1, 100).event);
    }

    #[test]
    fn where_no_process_lets_go_it_is_who_was_known() {
        for accepter in [0, 100] {
            let mut held = HeldCloses::default();
            held.wait(close(1, accepter), Instant::now());
            let Decoded { event, unowned_inode, .. } = held.let_go(&let_go(1, 0)).unwrap();
            assert_eq!(event, close(1, accepter).event);
            assert_eq!(unowned_inode, (accepter == 0).then_some(0), "nobody holds it any more");
        }
    }

    #[test]
    fn a_let_go_may_come_before_its_close() {
        let mut held = HeldCloses::default();
        for time in 0..=MOST_EARLY as u64 {
            assert_eq!(held.let_go_early(let_go(time, 200)), None);
        }
        assert_eq!(held.wait(close(MOST_EARLY as u64, 100), Instant::now()).unwrap().event.pid, 200);
        // The oldest has given way.
        assert_eq!(held.wait(close(0, 100), Instant::now()), None);
    }

    #[test]
    fn of_two_with_the_same_time_neither_is_given_a_wrong_owner() {
        let now = Instant::now();
        let mut held = HeldCloses::default();
        held.wait(close(1, 100), now);
        held.wait(close(1, 101), now);
        assert_eq!(held.let_go(&let_go(1, 200)), None);
        assert_eq!([held.take(now), held.take(now)].map(|close| close.unwrap().event.pid), [100, 101]);
    }

    #[test]
    fn those_that_wait_are_looked_up_together_after_a_rest() {
        const MS: Duration = Duration::from_millis(1);
        let start = Instant::now();
        let mut held = HeldCloses::default();
        assert_eq!(held.due(), None);
        held.wait(close(1, 100), start);
        held.wait(close(2, 0), start + MS);
        assert_eq!(held.due(), Some(start + WAIT));
        assert_eq!(held.sockets(), HashMap::from([(2, 100), (3, 0)]));
        // One that comes while it is looked.
        held.wait(close(3, 100), start + 12 * MS);
        held.rest(start + 20 * MS, 8 * MS);
        assert_eq!(held.take(start + 11 * MS).unwrap().event.monotonic_ns, 1);
        assert_eq!(held.take(start + 11 * MS).unwrap().event.monotonic_ns, 2);
        assert_eq!(held.take(start + 11 * MS), None);
        assert_eq!(held.due(), Some(start + 20 * MS + REST * 8 * MS));
        held.rest(start, 1000 * MS);
        assert_eq!(held.due(), Some(start + 12 * MS + LONGEST_WAIT));
    }

    #[test]
    fn one_too_many_is_handed_back() {
        let now = Instant::now();
        let mut held = HeldCloses::default();
        for time in 0..MOST_WAITING as u64 {
            assert_eq!(held.wait(close(time, 100), now), None);
        }
        assert_eq!(held.wait(close(u64::MAX, 100), now), Some(close(u64::MAX, 100)));
    }
}
