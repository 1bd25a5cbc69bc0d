//! Kernels before 5.8, as far as this one can imitate them: `tests/c/old_kernel.c` refuses what bpf(2) of Linux 4.15
//! lacks, and a mount namespace hides the kernel's own types.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

use crate::api_traffic::own_netns;
use crate::api_watcher::{Direction, Event, Kind, STATES_AND_CLOSES, Watcher, states};
use crate::consumer::{Consumer, c_preload, c_program, has_kprobes, root, turn};
use crate::tracepoint::check_bytes;
use crate::traffic::{Connection, Peer, V4, V6, own_comm, set_linger_0};
use crate::truth::check_lost_records;

/// The kernel's own types, which an old one does not show.
const TYPES: &str = "/sys/kernel/btf";

/// Creates kprobe perf events since Linux 4.17; before, tracefs does.
const KPROBE_EVENTS: &str = "/sys/bus/event_source/devices/kprobe";

/// A program of `tests/c` under an old kernel that lacks these folders.
fn under_old_kernel(program: &str, hidden: &[&str]) -> Command {
    let nothing = folder().join("nothing");
    fs::create_dir_all(&nothing).unwrap();
    let mut command = Command::new("unshare");
    let script = "nothing=$1; preload=$2; program=$3; shift 3
                  for folder; do mount --bind \"$nothing\" \"$folder\" || exit; done
                  exec env LD_PRELOAD=\"$preload\" \"$program\"";
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(nothing).arg(c_preload("old_kernel"));
    command.arg(c_program(program)).args(hidden).env("TCPEVENT_NETLINK_INTERVAL", "0");
    command
}

fn folder() -> PathBuf {
    "/tmp/tcpevent-old-kernel".into()
}

/// A copy of the kernel's types, as a user would supply it.
fn btf() -> PathBuf {
    let copy = folder().join("kernel.btf");
    fs::create_dir_all(folder()).unwrap();
    fs::copy(Path::new(TYPES).join("vmlinux"), &copy).unwrap();
    copy
}

/// A consumer with this rung and these types, not started yet.
fn consumer(rung: &str, btf: Option<&Path>, hidden: &[&str], variables: &[(&str, &str)]) -> Consumer {
    let mut command = under_old_kernel("consumer", hidden);
    command.env("TCPEVENT_PROBE", rung).envs(btf.map(|path| ("TCPEVENT_BTF", path))).envs(variables.iter().copied());
    Consumer::from(command)
}

/// Whether a test of this rung must be skipped: this kernel lacks what it needs, or the tests run for another one.
fn is_left_out(rung: &str) -> bool {
    let other = std::env::var("TCPEVENT_PROBE").is_ok_and(|run| run != rung);
    let reason = if other {
        "the tests run for another rung"
    } else if rung == "kprobe" && !has_kprobes() {
        "this kernel has no kprobes"
    } else if !Path::new(TYPES).join("vmlinux").exists() {
        "this kernel does not show its types"
    } else {
        return false;
    };
    eprintln!("skipped: {reason}");
    true
}

#[test]
fn by_kprobe_bytes_and_owners_are_right_at_both_ends_of_either_family() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    let btf = btf();
    // With a file, before and after Linux 4.17; and, as from Linux 5.4 on, with the kernel's own types.
    for (btf, hidden) in [(Some(&*btf), [TYPES, KPROBE_EVENTS].as_slice()), (Some(&*btf), &[TYPES]), (None, &[])] {
        let mut consumer = consumer("kprobe", btf, hidden, &[("TCPEVENT_LOG", "info")]);
        consumer.start();
        check_bytes(&mut consumer, 10);
        let log = consumer.stderr();
        assert!(log.iter().any(|line| line.ends_with("records go through a perf buffer")), "{log:?}");
        assert!(log.iter().any(|line| line.ends_with("attached by kprobe")), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("accepts are not seen")), "{log:?}");
    }
}

#[test]
fn by_tracepoint_bytes_and_owners_are_right_at_both_ends_of_either_family() {
    let _turn = turn();
    if is_left_out("tracepoint") {
        return;
    }
    let mut consumer = consumer("tracepoint", None, &[TYPES], &[]);
    consumer.start();
    check_bytes(&mut consumer, 10);
    assert_eq!(consumer.stderr(), [""; 0]);
}

/// A peer whose end no process causes: its owner is the process that accepted it, or, if it is older, the one that
/// holds it.
#[test]
fn by_kprobe_an_endpoint_that_is_reset_belongs_to_the_process_that_accepted_or_holds_it() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    let mut peer = Peer::run(1002, b"peer", b"peer");
    let older = peer.connect();
    let mut consumer = consumer("kprobe", Some(&btf()), &[TYPES], &[]);
    consumer.start();
    consumer.tell("consume 1");
    let newer = peer.connect();
    for client in [older, newer] {
        let ports = (client.local_addr().unwrap().port(), peer.port());
        set_linger_0(&client);
        drop(client);
        let (client, server) = consumer.both_ends(ports);
        assert_eq!((client.pid, client.uid, client.task), (id(), 0, own_comm()));
        assert_eq!((server.pid, server.uid, server.task.as_str()), (peer.pid(), 1002, "peer"));
    }
    assert_eq!(consumer.stderr(), [""; 0]);
}

#[test]
fn by_kprobe_a_container_gets_no_process_ids_of_the_host() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    let program = under_old_kernel("consumer", &[TYPES]);
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program.get_program())
        .args(program.get_args());
    command.env("TCPEVENT_NETLINK_INTERVAL", "0").env("TCPEVENT_PROBE", "kprobe").env("TCPEVENT_BTF", btf());
    let mut consumer = Consumer::from(command);
    consumer.start();
    consumer.tell("consume 1");
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    connection.close_client_first();
    let (client, server) = consumer.both_ends(ports);
    for event in [client, server] {
        assert_eq!((event.pid, event.uid, event.task), (0, 0, own_comm()));
    }
    let lines = consumer.stderr();
    assert!(lines.len() == 1 && lines[0].contains("events have no process IDs"), "{lines:?}");
}

/// The events of both ends of a connection, the client's first. Before it has a cookie and a local port, an endpoint is
/// identified by its remote port alone.
fn lives(events: &[Event], ports: (u16, u16)) -> [Vec<Event>; 2] {
    let client = |event: &&Event| [ports, (0, ports.1)].contains(&event.ports());
    let server = |event: &&Event| event.ports() == (ports.1, ports.0);
    [events.iter().filter(client).cloned().collect(), events.iter().filter(server).cloned().collect()]
}

#[test]
fn by_kprobe_states_and_details_come_and_the_filter_counts() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    let mut command = under_old_kernel("api_watch", &[TYPES]);
    command.env("TCPEVENT_PROBE", "kprobe").env("TCPEVENT_TEST_BTF", btf());
    let mut watcher = Watcher::by(command);
    for address in [V4(), V6()] {
        watcher.open_handle(0, STATES_AND_CLOSES);
        let mut connection = Connection::open(address, address);
        let ports = connection.ports();
        watcher.open_handle(1, &format!("{STATES_AND_CLOSES} filter=dport {} pid {} netns self", ports.1, id()));
        connection.send_up(5000);
        connection.send_down(70_000);
        connection.close_client_first();
        // Does not match the second handle's filter.
        Connection::open(address, address).close_client_first();

        let have_ended = |events: &[Event], ends: usize| {
            let of_connection = lives(events, ports);
            of_connection.iter().filter(|life| life.last().is_some_and(Event::is_end)).count() == ends
        };
        let events = watcher.events_until(0, "both ends", |events| have_ended(events, 2));
        let [client, server] = lives(&events, ports);
        assert_eq!(states(&client), "CLOSE SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE");
        assert_eq!(states(&server), "SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK CLOSE");
        for (life, direction, payload) in [
            (&client, Direction::Connected, [70_000, 5000, 5000]),
            (&server, Direction::Accepted, [5000, 70_000, 70_000]),
        ] {
            let (close, before) = life.split_last().unwrap();
            assert!(life.iter().all(|event| event.direction == direction && event.netns == own_netns()), "{life:#?}");
            assert!(before.iter().all(|event| event.kind == Kind::State), "{before:#?}");
            assert_eq!((close.kind, close.payload(), close.flags, close.error), (Kind::Close, payload, 0, 0));
            assert_eq!((close.pid, close.uid, close.comm.clone()), (id(), 0, own_comm()), "{close:#?}");
            assert!(close.age_ns > 0 && close.segs_in > 0 && close.srtt_us > 0, "{close:#?}");
        }
        assert!(client.last().unwrap().establish_ns > 0, "{client:#?}");

        let filtered = watcher.events_until(1, "the client's end", |events| have_ended(events, 1));
        assert_eq!(states(&filtered), "ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE");
        assert!(filtered.iter().all(|event| event.ports() == ports), "{filtered:#?}");
        let counters = watcher.statistics(0);
        assert_eq!([counters["lost_records"], counters["lost_owners"], counters["undecoded"]], [0; 3], "{counters:?}");
        watcher.close_handle(1);
        watcher.close_handle(0);
    }
}

#[test]
fn by_kprobe_records_that_find_the_perf_buffer_full_are_counted() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    let variables = [("TCPEVENT_QUEUE", "100000"), ("TCPEVENT_LOG", "info")];
    let mut consumer = consumer("kprobe", Some(&btf()), &[TYPES], &variables);
    consumer.start();
    check_lost_records(consumer);
}

/// `tests/c/old_types.c` has the types of Linux 4.15 that have changed since: the program is relocated to them, though
/// it then reads nonsense.
#[test]
fn by_kprobe_the_types_of_old_kernels_are_understood() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    fs::create_dir_all(folder()).unwrap();
    let types = folder().join("old_types.o");
    let status = Command::new("clang")
        .args(["-target", "bpf", "-g", "-O2", "-c"])
        .arg(root().join("tests/c/old_types.c"))
        .arg("-o")
        .arg(&types)
        .status()
        .expect("clang runs");
    assert!(status.success());
    let mut plain = consumer("kprobe", Some(&types), &[TYPES], &[]);
    plain.start();
    plain.cleanup();
    let mut command = under_old_kernel("api_watch", &[TYPES]);
    command.env("TCPEVENT_PROBE", "kprobe").env("TCPEVENT_TEST_BTF", types);
    let mut detailed = Watcher::by(command);
    detailed.open_handle(0, STATES_AND_CLOSES);
}

#[test]
fn by_kprobe_a_start_without_types_says_in_one_line_what_is_missing() {
    let _turn = turn();
    if is_left_out("kprobe") {
        return;
    }
    let mut consumer = consumer("kprobe", None, &[TYPES], &[("TCPEVENT_ON_ERROR", "continue")]);
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("libtcpEvent: error: cannot watch TCP connections: kprobe: "), "{lines:?}");
    let remedy = "; the kernel has no type information (CONFIG_DEBUG_INFO_BTF): set TCPEVENT_BTF to a BTF file for it";
    assert!(lines[0].ends_with(remedy), "{lines:?}");
}
