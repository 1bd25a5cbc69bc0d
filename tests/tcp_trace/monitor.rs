//! The monitor as a process, and the meaning of its lines.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::consumer::{heed_interrupts, root, slowness};
use crate::hidden_types::by_tracepoint;
use crate::network::Net;
use crate::webhook::SECRETS;

/// How long to wait for something that must happen: the machine may be busy.
pub fn patience() -> Duration {
    Duration::from_secs(20) * slowness()
}

/// The program that `make` built; or the one named by TCP_TRACE, which must behave the same.
pub fn program() -> PathBuf {
    let path = std::env::var_os("TCP_TRACE").map_or_else(|| root().join("build/tcp_trace"), PathBuf::from);
    assert!(path.exists(), "{} is missing: run `make` first", path.display());
    path
}

/// Variables that the program reads.
pub const VARIABLES: [&str; 6] = ["DEST_IP", "DEST_PORT", "SLACK_URL", "SLACK_CA_FILE", "LOG_FILE", "LOG_RATE"];

/// Variables that libcurl reads: no test uses a proxy.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The program with exactly these arguments and variables.
pub fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program());
    leave_out_own_settings(&mut command);
    command.args(arguments).envs(variables.iter().copied());
    command
}

/// The same on a kernel that hides its types: only the plain tracepoint is left.
pub fn command_by_tracepoint(arguments: &[&str]) -> Command {
    let mut command = by_tracepoint(&program());
    leave_out_own_settings(&mut command);
    command.args(arguments);
    command
}

/// Keeps the settings of the test run itself from the program.
pub fn leave_out_own_settings(command: &mut Command) {
    for name in VARIABLES.into_iter().chain(PROXIES) {
        command.env_remove(name);
    }
    heed_interrupts(command);
}

/// A new folder of this name for the files of one test. Kept for inspection until its next run.
pub fn new_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tcp_trace").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Polls for something that gives no notification, such as a file's contents.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + patience();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "this does not come to be: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Where the log's lines go.
enum Log {
    Stdout(Receiver<Vec<u8>>),
    File(PathBuf),
    Nowhere,
}

/// A running monitor, which is watching once this exists. Killed when dropped.
pub struct Monitor {
    child: Child,
    log: Log,
    errors: Receiver<Vec<u8>>,
    /// All lines that were read from its stdout.
    told: Vec<String>,
    /// The lines up to the notice that it watches, if the log is stdout.
    pub first_lines: Vec<String>,
}

impl Monitor {
    /// Its log is its stdout.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::run(command(arguments, variables))
    }

    pub fn run(mut command: Command) -> Self {
        let mut child = spawn(&mut command, Stdio::piped());
        let lines = lines_of(child.stdout.take().unwrap());
        let mut monitor = Self::of(child, Log::Stdout(lines));
        monitor.first_lines = monitor.until("the start", |line| line.contains(WATCHING));
        monitor
    }

    /// Its log is this file, set by LOG_FILE.
    pub fn with_log(path: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command(arguments, variables);
        command.env("LOG_FILE", path);
        Self::run_with_log(path, command)
    }

    /// The command's log is this file.
    pub fn run_with_log(path: &Path, mut command: Command) -> Self {
        // The file may exist from before.
        let starts = || fs::read(path).map_or(0, |text| String::from_utf8_lossy(&text).matches(WATCHING).count());
        let before = starts();
        let child = spawn(&mut command, Stdio::null());
        let mut monitor = Self::of(child, Log::File(path.to_owned()));
        wait_until("the start", || {
            let there = starts() > before;
            assert!(there || monitor.child.try_wait().unwrap().is_none(), "it has ended: {:?}", monitor.errors());
            there.then_some(())
        });
        monitor
    }

    /// The command's log is a file that cannot be read: this does not wait for the start.
    pub fn run_without_log(mut command: Command) -> Self {
        let child = spawn(&mut command, Stdio::null());
        Self::of(child, Log::Nowhere)
    }

    fn of(mut child: Child, log: Log) -> Self {
        let errors = lines_of(child.stderr.take().unwrap());
        Self { child, log, errors, told: Vec::new(), first_lines: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, if it comes in time.
    pub fn line_within(&mut self, time: Duration) -> Option<String> {
        match self.next_line(time) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().unwrap();
                panic!("it has ended, {status}; on stderr: {:?}", self.errors())
            }
        }
    }

    /// The same, or why there is none.
    fn next_line(&mut self, time: Duration) -> Result<String, RecvTimeoutError> {
        let Log::Stdout(lines) = &self.log else { panic!("the log is a file") };
        let line = checked(lines.recv_timeout(time)?);
        self.told.push(line.clone());
        Ok(line)
    }

    /// All lines up to and including the first matching one.
    pub fn until(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let until = Instant::now() + patience();
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !fits(line)) {
            match self.line_within(until.saturating_duration_since(Instant::now())) {
                Some(line) => lines.push(line),
                None => panic!("there is no line of {what} in {lines:#?}; {}", self.last_words()),
            }
        }
        lines
    }

    /// All it has said, and what it still says when it is told to end: its counters are among that.
    fn last_words(&mut self) -> String {
        self.signal(libc::SIGTERM);
        while self.next_line(Duration::from_secs(5) * slowness()).is_ok() {}
        format!("all lines: {:#?}", self.told)
    }

    /// Has a connection to the marker of these addresses refused, and returns all earlier lines: those of all
    /// connections that have ended by now are among them.
    pub fn until_marker(&mut self, net: Net) -> Vec<String> {
        // A close caused by the peer waits 10 ms for its owner, or until the owner is looked up.
        thread::sleep(Duration::from_millis(100) * slowness());
        let marker = net.mark().to_string();
        let is_failure = |line: &str| line.contains(FAILURE) || line.contains("\"kind\":\"failure\"");
        let mut lines = self.until("the marker", |line| line.contains(&marker) && is_failure(line));
        lines.retain(|line| !line.contains(&marker));
        lines
    }

    pub fn signal(&self, signal: i32) {
        signal_process(self.pid(), signal);
    }

    /// Waits for a line on stderr.
    pub fn error(&mut self, what: &str, fits: impl Fn(&str) -> bool) {
        let until = Instant::now() + patience();
        loop {
            match self.errors.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if fits(&checked(line.clone())) => return,
                Ok(_) => {}
                Err(why) => panic!("nothing of {what} comes on stderr: {why:?}"),
            }
        }
    }

    /// Everything on stderr that was not read before, up to the end of the program.
    fn errors(&mut self) -> Vec<String> {
        self.errors.iter().map(checked).collect()
    }

    /// Ends it with this signal.
    pub fn end_by(self, signal: i32) -> Ended {
        self.signal(signal);
        self.end()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let start = Instant::now();
        let child = &mut self.child;
        let status = wait_until("the program's end", || child.try_wait().unwrap());
        let took = start.elapsed();
        let mut errors = self.errors();
        if !matches!(self.log, Log::Stdout(_)) {
            // On an interactive start the notice goes to stderr too.
            errors.retain(|line| !matches!(Line::try_parse(line), Some(Line { what: What::Notice(_), .. })));
        }
        let lines = match &self.log {
            Log::Stdout(lines) => lines.iter().map(checked).collect(),
            Log::File(path) => read_log(path),
            Log::Nowhere => Vec::new(),
        };
        Ended { status: status.code(), signal: status.signal(), took, lines, errors }
    }

    /// Ends it by SIGTERM: with status 0, and nothing on stderr. Returns the lines as [`Ended::lines`].
    pub fn end_well(self) -> Vec<String> {
        self.end_by(libc::SIGTERM).well()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const WATCHING: &str = "watching TCP connections to ";

fn spawn(command: &mut Command, stdout: Stdio) -> Child {
    let piped = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A line as text: it must be valid UTF-8, and contain no secret.
fn checked(line: Vec<u8>) -> String {
    let text = String::from_utf8(line).unwrap_or_else(|error| panic!("a line is not UTF-8: {error}"));
    for secret in SECRETS {
        assert!(!text.contains(secret), "a part of the webhook's URL is in: {text}");
    }
    text
}

/// The lines of a log file, all of which must be whole.
pub fn read_log(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    whole_lines(&bytes).unwrap_or_else(|| panic!("{} ends in half a line", path.display()))
}

/// The lines of these bytes. `None` if the last one is not whole.
pub fn whole_lines(bytes: &[u8]) -> Option<Vec<String>> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\n").map(|line| checked(line.to_vec()))).collect()
}

pub fn signal_process(pid: u32, signal: i32) {
    // SAFETY: a signal to a child of this process that is not reaped yet.
    assert_eq!(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, 0);
}

/// The result of a program that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    /// From the call that waited for it.
    pub took: Duration,
    /// Lines not read before; of a file, all.
    pub lines: Vec<String>,
    /// Without the start's notices, if the log is a file.
    pub errors: Vec<String>,
}

impl Ended {
    /// It must have ended with 0, its summary, and nothing on stderr.
    pub fn well(self) -> Vec<String> {
        assert_eq!((self.status, self.errors.len()), (Some(0), 0), "{self:#?}");
        assert!(self.lines.last().is_some_and(|line| line.contains("stopped: ")), "{self:#?}");
        self.lines
    }

    /// It must have ended with this status, one line on stderr and nothing else. Returns that line.
    pub fn badly(self, status: i32) -> String {
        assert_eq!((self.status, self.lines.len(), self.errors.len()), (Some(status), 0, 1), "{self:#?}");
        self.errors.into_iter().next().unwrap()
    }
}

/// Runs a command that must fail before it watches.
pub fn run_to_end(mut command: Command) -> Ended {
    let mut child = spawn(&mut command, Stdio::piped());
    let lines = lines_of(child.stdout.take().unwrap());
    Monitor::of(child, Log::Stdout(lines)).end()
}

// ---- Lines

/// One end of a connection in a certain state: a line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub pid: u32,
    pub state: String,
    pub local: String,
    pub remote: String,
    pub local_port: u16,
    pub remote_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    State(State),
    Notice(String),
    Warning(String),
}

/// A line that was parsed, and is well-formed to the last blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub time_ns: u64,
    pub what: What,
}

const FAILURE: &str = "TCP failure detected: ";

impl Line {
    pub fn parse(line: &str) -> Self {
        let parsed = Self::try_parse(line);
        parsed.unwrap_or_else(|| panic!("neither a state, nor a notice, nor a warning: {line:?}"))
    }

    fn try_parse(line: &str) -> Option<Self> {
        let (time, rest) = line.split_once(' ')?;
        let time_ns = time_ns(time)?;
        if let Some(text) = rest.strip_prefix("NOTICE ") {
            return Some(Self { time_ns, what: What::Notice(text.to_owned()) });
        }
        if let Some(text) = rest.strip_prefix("WARNING ") {
            return Some(Self { time_ns, what: What::Warning(text.to_owned()) });
        }
        let [pid, state, local, remote, local_port, remote_port] =
            *rest.split_whitespace().collect::<Vec<_>>().as_slice()
        else {
            return None;
        };
        let state = State {
            pid: pid.parse().ok()?,
            state: state.to_owned(),
            local: local.to_owned(),
            remote: remote.to_owned(),
            local_port: local_port.parse().ok()?,
            remote_port: remote_port.parse().ok()?,
        };
        (state.to_line(time) == line).then_some(Self { time_ns, what: What::State(state) })
    }
}

impl State {
    fn to_line(&self, time: &str) -> String {
        let Self { pid, state, local, remote, local_port, remote_port } = self;
        format!("{time} {pid:>6} {state:<15} {local:<15} {remote:<15} {local_port:>6} {remote_port:>6}")
    }
}

/// Parses lines, all of which must be well-formed.
pub fn parse(lines: &[String]) -> Vec<Line> {
    lines.iter().map(|line| Line::parse(line)).collect()
}

pub fn states(lines: &[String]) -> Vec<State> {
    let state = |line: Line| if let What::State(state) = line.what { Some(state) } else { None };
    parse(lines).into_iter().filter_map(state).collect()
}

/// The warnings of failed connects, from the address on.
pub fn failures(lines: &[String]) -> Vec<String> {
    warnings(lines).iter().filter_map(|text| text.strip_prefix(FAILURE).map(ToOwned::to_owned)).collect()
}

/// The texts of all warnings.
pub fn warnings(lines: &[String]) -> Vec<String> {
    let warning = |line: Line| if let What::Warning(text) = line.what { Some(text) } else { None };
    parse(lines).into_iter().filter_map(warning).collect()
}

/// The texts of all notices.
pub fn notices(lines: &[String]) -> Vec<String> {
    let notice = |line: Line| if let What::Notice(text) = line.what { Some(text) } else { None };
    parse(lines).into_iter().filter_map(notice).collect()
}

/// The last line: `NOTICE stopped: N state changes, F failures, L lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub states: u64,
    pub failures: u64,
    pub lost: u64,
}

impl Summary {
    pub fn of(lines: &[String]) -> Self {
        let line = lines.last().expect("there is a last line");
        let read = || {
            let (_, text) = line.split_once(" NOTICE stopped: ")?;
            let (states, text) = text.split_once(" state changes, ")?;
            let (failures, text) = text.split_once(" failures, ")?;
            let lost = text.strip_suffix(" lost")?;
            Some(Self { states: states.parse().ok()?, failures: failures.parse().ok()?, lost: lost.parse().ok()? })
        };
        read().unwrap_or_else(|| panic!("no summary: {line}"))
    }
}

/// `2026-11-22T02:30:00.123456Z` in nanoseconds since 1970; `None` in any other form.
fn time_ns(text: &str) -> Option<u64> {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000000Z";
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    if text.len() != FORM.len() || !text.bytes().zip(FORM).all(fits) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().unwrap();
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    // Years that begin in March end with the leap day.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1;
    let since_1970 = days.checked_sub(719_468)?;
    let seconds = ((since_1970 * 24 + number(11, 13)) * 60 + number(14, 16)) * 60 + number(17, 19);
    Some((seconds * 1_000_000 + number(20, 26)) * 1000)
}

#[test]
fn times_are_read_as_date_reads_them() {
    for text in ["1970-01-01T00:00:00.000000Z", "2000-02-29T23:59:59.999999Z", "2026-11-22T02:30:00.123456Z"] {
        let date = Command::new("date").args(["-u", "+%s%N", "-d", text]).output().unwrap();
        assert_eq!(time_ns(text), String::from_utf8(date.stdout).unwrap().trim_end().parse().ok(), "{text}");
    }
    assert_eq!(time_ns("2026-11-22T02:30:00.123456"), None);
}

// ---- JSON

/// An object of the log: each value as Python writes it in JSON, with all characters beyond ASCII escaped.
pub type Object = BTreeMap<String, String>;

/// Parsed by Python, as consumers do not share a parser of ours.
const READ_JSON: &str = r#"
import json, sys
def once(pairs):
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names), names
    return dict(pairs)
def no_constant(name):
    raise ValueError(name)
for line in sys.stdin.buffer.read().split(b"\n")[:-1]:
    object = json.loads(line.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    assert type(object) is dict, line
    print(*(f"{name}\t{json.dumps(value)}" for name, value in object.items()), sep="\t")
"#;

/// Lines that must each be one JSON object.
pub fn objects(lines: &[String], folder: &Path) -> Vec<Object> {
    let path = folder.join("lines.json");
    let mut file = File::create(&path).unwrap();
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
    let output = Command::new("python3").args(["-c", READ_JSON]).stdin(File::open(&path).unwrap()).output();
    let output = output.expect("python3 runs: `.ci/setup build` installs it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} has a line that is no object in JSON: {errors}", path.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let object = |line: &str| {
        let fields: Vec<_> = line.split('\t').collect();
        fields.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
    };
    text.lines().map(object).collect()
}
