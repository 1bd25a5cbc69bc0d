//! Close events: one for each endpoint, with the figures of the real traffic.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process;
use std::time::{Duration, Instant};

use crate::consumer::{Consumer, Event, finds_holders, is_beyond_the_rung, rung_is_tracepoint, slowness, turn};
use crate::traffic::{Connection, DUAL, NumberedConnections, V4, V6, closed_port, own_comm, wall_ns};

/// Checks what holds for every event of this process.
fn check_common(event: &Event, family: u16, local: &str, remote: &str, from_ns: u64) {
    // Otherwise no accept was seen, and it was reset.
    if finds_holders() || event.pid != 0 {
        assert_eq!(event.pid, process::id(), "{event:?}");
        assert_eq!(event.task, own_comm(), "{event:?}");
    }
    assert_eq!(event.uid, 0, "{event:?}");
    assert_eq!(event.family, family, "{event:?}");
    assert_eq!((event.local.as_str(), event.remote.as_str()), (local, remote), "{event:?}");
    assert!((from_ns..=wall_ns()).contains(&event.time_ns), "{event:?} is not since {from_ns}");
}

/// Bytes received and sent, by the kernel's counters.
fn bytes(event: &Event) -> (u64, u64) {
    (event.rx, event.tx)
}

/// Data segments sent and received.
fn segments(event: &Event) -> (u32, u32) {
    (event.segs_out, event.segs_in)
}

/// Runs a connection and returns the client's event and the server's; there must be no more.
fn ends_of(listen: SocketAddr, to: SocketAddr, run: impl FnOnce(Connection)) -> (Event, Event) {
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    let connection = Connection::open(listen, to);
    let ports = connection.ports();
    run(connection);
    let ends = consumer.both_ends(ports);
    assert_eq!(own_events(&mut consumer), [], "more than one event an endpoint");
    ends
}

fn own_events(consumer: &mut Consumer) -> Vec<Event> {
    consumer.events_until_silence().into_iter().filter(|event| event.pid == process::id()).collect()
}

// bytes_acked counts the initiator's SYN and the end's own FIN once they are acknowledged; bytes_received counts the
// peer's FIN. A transfer of up to 16 KiB over loopback (MTU 65536) is one segment.

#[test]
fn an_ipv4_connection_gives_its_bytes_segments_addresses_and_owner() {
    let _turn = turn();
    let from = wall_ns();
    let (client, server) = ends_of(V4(), V4(), |mut connection| {
        connection.send_up(5000);
        connection.close_client_first();
    });
    check_common(&client, 2, "127.0.0.1", "127.0.0.1", from);
    check_common(&server, 2, "127.0.0.1", "127.0.0.1", from);
    assert_eq!((bytes(&client), segments(&client)), ((1, 5002), (1, 0)));
    assert_eq!((bytes(&server), segments(&server)), ((5001, 1), (0, 1)));
}

#[test]
fn an_ipv6_connection_with_bytes_both_ways() {
    let _turn = turn();
    let from = wall_ns();
    let (client, server) = ends_of(V6(), V6(), |mut connection| {
        connection.send_up(70_000);
        connection.send_down(1234);
        connection.close_client_first();
    });
    check_common(&client, 10, "::1", "::1", from);
    check_common(&server, 10, "::1", "::1", from);
    // 70,000 bytes go in writes of 16,384, each read before the next.
    assert_eq!((bytes(&client), segments(&client)), ((1235, 70_002), (5, 1)));
    assert_eq!((bytes(&server), segments(&server)), ((70_001, 1235), (1, 5)));
}

#[test]
fn the_server_of_a_v4_mapped_connection_is_of_ipv6() {
    let _turn = turn();
    let from = wall_ns();
    let (client, server) = ends_of(DUAL(), V4(), |mut connection| {
        connection.send_up(5000);
        connection.close_client_first();
    });
    check_common(&client, 2, "127.0.0.1", "127.0.0.1", from);
    check_common(&server, 10, "::ffff:127.0.0.1", "::ffff:127.0.0.1", from);
    assert_eq!(bytes(&client), (1, 5002));
    assert_eq!(bytes(&server), (5001, 1));
}

#[test]
fn an_empty_connection_counts_syn_and_fin_only() {
    let _turn = turn();
    let (client, server) = ends_of(V4(), V4(), Connection::close_client_first);
    assert_eq!((bytes(&client), segments(&client)), ((1, 2), (0, 0)));
    assert_eq!((bytes(&server), segments(&server)), ((1, 1), (0, 0)));
}

#[test]
fn the_server_closes_first() {
    let _turn = turn();
    let from = wall_ns();
    let (client, server) = ends_of(V4(), V4(), |mut connection| {
        connection.send_up(10);
        connection.send_down(20);
        connection.close_server_first();
    });
    check_common(&client, 2, "127.0.0.1", "127.0.0.1", from);
    check_common(&server, 2, "127.0.0.1", "127.0.0.1", from);
    assert_eq!((bytes(&client), segments(&client)), ((21, 12), (1, 1)));
    assert_eq!((bytes(&server), segments(&server)), ((11, 21), (1, 1)));
}

#[test]
fn a_reset_connection_counts_no_fin() {
    let _turn = turn();
    let from = wall_ns();
    let (client, server) = ends_of(V4(), V4(), |mut connection| {
        connection.send_up(300);
        connection.send_down(7);
        connection.reset_by_client();
    });
    check_common(&client, 2, "127.0.0.1", "127.0.0.1", from);
    check_common(&server, 2, "127.0.0.1", "127.0.0.1", from);
    // Its own reset removes what identifies its counters.
    assert_eq!(bytes(&client), if rung_is_tracepoint() { (0, 0) } else { (7, 301) });
    // Its delayed acknowledgement decides whether the client acknowledged the 7 bytes before its reset.
    assert_eq!(server.rx, 300);
    assert!([0, 7].contains(&server.tx), "{server:?}");
}

#[test]
fn a_failed_connect_is_an_event() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    for to in [V4(), V6()] {
        let from = wall_ns();
        let port = closed_port();
        let error = TcpStream::connect((to.ip(), port)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let event = consumer.event("the failed connect", |event| event.remote_port == port);
        let address = to.ip().to_string();
        check_common(&event, if to.is_ipv4() { 2 } else { 10 }, &address, &address, from);
        assert_ne!(event.local_port, 0);
        assert_eq!((bytes(&event), segments(&event)), ((0, 0), (0, 0)));
    }
    assert_eq!(own_events(&mut consumer), []);
}

#[test]
fn a_listener_that_closes_is_no_event() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    let listeners: Vec<_> = (0..10).map(|_| TcpListener::bind(V4()).unwrap()).collect();
    let ports: HashSet<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    drop(listeners);
    let of_listeners: Vec<_> =
        consumer.events_until_silence().into_iter().filter(|event| ports.contains(&event.local_port)).collect();
    assert_eq!(of_listeners, []);
}

#[test]
fn a_stalled_consumer_gets_exactly_the_newest_1024_and_the_message() {
    if is_beyond_the_rung("counters in the order of the closes") {
        return;
    }
    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    let connections = NumberedConnections::new();
    (0..1500).for_each(|number| connections.make(number));
    std::thread::sleep(Duration::from_millis(200) * slowness());
    consumer.tell("take 1024");
    let events = consumer.events_until("taken");
    consumer.tell("consume 1");
    let own: Vec<_> = events.iter().filter_map(|event| connections.identify(event)).collect();
    // 1,024 was all: what follows comes from other programs on this host.
    let more = consumer.events_until_silence();
    assert!(more.iter().all(|event| connections.identify(event).is_none()), "{} more", more.len());
    // In the order of the closes. Other programs' events are in the queue too.
    let all: Vec<_> = (0..1500).flat_map(|number| [(number, true), (number, false)]).collect();
    assert_eq!(own, all[all.len() - own.len()..]);
    assert!(own.len() > 1000, "{} events of others", 1024 - own.len());
    let errors = consumer.stderr();
    assert!(errors.iter().any(|line| line == "Shedding TCP events.."), "{errors:?}");
}

#[test]
fn the_shedding_message_comes_at_most_once_a_second() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "1")]);
    let connections = NumberedConnections::new();
    let began = Instant::now();
    let mut numbers = 0..;
    while began.elapsed() < Duration::from_millis(2500) {
        connections.make(numbers.next().unwrap());
    }
    let seconds = began.elapsed().as_secs() + 1;
    let lines = consumer.stderr();
    assert!(lines.iter().all(|line| line == "Shedding TCP events.."), "{lines:?}");
    assert!((2..=usize::try_from(seconds).unwrap()).contains(&lines.len()), "{} lines", lines.len());
}

#[test]
fn eight_consumers_share_10_000_events_with_none_twice_and_none_missing() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "20000"), ("TCPEVENT_LOG", "info")]);
    consumer.tell("consume 8");
    let connections = NumberedConnections::new();
    (0..5000).for_each(|number| connections.make(number));
    let mut seen = HashSet::new();
    let mut threads = HashSet::new();
    for event in consumer.events_until_silence() {
        if let Some(end) = connections.identify(&event) {
            assert!(seen.insert(end), "it came twice: {event:?}");
            threads.insert(event.thread);
        }
    }
    consumer.cleanup();
    let log = consumer.stderr();
    assert_eq!(seen.len(), 10_000, "some are missing: {log:?}");
    assert!(threads.len() > 1, "one consumer took all");
}
