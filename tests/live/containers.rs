//! A consumer in its own namespaces, as in a container: it gets the process IDs that it can see, closes of the whole
//! host, and snapshots of its network namespace.

use std::fs;
use std::net::TcpStream;
use std::process::{self, Command};
use std::time::{Duration, Instant};

use crate::api_network::Network;
use crate::api_watcher::{CLOSES, Watcher};
use crate::consumer::{Consumer, Event, c_program, finds_holders, patience, root, rung_is_tracepoint, slowness, turn};
use crate::owners::{self, Owner, RUNS, Truths, run, scenario};
use crate::traffic::{Connection, Peer, V4, own_comm, set_linger_0};

const UID: u32 = 1004;
const COMM: &str = "tev-contained";

/// A program in a new PID namespace, with that namespace's /proc. It ends with the process that started it.
fn contained(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(c_program(program));
    command
}

/// The last process in a line of only children: what a wrapper runs.
fn last_child_of(pid: u32) -> u32 {
    let until = Instant::now() + patience();
    let mut last = pid;
    loop {
        let children = fs::read_to_string(format!("/proc/{last}/task/{last}/children")).unwrap();
        match children.split_whitespace().next() {
            Some(child) => last = child.parse().unwrap(),
            None if last != pid => return last,
            None => assert!(Instant::now() < until, "it has no child"),
        }
    }
}

/// A consumer in a container.
struct Container {
    consumer: Consumer,
    /// Its process ID on the host.
    pid: u32,
}

impl Container {
    fn new(variables: &[(&str, &str)]) -> Self {
        let mut command = contained("consumer");
        command.env("TCPEVENT_NETLINK_INTERVAL", "0").envs(variables.iter().copied());
        let consumer = Consumer::from(command);
        let pid = last_child_of(consumer.pid());
        Self { consumer, pid }
    }

    fn started(variables: &[(&str, &str)]) -> Self {
        let mut this = Self::new(variables);
        this.consumer.start();
        this.consumer.tell("consume 1");
        this
    }

    /// Runs a program in the container.
    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--pid", "--mount"]).arg(format!("--wd={}", root().display()));
        command
    }

    /// Runs a program in a container within it.
    fn further_inside(&self) -> Command {
        let mut command = self.inside();
        command.args(["unshare", "--pid", "--fork", "--kill-child"]);
        command
    }
}

/// Process IDs of what a wrapper runs: on the host, in the container, and in a container within that.
fn ids_of(peer: &Peer) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{}/status", last_child_of(peer.pid()))).unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("NStgid:")).unwrap();
    ids.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn owner_of(event: &Event) -> (u32, u32, &str) {
    (event.pid, event.uid, &event.task)
}

/// Resets a connection. The peer does not act, so it stays the owner of its end as the accepting process.
fn reset(consumer: &mut Consumer, peer: &Peer, client: TcpStream) -> Event {
    let ports = (peer.port(), client.local_addr().unwrap().port());
    set_linger_0(&client);
    drop(client);
    consumer.event("the peer's end", |event| event.ports() == ports)
}

fn check(consumer: &mut Consumer, truths: &Truths) {
    assert_eq!(truths.len(), 2 * RUNS);
    owners::check(consumer, truths);
}

const SCENARIOS: [&str; 5] = ["client-first", "server-first", "client-resets", "server-killed", "prefork"];

#[test]
fn process_ids_are_those_of_the_consumers_own_namespace() {
    let _turn = turn();
    let mut container = Container::started(&[]);
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_ne!(namespace(container.pid), namespace(process::id()));
    for name in SCENARIOS {
        let mut command = container.inside();
        let scenario = scenario(name, &[]);
        command.arg(scenario.get_program()).args(scenario.get_args());
        let truths = run(command).unwrap();
        check(&mut container.consumer, &truths);
    }
}

#[test]
fn a_process_that_the_consumer_cannot_see_has_name_and_user_but_no_id() {
    let _turn = turn();
    let mut container = Container::started(&[]);
    for name in SCENARIOS {
        let truths = run(scenario(name, &[])).unwrap();
        let truths = truths.into_iter().map(|(ports, owner)| (ports, Owner { pid: 0, ..owner })).collect();
        check(&mut container.consumer, &truths);
    }
}

#[test]
fn a_process_of_a_namespace_within_has_the_id_that_the_consumer_sees() {
    let _turn = turn();
    let mut container = Container::started(&[]);
    let mut peer = Peer::run_by(container.further_inside(), UID, COMM);
    let [_, of_consumer, of_peer] = ids_of(&peer)[..] else { panic!("{:?}", ids_of(&peer)) };
    assert_eq!(of_peer, 1);
    let client = peer.connect();
    let event = reset(&mut container.consumer, &peer, client);
    // A plain tracepoint reports process IDs of one namespace.
    match (rung_is_tracepoint(), finds_holders()) {
        (true, false) => assert_eq!(owner_of(&event), (0, 0, ""), "{event:?}"),
        (true, true) => assert_eq!(owner_of(&event), (0, UID, COMM), "{event:?}"),
        (false, _) => assert_eq!(owner_of(&event), (of_consumer, UID, COMM), "{event:?}"),
    }
}

#[test]
fn connections_that_are_older_than_the_probe_have_the_ids_of_the_namespace_too() {
    let _turn = turn();
    let mut container = Container::new(&[]);
    let mut inside = Peer::run_by(container.inside(), UID, COMM);
    let mut outside = Peer::run(UID, COMM.as_bytes(), b"peer");
    let [client, other] = [inside.connect(), outside.connect()];
    container.consumer.start();
    container.consumer.tell("consume 1");
    let event = reset(&mut container.consumer, &inside, client);
    assert_eq!(owner_of(&event), (ids_of(&inside)[1], UID, COMM), "{event:?}");
    let event = reset(&mut container.consumer, &outside, other);
    // The kernel lists only processes of the namespace. The user is the socket's.
    let uid = if rung_is_tracepoint() { 0 } else { UID };
    assert_eq!(owner_of(&event), (0, uid, ""), "{event:?}");
}

#[test]
fn a_filter_by_process_id_means_the_consumers_namespace() {
    let _turn = turn();
    let container = Container::new(&[]);
    let mut peers = [(); 2].map(|()| Peer::run_by(container.inside(), UID, COMM));
    let id = ids_of(&peers[0])[1];
    let mut command = container.inside();
    command.arg(c_program("consumer")).env("TCPEVENT_NETLINK_INTERVAL", "0");
    command.env("TCPEVENT_FILTER", format!("pid {id}"));
    let mut consumer = Consumer::from(command);
    consumer.start();
    consumer.tell("consume 1");
    let clients = peers.each_mut().map(Peer::connect);
    let ports = (peers[0].port(), clients[0].local_addr().unwrap().port());
    // They end with their peers.
    for peer in peers {
        drop(peer);
    }
    drop(clients);
    let events = consumer.events_until_silence();
    let [event] = &events[..] else { panic!("not one event: {events:#?}") };
    assert_eq!((event.ports(), owner_of(event)), (ports, (id, UID, COMM)), "{event:?}");
}

#[test]
fn snapshots_are_of_processes_that_the_consumer_sees() {
    let _turn = turn();
    let mut container = Container::new(&[("TCPEVENT_NETLINK_INTERVAL", "0.2")]);
    for probe in [false, true] {
        if probe {
            container.consumer.start();
        } else {
            container.consumer.tell("consume 1");
        }
        let mut inside = Peer::run_by(container.inside(), UID, COMM);
        let outside = Connection::open(V4(), V4());
        let client = inside.connect();
        let ports = (inside.port(), client.local_addr().unwrap().port());
        let mut seen = 0;
        while seen < 3 {
            let event = container.consumer.event("a snapshot", |event| event.local_port == inside.port());
            assert_eq!((event.pid, event.uid), (ids_of(&inside)[1], UID), "{event:?}");
            seen += u32::from(event.ports() == ports);
        }
        let until = Instant::now() + Duration::from_secs(1) * slowness();
        while let Some(event) = container.consumer.event_within(until.saturating_duration_since(Instant::now())) {
            assert_ne!(event.ports(), outside.ports(), "{event:?}");
        }
    }
}

#[test]
fn with_the_proc_of_another_namespace_process_ids_are_those_that_it_shows() {
    let _turn = turn();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(c_program("consumer"));
    command.env("TCPEVENT_NETLINK_INTERVAL", "0.2");
    let mut consumer = Consumer::from(command);
    consumer.start();
    consumer.tell("consume 1");
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    let snapshot = consumer.event("a snapshot", |event| event.ports() == ports);
    assert_eq!(snapshot.pid, process::id(), "{snapshot:?}");
    connection.close_client_first();
    let close = consumer.event("the close", |event| event.ports() == ports && event.task == own_comm());
    assert_eq!(close.pid, process::id(), "{close:?}");
}

#[test]
fn the_api_has_the_ids_of_the_consumers_namespace() {
    let _turn = turn();
    let mut watcher = Watcher::by(contained("api_watch"));
    watcher.open_handle(0, CLOSES);
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    connection.close_client_first();
    let events = watcher.events_until(0, "the close", |events| events.iter().any(|event| event.ports() == ports));
    let event = events.iter().find(|event| event.ports() == ports).unwrap();
    assert_eq!((event.pid, event.uid, event.comm.clone()), (0, 0, own_comm()), "{event:#?}");
    assert_eq!(event.owner_by, "close");
}

#[test]
fn in_a_network_namespace_closes_are_of_the_whole_host_and_snapshots_of_that_one() {
    let _turn = turn();
    let network = Network::new();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", network.here.name]).arg(c_program("consumer"));
    command.env("TCPEVENT_NETLINK_INTERVAL", "0.2");
    let mut consumer = Consumer::from(command);
    consumer.start();
    consumer.tell("consume 1");
    let elsewhere = Connection::open(V4(), V4());
    let here = network.here.run(|| Connection::open(V4(), V4()));
    let [of_elsewhere, of_here] = [elsewhere.ports(), here.ports()];
    let mut seen = 0;
    while seen < 3 {
        let event = consumer.event("a snapshot", |_| true);
        assert_ne!(event.ports(), of_elsewhere, "{event:?}");
        seen += u32::from(event.ports() == of_here);
    }
    for connection in [elsewhere, here] {
        let ports = connection.ports();
        connection.close_client_first();
        let event = consumer.event("the close", |event| event.ports() == ports && event.task == own_comm());
        assert_eq!((event.pid, event.uid), (process::id(), 0), "{event:?}");
    }
}
