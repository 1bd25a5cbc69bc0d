//! A consumer process controlled by a test: `tests/c/consumer.c`, linked with the library.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::{FromStr, Split};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much longer than on this machine things may take: 1 here, more in an emulated one.
pub fn slowness() -> u32 {
    std::env::var("TCPEVENT_TEST_SLOWNESS").map_or(1, |text| text.parse().expect("TCPEVENT_TEST_SLOWNESS is a number"))
}

/// Has a program heed SIGINT, as far as it does not say otherwise itself: a shell ignores it for background jobs, and what ignores
/// it hands that down.
pub fn heed_interrupts(command: &mut Command) {
    // SAFETY: the call is async-signal-safe, and sets no handler.
    unsafe {
        command.pre_exec(|| match libc::signal(libc::SIGINT, libc::SIG_DFL) {
            libc::SIG_ERR => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// Whether the long runs are requested: `make soak`.
pub fn soak() -> bool {
    std::env::var_os("TCPEVENT_SOAK").is_some()
}

/// Whether the probe is one that sees only what a plain tracepoint reports of a socket.
pub fn rung_is_tracepoint() -> bool {
    std::env::var("TCPEVENT_PROBE").is_ok_and(|rung| rung == "tracepoint")
}

/// As in `(6, 12)`.
pub fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether a test must be skipped: before Linux 5.12, or with a kprobe and no kernel types, a socket has no cookie
/// until a process asks for it, and events without a cookie cannot be told apart.
pub fn lacks_cookies() -> bool {
    let version = kernel_version();
    let has_tracing = Path::new("/sys/kernel/btf/vmlinux").exists();
    let is_kprobe = std::env::var("TCPEVENT_PROBE").is_ok_and(|rung| rung == "kprobe");
    let lacks = version < (5, 12) || (is_kprobe && !has_tracing);
    if lacks {
        eprintln!("skipped: Linux {version:?} gives the probe no cookies (its types are shown: {has_tracing})");
    }
    lacks
}

/// Whether a test must be skipped because this probe cannot know what it is about.
pub fn is_beyond_the_rung(what: &str) -> bool {
    let is_beyond = rung_is_tracepoint();
    if is_beyond {
        eprintln!("skipped: a plain tracepoint does not report {what}");
    }
    is_beyond
}

/// The read end and the write end. (`std::io::pipe` needs Rust 1.87.)
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors, which have no other owner.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// Whether the kernel has kprobes.
pub fn has_kprobes() -> bool {
    Path::new("/sys/kernel/tracing/kprobe_events").exists()
}

/// Whether the probe sees accepts. No kernel of these tests has trampolines and no kprobes.
pub fn sees_accepts() -> bool {
    has_kprobes()
}

/// Whether the close of an accepted endpoint has an owner, even where its process has done nothing since: who has accepted it, holds
/// it or lets go of it. The plain tracepoint needs to see the accept.
pub fn finds_holders() -> bool {
    !rung_is_tracepoint() || has_kprobes()
}

/// How long to wait for something that must happen.
pub fn patience() -> Duration {
    Duration::from_secs(10) * slowness().div_ceil(4)
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The library under test: the one that ships.
pub fn library() -> PathBuf {
    let path = root().join("target/release/libtcpEvent.so");
    assert!(path.exists(), "{} is missing: run `cargo build --release` first", path.display());
    path
}

/// Builds a C program of `tests/c` against `include/` and the library, once a run.
pub fn c_program(name: &str) -> PathBuf {
    let libraries = library().parent().unwrap().to_owned();
    let rpath = format!("-Wl,-rpath,{}", libraries.display());
    built(name, name, &["-L", libraries.to_str().unwrap(), &rpath, "-ltcpEvent"])
}

/// A library of `tests/c`, to be preloaded.
pub fn c_preload(name: &str) -> PathBuf {
    built(name, &format!("{name}.so"), &["-shared", "-fPIC"])
}

fn built(name: &str, to: &str, options: &[&str]) -> PathBuf {
    static BUILT: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let folder = root().join("target/c");
    let program = folder.join(to);
    if !built.iter().any(|other| other == name) {
        let source = |suffix| root().join(format!("tests/c/{name}.{suffix}"));
        let is_cxx = source("cc").exists();
        let (source, compiler, standard) =
            if is_cxx { (source("cc"), "c++", "-std=c++17") } else { (source("c"), "cc", "-std=c11") };
        let headers = ["include/event.h", "include/tcpevent.h", "tests/c/check.h"].map(|name| root().join(name));
        if !is_newer(&program, &[&source, &library(), &headers[0], &headers[1], &headers[2]]) {
            std::fs::create_dir_all(&folder).unwrap();
            let unfinished = folder.join(format!("{name}.{}", std::process::id()));
            let status = Command::new(compiler)
                .args([standard, "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic", "-pthread"])
                .arg("-I")
                .arg(root().join("include"))
                .arg(source)
                .arg("-o")
                .arg(&unfinished)
                .args(options)
                .status()
                .expect("cc runs");
            assert!(status.success(), "tests/c/{name} does not compile");
            // Two kernels may run the same tests on the same files.
            std::fs::rename(unfinished, &program).unwrap();
        }
        built.push(name.to_owned());
    }
    program
}

/// A user without any files.
pub const NOBODY: u32 = 65534;

/// Copies a program of `tests/c`, and the library, to a folder that every user can read: the project may be in root's
/// home.
fn copy_for_all(name: &str) -> PathBuf {
    let folder = Path::new("/tmp/tcpevent-for-all");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    for file in [c_program(name), library()] {
        let copy = folder.join(file.file_name().unwrap());
        // Never overwrites a file that a process still runs.
        let _ = std::fs::remove_file(&copy);
        std::fs::copy(&file, copy).unwrap();
    }
    folder.join(name)
}

fn is_newer(file: &Path, than: &[&Path]) -> bool {
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    time(file).is_some_and(|made| than.iter().all(|other| time(other).is_some_and(|changed| made > changed)))
}

/// The probe sees the whole host, so tests take turns. So do tests that only start a process: for a moment it holds all
/// that this one has open, and may be the one that really closes a connection.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event as a consumer got it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub thread: u32,
    pub time_ns: u64,
    pub pid: u32,
    pub uid: u32,
    pub rx: u64,
    pub tx: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub family: u16,
    pub local_port: u16,
    pub remote_port: u16,
    pub task: String,
    pub local: String,
    pub remote: String,
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        fn next<T: FromStr>(columns: &mut Split<'_, char>) -> Option<T> {
            columns.next()?.parse().ok()
        }

        let mut columns = line.strip_prefix("event\t")?.split('\t');
        Some(Self {
            thread: next(&mut columns)?,
            time_ns: next(&mut columns)?,
            pid: next(&mut columns)?,
            uid: next(&mut columns)?,
            rx: next(&mut columns)?,
            tx: next(&mut columns)?,
            segs_out: next(&mut columns)?,
            segs_in: next(&mut columns)?,
            family: next(&mut columns)?,
            local_port: next(&mut columns)?,
            remote_port: next(&mut columns)?,
            task: next(&mut columns)?,
            local: next(&mut columns)?,
            remote: next(&mut columns)?,
        })
    }

    /// Local and remote port, by which a test identifies its endpoints.
    pub fn ports(&self) -> (u16, u16) {
        (self.local_port, self.remote_port)
    }
}

/// A running consumer. Killed when dropped.
pub struct Consumer {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
    /// Lines read while another one was awaited.
    kept: VecDeque<String>,
}

/// The same mount as systemd's.
pub const TRACEFS: &str = "{ mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; }";
/// The second place has it too, where it exists.
const NO_TRACEFS: &str = "mount -t tmpfs none /sys/kernel/tracing && \
                          { [ ! -d /sys/kernel/debug ] || mount -t tmpfs none /sys/kernel/debug; }";

impl Consumer {
    /// Runs `tests/c/consumer.c` with these variables set. Sweeps are off by default.
    pub fn run(variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(c_program("consumer"));
        command.env("TCPEVENT_NETLINK_INTERVAL", "0").envs(variables.iter().copied());
        Self::from(command)
    }

    /// The same as user nobody, with only these capabilities (named as in `sys_ptrace`).
    pub fn with_capabilities(capabilities: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::with_capabilities_after("true", capabilities, variables)
    }

    /// The same, with tracefs mounted nowhere.
    pub fn without_tracefs(capabilities: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::with_mounts(NO_TRACEFS, capabilities, variables)
    }

    /// The same, in a mount namespace of its own, after root has run a script there.
    pub fn with_capabilities_after(script: &str, capabilities: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::with_mounts(&format!("{TRACEFS} && {script}"), capabilities, variables)
    }

    fn with_mounts(script: &str, capabilities: &[&str], variables: &[(&str, &str)]) -> Self {
        let program = copy_for_all("consumer");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{script} && exec \"$0\" \"$@\""), "setpriv"]);
        command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
        // Only ambient ones survive the exec of a program without file capabilities.
        let set: String = capabilities.iter().flat_map(|name| [",+", name]).collect();
        command.arg(format!("--inh-caps=-all{set}")).arg(format!("--ambient-caps=-all{set}"));
        command.arg(&program).env("LD_LIBRARY_PATH", program.parent().unwrap());
        command.env("TCPEVENT_NETLINK_INTERVAL", "0").envs(variables.iter().copied());
        Self::from(command)
    }

    /// Runs any program that understands the same commands.
    pub fn from(command: Command) -> Self {
        Self::with_stderr(command, Stdio::piped())
    }

    /// The same, with stderr redirected.
    pub fn with_stderr(mut command: Command, stderr: Stdio) -> Self {
        heed_interrupts(&mut command);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().expect("the consumer runs");
        let lines = lines_of(child.stdout.take().unwrap());
        let errors = child.stderr.take().map_or_else(|| channel().1, lines_of);
        let stdin = child.stdin.take();
        Self { child, stdin, lines, errors, kept: VecDeque::new() }
    }

    /// A consumer with its probe attached.
    pub fn started(variables: &[(&str, &str)]) -> Self {
        let mut consumer = Self::run(variables);
        consumer.start();
        consumer
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").expect("the consumer listens");
    }

    /// Starts the probe and waits until it reads. Returns how many milliseconds that took.
    pub fn start(&mut self) -> f64 {
        self.tell("start");
        let line = self.expect("started");
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Calls cleanup().
    pub fn cleanup(&mut self) {
        self.tell("cleanup");
        self.expect("cleaned");
    }

    /// The next line that begins with this word; earlier ones are kept for [`Self::event`].
    pub fn expect(&mut self, word: &str) -> String {
        self.expect_any(&[word])
    }

    /// The next line that begins with one of these words.
    pub fn expect_any(&mut self, words: &[&str]) -> String {
        let until = Instant::now() + patience();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if words.contains(&line.split([' ', '\t']).next().unwrap_or_default()) => return line,
                Ok(line) => self.kept.push_back(line),
                Err(why) => panic!("none of {words:?} came ({why:?}); on stderr: {:?}", self.stderr()),
            }
        }
    }

    /// The next event, if one comes in time. Any other line is a failure: nothing else may be on stdout.
    pub fn event_within(&mut self, time: Duration) -> Option<Event> {
        let line = match self.kept.pop_front() {
            Some(line) => line,
            None => match self.lines.recv_timeout(time) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the consumer ended; on stderr: {:?}", self.stderr()),
            },
        };
        Some(Event::parse(&line).unwrap_or_else(|| panic!("not an event: {line:?}")))
    }

    /// The first matching event.
    pub fn event(&mut self, what: &str, mut fits: impl FnMut(&Event) -> bool) -> Event {
        let until = Instant::now() + patience();
        let mut others = Vec::new();
        while let Some(event) = self.event_within(until.saturating_duration_since(Instant::now())) {
            if fits(&event) {
                return event;
            }
            others.push(event);
        }
        panic!("no event of {what} came; there were {others:#?}; on stderr: {:?}", self.stderr());
    }

    /// The events of both ends of a connection, in the order of the port pairs given.
    pub fn both_ends(&mut self, ports: (u16, u16)) -> (Event, Event) {
        let mut ends = (None, None);
        while ends.0.is_none() || ends.1.is_none() {
            let event = self.event(&format!("ports {ports:?}"), |event| {
                event.ports() == ports || event.ports() == (ports.1, ports.0)
            });
            let end = if event.ports() == ports { &mut ends.0 } else { &mut ends.1 };
            assert!(end.is_none(), "two events of one endpoint: {end:?} and {event:?}");
            *end = Some(event);
        }
        (ends.0.unwrap(), ends.1.unwrap())
    }

    /// All events until there is silence.
    pub fn events_until_silence(&mut self) -> Vec<Event> {
        let silence = Duration::from_millis(300) * slowness().div_ceil(2);
        // On a host that is never silent, until patience runs out.
        let until = Instant::now() + 3 * patience();
        std::iter::from_fn(|| self.event_within(silence).filter(|_| Instant::now() < until)).collect()
    }

    /// All events up to another line.
    pub fn events_until(&mut self, word: &str) -> Vec<Event> {
        self.expect(word);
        self.kept
            .drain(..)
            .map(|line| Event::parse(&line).unwrap_or_else(|| panic!("not an event: {line:?}")))
            .collect()
    }

    /// The lines on stderr so far.
    pub fn stderr(&mut self) -> Vec<String> {
        thread::sleep(Duration::from_millis(50) * slowness());
        self.errors.try_iter().collect()
    }

    /// Waits for the process to end by itself. Returns the exit code; `None` for a signal.
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + patience();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the consumer does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}
