//! Reads the ring, completes the events and queues them.

use std::cell::RefCell;
use std::panic::catch_unwind;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use libbpf_rs::{RingBuffer, RingBufferBuilder};

use super::complete::{Completer, Completion, Record, add};
use super::held::HeldCloses;
use super::pace::{Next, Pace};
use crate::probe::Probe;
use crate::sys::clock::WallClock;
use crate::sys::own_fd::Guarded;
use crate::sys::wake::{Sleeper, Woken};

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
        match catch_unwind(|| Record::decode(bytes)) {
            Ok(Some(record)) => add(&mut batch.borrow_mut(), record, completion.counters),
            Ok(None) | Err(_) => {
                completion.counters.undecoded.fetch_add(1, Ordering::Relaxed);
            }
        }
        0
    })?;
    let ring = builder.build()?;
    let epoll = ring.epoll_fd();
    let mut reader = Reader {
        ring: Guarded::new(ring, [epoll]),
        batch: &batch,
        completer: Completer::new(completion),
        held: HeldCloses::default(),
    };

    when_reading(probe);
    let mut pace = Pace::default();
    loop {
        let found = reader.read(probe);
        reader.look_for_holders(probe);
        let woken = match pace.after_look(found) {
            Next::Poll(interval) => sleeper.wait(None, Some(interval)),
            Next::Sleep => {
                // The probe looks at the flag after it has committed a record; this looks at the ring after it has
                // set the flag. One of the two sees the other.
                let flag = probe.variables().expect("the ring's programs have them").get().reader_sleeps;
                flag.store(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let woken = if reader.read(probe) > 0 {
                    Woken::Ready
                } else {
                    let time = reader.held.due().map(|due| due.saturating_duration_since(Instant::now()));
                    sleeper.wait(Some(reader.ring.epoll_fd()), time)
                };
                flag.store(0, Ordering::SeqCst);
                if woken == Woken::Ready {
                    pace.woken(Instant::now());
                }
                // A descriptor that is closed, or the host's by now, may be ready for ever.
                if woken == Woken::Ready && sleeper.is_lost() { Woken::Told } else { woken }
            }
        };
        if woken == Woken::Told {
            break;
        }
    }
    // As long as the kernel tells who holds what.
    reader.name_holders(probe);
    before_detach(probe);
    probe.detach();
    reader.read(probe);
    reader.name_holders(probe);
    Ok(())
}

/// Empties the ring into the queue.
struct Reader<'run, 'cb> {
    ring: Guarded<RingBuffer<'cb>>,
    batch: &'run RefCell<Vec<Record>>,
    completer: Completer<'run>,
    held: HeldCloses,
}

impl Reader<'_, '_> {
    /// Queues all records that are there, but those of closes whose sockets are held. Returns how many.
    fn read(&mut self, probe: &Probe<'_>) -> usize {
        // It fails only where a callback asks for that, which ours never does.
        self.ring.consume_raw();
        let mut batch = self.batch.take();
        let found = batch.len();
        if found > 0 {
            let clock = WallClock::now();
            let lost_owners =
                probe.variables().map_or(0, |variables| variables.get().lost_owners.load(Ordering::Relaxed));
            for record in batch.drain(..) {
                let ready = match record {
                    Record::Change(mut change) => {
                        if lost_owners > 0 {
                            change.event.doubt_begin();
                        }
                        if change.held { self.held.wait(change, Instant::now()) } else { Some(change) }
                    }
                    Record::LetGo(let_go) => self.held.let_go(&let_go),
                };
                if let Some(decoded) = ready {
                    self.completer.queue(decoded, &clock);
                }
            }
            self.completer.completion.sink.put_all();
        }
        // The batch keeps its memory for the next one, but not that of a rare flood.
        batch.shrink_to(1024);
        self.batch.replace(batch);
        found
    }

    /// Where closes have waited for long enough, looks who holds their sockets.
    fn look_for_holders(&mut self, probe: &Probe<'_>) {
        if self.held.due().is_some_and(|due| due <= Instant::now()) {
            self.name_holders(probe);
        }
    }

    /// Queues all closes that wait.
    fn name_holders(&mut self, probe: &Probe<'_>) {
        if self.held.is_empty() {
            return;
        }
        let looked = Instant::now();
        let owners = self.completer.find_holders(self.held.sockets());
        self.held.rest(Instant::now(), looked.elapsed());
        // Who has let go meanwhile may not be among them.
        self.read(probe);
        let clock = WallClock::now();
        while let Some(close) = self.held.take(looked) {
            self.completer.queue_held(close, &owners, &clock);
        }
        self.completer.completion.sink.put_all();
    }
}
