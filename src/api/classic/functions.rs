//! The six functions that existing consumers call. `include/event.h` is generated from this file.
#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;
use std::{ptr, slice};

use super::env::{OnError, Settings};
use crate::api::boundary::guard;
use crate::api::classic::abi::tcp_event_t;
use crate::api::classic::session::{AwaitedRun, Run, Session};
use crate::api::engine::WatchStatistics;
use crate::error::Error;
use crate::sys::cancellation::{self, held_off};
use crate::sys::log::{self, Level};
use crate::sys::once::Once;

/// The session behind the six functions: created on first use, never freed, because a signal handler may use it at any
/// time. A forked child starts without one.
static SESSION: AtomicPtr<Session> = AtomicPtr::new(ptr::null_mut());

fn session_if_any() -> Option<&'static Session> {
    // SAFETY: null, or a session that was leaked for ever.
    unsafe { SESSION.load(Ordering::Acquire).as_ref() }
}

/// All counters. `None` before the first call.
pub fn statistics() -> Option<WatchStatistics> {
    session_if_any().map(Session::statistics)
}

fn session() -> &'static Session {
    static FORKS: Once = Once::new();

    if let Some(session) = session_if_any() {
        return session;
    }
    FORKS.call(|| {
        // SAFETY: the handler is a function of this library, which is never unmapped (-z nodelete).
        unsafe { libc::pthread_atfork(None, None, Some(forget_session)) };
    });
    let (settings, errors) = Settings::from_environment();
    log::set_level(settings.log);
    let (new, no_memory) = Session::new(settings);
    let new = Box::into_raw(Box::new(new));
    match SESSION.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            for error in errors.into_iter().chain(no_memory) {
                log::line(Level::Error, error);
            }
            // SAFETY: leaked just now.
            unsafe { &*new }
        }
        Err(other) => {
            // SAFETY: `new` was never shared; `other` is leaked for ever.
            unsafe {
                drop(Box::from_raw(new));
                &*other
            }
        }
    }
}

/// A forked child has none of our threads, and locks may be held by threads that were not copied.
extern "C" fn forget_session() {
    if let Some(session) = session_if_any() {
        session.close_fds_in_child();
    }
    SESSION.store(ptr::null_mut(), Ordering::Release);
}

/// Starts watching TCP connections. Returns at once; a thread of the library loads and attaches the probe, and
/// `getStatus` tells when that is done. It may be called again after `cleanup`; while a probe runs, another call only
/// writes a line on stderr.
///
/// `program`: NULL, the text of a BCC program, or the path of one. It is read during the call only, and never
/// compiled: the library has its own probe. A text that is not the stock one is pointed out on stderr, once.
///
/// Errors: one line on stderr, then the process exits with status 1, as consumers of the first library of this name
/// expect. With TCPEVENT_ON_ERROR=continue in the environment it goes on, `getStatus` stays 0, and snapshots of open
/// connections still come.
///
/// Thread-safe; not for signal handlers. Reads the TCPEVENT_* variables of the environment.
///
/// # Safety
///
/// `program` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn AddProbe(program: *const c_char) {
    held_off(|| {
        guard("AddProbe", || {
            // SAFETY: the caller's promise.
            unsafe { look_at(program) };
            let (run, on_error) = claim();
            let started = run.and_then(|run| run.spawn(move |error| fail(&error, on_error)));
            if let Err(error) = started {
                fail(&error, on_error);
            }
        })
    });
}

/// Watches as `AddProbe` does, and waits: loads and attaches the probe, and returns once `cleanup` is called. A thread of the
/// library does the work, so that the calling one needs no stack to speak of.
///
/// `program`: as for `AddProbe`. Returns 0 after `cleanup`, 1 on failure (where TCPEVENT_ON_ERROR=continue is set;
/// else a failure ends the process, as with `AddProbe`).
///
/// Thread-safe; not for signal handlers. A cancellation point (pthread_cancel): where the thread is cancelled, or ended by
/// pthread_exit in a signal handler, the probe ends as by `cleanup`.
///
/// # Safety
///
/// `program` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setupBPF(program: *const c_char) -> c_int {
    const FAILED: c_int = 1;

    let held = cancellation::hold();
    // SAFETY: the caller's promise.
    let begun = guard("setupBPF", || unsafe { begin(program) }).unwrap_or_default();
    let status = match begun {
        None => FAILED,
        Some((run, on_error)) => loop {
            held.wait(run.ended());
            let ended = guard("setupBPF", || run.end_wait().map(|result| status_of(result, on_error)));
            if let Some(status) = ended.unwrap_or(Some(FAILED)) {
                break status;
            }
        },
    };
    held.release();
    status
}

/// # Safety
///
/// `program` is NULL or a NUL-terminated string.
unsafe fn begin(program: *const c_char) -> Option<(&'static AwaitedRun, OnError)> {
    // SAFETY: the caller's promise.
    unsafe { look_at(program) };
    let (run, on_error) = claim();
    match run.and_then(Run::spawn_awaited) {
        Ok(run) => {
            run.begin_wait();
            Some((run, on_error))
        }
        Err(error) => {
            fail(&error, on_error);
            None
        }
    }
}

fn status_of(result: Result<(), Error>, on_error: OnError) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            fail(&error, on_error);
            1
        }
    }
}

/// Whether connections are being watched: 1 from the moment the probe is attached and its records are read, until
/// `cleanup`; 0 before and after.
///
/// Thread-safe, and safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn getStatus() -> c_uint {
    session_if_any().is_some_and(Session::is_reading).into()
}

/// Takes the oldest event from the queue; waits until there is one. The first call starts the thread that adds a
/// snapshot of every open socket each 6.2 seconds, also where no probe runs.
///
/// Returns the event by value; nothing is to be freed. Any number of threads may call it at once, each event goes to
/// one of them. After `cleanup` the events that are still queued can be taken; then it blocks until `AddProbe` is
/// called again and events come. Not for signal handlers; a handler that runs while it waits may call `cleanup`. While it
/// waits it is a cancellation point (pthread_cancel); no event is lost by that.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn DequeuePerfEvent() -> tcp_event_t {
    let held = cancellation::hold();
    let mut has_waited = false;
    let event = loop {
        let mut announced = None;
        let event = guard("DequeuePerfEvent", || {
            let session = session();
            let event = session.next_event(has_waited);
            announced = event.is_none().then(|| session.announced());
            event.map(|event| tcp_event_t::from(&event))
        });
        match (event.flatten(), announced) {
            (Some(event), _) => break event,
            (None, Some(announced)) => {
                held.wait(announced);
                has_waited = true;
            }
            // A bug: there must be an event eventually.
            (None, None) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    held.release();
    event
}

/// Stops watching: the probe is detached and the threads of the library end, shortly after the call has returned.
/// Does nothing where nothing runs. Events that are queued stay in the queue.
///
/// Async-signal-safe: it takes no lock and no memory, so any signal handler may call it, on a thread that waits in
/// `DequeuePerfEvent` too. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn cleanup() {
    // No guard: nothing here can panic, and catching one is not async-signal-safe.
    held_off(|| {
        if let Some(session) = session_if_any() {
            session.stop();
        }
    });
}

/// Prints `Array: `, the string and a newline on stdout. A test of how strings are passed; NULL prints nothing.
///
/// Thread-safe; not for signal handlers.
///
/// # Safety
///
/// `s` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn printCharArray(s: *const c_char) {
    if !s.is_null() {
        // The host's stdio, so that the line keeps its place among the host's own.
        // SAFETY: the format takes one string, and the caller promises one.
        held_off(|| unsafe { libc::printf(c"Array: %s\n".as_ptr(), s) });
    }
}

/// Reads the settings and claims the probe. Invalid settings are an error: all are logged but the last, which is
/// returned.
fn claim() -> (Result<Run, Error>, OnError) {
    let (settings, mut errors) = Settings::from_environment();
    log::set_level(settings.log);
    let on_error = settings.on_error;
    let run = match errors.pop() {
        Some(last) => {
            for error in errors {
                log::line(Level::Error, error);
            }
            Err(last)
        }
        None => session_for(settings),
    };
    (run, on_error)
}

fn session_for(settings: Settings) -> Result<Run, Error> {
    session().claim(settings)
}

/// Handles a failed start: exits or continues, as set.
fn fail(error: &Error, on_error: OnError) {
    log::line(Level::Error, error);
    // In the first case the host made a mistake; in the second the start has long succeeded.
    let only_told = matches!(error, Error::Running | Error::Descriptors { .. });
    if on_error == OnError::Exit && !only_told {
        // SAFETY: exit(3) is what a C library would call here, and runs the host's handlers.
        unsafe { libc::exit(1) };
    }
}

/// No program of the reference's is nearly as long. Bounds the read of a text without an end.
const MOST_PROGRAM: usize = 1 << 16;

/// Warns once that a program other than the stock one is not used.
///
/// # Safety
///
/// `program` is NULL or a NUL-terminated string.
unsafe fn look_at(program: *const c_char) {
    static SAID: AtomicBool = AtomicBool::new(false);

    if program.is_null() {
        return;
    }
    // SAFETY: the caller's promise. The text ends at the first NUL, or at the bound.
    let text = unsafe { slice::from_raw_parts(program.cast(), libc::strnlen(program, MOST_PROGRAM)) };
    if !is_stock_program(text) && !SAID.swap(true, Ordering::Relaxed) {
        log::line(Level::Warn, "the BPF program given is not compiled: the built-in probe is used instead");
    }
}

/// Whether a program text has the two names that every version of the reference's has.
fn is_stock_program(text: &[u8]) -> bool {
    [b"kprobe__tcp_set_state".as_slice(), b"tcpEvents"]
        .iter()
        .all(|name| text.windows(name.len()).any(|part| part == *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stock_program_has_both_names() {
        assert!(is_stock_program(b"BPF_PERF_OUTPUT(tcpEvents);\nint kprobe__tcp_set_state(struct pt_regs *ctx) {"));
        assert!(!is_stock_program(b"int kprobe__tcp_set_state(struct pt_regs *ctx) {"));
        assert!(!is_stock_program(b"path/to/bpf_program.c"));
        assert!(!is_stock_program(b""));
    }
}
