//! How a connection has ended, as its closes tell at both ends: each way is made to happen.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tcpEvent::internals::handles::{
    TCPEVENT_ENDING_ABORTED, TCPEVENT_ENDING_CLOSED_WINDOW, TCPEVENT_ENDING_DISCONNECTED, TCPEVENT_ENDING_HALF_CLOSED,
    TCPEVENT_ENDING_KEEPALIVE, TCPEVENT_ENDING_LINGER, TCPEVENT_ENDING_NOT_ACCEPTED, TCPEVENT_ENDING_ORDERLY,
    TCPEVENT_ENDING_RESET, TCPEVENT_ENDING_RESET_BY_PEER, TCPEVENT_ENDING_UNACKNOWLEDGED, TCPEVENT_ENDING_UNKNOWN,
    TCPEVENT_ENDING_UNREAD, TCPEVENT_ENDING_USER_TIMEOUT,
};

use crate::api_closes::{abort_by_ss, across, set_user_timeout};
use crate::api_network::Network;
use crate::api_traffic::{
    CLOSE, CLOSE_WAIT, FIN_WAIT2, cookie, cookies_of, disconnect, set_option, tcp_info, wait_for_state,
};
use crate::api_watcher::{CLOSES, Event, STATES, Watcher};
use crate::consumer::{is_beyond_the_rung, lacks_cookies, patience, rung_is_tracepoint, turn};
use crate::traffic::{Connection, V4, V6, set_linger_0};

fn expect_reset(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// What the plain tracepoint cannot tell is unknown; of a reset after this end's FIN, by whom it is.
fn check(event: &Event, ending: u8, way: &str) {
    let less = match ending {
        TCPEVENT_ENDING_RESET_BY_PEER if event.old_state.starts_with("FIN_WAIT") => TCPEVENT_ENDING_RESET,
        TCPEVENT_ENDING_RESET_BY_PEER => TCPEVENT_ENDING_RESET_BY_PEER,
        _ => TCPEVENT_ENDING_UNKNOWN,
    };
    let is_told = event.ending == ending || (rung_is_tracepoint() && event.ending == less);
    assert!(is_told, "{way}: not {ending}: {event:#?}");
}

/// A way to end a connection, and what is told of it at the client's end and at the server's.
type Way = (&'static str, fn(Connection), [u8; 2]);

const WAYS: [Way; 16] = [
    ("the client first", Connection::close_client_first, [TCPEVENT_ENDING_ORDERLY; 2]),
    ("the server first", Connection::close_server_first, [TCPEVENT_ENDING_ORDERLY; 2]),
    (
        "both, with a pause",
        |Connection { client, mut server, .. }| {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            wait_for_state(&client, FIN_WAIT2);
            drop(client);
            // Only now the peer closes.
            drop(server);
        },
        [TCPEVENT_ENDING_HALF_CLOSED, TCPEVENT_ENDING_ORDERLY],
    ),
    (
        "nothing was sent, and both were idle for a while",
        |connection| {
            thread::sleep(Duration::from_millis(50));
            connection.close_client_first();
        },
        [TCPEVENT_ENDING_ORDERLY; 2],
    ),
    (
        "a request, an answer, all read",
        |mut connection| {
            connection.send_up(100);
            connection.send_down(70_000);
            connection.close_server_first();
        },
        [TCPEVENT_ENDING_ORDERLY; 2],
    ),
    ("no time to linger", Connection::reset_by_client, [TCPEVENT_ENDING_LINGER, TCPEVENT_ENDING_RESET_BY_PEER]),
    (
        "the server resets before it has answered",
        |Connection { mut client, mut server, .. }| {
            client.write_all(b"request").unwrap();
            server.read_exact(&mut [0; 7]).unwrap();
            set_linger_0(&server);
            drop(server);
            expect_reset(&mut client);
        },
        [TCPEVENT_ENDING_RESET_BY_PEER, TCPEVENT_ENDING_LINGER],
    ),
    (
        "unread data",
        |Connection { mut client, mut server, .. }| {
            server.write_all(b"nobody reads it").unwrap();
            client.read_exact(&mut [0]).unwrap();
            drop(client);
            expect_reset(&mut server);
        },
        [TCPEVENT_ENDING_UNREAD, TCPEVENT_ENDING_RESET_BY_PEER],
    ),
    (
        "unread data comes before the time to linger",
        |Connection { client, mut server, .. }| {
            server.write_all(b"nobody reads it").unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            wait_for_state(&client, CLOSE_WAIT);
            set_linger_0(&client);
            drop(client);
            wait_for_state(&server, CLOSE);
        },
        [TCPEVENT_ENDING_UNREAD, TCPEVENT_ENDING_RESET_BY_PEER],
    ),
    (
        "no time to linger, once the peer has closed, which has been read",
        |Connection { mut client, server, .. }| {
            server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            wait_for_state(&server, FIN_WAIT2);
            set_linger_0(&client);
            drop(client);
            wait_for_state(&server, CLOSE);
        },
        [TCPEVENT_ENDING_LINGER, TCPEVENT_ENDING_RESET_BY_PEER],
    ),
    (
        "a close that waits until the peer has acknowledged it",
        |Connection { mut client, server, .. }| {
            server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            SockRef::from(&client).set_linger(Some(Duration::from_secs(10))).unwrap();
            drop(client);
            drop(server);
        },
        [TCPEVENT_ENDING_ORDERLY; 2],
    ),
    (
        "shut down by both, while both still have it",
        |Connection { client, server, .. }| {
            server.shutdown(Shutdown::Write).unwrap();
            wait_for_state(&client, CLOSE_WAIT);
            client.shutdown(Shutdown::Write).unwrap();
            wait_for_state(&client, CLOSE);
            drop((client, server));
        },
        [TCPEVENT_ENDING_ORDERLY; 2],
    ),
    (
        "dissolved",
        |Connection { client, mut server, .. }| {
            disconnect(&client);
            expect_reset(&mut server);
        },
        [TCPEVENT_ENDING_DISCONNECTED, TCPEVENT_ENDING_RESET_BY_PEER],
    ),
    (
        "dissolved, with unread data and no time to linger",
        |Connection { client, mut server, .. }| {
            server.write_all(b"nobody reads it").unwrap();
            client.peek(&mut [0]).unwrap();
            set_linger_0(&client);
            disconnect(&client);
            expect_reset(&mut server);
        },
        [TCPEVENT_ENDING_DISCONNECTED, TCPEVENT_ENDING_RESET_BY_PEER],
    ),
    (
        "taken away from the kernel, which tells the peer nothing",
        |Connection { client, mut server, .. }| {
            server.write_all(b"nobody reads it").unwrap();
            client.peek(&mut [0]).unwrap();
            set_linger_0(&client);
            set_option(&client, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1);
            drop(client);
            // That is answered by a reset: there is no such connection.
            drop(server);
        },
        [TCPEVENT_ENDING_DISCONNECTED, TCPEVENT_ENDING_RESET],
    ),
    (
        "reset by the peer that had closed",
        |Connection { client, server, .. }| {
            server.shutdown(Shutdown::Write).unwrap();
            wait_for_state(&client, CLOSE_WAIT);
            set_linger_0(&server);
            drop(server);
            wait_for_state(&client, CLOSE);
        },
        [TCPEVENT_ENDING_RESET_BY_PEER, TCPEVENT_ENDING_LINGER],
    ),
];

#[test]
fn each_way_to_end_a_connection_is_told_at_both_ends() {
    let _turn = turn();
    for options in [CLOSES, STATES] {
        let mut watcher = Watcher::open(options);
        for at in [V4(), V6()] {
            for (way, end, expected) in WAYS {
                let connection = Connection::open(at, at);
                let cookies = cookies_of(&connection);
                end(connection);
                let lives = watcher.lives(0, cookies);
                for (life, ending) in lives.iter().zip(expected) {
                    let (close, before) = life.split_last().unwrap();
                    // The end that closes first may see the other's FIN, or be gone by then.
                    let is_half = ending == TCPEVENT_ENDING_ORDERLY && close.ending == TCPEVENT_ENDING_HALF_CLOSED;
                    if !(is_half && close.old_state == "FIN_WAIT2") {
                        check(close, ending, way);
                    }
                    assert!(before.iter().all(|event| event.ending == TCPEVENT_ENDING_UNKNOWN), "{before:#?}");
                }
            }
        }
    }
}

#[test]
fn a_connection_that_was_never_accepted_is_told_so() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let listener = TcpListener::bind(V4()).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let [local, remote] = [client.local_addr().unwrap(), client.peer_addr().unwrap()];
    drop(listener);
    expect_reset(&mut client);
    drop(client);
    let is_end = |event: &&Event, ends: [SocketAddr; 2]| [event.local, event.remote] == ends;
    let events = watcher.events_until(0, "both ends", |events| {
        [[local, remote], [remote, local]].iter().all(|ends| events.iter().any(|event| is_end(&event, *ends)))
    });
    let of = |ends| events.iter().find(|event| is_end(event, ends)).unwrap();
    check(of([local, remote]), TCPEVENT_ENDING_RESET_BY_PEER, "the client");
    check(of([remote, local]), TCPEVENT_ENDING_NOT_ACCEPTED, "the server");
}

#[test]
fn a_connection_that_root_aborts_is_told_so() {
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    if !abort_by_ss(&connection.client, connection.ports().0) {
        return;
    }
    let Connection { client, mut server, .. } = connection;
    expect_reset(&mut server);
    let [of_client, of_server] = watcher.closes(0, cookies);
    check(&of_client, TCPEVENT_ENDING_ABORTED, "aborted");
    check(&of_server, TCPEVENT_ENDING_RESET_BY_PEER, "aborted");
    drop((client, server));
}

/// Fills the peer's window, until nothing more can be sent, and the kernel has begun to ask whether it can.
fn fill(client: &mut TcpStream) {
    let until = Instant::now() + patience();
    client.set_nonblocking(true).unwrap();
    loop {
        while client.write(&[0; 4096]).is_ok() {}
        let info = tcp_info(client);
        if info.tcpi_unacked == 0 && info.tcpi_backoff != 0 {
            return;
        }
        assert!(Instant::now() < until, "unacknowledged: {}, backoff: {}", info.tcpi_unacked, info.tcpi_backoff);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_has_timed_out_is_told() {
    if is_beyond_the_rung("why a connection has ended") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    // So many times is sent again: RFC 1122's R2, 15 by default.
    network.here.run(|| fs::write("/proc/sys/net/ipv4/tcp_retries2", "2").unwrap());
    let mut watcher = Watcher::open(CLOSES);
    let mut connections: [_; 4] = std::array::from_fn(|_| across(&network));
    let mut unsent = across(&network);
    let cookies = connections.each_ref().map(|(client, _)| cookie(client));
    let [keepalive, unacknowledged, window, limit] = &mut connections;
    fill(&mut window.0);
    network.here.cut();
    for (name, value) in [(libc::TCP_KEEPIDLE, 1), (libc::TCP_KEEPINTVL, 1), (libc::TCP_KEEPCNT, 1)] {
        set_option(&keepalive.0, libc::IPPROTO_TCP, name, value);
    }
    set_option(&keepalive.0, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    unacknowledged.0.write_all(b"into the void").unwrap();
    set_user_timeout(&limit.0, 300);
    limit.0.write_all(b"into the void").unwrap();
    let closes = watcher.closes(0, cookies);
    let endings = [
        TCPEVENT_ENDING_KEEPALIVE,
        TCPEVENT_ENDING_UNACKNOWLEDGED,
        TCPEVENT_ENDING_CLOSED_WINDOW,
        TCPEVENT_ENDING_USER_TIMEOUT,
    ];
    for (close, ending) in closes.iter().zip(endings) {
        assert_eq!((close.error, close.ending), (libc::ETIMEDOUT, ending), "{close:#?}");
    }

    // It is not the peer's window that keeps it from being sent.
    network.here.ip("route del 198.51.100.0/24");
    unsent.0.write_all(b"there is no way").unwrap();
    let [close] = watcher.closes(0, [cookie(&unsent.0)]);
    assert!([libc::ENETUNREACH, libc::ETIMEDOUT].contains(&close.error), "{close:#?}");
    assert_eq!(close.ending, TCPEVENT_ENDING_UNACKNOWLEDGED, "{close:#?}");
}

#[test]
fn a_reset_after_this_end_has_closed_is_told_without_a_culprit() {
    if lacks_cookies() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    let resets: [fn(TcpStream); 2] = [
        |server| set_linger_0(&server),
        // To a socket whose program has closed it.
        |mut server| server.write_all(b"too late").unwrap(),
    ];
    for reset in resets {
        let (client, server) = across(&network);
        let own = cookie(&client);
        // Its FIN is lost.
        network.here.cut();
        drop(client);
        reset(server);
        let [close] = watcher.closes(0, [own]);
        assert_eq!((close.old_state.as_str(), close.error), ("FIN_WAIT1", libc::ECONNRESET), "{close:#?}");
        check(&close, TCPEVENT_ENDING_RESET, "after this end has closed");
        network.here.mend();
    }
}

/// The socket is gone with the acknowledgement of its FIN: that it was answered by a reset is told by the other end.
#[test]
fn what_comes_after_this_end_has_closed_is_told_by_the_other_end_alone() {
    if lacks_cookies() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(CLOSES);
    let (client, mut server) = across(&network);
    let cookies = [cookie(&client), cookie(&server)];
    network.there.cut();
    drop(client);
    wait_for_state(&server, CLOSE_WAIT);
    network.there.mend();
    server.write_all(b"too late").unwrap();
    wait_for_state(&server, CLOSE);
    let [of_client, of_server] = watcher.closes(0, cookies);
    assert_eq!((of_client.old_state.as_str(), of_client.error), ("FIN_WAIT2", 0), "{of_client:#?}");
    check(&of_client, TCPEVENT_ENDING_HALF_CLOSED, "data after the close");
    check(&of_server, TCPEVENT_ENDING_RESET_BY_PEER, "data after the close");
}

/// The kernel ends its connections by itself, as if a program had: with SO_LINGER, or dissolved.
#[test]
fn what_mptcp_does_is_not_laid_to_the_program() {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    let Ok(listener) = socket() else { return eprintln!("skipped: this kernel has no MPTCP") };
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    listener.bind(&V4().into()).unwrap();
    listener.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    let port = address.as_socket().unwrap().port();
    let endings = [TCPEVENT_ENDING_ORDERLY, TCPEVENT_ENDING_HALF_CLOSED, TCPEVENT_ENDING_UNKNOWN];
    for (way, endings) in [("in order", &endings[..]), ("unread", &endings[2..])] {
        let mut client = socket().unwrap();
        client.connect(&address).unwrap();
        let mut server = listener.accept().unwrap().0;
        server.write_all(b"data").unwrap();
        let own = client.local_addr().unwrap().as_socket().unwrap().port();
        client.read_exact(&mut [0; 4][..if way == "unread" { 1 } else { 4 }]).unwrap();
        drop(client);
        drop(server);
        let is_client = |event: &&Event| event.ports() == (own, port);
        let events = watcher.events_until(0, way, |events| events.iter().any(|event| is_client(&event)));
        let close = events.iter().find(is_client).unwrap();
        let by_program = [TCPEVENT_ENDING_LINGER, TCPEVENT_ENDING_UNREAD, TCPEVENT_ENDING_DISCONNECTED];
        assert!(!by_program.contains(&close.ending), "{way}: {close:#?}");
        assert!(close.error != 0 || endings.contains(&close.ending), "{way}: {close:#?}");
    }
}

#[test]
fn an_attempt_that_failed_has_no_ending() {
    if is_beyond_the_rung("which socket has failed to connect") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(CLOSES);
    let closed = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), crate::traffic::closed_port());
    let socket = crate::api_traffic::refused(closed);
    let [close] = watcher.closes(0, [cookie(&socket)]);
    assert_eq!((close.error, close.ending), (libc::ECONNREFUSED, TCPEVENT_ENDING_UNKNOWN), "{close:#?}");
}
