//! The loop of a probe's thread: reads records, completes them and queues the events, whatever [`Source`] they come from.

use std::io;
use std::mem;
use std::time::Instant;

use super::complete::{Completer, Completion};
use super::held::HeldCloses;
use super::pace::{Next, Pace};
use super::record::Decoded;
use super::source::{Record, Source};
use crate::event::filter::Filter;
use crate::sys::clock::WallClock;
use crate::sys::wake::{Sleeper, Woken};

/// Empties a source into the queue.
pub struct Collector<'run, S> {
    source: S,
    sleeper: &'run Sleeper<'run>,
    completer: Completer<'run>,
    held: HeldCloses,
    /// Between two reads it is empty, and keeps its memory.
    batch: Vec<Record>,
}

impl<'run, S: Source> Collector<'run, S> {
    /// Reads nothing yet.
    pub fn new(source: S, sleeper: &'run Sleeper<'run>, completion: &'run Completion<'run>) -> Self {
        let completer = Completer::new(completion, sleeper);
        Self { source, sleeper, completer, held: HeldCloses::default(), batch: Vec::new() }
    }

    /// Reads until told to stop, or until the source fails; then detaches the probe and reads what is left. `before_detach` is
    /// called before the links are closed.
    pub fn run(mut self, before_detach: impl FnOnce()) -> io::Result<()> {
        let result = self.read_until_told();
        // As long as the kernel tells who holds what.
        self.name_holders();
        before_detach();
        self.source.detach();
        let mut batch = mem::take(&mut self.batch);
        self.source.finish(&mut batch);
        self.put(batch);
        self.name_holders();
        result
    }

    fn read_until_told(&mut self) -> io::Result<()> {
        let mut pace = Pace::default();
        loop {
            let found = self.read();
            self.look_for_holders();
            if self.source.maintain() {
                self.read();
            }
            if let Some(failure) = self.source.failure() {
                return Err(failure);
            }
            let woken = match pace.after_look(found) {
                Next::Poll(interval) => self.sleeper.wait(None, Some(interval)),
                Next::Sleep => {
                    let woken = self.sleep();
                    if S::CAN_BE_POLLED && woken == Woken::Ready {
                        pace.woken(Instant::now());
                    }
                    // A descriptor that is closed, or the host's by now, may be ready for ever.
                    if woken == Woken::Ready && self.sleeper.is_lost() { Woken::Told } else { woken }
                }
            };
            if woken == Woken::Told {
                return Ok(());
            }
        }
    }

    /// Sleeps until there is something to do. No timer runs while no close waits.
    fn sleep(&mut self) -> Woken {
        let must_look = self.source.ask_for_wakes();
        let woken = if must_look && self.read() > 0 {
            Woken::Ready
        } else {
            let due = [self.source.due(), self.held.due()].into_iter().flatten().min();
            let time = due.map(|due| due.saturating_duration_since(Instant::now()));
            self.sleeper.wait_for_any(self.source.fds(), time)
        };
        self.source.end_wakes();
        woken
    }

    /// Queues all that is there, but closes whose sockets are held. Returns how many records there were.
    fn read(&mut self) -> usize {
        let mut batch = mem::take(&mut self.batch);
        self.source.read(&mut batch);
        self.put(batch)
    }

    fn put(&mut self, mut batch: Vec<Record>) -> usize {
        let found = batch.len();
        if found > 0 {
            let clock = WallClock::now();
            for record in batch.drain(..) {
                let ready = match record {
                    Record::Change(change) if change.held => self.held.wait(change, Instant::now()),
                    Record::Change(change) => Some(change),
                    Record::LetGo(let_go) if S::IS_IN_ORDER => self.held.let_go(&let_go),
                    Record::LetGo(let_go) => self.held.let_go_early(let_go),
                };
                if let Some(decoded) = ready {
                    if self.is_wanted(&decoded) {
                        self.completer.queue(decoded, &clock);
                    }
                }
            }
            self.completer.completion.sink.put_all();
        }
        // The batch keeps its memory for the next one, but not that of a rare flood.
        batch.shrink_to(1024);
        self.batch = batch;
        found
    }

    /// Whether an event is wanted, where the probe has let all pass. Of what has no owner yet, the completer looks whether that
    /// fits.
    fn is_wanted(&self, decoded: &Decoded) -> bool {
        if S::IS_FILTERED {
            return true;
        }
        let is_unowned = decoded.held || decoded.unowned_inode.is_some_and(|inode| inode != 0);
        let fits = if is_unowned { Filter::fits_but_for_owner } else { Filter::fits };
        fits(self.completer.completion.filter, &decoded.event)
    }

    /// Where closes have waited for long enough, looks who holds their sockets.
    fn look_for_holders(&mut self) {
        if self.held.due().is_some_and(|due| due <= Instant::now()) {
            self.name_holders();
        }
    }

    /// Queues all closes that wait for their owner.
    fn name_holders(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let looked = Instant::now();
        let owners = self.completer.find_holders(self.held.sockets());
        self.held.rest(Instant::now(), looked.elapsed());
        // Who has let go meanwhile may not be among them.
        self.read();
        let clock = WallClock::now();
        while let Some(close) = self.held.take(looked) {
            if self.is_wanted(&close) {
                self.completer.queue_held(close, &owners, &clock);
            }
        }
        self.completer.completion.sink.put_all();
    }
}
