//! The crate's own API: for Rust what `tcpevent.h` is for C.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::WatchStatistics;
use super::handles::table;
use super::handles::watch::{self, Options, ReadEnd};
use crate::config::{DEFAULT_SLOTS, MOST_SLOTS, ProbeSettings, Rung, SWEEP_INTERVALS};
use crate::error::Error;
use crate::event::Event;
use crate::event::filter::Filter;
use crate::sys::log::{Level, Logger};
use crate::sys::wake;

/// Events that [`Watch::events`] takes from the queue at a time.
const BATCH: usize = 64;

/// A watch on the TCP connections of this host. Dropping it ends the probe and all threads of the watch.
///
/// A watch takes CAP_BPF and CAP_PERFMON, or root. Any number of threads may read from one watch; each event goes to one of
/// them. A process can have 64 watches, those of the C API among them. A forked child has none: there, all calls of its
/// parent's watches return an error.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use tcpEvent::{Kind, Watch};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let port = listener.local_addr()?.port();
/// let watch = Watch::builder().closes().filter(format!("dport {port}").parse()?).open()?;
///
/// let client = TcpStream::connect(listener.local_addr()?)?;
/// let server = listener.accept()?;
/// let local = client.local_addr()?;
/// drop((client, server));
///
/// let event = watch.events().next().expect("a watch has no end")?;
/// assert_eq!(event.kind, Kind::Close);
/// assert_eq!((event.local(), event.remote().port()), (local, port));
/// assert_eq!(event.pid, std::process::id());
/// # Ok(())
/// # }
/// ```
pub struct Watch {
    handle: usize,
    fd: RawFd,
}

/// What to watch, and how. Made by [`Watch::builder`].
#[must_use]
pub struct WatchBuilder {
    probe: ProbeSettings,
    sweep_interval: Option<Duration>,
    queue_slots: usize,
    logger: Logger,
}

impl WatchBuilder {
    /// An event for each connection that ends, and for each attempt that fails.
    pub fn closes(mut self) -> Self {
        self.probe.wanted.closes = true;
        self
    }

    /// An event for each change of an endpoint's state; its end, too.
    pub fn states(mut self) -> Self {
        (self.probe.wanted.states, self.probe.wanted.closes) = (true, true);
        self
    }

    /// An event each time the kernel sends a SYN again, as nobody has answered. Not by the plain tracepoint.
    pub fn retries(mut self) -> Self {
        self.probe.wanted.retries = true;
        self
    }

    /// An event for each attempt that fails before anything is sent: no route, a policy of the host, no local port. Not by the plain tracepoint.
    /// Where the kernel has no trampolines, each system call of the host takes some 60 ns longer; a line of the log says so.
    pub fn unsent(mut self) -> Self {
        self.probe.wanted.unsent = true;
        self
    }

    /// An event for each socket that is open, from now on at this interval (0.1 s to a day).
    pub fn snapshots(mut self, interval: Duration) -> Self {
        self.sweep_interval = Some(interval);
        self
    }

    /// Only events that fit.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.probe.filter = Arc::new(filter);
        self
    }

    /// The only probe to try.
    pub fn probe(mut self, rung: Rung) -> Self {
        self.probe.rung = Some(rung);
        self
    }

    /// A BTF file, for a kernel without type information of its own.
    pub fn btf(mut self, path: impl Into<PathBuf>) -> Self {
        self.probe.btf = Some(path.into());
        self
    }

    /// Events that the queue holds until they are read, 1 to 1,048,576; one takes some 300 bytes. 1,024 unless set.
    pub fn queue_slots(mut self, slots: usize) -> Self {
        self.queue_slots = slots;
        self
    }

    /// Takes the library's log, up to this level. Called on threads of the library. Without it nothing is logged.
    pub fn log(mut self, most: Level, take: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        let write = move |level: Level, line: &CStr| take(level, &line.to_string_lossy());
        self.logger = Logger::Up(most, Box::new(write));
        self
    }

    /// Starts the watch. Returns once all that happens from then on is seen. Where nothing is asked for, closes are watched.
    pub fn open(mut self) -> Result<Watch, Error> {
        if !self.probe.needs_probe() && self.sweep_interval.is_none() {
            self.probe.wanted.closes = true;
        }
        if !(1..=MOST_SLOTS).contains(&self.queue_slots) {
            return Err(Error::option("queue_slots", &self.queue_slots, "1 to 1048576"));
        }
        if let Some(interval) = self.sweep_interval.filter(|interval| !SWEEP_INTERVALS.contains(interval)) {
            return Err(Error::option("snapshots", &format!("{interval:?}"), "0.1 s to a day"));
        }
        let options = Options {
            probe: self.probe,
            sweep_interval: self.sweep_interval,
            queue_slots: self.queue_slots,
            logger: Arc::new(self.logger),
        };
        let handle = table::insert(|| watch::Watch::open(options))?;
        Ok(Watch { handle, fd: table::get(handle)?.fd() })
    }
}

/// How a wait for events has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// With so many events, which were added to the vector.
    Events(usize),
    /// The time was over.
    TimedOut,
    /// By [`Watch::wake`], or a signal handler that has run on this thread.
    Woken,
}

impl Watch {
    /// A watch of nothing yet: say what, and [`open`](WatchBuilder::open) it.
    pub fn builder() -> WatchBuilder {
        WatchBuilder {
            probe: ProbeSettings { detailed: true, ..ProbeSettings::default() },
            sweep_interval: None,
            queue_slots: DEFAULT_SLOTS,
            logger: Logger::Silent,
        }
    }

    /// Adds up to `most` events to `events`, the oldest first. Where there is none, it waits for the first one, for as long as
    /// `timeout` says: `None` is for ever, zero not at all.
    pub fn read(&self, events: &mut Vec<Event>, most: usize, timeout: Option<Duration>) -> Result<Read, Error> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let watch = table::get(self.handle)?;
            match watch.read(most, |event| events.push(event.clone()))? {
                Some(ReadEnd::Events(taken)) => return Ok(Read::Events(taken)),
                Some(ReadEnd::Woken) => return Ok(Read::Woken),
                None => watch.check_descriptors()?,
            }
            drop(watch);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Read::TimedOut);
            }
            let mut fds = [libc::pollfd { fd: self.fd, events: libc::POLLIN, revents: 0 }];
            if wake::poll(&mut fds, left) < 0 {
                // A handler may have called for this very wake.
                table::get(self.handle)?.interrupted();
                return Ok(Read::Woken);
            }
        }
    }

    /// The events as they come, without end: it waits for each. [`Self::wake`] ends it.
    pub fn events(&self) -> Events<'_> {
        Events { watch: self, batch: Vec::new().into_iter() }
    }

    /// Makes one wait return, or the next one where nobody waits. Async-signal-safe.
    pub fn wake(&self) {
        if let Some(watch) = table::get_in_handler(self.handle) {
            watch.wake();
        }
    }

    /// What was seen, delivered and lost until now.
    pub fn statistics(&self) -> Result<WatchStatistics, Error> {
        Ok(table::get(self.handle)?.statistics())
    }
}

/// Is readable while there are events: for poll, epoll and the runtimes that stand on those.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the watch is behind its handle, with this descriptor, until `self` is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Not open in a forked child, only.
        let _ = table::remove(self.handle);
    }
}

/// Waits for events, one after the other. See [`Watch::events`].
pub struct Events<'watch> {
    watch: &'watch Watch,
    batch: std::vec::IntoIter<Event>,
}

impl Iterator for Events<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.batch.next() {
                return Some(Ok(event));
            }
            let mut events = Vec::new();
            match self.watch.read(&mut events, BATCH, None) {
                Ok(Read::Events(_)) => self.batch = events.into_iter(),
                Ok(Read::Woken) => return None,
                Ok(Read::TimedOut) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
