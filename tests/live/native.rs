//! The crate's own API, as a Rust program uses it: this very process watches.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{self, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tcpEvent::{Direction, Event, Kind, Level, Read as ReadEnd, Rung, Watch, WatchBuilder, state};

use crate::consumer::{patience, rung_is_tracepoint, turn};
use crate::traffic::{Connection, V4, V6, closed_port};

/// With the rung under test.
fn builder() -> WatchBuilder {
    let rung = std::env::var("TCPEVENT_PROBE").ok();
    match rung.as_deref() {
        Some("kprobe") => Watch::builder().probe(Rung::Kprobe),
        Some("tp_btf") => Watch::builder().probe(Rung::TpBtf),
        Some("tracepoint") => Watch::builder().probe(Rung::Tracepoint),
        _ => Watch::builder(),
    }
}

fn of_port(port: u16) -> tcpEvent::Filter {
    format!("dport {port}").parse().unwrap()
}

/// Reads until there are so many events.
fn read(watch: &Watch, count: usize) -> Vec<Event> {
    let (mut events, until) = (Vec::new(), Instant::now() + patience());
    while events.len() < count {
        let left = until.saturating_duration_since(Instant::now());
        assert_ne!(watch.read(&mut events, 64, Some(left)).unwrap(), ReadEnd::TimedOut, "{events:?}");
    }
    events
}

#[test]
fn a_close_has_the_addresses_the_owner_and_the_payload() {
    let _turn = turn();
    let watch = builder().closes().open().unwrap();
    for (address, family) in [(V4(), "4"), (V6(), "6")] {
        let mut connection = Connection::open(address, address);
        let (local, remote) = (connection.client.local_addr().unwrap(), connection.client.peer_addr().unwrap());
        connection.send_up(5000);
        connection.send_down(70);
        let before = SystemTime::now();
        connection.close_client_first();
        let after = SystemTime::now();
        let mut events = read(&watch, 2);
        while !events.iter().any(|event| event.local() == local) {
            events.extend(read(&watch, 1));
        }
        let event = events.iter().find(|event| event.local() == local).unwrap();
        assert_eq!((event.kind, event.direction), (Kind::Close, Direction::Connected), "IPv{family}");
        assert_eq!((event.remote(), event.pid), (remote, process::id()));
        // A plain tracepoint may count the peer's FIN as a byte, at the end that closed first.
        let fin = u64::from(rung_is_tracepoint() && event.payload_received == 71);
        assert_eq!((event.payload_sent, event.payload_received), (5000, 70 + fin));
        let margin = Duration::from_millis(1);
        assert!(before - margin <= event.time() && event.time() <= after + margin, "{event:?}");
        assert!(!event.command().is_empty());
    }
    let statistics = watch.statistics().unwrap();
    assert!(statistics.delivered >= 4 && statistics.counters.closes >= statistics.delivered);
}

#[test]
fn states_come_in_order_and_fit_the_filter() {
    let _turn = turn();
    let connection = Connection::open(V4(), V4());
    let port = connection.ports().1;
    drop(connection);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let watch = builder().states().filter(of_port(port)).open().unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"x").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.read_exact(&mut [0]).unwrap();
    drop(server);
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    let events = read(&watch, 5);
    let states: Vec<_> = events.iter().map(|event| event.new_state).collect();
    assert_eq!(states, [state::SYN_SENT, state::ESTABLISHED, state::CLOSE_WAIT, state::LAST_ACK, state::CLOSE]);
    assert!(events.iter().all(|event| event.remote().port() == port));
}

#[test]
fn snapshots_show_what_is_open() {
    let _turn = turn();
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    let watch = builder().snapshots(Duration::from_millis(100)).open().unwrap();
    let until = Instant::now() + patience();
    loop {
        let events = read(&watch, 1);
        let found = events.iter().find(|event| (event.local_port, event.remote_port) == ports);
        if let Some(event) = found {
            assert_eq!((event.kind, event.pid), (Kind::Snapshot, process::id()));
            break;
        }
        assert!(Instant::now() < until);
    }
}

#[test]
fn a_wake_ends_the_events_and_a_read_its_wait() {
    let _turn = turn();
    let watch = builder().closes().filter(of_port(1)).open().unwrap();
    let begun = Instant::now();
    let timeout = Duration::from_millis(50);
    assert_eq!(watch.read(&mut Vec::new(), 1, Some(timeout)).unwrap(), ReadEnd::TimedOut);
    assert!(begun.elapsed() >= timeout);
    thread::scope(|scope| {
        let reader = scope.spawn(|| watch.events().count());
        thread::sleep(Duration::from_millis(20));
        watch.wake();
        assert_eq!(reader.join().unwrap(), 0);
    });
}

#[test]
fn the_descriptor_is_readable_while_there_are_events_of_a_rust_watch() {
    let _turn = turn();
    let connection = Connection::open(V4(), V4());
    let watch = builder().closes().filter(of_port(connection.ports().1)).open().unwrap();
    assert_eq!(watch.as_fd().as_raw_fd(), watch.as_raw_fd());
    let is_readable = |time_ms| {
        let mut fd = libc::pollfd { fd: watch.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut fd, 1, time_ms) == 1 }
    };
    assert!(!is_readable(0));
    connection.close_client_first();
    assert!(is_readable(patience().as_millis().try_into().unwrap()));
    read(&watch, 1);
    assert!(!is_readable(0));
}

#[test]
fn invalid_settings_are_refused_with_a_text() {
    let error = |builder: WatchBuilder| builder.open().err().expect("it is refused").to_string();
    assert_eq!(error(builder().queue_slots(0)), "queue_slots is 0: it takes 1 to 1048576");
    assert_eq!(error(builder().snapshots(Duration::from_millis(99))), "snapshots is 99ms: it takes 0.1 s to a day");
    let filter = "dport https".parse::<tcpEvent::Filter>().unwrap_err().to_string();
    assert!(filter.starts_with("filter=\"dport https\": word 2, \"https\", must be a port"), "{filter}");
}

#[test]
fn the_log_goes_to_the_closure() {
    let _turn = turn();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&lines);
    let take = move |level, line: &str| taken.lock().unwrap().push((level, line.to_owned()));
    drop(builder().closes().log(Level::Info, take).open().unwrap());
    let lines = lines.lock().unwrap();
    assert!(lines.iter().any(|(level, line)| *level == Level::Info && line.starts_with("attached by ")), "{lines:?}");
}

#[test]
fn the_example_reports_a_failed_connect() {
    let _turn = turn();
    // Cargo builds it along with the tests.
    let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    let port = closed_port().to_string();
    let mut program = Command::new(folder.join("watch"));
    let mut program = program.args(["failed", "dport", &port]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let reader = thread::spawn(move || lines.next().unwrap().unwrap());
    let until = Instant::now() + patience();
    // It does not report when it starts.
    while !reader.is_finished() && Instant::now() < until {
        let _ = std::net::TcpStream::connect(format!("127.0.0.1:{port}"));
        thread::sleep(Duration::from_millis(20));
    }
    program.kill().unwrap();
    program.wait().unwrap();
    let line = reader.join().unwrap();
    assert!(line.contains(&format!("[{}] 127.0.0.1:", process::id())), "{line}");
    let reason = if rung_is_tracepoint() { "failed" } else { "failed: Connection refused" };
    assert!(line.contains(&format!("-> 127.0.0.1:{port}  {reason}")), "{line}");
}
