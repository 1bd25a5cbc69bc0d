//! Between the structures of `tcpevent.h` and the library's own.

use std::ffi::{CStr, c_char, c_void};
use std::mem::{self, size_of};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::sized::{self, MOST_STRUCT_SIZE};
use super::types::{
    TCPEVENT_BEGIN_UNKNOWN, TCPEVENT_CLOSES, TCPEVENT_ERROR_UNKNOWN, TCPEVENT_FAILED, TCPEVENT_GIVEN_UP,
    TCPEVENT_LOG_DEBUG, TCPEVENT_LOG_INFO, TCPEVENT_LOG_WARN, TCPEVENT_OLDER, TCPEVENT_PROBE_AUTO,
    TCPEVENT_PROBE_KPROBE, TCPEVENT_PROBE_TP_BTF, TCPEVENT_PROBE_TRACEPOINT, TCPEVENT_SNAPSHOTS, TCPEVENT_STATES,
    TCPEVENT_UNCOUNTED, tcpevent_event, tcpevent_options, tcpevent_statistics,
};
use super::watch::Options;
use crate::api::engine::WatchStatistics;
use crate::config::{DEFAULT_SLOTS, MOST_SLOTS, ProbeSettings, Rung, SWEEP_INTERVAL, SWEEP_INTERVALS};
use crate::error::Error;
use crate::event::filter::Filter;
use crate::event::{Begin, Event, Failure};
use crate::sys::files;
use crate::sys::log::{Level, Logger};
use crate::sys::one_line::shortened;

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
pub unsafe fn read_options(options: *const tcpevent_options) -> Result<Options, Error> {
    let options: tcpevent_options = if options.is_null() {
        // SAFETY: numbers, and pointers that may be NULL.
        unsafe { mem::zeroed() }
    } else {
        // SAFETY: the caller's promise: at least the size can be read.
        let size = unsafe { options.cast::<usize>().read_unaligned() };
        if !(size_of::<usize>()..=MOST_STRUCT_SIZE).contains(&size) {
            return Err(Error::option("options->size", &size, "sizeof(struct tcpevent_options)"));
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
            return Err(Error::option("options->events", &events, takes));
        }
    };
    let rung = match options.probe {
        TCPEVENT_PROBE_AUTO => None,
        TCPEVENT_PROBE_KPROBE => Some(Rung::Kprobe),
        TCPEVENT_PROBE_TP_BTF => Some(Rung::TpBtf),
        TCPEVENT_PROBE_TRACEPOINT => Some(Rung::Tracepoint),
        other => {
            return Err(Error::option(
                "options->probe",
                &other,
                "TCPEVENT_PROBE_AUTO, _KPROBE, _TP_BTF or _TRACEPOINT",
            ));
        }
    };
    let queue_slots = match options.queue_slots as usize {
        0 => DEFAULT_SLOTS,
        slots if slots <= MOST_SLOTS => slots,
        slots => return Err(Error::option("options->queue_slots", &slots, "1 to 1048576, or 0 for 1024")),
    };
    let sweep_interval = match options.snapshot_interval_ms {
        0 => SWEEP_INTERVAL,
        ms if SWEEP_INTERVALS.contains(&Duration::from_millis(ms.into())) => Duration::from_millis(ms.into()),
        other => return Err(Error::option("options->snapshot_interval_ms", &other, "100 to 86400000, or 0 for 6200")),
    };
    // SAFETY: the caller's promise.
    let filter = match unsafe { text("options->filter", options.filter)? } {
        Some(text) => Filter::parse("options->filter", text)?,
        None => Filter::default(),
    };
    // SAFETY: the caller's promise.
    let btf = match unsafe { text("options->btf_path", options.btf_path)? } {
        Some(path) if files::readable_btf(Path::new(path)).is_none() => {
            // As a text, so that the error stays one line.
            return Err(Error::option(
                "options->btf_path",
                &format!("{:?}", shortened(path)),
                "the path of a readable BTF file, or NULL",
            ));
        }
        path => path.map(PathBuf::from),
    };
    let most = match options.log_level {
        0 | TCPEVENT_LOG_WARN => Some(Level::Warn),
        TCPEVENT_LOG_INFO => Some(Level::Info),
        TCPEVENT_LOG_DEBUG => Some(Level::Debug),
        other => {
            return Err(Error::option(
                "options->log_level",
                &other,
                "TCPEVENT_LOG_WARN, TCPEVENT_LOG_INFO or TCPEVENT_LOG_DEBUG",
            ));
        }
    };
    let most = most.filter(|_| options.log.is_some());
    if options.reserved != 0 {
        return Err(Error::option("options->reserved", &options.reserved, "0"));
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
        probe: ProbeSettings { rung, btf, filter: Arc::new(filter), detailed: true, states, closes },
        sweep_interval: (events & TCPEVENT_SNAPSHOTS != 0).then_some(sweep_interval),
        queue_slots,
        logger: Arc::new(most.map_or(Logger::Silent, |most| Logger::Up(most, Box::new(write)))),
    })
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
    text.to_str().map(Some).map_err(|_| Error::option(name, "no UTF-8", "text"))
}

impl tcpevent_event {
    /// An event for a caller whose structure has `room` bytes.
    pub fn from_event(event: &Event, room: usize) -> Self {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
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
            flags: flag(event.failure != Failure::None, TCPEVENT_FAILED)
                | flag(event.failure == Failure::GivenUp, TCPEVENT_GIVEN_UP)
                | flag(event.begin == Begin::Older, TCPEVENT_OLDER)
                | flag(event.error_unknown, TCPEVENT_ERROR_UNKNOWN)
                | flag(event.uncounted, TCPEVENT_UNCOUNTED)
                | flag(event.begin == Begin::Unknown, TCPEVENT_BEGIN_UNKNOWN),
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
            tracked_most: of.most_tracked,
        }
    }
}
