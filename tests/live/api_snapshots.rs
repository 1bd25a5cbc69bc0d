//! TCPEVENT_EVENTS_SNAPSHOTS: the current figures of an open connection.

use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::process;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::api_places::{Cgroups, id_of};
use crate::api_traffic::{
    FIN_WAIT2, Moment, cookie, cookies_of, inode, own_netns, own_process_comm, settled_tcp_info, wait_for_state,
};
use crate::api_watcher::{BACKLOG, COUNTERS, Direction, Event, Kind, OWNER, PLACE, SNAPSHOTS, UID, Watcher};
use crate::consumer::{slowness, turn};
use crate::traffic::{Connection, DUAL, V4, V6};

#[test]
fn an_open_connection_comes_with_the_figures_of_tcp_info() {
    let _turn = turn();
    let cgroup = id_of(&Cgroups::find().own());
    for (listen, to) in [(V4(), V4()), (V6(), V6()), (DUAL(), V4())] {
        let mut connection = Connection::open(listen, to);
        connection.send_up(70_000);
        connection.send_down(333);
        let infos = settled_tcp_info(&connection);
        let began = Moment::now();
        let mut watcher = Watcher::open(&format!("{SNAPSHOTS} interval=100"));
        let cookies = cookies_of(&connection);
        let events = watcher.events_until(0, "both ends", |events| {
            cookies.iter().all(|cookie| events.iter().any(|event| event.cookie == *cookie))
        });
        let ends = [(&connection.client, [333, 70_000, 70_000]), (&connection.server, [70_000, 333, 333])];
        for (((end, payload), info), cookie) in ends.into_iter().zip(infos).zip(cookies) {
            let event = events.iter().find(|event| event.cookie == cookie).unwrap();
            assert_eq!((event.kind, event.direction), (Kind::Snapshot, Direction::Unknown), "{event:#?}");
            let state = ("ESTABLISHED", "ESTABLISHED");
            assert_eq!((event.old_state.as_str(), event.new_state.as_str()), state, "{event:#?}");
            assert_eq!(event.local, end.local_addr().unwrap(), "{event:#?}");
            assert_eq!(event.remote, end.peer_addr().unwrap(), "{event:#?}");
            assert_eq!((event.pid, event.uid, event.owner_by.as_str()), (process::id(), 0, "inode"), "{event:#?}");
            assert_eq!(event.comm, own_process_comm(), "{event:#?}");
            assert_eq!((event.inode, event.cgroup), (inode(end), cgroup), "{event:#?}");
            assert_eq!(event.netns, own_netns(), "{event:#?}");
            assert_eq!((event.flags, event.error), (0, 0), "{event:#?}");
            assert_eq!(event.known, OWNER | UID | COUNTERS | PLACE, "{event:#?}");
            assert_eq!(event.payload(), payload, "{event:#?}");
            assert_eq!(event.bytes_received, info.tcpi_bytes_received, "{event:#?}");
            assert_eq!(event.bytes_acked, info.tcpi_bytes_acked, "{event:#?}");
            assert_eq!(event.bytes_sent, info.tcpi_bytes_sent, "{event:#?}");
            assert_eq!((event.bytes_retransmitted, event.segs_retransmitted), (0, 0), "{event:#?}");
            assert_eq!((event.segs_out, event.segs_in), (info.tcpi_segs_out, info.tcpi_segs_in), "{event:#?}");
            let data = (info.tcpi_data_segs_out, info.tcpi_data_segs_in);
            assert_eq!((event.data_segs_out, event.data_segs_in), data, "{event:#?}");
            assert_eq!((event.srtt_us, event.min_rtt_us), (info.tcpi_rtt, info.tcpi_min_rtt), "{event:#?}");
            let ended = Moment::now();
            assert!((began.monotonic_ns..=ended.monotonic_ns).contains(&event.monotonic_ns), "{event:#?}");
            assert!((began.wall_ns..=ended.wall_ns).contains(&event.time_ns), "{event:#?}");
        }
    }
}

#[test]
fn a_listener_is_in_snapshots_with_nothing_at_its_other_end() {
    let _turn = turn();
    let listener = TcpListener::bind(DUAL()).unwrap();
    let own_cookie = cookie(&listener);
    let mut watcher = Watcher::open(&format!("{SNAPSHOTS} interval=100"));
    let is_it = |event: &Event| event.cookie == own_cookie;
    let events = watcher.events_until(0, "the listener", |events| events.iter().any(is_it));
    let event = events.into_iter().find(is_it).unwrap();
    assert_eq!((event.kind, event.new_state.as_str()), (Kind::Snapshot, "LISTEN"), "{event:#?}");
    assert_eq!(event.local, listener.local_addr().unwrap(), "{event:#?}");
    assert_eq!((event.remote.ip(), event.remote.port()), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0), "{event:#?}");
    assert_eq!((event.pid, event.payload()), (process::id(), [0; 3]), "{event:#?}");
    assert_eq!(event.known, OWNER | UID | COUNTERS | PLACE | BACKLOG, "{event:#?}");
}

/// What a socket has dropped, as it says itself: SK_MEMINFO_DROPS of SO_MEMINFO.
fn dropped(listener: &TcpListener) -> u32 {
    let mut words = [0u32; 9];
    let mut size = libc::socklen_t::try_from(size_of_val(&words)).unwrap();
    // SAFETY: an array of the size that is told.
    let result = unsafe {
        let to = (&raw mut words).cast();
        libc::getsockopt(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, to, &raw mut size)
    };
    assert_eq!((result, size as usize), (0, size_of_val(&words)));
    words[8]
}

/// One that nobody accepts from, with room for two: the kernel lets a third one wait, and drops the rest.
#[test]
fn a_listener_that_overflows_says_so() {
    let _turn = turn();
    for address in [V4(), V6()] {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(2).unwrap();
        let listener = TcpListener::from(socket);
        let own_cookie = cookie(&listener);
        let mut watcher = Watcher::open(&format!("{SNAPSHOTS} interval=100"));
        let mut next = |what: &str, is_it: &dyn Fn(&Event) -> bool| {
            let is_it = |event: &Event| event.cookie == own_cookie && is_it(event);
            let events = watcher.events_until(0, what, |events| events.iter().any(is_it));
            events.into_iter().find(is_it).unwrap()
        };
        let event = next("an empty backlog", &|_| true);
        let figures =
            |event: &Event| [event.accept_queue, event.accept_queue_limit, event.dropped, event.newly_dropped];
        assert_eq!(figures(&event), [0, 2, 0, 0], "{event:#?}");

        let clients: Vec<_> = (0..6)
            .map(|_| {
                let client = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                let begun = client.connect(&listener.local_addr().unwrap().into()).unwrap_err();
                assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
                client
            })
            .collect();
        let event = next("a full one", &|event| event.newly_dropped > 0);
        assert_eq!(figures(&event)[..2], [3, 2], "{event:#?}");
        assert!((1..=dropped(&listener)).contains(&event.dropped), "{event:#?}");
        assert!(event.newly_dropped <= event.dropped, "{event:#?}");

        // Nobody tries again, and the three are taken.
        drop(clients);
        for _ in 0..3 {
            drop(listener.accept().unwrap());
        }
        let event = next("an empty one again", &|event| event.accept_queue == 0 && event.newly_dropped == 0);
        assert_eq!(figures(&event), [0, 2, dropped(&listener), 0], "{event:#?}");
    }
}

#[test]
fn half_closed_ends_have_the_state_they_are_in() {
    let _turn = turn();
    let mut connection = Connection::open(V4(), V4());
    connection.send_up(10);
    connection.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(connection.server.read(&mut [0]).unwrap(), 0);
    wait_for_state(&connection.client, FIN_WAIT2);
    let cookies = cookies_of(&connection);
    let mut watcher = Watcher::open(&format!("{SNAPSHOTS} interval=100"));
    let events = watcher.events_until(0, "both ends", |events| {
        cookies.iter().all(|cookie| events.iter().any(|event| event.cookie == *cookie))
    });
    let [client, server] = cookies.map(|cookie| events.iter().find(|event| event.cookie == cookie).unwrap());
    assert_eq!([client.new_state.as_str(), server.new_state.as_str()], ["FIN_WAIT2", "CLOSE_WAIT"]);
    // The FIN does not count.
    assert_eq!([client.payload(), server.payload()], [[0, 10, 10], [10, 0, 0]]);
}

#[test]
fn sweeps_come_at_the_interval_that_is_asked_for() {
    let _turn = turn();
    let connection = Connection::open(V4(), V4());
    let [own_cookie, _] = cookies_of(&connection);
    let mut watcher = Watcher::open(&format!("{SNAPSHOTS} interval=500"));
    let events = watcher
        .events_until(0, "four sweeps", |events| events.iter().filter(|event| event.cookie == own_cookie).count() == 4);
    let times: Vec<_> =
        events.iter().filter(|event| event.cookie == own_cookie).map(|event| event.monotonic_ns).collect();
    // A late sweep does not delay the following ones.
    let three = Duration::from_nanos(times[3] - times[0]);
    let late = Duration::from_millis(300) * slowness();
    let expected = Duration::from_millis(1500);
    assert!((expected.saturating_sub(late)..expected + late).contains(&three), "{three:?}");
    // The last one may still be running.
    let statistics = watcher.statistics(0);
    assert!(statistics["sweeps"] >= 3, "{statistics:?}");
    assert_eq!((statistics["states"], statistics["closes"]), (0, 0), "{statistics:?}");
}
