//! Records from the ring buffer of a probe.

use std::cell::RefCell;
use std::mem;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use libbpf_rs::{RingBuffer, RingBufferBuilder};

use super::source::{Record, Source, add};
use crate::event::counters::Counters;
use crate::probe::{Probe, Variables};
use crate::sys::own_fd::Guarded;

/// The ring of a probe that is attached.
pub struct Ring<'run, 'obj> {
    probe: &'run mut Probe<'obj>,
    ring: Guarded<RingBuffer<'run>>,
    /// Where libbpf's callback puts the records.
    batch: Rc<RefCell<Vec<Record>>>,
}

impl<'run, 'obj> Ring<'run, 'obj> {
    /// Maps it.
    pub fn open(probe: &'run mut Probe<'obj>, counters: &'run Counters) -> libbpf_rs::Result<Self> {
        let batch = Rc::new(RefCell::new(Vec::new()));
        let mut builder = RingBufferBuilder::new();
        let to = Rc::clone(&batch);
        builder.add(probe.records(), move |bytes| {
            add(&mut to.borrow_mut(), counters, || Record::decode(bytes));
            0
        })?;
        let ring = builder.build()?;
        let epoll = ring.epoll_fd();
        Ok(Self { probe, ring: Guarded::new(ring, [epoll]), batch })
    }

    fn variables(&self) -> Variables<'_> {
        self.probe.variables().expect("the ring's programs have them").get()
    }
}

impl Source for Ring<'_, '_> {
    const CAN_BE_POLLED: bool = true;
    const IS_IN_ORDER: bool = true;
    const IS_FILTERED: bool = true;

    fn read(&mut self, batch: &mut Vec<Record>) {
        self.batch.replace(mem::take(batch));
        // It fails only where a callback asks for that, which ours never does.
        self.ring.consume_raw();
        *batch = self.batch.take();
        if !batch.is_empty() && self.variables().lost_owners.load(Ordering::Relaxed) > 0 {
            for record in batch {
                if let Record::Change(change) = record {
                    change.event.doubt_begin();
                }
            }
        }
    }

    /// The probe looks at the flag after it has committed a record; the reader looks at the ring after it has set the flag. One
    /// of the two sees the other.
    fn ask_for_wakes(&mut self) -> bool {
        self.variables().reader_sleeps.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        true
    }

    fn end_wakes(&mut self) {
        self.variables().reader_sleeps.store(0, Ordering::SeqCst);
    }

    fn fds(&self) -> [Option<RawFd>; 2] {
        [Some(self.ring.epoll_fd()), None]
    }

    fn detach(&mut self) {
        self.probe.detach();
    }
}
