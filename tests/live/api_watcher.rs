//! A process that watches through `include/tcpevent.h`, controlled by a test: `tests/c/api_watch.c`.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::process::Command;
use std::str::{FromStr, Split};
use std::time::{Duration, Instant};

use tcpEvent::internals::handles::{
    TCPEVENT_DIRECTION_ACCEPTED, TCPEVENT_DIRECTION_CONNECTED, TCPEVENT_DIRECTION_UNKNOWN, TCPEVENT_KIND_CLOSE,
    TCPEVENT_KIND_RETRY, TCPEVENT_KIND_SNAPSHOT, TCPEVENT_KIND_STATE, TCPEVENT_KIND_UNSENT, tcpevent_event,
};

use crate::api_traffic::{cookie_at, cookies_of};
use crate::consumer::{Consumer, c_program, patience, rung_is_tracepoint};
use crate::traffic::{Connection, V4};

pub const STATES: &str = "events=1";
pub const CLOSES: &str = "events=2";
pub const STATES_AND_CLOSES: &str = "events=3";
pub const SNAPSHOTS: &str = "events=4";

pub const FAILED: u32 = 1;
pub const GIVEN_UP: u32 = 2;
pub const OLDER: u32 = 4;

/// Bits of `known`.
pub use tcpEvent::internals::handles::{
    TCPEVENT_KNOWN_BACKLOG as BACKLOG, TCPEVENT_KNOWN_COUNTERS as COUNTERS, TCPEVENT_KNOWN_ERROR as ERROR,
    TCPEVENT_KNOWN_OWNER as OWNER, TCPEVENT_KNOWN_PLACE as PLACE, TCPEVENT_KNOWN_TIMES as TIMES,
    TCPEVENT_KNOWN_UID as UID,
};

/// PLACE, if it can be known.
pub fn told_place() -> u32 {
    if rung_is_tracepoint() { 0 } else { PLACE }
}

/// `uid` if unknown.
pub const NO_USER: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    State,
    Close,
    Snapshot,
    Retry,
    Unsent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Unknown,
    Connected,
    Accepted,
}

/// A `struct tcpevent_event` as the process got it. It derefs to `raw` for all other fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub handle: u32,
    pub thread: u32,
    pub kind: Kind,
    pub old_state: String,
    pub new_state: String,
    pub direction: Direction,
    pub family: i32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub owner_by: String,
    pub comm: String,
    raw: tcpevent_event,
}

impl Deref for Event {
    type Target = tcpevent_event;

    fn deref(&self) -> &tcpevent_event {
        &self.raw
    }
}

fn next<'a>(columns: &mut Split<'a, char>) -> &'a str {
    columns.next().expect("a column is missing")
}

fn number<T: FromStr>(columns: &mut Split<'_, char>) -> T {
    let text = next(columns);
    text.parse().unwrap_or_else(|_| panic!("not a number that fits: {text:?}"))
}

fn bytes(columns: &mut Split<'_, char>) -> Vec<u8> {
    let text = next(columns);
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The 16 bytes of an address; bytes that its family does not use are 0.
fn address(family: i32, bytes: [u8; 16]) -> IpAddr {
    match family {
        libc::AF_INET => {
            assert_eq!(bytes[4..], [0; 12], "behind an IPv4 address");
            <[u8; 4]>::try_from(&bytes[..4]).unwrap().into()
        }
        libc::AF_INET6 => bytes.into(),
        _ => panic!("no family: {family}"),
    }
}

impl Event {
    fn parse(line: &str) -> Self {
        let columns = &mut line.split('\t');
        assert_eq!(next(columns), "event", "{line:?}");
        let (handle, thread) = (number(columns), number(columns));
        let [old_state, new_state, owner_by] = std::array::from_fn(|_| next(columns).to_owned());
        let bytes = bytes(columns);
        assert_eq!(columns.next(), None, "the end of {line:?}");
        assert_eq!(bytes.len(), size_of::<tcpevent_event>(), "{line:?}");
        // SAFETY: so many bytes, of which any are such a structure.
        let raw = unsafe { bytes.as_ptr().cast::<tcpevent_event>().read_unaligned() };
        assert_eq!((raw.size as usize, raw.reserved2), (bytes.len(), 0), "{raw:#?}");
        let kind = match raw.kind {
            TCPEVENT_KIND_STATE => Kind::State,
            TCPEVENT_KIND_CLOSE => Kind::Close,
            TCPEVENT_KIND_SNAPSHOT => Kind::Snapshot,
            TCPEVENT_KIND_RETRY => Kind::Retry,
            TCPEVENT_KIND_UNSENT => Kind::Unsent,
            _ => panic!("no kind: {raw:#?}"),
        };
        let direction = match raw.direction {
            TCPEVENT_DIRECTION_UNKNOWN => Direction::Unknown,
            TCPEVENT_DIRECTION_CONNECTED => Direction::Connected,
            TCPEVENT_DIRECTION_ACCEPTED => Direction::Accepted,
            _ => panic!("no direction: {raw:#?}"),
        };
        let family = i32::from(raw.family);
        let comm = raw.comm.map(|byte| byte.to_ne_bytes()[0]);
        let length = comm.iter().position(|byte| *byte == 0).expect("comm ends with a NUL");
        Self {
            handle,
            thread,
            kind,
            old_state,
            new_state,
            direction,
            family,
            local: SocketAddr::new(address(family, raw.local_addr), raw.local_port),
            remote: SocketAddr::new(address(family, raw.remote_addr), raw.remote_port),
            owner_by,
            comm: String::from_utf8_lossy(&comm[..length]).into_owned(),
            raw,
        }
    }

    /// Whether these groups of fields are known.
    pub fn knows(&self, groups: u32) -> bool {
        self.known & groups == groups
    }

    /// For a close: whether its error and its counters are known.
    pub fn knows_end(&self) -> [bool; 2] {
        [self.knows(ERROR), self.knows(COUNTERS)]
    }

    /// Payload received, sent and acknowledged.
    pub fn payload(&self) -> [u64; 3] {
        [self.payload_received, self.payload_sent, self.payload_acked]
    }

    /// Local and remote port.
    pub fn ports(&self) -> (u16, u16) {
        (self.local.port(), self.remote.port())
    }

    /// Whether it is the last event of its endpoint.
    pub fn is_end(&self) -> bool {
        self.kind != Kind::Snapshot && self.new_state == "CLOSE"
    }
}

/// The states that an endpoint went through, from its events, which must have no gap.
pub fn states(events: &[Event]) -> String {
    let mut path = events.first().map(|event| event.old_state.clone()).unwrap_or_default();
    for (index, event) in events.iter().enumerate() {
        if let Some(before) = index.checked_sub(1) {
            assert_eq!(event.old_state, events[before].new_state, "there is a gap before {event:#?}");
        }
        path.extend([" ", &event.new_state]);
    }
    path
}

/// The result of one tcpevent_read.
#[derive(Debug)]
pub struct Read {
    /// The number of events, or a negative errno.
    pub result: i32,
    pub events: Vec<Event>,
    /// How long it took.
    pub time: Duration,
}

/// Why a handle could not be opened.
#[derive(Debug)]
pub struct Refusal {
    pub errno: i32,
    /// The text of tcpevent_last_error.
    pub text: String,
}

/// The first words of its lines.
const WORDS: [&str; 18] = [
    "opened",
    "refused",
    "closed",
    "event",
    "read",
    "begun",
    "following",
    "ended",
    "polled",
    "woken",
    "handling",
    "statistics",
    "forked",
    "released",
    "became",
    "entered",
    "threads",
    "version",
];

/// The process, with any number of handles. Killed when dropped.
pub struct Watcher {
    process: Consumer,
    /// Lines that came while another one was awaited: threads print at any time.
    kept: VecDeque<String>,
}

impl Watcher {
    /// A process without a handle.
    pub fn idle() -> Self {
        Self::by(Command::new(c_program("api_watch")))
    }

    /// The same, run by another program.
    pub fn by(command: Command) -> Self {
        Self { process: Consumer::from(command), kept: VecDeque::new() }
    }

    /// A process whose handle 0 is open with these options.
    pub fn open(options: &str) -> Self {
        let mut watcher = Self::idle();
        watcher.open_handle(0, options);
        watcher
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Options are those of `tests/c/api_watch.c`. Unless set, the queue is large enough for whatever else happens on
    /// this host.
    fn tell_open(&mut self, handle: u32, options: &str) -> String {
        let queue = if options.contains("queue=") { "" } else { "queue=65536 " };
        self.tell(&format!("open {handle} {queue}{options}"));
        self.answer_any(&["opened", "refused"])
    }

    pub fn open_handle(&mut self, handle: u32, options: &str) {
        let line = self.tell_open(handle, options);
        assert_eq!(line, format!("opened {handle}"), "with {options:?}");
    }

    /// Tries to open a handle, which must fail.
    pub fn refusal(&mut self, options: &str) -> Refusal {
        let line = self.tell_open(79, options);
        let mut parts = line.splitn(3, ' ');
        assert_eq!(parts.next(), Some("refused"), "it was opened with {options:?}");
        Refusal { errno: parts.next().unwrap().parse().unwrap(), text: parts.next().unwrap().to_owned() }
    }

    pub fn tell(&mut self, command: &str) {
        self.process.tell(command);
    }

    /// Returns the rest of the next line that begins with this word.
    pub fn answer(&mut self, word: &str) -> String {
        let line = self.answer_any(&[word]);
        line[word.len()..].trim_start().to_owned()
    }

    /// The next line that begins with one of these words.
    pub fn answer_any(&mut self, words: &[&str]) -> String {
        let begins = |line: &String| words.contains(&line.split([' ', '\t']).next().unwrap_or_default());
        if let Some(at) = self.kept.iter().position(begins) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            let line = self.process.expect_any(&WORDS);
            if begins(&line) {
                return line;
            }
            self.kept.push_back(line);
        }
    }

    /// The next event that a thread of the process prints.
    pub fn next_event(&mut self) -> Event {
        Event::parse(&self.answer_any(&["event"]))
    }

    /// Sends a command, and returns the rest of the line that answers it.
    pub fn ask(&mut self, command: &str, word: &str) -> String {
        self.tell(command);
        self.answer(word)
    }

    pub fn close_handle(&mut self, handle: u32) {
        assert_eq!(self.ask(&format!("close {handle}"), "closed"), "0");
    }

    /// The lines on stderr so far.
    pub fn stderr(&mut self) -> Vec<String> {
        self.process.stderr()
    }

    pub fn statistics(&mut self, handle: u32) -> HashMap<String, i64> {
        self.ask(&format!("statistics {handle}"), "statistics")
            .split(' ')
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// The events up to the answer of a read.
    pub fn finish_read(&mut self) -> Read {
        let mut events = Vec::new();
        loop {
            let line = self.answer_any(&["event", "read"]);
            if line.starts_with("event") {
                events.push(Event::parse(&line));
                continue;
            }
            let mut numbers = line.split(' ').skip(1);
            let result = numbers.next().unwrap().parse().unwrap();
            let time = Duration::from_micros(numbers.next().unwrap().parse().unwrap());
            assert_eq!(events.len(), usize::try_from(result).unwrap_or(0));
            return Read { result, events, time };
        }
    }

    /// One tcpevent_read on the process's main thread.
    pub fn read(&mut self, handle: u32, count: usize, timeout_ms: i64) -> Read {
        self.tell(&format!("read {handle} {count} {timeout_ms}"));
        self.finish_read()
    }

    /// Reads until the events so far are enough. They include other programs'.
    pub fn events_until(&mut self, handle: u32, what: &str, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
        let until = Instant::now() + patience();
        let mut events = Vec::new();
        while !enough(&events) {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            let read = self.read(handle, 1000, i64::try_from(left).unwrap());
            assert!(read.result > 0, "{what} did not come ({}); there were {events:#?}", read.result);
            events.extend(read.events);
            // The test may ask for cookies after their events have come.
            if rung_is_tracepoint() {
                events.iter_mut().filter(|event| event.cookie == 0).for_each(|event| {
                    event.raw.cookie = cookie_at(event.local, event.remote).unwrap_or(0);
                });
            }
        }
        events
    }

    /// Reads until each of these endpoints has reached CLOSE, and then until a later connection has. So it returns
    /// everything of these endpoints, endpoint by endpoint.
    pub fn lives<const N: usize>(&mut self, handle: u32, cookies: [u64; N]) -> [Vec<Event>; N] {
        let mut events = self.events_until(handle, &format!("the ends of {cookies:?}"), |events| {
            cookies.iter().all(|cookie| events.iter().any(|event| event.cookie == *cookie && event.is_end()))
        });
        events.extend(self.pass_later_connection(handle));
        cookies.map(|cookie| events.iter().filter(|event| event.cookie == cookie).cloned().collect())
    }

    /// Opens and closes a connection, and returns the events up to its last one: everything earlier has come by then.
    pub fn pass_later_connection(&mut self, handle: u32) -> Vec<Event> {
        let connection = Connection::open(V4(), V4());
        let cookies = cookies_of(&connection);
        connection.close_client_first();
        self.events_until(handle, "a later connection", |events| {
            cookies.iter().all(|cookie| events.iter().any(|event| event.cookie == *cookie && event.is_end()))
        })
    }

    /// The close of each of these endpoints; there must be exactly one of each.
    pub fn closes<const N: usize>(&mut self, handle: u32, cookies: [u64; N]) -> [Event; N] {
        self.lives(handle, cookies).map(|life| {
            let [close] = &life[..] else { panic!("{life:#?} came, and not one close") };
            assert_eq!(close.kind, Kind::Close);
            close.clone()
        })
    }
}
