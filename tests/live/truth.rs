//! Times compared with the wall clock, bytes with what was sent, snapshots with `ss`; and every event is either
//! delivered or counted as lost.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::consumer::{Consumer, slowness, soak, turn};
use crate::traffic::{Connection, NumberedConnections, V4, V6, wall_ns};

/// How far a time lies outside its interval, in nanoseconds.
fn distance(time: u64, interval: (u64, u64)) -> u64 {
    interval.0.saturating_sub(time).max(time.saturating_sub(interval.1))
}

/// Makes numbered connections while a consumer keeps up. Each must give both its events once, unaltered. Returns how
/// far their times are from the moments of their closes.
fn run_numbered(count: u32) -> Vec<u64> {
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "65536"), ("TCPEVENT_LOG", "info")]);
    consumer.tell("consume 1");
    let connections = NumberedConnections::new();
    let mut closing: Vec<(u64, u64)> = Vec::new();
    let mut seen = vec![[false; 2]; count as usize];
    let mut distances = Vec::new();
    let mut take = |consumer: &mut Consumer, closing: &[(u64, u64)], time: Duration| -> bool {
        let Some(event) = consumer.event_within(time) else {
            return false;
        };
        if let Some((number, is_client)) = connections.identify(&event) {
            let seen = &mut seen[number as usize][usize::from(is_client)];
            assert!(!*seen, "it came twice: {event:?}");
            *seen = true;
            distances.push(distance(event.time_ns, closing[number as usize]));
        }
        true
    };
    for number in 0..count {
        let moment = connections.make_timed(number);
        closing.push(moment);
        while take(&mut consumer, &closing, Duration::ZERO) {}
    }
    while take(&mut consumer, &closing, Duration::from_millis(500) * slowness()) {}
    consumer.cleanup();
    let log = consumer.stderr();
    let missing = seen.iter().flatten().filter(|seen| !**seen).count();
    assert_eq!(missing, 0, "{missing} events are missing: {log:?}");
    distances.sort_unstable();
    distances
}

#[test]
fn nothing_is_lost_doubled_altered_or_late_for_a_consumer_that_keeps_up() {
    let _turn = turn();
    let count = if soak() { 1_000_000 } else { 20_000 / slowness() };
    let distances = run_numbered(count);
    let at = |per_mille: usize| Duration::from_nanos(distances[(distances.len() - 1) * per_mille / 1000]);
    println!("{count} connections, event time off by: p50 {:?}, p99.9 {:?}, most {:?}", at(500), at(999), at(1000));
    assert!(at(999) < Duration::from_millis(1), "p99.9 is {:?}", at(999));
}

#[test]
fn times_stay_right_when_the_wall_clock_is_stepped() {
    let _turn = turn();
    if slowness() == 1 {
        eprintln!("skipped: the wall clock of this machine is left alone; the virtual machine's is stepped");
        return;
    }
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    for seconds in [0, 3600, -7200, 3600] {
        step_clock(seconds);
        for _ in 0..20 {
            let connection = Connection::open(V4(), V4());
            let ports = connection.ports();
            let before = wall_ns();
            connection.close_client_first();
            let moment = (before, wall_ns());
            let (client, server) = consumer.both_ends(ports);
            for event in [client, server] {
                assert!(distance(event.time_ns, moment) < 1_000_000, "{event:?} is not in {moment:?}");
            }
        }
    }
}

fn step_clock(seconds: i64) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec to fill, then to read.
    unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
        now.tv_sec += seconds;
        assert_eq!(libc::clock_settime(libc::CLOCK_REALTIME, &raw const now), 0);
    }
}

/// Runs a connection and returns the raw bytes of both ends: (received, sent) of the client, then of the server.
fn bytes_of(run: impl FnOnce(Connection)) -> ((u64, u64), (u64, u64)) {
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    let connection = Connection::open(V6(), V6());
    let ports = connection.ports();
    run(connection);
    let (client, server) = consumer.both_ends(ports);
    ((client.rx, client.tx), (server.rx, server.tx))
}

#[test]
fn bytes_of_any_size() {
    let _turn = turn();
    for size in [0, 1, 65_536, 1_000_003] {
        let (client, server) = bytes_of(|mut connection| {
            connection.send_up(size);
            connection.close_client_first();
        });
        assert_eq!((client, server), ((1, size as u64 + 2), (size as u64 + 1, 1)));
    }
}

#[test]
fn more_than_4_gib_in_one_connection() {
    let _turn = turn();
    if slowness() > 1 {
        eprintln!("skipped: emulated, it takes minutes; the counters are read by the same code");
        return;
    }
    let size = (4u64 << 30) + 12_345;
    let (client, server) = bytes_of(|connection| {
        let Connection { mut client, mut server, .. } = connection;
        let sender = thread::spawn(move || {
            let chunk = vec![b'x'; 1 << 20];
            let mut left = size;
            while left > 0 {
                let count = left.min(chunk.len() as u64);
                client.write_all(&chunk[..usize::try_from(count).unwrap()]).unwrap();
                left -= count;
            }
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        });
        let mut buffer = vec![0; 1 << 20];
        let mut got = 0;
        loop {
            match server.read(&mut buffer).unwrap() {
                0 => break,
                count => got += count as u64,
            }
        }
        assert_eq!(got, size);
        drop(server);
        sender.join().unwrap();
    });
    assert_eq!((client, server), ((1, size + 2), (size + 1, 1)));
}

#[test]
fn data_after_a_half_close_counts() {
    let _turn = turn();
    let (client, server) = bytes_of(|mut connection| {
        connection.send_up(100);
        connection.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(connection.server.read(&mut [0]).unwrap(), 0);
        connection.send_down(5000);
        drop(connection.server);
        assert_eq!(connection.client.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!((client, server), ((5001, 102), (101, 5001)));
}

#[test]
fn unread_data_of_a_reset_counts_as_received() {
    let _turn = turn();
    let (client, server) = bytes_of(|mut connection| {
        connection.send_up(10);
        connection.send_down(1);
        // The server closes with 300 bytes unread, which makes its close a reset.
        connection.client.write_all(&[b'x'; 300]).unwrap();
        let mut unread = [0; 300];
        while connection.server.peek(&mut unread).unwrap() < 300 {}
        drop(connection.server);
        let error = connection.client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    assert_eq!(client.0, 1);
    assert!([11, 311].contains(&client.1), "up to the acknowledgement of the last 300: {client:?}");
    assert_eq!(server.0, 310);
}

/// What `ss -tinHO` says of a connection: bytes received, bytes sent, segments out, segments in.
fn ask_ss(stream: &TcpStream) -> [u64; 4] {
    let (local, remote) = (stream.local_addr().unwrap().port(), stream.peer_addr().unwrap().port());
    let output = Command::new("ss")
        .args(["-tinHO", "state", "established", &format!("( sport = :{local} and dport = :{remote} )")])
        .output()
        .expect("ss (iproute2) runs");
    let text = String::from_utf8(output.stdout).unwrap();
    ["bytes_received:", "bytes_sent:", "segs_out:", "segs_in:"].map(|name| {
        // data_segs_out ends alike, hence the spaces; ss omits a count of 0.
        text.split_whitespace().find_map(|word| word.strip_prefix(name)).map_or(0, |value| value.parse().unwrap())
    })
}

#[test]
fn snapshots_agree_with_ss() {
    let _turn = turn();
    let mut connections: Vec<_> = (0..20).map(|n| Connection::open([V4, V6][n % 2](), [V4, V6][n % 2]())).collect();
    for (n, connection) in connections.iter_mut().enumerate() {
        connection.send_up(n * 1000);
        connection.send_down(n * 333);
    }
    // Delayed acknowledgements are segments too.
    thread::sleep(Duration::from_millis(200) * slowness());
    let mut consumer = Consumer::run(&[("TCPEVENT_NETLINK_INTERVAL", "3600")]);
    consumer.tell("consume 1");
    let mut events = HashMap::new();
    while connections.iter().any(|connection| {
        let (local, remote) = connection.ports();
        !events.contains_key(&(local, remote)) || !events.contains_key(&(remote, local))
    }) {
        let event = consumer.event("the next socket", |_| true);
        events.insert(event.ports(), event);
    }
    for connection in &connections {
        for stream in [&connection.client, &connection.server] {
            let ports = (stream.local_addr().unwrap().port(), stream.peer_addr().unwrap().port());
            let event = &events[&ports];
            let got = [event.rx, event.tx, event.segs_out.into(), event.segs_in.into()];
            assert_eq!(got, ask_ss(stream), "{event:?}");
        }
    }
}

/// The counters that a consumer's library logged at cleanup.
fn logged_counters(consumer: &mut Consumer) -> HashMap<String, u64> {
    consumer.cleanup();
    let until = Instant::now() + crate::consumer::patience();
    loop {
        let lines = consumer.stderr();
        if let Some(line) = lines.iter().find(|line| line.contains("shed_closes=")) {
            return line
                .split(' ')
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
                .collect();
        }
        assert!(Instant::now() < until, "no counters came");
    }
}

#[test]
fn delivered_and_lost_add_up_to_the_closes_when_the_queue_overflows() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "100"), ("TCPEVENT_LOG", "info")]);
    let connections = NumberedConnections::new();
    let count = 2000 / slowness();
    let mut delivered = 0;
    for number in 0..count {
        connections.make(number);
        // A slow consumer: one event in ten connections.
        if number % 10 == 0 {
            consumer.tell("take 1");
            delivered += consumer.events_until("taken").len() as u64;
        }
    }
    thread::sleep(Duration::from_millis(200) * slowness());
    consumer.tell("take 100");
    delivered += consumer.events_until("taken").len() as u64;
    let counters = logged_counters(&mut consumer);
    assert_eq!(counters["lost_records"], 0, "{counters:?}");
    assert!(counters["shed_closes"] > u64::from(count), "{counters:?}");
    // Closes of other programs are counted on both sides.
    assert_eq!(delivered + counters["shed_closes"], counters["closes"], "{counters:?}");
    let others = counters["closes"] - 2 * u64::from(count);
    assert!(others < 100, "{others} closes of others: {counters:?}");
}

#[test]
fn records_that_find_the_ring_full_are_counted() {
    let _turn = turn();
    check_lost_records(Consumer::started(&[("TCPEVENT_QUEUE", "100000"), ("TCPEVENT_LOG", "info")]));
}

/// The consumer's queue must hold all events, and its log must show the counters.
pub fn check_lost_records(mut consumer: Consumer) {
    let connections = NumberedConnections::new();
    // The whole process is stopped: the ring of 1 MiB holds 1 MiB / 120 bytes = 8738 records.
    let pid = libc::pid_t::try_from(consumer.pid()).unwrap();
    // SAFETY: signals to a child that is not reaped yet.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    let stopped = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    while !stopped() {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20) * slowness());
    let count = 6000;
    (0..count).for_each(|number| connections.make(number));
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    thread::sleep(Duration::from_millis(200) * slowness());
    consumer.tell("consume 1");
    let events = consumer.events_until_silence();
    let counters = logged_counters(&mut consumer);
    let delivered = events.iter().filter(|event| connections.identify(event).is_some()).count() as u64;
    let of_others = events.len() as u64 - delivered;
    // Closes of other programs since the silence are counted, but no longer taken.
    assert!((events.len() as u64..events.len() as u64 + 50).contains(&counters["closes"]), "{counters:?}");
    assert!(counters["lost_records"] > 1000, "{counters:?}");
    let lost = 2 * u64::from(count) - delivered;
    assert!(
        (lost..=lost + of_others + 50).contains(&counters["lost_records"]),
        "{lost} are missing, {of_others} of others came: {counters:?}"
    );
}

/// The last processor, which this switches off and on. Switched on again when dropped.
struct Processor {
    number: usize,
    switch: PathBuf,
}

impl Processor {
    /// `None` if there is only one, or it cannot be switched.
    fn last() -> Option<Self> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
        let number = online.trim().rsplit([',', '-']).next().unwrap().parse().unwrap();
        let switch = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}/online"));
        let processor = Self { number, switch };
        let can_be_switched = number > 0 && processor.try_turn("0").is_ok();
        if can_be_switched {
            return Some(processor);
        }
        eprintln!("skipped: processor {number} cannot be switched off");
        None
    }

    fn try_turn(&self, to: &str) -> std::io::Result<()> {
        fs::write(&self.switch, to)
    }

    fn turn_off(&self) {
        self.try_turn("0").unwrap();
    }

    /// Returns after the library has had time to notice.
    fn turn_on(&self) {
        self.try_turn("1").unwrap();
        thread::sleep(Duration::from_millis(300) * slowness());
    }

    /// Runs something on this processor.
    fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let body = || {
            // SAFETY: a set of plain bits, for which zeroes are valid, and which is only read.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(self.number, &mut set);
                assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
            }
            body()
        };
        thread::scope(|scope| scope.spawn(body).join().unwrap())
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let _ = self.try_turn("1");
    }
}

#[test]
fn events_come_from_a_processor_that_is_switched_on_again() {
    let _turn = turn();
    // Off from here on.
    let Some(processor) = Processor::last() else {
        return;
    };
    let mut consumer = Consumer::started(&[("TCPEVENT_LOG", "info")]);
    consumer.tell("consume 1");
    let connections = NumberedConnections::new();
    let mut made = 0..;
    for was_off_before_the_start in [true, false] {
        if !was_off_before_the_start {
            processor.turn_off();
            thread::sleep(Duration::from_millis(100) * slowness());
        }
        processor.turn_on();
        let numbers: Vec<u32> = made.by_ref().take(20).collect();
        processor.run(|| numbers.iter().for_each(|number| connections.make(*number)));
        let mut missing: Vec<(u32, bool)> =
            numbers.iter().flat_map(|number| [(*number, false), (*number, true)]).collect();
        for event in consumer.events_until_silence() {
            missing.retain(|end| Some(*end) != connections.identify(&event));
        }
        assert!(missing.is_empty(), "{missing:?} of {numbers:?} did not come: {:?}", consumer.stderr());
    }
    let counters = logged_counters(&mut consumer);
    assert_eq!(counters["undecoded"], 0, "{counters:?}");
}
