//! What `collector` does, for a probe that has no ring buffer but a perf buffer. One that is a plain tracepoint cannot see
//! the counters of a connection: those come by netlink, a little later.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::catch_unwind;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Instant;

use super::perf_buffer::{Entry, PerfBuffer};
use crate::config::ProbeSettings;
use crate::event::filter::Filter;
use crate::event::{Begin, Kind, OwnerBy, state};
use crate::ingest::complete::{Completer, Completion, Record, add};
use crate::ingest::held::HeldCloses;
use crate::ingest::joiner::{Joiner, LONGEST_WAIT};
use crate::ingest::record::{DETAILED_RECORD_LEN, Decoded, LetGo, RECORD_LEN, decode};
use crate::probe::{BpfFds, Probe, ProbeFds};
use crate::sockets::destroyed::Listener;
use crate::sockets::older::OlderEndpoints;
use crate::sys::clock::WallClock;
use crate::sys::log::{self, Level};
use crate::sys::wake::{Sleeper, Woken};

/// What a run needs.
pub struct Run<'run> {
    /// Tells when it is over.
    pub sleeper: &'run Sleeper<'run>,
    /// Takes the events.
    pub completion: &'run Completion<'run>,
    /// What the probe was attached with.
    pub settings: &'run ProbeSettings,
}

impl Run<'_> {
    /// As [`crate::ingest::ring::collect`]. Further descriptors that a forked child must close are added to `in_child`.
    pub fn collect(
        &self,
        probe: &mut Probe<'_>,
        in_child: &BpfFds,
        when_reading: impl FnOnce(&Probe<'_>),
        before_detach: impl FnOnce(&Probe<'_>),
    ) -> libbpf_rs::Result<()> {
        let buffer = PerfBuffer::new(probe.records().as_fd().as_raw_fd(), pages())?;
        in_child.add(buffer.fds());
        let listener = if self.settings.closes && !probe.tells_counters() { listen()? } else { None };
        let mut reader = Reader {
            run: self,
            buffer,
            in_child,
            fds: probe.fds(),
            batch: Vec::new(),
            is_refused: false,
            listener,
            joiner: Joiner::default(),
            held: HeldCloses::default(),
            // After the probe was attached, so that none is missed between the two.
            older: OlderEndpoints::list(self.sleeper),
            completer: Completer::new(self.completion),
            tells_own_ids: probe.tells_own_ids(),
            tells_counters: probe.tells_counters(),
        };

        when_reading(probe);
        while reader.wait() != Woken::Told {
            let processors_change = reader.read();
            if reader.look_for_holders() || processors_change {
                reader.open_missing();
                reader.read();
            }
        }
        before_detach(probe);
        probe.detach();
        reader.read();
        reader.queue_all();
        Ok(())
    }
}

impl Run<'_> {
    /// Takes what was in the buffer. Whether it tells that a processor is being switched on or off.
    fn take(&self, entry: &Entry<'_>, fds: ProbeFds, batch: &mut Vec<Record>) -> bool {
        let counters = self.completion.counters;
        // Behind a record there are some bytes that mean nothing.
        let length = if self.settings.detailed { DETAILED_RECORD_LEN } else { RECORD_LEN };
        match entry {
            Entry::Record(bytes) if bytes.len() <= LONGEST_NOTICE => return true,
            Entry::Record(bytes) => {
                let decode = || match LetGo::decode(bytes) {
                    Some(let_go) => Some(Record::LetGo(let_go)),
                    None => decode(bytes.get(..length)?).map(Record::Change),
                };
                // A panic must not end this thread.
                match catch_unwind(decode) {
                    Ok(Some(record)) => add(batch, record, counters),
                    Ok(None) | Err(_) => {
                        counters.undecoded.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            // The kernel tells of them with the next record; most kernels have told the program itself before.
            Entry::Lost(count) => {
                if !fds.counts_full() {
                    counters.lost_records.fetch_add(*count, Ordering::Relaxed);
                }
            }
        }
        false
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
    let processors = available_parallelism().map_or(1, usize::from).next_power_of_two();
    (ALL / processors).clamp(16, 128)
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

/// Empties the perf buffer into the queue.
struct Reader<'run> {
    run: &'run Run<'run>,
    buffer: PerfBuffer,
    in_child: &'run BpfFds,
    fds: ProbeFds,
    batch: Vec<Record>,
    /// No ring can be opened for it, and that was said.
    is_refused: bool,
    listener: Option<Listener>,
    joiner: Joiner,
    /// Those that need no counters any more.
    held: HeldCloses,
    older: OlderEndpoints<'run>,
    completer: Completer<'run>,
    tells_own_ids: bool,
    tells_counters: bool,
}

impl Reader<'_> {
    /// Waits until there is something to do. No timer runs while no close waits for its counters or its owner, and notifications
    /// wake nobody.
    fn wait(&self) -> Woken {
        let joined = self.joiner.due();
        let listener = self.listener.as_ref().filter(|_| joined.is_some()).map(Listener::fd);
        let due = [joined, self.held.due()].into_iter().flatten().min();
        let time = due.map(|due| due.saturating_duration_since(Instant::now()));
        self.run.sleeper.wait_for_any([Some(self.buffer.epoll_fd()), listener], time)
    }

    /// Queues all that is there, and complete. Whether a processor is being switched on or off.
    fn read(&mut self) -> bool {
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
        let (mut batch, run, fds) = (mem::take(&mut self.batch), self.run, self.fds);
        let mut processors_change = false;
        self.buffer.read(|entry| processors_change |= run.take(&entry, fds, &mut batch));
        let mut changes = Vec::with_capacity(batch.len());
        let mut let_gos = Vec::new();
        for record in batch.drain(..) {
            match record {
                Record::Change(change) => changes.push(change),
                Record::LetGo(let_go) => let_gos.push(let_go),
            }
        }
        batch.shrink_to(1024);
        self.batch = batch;
        // Each processor has a buffer of its own.
        changes.sort_by_key(|decoded| decoded.event.monotonic_ns);
        let has_lost_owners =
            changes.iter().any(|decoded| decoded.event.begin == Begin::Older) && self.fds.lost_owners() > 0;
        let now = Instant::now();
        let clock = WallClock::now();
        for let_go in let_gos {
            // Its close may wait for counters, or be in another processor's buffer.
            if let Some(close) = self.held.let_go_early(let_go) {
                self.queue_ready(close, &clock);
            }
        }
        for mut decoded in changes {
            if !self.tells_own_ids {
                decoded.event.pid = 0;
            }
            if has_lost_owners {
                decoded.event.doubt_begin();
            }
            if !self.needs_counters(&decoded) {
                decoded.event.uncounted = decoded.event.kind == Kind::Close && !self.tells_counters;
                self.queue(decoded, Namespace::Unknown, now, &clock);
            } else if let Some(close) = self.joiner.wait_for_counters(decoded, now) {
                self.queue(close, Namespace::Ambiguous, now, &clock);
            }
        }
        let mut unknown = 0;
        for socket in &destroyed {
            match self.joiner.join(socket, now) {
                Some(close) => self.queue(close, Namespace::Own, now, &clock),
                None => unknown += 1,
            }
        }
        let mut without = 0;
        while let Some(close) = self.joiner.take_overdue(now) {
            without += 1;
            self.queue_overdue(close, now, &clock);
        }
        if unknown + without > 0 {
            log::line(
                Level::Debug,
                format_args!("{without} closes have no byte counts, {unknown} notifications were of no close"),
            );
        }
        self.run.completion.sink.put_all();
        processors_change
    }

    /// What happens on a processor that has no ring yet is lost, and counted by the program.
    fn open_missing(&mut self) {
        let before: Vec<RawFd> = self.buffer.fds().collect();
        let (batch, run, fds) = (&mut self.batch, self.run, self.fds);
        match self.buffer.open_missing(|entry| _ = run.take(&entry, fds, batch)) {
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

    fn queue_overdue(&mut self, close: Decoded, now: Instant, clock: &WallClock) {
        let namespace = if self.joiner.was_alone(&close.event) { Namespace::Unknown } else { Namespace::Ambiguous };
        self.queue(close, namespace, now, clock);
    }

    /// What has come so far has all but, perhaps, its owner.
    fn queue(&mut self, mut decoded: Decoded, namespace: Namespace, now: Instant, clock: &WallClock) {
        if namespace != Namespace::Ambiguous {
            self.older.complete(&mut decoded.event, namespace == Namespace::Own);
        }
        if decoded.event.owner_by != OwnerBy::Unknown {
            decoded.unowned_inode = None;
        }
        let ready = if decoded.held { self.held.wait(decoded, now) } else { Some(decoded) };
        if let Some(decoded) = ready {
            self.queue_ready(decoded, clock);
        }
    }

    fn queue_ready(&mut self, decoded: Decoded, clock: &WallClock) {
        if self.is_wanted(&decoded) {
            self.completer.queue(decoded, clock);
        }
    }

    /// Whether an event is wanted. The probe has let all pass. Of what has no owner yet, the completer looks whether that fits.
    fn is_wanted(&self, decoded: &Decoded) -> bool {
        let is_unowned = decoded.held || decoded.unowned_inode.is_some_and(|inode| inode != 0);
        let fits = if is_unowned { Filter::fits_but_for_owner } else { Filter::fits };
        fits(self.run.completion.filter, &decoded.event)
    }

    /// Where closes have waited for long enough, looks who holds their sockets. Whether a processor is being switched on or off.
    fn look_for_holders(&mut self) -> bool {
        self.held.due().is_some_and(|due| due <= Instant::now()) && self.name_holders()
    }

    /// Queues all closes that wait for their owner. Whether a processor is being switched on or off.
    fn name_holders(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let looked = Instant::now();
        let owners = self.completer.find_holders(self.held.sockets());
        self.held.rest(Instant::now(), looked.elapsed());
        // Who has let go meanwhile may not be among them.
        let processors_change = self.read();
        let clock = WallClock::now();
        while let Some(close) = self.held.take(looked) {
            if self.is_wanted(&close) {
                self.completer.queue_held(close, &owners, &clock);
            }
        }
        self.run.completion.sink.put_all();
        processors_change
    }

    /// The end: nothing is waited for any more.
    fn queue_all(&mut self) {
        let clock = WallClock::now();
        let end = Instant::now() + LONGEST_WAIT;
        while let Some(close) = self.joiner.take_overdue(end) {
            self.queue_overdue(close, end, &clock);
        }
        self.run.completion.sink.put_all();
        self.name_holders();
    }
}
