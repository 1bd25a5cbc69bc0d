//! The `tcpevent_*` functions: the API for new programs. `include/tcpevent.h` is generated from this file.
//!
//! Each function is guard, check, call, convert. [`handle`] says what is behind a handle, [`watch`] does the work.
//!
//! [`handle`]: crate::api::handles::table
//! [`watch`]: crate::api::handles::watch
#![allow(non_camel_case_types)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::{self, size_of};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::boundary::guard;
use crate::api::classic;
use crate::api::handles::sized;
use crate::api::handles::table::{self, InUse, Waiting};
use crate::api::handles::watch::{Options, ReadEnd, Watch};
use crate::api::inet::inet_ntop;
use crate::api::statistics::WatchStatistics;
use crate::config::{DEFAULT_SLOTS, MOST_SLOTS, ProbeSettings, Rung, SWEEP_INTERVAL};
use crate::error::Error;
use crate::event::filter::Filter;
use crate::event::{Event, Failure};
use crate::probe;
use crate::queue::readiness::Waited;
use crate::sys::cancellation::{self, held_off};
use crate::sys::files;
use crate::sys::log::{self, Level, Logger};
use crate::sys::per_thread;

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
/// The probe: the plain tracepoint of the same name, for kernels without type information. It knows less: see README.md.
pub const TCPEVENT_PROBE_TRACEPOINT: u32 = 3;

/// An event's kind: a state has changed.
pub const TCPEVENT_KIND_STATE: u8 = 1;
/// An event's kind: a connection, or the attempt at one, has ended.
pub const TCPEVENT_KIND_CLOSE: u8 = 2;
/// An event's kind: a socket was found open.
pub const TCPEVENT_KIND_SNAPSHOT: u8 = 3;

/// A connection's direction is not known: it is older than the probe.
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
/// The owner holds the socket open.
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
    /// Path of a BTF file for a kernel without type information of its own, or NULL.
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
    /// Endpoints that found the map of owners full: their owner is looked up by inode, their age is not known.
    pub lost_owners: u64,
    /// Runs of the probe that the kernel skipped, because it was running already on the same CPU.
    pub skipped_runs: u64,
    /// Events among those, which a second program saw and reported.
    pub recovered: u64,
    /// Records that could not be decoded.
    pub undecoded: u64,
    /// Closes without an owner that is known for sure.
    pub guesses: u64,
    /// Endpoints in the map of owners now.
    pub tracked: u64,
    /// Endpoints that the map can hold.
    pub tracked_most: u64,
}

/// Starts watching. Returns when every connection from then on is seen, or with the error.
///
/// `options`: read during the call only; NULL for closes of all connections. `handle`: gets the handle, to be ended by
/// `tcpevent_close`. Each handle has a probe, a queue and threads of its own; a process can have 64.
///
/// `options->filter` is a text of words, `dst 10.0.0.0/8,2001:db8::/32 dport 443 failed` for example. An event must
/// fit all that is named; of several values, with commas between them or the word given again, any one will do:
///
///     src, dst      local, remote addresses or prefixes. An IPv4 one fits the ::ffff: form too, ::/0 no IPv4
///     sport, dport  local, remote ports, or ranges as in 8000-8999
///     family        inet or inet6
///     pid, uid      one process ID, user ID, of the owner. While no owner is known, that is 0 and the socket's
///     netns         one network namespace: its inode number, self, or a path such as /run/netns/NAME
///     cgroup        one cgroup: its ID, or its folder below /sys/fs/cgroup. Those in it do not count
///     failed        (alone) only closes of connections that were never established
///
/// The kernel leaves out what does not fit, so that it costs next to nothing; but for snapshots, and for owners that are
/// found by inode.
///
/// Returns 0, or a negative errno; `tcpevent_last_error` has the text, with the remedy: -EINVAL (an option or the filter,
/// the text says which word), -E2BIG (options that this version does not know), -EPERM (a missing capability), -EOPNOTSUPP
/// (the kernel has no probe that works), -EMFILE (handles or descriptors are used up), -EAGAIN (no thread to be had),
/// -ENOMEM.
///
/// Thread-safe; not for signal handlers. Does not read the environment. In a forked child all handles are closed.
///
/// # Safety
///
/// `options` is NULL or valid for the bytes that its `size` says, its pointers are NULL or valid, and `handle` is NULL or
/// valid for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_open(options: *const tcpevent_options, handle: *mut *mut tcpevent) -> c_int {
    call("tcpevent_open", || {
        if handle.is_null() {
            return Err(Error::argument("handle is NULL: it must point to where the handle is to go"));
        }
        // SAFETY: the caller's promise.
        let options = unsafe { read_options(options)? };
        let opened = table::insert(|| Watch::open(options))?;
        // SAFETY: the caller's promise.
        unsafe { handle.write(ptr::without_provenance_mut(opened)) };
        Ok(0)
    })
}

/// Ends a handle: detaches the probe, stops the threads, frees the queue with all events in it. A `tcpevent_read` that
/// waits in another thread returns -EBADF. Returns once all is over, some 100 ms later.
///
/// Returns 0, or -EBADF: `handle` is not open (a second close does no harm).
///
/// Thread-safe; not for signal handlers, nor for `tcpevent_options.log`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_close(handle: *mut tcpevent) -> c_int {
    call("tcpevent_close", || table::remove(handle.addr()).map(|()| 0))
}

/// A descriptor for poll, select, epoll: readable while there are events, and after `tcpevent_wake`. It may now and then be
/// so without one: read with a timeout of 0. It stays the library's: do not read or close it. Not valid after
/// `tcpevent_close`.
///
/// Returns the descriptor, or -EBADF.
///
/// Thread-safe; not for signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_fd(handle: *mut tcpevent) -> c_int {
    call("tcpevent_fd", || Ok(table::get(handle.addr())?.fd()))
}

/// Takes up to `count` events from the queue, oldest first.
///
/// `events`: an array of `count` structures of `event_size` bytes each, sizeof(struct tcpevent_event): a program that was
/// compiled with a shorter or longer one gets as much as fits, and 0 behind that. `timeout_ms`: how long to wait for the
/// first event; 0: not at all, -1: for ever.
///
/// Returns the number of events; 0 when the time is over. -EINTR: `tcpevent_wake` was called, or a signal handler has run
/// while it waited. -EBADF: `handle` is not open, or was closed meanwhile. -EINVAL: an argument. -EIO: the probe has failed,
/// or the program has closed descriptors of the handle (close_range, say), and all events before that were read.
///
/// Thread-safe: each event goes to one reader. Not for signal handlers. While it waits it is a cancellation point
/// (pthread_cancel), and a signal handler may end its thread (pthread_exit) or jump out of it (siglongjmp): the handle stays
/// usable, but after a jump `tcpevent_close` takes 2 seconds more, and its memory stays taken.
///
/// # Safety
///
/// `events` is NULL or valid for `count` times `event_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_read(
    handle: *mut tcpevent,
    events: *mut tcpevent_event,
    event_size: usize,
    count: usize,
    timeout_ms: c_int,
) -> c_int {
    let held = cancellation::hold();
    let reading = Reading { handle: handle.addr(), events, event_size, count };
    let mut time = TimeLeft { timeout_ms, until: None };
    let mut waited = None;
    let result = loop {
        let mut wait = None;
        let result = call_held("tcpevent_read", || reading.step(&mut time, waited, &mut wait));
        let Some((waiting, fd, left)) = wait else {
            break result;
        };
        waited = Some((waiting, held.poll(fd, left)));
    };
    held.release();
    result
}

/// What is to be read.
struct Reading {
    handle: usize,
    events: *mut tcpevent_event,
    event_size: usize,
    count: usize,
}

/// How long to wait for it.
struct TimeLeft {
    timeout_ms: c_int,
    /// Set by the first wait that has an end.
    until: Option<Instant>,
}

/// A wait: for what, and how long at most.
type Wait = (Waiting, RawFd, Option<Duration>);

impl Reading {
    /// Reads what there is. Where there is nothing, it says what to wait for, and is to be called again with what came of that.
    fn step(
        &self,
        time: &mut TimeLeft,
        waited: Option<(Waiting, c_int)>,
        wait: &mut Option<Wait>,
    ) -> Result<c_int, Error> {
        let watch = match waited {
            Some((waiting, _)) => waiting.end(),
            None => self.check(time)?,
        };
        match waited.map(|(_, result)| Waited::of(result)) {
            Some(Waited::TimedOut) => return Ok(0),
            Some(Waited::Interrupted) => return Ok(watch.interrupted().result()),
            Some(Waited::Ready) | None => {}
        }
        let mut to: *mut u8 = self.events.cast();
        let take = |event: &Event| {
            // SAFETY: the caller's promise; it is called `count` times at most.
            unsafe {
                sized::write(&tcpevent_event::from_event(event, self.event_size), to, self.event_size);
                to = to.add(self.event_size);
            }
        };
        if let Some(end) = watch.read(self.count.min(MOST_READ), take)? {
            return Ok(end.result());
        }
        if waited.is_some() || !watch.may_wait() {
            watch.check_descriptors()?;
        }
        let fd = watch.fd();
        *wait = Some((watch.wait(), fd, time.left()));
        Ok(0)
    }

    fn check(&self, time: &TimeLeft) -> Result<InUse, Error> {
        let watch = table::get(self.handle)?;
        if self.events.is_null() || self.count == 0 {
            return Err(Error::argument("events is NULL or count is 0: there must be room for an event"));
        }
        if !(FIRST_EVENT_SIZE..=MOST_STRUCT_SIZE).contains(&self.event_size) {
            return Err(Error::argument("event_size is wrong: it must be sizeof(struct tcpevent_event)"));
        }
        if time.timeout_ms < -1 {
            return Err(Error::argument("timeout_ms is negative: it takes milliseconds, or -1 for ever"));
        }
        Ok(watch)
    }
}

impl TimeLeft {
    /// `None`: for ever.
    fn left(&mut self) -> Option<Duration> {
        let timeout = Duration::from_millis(u64::try_from(self.timeout_ms).ok()?);
        let now = Instant::now();
        let until = *self.until.get_or_insert_with(|| now + timeout);
        Some(until.saturating_duration_since(now))
    }
}

impl ReadEnd {
    fn result(&self) -> c_int {
        match self {
            Self::Events(count) => c_int::try_from(*count).unwrap_or(c_int::MAX),
            Self::Woken => -libc::EINTR,
        }
    }
}

/// Makes one `tcpevent_read` return -EINTR: one that waits, or else the next one. Each call is good for one.
///
/// Returns 0, or -EBADF: `handle` is not open.
///
/// Thread-safe, and safe in signal handlers; errno stays as it was.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_wake(handle: *mut tcpevent) -> c_int {
    // Neither guard nor error text: both take memory. Nothing here can panic.
    held_off(|| match table::get_in_handler(handle.addr()) {
        Some(watch) => {
            watch.wake();
            0
        }
        None => -libc::EBADF,
    })
}

/// Reads all counters, those of the kernel's side as they are now.
///
/// `statistics`: its `size` must be set. Fields that the library does not know become 0.
///
/// Returns 0, -EBADF or -EINVAL.
///
/// Thread-safe; not for signal handlers. Counting the tracked endpoints takes some milliseconds on a host with many.
///
/// # Safety
///
/// `statistics` is NULL or valid for the bytes that its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_get_statistics(
    handle: *mut tcpevent,
    statistics: *mut tcpevent_statistics,
) -> c_int {
    call("tcpevent_get_statistics", || {
        let watch = table::get(handle.addr())?;
        // SAFETY: the caller's promise.
        unsafe { write_statistics(statistics, || watch.statistics().into()) }
    })
}

/// The same counters of the six classic functions (`AddProbe` and the others, see event.h), over all their probes in this
/// process: how many events `DequeuePerfEvent` has returned, and every way in which one can be lost. All are 0 before the
/// first call of one of them.
///
/// `statistics`: as for `tcpevent_get_statistics`. `probe` is that of the last start, 0 before one has succeeded.
///
/// Returns 0 or -EINVAL.
///
/// Thread-safe; not for signal handlers.
///
/// # Safety
///
/// `statistics` is NULL or valid for the bytes that its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_classic_statistics(statistics: *mut tcpevent_statistics) -> c_int {
    call("tcpevent_classic_statistics", || {
        let read = || classic::functions::statistics().map(Into::into).unwrap_or_default();
        // SAFETY: the caller's promise.
        unsafe { write_statistics(statistics, read) }
    })
}

/// # Safety
///
/// `statistics` is NULL or valid for the bytes that its `size` says.
unsafe fn write_statistics(
    statistics: *mut tcpevent_statistics,
    read: impl FnOnce() -> tcpevent_statistics,
) -> Result<c_int, Error> {
    if statistics.is_null() {
        return Err(Error::argument("statistics is NULL: it must point to the structure to fill"));
    }
    // SAFETY: the caller's promise: at least the size can be read.
    let size = unsafe { statistics.cast::<usize>().read_unaligned() };
    if !(FIRST_STATISTICS_SIZE..=MOST_STRUCT_SIZE).contains(&size) {
        return Err(Error::argument("statistics->size is wrong: it must be sizeof(struct tcpevent_statistics)"));
    }
    let filled = tcpevent_statistics { size: size.min(size_of::<tcpevent_statistics>()), ..read() };
    // SAFETY: the caller's promise.
    unsafe { sized::write(&filled, statistics.cast(), size) };
    Ok(0)
}

/// What was wrong in the last function of this library that failed in this thread, in one line: cause, value, remedy. Empty
/// where none has. Valid until the next one fails in this thread, and no longer than the thread.
///
/// Thread-safe; not for signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_last_error() -> *const c_char {
    held_off(|| guard("tcpevent_last_error", per_thread::last_error).unwrap_or(c"".as_ptr()))
}

/// The version of the library, as in "0.1.0". Static.
///
/// Thread-safe, and safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The name of a TCP state, as in "SYN_SENT"; "UNKNOWN" where there is no such state. Static.
///
/// Thread-safe, and safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_state_name(state: c_int) -> *const c_char {
    const NAMES: [&CStr; 13] = [
        c"UNKNOWN",
        c"ESTABLISHED",
        c"SYN_SENT",
        c"SYN_RECV",
        c"FIN_WAIT1",
        c"FIN_WAIT2",
        c"TIME_WAIT",
        c"CLOSE",
        c"CLOSE_WAIT",
        c"LAST_ACK",
        c"LISTEN",
        c"CLOSING",
        c"NEW_SYN_RECV",
    ];
    name(&NAMES, state, c"UNKNOWN")
}

/// The name of an origin: "guess", "connect", "accept", "close" or "inode"; "unknown" where there is no such origin. Static.
///
/// Thread-safe, and safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_origin_name(origin: c_int) -> *const c_char {
    name(&[c"guess", c"connect", c"accept", c"close", c"inode"], origin, c"unknown")
}

/// Writes an address of an event as inet_ntop(3) does, NUL-terminated.
///
/// `family`: AF_INET or AF_INET6. `address`: 4 or 16 bytes in network byte order. `text`: gets the text; `size` bytes, of
/// which INET6_ADDRSTRLEN (46) are always enough.
///
/// Returns 0; -EAFNOSUPPORT, -ENOSPC, or -EINVAL for NULL, and then an empty text where there is room for it.
///
/// Thread-safe; not for signal handlers.
///
/// # Safety
///
/// `address` is NULL or valid for 4 bytes, or 16 for AF_INET6; `text` is NULL or valid for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_format_address(
    family: c_int,
    address: *const u8,
    text: *mut c_char,
    size: usize,
) -> c_int {
    call("tcpevent_format_address", || {
        if address.is_null() || text.is_null() {
            return Err(Error::argument("address or text is NULL"));
        }
        if size > 0 {
            // SAFETY: the caller's promise.
            unsafe { text.write(0) };
        }
        let room = libc::socklen_t::try_from(size).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the caller's promise. An unknown family makes it read and write nothing.
        if unsafe { inet_ntop(family, address.cast(), text, room) }.is_null() {
            return Err(match family {
                libc::AF_INET | libc::AF_INET6 => Error::Argument {
                    what: "size is too small for the address: INET6_ADDRSTRLEN (46) is always enough",
                    errno: libc::ENOSPC,
                },
                _ => Error::Argument {
                    what: "family is not known: it takes AF_INET or AF_INET6",
                    errno: libc::EAFNOSUPPORT,
                },
            });
        }
        Ok(0)
    })
}

/// The greatest array of events that one read fills.
const MOST_READ: usize = 1 << 20;

/// Programs that were compiled with the first version have structures of these sizes.
const FIRST_EVENT_SIZE: usize = 232;
const FIRST_STATISTICS_SIZE: usize = 152;

/// No later version's structure will be longer: what is, is not initialised.
const MOST_STRUCT_SIZE: usize = 4096;

const _: () = assert!(size_of::<tcpevent_event>() >= FIRST_EVENT_SIZE);
const _: () = assert!(size_of::<tcpevent_statistics>() >= FIRST_STATISTICS_SIZE);

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => unreachable!(),
};

/// Runs the body of a function: an error becomes the thread's last one and its negative errno, and so does a panic. No line
/// is written anywhere.
fn call(function: &'static str, body: impl FnOnce() -> Result<c_int, Error>) -> c_int {
    held_off(|| call_held(function, body))
}

/// The same where cancellation is held off already.
fn call_held(function: &'static str, body: impl FnOnce() -> Result<c_int, Error>) -> c_int {
    guard(function, || {
        log::with_logger(&Logger::Silent, || {
            let result = guard(function, body).unwrap_or(Err(Error::Bug { function }));
            result.unwrap_or_else(|error| {
                // No error has a NUL in it: values are shown escaped.
                per_thread::set_last_error(CString::new(error.to_string()).unwrap_or_default());
                -error.errno()
            })
        })
    })
    .unwrap_or(-libc::EIO)
}

/// The name of a number; `unknown` where it has none.
fn name(names: &[&'static CStr], number: c_int, unknown: &'static CStr) -> *const c_char {
    usize::try_from(number).ok().and_then(|number| names.get(number)).unwrap_or(&unknown).as_ptr()
}

/// A pointer of the host's that may be handed to another thread: what it makes of it there is its own business.
struct Context(*mut c_void);

// SAFETY: the library never looks at what is behind it.
unsafe impl Send for Context {}
// SAFETY: likewise.
unsafe impl Sync for Context {}

impl Context {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Checks all options.
///
/// # Safety
///
/// As for `tcpevent_open`.
unsafe fn read_options(options: *const tcpevent_options) -> Result<Options, Error> {
    let options: tcpevent_options = if options.is_null() {
        // SAFETY: numbers, and pointers that may be NULL.
        unsafe { mem::zeroed() }
    } else {
        // SAFETY: the caller's promise: at least the size can be read.
        let size = unsafe { options.cast::<usize>().read_unaligned() };
        if !(size_of::<usize>()..=MOST_STRUCT_SIZE).contains(&size) {
            return Err(wrong("size", &size, "sizeof(struct tcpevent_options)"));
        }
        // SAFETY: the caller's promise; a structure of zeroes is valid, as above.
        unsafe { sized::read(options.cast(), size)? }
    };

    let most_events = TCPEVENT_STATES | TCPEVENT_CLOSES | TCPEVENT_SNAPSHOTS;
    let events = match options.events {
        0 => TCPEVENT_CLOSES,
        events if events & !most_events == 0 => events,
        events => {
            let takes = "TCPEVENT_STATES, TCPEVENT_CLOSES and TCPEVENT_SNAPSHOTS, or-ed";
            return Err(wrong("events", &events, takes));
        }
    };
    let rung = match options.probe {
        TCPEVENT_PROBE_AUTO => None,
        TCPEVENT_PROBE_KPROBE => Some(Rung::Kprobe),
        TCPEVENT_PROBE_TP_BTF => Some(Rung::TpBtf),
        TCPEVENT_PROBE_TRACEPOINT => Some(Rung::Tracepoint),
        other => {
            return Err(wrong("probe", &other, "TCPEVENT_PROBE_AUTO, _KPROBE, _TP_BTF or _TRACEPOINT"));
        }
    };
    let queue_slots = match options.queue_slots as usize {
        0 => DEFAULT_SLOTS,
        slots if slots <= MOST_SLOTS => slots,
        slots => return Err(wrong("queue_slots", &slots, "1 to 1048576, or 0 for 1024")),
    };
    let sweep_interval = match options.snapshot_interval_ms {
        0 => SWEEP_INTERVAL,
        100..=86_400_000 => Duration::from_millis(options.snapshot_interval_ms.into()),
        other => return Err(wrong("snapshot_interval_ms", &other, "100 to 86400000, or 0 for 6200")),
    };
    // SAFETY: the caller's promise.
    let filter = match unsafe { text("filter", options.filter)? } {
        Some(text) => Filter::parse("options->filter", text)?,
        None => Filter::default(),
    };
    // SAFETY: the caller's promise.
    let btf = match unsafe { text("btf_path", options.btf_path)? } {
        Some(path) if !files::is_readable_btf(Path::new(path)) => {
            // As a text, so that the error stays one line.
            return Err(wrong("btf_path", &format!("{path:?}"), "the path of a readable BTF file, or NULL"));
        }
        path => path.map(PathBuf::from),
    };
    let most = match options.log_level {
        0 | TCPEVENT_LOG_WARN => Some(Level::Warn),
        TCPEVENT_LOG_INFO => Some(Level::Info),
        TCPEVENT_LOG_DEBUG => Some(Level::Debug),
        other => return Err(wrong("log_level", &other, "TCPEVENT_LOG_WARN, TCPEVENT_LOG_INFO or TCPEVENT_LOG_DEBUG")),
    };
    let most = most.filter(|_| options.log.is_some());
    if options.reserved != 0 {
        return Err(wrong("reserved", &options.reserved, "0"));
    }
    let (log, context) = (options.log, Context(options.log_context));
    let write = move |level: Level, line: &CStr| {
        if let Some(log) = log {
            let level = match level {
                Level::Error | Level::Warn => TCPEVENT_LOG_WARN,
                Level::Info => TCPEVENT_LOG_INFO,
                Level::Debug => TCPEVENT_LOG_DEBUG,
            };
            // SAFETY: the caller's promise, for as long as the handle is open.
            unsafe { log(context.get(), level, line.as_ptr()) };
        }
    };
    let states = events & TCPEVENT_STATES != 0;
    let closes = states || events & TCPEVENT_CLOSES != 0;
    Ok(Options {
        probe: ProbeSettings { rung, btf, filter, detailed: true, states, closes },
        sweep_interval: (events & TCPEVENT_SNAPSHOTS != 0).then_some(sweep_interval),
        queue_slots,
        logger: Arc::new(most.map_or(Logger::Silent, |most| Logger::Up(most, Box::new(write)))),
    })
}

fn wrong<T: ToString + ?Sized>(name: &'static str, value: &T, takes: &'static str) -> Error {
    Error::Option { name, value: value.to_string(), takes }
}

/// An option that is a text.
///
/// # Safety
///
/// `from` is NULL or a NUL-terminated string that outlives the result.
unsafe fn text<'text>(name: &'static str, from: *const c_char) -> Result<Option<&'text str>, Error> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(from) };
    text.to_str().map(Some).map_err(|_| wrong(name, "no UTF-8", "text"))
}

impl tcpevent_event {
    fn from_event(event: &Event, room: usize) -> Self {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let mut comm = [0; 16];
        // The last byte stays 0: the kernel's names are shorter.
        for (to, from) in comm[..15].iter_mut().zip(event.comm) {
            *to = from.cast_signed();
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
            flags: flag(event.failure != Failure::None, TCPEVENT_FAILED)
                | flag(event.failure == Failure::GivenUp, TCPEVENT_GIVEN_UP)
                | flag(event.older, TCPEVENT_OLDER)
                | flag(event.error_unknown, TCPEVENT_ERROR_UNKNOWN)
                | flag(event.uncounted, TCPEVENT_UNCOUNTED),
            error: event.error,
            family: event.family,
            local_port: event.local_port,
            remote_port: event.remote_port,
            origin: event.origin as u8,
            reserved: [0; 5],
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
            guesses: counters.guesses,
            tracked: of.tracked,
            tracked_most: of.rung.map_or(0, |_| probe::MOST_TRACKED.into()),
        }
    }
}
