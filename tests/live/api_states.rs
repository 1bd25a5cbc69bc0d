//! TCPEVENT_EVENTS_STATES: each change of each endpoint's state, once and in order, from first to last.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process;

use tcpEvent::internals::handles::TCPEVENT_ENDING_ORDERLY;

use crate::api_traffic::{
    FIN_WAIT2, Moment, cookie, cookies_of, disconnect, own_netns, refused, self_connected, tcp_socket, wait_for_state,
};
use crate::api_watcher::{
    CLOSES, COUNTERS, Direction, ERROR, Event, Kind, NO_USER, OLDER, OWNER, STATES, STATES_AND_CLOSES, TIMES, UID,
    Watcher, states, told_place,
};
use crate::consumer::{is_beyond_the_rung, lacks_cookies, rung_is_tracepoint, sees_accepts, turn};
use crate::traffic::{Connection, DUAL, V4, V6, closed_port, own_comm, process_comm, set_linger_0};

const CLIENT_CLOSES_FIRST: [&str; 2] =
    ["CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE", "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE"];
const SERVER_CLOSES_FIRST: [&str; 2] =
    ["CLOSE SYN_SENT ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE", "SYN_RECV ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE"];

/// The network namespace that events report.
fn told_netns() -> u32 {
    if rung_is_tracepoint() { 0 } else { own_netns() }
}

/// Checks what all events of one endpoint have in common, for a connection that this thread made in this time.
fn check_life(life: &[Event], local: SocketAddr, remote: SocketAddr, began: Moment) {
    let ended = Moment::now();
    let (last, before) = life.split_last().expect("there are events");
    assert_eq!(last.kind, Kind::Close, "{last:#?}");
    assert!(before.iter().all(|event| event.kind == Kind::State), "{before:#?}");
    assert!(life.is_sorted_by_key(|event| event.monotonic_ns), "{life:#?}");
    assert!(life.iter().all(|event| event.direction == last.direction), "{life:#?}");
    for event in life {
        assert!((began.monotonic_ns..=ended.monotonic_ns).contains(&event.monotonic_ns), "{began:?}: {event:#?}");
        // The two clocks are read one after the other.
        let near = began.wall_ns - 1_000_000..=ended.wall_ns + 1_000_000;
        assert!(near.contains(&event.time_ns), "{began:?}: {event:#?}");
        assert_eq!(event.flags & OLDER, 0, "{event:#?}");
        let is_early = event.new_state == "SYN_SENT";
        assert_eq!(event.local.ip(), local.ip(), "{event:#?}");
        assert_eq!(event.local.port(), if is_early { 0 } else { local.port() }, "{event:#?}");
        assert_eq!(event.remote, remote, "{event:#?}");
        assert_eq!(event.family, if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, "{event:#?}");
        assert_eq!(event.netns, told_netns(), "{event:#?}");
        // Not accepted yet.
        let is_accepted = event.direction == Direction::Accepted;
        let is_unseen = is_accepted && !sees_accepts() && event.owner_by == "unknown";
        let owner = if (event.old_state == "SYN_RECV" && is_accepted) || is_unseen {
            (0, String::new())
        } else {
            // A thread has acted, or has let go of it; or the process holds it.
            let is_held = event.owner_by == "inode" && event.comm == process_comm();
            let comm = if is_held { process_comm() } else { own_comm() };
            (process::id(), comm)
        };
        assert_eq!((event.pid, event.comm.clone()), owner, "{event:#?}");
        let is_owned = event.pid != 0;
        // The socket's own user is checked elsewhere.
        let has_user = is_owned || !rung_is_tracepoint();
        assert_eq!(event.uid, if has_user { 0 } else { NO_USER }, "{event:#?}");
        let known = [(is_owned, OWNER), (has_user, UID), (true, TIMES | told_place())];
        let known = known.iter().filter(|(is_known, _)| *is_known).map(|(_, group)| group).sum::<u32>();
        assert_eq!(event.known & !(ERROR | COUNTERS), known, "{event:#?}");
    }
}

/// Runs connections over IPv4, IPv6, and both, and checks all events of both ends.
fn check_both_ends(expected: [&str; 2], run: impl Fn(Connection)) {
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    let mapped = SocketAddr::new(IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()), 0);
    for (listen, to) in [(V4(), V4()), (V6(), V6()), (DUAL(), V4()), (DUAL(), mapped)] {
        let began = Moment::now();
        let connection = Connection::open(listen, to);
        let cookies = cookies_of(&connection);
        let ends =
            [&connection.client, &connection.server].map(|end| (end.local_addr().unwrap(), end.peer_addr().unwrap()));
        run(connection);
        let lives = watcher.lives(0, cookies);
        for (((life, (local, remote)), expected), direction) in
            lives.iter().zip(ends).zip(expected).zip([Direction::Connected, Direction::Accepted])
        {
            assert_eq!(states(life), expected);
            check_life(life, local, remote, began);
            assert_eq!(life[0].direction, direction);
        }
    }
}

#[test]
fn the_client_closes_first_and_both_ends_go_through_all_states() {
    if lacks_cookies() {
        return;
    }
    check_both_ends(CLIENT_CLOSES_FIRST, |mut connection| {
        connection.send_up(5000);
        connection.close_client_first();
    });
}

#[test]
fn the_server_closes_first_and_both_ends_go_through_all_states() {
    if lacks_cookies() {
        return;
    }
    check_both_ends(SERVER_CLOSES_FIRST, |mut connection| {
        connection.send_down(5000);
        connection.close_server_first();
    });
}

#[test]
fn a_half_closed_connection_stays_so_while_the_other_half_is_in_use() {
    if lacks_cookies() {
        return;
    }
    check_both_ends(CLIENT_CLOSES_FIRST, |mut connection| {
        connection.client.shutdown(Shutdown::Write).unwrap();
        connection.send_down(70_000);
        connection.close_client_first();
    });
}

#[test]
fn a_reset_leads_both_ends_from_established_to_close() {
    if is_beyond_the_rung("who has reset a connection") || lacks_cookies() {
        return;
    }
    check_both_ends(["CLOSE SYN_SENT ESTABLISHED CLOSE", "SYN_RECV ESTABLISHED CLOSE"], Connection::reset_by_client);
}

#[test]
fn a_reset_of_a_half_closed_connection_ends_both_halves() {
    if is_beyond_the_rung("who has reset a connection") || lacks_cookies() {
        return;
    }
    check_both_ends(
        ["CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE", "SYN_RECV ESTABLISHED CLOSE_WAIT CLOSE"],
        |connection| {
            let Connection { mut client, mut server, .. } = connection;
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            wait_for_state(&client, FIN_WAIT2);
            set_linger_0(&server);
            drop(server);
            client.read(&mut [0]).expect_err("it was reset");
        },
    );
}

#[test]
fn a_refused_connect_leads_from_syn_sent_to_close() {
    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    for to in [V4(), V6()] {
        let began = Moment::now();
        let to = SocketAddr::new(to.ip(), closed_port());
        let socket = refused(to);
        let [life] = watcher.lives(0, [cookie(&socket)]);
        assert_eq!(states(&life), "CLOSE SYN_SENT CLOSE");
        // Its source is forgotten by now.
        check_life(&life, SocketAddr::new(to.ip(), life[1].local.port()), to, began);
        assert_ne!(life[1].local.port(), 0);
    }
}

#[test]
fn a_simultaneous_open_and_a_simultaneous_close_have_states_of_their_own() {
    if is_beyond_the_rung("the counters of sockets that are still held") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    let mut stream = self_connected();
    let own_cookie = cookie(&stream);
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let [life] = watcher.lives(0, [own_cookie]);
    assert_eq!(states(&life), "CLOSE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT1 CLOSING CLOSE");
    let close = life.last().unwrap();
    assert_eq!((close.direction, close.payload()), (Direction::Connected, [5, 5, 5]), "{close:#?}");
    // The process itself has handled the last segment, on its way out of a call.
    assert_eq!((close.error, close.ending), (0, TCPEVENT_ENDING_ORDERLY), "{close:#?}");
}

#[test]
fn a_listener_begins_and_ends_without_being_a_connection() {
    if lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES_AND_CLOSES);
    for at in [V4(), V6(), DUAL()] {
        let listener = TcpListener::bind(at).unwrap();
        let (own_cookie, local) = (cookie(&listener), listener.local_addr().unwrap());
        drop(listener);
        let [life] = watcher.lives(0, [own_cookie]);
        assert_eq!(states(&life), "CLOSE LISTEN CLOSE");
        for event in &life {
            assert_eq!((event.kind, event.direction, event.flags), (Kind::State, Direction::Unknown, 0), "{event:#?}");
            assert_eq!(event.known, OWNER | UID | told_place(), "{event:#?}");
            assert_eq!((event.local, event.remote.port()), (local, 0), "{event:#?}");
            assert!(event.remote.ip().is_unspecified(), "{event:#?}");
            assert_eq!((event.pid, event.uid, event.netns), (process::id(), 0, told_netns()), "{event:#?}");
            assert_eq!(event.comm, own_comm(), "{event:#?}");
        }
    }
}

#[test]
fn a_listener_that_is_shut_down_can_listen_again() {
    if is_beyond_the_rung("the cookie of a listening socket") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    let listener = tcp_socket(V4());
    listener.bind(&V4().into()).unwrap();
    listener.listen(1).unwrap();
    listener.shutdown(Shutdown::Read).unwrap();
    listener.listen(1).unwrap();
    let own_cookie = cookie(&listener);
    drop(listener);
    let events = watcher.events_until(0, "both ends", |events| {
        events.iter().filter(|event| event.cookie == own_cookie && event.is_end()).count() == 2
    });
    let life: Vec<_> = events.into_iter().filter(|event| event.cookie == own_cookie).collect();
    assert_eq!(states(&life), "CLOSE LISTEN CLOSE LISTEN CLOSE");
}

#[test]
fn a_connection_that_is_not_accepted_ends_with_its_listener() {
    if is_beyond_the_rung("that nobody holds a socket") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    let listener = TcpListener::bind(V4()).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ports = (client.peer_addr().unwrap().port(), client.local_addr().unwrap().port());
    drop(listener);
    client.read(&mut [0]).expect_err("it was reset");
    let is_server = |event: &Event| event.ports() == ports;
    let events = watcher.events_until(0, "its end", |events| {
        events.iter().any(|event| is_server(event) && event.is_end())
            && events.iter().any(|event| event.cookie == cookie(&client) && event.is_end())
    });
    let server: Vec<_> = events.into_iter().filter(is_server).collect();
    assert_eq!(states(&server), "SYN_RECV ESTABLISHED CLOSE");
    let close = server.last().unwrap();
    assert_eq!((close.kind, close.direction, close.inode), (Kind::Close, Direction::Accepted, 0), "{close:#?}");
    assert_eq!((close.pid, close.comm.clone()), (process::id(), own_comm()), "{close:#?}");
    // It kept one cookie, whichever.
    assert!(server.iter().all(|event| event.cookie == close.cookie && event.cookie != 0), "{server:#?}");
}

#[test]
fn a_socket_that_connects_again_is_the_same_endpoint_with_figures_from_nothing() {
    if is_beyond_the_rung("the counters of a socket that lives on") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES);
    let listener = TcpListener::bind(V4()).unwrap();
    let to = listener.local_addr().unwrap();
    let socket = tcp_socket(to);
    for payload in [300_usize, 7] {
        socket.connect(&to.into()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        (&socket).write_all(&vec![b'x'; payload]).unwrap();
        server.read_exact(&mut vec![0; payload]).unwrap();
        // Carries the acknowledgement.
        server.write_all(b"y").unwrap();
        (&socket).read_exact(&mut [0]).unwrap();
        disconnect(&socket);
        server.read(&mut [0]).expect_err("it was reset");
    }
    let own_cookie = cookie(&socket);
    drop(socket);
    let mut events = watcher.events_until(0, "both ends", |events| {
        events.iter().filter(|event| event.cookie == own_cookie && event.is_end()).count() == 2
    });
    events.extend(watcher.pass_later_connection(0));
    let life: Vec<_> = events.into_iter().filter(|event| event.cookie == own_cookie).collect();
    assert_eq!(states(&life), "CLOSE SYN_SENT ESTABLISHED CLOSE SYN_SENT ESTABLISHED CLOSE");
    assert_eq!(life[2].payload(), [1, 300, 300], "{:#?}", life[2]);
    assert_eq!(life[5].payload(), [1, 7, 7], "{:#?}", life[5]);
    assert!(life[5].age_ns <= life[5].monotonic_ns - life[2].monotonic_ns, "{life:#?}");
}

#[test]
fn a_socket_that_never_connects_gives_no_event() {
    let _turn = turn();
    let mut watcher = Watcher::open(STATES_AND_CLOSES);
    let bare = tcp_socket(V4());
    let bound = tcp_socket(V6());
    bound.bind(&V6().into()).unwrap();
    // Class E has no route: the connect fails before anything is sent.
    let without_route = tcp_socket(V4());
    without_route.connect(&SocketAddr::from(([255, 255, 255, 255], 9)).into()).expect_err("no such host");
    let cookies = [cookie(&bare), cookie(&bound), cookie(&without_route)];
    drop((bare, bound, without_route));
    let events = watcher.pass_later_connection(0);
    let of_those: Vec<_> = events.iter().filter(|event| cookies.contains(&event.cookie)).collect();
    assert!(of_those.is_empty(), "{of_those:#?}");
}

#[test]
fn closes_are_the_ends_of_connections_and_nothing_else() {
    let _turn = turn();
    // The default, and the same by name.
    for options in ["", CLOSES] {
        let mut watcher = Watcher::open(options);
        let listener = TcpListener::bind(V4()).unwrap();
        let listening = cookie(&listener);
        drop(listener);
        let events = watcher.pass_later_connection(0);
        assert!(events.iter().all(|event| event.kind == Kind::Close && event.cookie != listening), "{events:#?}");
        assert!(events.iter().all(|event| event.new_state == "CLOSE" && event.old_state != "CLOSE"), "{events:#?}");
    }
}

#[test]
fn states_with_closes_give_each_close_once() {
    if lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(STATES_AND_CLOSES);
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    connection.close_client_first();
    let lives = watcher.lives(0, cookies);
    for (life, expected) in lives.iter().zip(CLIENT_CLOSES_FIRST) {
        assert_eq!(states(life), expected);
        assert_eq!(life.iter().filter(|event| event.kind == Kind::Close).count(), 1, "{life:#?}");
    }
}
