//! Reads `struct tcpevent_options`.

use std::ffi::{CStr, c_char, c_void};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::sized::{self, MOST_STRUCT_SIZE};
use super::types::{
    TCPEVENT_EVENTS_CLOSES, TCPEVENT_EVENTS_RETRIES, TCPEVENT_EVENTS_SNAPSHOTS, TCPEVENT_EVENTS_STATES,
    TCPEVENT_EVENTS_UNSENT, TCPEVENT_LOG_DEBUG, TCPEVENT_LOG_INFO, TCPEVENT_LOG_WARN, TCPEVENT_PROBE_AUTO,
    TCPEVENT_PROBE_KPROBE, TCPEVENT_PROBE_TP_BTF, TCPEVENT_PROBE_TRACEPOINT, tcpevent_options,
};
use super::watch::Options;
use crate::config::{DEFAULT_SLOTS, MOST_SLOTS, ProbeSettings, Rung, SWEEP_INTERVAL, SWEEP_INTERVALS, Wanted};
use crate::error::Error;
use crate::event::filter::Filter;
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

    let most_events = TCPEVENT_EVENTS_STATES
        | TCPEVENT_EVENTS_CLOSES
        | TCPEVENT_EVENTS_SNAPSHOTS
        | TCPEVENT_EVENTS_RETRIES
        | TCPEVENT_EVENTS_UNSENT;
    let events = match options.events {
        0 => TCPEVENT_EVENTS_CLOSES,
        events if events & !most_events == 0 => events,
        events => {
            let takes = "TCPEVENT_EVENTS_STATES, _CLOSES, _SNAPSHOTS, _RETRIES and _UNSENT, or-ed";
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
    let states = events & TCPEVENT_EVENTS_STATES != 0;
    let closes = states || events & TCPEVENT_EVENTS_CLOSES != 0;
    let has = |event| events & event != 0;
    let wanted = Wanted { states, closes, retries: has(TCPEVENT_EVENTS_RETRIES), unsent: has(TCPEVENT_EVENTS_UNSENT) };
    Ok(Options {
        probe: ProbeSettings { rung, btf, filter: Arc::new(filter), detailed: true, wanted },
        sweep_interval: (events & TCPEVENT_EVENTS_SNAPSHOTS != 0).then_some(sweep_interval),
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
