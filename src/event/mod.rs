//! What the library has to tell of an endpoint, from whatever source.

pub mod counters;
pub mod endpoint;
pub mod filter;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::BitOr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What an event stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The state of an endpoint has changed.
    State = 1,
    /// A connection, or the attempt at one, has ended: its endpoint reached TCP_CLOSE.
    Close = 2,
    /// A socket was found open by a sweep.
    Snapshot = 3,
    /// An attempt to connect was not answered: its SYN was sent again.
    Retry = 4,
    /// An attempt to connect has failed before anything was sent.
    Unsent = 5,
}

/// How the owner of an endpoint was found: by which act of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OwnerBy {
    /// No process was seen to act on the endpoint, nor to hold it: pid is 0.
    Unknown = 0,
    /// It called connect.
    Connect = 1,
    /// It called accept.
    Accept = 2,
    /// It called shutdown or close, or exited.
    Close = 3,
    /// It held the socket's inode open.
    Inode = 4,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// It is older than the probe, or a snapshot.
    Unknown = 0,
    /// This end.
    Connected = 1,
    /// The other end.
    Accepted = 2,
}

/// What is known of the begin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// When it was. Also of what is no connection, and of snapshots.
    Seen,
    /// It was before the probe's.
    Older,
    /// Nothing: it may be older than the probe, or the table of owners had no place for it.
    Unknown,
}

/// How a connection has ended that was established.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// It is not known; or there is none to be told of.
    #[default]
    Unknown = 0,
    /// Both ends have closed it.
    Orderly = 1,
    /// This end has closed it, and the peer has acknowledged that; what the peer did after the kernel had let go of the socket is not
    /// seen.
    HalfClosed = 2,
    /// The peer has reset it.
    ResetByPeer = 3,
    /// After this end had closed it: the peer has reset it, or this end has reset it because more data came.
    Reset = 4,
    /// This end's program has closed it and not read all data: the kernel resets it.
    Unread = 5,
    /// This end's program has closed it with a time to linger of 0 (`SO_LINGER`): a reset.
    Linger = 6,
    /// This end's program has dissolved it by connect to `AF_UNSPEC`, a reset; or taken it away by `TCP_REPAIR`, without one.
    Disconnected = 7,
    /// Its listener was closed before it was accepted: a reset.
    NotAccepted = 8,
    /// Ended from outside, as by `ss -K`: a reset, unless both ends had closed it.
    Aborted = 9,
    /// The peer has not acknowledged data, or the FIN, for too long, or this host could not send it.
    Unacknowledged = 10,
    /// The peer has not answered keepalives.
    Keepalive = 11,
    /// The peer could receive no more, and has not answered window probes.
    ClosedWindow = 12,
    /// Any of the last three, where the program has set a limit of its own (`TCP_USER_TIMEOUT`).
    UserTimeout = 13,
}

/// How an attempt to connect has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It has not failed, or there was none.
    None,
    /// For the reason in `error`; or, without one that is known, before anything was sent.
    Network,
    /// The program did not wait any longer.
    GivenUp,
}

/// Bytes that a command takes at most, without a terminating NUL.
pub const COMM_LEN: usize = 16;

/// Which groups of an event's fields are known. The numbers are those of `tcpevent.h`, which says more of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known(u32);

impl Known {
    /// `pid`, `comm` and `owner_by`.
    pub const OWNER: Self = Self(1);
    /// `uid`.
    pub const UID: Self = Self(2);
    /// `error`.
    pub const ERROR: Self = Self(4);
    /// `payload_received` and the other counters.
    pub const COUNTERS: Self = Self(8);
    /// `netns` and `cgroup`.
    pub const PLACE: Self = Self(16);
    /// `age_ns`, `establish_ns` and `direction`.
    pub const TIMES: Self = Self(32);
    /// `backlog`.
    pub const BACKLOG: Self = Self(64);

    /// All of them, or-ed.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether these are among them.
    pub const fn contains(self, groups: Self) -> bool {
        self.0 & groups.0 == groups.0
    }
}

impl BitOr for Known {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The user of an endpoint of which no user is known: no user has this ID (kernel: INVALID_UID).
pub const NO_USER: u32 = u32::MAX;

/// Connections that a listening socket has not handed over yet, or never will.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Those that wait to be accepted.
    pub waiting: u32,
    /// As many may wait, and one more: the lesser of what `listen` was told and `net.core.somaxconn`.
    pub most: u32,
    /// What was dropped so far, modulo 2^32: requests for connections, completed handshakes, segments that a filter has refused.
    pub dropped: u32,
    /// What was dropped since this watch's last snapshot of the socket; 0 in the first.
    pub newly_dropped: u32,
}

/// An event. [`Self::known`] says which fields tell something; those that do not are 0, and `uid` is [`NO_USER`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Wall clock, nanoseconds since 1970.
    pub time_ns: u64,
    /// The same moment by the monotonic clock.
    pub monotonic_ns: u64,
    /// The kernel's number of the socket.
    pub cookie: u64,
    /// ID of the socket's cgroup.
    pub cgroup: u64,
    /// Inode number of the socket.
    pub inode: u64,
    /// Time since the birth, on close and retry.
    pub age_ns: u64,
    /// From SYN_SENT to ESTABLISHED.
    pub establish_ns: u64,
    /// Payload received, without a FIN.
    pub payload_received: u64,
    /// Payload sent, once each byte.
    pub payload_sent: u64,
    /// Payload that the peer has acknowledged.
    pub payload_acked: u64,
    /// The kernel's counter of that name, as are all that follow up to `segs_retransmitted`.
    pub bytes_received: u64,
    /// With SYN and FIN.
    pub bytes_acked: u64,
    /// With retransmissions; `None` where the kernel does not count it.
    pub bytes_sent: Option<u64>,
    /// Of those, the retransmissions.
    pub bytes_retransmitted: u64,
    /// All segments sent.
    pub segs_out: u32,
    /// All segments received.
    pub segs_in: u32,
    /// Those that carried data.
    pub data_segs_out: u32,
    /// Those that carried data.
    pub data_segs_in: u32,
    /// Segments sent again.
    pub segs_retransmitted: u32,
    /// Smoothed round-trip time in microseconds.
    pub srtt_us: u32,
    /// Least round-trip time in microseconds.
    pub min_rtt_us: u32,
    /// In snapshots of listening sockets.
    pub backlog: Option<Backlog>,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Owner: thread group ID.
    pub pid: u32,
    /// Owner: user ID. That of the socket where no owner is known.
    pub uid: u32,
    /// Why the kernel has ended the connection, or what the network has answered so far: errno, positive.
    pub error: i32,
    /// In closes, how the connection has ended. Of an attempt that failed, `failure` and `error` say that.
    pub ending: Ending,
    /// Whether this is the end of an attempt that failed.
    pub failure: Failure,
    /// `error` is 0 for want of knowledge.
    pub(crate) error_unknown: bool,
    /// The connection's counters are not known.
    pub(crate) uncounted: bool,
    /// Whether the connection's begin was seen.
    pub begin: Begin,
    /// What the event stands for.
    pub kind: Kind,
    /// How the owner was found.
    pub owner_by: OwnerBy,
    /// Who opened the connection.
    pub direction: Direction,
    /// The state before (include/net/tcp_states.h).
    pub old_state: u8,
    /// The state from now on.
    pub new_state: u8,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
    /// Local address, network order; an IPv4 address fills the first 4 bytes.
    pub local_addr: [u8; 16],
    /// Remote address, likewise.
    pub remote_addr: [u8; 16],
    /// Command, padded with NULs.
    pub comm: [u8; COMM_LEN],
}

impl Event {
    /// Which of the fields tell something.
    pub fn known(&self) -> Known {
        let is_counted = matches!(self.kind, Kind::Close | Kind::Retry);
        let has_error = is_counted || self.kind == Kind::Unsent;
        let has_times = !matches!(self.kind, Kind::Snapshot | Kind::Unsent);
        let is_listener = self.old_state == state::LISTEN || self.new_state == state::LISTEN;
        [
            (self.owner_by != OwnerBy::Unknown, Known::OWNER),
            (self.uid != NO_USER, Known::UID),
            (has_error && !self.error_unknown, Known::ERROR),
            (self.kind == Kind::Snapshot || (is_counted && !self.uncounted), Known::COUNTERS),
            (self.netns != 0, Known::PLACE),
            (has_times && self.begin == Begin::Seen && !is_listener, Known::TIMES),
            (self.backlog.is_some(), Known::BACKLOG),
        ]
        .into_iter()
        .filter(|(is_known, _)| *is_known)
        .fold(Known(0), |known, (_, groups)| known | groups)
    }

    /// The address and port of this end.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.address(&self.local_addr), self.local_port)
    }

    /// The address and port of the other end; of a listening socket, unspecified and 0.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.address(&self.remote_addr), self.remote_port)
    }

    /// The owner's name, which is whatever its process says: escape it before it reaches a terminal.
    pub fn command(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.comm.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    /// When it happened.
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.time_ns)
    }

    fn address(&self, bytes: &[u8; 16]) -> IpAddr {
        if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = *bytes;
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(*bytes).into()
        }
    }

    /// An event of which nothing but its kind is known.
    pub const fn of(kind: Kind) -> Self {
        Self {
            time_ns: 0,
            monotonic_ns: 0,
            cookie: 0,
            cgroup: 0,
            inode: 0,
            age_ns: 0,
            establish_ns: 0,
            payload_received: 0,
            payload_sent: 0,
            payload_acked: 0,
            bytes_received: 0,
            bytes_acked: 0,
            bytes_sent: None,
            bytes_retransmitted: 0,
            segs_out: 0,
            segs_in: 0,
            data_segs_out: 0,
            data_segs_in: 0,
            segs_retransmitted: 0,
            srtt_us: 0,
            min_rtt_us: 0,
            backlog: None,
            netns: 0,
            pid: 0,
            uid: NO_USER,
            error: 0,
            failure: Failure::None,
            ending: Ending::Unknown,
            error_unknown: false,
            uncounted: false,
            begin: Begin::Seen,
            kind,
            owner_by: OwnerBy::Unknown,
            direction: Direction::Unknown,
            old_state: 0,
            new_state: 0,
            family: 0,
            local_port: 0,
            remote_port: 0,
            local_addr: [0; 16],
            remote_addr: [0; 16],
            comm: [0; COMM_LEN],
        }
    }

    /// Takes over what a connection has carried, payload aside.
    pub fn take_counters(&mut self, from: &Self) {
        self.bytes_received = from.bytes_received;
        self.bytes_acked = from.bytes_acked;
        self.bytes_sent = from.bytes_sent;
        self.bytes_retransmitted = from.bytes_retransmitted;
        self.segs_out = from.segs_out;
        self.segs_in = from.segs_in;
        self.data_segs_out = from.data_segs_out;
        self.data_segs_in = from.data_segs_in;
        self.segs_retransmitted = from.segs_retransmitted;
        self.srtt_us = from.srtt_us;
        self.min_rtt_us = from.min_rtt_us;
    }

    /// The table of owners has been full: what is not in it need not be older than the probe.
    pub fn doubt_begin(&mut self) {
        if self.begin == Begin::Older {
            self.begin = Begin::Unknown;
        }
    }
}

/// States of a TCP endpoint (include/net/tcp_states.h).
pub mod state {
    #![allow(missing_docs)]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A close of which everything is known.
    fn close() -> Event {
        Event { owner_by: OwnerBy::Connect, uid: 0, netns: 1, new_state: state::CLOSE, ..Event::of(Kind::Close) }
    }

    const ALL: Known = Known(63);

    #[test]
    fn each_group_is_known_or_not_by_itself() {
        for (event, unknown) in [
            (close(), 0),
            (Event { owner_by: OwnerBy::Unknown, ..close() }, Known::OWNER.bits()),
            (Event { uid: NO_USER, ..close() }, Known::UID.bits()),
            (Event { error_unknown: true, ..close() }, Known::ERROR.bits()),
            (Event { uncounted: true, ..close() }, Known::COUNTERS.bits()),
            (Event { netns: 0, ..close() }, Known::PLACE.bits()),
            (Event { begin: Begin::Older, ..close() }, Known::TIMES.bits()),
            (Event { begin: Begin::Unknown, ..close() }, Known::TIMES.bits()),
            (Event { kind: Kind::State, ..close() }, (Known::ERROR | Known::COUNTERS).bits()),
            (Event { kind: Kind::Snapshot, ..close() }, (Known::ERROR | Known::TIMES).bits()),
            (
                Event { kind: Kind::State, old_state: state::LISTEN, ..close() },
                (Known::ERROR | Known::COUNTERS | Known::TIMES).bits(),
            ),
        ] {
            assert_eq!(event.known().bits(), ALL.bits() & !unknown, "{event:#?}");
        }
        assert!(ALL.contains(Known::OWNER | Known::TIMES));
        assert!(!Known::OWNER.contains(Known::OWNER | Known::TIMES));
    }

    #[test]
    fn nothing_is_known_of_what_nothing_was_told() {
        assert_eq!(Event::of(Kind::State).known(), Known::TIMES);
        let mut event = Event { begin: Begin::Older, ..Event::of(Kind::State) };
        assert_eq!(event.known().bits(), 0);
        event.doubt_begin();
        assert_eq!(event.begin, Begin::Unknown);
    }
}
