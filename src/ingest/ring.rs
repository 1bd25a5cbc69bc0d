//! Reads the ring, completes the events and queues them.

use std::cell::RefCell;
use std::panic::catch_unwind;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use libbpf_rs::{RingBuffer, RingBufferBuilder};

use super::complete::{Completer, Completion, add};
use super::pace::{Next, Pace};
use super::record::{Decoded, decode};
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
        let found = reader.read(probe);
        let woken = match pace.after_look(found) {
            Next::Poll(interval) => sleeper.wait(None, Some(interval)),
            Next::Sleep => {
                // The probe looks at the flag after it has committed a record; this looks at the ring after it has
                // set the flag. One of the two sees the other.
                let flag = probe.variables().expect("the ring's program has them").reader_sleeps;
                flag.store(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let woken = if reader.read(probe) > 0 {
                    Woken::Ready
                } else {
                    sleeper.wait(Some(reader.ring.epoll_fd()), None)
                };
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
    reader.read(probe);
    Ok(())
}

/// Empties the ring into the queue.
struct Reader<'run, 'cb> {
    ring: Guarded<RingBuffer<'cb>>,
    batch: &'run RefCell<Vec<Decoded>>,
    completer: Completer<'run>,
}

impl Reader<'_, '_> {
    /// Queues all records that are there. Returns how many.
    fn read(&mut self, probe: &Probe<'_>) -> usize {
        // It fails only where a callback asks for that, which ours never does.
        self.ring.consume_raw();
        let mut batch = self.batch.take();
        let found = batch.len();
        if found > 0 {
            let clock = WallClock::now();
            let lost_owners = probe.variables().map_or(0, |variables| variables.lost_owners.load(Ordering::Relaxed));
            for mut decoded in batch.drain(..) {
                if lost_owners > 0 {
                    decoded.event.doubt_begin();
                }
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
