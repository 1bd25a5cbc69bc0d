//! TCPEVENT_EVENTS_RETRIES: attempts to connect that nobody answers, told while they last.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::api::{run_script, watcher};
use crate::api_closes::{across, end_of_connect};
use crate::api_network::Network;
use crate::api_traffic::{begin_connect, cookie, tcp_info, tcp_socket};
use crate::api_watcher::{
    COUNTERS, Direction, ERROR, Event, FAILED, GIVEN_UP, Kind, OLDER, OWNER, TIMES, UID, Watcher, told_place,
};
use crate::consumer::{is_beyond_the_rung, lacks_cookies, patience, turn};
use crate::traffic::{V4, V6, own_comm};

const RETRIES: &str = "events=8";
const RETRIES_AND_CLOSES: &str = "events=10";

/// The initial time to wait for an answer (RFC 6298, section 2), as nearly as the kernel's timers keep it.
const FIRST_WAIT: Duration = Duration::from_millis(990);

fn is_skipped() -> bool {
    is_beyond_the_rung("SYNs that are sent again") || lacks_cookies()
}

fn silent(network: &Network) -> SocketAddr {
    network.here.cut();
    SocketAddr::new(Network::THERE_V4.parse().unwrap(), 9)
}

/// A listener that has taken one connection, and drops each SYN from now on.
struct Full {
    address: SocketAddr,
    _held: (Socket, TcpStream),
}

impl Full {
    fn listener(at: SocketAddr) -> Self {
        let listener = tcp_socket(at);
        listener.bind(&at.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let first = TcpStream::connect(address).unwrap();
        // The client is ready before the listener is, which tells how many there are.
        let until = Instant::now() + patience();
        while tcp_info(&listener).tcpi_unacked == 0 {
            assert!(Instant::now() < until, "no connection waits to be accepted");
            thread::yield_now();
        }
        Self { address, _held: (listener, first) }
    }
}

fn of(events: &[Event], cookie: u64) -> Vec<&Event> {
    events.iter().filter(|event| event.cookie == cookie).collect()
}

/// All but the number of the retry and the time.
fn check(event: &Event, to: SocketAddr, number: u32) {
    assert_eq!(event.kind, Kind::Retry, "{event:#?}");
    assert_eq!((event.old_state.as_str(), event.new_state.as_str()), ("SYN_SENT", "SYN_SENT"), "{event:#?}");
    assert_eq!((event.segs_retransmitted, event.segs_out), (number, number + 1), "{event:#?}");
    assert_eq!((event.segs_in, event.payload(), event.bytes_retransmitted), (0, [0; 3], 0), "{event:#?}");
    assert_eq!((event.pid, event.comm.clone(), event.remote), (process::id(), own_comm(), to), "{event:#?}");
    assert_ne!(event.local.port(), 0, "{event:#?}");
}

#[test]
fn each_syn_that_is_sent_again_is_told_and_in_the_end_how_many_there_were() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(RETRIES_AND_CLOSES);
    let to = silent(&network);
    let begun = Instant::now();
    let socket = network.here.run(|| begin_connect(to));
    let own = cookie(&socket);
    let told = watcher.events_until(0, "two retries", |events| of(events, own).len() >= 2);
    let waited = begun.elapsed();
    for (number, event) in (1..).zip(of(&told, own)) {
        check(event, to, number);
        assert_eq!((event.flags, event.error, event.direction), (0, 0, Direction::Connected), "{event:#?}");
        assert_eq!(event.known, OWNER | UID | ERROR | COUNTERS | TIMES | told_place(), "{event:#?}");
        assert_eq!(event.owner_by, "connect", "{event:#?}");
        let age = Duration::from_nanos(event.age_ns);
        assert!((FIRST_WAIT * number..=waited).contains(&age), "{waited:?}: {event:#?}");
    }
    drop(socket);
    // There may have been one more by now.
    let [later] = watcher.lives(0, [own]);
    let (close, later) = later.split_last().unwrap();
    let retries = u32::try_from(of(&told, own).len() + later.len()).unwrap();
    assert_eq!((close.kind, close.flags), (Kind::Close, FAILED | GIVEN_UP), "{close:#?}");
    assert_eq!((close.segs_retransmitted, close.segs_out), (retries, retries + 1), "{close:#?}");
    let statistics = watcher.statistics(0);
    assert!(statistics["retries"] >= 2, "{statistics:?}");
    assert_eq!(statistics["shed_retries"], 0, "{statistics:?}");
}

#[test]
fn retries_are_told_of_ipv6_too() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(RETRIES);
    let full = Full::listener(V6());
    let to = full.address;
    let socket = begin_connect(to);
    let own = cookie(&socket);
    let events = watcher.events_until(0, "a retry", |events| !of(events, own).is_empty());
    check(of(&events, own)[0], to, 1);
}

#[test]
fn what_the_network_has_answered_so_far_is_told_with_a_retry() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(RETRIES_AND_CLOSES);
    let to = SocketAddr::new(Network::UNREACHABLE_V4.parse().unwrap(), 9);
    network.route_unreachable(Some("unreachable"));
    // The answer to the first SYN arrives while connect() still holds the socket; the answer to the second one ends it. Where the
    // first one comes late, it ends the attempt, and there is no retry.
    for _ in 0..10 {
        let socket = network.here.run(|| begin_connect(to));
        let own = cookie(&socket);
        // (A program that asks for SO_ERROR takes the first one away: it is not asked before the second one has come.)
        let events = watcher.events_until(0, "the end", |events| of(events, own).iter().any(|event| event.is_end()));
        assert_eq!(end_of_connect(&socket), libc::EHOSTUNREACH);
        let own = of(&events, own);
        let (close, retries) = own.split_last().unwrap();
        assert_eq!((close.kind, close.flags, close.error), (Kind::Close, FAILED, libc::EHOSTUNREACH), "{close:#?}");
        if let [retry] = retries {
            check(retry, to, 1);
            assert_eq!((retry.flags, retry.error), (0, libc::EHOSTUNREACH), "{retry:#?}");
            return;
        }
        assert!(retries.is_empty(), "{events:#?}");
    }
    panic!("no answer has come while connect() held the socket");
}

/// Since Linux 6.17 the tracepoint is passed then, too.
#[test]
fn a_syn_that_cannot_be_sent_again_is_no_retry() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(RETRIES_AND_CLOSES);
    let to = silent(&network);
    // Of this host itself: it does not go away with the route.
    let full = network.here.run(|| Full::listener(V4()));
    let [unsent, sent] = [to, full.address].map(|to| network.here.run(|| begin_connect(to)));
    network.here.ip("route del 198.51.100.0/24");
    let own = cookie(&sent);
    let events = watcher.events_until(0, "two retries", |events| of(events, own).len() >= 2);
    assert!(of(&events, cookie(&unsent)).is_empty(), "{events:#?}");
}

#[test]
fn an_attempt_that_is_older_than_the_watch_is_told_too() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let to = silent(&network);
    let socket = network.here.run(|| begin_connect(to));
    let own = cookie(&socket);
    let mut watcher = Watcher::open(RETRIES);
    let events = watcher.events_until(0, "a retry", |events| !of(events, own).is_empty());
    let event = of(&events, own)[0];
    assert_eq!((event.kind, event.flags, event.age_ns), (Kind::Retry, OLDER, 0), "{event:#?}");
    assert_eq!((event.pid, event.knows(OWNER), event.knows(TIMES)), (process::id(), true, false), "{event:#?}");
}

#[test]
fn retries_are_told_of_attempts_alone_and_of_those_that_fit() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(RETRIES);
    let own_pid = process::id();
    let filters = ["dport 10", "not-mine", "dst 198.51.100.0/30 failed", "netns"].map(|words| match words {
        "not-mine" => format!("pid {}", watcher.pid()),
        "netns" => format!("netns {} pid {own_pid}", network.here.path()),
        words => words.to_owned(),
    });
    for (handle, filter) in (1..).zip(&filters) {
        watcher.open_handle(handle, &format!("{RETRIES} filter={filter}"));
    }
    // Nobody asks this one.
    watcher.open_handle(5, "events=2");
    let (mut established, _server) = across(&network);
    let to = silent(&network);
    let socket = network.here.run(|| begin_connect(to));
    established.write_all(b"into the void").unwrap();
    let [own, other] = [cookie(&socket), cookie(&established)];
    for handle in [0, 3, 4] {
        let events = watcher.events_until(handle, "a retry", |events| !of(events, own).is_empty());
        check(of(&events, own)[0], to, 1);
        assert!(of(&events, other).is_empty(), "{events:#?}");
    }
    // By then the connection has sent again, too.
    thread::sleep(Duration::from_millis(100));
    for handle in [1, 2, 5] {
        let read = watcher.read(handle, 1000, 0);
        assert!(read.events.iter().all(|event| event.kind != Kind::Retry || event.cookie != own), "{read:#?}");
    }
}

#[test]
fn where_no_retries_are_told_the_log_says_so() {
    let _turn = turn();
    let (lines, _) = run_script(watcher(), "open 0 events=8 log=1 probe=3\nclose 0\n");
    let said = "log 1 SYNs that are sent again are not told: that takes the probe kprobe or tp_btf, and Linux 5.8";
    assert!(lines.iter().any(|line| line == said), "{lines:#?}");
}
