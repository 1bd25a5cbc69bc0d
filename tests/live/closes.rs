//! Close events: one for each endpoint, with the figures that the traffic really had.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process;

use crate::consumer::{Consumer, Event, turn};
use crate::traffic::{Connection, DUAL, V4, V6, closed_port, own_comm, set_linger_0, wall_ns};

/// What every event of this process must say.
fn check_common(event: &Event, family: u16, local: &str, remote: &str, from_ns: u64) {
    assert_eq!(event.pid, process::id(), "{event:?}");
    assert_eq!(event.uid, 0, "{event:?}");
    assert_eq!(event.task, own_comm(), "{event:?}");
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

/// Runs a connection and returns the events of the client's end and of the server's; there must be no more.
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

// The counters: bytes_acked has the opener's SYN and one's own FIN once they are acknowledged; bytes_received has the
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
    assert_eq!(bytes(&client), (7, 301));
    // Whether the client has acknowledged the 7 bytes before its reset is up to its delayed acknowledgement.
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

/// Makes connections that send 0, 1, 2 ... bytes, each end of which is closed by a reset (no port is kept by a
/// TIME_WAIT), and returns the client's port of each.
fn numbered_connections(count: usize) -> Vec<u16> {
    let listener = TcpListener::bind(V4()).unwrap();
    (0..count)
        .map(|_| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let port = client.local_addr().unwrap().port();
            // The server's end is told of the reset at once, and closed by the kernel.
            set_linger_0(&client);
            drop(client);
            drop(server);
            port
        })
        .collect()
}

#[test]
fn a_stalled_consumer_gets_exactly_the_newest_1024_and_the_message() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    // Both ends of each close within the same system call, the client's first: 3,000 events in a known order.
    let clients = numbered_connections(1500);
    std::thread::sleep(std::time::Duration::from_millis(200) * crate::consumer::slowness());
    consumer.tell("take 1024");
    let mut events = consumer.events_until("taken");
    consumer.tell("consume 1");
    events.extend(consumer.events_until_silence());
    let of_others = events.iter().filter(|event| event.pid != process::id()).count();
    assert_eq!(events.len(), 1024, "the queue held another number");
    let got: Vec<u16> = events
        .iter()
        .filter(|event| event.pid == process::id())
        .map(|event| if event.tx == 1 { event.local_port } else { event.remote_port })
        .collect();
    let all: Vec<u16> = clients.iter().flat_map(|port| [*port, *port]).collect();
    assert_eq!(got, all[all.len() - (1024 - of_others)..]);
    let errors = consumer.stderr();
    assert!(errors.iter().any(|line| line == "Shedding TCP events.."), "{errors:?}");
}

#[test]
fn the_shedding_message_comes_at_most_once_a_second() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "1")]);
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_millis(2500) {
        numbered_connections(20);
    }
    let seconds = began.elapsed().as_secs() + 1;
    let lines = consumer.stderr();
    assert!(lines.iter().all(|line| line == "Shedding TCP events.."), "{lines:?}");
    assert!((2..=usize::try_from(seconds).unwrap()).contains(&lines.len()), "{} lines", lines.len());
}

#[test]
fn eight_consumers_share_10_000_events_with_none_twice_and_none_missing() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "20000")]);
    consumer.tell("consume 8");
    let expected = numbered_connections(5000);
    let events: Vec<_> = own_events(&mut consumer);
    assert_eq!(events.len(), 10_000);
    let distinct: HashSet<_> = events.iter().map(|event| (event.time_ns, event.ports())).collect();
    assert_eq!(distinct.len(), 10_000, "some events came twice");
    let clients: HashSet<u16> = events.iter().filter(|event| event.tx == 1).map(|event| event.local_port).collect();
    assert_eq!(clients, expected.into_iter().collect());
    let threads: HashSet<u32> = events.iter().map(|event| event.thread).collect();
    assert!(threads.len() > 1, "one consumer took all");
}
