//! Lines on stderr, or to the logger of a handle. Never stdout: consumers write their own output there.
//!
//! The host owns its stderr. A line must neither block it (a full pipe), kill it (SIGPIPE), nor fail it (a closed
//! descriptor, a full disk), so a line that cannot be written at once is dropped.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::{io, mem, ptr};

use crate::sys::clock;
use crate::sys::one_line::OneLine;

/// The importance of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something does not work.
    Error,
    /// Loss or degraded operation.
    Warn,
    /// Findings and decisions, and counters at the end.
    Info,
    /// Everything else, libbpf's own messages included.
    Debug,
}

impl Level {
    /// The names that TCPEVENT_LOG takes.
    pub const NAMES: [(&'static str, Self); 4] =
        [("error", Self::Error), ("warn", Self::Warn), ("info", Self::Info), ("debug", Self::Debug)];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

static MOST: AtomicU8 = AtomicU8::new(Level::Warn as u8);

/// Sets the least important level that is still written.
pub fn set_level(level: Level) {
    MOST.store(level as u8, Ordering::Relaxed);
}

/// A consumer of lines.
pub type Write = dyn Fn(Level, &CStr) + Send + Sync;

/// Takes the lines of a handle's threads.
pub enum Logger {
    /// Drops all lines.
    Silent,
    /// Takes lines of this level and of all more important ones.
    Up(Level, Box<Write>),
}

thread_local! {
    /// The logger of this thread; null for stderr. It has no destructor, so it exists until the thread's very end, when
    /// the host's destructors may call us.
    static LOGGER: Cell<*const Logger> = const { Cell::new(ptr::null()) };
}

/// Runs `body` with this thread's lines going to a logger.
pub fn with_logger<T>(logger: &Logger, body: impl FnOnce() -> T) -> T {
    struct Before(*const Logger);

    impl Drop for Before {
        fn drop(&mut self) {
            LOGGER.set(self.0);
        }
    }

    let _before = Before(LOGGER.replace(logger));
    body()
}

/// Passes this thread's logger to `take`.
fn with_own<T>(take: impl FnOnce(Option<&Logger>) -> T) -> T {
    // SAFETY: null, or borrowed by a `with_logger` further down on this stack.
    take(unsafe { LOGGER.get().as_ref() })
}

/// Whether lines of this level are written.
pub fn enabled(level: Level) -> bool {
    with_own(|logger| match logger {
        Some(Logger::Silent) => false,
        Some(Logger::Up(most, _)) => level <= *most,
        None => level as u8 <= MOST.load(Ordering::Relaxed),
    })
}

/// Writes one line, if its level is enabled.
pub fn line(level: Level, text: impl Display) {
    if enabled(level) {
        write(level, &text);
    }
}

fn write(level: Level, text: &dyn Display) {
    with_own(|logger| match logger {
        Some(Logger::Silent) => {}
        Some(Logger::Up(_, write)) => {
            // `OneLine` escapes NULs.
            write(level, &CString::new(OneLine(text).to_string()).unwrap_or_default());
        }
        None => write_stderr(format!("libtcpEvent: {}: {}", level.name(), OneLine(text))),
    });
}

/// A message written at most once a second.
pub struct Limited {
    text: &'static str,
    last_ns: AtomicU64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Limited {
    /// The message, without a line end.
    pub const fn new(text: &'static str) -> Self {
        Self { text, last_ns: AtomicU64::new(0) }
    }

    /// Writes the bare message, if warnings are enabled and a second has passed since it was last written.
    pub fn warn(&self) {
        let now = clock::monotonic_now_ns();
        let last = self.last_ns.load(Ordering::Relaxed);
        if (last == 0 || now.saturating_sub(last) >= SECOND_NS)
            && enabled(Level::Warn)
            && self.last_ns.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            write_stderr(self.text.to_owned());
        }
    }
}

fn write_stderr(mut line: String) {
    let mut ready = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    end_line(&mut line);
    without_sigpipe(|| {
        // SAFETY: one valid pollfd; and `line` is valid for its length.
        unsafe {
            if libc::poll(&raw mut ready, 1, 0) == 1 && ready.revents & libc::POLLOUT != 0 {
                libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
            }
        }
    });
}

/// Ends a line, and truncates one that is too long: a pipe that polls as writable takes PIPE_BUF bytes at once.
fn end_line(line: &mut String) {
    const END: &str = "...";
    if line.len() >= libc::PIPE_BUF {
        let room = libc::PIPE_BUF - END.len() - 1;
        line.truncate((0..=room).rfind(|at| line.is_char_boundary(*at)).unwrap_or(0));
        line.push_str(END);
    }
    line.push('\n');
}

/// Runs `body` with SIGPIPE blocked in this thread, and consumes the one that it may have raised. The host's
/// disposition of the signal is left alone: all threads share it.
fn without_sigpipe(body: impl FnOnce()) {
    // SAFETY: sigemptyset initialises the sets before they are read, and all pointers are to locals.
    unsafe {
        let mut pipe: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut pipe);
        libc::sigaddset(&raw mut pipe, libc::SIGPIPE);
        let mut pending: libc::sigset_t = mem::zeroed();
        libc::sigpending(&raw mut pending);
        let was_pending = libc::sigismember(&raw const pending, libc::SIGPIPE) == 1;
        let mut before: libc::sigset_t = mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe, &raw mut before);
        body();
        if !was_pending {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(&raw const pipe, ptr::null_mut(), &raw const at_once) == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::Error;

    /// A line as a handle's owner gets it.
    fn logged(text: impl Display) -> Vec<String> {
        static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let take = |_: Level, line: &CStr| LINES.lock().unwrap().push(line.to_str().unwrap().to_owned());
        with_logger(&Logger::Up(Level::Debug, Box::new(take)), || line(Level::Warn, text));
        std::mem::take(&mut LINES.lock().unwrap())
    }

    #[test]
    fn a_line_is_one_whatever_comes_from_outside() {
        let cause = "kprobe: failed to open /tmp/a\nb\u{202e}\0: -ENOENT".to_owned();
        let error = Error::Probe { cause, remedy: "do something", errno: 2 };
        assert_eq!(
            logged(&error),
            ["cannot watch TCP connections: kprobe: failed to open /tmp/a\\nb\\u{202e}\\u{0}: -ENOENT; do something"]
        );
    }

    #[test]
    fn a_line_on_stderr_has_an_end_however_long_it_is() {
        for (length, expected) in [(0, 1), (100, 101), (libc::PIPE_BUF - 1, libc::PIPE_BUF), (10_000, libc::PIPE_BUF)] {
            let mut line = "x".repeat(length);
            end_line(&mut line);
            assert_eq!(line.len(), expected);
            assert_eq!(line.find('\n'), Some(expected - 1));
        }
        // Multi-byte characters are not cut.
        let mut line = "€".repeat(libc::PIPE_BUF);
        end_line(&mut line);
        assert!(line.len() <= libc::PIPE_BUF && line.ends_with("€...\n"), "{}", line.len());
    }
}
