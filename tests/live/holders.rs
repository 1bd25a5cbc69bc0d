//! Unusual processes: what both APIs report of their sockets, while they are open and when they close.

use std::env;
use std::fs;
use std::net::TcpStream;

use crate::api_watcher::{Kind, Watcher};
use crate::consumer::{Consumer, turn};
use crate::traffic::Peer;

/// Both APIs, with closes, and snapshots every 0.2 s.
struct Both {
    classic: Consumer,
    handles: Watcher,
}

impl Both {
    fn start() -> Self {
        let mut classic = Consumer::started(&[("TCPEVENT_NETLINK_INTERVAL", "0.2")]);
        classic.tell("consume 1");
        Self { classic, handles: Watcher::open("events=6 interval=200") }
    }

    /// The reported owner of an open end: pid, user and name, first from the classic functions.
    fn snapshots(&mut self, ports: (u16, u16)) -> [(u32, u32, String); 2] {
        let classic = self.classic.event("the open end", |event| event.ports() == ports);
        [(classic.pid, classic.uid, classic.task), self.by_handle(ports, Kind::Snapshot)]
    }

    /// The same once it has closed. The classic functions name it differently in snapshots.
    fn closes(&mut self, ports: (u16, u16), name_in_snapshots: &str) -> [(u32, u32, String); 2] {
        let is_close = |event: &crate::consumer::Event| event.ports() == ports && event.task != name_in_snapshots;
        let classic = self.classic.event("the close", is_close);
        [(classic.pid, classic.uid, classic.task), self.by_handle(ports, Kind::Close)]
    }

    /// A sweep may fall between the handshake and the accept, when the end has no owner yet: a later one counts.
    fn by_handle(&mut self, ports: (u16, u16), kind: Kind) -> (u32, u32, String) {
        let is_it = |event: &crate::api_watcher::Event| {
            event.ports() == ports && event.kind == kind && (kind != Kind::Snapshot || event.pid != 0)
        };
        let events = self.handles.events_until(0, "the end", |events| events.iter().any(is_it));
        let event = events.into_iter().find(is_it).unwrap();
        (event.pid, event.uid, event.comm)
    }
}

/// Returns the peer's end of a connection to it.
fn connect(peer: &mut Peer) -> (TcpStream, (u16, u16)) {
    let client = peer.connect();
    let ports = (peer.port(), client.local_addr().unwrap().port());
    (client, ports)
}

#[test]
fn of_a_set_user_id_program_all_but_classic_snapshots_tell_the_real_user() {
    const REAL: u32 = 1005;
    const EFFECTIVE: u32 = 65534;

    let _turn = turn();
    let copy = env::temp_dir().join(format!("tcpevent-peer-{}", std::process::id()));
    let mut peer = Peer::set_user_id(&copy, REAL, EFFECTIVE, "tev-set-user-id");
    fs::remove_file(&copy).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{REAL}\t{EFFECTIVE}\t")), "{status}");
    let pid = peer.pid();
    let mut both = Both::start();
    let (_client, ports) = connect(&mut peer);
    let argv0: String = copy.to_str().unwrap().chars().take(16).collect();
    let expected = |name: &str| (pid, REAL, name.to_owned());
    // Consumers of the reference expect the socket's own user there: the effective user of the process that created it.
    assert_eq!(both.snapshots(ports), [(pid, EFFECTIVE, argv0.clone()), expected("tev-set-user-id")]);
    drop(peer);
    assert_eq!(both.closes(ports, &argv0), [expected("tev-set-user-id"), expected("tev-set-user-id")]);
}

#[test]
fn a_process_whose_main_thread_has_ended_is_named() {
    const USER: u32 = 1006;

    let _turn = turn();
    let mut peer = Peer::headless(USER, "tev-headless", "tev-argument-0");
    let pid = peer.pid();
    let mut both = Both::start();
    let (_client, ports) = connect(&mut peer);
    let expected = |name: &str| (pid, USER, name.to_owned());
    assert_eq!(both.snapshots(ports), [expected("tev-argument-0"), expected("tev-headless")]);
    drop(peer);
    assert_eq!(both.closes(ports, "tev-argument-0"), [expected("tev-headless"), expected("tev-headless")]);
}

#[test]
fn a_process_with_an_empty_command_line_is_in_a_handles_snapshots_only() {
    const USER: u32 = 1007;

    let _turn = turn();
    let mut peer = Peer::run(USER, b"tev-nameless", b"");
    assert!(fs::read(format!("/proc/{}/cmdline", peer.pid())).unwrap().starts_with(b"\0"));
    let pid = peer.pid();
    let mut both = Both::start();
    let (client, ports) = connect(&mut peer);
    let expected = (pid, USER, "tev-nameless".to_owned());
    assert_eq!(both.by_handle(ports, Kind::Snapshot), expected);
    // Like the reference, which skips such a process: the other end arrives, in a sweep that has seen both.
    let other = (ports.1, ports.0);
    both.classic.event("the other end", |event| event.ports() == other);
    let seen = both.classic.events_until_silence();
    assert!(seen.iter().all(|event| event.ports() != ports), "{seen:#?}");
    assert!(seen.iter().filter(|event| event.ports() == other).count() > 0, "{seen:#?}");
    drop(peer);
    drop(client);
    assert_eq!(both.closes(ports, ""), [expected.clone(), expected]);
}
