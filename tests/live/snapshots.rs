//! Snapshots: open connections and listeners, with the bytes so far and the process that holds them.

use std::process;
use std::time::{Duration, Instant};

use crate::consumer::{Consumer, slowness, turn};
use crate::traffic::{Connection, DUAL, V4, V6, wall_ns};

/// The first 16 bytes of this process's argv[0].
fn own_command() -> String {
    let name = std::env::args_os().next().unwrap();
    let bytes = name.as_encoded_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(16)]).into_owned()
}

#[test]
fn open_connections_and_listeners_come_with_bytes_and_owner() {
    let _turn = turn();
    let mut first = Connection::open(DUAL(), V4());
    first.send_up(5000);
    let mut second = Connection::open(V6(), V6());
    second.send_up(70_000);
    second.send_down(3);
    // No probe: the first dequeue alone starts the sweeps.
    let mut consumer = Consumer::run(&[("TCPEVENT_NETLINK_INTERVAL", "0.3")]);
    let from = wall_ns();
    consumer.tell("consume 1");

    let (client, server) = first.ports();
    let open = consumer.both_ends(first.ports());
    assert_eq!((open.0.rx, open.0.tx, open.0.family), (0, 5000, 2));
    assert_eq!((open.1.rx, open.1.tx, open.1.family), (5000, 0, 10));
    // All segments count here: SYN, ACK and data of the client.
    assert_eq!(open.0.segs_out, 3);
    assert_eq!(open.1.segs_in, 3);
    assert_eq!((open.0.local.as_str(), open.1.local.as_str()), ("127.0.0.1", "::ffff:127.0.0.1"));
    assert_eq!(open.1.ports(), (server, client));

    let other = consumer.both_ends(second.ports());
    assert_eq!((other.0.rx, other.0.tx), (3, 70_000));
    assert_eq!((other.1.rx, other.1.tx), (70_000, 3));

    // A listener has no remote end. It may have preceded the connections: wait for the next sweep's.
    let listener = consumer.event("the listener", |event| event.ports() == (server, 0));
    assert_eq!((listener.local.as_str(), listener.remote.as_str(), listener.family), ("::", "::", 10));
    for event in [&open.0, &open.1, &other.0, &other.1, &listener] {
        assert_eq!((event.pid, event.uid), (process::id(), 0), "{event:?}");
        assert_eq!(event.task, own_command(), "{event:?}");
        assert!((from..=wall_ns()).contains(&event.time_ns), "{event:?}");
    }
}

#[test]
fn ipv4_comes_before_ipv6_in_each_sweep() {
    let _turn = turn();
    let _v6 = Connection::open(V6(), V6());
    let _v4 = Connection::open(V4(), V4());
    let mut consumer = Consumer::run(&[("TCPEVENT_NETLINK_INTERVAL", "3600")]);
    consumer.tell("consume 1");
    let mut families = Vec::new();
    while families.len() < 6 || !families.contains(&10) {
        families.push(consumer.event("any socket", |_| true).family);
    }
    families.extend(consumer.events_until_silence().iter().map(|event| event.family));
    assert!(families.contains(&2));
    assert!(families.is_sorted(), "{families:?}");
}

#[test]
fn sweeps_come_each_6_2_seconds() {
    let _turn = turn();
    let connection = Connection::open(V4(), V4());
    let mut consumer = Consumer::run(&[("TCPEVENT_NETLINK_INTERVAL", "")]);
    consumer.tell("consume 1");
    let mut next = || consumer.event("the client's end", |event| event.ports() == connection.ports()).time_ns;
    let times = [next(), next(), next()];
    for pair in times.windows(2) {
        let gap = Duration::from_nanos(pair[1] - pair[0]);
        let late = Duration::from_millis(200) * slowness();
        assert!((Duration::from_secs(6)..Duration::from_millis(6200) + late).contains(&gap), "{gap:?}");
    }
}

#[test]
fn no_sweep_where_the_interval_is_0_and_none_before_the_first_dequeue() {
    let _turn = turn();
    let connection = Connection::open(V4(), V4());
    let mut consumer = Consumer::started(&[("TCPEVENT_NETLINK_INTERVAL", "0")]);
    consumer.tell("consume 1");
    let seen = |consumer: &mut Consumer| {
        consumer.events_until_silence().iter().any(|event| event.ports() == connection.ports())
    };
    assert!(!seen(&mut consumer));

    let mut consumer = Consumer::started(&[("TCPEVENT_NETLINK_INTERVAL", "0.2")]);
    std::thread::sleep(Duration::from_millis(500) * slowness());
    let before = wall_ns();
    consumer.tell("consume 1");
    let event = consumer.event("the connection", |event| event.ports() == connection.ports());
    assert!(event.time_ns >= before, "a sweep was made before the first dequeue");
}

#[test]
fn snapshots_that_find_the_queue_full_are_refused_with_the_message() {
    let _turn = turn();
    let connections: Vec<_> = (0..20).map(|_| Connection::open(V4(), V4())).collect();
    let mut consumer =
        Consumer::started(&[("TCPEVENT_QUEUE", "8"), ("TCPEVENT_NETLINK_INTERVAL", "0.2"), ("TCPEVENT_LOG", "info")]);
    // Eight closes fill the queue; one dequeue starts the sweeps, whose first snapshot takes the freed slot.
    for connection in connections.into_iter().take(10) {
        connection.close_client_first();
    }
    let _open = Connection::open(V4(), V4());
    std::thread::sleep(Duration::from_millis(100) * slowness());
    consumer.tell("take 1");
    consumer.expect("taken");
    let until = Instant::now() + crate::consumer::patience();
    let mut lines = Vec::new();
    while !lines.iter().any(|line| line == "Shedding TCP (Netlink) events..") {
        assert!(Instant::now() < until, "no message came: {lines:?}");
        lines.extend(consumer.stderr());
    }
}
