//! Endpoints of every kind: each gives exactly one close, with the right owner. `tests/c/scenarios.c` makes most of the
//! connections.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{self, Command};
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::api_closes::send_with_syn;
use crate::api_network::{Host, Network};
use crate::api_traffic::{SYN_RECV, begin_connect, option, wait_for_state};
use crate::consumer::{
    Consumer, Event, finds_holders, kernel_version, patience, rung_is_tracepoint, sees_accepts, turn,
};
use crate::owners::{Owner, RUNS, Truths, check, check_unless, consumer, run, scenario};
use crate::traffic::{Connection, V4};

/// Each endpoint gave one event with its owner, and gives no further one.
fn check_once(consumer: &mut Consumer, truths: &Truths) {
    check(consumer, truths);
    expect_no_more(consumer, truths);
}

fn expect_no_more(consumer: &mut Consumer, truths: &Truths) {
    let more: Vec<_> = consumer.events_until_silence();
    let more: Vec<_> = more.iter().filter(|event| truths.contains_key(&event.ports())).collect();
    assert!(more.is_empty(), "there were more: {more:#?}");
}

/// Both ends are in this network namespace.
fn within(host: &Host, name: &str) -> Command {
    scenario(name, &[("SERVER_NS", host.name), ("CLIENT_NS", host.name)])
}

fn set(host: &Host, path: &str, value: &str) {
    host.run(|| fs::write(format!("/proc/sys/net/ipv4/{path}"), value).unwrap());
}

/// A counter of a network namespace: one line has its name, the next its number.
fn counter(host: &Host, name: &str) -> u64 {
    let text = host.run(|| fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    lines
        .chunks(2)
        .find_map(|pair| pair[0].iter().position(|other| *other == name).map(|at| pair[1][at].parse().unwrap()))
        .unwrap()
}

#[test]
fn mptcp_gives_one_close_for_each_end_of_a_subflow() {
    // TCP_IS_MPTCP says whether MPTCP is used. On 5.10 the scenarios themselves never end.
    if kernel_version() < (5, 16) {
        return eprintln!("skipped: this kernel's MPTCP is unfinished");
    }
    let _turn = turn();
    let mut consumer = consumer();
    for name in
        ["client-first", "server-first", "client-resets", "server-resets", "client-killed", "server-killed", "prefork"]
    {
        println!("{name}");
        let Some(truths) = run(scenario(name, &[("PROTOCOL", "mptcp")])) else {
            eprintln!("skipped: this kernel has no MPTCP");
            return;
        };
        assert_eq!(truths.len(), 2 * RUNS);
        // If its peer closes at once, the kernel may end a connection before it is accepted (mptcp_worker; seen on
        // 7.3). And a plain tracepoint cannot tell which accepted ones are MPTCP's. A thread of the kernel closes them: whose
        // they are, only the accept tells.
        let ends_early = ["client-first", "client-killed"].contains(&name) || !sees_accepts();
        check_unless(&mut consumer, &truths, |got, truth| {
            (ends_early && *got == Owner::nobody(truth.uid)) || (rung_is_tracepoint() && *got == Owner::nobody(0))
        });
        expect_no_more(&mut consumer, &truths);
    }
}

/// The kernel itself opens and accepts further connections between other addresses: no process has acted on those.
#[test]
fn a_connection_that_mptcp_has_joined_by_itself_gives_one_close_for_each_end() {
    const IPPROTO_MPTCP: i32 = 262;
    const SOL_MPTCP: i32 = 284;
    const MPTCP_INFO: i32 = 1;
    const MORE_V4: &str = "198.51.100.4";

    let _turn = turn();
    let network = Network::new();
    let ip = |host: &Host, arguments: &str| {
        Command::new("ip").args(["-n", host.name]).args(arguments.split(' ')).status().unwrap().success()
    };
    assert!(ip(&network.here, &format!("addr add {MORE_V4}/24 dev tev0")));
    if ![&network.here, &network.there].iter().all(|host| ip(host, "mptcp limits set subflows 2"))
        || !ip(&network.here, &format!("mptcp endpoint add {MORE_V4} dev tev0 subflow"))
    {
        eprintln!("skipped: this kernel has no MPTCP");
        return;
    }
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(IPPROTO_MPTCP.into())).unwrap();
    let there = SocketAddr::new(Network::THERE_V4.parse().unwrap(), 0);
    let listener = network.there.run(|| {
        let listener = socket();
        listener.bind(&there.into()).unwrap();
        listener.listen(8).unwrap();
        listener
    });
    let address = listener.local_addr().unwrap();
    let mut client = network.here.run(|| {
        let client = socket();
        client.connect(&address).unwrap();
        client
    });
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    // The first field of struct mptcp_info: connections besides the first one.
    let joined = |socket: &Socket| option::<[u8; 64]>(socket, SOL_MPTCP, MPTCP_INFO)[0];
    let until = Instant::now() + patience();
    while joined(&client) == 0 || joined(&server) == 0 {
        assert!(Instant::now() < until, "nothing has joined");
        std::thread::yield_now();
    }
    let port = address.as_socket().unwrap().port();
    drop((client, server, listener));
    let mut ends = Vec::new();
    while ends.len() < 4 {
        ends.push(consumer.event("an end", |event| [event.local_port, event.remote_port].contains(&port)));
    }
    for end in &ends {
        let is_joined = [&end.local, &end.remote].contains(&&MORE_V4.to_owned());
        // The kernel thread that opened it is no owner. A plain tracepoint takes it for one.
        let is_client = end.remote_port == port;
        if !is_joined && !rung_is_tracepoint() && (is_client || sees_accepts()) {
            assert_eq!(end.pid, process::id(), "{end:?}");
        } else if !rung_is_tracepoint() {
            assert!([0, process::id()].contains(&end.pid), "{end:?}");
        }
    }
    let mut local: Vec<_> = ends.iter().map(|event| (event.local.as_str(), event.remote.as_str())).collect();
    local.sort_unstable();
    let [here, there] = [Network::HERE_V4, Network::THERE_V4];
    assert_eq!(local, [(here, there), (there, here), (there, MORE_V4), (MORE_V4, there)], "{ends:#?}");
    let more: Vec<_> = consumer.events_until_silence();
    assert!(!more.iter().any(|event| [event.local_port, event.remote_port].contains(&port)), "{more:#?}");
}

#[test]
fn fast_open_gives_one_close_for_each_end() {
    let _turn = turn();
    let network = Network::new();
    set(&network.here, "tcp_fastopen", "3");
    let mut consumer = consumer();
    for name in ["fast-open", "fast-open-reset"] {
        let before = counter(&network.here, "TCPFastOpenPassive");
        let truths = run(within(&network.here, name)).expect("every kernel has Fast Open");
        assert_eq!(truths.len(), 2 * RUNS);
        let opened = counter(&network.here, "TCPFastOpenPassive") - before;
        assert!(opened >= RUNS as u64 - 1, "only {opened} were opened fast");
        check_once(&mut consumer, &truths);
    }
}

#[test]
fn syn_cookies_give_one_close_for_each_end() {
    let _turn = turn();
    let network = Network::new();
    set(&network.here, "tcp_syncookies", "2");
    let mut consumer = consumer();
    for name in ["client-first", "server-first", "client-resets", "server-killed"] {
        let before = counter(&network.here, "SyncookiesRecv");
        let truths = run(within(&network.here, name)).unwrap();
        assert_eq!(counter(&network.here, "SyncookiesRecv") - before, RUNS as u64, "not all came with a cookie");
        check_once(&mut consumer, &truths);
    }
}

#[test]
fn of_several_listeners_at_a_port_the_process_that_accepts_is_the_owner() {
    let _turn = turn();
    let mut consumer = consumer();
    let truths = run(scenario("reuse-port", &[])).unwrap();
    assert_eq!(truths.len(), 2 * RUNS);
    let accepted: HashSet<_> =
        truths.values().filter(|owner| owner.task.starts_with("t-reuser")).map(|owner| &owner.task).collect();
    assert!(accepted.len() > 1, "one process has accepted all");
    check_once(&mut consumer, &truths);
}

/// Ports of the client's end.
fn close_into_time_wait(server_first: bool) -> (u16, u16) {
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    if server_first {
        connection.close_server_first();
    } else {
        connection.close_client_first();
    }
    ports
}

fn events_of(consumer: &mut Consumer, endpoints: &[(u16, u16)]) -> Vec<Event> {
    let is_known =
        |event: &Event| endpoints.iter().any(|ports| event.ports() == *ports || event.ports() == (ports.1, ports.0));
    consumer.events_until_silence().into_iter().filter(is_known).collect()
}

#[test]
fn a_time_wait_that_is_older_than_the_probe_gives_nothing_and_a_later_one_nothing_more() {
    let _turn = turn();
    let network = Network::new();
    let mut older = Vec::new();
    // A socket that waits for the peer's FIN is a TIME_WAIT too, to the kernel, once its process is gone.
    let server = network.here.run(|| {
        older.extend([close_into_time_wait(false), close_into_time_wait(true)]);
        let connection = Connection::open(V4(), V4());
        older.push(connection.ports());
        let Connection { client, server, .. } = connection;
        drop(client);
        server
    });
    let waiting = older[2];
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    let later = network.here.run(|| close_into_time_wait(false));
    consumer.both_ends(later);
    // The peer's FIN reaches a TIME_WAIT: that end gives nothing, the peer's own does.
    drop(server);
    let event = consumer.event("the peer of the one that waited", |event| event.ports() == (waiting.1, waiting.0));
    assert_eq!(event.pid, process::id(), "{event:?}");
    // The kernel ends all remaining ones.
    drop(network);
    older.push(later);
    assert_eq!(events_of(&mut consumer, &older), []);
}

#[test]
fn a_listener_closed_with_a_full_backlog_gives_a_close_for_each_unaccepted_connection() {
    const BACKLOG: i32 = 4;

    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&V4().into()).unwrap();
    listener.listen(BACKLOG).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    // The kernel accepts one more than the backlog says.
    let clients: Vec<_> = (0..=BACKLOG).map(|_| TcpStream::connect(address).unwrap()).collect();
    // This one gets no answer.
    let left_out = TcpStream::from(begin_connect(address));
    let port = |client: &TcpStream| client.local_addr().unwrap().port();
    let mut awaited: HashSet<(u16, u16)> = clients.iter().map(|client| (address.port(), port(client))).collect();
    let clients_ends: HashSet<(u16, u16)> = awaited.iter().map(|ports| (ports.1, ports.0)).collect();
    awaited.extend(clients_ends);
    awaited.insert((port(&left_out), address.port()));

    drop(listener);
    drop((clients, left_out));
    let mut all = awaited.clone();
    while !awaited.is_empty() {
        let event = consumer.event(&format!("{awaited:?}"), |event| awaited.contains(&event.ports()));
        awaited.remove(&event.ports());
        // A plain tracepoint may not see which process closed the listener.
        let may_be_nobody = rung_is_tracepoint() && event.local_port == address.port();
        assert!(event.pid == process::id() || may_be_nobody && event.pid == 0, "{event:?}");
    }
    // No event of the listener either.
    all.insert((address.port(), 0));
    let more: Vec<_> = consumer.events_until_silence().into_iter().filter(|e| all.contains(&e.ports())).collect();
    assert_eq!(more, []);
}

/// Two SYNs cross: each host has begun to connect to the other, but THERE's segments do not reach HERE.
#[test]
fn a_connect_that_is_reset_after_two_syns_have_crossed_gives_one_close() {
    let _turn = turn();
    let network = Network::new();
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    network.there.cut();
    let (here, there) = ((Network::HERE_V4, 0), (Network::THERE_V4, 0));
    let bound = |host: &Host, (address, port): (&str, u16)| {
        host.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(address.parse().unwrap(), port).into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
    };
    let [ours, theirs] = [bound(&network.here, here), bound(&network.there, there)];
    let [our_address, their_address] = [&ours, &theirs].map(|socket| socket.local_addr().unwrap());
    theirs.connect(&our_address).expect_err("nobody answers");
    ours.connect(&their_address).expect_err("nobody answers");
    wait_for_state(&theirs, SYN_RECV);
    drop(ours);
    network.there.mend();
    // It sends its SYN-ACK again, to a socket that is gone.
    let port = |address: &SockAddr| address.as_socket().unwrap().port();
    let ports = (port(&their_address), port(&our_address));
    let event = consumer.event("the end in SYN_RECV", |event| event.ports() == ports);
    assert_eq!(event.pid, process::id(), "{event:?}");
    assert_eq!(events_of(&mut consumer, &[ports]).iter().filter(|event| event.ports() == ports).count(), 0);
}

/// Accepted and read before the handshake is over, and then reset.
#[test]
fn a_fast_open_that_is_reset_before_its_handshake_is_over_gives_one_close() {
    let _turn = turn();
    let network = Network::new();
    let mut consumer = Consumer::started(&[]);
    consumer.tell("consume 1");
    network.there.cut();
    let (listener, client) = send_with_syn(&network, b"early");
    let (mut server, _) = listener.accept().unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    let ports = (listener.local_addr().unwrap().port(), client.local_addr().unwrap().port());
    wait_for_state(&server, SYN_RECV);
    drop(client);
    network.there.mend();
    if !finds_holders() {
        return eprintln!("skipped: without accepts it looks like an aborted handshake");
    }
    let event = consumer.event("the end in SYN_RECV", |event| event.ports() == ports);
    assert_eq!(event.pid, process::id(), "{event:?}");
    assert_eq!(events_of(&mut consumer, &[ports]).iter().filter(|event| event.ports() == ports).count(), 0);
}
