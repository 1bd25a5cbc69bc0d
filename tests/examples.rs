//! The example programs, a consumer in the style of the reference library's own, and the demonstration, run as a user
//! would.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use consumer::{heed_interrupts, root, turn};
use hidden_types::by_tracepoint;
use socket2::{Domain, Socket, Type};
use traffic::{Connection, V4, V6, own_comm, wall_ns};

#[path = "live/consumer.rs"]
#[allow(dead_code)] // The live tests use the rest.
mod consumer;
#[path = "tcp_trace/hidden_types.rs"]
mod hidden_types;
#[path = "live/traffic.rs"]
#[allow(dead_code)]
mod traffic;

/// How long to wait for something that must happen: the machine may be busy, or emulated.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program built by `make`.
fn built(name: &str) -> PathBuf {
    let path = root().join("build").join(name);
    assert!(path.exists(), "{} is missing: run `make` first", path.display());
    path
}

/// A program that gets closes and no snapshots, and loses none, whatever the rest of the host does.
fn watcher(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("TCPEVENT_NETLINK_INTERVAL", "0").env("TCPEVENT_QUEUE", "100000");
    command
}

fn tcp_table(arguments: &[&str]) -> Command {
    let mut command = watcher(built("tcp_table"));
    command.args(arguments);
    command
}

/// One of the small examples in C.
fn example(name: &str) -> Command {
    watcher(built(&format!("examples/{name}")))
}

fn dlopen() -> Command {
    let mut command = example("dlopen");
    command.arg(built("libtcpEvent.so"));
    command
}

/// A running program. Killed when dropped.
struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        heed_interrupts(&mut command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line, if it comes in time.
    fn line_within(&mut self, time: Duration) -> Option<String> {
        match self.lines.recv_timeout(time) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the program has ended; on stderr: {}", self.errors()),
        }
    }

    fn line(&mut self) -> String {
        self.line_within(PATIENCE).expect("a line comes in time")
    }

    /// Makes connections until there is a line: from then on the program sees every connection.
    fn wait_for_a_line(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            connect_once();
            if self.line_within(Duration::from_millis(50)).is_some() {
                return;
            }
            assert!(Instant::now() < until, "the program prints nothing");
        }
    }

    /// The lines until each of these has come.
    fn lines_until_all(&mut self, wanted: &[impl Fn(&str) -> bool; 2]) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        let mut came = [false; 2];
        while came != [true; 2] {
            let Some(line) = self.line_within(until.saturating_duration_since(Instant::now())) else {
                panic!("not both came; there were {lines:#?}");
            };
            for (came, wanted) in came.iter_mut().zip(wanted) {
                *came |= wanted(&line);
            }
            lines.push(line);
        }
        lines
    }

    fn interrupt(&self) {
        // SAFETY: a signal to a child of this process that is not reaped yet.
        unsafe { libc::kill(self.child.id().try_into().unwrap(), libc::SIGINT) };
    }

    fn end(self) -> Ended {
        self.end_while(|| ())
    }

    /// Waits for the end, and repeats something meanwhile.
    fn end_while(mut self, mut busy: impl FnMut()) -> Ended {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "the program does not end");
            busy();
            thread::sleep(Duration::from_millis(5));
        };
        Ended { status: status.code(), lines: self.lines.iter().collect(), errors: self.errors() }
    }

    /// Everything on stderr, up to the end of the program.
    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The result of a program that has ended.
#[derive(Debug)]
struct Ended {
    /// `None` for a signal.
    status: Option<i32>,
    /// Lines not read before.
    lines: Vec<String>,
    errors: String,
}

impl Ended {
    /// It must have ended with 0, and nothing on stderr. Returns the lines.
    fn well(self) -> Vec<String> {
        assert_eq!((self.status, self.errors.as_str()), (Some(0), ""), "{self:#?}");
        self.lines
    }

    /// It must have ended by SIGINT, and nothing on stderr. Returns the lines.
    fn by_interrupt(self) -> Vec<String> {
        assert_eq!((self.status, self.errors.as_str()), (None, ""), "{self:#?}");
        self.lines
    }

    /// It must have ended with this status, one line on stderr and nothing else. Returns that line.
    fn badly(self, status: i32) -> String {
        assert_eq!((self.status, self.lines.len(), self.errors.lines().count()), (Some(status), 0, 1), "{self:#?}");
        self.errors
    }
}

fn connect_once() {
    Connection::open(V4(), V4()).close_client_first();
}

/// A closed connection, and the known facts of its ends.
struct Known {
    opened_ns: u64,
    /// Port of the initiator's end, and of the accepting one.
    ports: [u16; 2],
    /// All fields but the time, as the columns of `tcp_table --tsv`: of the initiator's end, and of the other one.
    rows: [String; 2],
}

impl Known {
    /// The initiator sends 5,000 bytes and closes first.
    fn make(at: SocketAddr, task: &str) -> Self {
        let opened_ns = wall_ns();
        let mut connection = Connection::open(at, at);
        let (opener, acceptor) = connection.ports();
        connection.send_up(5000);
        connection.close_client_first();
        let (pid, address) = (process::id(), at.ip());
        let family = if at.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
        // SYN and FIN count as a byte each.
        let rows = [
            format!("{pid}\t0\t1\t5002\t1\t0\t{family}\t{opener}\t{acceptor}\t{task}\t{address}\t{address}"),
            format!("{pid}\t0\t5001\t1\t0\t1\t{family}\t{acceptor}\t{opener}\t{task}\t{address}\t{address}"),
        ];
        Self { opened_ns, ports: [opener, acceptor], rows }
    }

    /// Recognises rows of the two ends; `mark` writes their ports.
    fn are_marked(&self, mark: impl Fn(u16, u16) -> String) -> [impl Fn(&str) -> bool; 2] {
        let [opener, acceptor] = self.ports;
        [mark(opener, acceptor), mark(acceptor, opener)].map(|mark| move |line: &str| line.contains(&mark))
    }

    fn are_rows(&self) -> [impl Fn(&str) -> bool; 2] {
        self.are_marked(|local, remote| format!("\t{local}\t{remote}\t"))
    }

    /// These lines of `tcp_table --tsv` must contain one of each end, with all fields right.
    fn check(&self, lines: &[String]) {
        for (is_mine, row) in self.are_rows().into_iter().zip(&self.rows) {
            let mine: Vec<_> = lines.iter().filter(|line| is_mine(line)).collect();
            let [line] = mine[..] else { panic!("{mine:#?} came, and not one row only") };
            let (time, rest) = line.split_once('\t').unwrap();
            assert_eq!(rest, row);
            self.check_time(time);
        }
    }

    fn check_time(&self, text: &str) {
        let time = text.parse().unwrap();
        assert!((self.opened_ns..=wall_ns()).contains(&time), "{time} is not since {}", self.opened_ns);
    }
}

// ---- tcp_table

const HEADER: &str =
    "#EventTime\tpid\tUserId\trx_b\ttx_b\ttcpi_segs_out\ttcpi_segs_in\tfamily\tSPT\tDPT\ttask\tSADDR\tDADDR";

#[test]
fn tcp_table_gives_other_programs_all_fields_of_a_connection() {
    let _turn = turn();
    let mut table = Program::start(tcp_table(&["--tsv"]));
    assert_eq!(table.line(), HEADER);
    for at in [V4(), V6()] {
        let known = Known::make(at, &own_comm());
        known.check(&table.lines_until_all(&known.are_rows()));
    }
}

#[test]
fn tcp_table_escapes_what_would_break_a_line_or_a_field() {
    let _turn = turn();
    let mut table = Program::start(tcp_table(&["--tsv"]));
    assert_eq!(table.line(), HEADER);
    fs::write("/proc/thread-self/comm", "a\tb\nc\\d\x01e\x7f").unwrap();
    let known = Known::make(V4(), r"a\tb\nc\\d\x01e\x7f");
    known.check(&table.lines_until_all(&known.are_rows()));
}

/// What a terminal or the reader of a line would obey: control characters, line separators, direction marks, and
/// invisible characters.
const MARKS: [(&str, &str); 10] = [
    ("\u{85}a\u{2028}b\u{2029}", r"\xc2\x85a\xe2\x80\xa8b\xe2\x80\xa9"),
    ("\u{202a}\u{202b}\u{202c}\u{202d}", r"\xe2\x80\xaa\xe2\x80\xab\xe2\x80\xac\xe2\x80\xad"),
    ("x\u{202e}\u{2066}\u{2067}\u{2068}", r"x\xe2\x80\xae\xe2\x81\xa6\xe2\x81\xa7\xe2\x81\xa8"),
    ("\u{2069}\u{200b}\u{200c}\u{200d}", r"\xe2\x81\xa9\xe2\x80\x8b\xe2\x80\x8c\xe2\x80\x8d"),
    ("\u{200e}\u{200f}\u{2060}\u{feff}", r"\xe2\x80\x8e\xe2\x80\x8f\xe2\x81\xa0\xef\xbb\xbf"),
    ("\x1b[2J\u{9b}31m", r"\x1b[2J\xc2\x9b31m"),
    ("\u{e0041}\u{61c}\u{ad}", r"\xf3\xa0\x81\x81\xd8\x9c\xc2\xad"),
    ("\u{3164}\u{115f}\u{fe0f}\u{34f}x", r"\xe3\x85\xa4\xe1\x85\x9f\xef\xb8\x8f\xcd\x8fx"),
    ("\u{e0100}\u{ffa0}\u{180b}\u{17b4}", r"\xf3\xa0\x84\x80\xef\xbe\xa0\xe1\xa0\x8b\xe1\x9e\xb4"),
    ("a\r\n\tb\\c", r"a\r\n\tb\\c"),
];

fn check_readable(line: &str, wanted: &str) {
    assert!(line.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)), "{line:?}");
    assert!(line.contains(wanted), "{line:?} has no {wanted}");
}

/// A program's output for connections of a process with such a name. `written` is its form of the name.
fn check_marks(mut program: Program, mark: impl Fn(u16, u16) -> String, written: impl Fn(&str) -> String) {
    for (command, escaped) in MARKS {
        fs::write("/proc/thread-self/comm", command).unwrap();
        let known = Known::make(V4(), "");
        let are_mine = known.are_marked(&mark);
        for line in program.lines_until_all(&are_mine).iter().filter(|line| are_mine.iter().any(|mine| mine(line))) {
            check_readable(line, &written(escaped));
        }
    }
}

#[test]
fn a_name_that_a_terminal_would_obey_reaches_none_by_any_example() {
    let _turn = turn();
    let mut table = Program::start(tcp_table(&["--tsv"]));
    table.line();
    check_marks(table, |local, remote| format!("\t{local}\t{remote}\t"), |escaped| format!("\t{escaped}\t"));

    let mut program = Program::start(dlopen());
    program.wait_for_a_line();
    let of_json = |local, remote| format!("\"SPT\":{local},\"DPT\":{remote},");
    check_marks(program, of_json, |_| "\"task\":\"".to_owned());

    check_marks(own_watch(), ends(V4().ip()), |_| "[".to_owned());

    let mut program = Program::start(example("classic"));
    program.wait_for_a_line();
    check_marks(program, ends(V4().ip()), |_| "[".to_owned());

    // In the table a long name is cut.
    let mut table = tcp_table(&[]);
    table.env("LC_ALL", "C.UTF-8").env("TCPEVENT_FILTER", format!("pid {}", process::id()));
    let mut table = Program::start(table);
    table.line();
    for (command, _) in MARKS {
        fs::write("/proc/thread-self/comm", command).unwrap();
        connect_once();
        for _ in 0..2 {
            check_readable(&table.line(), " 127.0.0.1:");
        }
    }
}

#[test]
fn a_connection_to_port_0_is_no_listener() {
    let _turn = turn();
    let mut table = tcp_table(&[]);
    table.env("TCPEVENT_FILTER", format!("dport 0 pid {}", process::id()));
    let mut table = Program::start(table);
    table.line();
    // The kernel sends its SYN there as to any other port, and no program can listen there.
    let error = TcpStream::connect((V4().ip(), 0)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let line = table.line();
    assert!(line.contains(" 127.0.0.1:0 ") && !line.contains("listen"), "{line}");
}

#[test]
fn the_table_is_80_columns_wide_where_there_is_no_terminal_however_long_the_addresses() {
    const LONG: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666);

    let _turn = turn();
    let mut table = Program::start(tcp_table(&[]));
    let header = table.line();
    let titles: Vec<_> = header.split_whitespace().collect();
    assert_eq!(titles, ["TIME", "PID", "USER", "CMD", "LOCAL", "REMOTE", "RX", "TX", "SEGS"]);
    let known = thread::scope(|scope| {
        let in_own_network = scope.spawn(|| {
            enter_network_with(LONG);
            Known::make((LONG, 0).into(), "")
        });
        in_own_network.join().unwrap()
    });
    let [opener, acceptor] = known.ports;
    let is_row = |local: u16, remote: u16| {
        move |line: &str| {
            let place = |port| line.find(&format!("]:{port} "));
            place(local).is_some_and(|local| place(remote).is_some_and(|remote| local < remote))
        }
    };
    let [is_first, is_second] = [is_row(opener, acceptor), is_row(acceptor, opener)];
    let wanted: [&dyn Fn(&str) -> bool; 2] = [&is_first, &is_second];
    let mut lines = table.lines_until_all(&wanted);
    for (is_row, figures) in wanted.into_iter().zip(["1 5002 0/1", "5001 1 1/0"]) {
        let row = lines.iter().find(|line| is_row(line)).unwrap();
        let columns: Vec<_> = row.split_whitespace().collect();
        assert_eq!(columns[columns.len() - 3..].join(" "), figures, "{row}");
    }
    lines.push(header);
    for line in lines {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

/// Gives the calling thread a network of its own with this address only.
fn enter_network_with(address: Ipv6Addr) {
    // SAFETY: takes no pointers, and affects this thread only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
    let with_prefix = format!("{address}/128");
    for arguments in
        [["link", "set", "lo", "up"].as_slice(), &["-6", "addr", "add", &with_prefix, "dev", "lo", "nodad"]]
    {
        let status = Command::new("ip").args(arguments).status().expect("ip runs: `.ci/setup build` installs it");
        assert!(status.success(), "ip {arguments:?}");
    }
    // The kernel adds the routes to it asynchronously. Once all are in place, the connect is refused.
    let until = Instant::now() + PATIENCE;
    loop {
        let error = TcpStream::connect((address, 9)).unwrap_err();
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return;
        }
        assert!(Instant::now() < until, "{address}: {error}");
        thread::sleep(Duration::from_millis(1));
    }
}

// ---- dlopen

/// Rewrites JSON objects, one a line, in the form of `tcp_table --tsv`, but with the bytes of `task` in hexadecimal.
/// Parsed by Python, as consumers do not share a parser of ours.
const READ_JSON: &str = r"
import json, sys
names = sys.argv[1].lstrip('#').split('\t')
for line in sys.stdin:
    event = json.loads(line, object_pairs_hook=list)
    assert [name for name, _ in event] == names, line
    assert all(type(value) is (str if name in ('task', 'SADDR', 'DADDR') else int) for name, value in event), line
    print(*(value.encode('latin-1').hex() if name == 'task' else value for name, value in event), sep='\t')
";

fn read_json(lines: &[String]) -> Vec<String> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dlopen.json");
    fs::write(&path, lines.join("\n")).unwrap();
    let output = Command::new("python3")
        .args(["-c", READ_JSON, HEADER])
        .stdin(File::open(&path).unwrap())
        .output()
        .expect("python3 runs: `.ci/setup build` installs it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} has a line that is no event in JSON: {errors}", path.display());
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

#[test]
fn dlopen_prints_events_as_json_whatever_bytes_a_command_has() {
    const COMMANDS: [&[u8]; 3] = [b"plain", b"q\"b\\s/\x01\t\n\x7f", b"\xc3\xa9half\xc3"];

    let _turn = turn();
    let mut program = Program::start(dlopen());
    program.wait_for_a_line();
    for command in COMMANDS {
        fs::write("/proc/thread-self/comm", command).unwrap();
        let hexadecimal = command.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        let known = Known::make(V6(), &hexadecimal);
        let lines =
            program.lines_until_all(&known.are_marked(|local, remote| format!("\"SPT\":{local},\"DPT\":{remote},")));
        known.check(&read_json(&lines));
    }
    program.interrupt();
    program.end().by_interrupt();
}

#[test]
fn dlopen_says_which_library_it_cannot_load() {
    for (library, cause) in [
        ("/no/such/libtcpEvent.so", "cannot load the library: /no/such/libtcpEvent.so: "),
        ("libc.so.6", "no symbol AddProbe: is this libtcpEvent.so?"),
    ] {
        let mut command = example("dlopen");
        command.arg(library);
        let line = Program::start(command).end().badly(1);
        assert!(line.starts_with(&format!("dlopen: {cause}")), "{line}");
    }
}

// ---- watch.py

const PYTHON: &str = "/usr/bin/python3";

fn watch_by(mut python: Command, filter: &[&str]) -> Command {
    python.env("LD_LIBRARY_PATH", root().join("build")).arg(root().join("examples/watch.py")).args(filter);
    python
}

/// A watcher of this process's connections.
fn own_watch() -> Program {
    own_watch_by(Command::new(PYTHON))
}

fn own_watch_by(python: Command) -> Program {
    let mut program = Program::start(watch_by(python, &["pid", &process::id().to_string()]));
    program.wait_for_a_line();
    program
}

/// How a line names its end.
fn ends(address: IpAddr) -> impl Fn(u16, u16) -> String {
    let end = move |port| SocketAddr::new(address, port);
    move |local, remote| format!("[{}] {} -> {} ", process::id(), end(local), end(remote))
}

/// A watcher of this process prints its connections over both families, with these figures of client and server, and one that is
/// refused.
fn check_watch(program: &mut Program, figures: [&str; 2], is_right: impl Fn(&str, &str) -> bool, refusal: &str) {
    for at in [V4(), V6()] {
        let known = Known::make(at, &own_comm());
        let are_mine = known.are_marked(ends(at.ip()));
        let lines = program.lines_until_all(&are_mine);
        for (is_mine, figures) in are_mine.iter().zip(figures) {
            let mine: Vec<_> = lines.iter().filter(|line| is_mine(line)).collect();
            let [line] = mine[..] else { panic!("{mine:#?} came, and not one line only") };
            assert!(is_right(line, figures), "{line}");
        }
    }
    let refused = TcpStream::connect((V4().ip(), 9)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let is_refused = |line: &str| line.contains(" -> 127.0.0.1:9 ");
    let lines = program.lines_until_all(&[is_refused, is_refused]);
    let line = lines.last().unwrap();
    assert!(line.ends_with(refusal), "{line}");
}

#[test]
fn watch_prints_the_ends_of_connections_that_fit() {
    let _turn = turn();
    let figures = [" received 0 sent 5000 in ", " received 5000 sent 0 in "];
    let is_right = |line: &str, figures: &str| line.contains(&format!(" {}[", own_comm())) && line.contains(figures);
    check_watch(&mut own_watch(), figures, is_right, " failed ECONNREFUSED");
}

#[test]
fn watch_shows_no_figure_and_no_reason_that_is_not_known() {
    let _turn = turn();
    let mut program = own_watch_by(by_tracepoint(Path::new(PYTHON)));
    let refused = TcpStream::connect((V4().ip(), 9)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let is_refused = |line: &str| line.contains(" -> 127.0.0.1:9 ");
    let lines = program.lines_until_all(&[is_refused, is_refused]);
    let line = lines.last().unwrap();
    assert!(line.contains(" received - sent - in ") && line.ends_with(" failed ECONNREFUSED"), "{line}");

    // A listener with a full queue answers no SYN, and the kernel itself ends the connect.
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    deaf.bind(&V4().into()).unwrap();
    deaf.listen(0).unwrap();
    let address = deaf.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(address).unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let milliseconds: u32 = 1200;
    // SAFETY: the descriptor is open, and the value has the given 4 bytes.
    let status = unsafe {
        let value = (&raw const milliseconds).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, 4)
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    let error = socket.connect(&address.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    let is_timed_out = |line: &str| line.contains(&format!(" -> {address} received "));
    let lines = program.lines_until_all(&[is_timed_out, is_timed_out]);
    let line = lines.last().unwrap();
    assert!(line.contains(" received - sent - in ") && line.ends_with(" failed reason unknown"), "{line}");
}

#[test]
fn watch_ends_well_when_it_is_interrupted_whether_it_waits_or_not() {
    let _turn = turn();
    for waits in [true, false] {
        let program = own_watch();
        program.interrupt();
        let ended = if waits { program.end() } else { program.end_while(connect_once) };
        ended.well();
    }
}

#[test]
fn watch_says_in_a_line_what_is_wrong_with_a_filter() {
    let command = watch_by(Command::new(PYTHON), &["dport", "443", "host", "10.0.0.1"]);
    let line = Program::start(command).end().badly(1);
    assert!(line.starts_with("watch.py: ") && line.contains("word 3, \"host\", must be "), "{line}");
}

// ---- watch.rs

/// Built with all tests, but not for this file alone.
fn rust_watch(filter: &[&str]) -> Command {
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/watch");
    assert!(program.exists(), "{} is missing: cargo build --profile tests --example watch", program.display());
    let mut command = watcher(program);
    command.args(filter);
    command
}

#[test]
fn watch_in_rust_prints_the_ends_of_connections_that_fit() {
    let _turn = turn();
    let mut program = Program::start(rust_watch(&["pid", &process::id().to_string()]));
    program.wait_for_a_line();
    let figures = [" received 0, sent 5000", " received 5000, sent 0"];
    let is_right = |line: &str, figures: &str| line.starts_with(&format!("{}[", own_comm())) && line.ends_with(figures);
    check_watch(&mut program, figures, is_right, " failed: Connection refused (os error 111)");
}

#[test]
fn watch_in_rust_says_in_a_line_what_is_wrong_with_a_filter() {
    let line = Program::start(rust_watch(&["dport", "443", "host", "10.0.0.1"])).end().badly(1);
    assert!(line.starts_with("watch: ") && line.contains("word 3, \"host\", must be "), "{line}");
}

// ---- classic.c, Watch.cs

/// The lines of a consumer of the classic functions about a connection.
fn check_classic(mut program: Program, at: SocketAddr) -> Program {
    let known = Known::make(at, "");
    let are_mine = known.are_marked(ends(at.ip()));
    let lines = program.lines_until_all(&are_mine);
    for (is_mine, figures) in are_mine.iter().zip(["received 1, sent 5002", "received 5001, sent 1"]) {
        let mine: Vec<_> = lines.iter().filter(|line| is_mine(line)).collect();
        let [line] = mine[..] else { panic!("{mine:#?} came, and not one line only") };
        assert!(line.contains(&format!("{}[", own_comm())) && line.ends_with(figures), "{line}");
    }
    program
}

#[test]
fn classic_prints_the_ends_of_connections_and_ends_by_cleanup() {
    let _turn = turn();
    let mut program = Program::start(example("classic"));
    program.wait_for_a_line();
    let program = check_classic(program, V4());
    program.interrupt();
    program.end().well();
}

#[test]
fn classic_is_a_program_in_cpp_too() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("classic_cpp");
    let status = Command::new("g++")
        .current_dir(root())
        .args(["-Wall", "-Wextra", "-Werror", "-I", "include", "-x", "c++", "examples/classic.c", "-o"])
        .arg(&program)
        .args(["-L", "build", "-ltcpEvent"])
        .status()
        .expect("g++ runs: `.ci/setup test` installs it");
    assert!(status.success(), "examples/classic.c does not compile as C++");

    let _turn = turn();
    let mut command = watcher(program);
    command.env("LD_LIBRARY_PATH", root().join("build"));
    let mut program = Program::start(command);
    program.wait_for_a_line();
    check_classic(program, V4());
}

#[test]
fn a_program_in_c_sharp_prints_the_ends_of_connections() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("Watch.exe");
    let status = Command::new("mcs")
        .current_dir(root())
        .args(["-unsafe", "-warnaserror", "examples/Watch.cs"])
        .arg(format!("-out:{}", program.display()))
        .status()
        .expect("mcs runs: apt-get install mono-mcs");
    assert!(status.success(), "examples/Watch.cs does not compile");

    let _turn = turn();
    let mut command = watcher("mono");
    command.arg(program).env("LD_LIBRARY_PATH", root().join("build"));
    let mut program = Program::start(command);
    program.wait_for_a_line();
    check_classic(program, V4());
}

// ---- failures.c, epoll.c

/// Makes refused connects until there is a line.
fn refuse_until_a_line(program: &mut Program) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let error = TcpStream::connect((V4().ip(), 9)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        if let Some(line) = program.line_within(Duration::from_millis(50)) {
            return line;
        }
        assert!(Instant::now() < until, "the program prints nothing");
    }
}

#[test]
fn failures_prints_attempts_that_failed_and_no_other_connections() {
    let _turn = turn();
    let mut program = Program::start(example("failures"));
    refuse_until_a_line(&mut program);
    let known = Known::make(V6(), "");
    TcpStream::connect((Ipv6Addr::LOCALHOST, 9)).unwrap_err();
    let begins = format!("pid {} could not connect to ::1 port 9: Connection refused, after ", process::id());
    let is_refused = |line: &str| line.starts_with(&begins);
    let lines = program.lines_until_all(&[is_refused, is_refused]);
    let port = format!(" port {}", known.ports[1]);
    assert!(!lines.iter().any(|line| line.contains(&port)), "{lines:#?}");
    program.interrupt();
    program.end().by_interrupt();
}

#[test]
fn epoll_prints_changes_of_state_in_their_order_and_ends_in_its_loop() {
    let _turn = turn();
    let mut program = Program::start(example("epoll"));
    program.wait_for_a_line();
    let known = Known::make(V4(), "");
    let of_end = known.are_marked(|local, remote| format!(": 127.0.0.1:{local} -> 127.0.0.1:{remote} "));
    let is_last = of_end.each_ref().map(|of_end| move |line: &str| of_end(line) && line.ends_with(" to CLOSE"));
    let lines = program.lines_until_all(&is_last);
    // The local port is chosen after the first change of the initiator's end.
    for (of_end, expected) in of_end.iter().zip([
        "SYN_SENT to ESTABLISHED, ESTABLISHED to FIN_WAIT1, FIN_WAIT1 to FIN_WAIT2, FIN_WAIT2 to CLOSE",
        "SYN_RECV to ESTABLISHED, ESTABLISHED to CLOSE_WAIT, CLOSE_WAIT to LAST_ACK, LAST_ACK to CLOSE",
    ]) {
        let mine: Vec<_> = lines.iter().filter(|line| of_end(line)).collect();
        let changes = mine.iter().map(|line| line.splitn(8, ' ').nth(7).unwrap());
        assert_eq!(changes.collect::<Vec<_>>().join(", "), expected);
        let sockets = mine.iter().map(|line| line.split(',').next().unwrap());
        assert_eq!(sockets.collect::<std::collections::BTreeSet<_>>().len(), 1, "{mine:#?}");
    }
    program.interrupt();
    let ended = program.end();
    assert_eq!(ended.status, Some(0), "{ended:#?}");
    assert!(ended.errors.starts_with("epoll: ") && ended.errors.ends_with(" events, 0 lost\n"), "{}", ended.errors);
}

// ---- The table

#[test]
fn count_ends_the_table_after_that_many_events() {
    let _turn = turn();
    let table = Program::start(tcp_table(&["--tsv", "--count", "3"]));
    assert_eq!(table.end_while(connect_once).well().len(), 1 + 3);
}

#[test]
fn seconds_end_the_table_though_nothing_happens() {
    let _turn = turn();
    Program::start(tcp_table(&["--seconds", "1"])).end().well();
}

#[test]
fn an_interrupt_ends_a_program_with_its_last_line_whole() {
    let _turn = turn();
    let mut table = Program::start(tcp_table(&["--tsv"]));
    table.wait_for_a_line();
    table.interrupt();
    for line in table.end_while(connect_once).well() {
        assert_eq!(line.split('\t').count(), 13, "{line}");
    }
    let mut program = Program::start(dlopen());
    program.wait_for_a_line();
    program.interrupt();
    for line in program.end_while(connect_once).by_interrupt() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

#[test]
fn wrong_arguments_are_status_2_and_one_line_that_names_them() {
    const WRONG: [(&[&str], &str); 14] = [
        (&["--count", "0"], "--count 0"),
        (&["--count", "-1"], "--count -1"),
        (&["--count", "3x"], "--count 3x"),
        (&["--count", "18446744073709551616"], "--count 18446744073709551616"),
        (&["--count=many"], "--count many"),
        (&["--seconds", "1.5"], "--seconds 1.5"),
        (&["--seconds", "0"], "--seconds 0"),
        (&["--seconds", "1000000001"], "--seconds 1000000001"),
        (&["--seconds"], "--seconds"),
        (&["--help=me"], "--help=me"),
        (&["--colour"], "--colour"),
        (&["-x"], "-x"),
        (&["here", "there"], "here"),
        (&["--tsv=1"], "--tsv=1"),
    ];
    for (arguments, named) in WRONG {
        let line = Program::start(tcp_table(arguments)).end().badly(2);
        assert!(line.starts_with(&format!("tcp_table: {named}: ")), "{arguments:?}: {line}");
    }
}

#[test]
fn help_and_version_are_answers_and_no_errors() {
    let text = Program::start(tcp_table(&["--help"])).end().well().join("\n");
    assert!(text.starts_with("Usage: tcp_table "), "{text}");
    for option in ["--count N", "--seconds N", "--help", "--version"] {
        assert!(text.contains(&format!("\n  {option} ")), "{option} is not in {text}");
    }
    let version = Program::start(tcp_table(&["--version"])).end().well();
    assert_eq!(version, [format!("tcp_table {}", env!("CARGO_PKG_VERSION"))]);
}

// ---- Others

#[test]
fn a_consumer_in_the_style_of_the_references_own_needs_no_change() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reference_style");
    let status = Command::new("cc")
        .current_dir(root())
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", "include", "tests/c/reference_style.c", "-o"])
        .arg(&program)
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(status.success(), "tests/c/reference_style.c does not compile");

    let _turn = turn();
    let mut command = watcher(program);
    command.arg(built("libtcpEvent.so"));
    let mut program = Program::start(command);
    assert_eq!(program.line(), format!("watching as {}, 1", program.child.id()));
    let (own, task) = (process::id(), own_comm());
    let known = Known::make(V4(), &task);
    let [opener, acceptor] = known.ports;
    let are_mine = known.are_marked(|local, remote| format!("from 127.0.0.1 {local} to 127.0.0.1 {remote} "));
    let lines = program.lines_until_all(&are_mine);
    for (is_mine, (ports, figures)) in are_mine
        .iter()
        .zip([([opener, acceptor], "rx 1 tx 5002 out 1 in 0"), ([acceptor, opener], "rx 5001 tx 1 out 0 in 1")])
    {
        let [local, remote] = ports;
        let line = lines.iter().find(|line| is_mine(line)).unwrap();
        let (time, rest) = line.strip_prefix("at ").and_then(|line| line.split_once(' ')).unwrap();
        known.check_time(time);
        let ends = format!("from 127.0.0.1 {local} to 127.0.0.1 {remote}");
        assert_eq!(rest, format!("pid {own} uid 0 {task} {ends} family 2 {figures}"));
    }
    program.interrupt();
    let ended = program.end();
    assert_eq!((ended.status, ended.errors.as_str()), (Some(libc::SIGINT), ""));
    assert_eq!(ended.lines.last().map(String::as_str), Some("interrupted by signal 2"));
}

/// `make install` or `make uninstall` below a folder, for an application in `app` there.
fn make(target: &str, folder: &Path) -> Output {
    Command::new("make")
        .current_dir(root())
        .args(["--no-print-directory", target, "UNITDIR=", "LOGROTATEDIR=", "DEFAULTDIR="])
        .arg(format!("PREFIX={}", folder.join("prefix").display()))
        .arg(format!("REALTIMEKQL={}", folder.join("app").display()))
        .env_remove("MAKEFLAGS")
        .output()
        .unwrap()
}

/// A new folder with an empty `app` in it.
fn application(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("app")).unwrap();
    folder
}

#[test]
fn a_reader_in_the_style_of_real_time_kql_finds_the_library_as_event_and_reads_every_field_right() {
    built("tcp_table");
    let folder = application("real_time_kql");
    let (program, event_so) = (folder.join("app/Reader.exe"), folder.join("app/event.so"));
    let status = Command::new("mcs")
        .current_dir(root())
        .args(["-warnaserror", "tests/cs/Reader.cs"])
        .arg(format!("-out:{}", program.display()))
        .status()
        .expect("mcs runs: apt-get install mono-mcs");
    assert!(status.success(), "tests/cs/Reader.cs does not compile");
    let installed = make("install", &folder);
    assert!(installed.status.success(), "{installed:?}");
    // Mono looks for the plain name, .NET for one with the suffix.
    std::os::unix::fs::symlink(&event_so, folder.join("app/event")).unwrap();

    let _turn = turn();
    // Snapshots come too: of a connection that stays open, and too seldom to catch a short one.
    let mut held = Connection::open(V4(), V4());
    held.send_up(7000);
    let end = folder.join("end");
    let mut command = watcher("mono");
    command.current_dir("/").arg(program).arg(&end).env("TCPEVENT_NETLINK_INTERVAL", "10");
    let mut reader = Program::start(command);
    let (client, server) = held.ports();
    let ends = [(client, server), (server, client)];
    let is_snapshot = ends.map(|(local, remote)| {
        let mark = format!("\t2\t{local}\t{remote}\t");
        move |line: &str| line.contains(&mark)
    });
    let snapshots = reader.lines_until_all(&is_snapshot);
    let own = process::id();
    for ((is_snapshot, (local, remote)), figures) in is_snapshot.iter().zip(ends).zip(["0\t7000", "7000\t0"]) {
        let snapshot = snapshots.iter().find(|line| is_snapshot(line)).unwrap();
        let (time, rest) = snapshot.split_once('\t').unwrap();
        assert!(time.parse::<u64>().unwrap() <= wall_ns(), "{snapshot}");
        assert!(rest.starts_with(&format!("{own}\t0\t{figures}\t")), "{snapshot}");
        assert!(
            rest.contains(&format!("\t2\t{local}\t{remote}\t")) && rest.ends_with("\t127.0.0.1\t127.0.0.1"),
            "{snapshot}"
        );
    }

    // By now the probe has been attached for long.
    let known = Known::make(V4(), &own_comm());
    let lines = reader.lines_until_all(&known.are_rows());
    known.check(&lines);
    let known = Known::make(V6(), &own_comm());
    let lines = reader.lines_until_all(&known.are_rows());
    known.check(&lines);

    // Both of its threads are in the library.
    fs::write(end, "").unwrap();
    reader.end().well();
    assert!(make("uninstall", &folder).status.success());
    assert!(fs::symlink_metadata(&event_so).is_err() && folder.join("app/event").is_symlink());
}

#[test]
fn installation_makes_no_link_over_a_file_and_takes_none_away_that_is_not_its_own() {
    built("tcp_table");
    let folder = application("real_time_kql_file");
    let file = folder.join("app/event.so");
    fs::write(&file, "another library").unwrap();
    let refused = make("install", &folder);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("event.so is there and is no link"), "{refused:?}");
    assert!(make("uninstall", &folder).status.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), "another library");
}

#[test]
fn the_demonstration_finds_every_event_right() {
    let _turn = turn();
    built("tcp_table");
    let output = Command::new(root().join("tests/demo")).args(["--limit", "60"]).output().unwrap();
    let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}\n{}", texts[0], texts[1]);
    println!("{}", texts[0]);
}
