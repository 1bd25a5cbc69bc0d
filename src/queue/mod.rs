//! The bounded queue between the sources of events and their consumers.
//!
//! A change that finds it full displaces the oldest event; a snapshot that finds it full is itself refused. Every event
//! that is dropped is counted by its kind.
//!
//! Consumers wait on a semaphore until a batch of events is announced: a consumer that is cancelled, or never returns,
//! leaves nothing to clean up. A channel would wake one at the first event; it would overtake the producer, spin and
//! sleep again, once for every few events.
//!
//! A deque behind a lock, not crossbeam's channel: that aborts the process when memory runs out, and touches all of its
//! memory at once. The lock is the standard library's, as all locks here are: a futex and nothing else. parking_lot
//! keeps waiting threads in a process-wide table with locks of its own; a forked child inherits that table as it is,
//! and waits for threads that it does not have.

pub mod readiness;
pub mod sink;

use std::collections::{TryReserveError, VecDeque};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard};

use crate::event::counters::Shed;
use crate::event::{Event, Kind};
use crate::sys::semaphore::Semaphore;
use crate::sys::threads::lock;

/// What a queue can hold.
pub trait Queued {
    /// The kind that a dropped event counts as.
    fn kind(&self) -> Kind;
}

impl Queued for Event {
    fn kind(&self) -> Kind {
        self.kind
    }
}

/// A bounded queue of events, for any number of producers and consumers.
pub struct Queue<E> {
    slots: usize,
    inner: Mutex<Inner<E>>,
    announced: Semaphore,
}

struct Inner<E> {
    events: VecDeque<E>,
    shed: Shed,
}

impl<E: Queued> Queue<E> {
    /// A queue of `slots` events, at least one.
    pub fn new(slots: usize) -> Result<Self, TryReserveError> {
        let slots = slots.max(1);
        let mut events = VecDeque::new();
        events.try_reserve_exact(slots)?;
        Ok(Self { slots, inner: Mutex::new(Inner { events, shed: Shed::default() }), announced: Semaphore::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<E>> {
        lock(&self.inner)
    }

    /// Events that it can hold.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Queues a change, to be announced. Returns how many older events were dropped to make room.
    pub fn push_displacing(&self, event: E) -> u64 {
        let mut inner = self.lock();
        let mut shed = 0;
        if inner.events.len() >= self.slots {
            if let Some(oldest) = inner.events.pop_front() {
                inner.shed.count(oldest.kind());
                shed = 1;
            }
        }
        inner.events.push_back(event);
        shed
    }

    /// Queues a snapshot if there is room, to be announced. Returns whether there was.
    pub fn push_if_room(&self, event: E) -> bool {
        let mut inner = self.lock();
        let has_room = inner.events.len() < self.slots;
        if has_room {
            inner.events.push_back(event);
        } else {
            inner.shed.count(event.kind());
        }
        has_room
    }

    /// Wakes a waiting consumer, if any, for the events queued since the last call.
    pub fn announce(&self) {
        // Pairs with the fence in `woken`: either this sees that a consumer took the last announcement, or that
        // consumer sees the events.
        fence(Ordering::SeqCst);
        if !self.announced.is_posted() {
            self.announced.post();
        }
    }

    /// What to wait on when the queue is empty; call [`Self::woken`] afterwards.
    pub fn announced(&self) -> &Semaphore {
        &self.announced
    }

    /// After a wait: the oldest event, if there is one by now.
    pub fn woken(&self) -> Option<E> {
        fence(Ordering::SeqCst);
        let event = self.try_pop();
        // One consumer was woken for the whole batch.
        if event.is_some() && !self.is_empty() {
            self.announce();
        }
        event
    }

    /// The oldest event; waits until there is one.
    pub fn pop(&self) -> E {
        if let Some(event) = self.try_pop() {
            return event;
        }
        loop {
            self.announced.wait();
            if let Some(event) = self.woken() {
                return event;
            }
        }
    }

    /// The oldest event, if any.
    pub fn try_pop(&self) -> Option<E> {
        self.lock().events.pop_front()
    }

    /// Number of queued events.
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events dropped so far.
    pub fn shed(&self) -> Shed {
        self.lock().shed
    }
}

impl Shed {
    fn count(&mut self, kind: Kind) {
        let counter = match kind {
            Kind::State => &mut self.states,
            Kind::Close => &mut self.closes,
            Kind::Snapshot => &mut self.snapshots,
            Kind::Retry => &mut self.retries,
            Kind::Unsent => &mut self.unsent,
        };
        *counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn event(kind: Kind, number: u64) -> Event {
        Event { time_ns: number, ..Event::of(kind) }
    }

    #[test]
    fn a_full_queue_keeps_the_newest_closes() {
        let queue = Queue::new(1024).unwrap();
        let shed: u64 = (0..3000).map(|n| queue.push_displacing(event(Kind::Close, n))).sum();
        assert_eq!(shed, 1976);
        assert_eq!(queue.shed(), Shed { closes: 1976, ..Shed::default() });
        let kept: Vec<u64> = std::iter::from_fn(|| queue.try_pop()).map(|e| e.time_ns).collect();
        assert_eq!(kept, (1976..3000).collect::<Vec<_>>());
    }

    #[test]
    fn a_snapshot_never_displaces() {
        let queue = Queue::new(2).unwrap();
        assert!(queue.push_if_room(event(Kind::Snapshot, 1)));
        assert!(queue.push_if_room(event(Kind::Snapshot, 2)));
        assert!(!queue.push_if_room(event(Kind::Snapshot, 3)));
        assert_eq!(queue.push_displacing(event(Kind::Close, 4)), 1);
        assert_eq!(queue.shed(), Shed { snapshots: 2, ..Shed::default() });
        assert_eq!(queue.pop().time_ns, 2);
        assert_eq!(queue.pop().time_ns, 4);
    }

    #[test]
    fn consumers_share_events_with_none_twice_and_none_missing() {
        const EVENTS: u64 = 100_000;
        const CONSUMERS: usize = 8;
        let queue = Arc::new(Queue::<Event>::new(1024).unwrap());
        let consumers: Vec<_> = (0..CONSUMERS)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut got = Vec::new();
                    loop {
                        match queue.pop().time_ns {
                            u64::MAX => return got,
                            number => got.push(number),
                        }
                    }
                })
            })
            .collect();
        for number in (0..EVENTS).chain([u64::MAX; CONSUMERS]) {
            while !queue.push_if_room(event(Kind::Close, number)) {
                thread::yield_now();
            }
            // Several events per announcement: a woken consumer must wake the next.
            if number % 7 == 0 || number == u64::MAX {
                queue.announce();
            }
        }
        let mut got: Vec<u64> = consumers.into_iter().flat_map(|c| c.join().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, (0..EVENTS).collect::<Vec<_>>());
    }

    /// As in a host with more threads than events: each announced event must reach a consumer, whichever were asleep.
    #[test]
    fn an_announced_event_is_never_slept_through() {
        const ROUNDS: usize = 20_000;
        let queue = Queue::<Event>::new(1024).unwrap();
        let taken = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while queue.pop().kind == Kind::Close {
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let mut queued = 0;
            for round in 0..ROUNDS {
                for _ in 0..=round % 4 {
                    queue.push_displacing(event(Kind::Close, 0));
                    queued += 1;
                }
                queue.announce();
                let until = Instant::now() + Duration::from_secs(30);
                while taken.load(Ordering::SeqCst) < queued {
                    assert!(Instant::now() < until, "round {round}: {} events were left", queue.len());
                    thread::yield_now();
                }
            }
            for _ in 0..3 {
                queue.push_displacing(event(Kind::State, 0));
            }
            queue.announce();
        });
    }

    /// The probe's thread, the sweeps and consumers, on a queue that is full most of the time.
    #[test]
    fn under_contention_every_event_is_delivered_whole_or_counted() {
        const EACH: u64 = 20_000;
        const PRODUCERS: [Kind; 4] = [Kind::Close, Kind::Close, Kind::Snapshot, Kind::Snapshot];
        let queue = Queue::new(8).unwrap();
        let producing = AtomicUsize::new(PRODUCERS.len());
        let make = |producer: usize, number: u64| Event {
            bytes_received: number * 3,
            bytes_acked: !number,
            pid: u32::try_from(producer).unwrap(),
            comm: [u8::try_from(number % 251).unwrap(); 16],
            ..event(PRODUCERS[producer], number)
        };
        let got: Vec<Vec<Event>> = thread::scope(|scope| {
            let producers: Vec<_> = (0..PRODUCERS.len())
                .map(|producer| {
                    let (queue, producing, make) = (&queue, &producing, &make);
                    scope.spawn(move || {
                        for number in 0..EACH {
                            match PRODUCERS[producer] {
                                Kind::State | Kind::Close | Kind::Retry | Kind::Unsent => {
                                    queue.push_displacing(make(producer, number));
                                }

                                Kind::Snapshot => drop(queue.push_if_room(make(producer, number))),
                            }
                        }
                        producing.fetch_sub(1, Ordering::SeqCst);
                    })
                })
                .collect();
            let consume = || {
                let mut got = Vec::new();
                loop {
                    let last = producing.load(Ordering::SeqCst) == 0;
                    match queue.try_pop() {
                        Some(event) => got.push(event),
                        None if last => return got,
                        None => thread::yield_now(),
                    }
                }
            };
            let consumers: Vec<_> = (0..3).map(|_| scope.spawn(consume)).collect();
            for producer in producers {
                producer.join().unwrap();
            }
            consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect()
        });

        let mut seen = HashSet::new();
        for events in &got {
            let mut last = [None; PRODUCERS.len()];
            for event in events {
                let producer = event.pid as usize;
                assert_eq!(*event, make(producer, event.time_ns));
                assert!(seen.insert((producer, event.time_ns)), "{event:?} came twice");
                assert!(last[producer] < Some(event.time_ns), "{event:?} came late");
                last[producer] = Some(event.time_ns);
            }
        }
        let delivered = |kind| seen.iter().filter(|(producer, _)| PRODUCERS[*producer] == kind).count() as u64;
        let shed = queue.shed();
        assert_eq!(delivered(Kind::Close) + shed.closes, 2 * EACH);
        assert_eq!(delivered(Kind::Snapshot) + shed.snapshots, 2 * EACH);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        assert!(Queue::<Event>::new(usize::MAX / 2).is_err());
        assert!(Queue::<Event>::new(1 << 44).is_err());
    }

    proptest! {
        /// Against a plain model: whatever the order of calls, the same events come out and are counted.
        #[test]
        fn it_behaves_as_a_bounded_deque(slots in 1usize..8, calls in proptest::collection::vec(0u8..3, 0..200)) {
            let queue = Queue::new(slots).unwrap();
            let mut model = VecDeque::new();
            let mut dropped = 0;
            for (number, call) in (0u64..).zip(calls) {
                match call {
                    0 => {
                        if model.len() == slots {
                            model.pop_front();
                            dropped += 1;
                        }
                        model.push_back(number);
                        queue.push_displacing(event(Kind::Close, number));
                    }
                    1 => {
                        let room = model.len() < slots;
                        prop_assert_eq!(queue.push_if_room(event(Kind::Snapshot, number)), room);
                        if room {
                            model.push_back(number);
                        } else {
                            dropped += 1;
                        }
                    }
                    _ => prop_assert_eq!(queue.try_pop().map(|e| e.time_ns), model.pop_front()),
                }
            }
            let shed = queue.shed();
            prop_assert_eq!(shed.closes + shed.snapshots, dropped);
        }
    }
}
