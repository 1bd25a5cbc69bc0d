//! Reads the ring, completes the events and queues them: prompt when the host is quiet, in batches when it is busy.
//!
//! As a network driver switches between interrupts and polling, so does this: a quiet reader sleeps until the probe
//! wakes it; one that is woken again and again looks at intervals instead, and the probe wakes nobody. To be woken costs
//! as much as hundreds of records do, so the intervals are those in which a good batch comes. No timer runs while nothing
//! happens.

use std::cell::RefCell;
use std::panic::catch_unwind;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use libbpf_rs::{RingBuffer, RingBufferBuilder};

use crate::event::counters::Counters;
use crate::event::filter::Filter;
use crate::event::{Event, Kind, Origin};
use crate::ingest::record::{Decoded, decode};
use crate::probe::Probe;
use crate::queue::sink::Sink;
use crate::sockets::holders::{self, HolderIterator, Owners};
use crate::sys::clock::{self, WallClock};
use crate::sys::log::{self, Level};
use crate::sys::own_fd::Guarded;
use crate::sys::wake::{Sleeper, Woken};

/// Wake-ups nearer to each other than this make a burst.
const BURST_INTERVAL: Duration = Duration::from_millis(1);

/// A burst of this many wake-ups starts polling.
const BURST_WAKES: u32 = 8;

/// From look to look while polling, at first and at most: no event waits longer.
const FIRST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(3);
const SHORTEST_POLL: Duration = Duration::from_micros(100);

/// Records that a look should find. The queue takes many times more, so that even a sudden flood sheds nothing.
const BATCH: u32 = 100;

/// This many looks in a row that found next to nothing end the polling.
const QUIET_LOOKS: u32 = 4;

/// The owners of inodes are looked up in a table that is at most this old.
const OWNERS_AGE: Duration = Duration::from_millis(20);

/// What becomes of a record once it is decoded.
pub struct Completion<'run> {
    /// Takes the event.
    pub sink: &'run dyn Sink,
    /// Which events are wanted, where the probe could not tell.
    pub filter: &'run Filter,
    /// Finds owners by inode.
    pub holders: &'run HolderIterator,
    /// Count what was read.
    pub counters: &'run Counters,
}

/// Reads until told to stop; then detaches the probe and reads what is left. `when_reading` is called once records
/// are being read, `before_detach` before the links are closed.
pub fn collect(
    probe: &mut Probe<'_>,
    sleeper: &Sleeper<'_>,
    completion: &Completion<'_>,
    when_reading: impl FnOnce(&Probe<'_>),
    before_detach: impl FnOnce(&Probe<'_>),
) -> libbpf_rs::Result<()> {
    let batch = RefCell::new(Vec::new());
    let mut builder = RingBufferBuilder::new();
    builder.add(probe.records(), |bytes| {
        // A panic must not unwind into libbpf.
        match catch_unwind(|| decode(bytes)) {
            Ok(Some(decoded)) => add(&mut batch.borrow_mut(), decoded, completion.counters),
            Ok(None) | Err(_) => {
                completion.counters.undecoded.fetch_add(1, Ordering::Relaxed);
            }
        }
        0
    })?;
    let ring = builder.build()?;
    let epoll = ring.epoll_fd();
    let mut reader = Reader { ring: Guarded::new(ring, [epoll]), batch: &batch, completer: Completer::new(completion) };

    when_reading(probe);
    let mut pace = Pace::default();
    loop {
        let found = reader.read();
        let woken = match pace.after_look(found) {
            Next::Poll(interval) => sleeper.wait(None, Some(interval)),
            Next::Sleep => {
                // The probe looks at the flag after it has committed a record; this looks at the ring after it has
                // set the flag. One of the two sees the other.
                let flag = probe.variables().expect("the ring's program has them").reader_sleeps;
                flag.store(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let woken =
                    if reader.read() > 0 { Woken::Ready } else { sleeper.wait(Some(reader.ring.epoll_fd()), None) };
                flag.store(0, Ordering::SeqCst);
                pace.woken(Instant::now());
                // A descriptor that is closed, or the host's by now, may be ready for ever.
                if woken == Woken::Ready && sleeper.is_lost() { Woken::Told } else { woken }
            }
        };
        if woken == Woken::Told {
            break;
        }
    }
    before_detach(probe);
    probe.detach();
    reader.read();
    Ok(())
}

/// Adds a record to a batch, or counts it as lost where there is no memory for it.
pub fn add(batch: &mut Vec<Decoded>, decoded: Decoded, counters: &Counters) {
    if batch.try_reserve(1).is_ok() {
        batch.push(decoded);
    } else {
        counters.lost_records.fetch_add(1, Ordering::Relaxed);
    }
}

/// Empties the ring into the queue.
struct Reader<'run, 'cb> {
    ring: Guarded<RingBuffer<'cb>>,
    batch: &'run RefCell<Vec<Decoded>>,
    completer: Completer<'run>,
}

impl Reader<'_, '_> {
    /// Queues all records that are there. Returns how many.
    fn read(&mut self) -> usize {
        // It fails only where a callback asks for that, which ours never does.
        self.ring.consume_raw();
        let mut batch = self.batch.take();
        let found = batch.len();
        if found > 0 {
            let clock = WallClock::now();
            for decoded in batch.drain(..) {
                self.completer.queue(decoded, &clock);
            }
            self.completer.completion.sink.put_all();
        }
        // The batch keeps its memory for the next one, but not that of a rare flood.
        batch.shrink_to(1024);
        self.batch.replace(batch);
        found
    }
}

/// Completes what was decoded, and queues it.
pub struct Completer<'run> {
    completion: &'run Completion<'run>,
    owners: Option<(Instant, Owners)>,
    /// Of the clock of this process's time namespace, where it is known.
    clock_offset_ns: Option<i64>,
}

impl<'run> Completer<'run> {
    /// For a run.
    pub fn new(completion: &'run Completion<'run>) -> Self {
        Self { completion, owners: None, clock_offset_ns: clock::namespace_offset_ns() }
    }

    /// Queues an event, where it is wanted.
    pub fn queue(&mut self, decoded: Decoded, clock: &WallClock) {
        let Decoded { mut event, unowned_inode, .. } = decoded;
        event.monotonic_ns = match self.clock_offset_ns {
            Some(offset_ns) => event.monotonic_ns.saturating_add_signed(offset_ns),
            // A moment late rather than wrong by the offset.
            None => clock::monotonic_now_ns(),
        };
        event.time_ns = clock.wall_ns(event.monotonic_ns);
        if let Some(inode) = unowned_inode {
            self.find_owner(&mut event, inode);
            // The probe has let it pass, because it did not know.
            if !self.completion.filter.fits_owner(&event) {
                return;
            }
        }
        // Before it can be read: no statistics may show more delivered than seen.
        let counter = match event.kind {
            Kind::Close => &self.completion.counters.closes,
            Kind::State | Kind::Snapshot => &self.completion.counters.states,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.completion.sink.put_change(event);
    }

    /// No process was seen to act on the endpoint: whoever holds its inode is the owner.
    fn find_owner(&mut self, event: &mut Event, inode: u64) {
        if inode != 0
            && let Some(pid) = self.holder(inode)
            && let Some((comm, uid)) = holders::read_identity(pid)
        {
            event.pid = pid;
            event.uid = uid;
            event.comm = comm;
            event.origin = Origin::Inode;
        } else if event.kind == Kind::Close {
            self.completion.counters.guesses.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn holder(&mut self, inode: u64) -> Option<u32> {
        if let Some((read, owners)) = &self.owners
            && read.elapsed() < OWNERS_AGE
        {
            return owners.holder(inode);
        }
        match Owners::find(self.completion.holders) {
            Ok(owners) => {
                let holder = owners.holder(inode);
                self.owners = Some((Instant::now(), owners));
                holder
            }
            Err(error) => {
                log::line(Level::Debug, format_args!("/proc cannot be read: {error}"));
                None
            }
        }
    }
}

/// When to look at the ring next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// After this time.
    Poll(Duration),
    /// When the probe says so.
    Sleep,
}

/// Tells a quiet host from a busy one.
#[derive(Default)]
struct Pace {
    last_wake: Option<Instant>,
    burst: u32,
    /// From look to look, while polling.
    polling: Option<Duration>,
    quiet: u32,
}

impl Pace {
    /// A sleep has ended with something to read.
    fn woken(&mut self, now: Instant) {
        let near = self.last_wake.is_some_and(|last| now - last < BURST_INTERVAL);
        self.burst = if near { self.burst + 1 } else { 0 };
        self.last_wake = Some(now);
        if self.burst >= BURST_WAKES {
            self.polling = Some(FIRST_POLL);
            self.quiet = 0;
            self.burst = 0;
        }
    }

    /// A look has found so many records.
    fn after_look(&mut self, found: usize) -> Next {
        let Some(interval) = self.polling else {
            return Next::Sleep;
        };
        // To be woken for each would be no more often.
        self.quiet = if found <= 1 { self.quiet + 1 } else { 0 };
        if self.quiet >= QUIET_LOOKS {
            self.polling = None;
            return Next::Sleep;
        }
        let found = u32::try_from(found).unwrap_or(u32::MAX).max(1);
        let interval = (interval * BATCH / found).clamp(SHORTEST_POLL, LONGEST_POLL);
        self.polling = Some(interval);
        Next::Poll(interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Woken again and again, until it polls.
    fn polling() -> Pace {
        let mut pace = Pace::default();
        let start = Instant::now();
        for wake in 0..=BURST_WAKES {
            assert_eq!(pace.after_look(1), Next::Sleep);
            pace.woken(start + wake * BURST_INTERVAL / 10);
        }
        pace
    }

    #[test]
    fn rare_events_are_waited_for() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for wake in 0..100 {
            pace.woken(start + wake * 2 * BURST_INTERVAL);
            assert_eq!(pace.after_look(1), Next::Sleep);
        }
    }

    #[test]
    fn a_burst_starts_polling_and_silence_ends_it() {
        let mut pace = polling();
        for _ in 0..1000 {
            assert!(matches!(pace.after_look(3), Next::Poll(_)));
        }
        for _ in 1..QUIET_LOOKS {
            assert!(matches!(pace.after_look(0), Next::Poll(_)));
        }
        assert_eq!(pace.after_look(0), Next::Sleep);
        assert_eq!(pace.after_look(0), Next::Sleep);
    }

    #[test]
    fn a_look_finds_a_good_batch_at_any_load() {
        for (per_millisecond, expected) in [(2, LONGEST_POLL), (50, 2 * MILLISECOND), (400, MILLISECOND / 4)] {
            let mut pace = polling();
            let mut interval = FIRST_POLL;
            for _ in 0..10 {
                let found = (interval * per_millisecond).as_millis().try_into().unwrap();
                let Next::Poll(next) = pace.after_look(found) else { panic!("it sleeps at {per_millisecond}") };
                interval = next;
            }
            assert_eq!(interval, expected, "at {per_millisecond} a millisecond");
        }
        assert_eq!(polling().after_look(1_000_000), Next::Poll(SHORTEST_POLL));
    }
}
