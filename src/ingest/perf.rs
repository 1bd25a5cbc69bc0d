//! Records from the perf buffer of a probe that has no ring buffer. One that is a plain tracepoint cannot see the counters of
//! a connection: those come by netlink, a little later.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::joiner::{Joiner, LONGEST_WAIT};
use super::perf_buffer::{Entry, PerfBuffer, processors_on};
use super::record::{DETAILED_RECORD_LEN, Decoded, RECORD_LEN};
use super::source::{Record, Source, add, push};
use crate::config::ProbeSettings;
use crate::event::counters::Counters;
use crate::event::{Begin, Kind, OwnerBy, state};
use crate::probe::{BpfFds, Probe, ProbeFds};
use crate::sockets::destroyed::Listener;
use crate::sockets::older::OlderEndpoints;
use crate::sys::log::{self, Level};
use crate::sys::wake::Sleeper;

/// The perf buffer of a probe that is attached.
pub struct Perf<'run, 'obj> {
    probe: &'run mut Probe<'obj>,
    buffer: PerfBuffer,
    entries: Entries<'run>,
    in_child: &'run BpfFds,
    /// No ring can be opened for a processor, and that was said.
    is_refused: bool,
    listener: Option<Listener>,
    joiner: Joiner,
    older: OlderEndpoints<'run>,
    tells_own_ids: bool,
    tells_counters: bool,
}

/// What was in the buffer.
struct Entries<'run> {
    counters: &'run Counters,
    fds: ProbeFds,
    /// Bytes of a record. Behind them there are some that mean nothing.
    length: usize,
    /// Each processor has a buffer of its own.
    unsorted: Vec<Record>,
    /// A processor is being switched on or off.
    processors_change: bool,
}

impl Entries<'_> {
    fn take(&mut self, entry: &Entry<'_>) {
        match entry {
            Entry::Record(bytes) if bytes.len() <= LONGEST_NOTICE => self.processors_change = true,
            Entry::Record(bytes) => {
                let bytes = if bytes.len() < RECORD_LEN { Some(*bytes) } else { bytes.get(..self.length) };
                add(&mut self.unsorted, self.counters, || Record::decode(bytes?));
            }
            // The kernel tells of them with the next record; most kernels have told the program itself before.
            Entry::Lost(count) => {
                if !self.fds.counts_full() {
                    self.counters.lost_records.fetch_add(*count, Ordering::Relaxed);
                }
            }
        }
    }

    /// In the order in which they were written; let-gos first.
    fn sorted(&mut self) -> Vec<Record> {
        let mut records = mem::take(&mut self.unsorted);
        records.sort_by_key(|record| match record {
            Record::LetGo(_) => None,
            Record::Change(change) => Some(change.event.monotonic_ns),
        });
        records
    }
}

/// Without it there are closes all the same.
fn listen() -> libbpf_rs::Result<Option<Listener>> {
    match Listener::open() {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => Err(error.into()),
        Err(error) => {
            log::line(Level::Warn, format_args!("closes have no byte counts: {error}"));
            Ok(None)
        }
    }
}

/// The notice of `bpf/perf_output.h`, and what may be behind it. Every record is longer.
const LONGEST_NOTICE: usize = 16;

/// Pages of the buffer of one processor: 2 MiB in all, where that is between 64 and 512 KiB each. More than that needs
/// further privileges (`kernel.perf_event_mlock_kb`).
fn pages() -> usize {
    const ALL: usize = 512;
    // Not available_parallelism(): each has a buffer, whether this process may run there or not.
    let processors = processors_on().map_or(1, |processors| processors.len());
    (ALL / processors.next_power_of_two()).clamp(16, 128)
}

/// What is known of the network namespace of an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    /// It is the library's own: the kernel tells of the ends of no others.
    Own,
    Unknown,
    /// Nothing, and another connection of the same addresses closes at the same time.
    Ambiguous,
}

impl<'run, 'obj> Perf<'run, 'obj> {
    /// Opens a ring for each processor. Further descriptors that a forked child must close are added to `in_child`.
    pub fn open(
        probe: &'run mut Probe<'obj>,
        settings: &ProbeSettings,
        sleeper: &'run Sleeper<'run>,
        counters: &'run Counters,
        in_child: &'run BpfFds,
    ) -> libbpf_rs::Result<Self> {
        let buffer = PerfBuffer::new(probe.records().as_fd().as_raw_fd(), pages())?;
        in_child.add(buffer.fds());
        let (tells_own_ids, tells_counters) = (probe.tells_own_ids(), probe.tells_counters());
        let listener = if settings.wanted.closes && !tells_counters { listen()? } else { None };
        let entries = Entries {
            counters,
            fds: probe.fds(),
            length: if settings.detailed { DETAILED_RECORD_LEN } else { RECORD_LEN },
            unsorted: Vec::new(),
            processors_change: false,
        };
        Ok(Self {
            probe,
            buffer,
            entries,
            in_child,
            is_refused: false,
            listener,
            joiner: Joiner::default(),
            // After the probe was attached, so that none is missed between the two.
            older: OlderEndpoints::list(sleeper),
            tells_own_ids,
            tells_counters,
        })
    }

    /// What happens on a processor that has no ring yet is lost, and counted by the program.
    fn open_missing(&mut self) {
        let before: Vec<RawFd> = self.buffer.fds().collect();
        match self.buffer.open_missing(|entry| self.entries.take(&entry)) {
            Ok(processors) => {
                for processor in processors {
                    log::line(Level::Info, format_args!("processor {processor} was switched on"));
                }
                self.is_refused = false;
            }
            Err(error) => {
                let level = if self.is_refused { Level::Debug } else { Level::Warn };
                log::line(level, format_args!("connections on processors that were switched on are lost: {error}"));
                self.is_refused = true;
            }
        }
        let now: Vec<RawFd> = self.buffer.fds().collect();
        self.in_child.remove(|fd| before.contains(&fd) && !now.contains(&fd));
        self.in_child.add(now.into_iter().filter(|fd| !before.contains(fd)));
    }

    /// Not an attempt that has failed: connect itself takes the addresses away then, by which its counters would be known.
    fn needs_counters(&self, decoded: &Decoded) -> bool {
        let event = &decoded.event;
        self.listener.is_some() && event.kind == Kind::Close && event.old_state != state::SYN_SENT
    }

    /// Adds what has all but, perhaps, its owner to a batch.
    fn add(&mut self, mut decoded: Decoded, namespace: Namespace, batch: &mut Vec<Record>) {
        if namespace != Namespace::Ambiguous {
            self.older.complete(&mut decoded.event, namespace == Namespace::Own);
        }
        if decoded.event.owner_by != OwnerBy::Unknown {
            decoded.unowned_inode = None;
        }
        push(batch, self.entries.counters, Record::Change(decoded));
    }

    /// Adds closes that have waited for their counters until now, or were about to. Returns how many.
    fn add_overdue(&mut self, now: Instant, batch: &mut Vec<Record>) -> usize {
        let mut count = 0;
        while let Some(close) = self.joiner.take_overdue(now) {
            count += 1;
            let namespace = if self.joiner.was_alone(&close.event) { Namespace::Unknown } else { Namespace::Ambiguous };
            self.add(close, namespace, batch);
        }
        count
    }
}

impl Source for Perf<'_, '_> {
    // The kernel wakes the reader at each record, whether that sleeps or not.
    const CAN_BE_POLLED: bool = false;
    const IS_IN_ORDER: bool = false;
    const IS_FILTERED: bool = false;

    fn read(&mut self, batch: &mut Vec<Record>) {
        // The notifications first: what they are about is in the buffer by then, or will never be.
        let mut destroyed = Vec::new();
        if let Some(listener) = &mut self.listener {
            listener.read(|socket| {
                // Without it a close has no byte counts, and says so.
                if destroyed.try_reserve(1).is_ok() {
                    destroyed.push(socket);
                }
            });
        }
        self.buffer.read(|entry| self.entries.take(&entry));
        let mut records = self.entries.sorted();
        let is_older = |record: &Record| matches!(record, Record::Change(change) if change.event.begin == Begin::Older);
        let has_lost_owners = records.iter().any(is_older) && self.entries.fds.lost_owners() > 0;
        let now = Instant::now();
        for record in records.drain(..) {
            let mut decoded = match record {
                Record::Change(decoded) => decoded,
                // Its close may wait for counters, or be in another processor's buffer.
                let_go @ Record::LetGo(_) => {
                    push(batch, self.entries.counters, let_go);
                    continue;
                }
            };
            if !self.tells_own_ids {
                decoded.event.pid = 0;
            }
            if has_lost_owners {
                decoded.event.doubt_begin();
            }
            if !self.needs_counters(&decoded) {
                decoded.event.uncounted = decoded.event.kind == Kind::Close && !self.tells_counters;
                self.add(decoded, Namespace::Unknown, batch);
            } else if let Some(close) = self.joiner.wait_for_counters(decoded, now) {
                self.add(close, Namespace::Ambiguous, batch);
            }
        }
        records.shrink_to(1024);
        self.entries.unsorted = records;
        let mut unknown = 0;
        for socket in &destroyed {
            match self.joiner.join(socket, now) {
                Some(close) => self.add(close, Namespace::Own, batch),
                None => unknown += 1,
            }
        }
        let without = self.add_overdue(now, batch);
        if unknown + without > 0 {
            log::line(
                Level::Debug,
                format_args!("{without} closes have no byte counts, {unknown} notifications were of no close"),
            );
        }
    }

    fn maintain(&mut self) -> bool {
        let processors_change = mem::take(&mut self.entries.processors_change);
        if processors_change {
            self.open_missing();
        }
        processors_change
    }

    /// Notifications wake nobody while no close waits for its counters.
    fn fds(&self) -> [Option<RawFd>; 2] {
        let listener = self.listener.as_ref().filter(|_| self.joiner.due().is_some());
        [Some(self.buffer.epoll_fd()), listener.map(Listener::fd)]
    }

    fn due(&self) -> Option<Instant> {
        self.joiner.due()
    }

    fn detach(&mut self) {
        self.probe.detach();
    }

    fn finish(&mut self, batch: &mut Vec<Record>) {
        self.read(batch);
        self.add_overdue(Instant::now() + LONGEST_WAIT, batch);
    }
}
