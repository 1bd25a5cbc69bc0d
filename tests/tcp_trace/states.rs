//! The lines of a connection's states.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process;

use crate::consumer::turn;
use crate::monitor::{Line, Monitor, Object, State, What, failures, new_folder, objects, parse, states};
use crate::network::{Bound, CLOSED, Net, cookie, refuse, with_comm};
use crate::traffic::{own_comm, set_linger_0, wall_ns};

/// The monotonic clock and the wall clock may differ by this between two readings.
const CLOCKS_NS: u64 = 1_000_000;

/// A connection of this process whose ports are known before it is made.
struct Prepared {
    listener: TcpListener,
    client: Bound,
    to: SocketAddr,
}

/// Either end of a connection, as in its lines.
#[derive(Debug)]
struct End {
    local: String,
    remote: String,
    local_port: u16,
    remote_port: u16,
}

struct Ends {
    client: TcpStream,
    server: TcpStream,
}

impl Prepared {
    fn new(from: SocketAddr, listen: SocketAddr, mut to: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).unwrap();
        to.set_port(listener.local_addr().unwrap().port());
        Self { listener, client: Bound::new(from.ip()), to }
    }

    /// From one address of loopback to another.
    fn v4(net: Net) -> Self {
        Self::new(net.at(1, 0), net.at(2, 0), net.at(2, 0))
    }

    /// The client's end, and the server's.
    fn ends(&self) -> [End; 2] {
        let (from, to) = (self.client.address(), self.to);
        let end = |local: SocketAddr, remote: SocketAddr, prefix: &str| End {
            local: format!("{prefix}{}", local.ip()),
            remote: format!("{prefix}{}", remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
        };
        let is_mapped = self.listener.local_addr().unwrap().is_ipv6() && to.is_ipv4();
        [end(from, to, ""), end(to, from, if is_mapped { "::ffff:" } else { "" })]
    }

    fn open(self) -> Ends {
        let client = self.client.connect(self.to);
        let (server, _) = self.listener.accept().unwrap();
        Ends { client, server }
    }
}

impl Ends {
    /// Each end sees the other one's FIN before it closes.
    fn close(mut first: TcpStream, mut second: TcpStream) {
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        drop(second);
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
    }
}

/// Whether a change to this state may come without owner: before its process acts on an accepted end, where accepts are not seen.
fn may_be_unowned(state: &str) -> bool {
    state == "CLOSE_WAIT" && !Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

impl End {
    /// Its lines must match these states, in this order, to the last column. `pids`: the owner in each.
    fn check(&self, lines: &[String], expected: &[(&str, u32)]) {
        let mine = |line: &State| (&line.local, &line.remote) == (&self.local, &self.remote);
        let mine: Vec<_> = states(lines).into_iter().filter(mine).collect();
        let unowned = mine.iter().filter(|line| line.pid == 0).map(|line| line.state.as_str()).collect::<Vec<_>>();
        let pid = |state, pid| if may_be_unowned(state) && unowned.contains(&state) { 0 } else { pid };
        let expected: Vec<_> = expected.iter().map(|(state, of)| self.line(state, pid(state, *of))).collect();
        assert_eq!(mine, expected, "{lines:#?}");
        // The columns once more, spelled out independently of how lines are parsed.
        for line in mine {
            let end = format!(
                " {:>6} {:<15} {:<15} {:<15} {:>6} {:>6}",
                line.pid, line.state, self.local, self.remote, self.local_port, self.remote_port
            );
            assert_eq!(lines.iter().filter(|line| line.ends_with(&end)).count(), 1, "{end:?} in {lines:#?}");
        }
    }

    fn line(&self, state: &str, pid: u32) -> State {
        State {
            pid,
            state: state.to_owned(),
            local: self.local.clone(),
            remote: self.remote.clone(),
            local_port: self.local_port,
            remote_port: self.remote_port,
        }
    }
}

/// Their times must lie in this interval, in this order.
fn check_times(lines: &[String], from_ns: u64, to_ns: u64) {
    let times: Vec<_> = parse(lines).iter().map(|line| line.time_ns).collect();
    assert!(times.iter().all(|time| (from_ns - CLOCKS_NS..=to_ns + CLOCKS_NS).contains(time)), "{lines:#?}");
    assert!(times.is_sorted(), "{lines:#?}");
}

#[test]
fn both_ends_of_a_connection_are_reported_state_by_state() {
    let _turn = turn();
    let net = Net::new();
    let prefix = net.prefix();
    let mut monitor = Monitor::start(&["--dest", &prefix], &[]);
    let me = process::id();
    let any_v6: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
    for listen in [net.at(2, 0), any_v6] {
        for server_closes_first in [false, true] {
            let prepared = Prepared::new(net.at(1, 0), listen, net.at(2, 0));
            let [client, server] = prepared.ends();
            let before = wall_ns();
            let ends = prepared.open();
            let opened = ["SYN_SENT", "ESTABLISHED"].map(|state| (state, me));
            // Not accepted yet.
            let accepted = [("ESTABLISHED", 0)];
            let active = ["FIN_WAIT1", "FIN_WAIT2", "CLOSE"].map(|state| (state, me));
            let passive = ["CLOSE_WAIT", "LAST_ACK", "CLOSE"].map(|state| (state, me));
            let (of_client, of_server) = if server_closes_first {
                Ends::close(ends.server, ends.client);
                (passive, active)
            } else {
                Ends::close(ends.client, ends.server);
                (active, passive)
            };
            let after = wall_ns();
            let lines = monitor.until_marker(net);
            client.check(&lines, &[&opened[..], &of_client].concat());
            server.check(&lines, &[&accepted[..], &of_server].concat());
            check_times(&lines, before, after);
            assert_eq!(failures(&lines), [""; 0]);
        }
    }
}

#[test]
fn both_ends_of_an_ipv6_connection_are_reported_state_by_state() {
    let _turn = turn();
    let v6: SocketAddr = (Ipv6Addr::LOCALHOST, 0).into();
    let prepared = Prepared::new(v6, v6, v6);
    let ends = prepared.ends();
    // Both ends have the same address here: the ports tell them apart, and are in the filter too.
    let ports = ends.each_ref().map(|end| format!("--dport={}", end.remote_port));
    let marker = Bound::new(v6.ip()).address();
    let marker_port = format!("--dport={}", marker.port());
    let mut monitor = Monitor::start(&["--dest=::1", &ports[0], &ports[1], &marker_port], &[]);
    let before = wall_ns();
    let connection = prepared.open();
    Ends::close(connection.client, connection.server);
    let after = wall_ns();
    refuse(marker);
    let marker = format!("TCP failure detected: {marker} ");
    let mut lines = monitor.until("the marker", |line| line.contains(&marker));
    let me = process::id();
    lines.retain(|line| match Line::parse(line).what {
        What::State(state) => ends.iter().any(|end| end.remote_port == state.remote_port),
        _ => false,
    });
    check_times(&lines, before, after);
    for (end, expected) in ends.iter().zip([
        &[("SYN_SENT", me), ("ESTABLISHED", me), ("FIN_WAIT1", me), ("FIN_WAIT2", me), ("CLOSE", me)][..],
        &[("ESTABLISHED", 0), ("CLOSE_WAIT", me), ("LAST_ACK", me), ("CLOSE", me)],
    ]) {
        let port = format!(" {:>6}", end.remote_port);
        let of_this_end: Vec<_> = lines.iter().filter(|line| line.ends_with(&port)).cloned().collect();
        end.check(&of_this_end, expected);
    }
}

#[test]
fn the_local_port_of_an_unbound_client_is_there_from_the_handshake_on() {
    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    let listener = TcpListener::bind(net.at(1, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let client = TcpStream::connect(to).unwrap();
    let from = client.local_addr().unwrap();
    let (server, _) = listener.accept().unwrap();
    Ends::close(client, server);
    let states = states(&monitor.until_marker(net));
    let ports: Vec<_> = states.iter().map(|state| (state.state.as_str(), state.local_port)).collect();
    let port = from.port();
    // SYN_SENT is entered before a port is chosen.
    assert_eq!(
        ports,
        [("SYN_SENT", 0), ("ESTABLISHED", port), ("FIN_WAIT1", port), ("FIN_WAIT2", port), ("CLOSE", port)]
    );
    assert!(states.iter().all(|state| (&*state.local, &*state.remote) == ("127.0.0.1", &*to.ip().to_string())));
}

#[test]
fn a_connection_that_is_reset_goes_straight_to_close() {
    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    let prepared = Prepared::v4(net);
    let [client, server] = prepared.ends();
    let mut ends = prepared.open();
    set_linger_0(&ends.client);
    drop(ends.client);
    ends.server.read(&mut [0]).unwrap_err();
    let lines = monitor.until_marker(net);
    let me = process::id();
    client.check(&lines, &[("SYN_SENT", me), ("ESTABLISHED", me), ("CLOSE", me)]);
    server.check(&lines, &[("ESTABLISHED", 0), ("CLOSE", me)]);
}

// ---- JSON

fn text(value: &str) -> String {
    format!("\"{value}\"")
}

/// The fields of a state's object, except the times.
fn check_fields(object: &Object, end: &End, old_state: &str, state: &str, pid: u32, cookie: u64) {
    let expected = [
        ("kind", text("state")),
        ("pid", pid.to_string()),
        ("uid", "0".to_owned()),
        ("comm", if pid == 0 { text("") } else { text(&own_comm()) }),
        ("old_state", text(old_state)),
        ("new_state", text(state)),
        ("family", "4".to_owned()),
        ("local_addr", text(&end.local)),
        ("local_port", end.local_port.to_string()),
        ("remote_addr", text(&end.remote)),
        ("remote_port", end.remote_port.to_string()),
        ("cookie", cookie.to_string()),
    ];
    for (name, value) in &expected {
        assert_eq!(object.get(*name), Some(value), "{name} in {object:#?}");
    }
    let line = Line::parse(&format!("{} NOTICE ", object["time"].trim_matches('"')));
    let time_ns: u64 = object["time_ns"].parse().unwrap();
    assert_eq!(line.time_ns, time_ns / 1000 * 1000, "{object:#?}");
    let mut names: Vec<_> = expected.iter().map(|(name, _)| *name).chain(["time", "time_ns"]).collect();
    if state == "CLOSE" {
        names.extend([
            "age_ms",
            "payload_sent",
            "payload_received",
            "bytes_retransmitted",
            "error",
            "failed",
            "given_up",
            "ending",
        ]);
    }
    names.sort_unstable();
    assert_eq!(object.keys().collect::<Vec<_>>(), names);
}

/// The totals of a close, except its age.
fn check_totals(object: &Object, sent: u64, received: u64, error: &str, failed: bool) {
    let fields = [
        ("payload_sent", sent.to_string()),
        ("payload_received", received.to_string()),
        ("bytes_retransmitted", "0".to_owned()),
        ("error", error.to_owned()),
        ("failed", failed.to_string()),
        ("given_up", "false".to_owned()),
    ];
    for (name, value) in fields {
        assert_eq!(object[name], value, "{name} in {object:#?}");
    }
    // The end that closes first may be gone before the other's FIN comes.
    let endings = if failed { ["null"; 2] } else { ["\"orderly\"", "\"half closed\""] };
    assert!(endings.contains(&object["ending"].as_str()), "{object:#?}");
}

/// A monitor with `--json`, whose lines are parsed as objects.
struct JsonMonitor<'a> {
    monitor: Monitor,
    net: Net,
    folder: &'a Path,
}

impl JsonMonitor<'_> {
    /// The objects of all connections that have ended by now.
    fn objects(&mut self) -> Vec<Object> {
        objects(&self.monitor.until_marker(self.net), self.folder)
    }
}

#[test]
fn json_has_every_field_of_a_connection() {
    let _turn = turn();
    let net = Net::new();
    let folder = new_folder("json");
    let monitor = Monitor::start(&["--json", "--dest", &net.prefix()], &[]);
    let mut monitor = JsonMonitor { monitor, net, folder: &folder };
    let prepared = Prepared::v4(net);
    let [of_client, of_server] = prepared.ends();
    let mut ends = prepared.open();
    let cookies = [&ends.client, &ends.server].map(cookie);
    ends.client.write_all(&[b'x'; 5000]).unwrap();
    ends.server.read_exact(&mut [0; 5000]).unwrap();
    ends.server.write_all(&[b'x'; 700]).unwrap();
    ends.client.read_exact(&mut [0; 700]).unwrap();
    let before_close = wall_ns();
    Ends::close(ends.client, ends.server);

    let objects = monitor.objects();
    let me = process::id();
    for (end, cookie, changes, [sent, received]) in [
        (
            &of_client,
            cookies[0],
            &["CLOSE", "SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"][..],
            [5000, 700],
        ),
        (&of_server, cookies[1], &["SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"], [700, 5000]),
    ] {
        let mine: Vec<_> = objects.iter().filter(|object| object["local_addr"] == text(&end.local)).collect();
        assert_eq!(mine.len(), changes.len() - 1, "{mine:#?}");
        for (object, change) in mine.iter().zip(changes.windows(2)) {
            let is_unowned = may_be_unowned(change[1]) && object["pid"] == "0";
            let pid = if change[0] == "SYN_RECV" || is_unowned { 0 } else { me };
            check_fields(object, end, change[0], change[1], pid, cookie);
        }
        let last = mine.last().unwrap();
        check_totals(last, sent, received, "null", false);
        let time = |object: &Object| object["time_ns"].parse::<u64>().unwrap();
        assert!(time(last) + CLOCKS_NS >= before_close, "{mine:#?}");
        // Given to the microsecond.
        let age_ms: f64 = last["age_ms"].parse().unwrap();
        #[expect(clippy::cast_precision_loss)]
        let between_ms = (time(last) - time(mine[0])) as f64 / 1e6;
        assert!((age_ms - between_ms).abs() < 1.0, "{age_ms} ms, {between_ms} ms between first and last: {mine:#?}");
    }
}

#[test]
fn json_has_an_object_for_a_failure_and_for_each_notice() {
    let _turn = turn();
    let net = Net::new();
    let folder = new_folder("json-failure");
    let monitor = Monitor::start(&["--json", "--dest", &net.prefix()], &[]);
    for notice in objects(&monitor.first_lines, &folder) {
        assert_eq!(notice.keys().collect::<Vec<_>>(), ["kind", "text", "time"]);
        assert_eq!(notice["kind"], text("notice"));
    }
    net.refuse(1);
    let objects = JsonMonitor { monitor, net, folder: &folder }.objects();
    let [opened, closed, failure] = &objects[..] else { panic!("{objects:#?}") };
    assert_eq!((opened["new_state"].as_str(), closed["new_state"].as_str()), ("\"SYN_SENT\"", "\"CLOSE\""));
    check_totals(closed, 0, 0, "\"ECONNREFUSED\"", true);
    let expected = [
        ("remote_addr", text(&net.address(1).to_string())),
        ("comm", text(&own_comm())),
        ("error", text("ECONNREFUSED")),
        ("kind", text("failure")),
        ("pid", process::id().to_string()),
        ("remote_port", CLOSED.to_string()),
        ("reason", text("connection refused (ECONNREFUSED)")),
        ("time", closed["time"].clone()),
    ];
    assert_eq!(*failure, expected.map(|(name, value)| (name.to_owned(), value)).into());
}

// ---- Commands of any bytes

/// A comm, and its form in a line and in parsed JSON.
const COMMANDS: [(&[u8], &str, &str); 9] = [
    (b"plain", "plain", "plain"),
    (b"q\"b\\s/\x01\t\n\r\x7f", r#"q\"b\\s/\x01\t\n\r\x7f"#, "q\"b\\s/\x01\t\n\r\x7f"),
    (
        "\u{e9}\u{20ac} \u{85}\u{1f980}".as_bytes(),
        "\u{e9}\u{20ac} \\xc2\\x85\u{1f980}",
        "\u{e9}\u{20ac} \u{85}\u{1f980}",
    ),
    // Line separators, direction marks, and invisible characters.
    ("a\u{2028}b\u{2029}".as_bytes(), r"a\xe2\x80\xa8b\xe2\x80\xa9", "a\u{2028}b\u{2029}"),
    ("\u{202e}\u{2066}x\u{2069}".as_bytes(), r"\xe2\x80\xae\xe2\x81\xa6x\xe2\x81\xa9", "\u{202e}\u{2066}x\u{2069}"),
    ("\u{200b}\u{200d}\u{feff}".as_bytes(), r"\xe2\x80\x8b\xe2\x80\x8d\xef\xbb\xbf", "\u{200b}\u{200d}\u{feff}"),
    ("\u{e0041}\u{ad}\u{61c}".as_bytes(), r"\xf3\xa0\x81\x81\xc2\xad\xd8\x9c", "\u{e0041}\u{ad}\u{61c}"),
    (
        "\u{3164}\u{115f}\u{fe0f}\u{34f}x".as_bytes(),
        r"\xe3\x85\xa4\xe1\x85\x9f\xef\xb8\x8f\xcd\x8fx",
        "\u{3164}\u{115f}\u{fe0f}\u{34f}x",
    ),
    (b"a\xc3(\xffz\xed\xa0\x80\xc0\xaf", r"a\xc3(\xffz\xed\xa0\x80\xc0\xaf", r"a\xc3(\xffz\xed\xa0\x80\xc0\xaf"),
];

#[test]
fn a_command_of_any_bytes_stays_on_its_line() {
    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    for (comm, shown, _) in COMMANDS {
        with_comm(comm, || net.refuse(1));
        let lines = monitor.until_marker(net);
        let whole = format!(
            "{}:{CLOSED} (connection refused (ECONNREFUSED); pid {}, command {shown})",
            net.address(1),
            process::id()
        );
        assert_eq!(failures(&lines), [whole]);
    }
}

#[test]
fn a_command_of_any_bytes_stays_valid_json() {
    let _turn = turn();
    let net = Net::new();
    let folder = new_folder("json-command");
    let monitor = Monitor::start(&["--json", "--dest", &net.prefix()], &[]);
    let mut monitor = JsonMonitor { monitor, net, folder: &folder };
    for (comm, _, read) in COMMANDS {
        with_comm(comm, || net.refuse(1));
        let objects = monitor.objects();
        assert_eq!(objects.len(), 3, "{objects:#?}");
        for object in objects {
            assert_eq!(object["comm"], python_json(read), "{object:#?}");
        }
    }
}

/// As Python's json.dumps writes it.
fn python_json(text: &str) -> String {
    use std::fmt::Write;

    let mut json = String::from("\"");
    for unit in text.encode_utf16() {
        match unit {
            0x22 | 0x5c => json.extend(['\\', char::from(u8::try_from(unit).unwrap())]),
            0x09 => json.push_str("\\t"),
            0x0a => json.push_str("\\n"),
            0x0d => json.push_str("\\r"),
            0x20..0x7f => json.push(char::from(u8::try_from(unit).unwrap())),
            _ => write!(json, "\\u{unit:04x}").unwrap(),
        }
    }
    json + "\""
}
