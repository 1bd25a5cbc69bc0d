//! The constants and structures of `include/tcpevent.h`, which is generated from this file and from `functions.rs`.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_void};

use crate::event::{Direction, Kind, Origin};

/// A watch on the TCP connections of this host: what `tcpevent_open` gives and `tcpevent_close` ends. Opaque, and no
/// memory address: a handle that is closed, or none at all, is told from an open one (-EBADF).
pub struct tcpevent(());

/// Events: every change of a connection's state (kernel: tcp_set_state), closes among them, and of listening sockets.
pub const TCPEVENT_STATES: u32 = 1;
/// Events: connections that end, each with its totals.
pub const TCPEVENT_CLOSES: u32 = 2;
/// Events: all open sockets of this network namespace, again and again (kernel: sock_diag).
pub const TCPEVENT_SNAPSHOTS: u32 = 4;

/// The probe: the first of the others that works.
pub const TCPEVENT_PROBE_AUTO: u32 = 0;
/// The probe: a kprobe on tcp_set_state.
pub const TCPEVENT_PROBE_KPROBE: u32 = 1;
/// The probe: the typed tracepoint inet_sock_set_state.
pub const TCPEVENT_PROBE_TP_BTF: u32 = 2;
/// The probe: the plain tracepoint of the same name, for kernels without type information. It knows less: see docs/kernels.md.
pub const TCPEVENT_PROBE_TRACEPOINT: u32 = 3;

/// An event's kind: a state has changed.
pub const TCPEVENT_KIND_STATE: u8 = 1;
/// An event's kind: a connection, or the attempt at one, has ended.
pub const TCPEVENT_KIND_CLOSE: u8 = 2;
/// An event's kind: a socket was found open.
pub const TCPEVENT_KIND_SNAPSHOT: u8 = 3;

/// A connection's direction is not known: it is older than the probe, or had no place in the table of owners.
pub const TCPEVENT_DIRECTION_UNKNOWN: u8 = 0;
/// This end has called connect.
pub const TCPEVENT_DIRECTION_CONNECTED: u8 = 1;
/// This end was listening.
pub const TCPEVENT_DIRECTION_ACCEPTED: u8 = 2;

/// The owner is not known for sure: pid is 0, or that of the likeliest process.
pub const TCPEVENT_ORIGIN_GUESS: u8 = 0;
/// The owner has called connect.
pub const TCPEVENT_ORIGIN_CONNECT: u8 = 1;
/// The owner has called accept.
pub const TCPEVENT_ORIGIN_ACCEPT: u8 = 2;
/// The owner has called shutdown or close, or has exited.
pub const TCPEVENT_ORIGIN_CLOSE: u8 = 3;
/// The owner holds the socket open, or was the last to hold it: the connection was ended by others.
pub const TCPEVENT_ORIGIN_INODE: u8 = 4;

/// A flag of closes: the connection was never established (SYN_SENT to CLOSE). `error` has the reason; 0 with neither
/// TCPEVENT_GIVEN_UP nor TCPEVENT_ERROR_UNKNOWN is one that the kernel could not even begin (no local port was free).
pub const TCPEVENT_FAILED: u32 = 1;
/// A flag beside TCPEVENT_FAILED: the program has given up, by close, shutdown or exit. `error` is what the network had
/// answered until then (an ICMP message that does not end an attempt by itself), or 0.
pub const TCPEVENT_GIVEN_UP: u32 = 2;
/// A flag: the connection is older than the probe, so that its age and time to establish are not known.
pub const TCPEVENT_OLDER: u32 = 4;
/// A flag of closes: `error` is 0 because it is not known. With a plain tracepoint, which tells resets that have been
/// received and nothing else. With it an attempt that ends within 10 ms is not said to be given up.
pub const TCPEVENT_ERROR_UNKNOWN: u32 = 8;
/// A flag of closes: what the connection has carried is not known, and 0. With a plain tracepoint: the kernel tells it
/// later, and not of attempts that failed, of sockets that a process still holds, of other network namespaces, and not
/// surely where several connections have had the same addresses and ports.
pub const TCPEVENT_UNCOUNTED: u32 = 16;
/// A flag: the connection is older than the probe, or the table of owners had no place for it (`lost_owners`): its age, its
/// time to establish and its direction are not known, nor which of the two it is. In place of TCPEVENT_OLDER, from the
/// first such loss on.
pub const TCPEVENT_BEGIN_UNKNOWN: u32 = 32;

/// The least important lines that `tcpevent_options.log` gets: what was lost, or is not as asked for.
pub const TCPEVENT_LOG_WARN: c_int = 1;
/// And what was found and decided.
pub const TCPEVENT_LOG_INFO: c_int = 2;
/// And everything else, libbpf's own messages included.
pub const TCPEVENT_LOG_DEBUG: c_int = 3;

/// Takes a line of the library's log: its level (TCPEVENT_LOG_WARN and so on), and its text without a line end, which is
/// valid during the call. Called on threads of the library; it must return: not by an exception, nor by longjmp or
/// pthread_exit, which would end the process. It must not call `tcpevent_close`.
pub type tcpevent_log = Option<unsafe extern "C" fn(context: *mut c_void, level: c_int, text: *const c_char)>;

/// What to watch, and how. Set `size`, and all that is not needed to 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tcpevent_options {
    /// sizeof(struct tcpevent_options): so the library knows which fields there are. A greater one than the library
    /// knows is taken where all the rest is 0.
    pub size: usize,
    /// TCPEVENT_STATES, TCPEVENT_CLOSES and TCPEVENT_SNAPSHOTS, or-ed; 0 for TCPEVENT_CLOSES.
    pub events: u32,
    /// TCPEVENT_PROBE_AUTO, or the only probe to try.
    pub probe: u32,
    /// Events that the queue holds until they are read, 1 to 1048576; 0 for 1024. One takes some 280 bytes.
    pub queue_slots: u32,
    /// From snapshot to snapshot in milliseconds, 100 to 86400000; 0 for 6200.
    pub snapshot_interval_ms: u32,
    /// Which connections are of interest, or NULL for all: see `tcpevent_open`.
    pub filter: *const c_char,
    /// Path of a BTF file, or of an ELF file with a section .BTF, for a kernel without type information of its own; or NULL.
    /// One that differs from the kernel's own, or cannot be right, is refused (-EINVAL).
    pub btf_path: *const c_char,
    /// Takes the library's log, or NULL for none. The library itself writes nowhere.
    pub log: tcpevent_log,
    /// Passed to `log`.
    pub log_context: *mut c_void,
    /// The least important level that `log` is called for; 0 for TCPEVENT_LOG_WARN.
    pub log_level: c_int,
    /// 0.
    pub reserved: c_int,
}

/// An event. It stands for an endpoint: of a connection between two processes of one host, each end gives its own.
///
/// Numbers are in host byte order, ports too; addresses are in network byte order. What is not known is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tcpevent_event {
    /// Bytes of this structure that the library has filled: at most what `tcpevent_read` was told.
    pub size: u32,
    /// TCPEVENT_KIND_STATE, _CLOSE or _SNAPSHOT.
    pub kind: u8,
    /// The state before (include/net/tcp_states.h, `tcpevent_state_name`). In a snapshot the same as `new_state`.
    pub old_state: u8,
    /// The state from now on.
    pub new_state: u8,
    /// TCPEVENT_DIRECTION_CONNECTED, _ACCEPTED or _UNKNOWN. Not known in snapshots, and 0 for listening sockets.
    pub direction: u8,
    /// Wall-clock time, in nanoseconds since 1970-01-01 UTC.
    pub time_ns: u64,
    /// The same moment by CLOCK_MONOTONIC, in nanoseconds: for distances between events.
    pub monotonic_ns: u64,
    /// The kernel's own number of the socket (SO_COOKIE), the same in all events of an endpoint, never used twice until
    /// the next boot. 0 where the kernel had given none: with a kprobe, for connections older than the probe; before Linux
    /// 5.12, or with a kprobe by a BTF file, as long as nobody has asked for it.
    pub cookie: u64,
    /// ID of the cgroup (version 2) that the socket was made in; the inode number of its folder.
    pub cgroup: u64,
    /// Inode number of the socket, as in /proc/PID/fd; 0 once or while no process holds it.
    pub inode: u64,
    /// Inode number of the network namespace, as in /proc/PID/ns/net.
    pub netns: u32,
    /// The owner's process ID (thread group), as the watching process sees it: in its own PID namespace. 0 where there is
    /// none, or none yet, or the owner cannot be seen from there; comm and uid are told all the same.
    pub pid: u32,
    /// The owner's real user ID: of a set-user-ID program that of who has started it. Where there is no owner, that of the
    /// socket (of who made it, with the effective rights).
    pub uid: u32,
    /// TCPEVENT_FAILED and the others, or-ed.
    pub flags: u32,
    /// On close: why the kernel has ended the connection, as a positive errno: ECONNREFUSED, ETIMEDOUT, ECONNRESET,
    /// EHOSTUNREACH ... (sock.sk_err); 0 for an orderly end, one by the program itself, and with TCPEVENT_ERROR_UNKNOWN.
    pub error: i32,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// Local port; 0 where none is chosen yet (at the state SYN_SENT).
    pub local_port: u16,
    /// Remote port; 0 for a listening socket.
    pub remote_port: u16,
    /// How the owner was found: TCPEVENT_ORIGIN_CONNECT and the others.
    pub origin: u8,
    /// 0.
    pub reserved: [u8; 5],
    /// Local address in network byte order; an IPv4 address fills the first 4 bytes.
    pub local_addr: [u8; 16],
    /// Remote address, likewise.
    pub remote_addr: [u8; 16],
    /// Name (comm) of the owner's thread that acted, NUL-terminated. Any bytes: it is the process's own choice.
    pub comm: [c_char; 16],
    /// On close: time since connect was called, or since the handshake was complete for an accepted connection, in
    /// nanoseconds.
    pub age_ns: u64,
    /// From SYN_SENT to ESTABLISHED in nanoseconds, from that on; 0 for an accepted connection.
    pub establish_ns: u64,
    /// Payload received, in order, in bytes: without SYN and FIN. This and all that follows: on close and in snapshots.
    pub payload_received: u64,
    /// Payload sent, in bytes: without SYN, FIN and what was sent again.
    pub payload_sent: u64,
    /// Payload that the peer has acknowledged, in bytes.
    pub payload_acked: u64,
    /// The kernel's own count (tcp_sock.bytes_received): with the peer's FIN.
    pub bytes_received: u64,
    /// Likewise (tcp_sock.bytes_acked): with the opener's SYN and this end's FIN.
    pub bytes_acked: u64,
    /// Likewise (tcp_sock.bytes_sent): with what was sent again. 0 before Linux 4.19.
    pub bytes_sent: u64,
    /// Payload sent again, in bytes (tcp_sock.bytes_retrans). 0 before Linux 4.19.
    pub bytes_retransmitted: u64,
    /// Segments sent again, SYNs among them (tcp_sock.total_retrans).
    pub segs_retransmitted: u32,
    /// Segments sent, all of them (tcp_sock.segs_out).
    pub segs_out: u32,
    /// Segments received, all of them (tcp_sock.segs_in).
    pub segs_in: u32,
    /// Segments sent that carried data (tcp_sock.data_segs_out).
    pub data_segs_out: u32,
    /// Segments received that carried data (tcp_sock.data_segs_in).
    pub data_segs_in: u32,
    /// Smoothed round-trip time, in microseconds (tcp_sock.srtt_us / 8).
    pub srtt_us: u32,
    /// The least round-trip time of late, in microseconds (tcp_sock.rtt_min).
    pub min_rtt_us: u32,
    /// 0.
    pub reserved2: u32,
}

/// What a handle has seen, and every way in which an event can be lost.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct tcpevent_statistics {
    /// sizeof(struct tcpevent_statistics), set by the caller. The library sets it to the bytes it has filled.
    pub size: usize,
    /// The probe in force: TCPEVENT_PROBE_KPROBE, _TP_BTF or _TRACEPOINT; 0 where none is needed (snapshots only).
    pub probe: u32,
    /// Events that the queue can hold.
    pub queue_slots: u32,
    /// Events that are in it now.
    pub queued: u64,
    /// Events that `tcpevent_read` has handed out.
    pub delivered: u64,
    /// Changes of state that were queued, or dropped by the full queue.
    pub states: u64,
    /// Closes, likewise.
    pub closes: u64,
    /// Snapshots of sockets, likewise.
    pub snapshots: u64,
    /// Rounds of snapshots.
    pub sweeps: u64,
    /// Changes of state that the full queue dropped.
    pub shed_states: u64,
    /// Closes, likewise.
    pub shed_closes: u64,
    /// Snapshots, likewise.
    pub shed_snapshots: u64,
    /// Events that found the ring between kernel and library full.
    pub lost_records: u64,
    /// Endpoints that found the table of owners full: their owner is looked up by inode, their age is not known
    /// (TCPEVENT_BEGIN_UNKNOWN).
    pub lost_owners: u64,
    /// Runs of the probe that the kernel skipped, because it was running already on the same CPU.
    pub skipped_runs: u64,
    /// Events among those, which a second program saw and reported.
    pub recovered: u64,
    /// Records that could not be decoded.
    pub undecoded: u64,
    /// Closes without an owner that is known for sure.
    pub guesses: u64,
    /// Endpoints in the table of owners now.
    pub tracked: u64,
    /// Endpoints that the table has places for; `tracked` is never more. Where it is one of sets (Linux 6.2 on), some sets are full
    /// before all are: from two thirds of this number on.
    pub tracked_most: u64,
}

// The header has numbers, and so have the library's own types: they are the same, or this does not compile.
const _: () = {
    assert!(TCPEVENT_KIND_STATE == Kind::State as u8);
    assert!(TCPEVENT_KIND_CLOSE == Kind::Close as u8);
    assert!(TCPEVENT_KIND_SNAPSHOT == Kind::Snapshot as u8);
    assert!(TCPEVENT_DIRECTION_UNKNOWN == Direction::Unknown as u8);
    assert!(TCPEVENT_DIRECTION_CONNECTED == Direction::Connected as u8);
    assert!(TCPEVENT_DIRECTION_ACCEPTED == Direction::Accepted as u8);
    assert!(TCPEVENT_ORIGIN_GUESS == Origin::Guess as u8);
    assert!(TCPEVENT_ORIGIN_CONNECT == Origin::Connect as u8);
    assert!(TCPEVENT_ORIGIN_ACCEPT == Origin::Accept as u8);
    assert!(TCPEVENT_ORIGIN_CLOSE == Origin::Close as u8);
    assert!(TCPEVENT_ORIGIN_INODE == Origin::Inode as u8);
};
