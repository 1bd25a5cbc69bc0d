//! The `tcpevent_*` functions: the API for new programs. `include/tcpevent.h` is generated from this file and `types.rs`.
//!
//! Each function is guard, check, call, convert. [`handle`] says what is behind a handle, [`watch`] does the work.
//!
//! [`handle`]: crate::api::handles::table
//! [`watch`]: crate::api::handles::watch
#![allow(non_camel_case_types)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::size_of;
use std::os::fd::RawFd;
use std::ptr;
use std::time::{Duration, Instant};

use super::options::read_options;
use super::sized::{self, FIRST_EVENT_SIZE, FIRST_STATISTICS_SIZE, MOST_STRUCT_SIZE};
use super::table::{self, InUse, Waiting};
use super::types::{tcpevent_event, tcpevent_options, tcpevent_statistics, tcpevent_watch};
use super::watch::{ReadEnd, Watch};
use crate::api::boundary::guard;
use crate::api::classic;
use crate::api::inet::inet_ntop;
use crate::error::Error;
use crate::event::Event;
use crate::queue::readiness::Waited;
use crate::sys::cancellation::{self, held_off};
use crate::sys::log::{self, Logger};
use crate::sys::one_line::OneLine;
use crate::sys::per_thread;

/// Starts watching. Returns once every connection from then on is seen, or with an error.
///
/// `options`: what to watch, and how; NULL for the closes of all connections. `handle`: receives the handle; `tcpevent_close`
/// ends it. Each handle has its own probe, queue and threads. A process can have 64.
///
/// `options->filter` is a list of words, such as `dst 10.0.0.0/8,2001:db8::/32 dport 443 failed`. An event must match every key
/// that is given. Several values for one key, separated by commas or by repeating the key, are alternatives:
///
/// ```text
///     src, dst      local, remote addresses or prefixes. An IPv4 one matches the ::ffff: form too, ::/0 no IPv4
///     sport, dport  local, remote ports, or ranges such as 8000-8999
///     family        inet or inet6
///     pid, uid      process ID, user ID of the owner; without an owner, uid is the socket's. Unknown ones never match
///     netns         a network namespace: its inode number, self, or a path such as /run/netns/NAME
///     cgroup        a cgroup: its ID, or its directory below /sys/fs/cgroup. Cgroups inside it do not match
///     failed        (no value) only closes of connections that were never established
/// ```
///
/// The kernel drops events that do not match, so they cost next to nothing; except snapshots, and owners found by inode.
///
/// Returns 0, or a negative errno: -EINVAL (an option or the filter; the text names the offending word), -E2BIG (options
/// unknown to this version), -EPERM (a capability is missing), -EOPNOTSUPP (the kernel has no probe that works), -EMFILE (no
/// handle or descriptor left), -EAGAIN (no thread), -ENOMEM.
///
/// Thread-safe; not for signal handlers. Does not read the environment. A forked child starts without handles.
///
/// # Safety
///
/// `options` is NULL or valid for the bytes that its `size` says, its pointers are NULL or valid, and `handle` is NULL or
/// valid for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_open(
    options: *const tcpevent_options,
    handle: *mut *mut tcpevent_watch,
) -> c_int {
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

/// Closes a handle: detaches the probe, stops the threads, frees the queue and the events in it. A `tcpevent_read` that waits
/// in another thread returns -EBADF. Takes some 100 ms.
///
/// Returns 0, or -EBADF: `handle` is not open (closing twice is harmless).
///
/// Thread-safe; not for signal handlers, nor for `tcpevent_options.log`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_close(handle: *mut tcpevent_watch) -> c_int {
    call("tcpevent_close", || table::remove(handle.addr()).map(|()| 0))
}

/// Returns a descriptor for poll, select or epoll, or -EBADF. It is readable while there are events, after `tcpevent_wake`, and
/// once the probe has failed. It may occasionally be readable without an event: read with a timeout of 0. It belongs to the
/// library: do not read or close it. Invalid after `tcpevent_close`.
///
/// Thread-safe; not for signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_fd(handle: *mut tcpevent_watch) -> c_int {
    call("tcpevent_fd", || Ok(table::get(handle.addr())?.fd()))
}

/// Takes up to `count` events from the queue, oldest first.
///
/// `events`: an array of `count` structures of `event_size` bytes each. `event_size`: sizeof(struct tcpevent_event). A program
/// compiled with a smaller structure gets the fields that fit; in a larger one, the rest is 0. `timeout_ms`: how long to wait
/// for the first event; 0: not at all, -1: indefinitely.
///
/// Returns the number of events; 0 after a timeout. -EINTR: `tcpevent_wake` was called, or a signal handler ran during the
/// wait. -EBADF: `handle` is not open, or was closed during the wait. -EINVAL: an invalid argument. -EIO: the probe failed, or
/// the program has closed descriptors of the handle (with close_range, say); all earlier events have been read.
///
/// Thread-safe: each event goes to one reader. Not for signal handlers. A cancellation point while it waits (pthread_cancel). A
/// signal handler may end the thread (pthread_exit) or jump out of the wait (siglongjmp): the handle stays usable, but after a
/// jump `tcpevent_close` takes 2 seconds longer and does not free its memory.
///
/// # Safety
///
/// `events` is NULL or valid for `count` times `event_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_read(
    handle: *mut tcpevent_watch,
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

/// Makes one `tcpevent_read` return -EINTR: one that is waiting, or else the next. Each call wakes one.
///
/// Returns 0, or -EBADF: `handle` is not open.
///
/// Thread-safe and async-signal-safe; leaves errno alone.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_wake(handle: *mut tcpevent_watch) -> c_int {
    // Neither guard nor error text: both take memory. Nothing here can panic.
    held_off(|| match table::get_in_handler(handle.addr()) {
        Some(watch) => {
            watch.wake();
            0
        }
        None => -libc::EBADF,
    })
}

/// Reads all counters, including the current ones of the BPF programs.
///
/// `statistics`: set its `size` first. Fields unknown to the library become 0.
///
/// Returns 0, -EBADF or -EINVAL.
///
/// Thread-safe; not for signal handlers. On a host with many connections, counting those tracked takes some milliseconds.
///
/// # Safety
///
/// `statistics` is NULL or valid for the bytes that its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tcpevent_get_statistics(
    handle: *mut tcpevent_watch,
    statistics: *mut tcpevent_statistics,
) -> c_int {
    call("tcpevent_get_statistics", || {
        let watch = table::get(handle.addr())?;
        // SAFETY: the caller's promise.
        unsafe { write_statistics(statistics, || watch.statistics().into()) }
    })
}

/// Reads the same counters for the six classic functions (`AddProbe` and the others, see event.h), summed over all their probes
/// in this process. `delivered` counts what `DequeuePerfEvent` has returned. All are 0 before the first classic call.
///
/// `statistics`: as for `tcpevent_get_statistics`. `probe` is that of the last start; 0 before one has succeeded.
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

/// Returns one line about the last function of this library that failed in this thread: cause, value, remedy. Empty if none has
/// failed. Valid until the next failure in this thread, and no longer than the thread.
///
/// Thread-safe; not for signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_last_error() -> *const c_char {
    held_off(|| guard("tcpevent_last_error", per_thread::last_error).unwrap_or(c"".as_ptr()))
}

/// Returns the version of the library, such as "0.1.0": a static text.
///
/// Thread-safe and async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Returns the name of a TCP state, such as "SYN_SENT"; "UNKNOWN" for any other number. A static text.
///
/// Thread-safe and async-signal-safe.
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

/// Returns a name for a value of `owner_by`: "connect", "accept", "close" or "inode"; "unknown" for any other. A static text.
///
/// Thread-safe and async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_owner_by_name(owner_by: c_int) -> *const c_char {
    name(&[c"unknown", c"connect", c"accept", c"close", c"inode"], owner_by, c"unknown")
}

/// Returns words for a value of `ending`, such as "reset by peer" or "user timeout"; "unknown" for any other. A static text.
///
/// Thread-safe and async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tcpevent_ending_name(ending: c_int) -> *const c_char {
    const NAMES: [&CStr; 14] = [
        c"unknown",
        c"orderly",
        c"half closed",
        c"reset by peer",
        c"reset",
        c"unread data",
        c"no time to linger",
        c"disconnected",
        c"not accepted",
        c"aborted",
        c"not acknowledged",
        c"keepalive",
        c"closed window",
        c"user timeout",
    ];
    name(&NAMES, ending, c"unknown")
}

/// Writes an address as text, like inet_ntop(3), NUL-terminated.
///
/// `family`: AF_INET or AF_INET6. `address`: 4 or 16 bytes in network byte order. `text`: receives the text; `size` is its
/// size in bytes, for which INET6_ADDRSTRLEN (46) is always enough.
///
/// Returns 0; -EAFNOSUPPORT, -ENOSPC, or -EINVAL for NULL. After an error the text is empty, if there is room for that.
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
                // In one line there is no NUL.
                per_thread::set_last_error(CString::new(OneLine(&error).to_string()).unwrap_or_default());
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
