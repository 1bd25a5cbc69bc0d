//! The constants and structures of `include/tcpevent.h`, which is generated from this file and from `functions.rs`; and how those
//! that a program reads are filled.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_void};

use std::mem::size_of;

use crate::api::engine::WatchStatistics;
use crate::config::Rung;
use crate::event::{Begin, Direction, Ending, Event, Failure, Kind, Known, OwnerBy};

/// A handle: a watch on the TCP connections of this host, from `tcpevent_open` to `tcpevent_close`. Opaque, and not a memory
/// address: any value that is not an open handle is recognised as such (-EBADF).
pub struct tcpevent_watch(());

/// Every change of a connection's state (kernel: tcp_set_state), closes included, and of listening sockets.
pub const TCPEVENT_EVENTS_STATES: u32 = 1;
/// Connections that end, each with its totals.
pub const TCPEVENT_EVENTS_CLOSES: u32 = 2;
/// All open sockets of this network namespace, at regular intervals (kernel: sock_diag).
pub const TCPEVENT_EVENTS_SNAPSHOTS: u32 = 4;

/// Attempts to connect that nobody answers, each time the kernel sends the SYN again (kernel: tcp_retransmit_skb): for the first
/// time about a second after the first SYN. Not told by the plain tracepoint, nor before Linux 5.8: a line of the log says so.
pub const TCPEVENT_EVENTS_RETRIES: u32 = 8;
/// Attempts to connect that fail before anything is sent, with the errno that the program gets: no route, a security module or a
/// cgroup's program that says no, no local port or address. Such an attempt is told as this instead of as a close (with
/// TCPEVENT_EVENTS_STATES, what changes the socket's state is told as that). Not told by the
/// plain tracepoint, nor before Linux 5.8. Where the kernel has no trampolines, only the system call connect is told of, and each
/// system call of the host takes some 60 ns longer while the watch is open. A line of the log says so.
pub const TCPEVENT_EVENTS_UNSENT: u32 = 16;

/// The first of the following probes that works.
pub const TCPEVENT_PROBE_AUTO: u32 = 0;
/// A kprobe on tcp_set_state.
pub const TCPEVENT_PROBE_KPROBE: u32 = 1;
/// The typed tracepoint inet_sock_set_state.
pub const TCPEVENT_PROBE_TP_BTF: u32 = 2;
/// The plain tracepoint of the same name, for kernels without type information. It knows less: see docs/kernels.md.
pub const TCPEVENT_PROBE_TRACEPOINT: u32 = 3;

/// A state has changed.
pub const TCPEVENT_KIND_STATE: u8 = 1;
/// A connection, or the attempt at one, has ended.
pub const TCPEVENT_KIND_CLOSE: u8 = 2;
/// A socket was found open.
pub const TCPEVENT_KIND_SNAPSHOT: u8 = 3;
/// A SYN was sent again: `segs_retransmitted` says how many times it has been so far, `segs_out` how many were sent in all, and `age_ns` how
/// long the attempt has lasted. Both states are SYN_SENT.
pub const TCPEVENT_KIND_RETRY: u8 = 4;
/// An attempt has failed before anything was sent: `error` is what connect has returned. The remote address and port are those asked for,
/// as the program or a cgroup's program has left them (0 where they were none), the local ones what the socket was bound to. Both states
/// are CLOSE.
pub const TCPEVENT_KIND_UNSENT: u8 = 5;

/// Unknown which end opened the connection: it is older than the probe, or had no place in the table of owners. Also in
/// snapshots, and for listening sockets.
pub const TCPEVENT_DIRECTION_UNKNOWN: u8 = 0;
/// This end called connect.
pub const TCPEVENT_DIRECTION_CONNECTED: u8 = 1;
/// This end was listening.
pub const TCPEVENT_DIRECTION_ACCEPTED: u8 = 2;

/// There is no owner, or it is not known: `pid` is 0.
pub const TCPEVENT_OWNER_BY_UNKNOWN: u8 = 0;
/// The owner called connect.
pub const TCPEVENT_OWNER_BY_CONNECT: u8 = 1;
/// The owner called accept.
pub const TCPEVENT_OWNER_BY_ACCEPT: u8 = 2;
/// The owner called shutdown or close, or exited.
pub const TCPEVENT_OWNER_BY_CLOSE: u8 = 3;
/// The owner holds the socket open, or was the last to hold it; others ended the connection.
pub const TCPEVENT_OWNER_BY_INODE: u8 = 4;

/// It is not known how the connection has ended; or this is no close, or that of an attempt that failed (`error` and `flags` say
/// why). The plain tracepoint tells resets by the peer, and ends in order of the end that closes last.
pub const TCPEVENT_ENDING_UNKNOWN: u8 = 0;
/// Both ends have closed it.
pub const TCPEVENT_ENDING_ORDERLY: u8 = 1;
/// This end has closed it and the peer has acknowledged that. The kernel has let go of the socket then, which is no fault: most often
/// so of the end that closes first. What comes after that only the peer's event tells: that it has closed its end too, or has sent
/// data, which is answered by a reset. With a negative TCP_LINGER2, or too many orphaned sockets on the host, the kernel has reset
/// it.
pub const TCPEVENT_ENDING_HALF_CLOSED: u8 = 2;
/// The peer has reset it, or something on the way between (`error` is ECONNRESET, or EPIPE where the peer had closed its end
/// before). With a `payload_received` of 0 it has done so before it had answered anything.
pub const TCPEVENT_ENDING_RESET_BY_PEER: u8 = 3;
/// Reset after this end had closed it, or shut it down for reading too: by the peer, or by this end because more data came.
pub const TCPEVENT_ENDING_RESET: u8 = 4;
/// Reset by this end: its program has closed it, or exited, and not read all data.
pub const TCPEVENT_ENDING_UNREAD: u8 = 5;
/// Reset by this end: its program has closed it with a time to linger of 0 (SO_LINGER).
pub const TCPEVENT_ENDING_LINGER: u8 = 6;
/// Reset by this end: its program has dissolved it, by connect to AF_UNSPEC. Also a connection that was taken away by TCP_REPAIR,
/// of which the peer is told nothing.
pub const TCPEVENT_ENDING_DISCONNECTED: u8 = 7;
/// Reset by this end: its listening socket was closed before the connection was accepted.
pub const TCPEVENT_ENDING_NOT_ACCEPTED: u8 = 8;
/// Ended from outside of its program (ECONNABORTED), as `ss -K` does: this end resets it, unless both ends had closed it.
pub const TCPEVENT_ENDING_ABORTED: u8 = 9;
/// Timed out: the peer has not acknowledged data, or the end of data; or this host could not send it. `error` is ETIMEDOUT, or what
/// the network has said meanwhile; so for the following ones.
pub const TCPEVENT_ENDING_UNACKNOWLEDGED: u8 = 10;
/// Timed out: the peer has not answered keepalives (SO_KEEPALIVE).
pub const TCPEVENT_ENDING_KEEPALIVE: u8 = 11;
/// Timed out: the peer could receive no more, and has not answered window probes; or, with no program left at this end, has answered
/// them for too long.
pub const TCPEVENT_ENDING_CLOSED_WINDOW: u8 = 12;
/// Timed out: any of the last three, where the program has set a limit of its own (TCP_USER_TIMEOUT).
pub const TCPEVENT_ENDING_USER_TIMEOUT: u8 = 13;

/// `pid`, `comm` and `owner_by` describe the endpoint's owner. If `pid` is 0 nevertheless, the process is invisible from this PID
/// namespace.
pub const TCPEVENT_KNOWN_OWNER: u32 = 1;
/// `uid` is the owner's, or without an owner the socket's. Otherwise it is UINT32_MAX.
pub const TCPEVENT_KNOWN_UID: u32 = 2;
/// `error` says how the connection ended, or why the attempt failed before a SYN, or in a retry, what the network has answered so far. Only
/// in these. The plain tracepoint sees received resets and no other error.
pub const TCPEVENT_KNOWN_ERROR: u32 = 4;
/// `payload_received` and all fields after it up to `min_rtt_us` describe what the connection carried. In closes,
/// snapshots and retries. The plain tracepoint does not learn the counters of failed attempts, of sockets that a process still holds, or of
/// other network namespaces, and cannot always tell connections with the same addresses and ports apart.
pub const TCPEVENT_KNOWN_COUNTERS: u32 = 8;
/// `netns` is the socket's network namespace. `cgroup` is its cgroup; 0 if it has none of version 2, and in snapshots before
/// Linux 5.7. The plain tracepoint knows neither, except in snapshots.
pub const TCPEVENT_KNOWN_PLACE: u32 = 16;
/// The start of the connection was seen: `age_ns` and `establish_ns` are right. Not in snapshots, nor for listening sockets,
/// connections older than the probe, and those that had no place in the table of owners (`lost_owners`).
pub const TCPEVENT_KNOWN_TIMES: u32 = 32;
/// `accept_queue` and all fields after it describe a listening socket. Only in snapshots.
pub const TCPEVENT_KNOWN_BACKLOG: u32 = 64;

/// The connection was never established: a close from SYN_SENT, or an attempt that failed before a SYN. `error` has the reason. If
/// it is known to be 0, without TCPEVENT_FLAG_GIVEN_UP, the kernel could not begin the attempt because no local port was free.
pub const TCPEVENT_FLAG_FAILED: u32 = 1;
/// With TCPEVENT_FLAG_FAILED: the program gave up, by close, shutdown or exit, before the network answered. A program's own time
/// limit looks like this. `error` is what the network had reported so far (an ICMP message that does not end an attempt by
/// itself), or 0. The plain tracepoint does not say it of attempts that end within 10 ms.
pub const TCPEVENT_FLAG_GIVEN_UP: u32 = 2;
/// The connection is older than the probe. Not set any more once the table of owners has been full (`lost_owners`): endpoints
/// missing from it may then be newer.
pub const TCPEVENT_FLAG_OLDER: u32 = 4;

/// Log level: warnings, that is loss or degraded operation.
pub const TCPEVENT_LOG_WARN: c_int = 1;
/// Log level: also what the library found and decided.
pub const TCPEVENT_LOG_INFO: c_int = 2;
/// Log level: everything, including libbpf's own messages.
pub const TCPEVENT_LOG_DEBUG: c_int = 3;

/// Receives a line of the library's log: its level (TCPEVENT_LOG_WARN and so on) and its text without a line end, valid during
/// the call. Called on the library's threads. It must return normally: an exception, longjmp or pthread_exit would end the
/// process. It must not call `tcpevent_close`.
pub type tcpevent_log = Option<unsafe extern "C" fn(context: *mut c_void, level: c_int, text: *const c_char)>;

/// What to watch, and how. Set `size`, and everything that you do not need to 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tcpevent_options {
    /// sizeof(struct tcpevent_options): tells the library which fields there are. A larger structure than it knows is accepted
    /// if the rest is 0.
    pub size: usize,
    /// TCPEVENT_EVENTS_STATES, TCPEVENT_EVENTS_CLOSES, TCPEVENT_EVENTS_SNAPSHOTS, TCPEVENT_EVENTS_RETRIES and
    /// TCPEVENT_EVENTS_UNSENT, or-ed; 0 for TCPEVENT_EVENTS_CLOSES.
    pub events: u32,
    /// TCPEVENT_PROBE_AUTO, or the only probe to try.
    pub probe: u32,
    /// How many unread events the queue holds, 1 to 1048576; 0 for 1024. Each takes some 300 bytes. When it is full, the oldest
    /// is dropped.
    pub queue_slots: u32,
    /// Interval between snapshots in milliseconds, 100 to 86400000; 0 for 6200.
    pub snapshot_interval_ms: u32,
    /// Selects connections; NULL for all. See `tcpevent_open`.
    pub filter: *const c_char,
    /// Path of a BTF file, or of an ELF file with a section .BTF, for kernels without their own type information; or NULL. A file
    /// that contradicts the kernel's own, or cannot be right, is refused (-EINVAL).
    pub btf_path: *const c_char,
    /// Receives the library's log; NULL for none. The library itself never writes anywhere.
    pub log: tcpevent_log,
    /// Passed to `log`.
    pub log_context: *mut c_void,
    /// The most verbose level passed to `log`; 0 for TCPEVENT_LOG_WARN.
    pub log_level: c_int,
    /// 0.
    pub reserved: c_int,
}

/// An event. Each describes one endpoint; a local connection produces two.
///
/// Numbers, ports included, are in host byte order; addresses are in network byte order. `known` says which groups of fields are
/// known. A field that is unknown, or that this kind of event does not have, is 0; except `uid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct tcpevent_event {
    /// Bytes of this structure that the library has filled: at most what `tcpevent_read` was told.
    pub size: u32,
    /// What has happened: TCPEVENT_KIND_STATE, _CLOSE, _SNAPSHOT, _RETRY or _UNSENT.
    pub kind: u8,
    /// The state before (kernel: include/net/tcp_states.h), which `tcpevent_state_name` names. In snapshots and retries it is the
    /// same as `new_state`.
    pub old_state: u8,
    /// The state from now on.
    pub new_state: u8,
    /// Who opened the connection: TCPEVENT_DIRECTION_CONNECTED, _ACCEPTED or _UNKNOWN.
    pub direction: u8,
    /// Wall-clock time, in nanoseconds since 1970-01-01 UTC.
    pub time_ns: u64,
    /// The same moment by CLOCK_MONOTONIC, in nanoseconds: to measure the time between events.
    pub monotonic_ns: u64,
    /// The kernel's own number of the socket (SO_COOKIE), the same in all events of an endpoint, and not used again before
    /// the next boot. 0 if the kernel had assigned none: with a kprobe, for connections older than the probe; before Linux
    /// 5.12, or with a kprobe and a BTF file, until a program asks for it.
    pub cookie: u64,
    /// ID of the cgroup (version 2) in which the socket was created: the inode number of its directory.
    pub cgroup: u64,
    /// Inode number of the socket, as in /proc/PID/fd; 0 once or while no process holds it.
    pub inode: u64,
    /// Inode number of the network namespace, as in /proc/PID/ns/net.
    pub netns: u32,
    /// The owner's process ID (thread group), as the watching process sees it, in its own PID namespace. 0 if there is no
    /// owner, none yet, or it cannot be seen from there; `comm` and `uid` are filled in even then.
    pub pid: u32,
    /// The owner's real user ID: for a set-user-ID program, that of the user who started it. Without an owner, that of the
    /// socket: of its creator, with effective rights. UINT32_MAX, which is no user's, if neither is known.
    pub uid: u32,
    /// Which of the other fields are known: TCPEVENT_KNOWN_OWNER and the others, or-ed.
    pub known: u32,
    /// TCPEVENT_FLAG_FAILED and the others, or-ed.
    pub flags: u32,
    /// In closes: why the kernel has ended the connection, as a positive errno such as ECONNREFUSED, ETIMEDOUT, ECONNRESET or
    /// EHOSTUNREACH (sock.sk_err); 0 for an orderly end, or one by the program itself. In retries: what an ICMP message has said of
    /// the attempt so far (sock.sk_err_soft), or 0, as where the program has asked for it (SO_ERROR). Of an attempt that failed before
    /// a SYN: what connect has returned.
    pub error: i32,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// Local port; 0 before one is chosen (at SYN_SENT).
    pub local_port: u16,
    /// Remote port; 0 for a listening socket.
    pub remote_port: u16,
    /// How the owner was found: TCPEVENT_OWNER_BY_CONNECT or another of those.
    pub owner_by: u8,
    /// In closes: how the connection has ended, TCPEVENT_ENDING_ORDERLY or another of those.
    pub ending: u8,
    /// Local address in network byte order; an IPv4 address fills the first 4 bytes.
    pub local_addr: [u8; 16],
    /// Remote address, in the same form.
    pub remote_addr: [u8; 16],
    /// Name (comm) of the owner's thread that acted, NUL-terminated. A process chooses its own name: it may contain any
    /// bytes.
    pub comm: [c_char; 16],
    /// In closes and retries: nanoseconds since the call of connect, or for an accepted connection since the end of the handshake.
    pub age_ns: u64,
    /// From ESTABLISHED on: nanoseconds from SYN_SENT to ESTABLISHED; 0 for an accepted connection.
    pub establish_ns: u64,
    /// Payload received in order, in bytes, without SYN and FIN. This and all fields behind it up to `min_rtt_us`: in closes,
    /// snapshots and retries.
    pub payload_received: u64,
    /// Payload sent, in bytes, without SYN, FIN and retransmissions.
    pub payload_sent: u64,
    /// Payload that the peer has acknowledged, in bytes.
    pub payload_acked: u64,
    /// The kernel's own count (tcp_sock.bytes_received): with the peer's FIN.
    pub bytes_received: u64,
    /// The kernel's own count (tcp_sock.bytes_acked): with the initiator's SYN and this end's FIN.
    pub bytes_acked: u64,
    /// The kernel's own count (tcp_sock.bytes_sent): with retransmissions. 0 before Linux 4.19.
    pub bytes_sent: u64,
    /// Payload sent again, in bytes (tcp_sock.bytes_retrans). 0 before Linux 4.19.
    pub bytes_retransmitted: u64,
    /// Segments sent again, SYNs included (tcp_sock.total_retrans).
    pub segs_retransmitted: u32,
    /// All segments sent (tcp_sock.segs_out).
    pub segs_out: u32,
    /// All segments received (tcp_sock.segs_in).
    pub segs_in: u32,
    /// Segments sent that carried data (tcp_sock.data_segs_out).
    pub data_segs_out: u32,
    /// Segments received that carried data (tcp_sock.data_segs_in).
    pub data_segs_in: u32,
    /// Smoothed round-trip time, in microseconds (tcp_sock.srtt_us / 8).
    pub srtt_us: u32,
    /// Recent minimum of the round-trip time, in microseconds (tcp_sock.rtt_min).
    pub min_rtt_us: u32,
    /// 0.
    pub reserved2: u32,
    /// Connections that wait to be accepted (sock.sk_ack_backlog). This and all fields behind it: in snapshots of listening
    /// sockets.
    pub accept_queue: u32,
    /// How many connections may wait (sock.sk_max_ack_backlog): the lesser of what `listen` was told and net.core.somaxconn. The
    /// kernel lets one more wait, and drops what comes then.
    pub accept_queue_limit: u32,
    /// What this socket has dropped so far (sock.sk_drops), modulo 2^32: requests for connections, handshakes that their peers had
    /// completed, segments that a filter has refused. Peers that want a connection try again.
    pub dropped: u32,
    /// What it has dropped since this handle's last snapshot of the socket; 0 in the first one.
    pub newly_dropped: u32,
}

/// What a handle has seen, and every way it can lose an event.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct tcpevent_statistics {
    /// sizeof(struct tcpevent_statistics), set by the caller. The library sets it to the bytes it has filled.
    pub size: usize,
    /// The probe in use: TCPEVENT_PROBE_KPROBE, _TP_BTF or _TRACEPOINT; 0 where none is needed (snapshots only).
    pub probe: u32,
    /// Events that the queue can hold.
    pub queue_slots: u32,
    /// Events in it now.
    pub queued: u64,
    /// Events that `tcpevent_read` has returned.
    pub delivered: u64,
    /// State events that were queued, or dropped by the full queue.
    pub states: u64,
    /// Closes that were queued, or dropped.
    pub closes: u64,
    /// Snapshots of sockets that were queued, or dropped.
    pub snapshots: u64,
    /// Rounds of snapshots.
    pub sweeps: u64,
    /// State events that the full queue dropped.
    pub shed_states: u64,
    /// Closes that the full queue dropped.
    pub shed_closes: u64,
    /// Snapshots that the full queue dropped.
    pub shed_snapshots: u64,
    /// Events for which the ring between kernel and library had no room.
    pub lost_records: u64,
    /// Endpoints for which the table of owners had no room: their owner is looked up by inode, and their age is unknown (no
    /// TCPEVENT_KNOWN_TIMES).
    pub lost_owners: u64,
    /// Runs of the probe that the kernel skipped because it was already running on the same CPU.
    pub skipped_runs: u64,
    /// Events among those that a second program saw and reported.
    pub recovered: u64,
    /// Records that could not be decoded.
    pub undecoded: u64,
    /// Closes without a known owner.
    pub unowned: u64,
    /// Endpoints in the table of owners now.
    pub tracked: u64,
    /// Places in that table; `tracked` never exceeds it. From Linux 6.2 on the table consists of sets, of which some are full before
    /// others: from about two thirds of this number on.
    pub tracked_most: u64,
    /// Retries that were queued, or dropped.
    pub retries: u64,
    /// Retries that the full queue dropped.
    pub shed_retries: u64,
    /// Attempts that failed before a SYN and were queued, or dropped.
    pub unsent: u64,
    /// Such attempts that the full queue dropped.
    pub shed_unsent: u64,
}

impl tcpevent_event {
    /// An event for a caller whose structure has `room` bytes.
    pub fn from_event(event: &Event, room: usize) -> Self {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let backlog = event.backlog.unwrap_or_default();
        let mut comm = [0; 16];
        // The last byte stays 0: the kernel's names are shorter.
        for (to, from) in comm[..15].iter_mut().zip(event.comm) {
            *to = c_char::from_ne_bytes([from]);
        }
        Self {
            size: u32::try_from(room.min(size_of::<Self>())).unwrap_or(0),
            kind: event.kind as u8,
            old_state: event.old_state,
            new_state: event.new_state,
            direction: event.direction as u8,
            time_ns: event.time_ns,
            monotonic_ns: event.monotonic_ns,
            cookie: event.cookie,
            cgroup: event.cgroup,
            inode: event.inode,
            netns: event.netns,
            pid: event.pid,
            uid: event.uid,
            known: event.known().bits(),
            flags: flag(event.failure != Failure::None, TCPEVENT_FLAG_FAILED)
                | flag(event.failure == Failure::GivenUp, TCPEVENT_FLAG_GIVEN_UP)
                | flag(event.begin == Begin::Older, TCPEVENT_FLAG_OLDER),
            error: event.error,
            family: event.family,
            local_port: event.local_port,
            remote_port: event.remote_port,
            owner_by: event.owner_by as u8,
            ending: event.ending as u8,
            local_addr: event.local_addr,
            remote_addr: event.remote_addr,
            comm,
            age_ns: event.age_ns,
            establish_ns: event.establish_ns,
            payload_received: event.payload_received,
            payload_sent: event.payload_sent,
            payload_acked: event.payload_acked,
            bytes_received: event.bytes_received,
            bytes_acked: event.bytes_acked,
            bytes_sent: event.bytes_sent.unwrap_or(0),
            bytes_retransmitted: event.bytes_retransmitted,
            segs_retransmitted: event.segs_retransmitted,
            segs_out: event.segs_out,
            segs_in: event.segs_in,
            data_segs_out: event.data_segs_out,
            data_segs_in: event.data_segs_in,
            srtt_us: event.srtt_us,
            min_rtt_us: event.min_rtt_us,
            reserved2: 0,
            accept_queue: backlog.waiting,
            accept_queue_limit: backlog.most,
            dropped: backlog.dropped,
            newly_dropped: backlog.newly_dropped,
        }
    }
}

impl From<WatchStatistics> for tcpevent_statistics {
    fn from(of: WatchStatistics) -> Self {
        let counters = of.counters;
        Self {
            size: size_of::<Self>(),
            probe: match of.rung {
                None => TCPEVENT_PROBE_AUTO,
                Some(Rung::Kprobe) => TCPEVENT_PROBE_KPROBE,
                Some(Rung::TpBtf) => TCPEVENT_PROBE_TP_BTF,
                Some(Rung::Tracepoint) => TCPEVENT_PROBE_TRACEPOINT,
            },
            queue_slots: u32::try_from(of.queue_slots).unwrap_or(u32::MAX),
            queued: of.queued as u64,
            delivered: of.delivered,
            states: counters.states,
            closes: counters.closes,
            snapshots: counters.snapshots,
            sweeps: counters.sweeps,
            shed_states: counters.shed.states,
            shed_closes: counters.shed.closes,
            shed_snapshots: counters.shed.snapshots,
            lost_records: counters.lost_records,
            lost_owners: counters.lost_owners,
            skipped_runs: counters.skipped_runs,
            recovered: counters.recovered,
            undecoded: counters.undecoded,
            unowned: counters.unowned,
            tracked: of.tracked,
            tracked_most: of.most_tracked,
            retries: counters.retries,
            shed_retries: counters.shed.retries,
            unsent: counters.unsent,
            shed_unsent: counters.shed.unsent,
        }
    }
}

// The header has numbers, and so have the library's own types: they are the same, or this does not compile.
const _: () = {
    assert!(TCPEVENT_KIND_STATE == Kind::State as u8);
    assert!(TCPEVENT_KIND_CLOSE == Kind::Close as u8);
    assert!(TCPEVENT_KIND_SNAPSHOT == Kind::Snapshot as u8);
    assert!(TCPEVENT_KIND_RETRY == Kind::Retry as u8);
    assert!(TCPEVENT_KIND_UNSENT == Kind::Unsent as u8);
    assert!(TCPEVENT_DIRECTION_UNKNOWN == Direction::Unknown as u8);
    assert!(TCPEVENT_DIRECTION_CONNECTED == Direction::Connected as u8);
    assert!(TCPEVENT_DIRECTION_ACCEPTED == Direction::Accepted as u8);
    assert!(TCPEVENT_OWNER_BY_UNKNOWN == OwnerBy::Unknown as u8);
    assert!(TCPEVENT_OWNER_BY_CONNECT == OwnerBy::Connect as u8);
    assert!(TCPEVENT_OWNER_BY_ACCEPT == OwnerBy::Accept as u8);
    assert!(TCPEVENT_OWNER_BY_CLOSE == OwnerBy::Close as u8);
    assert!(TCPEVENT_OWNER_BY_INODE == OwnerBy::Inode as u8);
    assert!(TCPEVENT_ENDING_UNKNOWN == Ending::Unknown as u8);
    assert!(TCPEVENT_ENDING_ORDERLY == Ending::Orderly as u8);
    assert!(TCPEVENT_ENDING_HALF_CLOSED == Ending::HalfClosed as u8);
    assert!(TCPEVENT_ENDING_RESET_BY_PEER == Ending::ResetByPeer as u8);
    assert!(TCPEVENT_ENDING_RESET == Ending::Reset as u8);
    assert!(TCPEVENT_ENDING_UNREAD == Ending::Unread as u8);
    assert!(TCPEVENT_ENDING_LINGER == Ending::Linger as u8);
    assert!(TCPEVENT_ENDING_DISCONNECTED == Ending::Disconnected as u8);
    assert!(TCPEVENT_ENDING_NOT_ACCEPTED == Ending::NotAccepted as u8);
    assert!(TCPEVENT_ENDING_ABORTED == Ending::Aborted as u8);
    assert!(TCPEVENT_ENDING_UNACKNOWLEDGED == Ending::Unacknowledged as u8);
    assert!(TCPEVENT_ENDING_KEEPALIVE == Ending::Keepalive as u8);
    assert!(TCPEVENT_ENDING_CLOSED_WINDOW == Ending::ClosedWindow as u8);
    assert!(TCPEVENT_ENDING_USER_TIMEOUT == Ending::UserTimeout as u8);
    assert!(TCPEVENT_KNOWN_OWNER == Known::OWNER.bits());
    assert!(TCPEVENT_KNOWN_UID == Known::UID.bits());
    assert!(TCPEVENT_KNOWN_ERROR == Known::ERROR.bits());
    assert!(TCPEVENT_KNOWN_COUNTERS == Known::COUNTERS.bits());
    assert!(TCPEVENT_KNOWN_PLACE == Known::PLACE.bits());
    assert!(TCPEVENT_KNOWN_TIMES == Known::TIMES.bits());
};
