//! What becomes of a record once it is decoded: the wall clock, an owner by inode where there is none yet, the queue.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::held;
use super::record::Decoded;
use crate::event::counters::Counters;
use crate::event::filter::Filter;
use crate::event::{COMM_LEN, Event, Kind, OwnerBy};
use crate::queue::sink::Sink;
use crate::sockets::holders::{self, HolderIterator, Owners};
use crate::sys::clock::{self, WallClock};
use crate::sys::log::{self, Level};
use crate::sys::wake::Sleeper;

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

/// Once the run is over, it is looked who holds sockets for no longer than this: whoever ends it waits.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Completes what was decoded, and queues it.
pub struct Completer<'run> {
    pub completion: &'run Completion<'run>,
    sleeper: &'run Sleeper<'run>,
    /// When it was seen that the run is over.
    told: OnceCell<Instant>,
    owners: Option<(Instant, Owners)>,
    /// Of the clock of this process's time namespace, where it is known.
    clock_offset_ns: Option<i64>,
}

impl<'run> Completer<'run> {
    /// For a run.
    pub fn new(completion: &'run Completion<'run>, sleeper: &'run Sleeper<'run>) -> Self {
        let clock_offset_ns = clock::namespace_offset_ns();
        Self { completion, sleeper, told: OnceCell::new(), owners: None, clock_offset_ns }
    }

    /// Whether nobody is to be looked for any more.
    fn is_over(&self) -> bool {
        self.sleeper.is_told() && self.told.get_or_init(Instant::now).elapsed() >= LAST_LOOK
    }

    /// Queues an event, where it is wanted.
    pub fn queue(&mut self, decoded: Decoded, clock: &WallClock) {
        let Decoded { mut event, unowned_inode, held, .. } = decoded;
        event.monotonic_ns = match self.clock_offset_ns {
            Some(offset_ns) => event.monotonic_ns.saturating_add_signed(offset_ns),
            // A moment late rather than wrong by the offset.
            None => clock::monotonic_now_ns(),
        };
        event.time_ns = clock.wall_ns(event.monotonic_ns);
        if let Some(inode) = unowned_inode {
            self.find_owner(&mut event, inode);
        }
        // The probe has let it pass, because it did not know.
        if (unowned_inode.is_some() || held) && !self.completion.filter.fits_owner(&event) {
            return;
        }
        // Before it can be read: no statistics may show more delivered than seen.
        let counter = match event.kind {
            Kind::Close => &self.completion.counters.closes,
            Kind::Retry => &self.completion.counters.retries,
            Kind::Unsent => &self.completion.counters.unsent,
            Kind::State | Kind::Snapshot => &self.completion.counters.states,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.completion.sink.put_change(event);
    }

    /// Who holds these sockets now, of all that do; rather the processes that are known of them.
    pub fn find_holders(&self, mut sockets: HashMap<u64, u32>) -> Owners {
        // The plain tracepoint tells no inode.
        sockets.remove(&0);
        if sockets.is_empty() {
            return Owners::default();
        }
        Owners::find_preferring(self.completion.holders, sockets, &|| self.is_over())
    }

    /// Queues a close whose socket is held, as these say. Who was known to have it, and does not hold it now, is its owner no
    /// longer where it has ended.
    pub fn queue_held(&mut self, mut close: Decoded, owners: &Owners, clock: &WallClock) {
        let event = &mut close.event;
        let holder = owners.holder(event.inode);
        let is_known = event.owner_by != OwnerBy::Unknown;
        // Where they are just those that were known, any other may hold it.
        let may_be_another = holder.is_none() && event.inode != 0 && !owners.are_all();
        let other = holder.filter(|pid| !is_known || *pid != event.pid);
        if let Some((pid, (comm, uid))) = other.and_then(|pid| Some((pid, holders::read_identity(pid)?))) {
            held::own(event, pid, uid, comm);
        } else if is_known && holder.is_none() && event.pid != 0 && (may_be_another || !holders::lives(event.pid)) {
            (event.pid, event.comm, event.owner_by) = (0, [0; COMM_LEN], OwnerBy::Unknown);
        }
        let inode = if may_be_another { event.inode } else { 0 };
        close.unowned_inode = (event.owner_by == OwnerBy::Unknown).then_some(inode);
        self.queue(close, clock);
    }

    /// No process was seen to act on the endpoint: whoever holds its inode is the owner.
    fn find_owner(&mut self, event: &mut Event, inode: u64) {
        let holder = if inode == 0 { None } else { self.holder(inode) };
        if let Some((pid, (comm, uid))) = holder.and_then(|pid| Some((pid, holders::read_identity(pid)?))) {
            event.pid = pid;
            event.uid = uid;
            event.comm = comm;
            event.owner_by = OwnerBy::Inode;
        } else if event.kind == Kind::Close {
            self.completion.counters.unowned.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn holder(&mut self, inode: u64) -> Option<u32> {
        match &self.owners {
            Some((read, owners)) if read.elapsed() < OWNERS_AGE => return owners.holder(inode),
            _ => {}
        }
        match Owners::find(self.completion.holders, &|| self.is_over()) {
            Ok(owners) => {
                let holder = owners.holder(inode);
                self.owners = Some((Instant::now(), owners));
                holder
            }
            Err(error) => {
                log::line(Level::Debug, format_args!("nobody is looked for in /proc: {error}"));
                None
            }
        }
    }
}
