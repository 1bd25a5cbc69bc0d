//! The thread that lists all open sockets at intervals.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, io, mem};

use netlink_sys::Socket;

use super::diag::{self, Families, Reply};
use super::holders::{self, HolderIterator, Owners};
use super::socket::{BUFFER_LEN, REPLY_TIME, open_socket, receive, retry};
use crate::event::counters::Counters;
use crate::event::filter::Filter;
use crate::event::{COMM_LEN, Event, OwnerBy};
use crate::queue::sink::Sink;
use crate::sys::clock;
use crate::sys::descriptors::StandardStreams;
use crate::sys::log::{self, Level};
use crate::sys::own_fd::Guarded;
use crate::sys::privilege::{self, Capability};
use crate::sys::threads::no_descriptor;
use crate::sys::wake::{Sleeper, Waker, Woken};

/// A sweep with more sockets than this gives its memory back.
const LARGE: usize = 1 << 14;

/// Snapshots announced together: about as many as a datagram holds.
const ANNOUNCED: usize = 128;

/// How to name the process that holds a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// By the start of its command line, and the socket's user. A socket without a process gives no event.
    CommandLine,
    /// By its comm, and its user. A socket without a process gives an event without an owner.
    Comm,
}

/// What a sweep does.
pub struct SweepSettings<'run> {
    /// From one sweep to the next.
    pub interval: Duration,
    /// Of the processes.
    pub naming: Naming,
    /// Which events are wanted.
    pub filter: &'run Filter,
    /// Whether what listening sockets have dropped is wanted.
    pub drops: bool,
    /// Finds the holders, if attached.
    pub holders: &'run HolderIterator,
}

/// The body of a sweeping thread: sweeps until `waker` stops it, or not at all if `is_over` by then.
pub fn run(
    waker: &Waker,
    is_over: impl Fn() -> bool,
    settings: &SweepSettings<'_>,
    sink: &dyn Sink,
    counters: &Counters,
) {
    let streams = StandardStreams::hold();
    let sleeper = waker.sleeper();
    drop(streams);
    match sleeper {
        // A stop that came before the sleeper existed woke nothing.
        Ok(_) if is_over() => {}
        Ok(sleeper) => sweep_until_told(&sleeper, settings, sink, counters),
        Err(source) => log::line(Level::Warn, no_descriptor(source)),
    }
}

fn sweep_until_told(sleeper: &Sleeper<'_>, settings: &SweepSettings<'_>, sink: &dyn Sink, counters: &Counters) {
    let interval = settings.interval;
    let mut rounds = Sweeper {
        sleeper,
        settings,
        sink,
        counters,
        netns: 0,
        socket: None,
        sequence: 0,
        complained: false,
        missed_others: false,
        has_listed: false,
        later: Vec::new(),
        dropped: Dropped::default(),
    };
    let mut buffer = Vec::with_capacity(BUFFER_LEN);
    let mut due = Instant::now();
    loop {
        let began = Instant::now();
        match rounds.sweep(&mut buffer) {
            Ok(()) => {}
            Err(End::Told) => return,
            Err(End::Failed(failure)) => rounds.complain(&failure),
        }
        let now = Instant::now();
        due = next_sweep(due, interval, began, now);
        if sleeper.wait(None, Some(due - now)) == Woken::Told {
            return;
        }
    }
}

/// When the next sweep is due. One that outlasts its interval rests for as long as it has worked: half a processor at most is
/// spent on sweeps.
fn next_sweep(due: Instant, interval: Duration, began: Instant, ended: Instant) -> Instant {
    let took = ended - began;
    let rest = if took > interval { took } else { Duration::ZERO };
    (due + interval).max(ended + rest)
}

/// Why a sweep ended early.
enum End {
    Told,
    Failed(Failure),
}

struct Failure {
    what: &'static str,
    error: io::Error,
    /// The connections that are missing.
    missing: &'static str,
}

const ALL: &str = "open connections";

const READING_PROC: &str = "reading /proc";

impl End {
    fn failed(what: &'static str, error: io::Error) -> Self {
        Self::Failed(Failure { what, error, missing: ALL })
    }
}

/// What is known of a process; `None` if it has no name, or is gone.
type Identities = HashMap<u32, Option<Identity>>;

#[derive(Clone, Copy)]
struct Identity {
    name: [u8; COMM_LEN],
    /// `None`: use the socket's.
    uid: Option<u32>,
}

struct Sweeper<'run> {
    sleeper: &'run Sleeper<'run>,
    settings: &'run SweepSettings<'run>,
    sink: &'run dyn Sink,
    counters: &'run Counters,
    /// Inode number of the network namespace swept: this thread's.
    netns: u32,
    socket: Option<Guarded<Socket>>,
    sequence: u32,
    complained: bool,
    /// A socket of another user was seen whose process was not.
    missed_others: bool,
    /// The current listing has given a socket.
    has_listed: bool,
    /// Events that follow all others of the sweep.
    later: Vec<Event>,
    dropped: Dropped,
}

/// What listening sockets had dropped when they were listed last, by their cookies.
#[derive(Default)]
struct Dropped {
    before: HashMap<u64, u32>,
    now: HashMap<u64, u32>,
}

impl Dropped {
    /// Fills in what has been dropped since. `None` if there is no memory for it.
    fn compare(&mut self, event: &mut Event) -> Option<()> {
        let Some(backlog) = &mut event.backlog else { return Some(()) };
        self.now.try_reserve(1).ok()?;
        self.now.insert(event.cookie, backlog.dropped);
        let before = self.before.get(&event.cookie).copied().unwrap_or(backlog.dropped);
        backlog.newly_dropped = backlog.dropped.wrapping_sub(before);
        Some(())
    }

    /// A sweep has ended. After one that failed, those that it has missed are still known. (Where there is no memory, one that
    /// is not known is taken for new.)
    fn end_sweep(&mut self, is_whole: bool) {
        let before = mem::replace(&mut self.before, mem::take(&mut self.now));
        if !is_whole && self.before.try_reserve(before.len()).is_ok() {
            for (cookie, dropped) in before {
                self.before.entry(cookie).or_insert(dropped);
            }
        }
    }
}

impl Sweeper<'_> {
    /// One event for each socket whose inode a live process holds.
    fn sweep(&mut self, buffer: &mut Vec<u8>) -> Result<(), End> {
        let owners = Owners::find(self.settings.holders, &|| self.sleeper.is_told());
        let owners = owners
            .map_err(|error| if self.sleeper.is_told() { End::Told } else { End::failed(READING_PROC, error) })?;
        // The kernel reports processes without /proc, but not their command lines.
        if self.settings.naming == Naming::CommandLine {
            fs::metadata("/proc/self").map_err(|error| End::failed(READING_PROC, error))?;
        }
        let mut identities = Identities::new();
        self.netns = own_netns();
        let missed_others_before = self.missed_others;
        let outcome = self.dump_all(buffer, &owners, &mut identities);
        self.dropped.end_sweep(outcome.is_ok());
        // These are delivered even if the rest is missing.
        let mut later = mem::take(&mut self.later).into_iter().peekable();
        while later.peek().is_some() {
            later.by_ref().take(ANNOUNCED).for_each(|event| self.sink.put_snapshot(event));
            self.sink.put_all();
        }
        if matches!(outcome, Err(End::Told)) {
            return outcome;
        }
        let is_large = owners.count() > LARGE;
        drop((owners, identities));
        if is_large {
            give_back_memory();
        }
        if self.missed_others && !missed_others_before {
            privilege::warn_of_loss(
                "snapshots miss the sockets of other users' processes",
                &[Capability::DAC_READ_SEARCH, Capability::SYS_PTRACE],
            );
        }
        self.counters.sweeps.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    fn dump_all(&mut self, buffer: &mut Vec<u8>, owners: &Owners, identities: &mut Identities) -> Result<(), End> {
        match self.settings.filter.family.map(i32::from) {
            Some(libc::AF_INET) => return self.dump(Families::Inet, buffer, owners, identities),
            Some(_) => return self.dump(Families::Inet6, buffer, owners, identities),
            None => {}
        }
        // For each listing the kernel walks all sockets.
        match self.dump(Families::Both, buffer, owners, identities) {
            Err(End::Failed(_)) if !self.has_listed => {}
            outcome => return outcome,
        }
        let mut failures = Vec::new();
        for (families, missing) in [(Families::Inet, "IPv4 connections"), (Families::Inet6, "IPv6 connections")] {
            match self.dump(families, buffer, owners, identities) {
                Ok(()) => {}
                Err(End::Told) => return Err(End::Told),
                // The kernel may lack one family: the other is still listed.
                Err(End::Failed(failure)) => failures.push(Failure { missing, ..failure }),
            }
        }
        let is_all = failures.len() > 1;
        match failures.pop() {
            None => Ok(()),
            Some(failure) if is_all => Err(End::Failed(Failure { missing: ALL, ..failure })),
            Some(failure) => Err(End::Failed(failure)),
        }
    }

    fn dump(
        &mut self,
        families: Families,
        buffer: &mut Vec<u8>,
        owners: &Owners,
        identities: &mut Identities,
    ) -> Result<(), End> {
        self.has_listed = false;
        self.sequence = self.sequence.wrapping_add(1);
        // Dropped on failure: a late reply must not be taken for the next answer.
        let socket = match self.socket.take() {
            // The host may have closed it, and put another in its place.
            Some(socket) if socket.is_whole() => socket,
            Some(_) | None if self.sleeper.is_lost() => return Err(End::Told),
            Some(_) | None => open_socket().map_err(|error| End::failed("opening a sock_diag socket", error))?,
        };
        let request = diag::dump_request(families, self.settings.drops, self.sequence);
        retry(|| socket.send(&request, 0)).map_err(|error| End::failed("asking sock_diag", error))?;
        loop {
            match self.sleeper.wait(Some(socket.as_raw_fd()), Some(REPLY_TIME)) {
                Woken::Told => return Err(End::Told),
                Woken::TimedOut => {
                    return Err(End::failed("waiting for sock_diag", io::ErrorKind::TimedOut.into()));
                }
                Woken::Ready => {}
            }
            // ENOBUFS means that replies were dropped: the rest of this dump may never end.
            let length = receive(&socket, buffer).map_err(|error| End::failed("reading from sock_diag", error))?;
            if length > buffer.len() {
                log::line(Level::Debug, format_args!("a sock_diag reply of {length} bytes was cut"));
            }
            let mut ended = None;
            let mut enough_memory = true;
            let now = (clock::wall_now_ns(), clock::monotonic_now_ns());
            diag::for_each_reply(buffer, self.sequence, |reply| match reply {
                Reply::Socket(payload) => {
                    self.has_listed = true;
                    if let Some(event) = diag::parse_socket(payload).filter(|_| enough_memory) {
                        let event = Event { time_ns: now.0, monotonic_ns: now.1, netns: self.netns, ..event };
                        enough_memory = self.complete(event, owners, identities).is_some();
                    }
                }
                Reply::Done(0) => ended = Some(Ok(())),
                Reply::Done(errno) | Reply::Error(errno) => {
                    let error = io::Error::from_raw_os_error(errno);
                    ended = Some(Err(End::failed("listing sockets by sock_diag", error)));
                }
                Reply::Interrupted => log::line(Level::Debug, "sockets changed while the kernel listed them"),
                Reply::Malformed => log::line(Level::Debug, "a malformed sock_diag reply was skipped"),
            });
            self.sink.put_all();
            if !enough_memory {
                return Err(End::failed("listing sockets", io::ErrorKind::OutOfMemory.into()));
            }
            match ended {
                Some(Ok(())) => {
                    self.socket = Some(socket);
                    return Ok(());
                }
                Some(failed) => return failed,
                None => {}
            }
        }
    }

    /// Adds the owner, and delivers the event if it is wanted. `None` if there is no memory for that: the host
    /// determines how many processes and sockets there are.
    fn complete(&mut self, mut event: Event, owners: &Owners, identities: &mut Identities) -> Option<()> {
        let naming = self.settings.naming;
        self.dropped.compare(&mut event)?;
        let holder = owners.holder(event.inode);
        identities.try_reserve(1).ok()?;
        let identity = holder.and_then(|pid| *identities.entry(pid).or_insert_with(|| identify(pid, naming)));
        let is_missed = match holder {
            // Possibly because this process may not inspect another user's.
            None => !owners.are_all(),
            Some(pid) => identity.is_none() && is_hidden(pid),
        };
        if is_missed {
            self.missed_others |= event.uid != own_uid();
        }
        match (holder, identity) {
            (Some(pid), Some(identity)) => {
                event.pid = pid;
                event.comm = identity.name;
                event.uid = identity.uid.unwrap_or(event.uid);
            }
            _ if naming == Naming::CommandLine => return Some(()),
            _ => event.owner_by = OwnerBy::Unknown,
        }
        if self.settings.filter.fits(&event) {
            // IPv4 is listed first.
            let is_first = i32::from(event.family) == libc::AF_INET;
            if !is_first {
                self.later.try_reserve(1).ok()?;
            }
            self.counters.snapshots.fetch_add(1, Ordering::Relaxed);
            if is_first {
                self.sink.put_snapshot(event);
            } else {
                self.later.push(event);
            }
        }
        Some(())
    }

    /// Warns once that snapshots are missing. Each sweep tries for them again.
    fn complain(&mut self, failure: &Failure) {
        let Failure { what, error, missing } = failure;
        let level = if self.complained { Level::Debug } else { Level::Warn };
        self.complained = true;
        let hint = if error.raw_os_error() != Some(libc::ENOENT) || *missing != ALL {
            ""
        } else if *what == READING_PROC {
            " (mount it: mount -t proc none /proc)"
        } else {
            " (is the module tcp_diag there? try modprobe tcp_diag)"
        };
        log::line(
            level,
            format_args!("{what} failed: {error}{hint}; snapshots of {missing} are missing until it works"),
        );
    }
}

fn identify(pid: u32, naming: Naming) -> Option<Identity> {
    match naming {
        Naming::CommandLine => holders::read_command(pid).map(|name| Identity { name, uid: None }),
        Naming::Comm => holders::read_identity(pid).map(|(name, uid)| Identity { name, uid: Some(uid) }),
    }
}

/// Whether a live process is missing from /proc: the option hidepid hides other users' processes from those who may not
/// trace them.
fn is_hidden(pid: u32) -> bool {
    let Ok(id) = libc::pid_t::try_from(pid) else {
        return false;
    };
    // SAFETY: no signal is sent.
    let lives = unsafe { libc::kill(id, 0) } == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
    lives && fs::metadata(format!("/proc/{pid}")).is_err()
}

/// glibc keeps freed memory, up to 32 MiB once it has seen that much: here that would last until the next sweep.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and any thread may call it.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// 0 if /proc does not say.
fn own_netns() -> u32 {
    fs::metadata("/proc/thread-self/ns/net").ok().and_then(|file| file.ino().try_into().ok()).unwrap_or(0)
}

fn own_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Backlog, Kind};

    /// What two listening sockets have dropped anew, sweep by sweep; `None` where a sweep has missed one.
    #[test]
    fn what_is_dropped_anew_is_counted_from_sweep_to_sweep() {
        let mut dropped = Dropped::default();
        for (is_whole, seen) in [
            (true, [Some((5, 0)), None]),
            (true, [Some((7, 2)), Some((u32::MAX, 0))]),
            // The first one is still known after a sweep that failed, the other one has come round.
            (false, [None, Some((1, 2))]),
            (true, [Some((7, 0)), Some((1, 0))]),
            // One that has not been there in a whole sweep is another one.
            (true, [None, Some((4, 3))]),
            (true, [Some((9, 0)), Some((4, 0))]),
        ] {
            for (cookie, counts) in (1..).zip(seen) {
                let Some((so_far, anew)) = counts else { continue };
                let backlog = Some(Backlog { dropped: so_far, ..Backlog::default() });
                let mut event = Event { cookie, backlog, ..Event::of(Kind::Snapshot) };
                dropped.compare(&mut event).unwrap();
                assert_eq!(event.backlog.unwrap().newly_dropped, anew, "{seen:?}");
            }
            dropped.end_sweep(is_whole);
        }
    }

    #[test]
    fn a_sweep_that_outlasts_its_interval_rests_as_long_as_it_has_worked() {
        const MS: Duration = Duration::from_millis(1);
        let due = Instant::now();
        for (late, took, rest) in [(0, 30, 70), (5, 30, 65), (0, 100, 0), (0, 101, 101), (0, 250, 250), (80, 90, 0)] {
            let began = due + late * MS;
            let ended = began + took * MS;
            assert_eq!(next_sweep(due, 100 * MS, began, ended), ended + rest * MS, "{late} late, {took} long");
        }
    }
}
