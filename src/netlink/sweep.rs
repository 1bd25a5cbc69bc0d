//! The thread that lists all open sockets, again and again.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::diag::{self, Reply};
use super::owners::{self, Owners};
use crate::clock;
use crate::counters::Counters;
use crate::descriptors::StandardStreams;
use crate::event::{COMM_LEN, Event};
use crate::log::{self, Level, Limited};
use crate::privilege::{self, Capability};
use crate::queue::Queue;
use crate::wake::{Sleeper, Woken};

/// The kernel fills a dump's datagrams up to 32 KiB where the buffer has room for that.
const BUFFER_LEN: usize = 1 << 16;

/// A reply that takes longer is given up; the next sweep asks again.
const REPLY_TIME: Duration = Duration::from_secs(5);

static SHEDDING: Limited = Limited::new("Shedding TCP (Netlink) events..");

/// Sweeps until told to stop.
pub fn sweep_until_told(sleeper: &Sleeper<'_>, interval: Duration, queue: &Queue, counters: &Counters) {
    let mut rounds = Sweeper {
        sleeper,
        queue,
        counters,
        socket: None,
        sequence: 0,
        buffer: Vec::with_capacity(BUFFER_LEN),
        complained: false,
        missed_others: false,
    };
    let mut due = Instant::now();
    loop {
        match rounds.sweep() {
            Ok(()) => {}
            Err(End::Told) => return,
            Err(End::Failed(what, error)) => rounds.complain(what, &error),
        }
        due += interval;
        let now = Instant::now();
        due = due.max(now);
        if sleeper.wait(None, Some(due - now)) == Woken::Told {
            return;
        }
    }
}

/// Why a sweep ended early.
enum End {
    Told,
    Failed(&'static str, io::Error),
}

struct Sweeper<'run> {
    sleeper: &'run Sleeper<'run>,
    queue: &'run Queue,
    counters: &'run Counters,
    socket: Option<Socket>,
    sequence: u32,
    buffer: Vec<u8>,
    complained: bool,
    /// Another user's socket was seen whose process was not.
    missed_others: bool,
}

impl Sweeper<'_> {
    /// One event for each socket whose inode a live process holds.
    fn sweep(&mut self) -> Result<(), End> {
        let owners = Owners::scan().map_err(|error| End::Failed("reading /proc", error))?;
        let mut commands = HashMap::new();
        let mut outcome = Ok(());
        let missed_others_before = self.missed_others;
        for family in diag::FAMILIES {
            match self.dump(family, &owners, &mut commands) {
                Ok(()) => {}
                Err(End::Told) => return Err(End::Told),
                // One family may be missing from the kernel: the other one is still told of.
                Err(failed) => outcome = Err(failed),
            }
        }
        if outcome.is_err() {
            // What comes late must not be taken for the next answer.
            self.socket = None;
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

    fn dump(
        &mut self,
        family: u8,
        owners: &Owners,
        commands: &mut HashMap<u32, Option<[u8; COMM_LEN]>>,
    ) -> Result<(), End> {
        self.sequence = self.sequence.wrapping_add(1);
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(open_socket().map_err(|error| End::Failed("opening a sock_diag socket", error))?),
        };
        let request = diag::dump_request(family, self.sequence);
        retry(|| socket.send(&request, 0)).map_err(|error| End::Failed("asking sock_diag", error))?;
        loop {
            match self.sleeper.wait(Some(socket.as_raw_fd()), Some(REPLY_TIME)) {
                Woken::Told => return Err(End::Told),
                Woken::TimedOut => {
                    return Err(End::Failed("waiting for sock_diag", io::ErrorKind::TimedOut.into()));
                }
                Woken::Ready => {}
            }
            self.buffer.clear();
            // ENOBUFS means that replies were dropped: the rest of this dump cannot be trusted to end.
            let length = retry(|| socket.recv(&mut self.buffer, libc::MSG_TRUNC))
                .map_err(|error| End::Failed("reading from sock_diag", error))?;
            if length > self.buffer.len() {
                log::line(Level::Debug, format_args!("a sock_diag reply of {length} bytes was cut"));
            }
            let mut ended = None;
            let now_ns = clock::wall_now_ns();
            diag::for_each_reply(&self.buffer, self.sequence, |reply| match reply {
                Reply::Socket(payload) => match complete(payload, now_ns, owners, commands) {
                    Ok(event) => {
                        self.counters.snapshots.fetch_add(1, Ordering::Relaxed);
                        if !self.queue.push_if_room(event) {
                            SHEDDING.warn();
                        }
                    }
                    Err(Unfit::Unheld { uid }) => self.missed_others |= uid != own_uid(),
                    Err(Unfit::Unreadable | Unfit::Nameless) => {}
                },
                Reply::Done(0) => ended = Some(Ok(())),
                Reply::Done(errno) | Reply::Error(errno) => {
                    let error = io::Error::from_raw_os_error(errno);
                    ended = Some(Err(End::Failed("listing sockets by sock_diag", error)));
                }
                Reply::Interrupted => log::line(Level::Debug, "sockets changed while the kernel listed them"),
                Reply::Malformed => log::line(Level::Debug, "a malformed sock_diag reply was passed over"),
            });
            if let Some(result) = ended {
                return result;
            }
        }
    }

    /// Says once that snapshots are missing. They are tried for again at each sweep.
    fn complain(&mut self, what: &str, error: &io::Error) {
        let level = if self.complained { Level::Debug } else { Level::Warn };
        self.complained = true;
        let hint = if error.raw_os_error() == Some(libc::ENOENT) {
            " (is the module tcp_diag there? try modprobe tcp_diag)"
        } else {
            ""
        };
        log::line(
            level,
            format_args!("{what} failed: {error}{hint}; snapshots of open connections are missing until it works"),
        );
    }
}

/// Why a reply gives no event.
enum Unfit {
    /// It is not of a socket that a process can hold, or not to be read.
    Unreadable,
    /// No process that this one may look into holds the socket of this user.
    Unheld { uid: u32 },
    /// The process has no command line, or is gone.
    Nameless,
}

/// The event of a reply, where a live process with a command line holds the socket.
fn complete(
    payload: &[u8],
    now_ns: u64,
    owners: &Owners,
    commands: &mut HashMap<u32, Option<[u8; COMM_LEN]>>,
) -> Result<Event, Unfit> {
    let socket = diag::parse_socket(payload, now_ns).ok_or(Unfit::Unreadable)?;
    let pid = owners.holder(u64::from(socket.inode)).ok_or(Unfit::Unheld { uid: socket.event.uid })?;
    let command = commands.entry(pid).or_insert_with(|| owners::read_command(pid));
    Ok(Event { pid, comm: command.ok_or(Unfit::Nameless)?, ..socket.event })
}

fn own_uid() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

fn open_socket() -> io::Result<Socket> {
    let _streams = StandardStreams::hold();
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Repeats a call that a signal interrupted. The thread blocks all signals, but a debugger may stop it.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
