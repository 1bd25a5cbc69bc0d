//! Filters: exactly the matching events arrive, whether the kernel or the library applies the filter.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{self, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::api_network::Network;
use crate::api_places::{Cgroup, Cgroups, Server, id_of};
use crate::api_traffic::{cookie, cookies_of, own_netns, refused, tcp_socket};
use crate::api_watcher::{Event, FAILED, Kind, Watcher, states};
use crate::consumer::{
    Consumer, finds_holders, is_beyond_the_rung, lacks_cookies, patience, rung_is_tracepoint, sees_accepts, slowness,
    turn,
};
use crate::traffic::{Connection, DUAL, Peer, V4, V6, closed_port, set_linger_0};

const PEER_UID: u32 = 1002;

/// Known facts of a closed endpoint.
#[derive(Clone, Debug)]
struct Truth {
    local: SocketAddr,
    remote: SocketAddr,
    /// 0 if it does not matter.
    pid: u32,
    uid: u32,
    netns: u32,
    cgroup: u64,
    failed: bool,
}

impl Truth {
    fn is_of(&self, event: &Event) -> bool {
        (self.local, self.remote, self.netns) == (event.local, event.remote, event.netns)
    }

    /// Addresses as an IPv4 prefix sees them.
    fn canonical(&self) -> [IpAddr; 2] {
        [self.local, self.remote].map(|end| end.ip().to_canonical())
    }
}

/// A host whose endpoints differ in each key.
struct Scene {
    network: Network,
    /// Dropped before its cgroup, which must be empty to be removed.
    in_cgroup: Server,
    cgroup: Cgroup,
    own_cgroup: u64,
    v4: TcpListener,
    v6: TcpListener,
    dual: TcpListener,
    in_network: TcpListener,
    closed: u16,
    peer: Peer,
}

const OTHER_V4: Ipv4Addr = Ipv4Addr::new(127, 1, 2, 3);
const IN_NETWORK_V4: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

impl Scene {
    fn new(cgroups: &Cgroups) -> Self {
        let network = Network::new();
        let cgroup = cgroups.make("tcpevent-filters");
        let in_network = network.here.run(|| TcpListener::bind((IN_NETWORK_V4, 0)).unwrap());
        let in_cgroup = cgroup.serve();
        let [v4, v6, dual] = [V4(), V6(), DUAL()].map(|at| TcpListener::bind(at).unwrap());
        let peer = Peer::run(PEER_UID, b"tev-filtered", b"peer");
        let own_cgroup = id_of(&cgroups.own());
        Self { network, in_cgroup, cgroup, own_cgroup, v4, v6, dual, in_network, closed: closed_port(), peer }
    }

    fn port(listener: &TcpListener) -> u16 {
        listener.local_addr().unwrap().port()
    }

    /// Makes one connection of each kind; all have ended when this returns.
    fn make(&mut self) -> Vec<Truth> {
        let own = |local, remote| Truth {
            local,
            remote,
            pid: process::id(),
            uid: 0,
            netns: own_netns(),
            cgroup: self.own_cgroup,
            failed: false,
        };
        let mut truths = Vec::new();
        for (listener, from, to) in [
            (&self.v4, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
            (&self.v4, OTHER_V4.into(), Ipv4Addr::LOCALHOST.into()),
            (&self.v6, V6().ip(), V6().ip()),
            (&self.dual, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        ] {
            truths.extend(connect_and_reset(listener, from, to).map(|(local, remote)| own(local, remote)));
        }

        let to = (Ipv4Addr::LOCALHOST, self.closed).into();
        let socket = tcp_socket(to);
        socket.bind(&V4().into()).unwrap();
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        socket.connect(&to.into()).expect_err("no listener there");
        truths.push(Truth { failed: true, ..own(local, to) });

        let (local, remote) = {
            let client = self.peer.connect();
            set_linger_0(&client);
            (client.local_addr().unwrap(), client.peer_addr().unwrap())
        };
        truths.push(own(local, remote));
        truths.push(Truth { pid: self.peer.pid(), uid: PEER_UID, ..own(remote, local) });

        let ends = self.network.here.run(|| {
            let at = IN_NETWORK_V4.into();
            let ends = connect_and_reset(&self.in_network, at, at);
            ends.map(|(local, remote)| own(local, remote))
        });
        truths.extend(ends.map(|truth| Truth { netns: self.network.here.inode(), ..truth }));

        let client = (Ipv4Addr::LOCALHOST, self.in_cgroup.connect_and_reset()).into();
        let server = (Ipv4Addr::LOCALHOST, self.in_cgroup.port).into();
        truths.push(own(client, server));
        // Reset before it is accepted: it has no owner.
        truths.push(Truth { pid: 0, cgroup: id_of(&self.cgroup.folder), ..own(server, client) });
        truths
    }
}

/// One connection that ends by a reset: local and remote address of both ends.
fn connect_and_reset(listener: &TcpListener, from: IpAddr, to: IpAddr) -> [(SocketAddr, SocketAddr); 2] {
    let to = SocketAddr::new(to, Scene::port(listener));
    let socket = tcp_socket(to);
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let ends = [
        (socket.local_addr().unwrap().as_socket().unwrap(), to),
        (server.local_addr().unwrap(), server.peer_addr().unwrap()),
    ];
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    server.read(&mut [0]).expect_err("it was reset");
    ends
}

type Fits = Box<dyn Fn(&Truth) -> bool>;

/// Texts of filters, with their meaning.
fn filters(scene: &Scene) -> Vec<(String, Fits)> {
    fn filter(text: impl Into<String>, fits: impl Fn(&Truth) -> bool + 'static) -> (String, Fits) {
        (text.into(), Box::new(fits))
    }

    let [v4, v6, dual] = [&scene.v4, &scene.v6, &scene.dual].map(Scene::port);
    let (closed, own, peer) = (scene.closed, process::id(), scene.peer.pid());
    let here = scene.network.here.inode();
    let this = own_netns();
    let cgroup = id_of(&scene.cgroup.folder);
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    let range = v4.min(closed)..=v4.max(closed);
    vec![
        filter("", |_| true),
        filter("dst 127.0.0.1", move |truth| truth.canonical()[1] == localhost),
        filter("dst ::1", |truth| truth.remote.ip() == V6().ip()),
        filter("src 127.1.0.0/16,127.9.9.8/31", |truth| {
            [OTHER_V4.into(), IpAddr::from(IN_NETWORK_V4)].contains(&truth.local.ip())
        }),
        filter(format!("sport {v4},{v6}"), move |truth| [v4, v6].contains(&truth.local.port())),
        filter(format!("dport {}-{}", range.start(), range.end()), move |truth| range.contains(&truth.remote.port())),
        filter("family inet6", |truth| truth.local.is_ipv6()),
        filter(format!("pid {own}"), move |truth| truth.pid == own),
        filter(format!("pid {peer}"), move |truth| truth.pid == peer),
        filter(format!("uid {PEER_UID}"), |truth| truth.uid == PEER_UID),
        filter(format!("netns {here}"), move |truth| truth.netns == here),
        filter(format!("netns {}", scene.network.here.path()), move |truth| truth.netns == here),
        filter("netns self", move |truth| truth.netns == this),
        filter(format!("cgroup {cgroup}"), move |truth| truth.cgroup == cgroup),
        filter(format!("cgroup {}", scene.cgroup.folder.display()), move |truth| truth.cgroup == cgroup),
        filter("failed", |truth| truth.failed),
        filter(format!("src 127.0.0.1 sport {v4} sport {dual} family inet"), move |truth| {
            truth.local.ip() == localhost && [v4, dual].contains(&truth.local.port())
        }),
        filter(
            format!("dst 127.0.0.0/8 dport {v4},{closed} family inet pid {own} uid 0 netns {this} failed"),
            |truth| truth.failed,
        ),
    ]
}

#[test]
fn what_fits_comes_and_nothing_else_does() {
    if is_beyond_the_rung("network namespaces") {
        return;
    }
    let _turn = turn();
    let cgroups = Cgroups::find();
    let mut scene = Scene::new(&cgroups);
    let filters = filters(&scene);
    let mut watcher = Watcher::idle();
    for (handle, (text, _)) in (0..).zip(&filters) {
        watcher.open_handle(handle, &format!("events=2 filter={text}"));
    }
    // Matches nothing here.
    let nothing = 60;
    watcher.open_handle(nothing, "events=2 filter=src 127.0.0.1 family inet6 dport 9 failed");

    // Twice: once all of the second round has arrived, nothing of the first one is still on its way.
    let truths = [scene.make(), scene.make()].concat();
    for (handle, (text, fits)) in (0..).zip(&filters) {
        let expected: Vec<_> = truths.iter().filter(|truth| fits(truth)).collect();
        assert!(!expected.is_empty(), "the scene has nothing for {text:?}");
        assert!(text.is_empty() || expected.len() < truths.len(), "the scene has too little for {text:?}");
        let events = watcher.events_until(handle, &format!("all that fits {text:?}"), |events| {
            expected.iter().all(|truth| events.iter().any(|event| truth.is_of(event)))
        });
        for truth in &truths {
            let count = events.iter().filter(|event| truth.is_of(event)).count();
            assert_eq!(count, usize::from(fits(truth)), "with {text:?}, events of {truth:#?}");
        }
        for event in events.iter().filter(|event| truths.iter().any(|truth| truth.is_of(event))) {
            assert_eq!(event.flags & FAILED != 0, event.old_state == "SYN_SENT", "{event:#?}");
        }
    }
    let statistics = watcher.statistics(nothing);
    assert_eq!((statistics["closes"], statistics["queued"]), (0, 0), "{statistics:?}");
}

#[test]
fn self_is_the_network_namespace_of_the_thread_that_opens() {
    if is_beyond_the_rung("network namespaces") {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::idle();
    assert_eq!(watcher.ask(&format!("enter {}", network.here.path()), "entered"), "");
    watcher.open_handle(0, "events=2 filter=netns self");
    Connection::open(V4(), V4()).close_client_first();
    let cookies = network.here.run(|| {
        let connection = Connection::open(V4(), V4());
        let cookies = cookies_of(&connection);
        connection.close_client_first();
        cookies
    });
    let events = watcher.events_until(0, "both ends", |events| {
        cookies.iter().all(|cookie| events.iter().any(|event| event.cookie == *cookie))
    });
    assert!(events.iter().all(|event| event.netns == network.here.inode()), "{events:#?}");
}

#[test]
fn changes_of_state_come_as_soon_as_they_fit() {
    let _turn = turn();
    let mut watcher = Watcher::idle();
    let filters = ["sport 1-65535".to_owned(), format!("pid {}", process::id()), "failed".to_owned()];
    for (handle, filter) in (0..).zip(&filters) {
        watcher.open_handle(handle, &format!("events=3 filter={filter}"));
    }
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    connection.close_client_first();
    let failed = cookie(&refused((Ipv4Addr::LOCALHOST, closed_port()).into()));

    // At first there is no local port.
    let all = ["SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE", "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE"];
    assert_eq!(watcher.lives(0, cookies).map(|life| states(&life)), all);
    // An end that was not accepted has no owner. Where accepts are not seen, it may be let go of before it is looked who holds it.
    let [client, server] = watcher.lives(1, cookies).map(|life| states(&life));
    assert_eq!(client, "CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE");
    let owned = server == "ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE";
    assert!(owned || (!sees_accepts() && server == "CLOSE_WAIT LAST_ACK CLOSE"), "{server}");
    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }
    let events = watcher.events_until(2, "the failure", |events| events.iter().any(|event| event.cookie == failed));
    assert!(events.iter().all(|event| event.flags & FAILED != 0), "{events:#?}");
    assert!(events.iter().all(|event| event.kind == Kind::Close), "{events:#?}");
    assert_eq!(events.iter().filter(|event| event.cookie == failed).count(), 1);
}

#[test]
fn uid_0_does_not_mean_a_user_that_is_not_known() {
    let _turn = turn();
    let mut watcher = Watcher::idle();
    watcher.open_handle(0, "events=3 filter=uid 0");
    let connection = Connection::open(V4(), V4());
    let cookies = cookies_of(&connection);
    connection.close_client_first();
    // A plain tracepoint does not know the owner of an end that was not accepted yet.
    let accepted_end = match (rung_is_tracepoint(), finds_holders()) {
        (false, _) => "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE",
        (true, true) => "ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE",
        (true, false) => "CLOSE_WAIT LAST_ACK CLOSE",
    };
    let expected = ["CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE", accepted_end];
    assert_eq!(watcher.lives(0, cookies).map(|life| states(&life)), expected);
}

/// A child about to execute a program holds a copy of each socket for a moment, and may be the last to hold it.
#[test]
fn no_close_is_lost_beside_programs_that_are_started() {
    const CONNECTIONS: usize = 200;

    if !sees_accepts() {
        return eprintln!("skipped: accepts are not seen");
    }
    let _turn = turn();
    let mut watcher = Watcher::open(&format!("events=2 filter=pid {}", process::id()));
    let is_over = AtomicBool::new(false);
    let ends: HashSet<(u16, u16)> = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    Command::new("/bin/true").status().unwrap();
                }
            });
        }
        let connections = (0..CONNECTIONS / slowness() as usize).flat_map(|_| {
            let connection = Connection::open(V4(), V4());
            let (one, other) = connection.ports();
            connection.close_client_first();
            [(one, other), (other, one)]
        });
        let ends = connections.collect();
        is_over.store(true, Ordering::Relaxed);
        ends
    });
    let events = watcher.events_until(0, "all closes", |events| {
        let came: HashSet<_> = events.iter().map(Event::ports).collect();
        ends.is_subset(&came)
    });
    assert!(events.iter().all(|event| event.pid == process::id()), "{events:#?}");
}

#[test]
fn snapshots_are_filtered_too() {
    let _turn = turn();
    let [one, other] = [V4(), V6()].map(|at| Connection::open(at, at));
    let (local, remote) = one.ports();
    let mut watcher = Watcher::open(&format!("events=4 interval=100 filter=dport {remote},{local}"));
    let wanted = cookies_of(&one);
    let unwanted = cookies_of(&other);
    let events = watcher.events_until(0, "three sweeps", |events| {
        wanted.iter().all(|cookie| events.iter().filter(|event| event.cookie == *cookie).count() >= 3)
    });
    assert!(events.iter().all(|event| !unwanted.contains(&event.cookie)), "{events:#?}");
    assert!(events.iter().all(|event| [local, remote].contains(&event.remote.port())), "{events:#?}");
}

#[test]
fn a_bad_filter_is_refused_with_the_word_and_its_place() {
    let _turn = turn();
    let mut watcher = Watcher::idle();
    for (text, at, word) in [
        ("host 10.0.0.1", 1, "host"),
        ("dport 443 dst 10.0.0.1/33", 4, "10.0.0.1/33"),
        ("dst 10.0.0.1, dport 443", 2, ""),
        ("dst ::1,fe80::1%eth0", 2, "fe80::1%eth0"),
        ("src 2001:db8::/129", 2, "2001:db8::/129"),
        ("sport 65536", 2, "65536"),
        ("dport 9-8", 2, "9-8"),
        ("dport 443,https", 2, "https"),
        ("family ipv4", 2, "ipv4"),
        ("pid 0", 2, "0"),
        ("pid 1 pid 2", 4, "2"),
        ("uid -1", 2, "-1"),
        ("netns /run/netns/nowhere", 2, "/run/netns/nowhere"),
        ("cgroup /sys/fs/cgroup/nowhere", 2, "/sys/fs/cgroup/nowhere"),
        ("failed yes", 2, "yes"),
        ("dst \u{7f}\u{1b}[31m", 2, "\u{7f}\u{1b}[31m"),
    ] {
        let refusal = watcher.refusal(&format!("filter={text}"));
        assert_eq!(refusal.errno, libc::EINVAL, "{text:?}: {refusal:?}");
        let place = format!("word {at}, {word:?}, must be ");
        assert!(refusal.text.contains(&place), "{text:?}: {refusal:?}");
        assert!(!refusal.text.contains(char::is_control), "{text:?}: {refusal:?}");
    }
    let refusal = watcher.refusal("filter=failed dport");
    assert_eq!(refusal.errno, libc::EINVAL, "{refusal:?}");
    assert!(refusal.text.contains("the value is missing at the end"), "{refusal:?}");
}

// ---- The classic functions

#[test]
fn the_classic_functions_take_the_filter_from_the_environment() {
    let _turn = turn();
    let listeners = [V4(), V4()].map(|at| TcpListener::bind(at).unwrap());
    let [wanted, other] = [0, 1].map(|number| Scene::port(&listeners[number]));
    let filter = format!("src 127.0.0.1 dport {wanted}");
    let mut consumer = Consumer::started(&[("TCPEVENT_FILTER", &filter), ("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
    consumer.tell("consume 1");
    let localhost = Ipv4Addr::LOCALHOST.into();
    let held = [&listeners[1], &listeners[0]].map(|listener| {
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap())
    });
    let held_port = held[1].0.local_addr().unwrap().port();
    let closed_ports = [&listeners[1], &listeners[0]].map(|listener| {
        let [(local, _), _] = connect_and_reset(listener, localhost, localhost);
        local.port()
    });
    // The close, and three snapshots. (A sweep may have caught the connection that was closed.)
    let until = Instant::now() + patience();
    let (mut closes, mut snapshots) = (0, 0);
    while closes < 1 || snapshots < 3 {
        let event = consumer
            .event_within(until.saturating_duration_since(Instant::now()))
            .unwrap_or_else(|| panic!("{closes} closes and {snapshots} snapshots came"));
        assert_eq!(event.remote_port, wanted, "{event:?}, and not {other}");
        closes += u32::from(event.local_port == closed_ports[1]);
        snapshots += u32::from(event.local_port == held_port);
    }
}

#[test]
fn a_bad_filter_in_the_environment_is_an_error_as_any_bad_setting() {
    let _turn = turn();
    let bad = ("TCPEVENT_FILTER", "dport 443 host 10.0.0.1");
    let expected = "libtcpEvent: error: TCPEVENT_FILTER=\"dport 443 host 10.0.0.1\": word 3, \"host\", must be ";
    let mut consumer = Consumer::run(&[bad]);
    consumer.tell("add");
    assert_eq!(consumer.wait(), Some(1));
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with(expected), "{lines:?}");

    let mut consumer = Consumer::run(&[bad, ("TCPEVENT_ON_ERROR", "continue")]);
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    consumer.tell("status");
    assert_eq!(consumer.expect("status"), "status 0");
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with(expected), "{lines:?}");
    assert!(fs::metadata(format!("/proc/{}", consumer.pid())).is_ok());
}
