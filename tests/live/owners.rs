//! Who owned a connection: the last process that acted on the endpoint in its own context, in all difficult cases.
//! `tests/c/scenarios.c` makes the connections, and each of its processes says which are its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::consumer::{Consumer, Event, c_program, finds_holders, patience, rung_is_tracepoint, sees_accepts, turn};

pub const RUNS: usize = 50;

/// The expected owner in a close event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    pub uid: u32,
    pub task: String,
}

impl Owner {
    /// No owner, with the user of the socket or 0.
    pub fn nobody(uid: u32) -> Self {
        Self { pid: 0, uid, task: String::new() }
    }
}

pub type Truths = HashMap<(u16, u16), Owner>;

fn parse_truth(line: &str) -> ((u16, u16), Owner) {
    let columns: Vec<&str> = line.split(' ').collect();
    let ["truth", local, remote, pid, uid, task] = columns[..] else {
        panic!("not a truth: {line:?}");
    };
    (
        (local.parse().unwrap(), remote.parse().unwrap()),
        Owner { pid: pid.parse().unwrap(), uid: uid.parse().unwrap(), task: task.to_owned() },
    )
}

/// A consumer whose queue holds all events of a scenario.
pub fn consumer() -> Consumer {
    let mut consumer = Consumer::started(&[("TCPEVENT_QUEUE", "10000")]);
    consumer.tell("consume 1");
    consumer
}

pub fn scenario(name: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(c_program("scenarios"));
    command.args([name, &RUNS.to_string()]).envs(variables.iter().copied());
    command
}

/// Runs a scenario to its end. `None` if this kernel cannot do it.
pub fn run(mut command: Command) -> Option<Truths> {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{:?} failed: {}", command, String::from_utf8_lossy(&output.stderr));
    if text.contains("unsupported") {
        return None;
    }
    Some(text.lines().map(parse_truth).collect())
}

/// Each endpoint gave one event, with its owner.
pub fn check(consumer: &mut Consumer, truths: &Truths) {
    check_but(consumer, truths, !finds_holders());
}

/// The same, but an end that no process was seen to act on may have no owner.
fn check_but(consumer: &mut Consumer, truths: &Truths, may_be_nobody: bool) {
    let is_nobody = |got: &Owner, truth: &Owner| *got == Owner::nobody(0) || *got == Owner::nobody(truth.uid);
    check_unless(consumer, truths, |got, truth| may_be_nobody && is_nobody(got, truth));
}

/// The same, but another owner than the true one may be right too: the closure gets both, the truth last.
pub fn check_unless(consumer: &mut Consumer, truths: &Truths, is_right_too: impl Fn(&Owner, &Owner) -> bool) {
    let mut seen: HashMap<(u16, u16), Event> = HashMap::new();
    let until = std::time::Instant::now() + patience();
    while seen.len() < truths.len() {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let Some(event) = consumer.event_within(left) else {
            let missing: Vec<_> = truths.iter().filter(|(ports, _)| !seen.contains_key(ports)).collect();
            panic!("{} of {} endpoints gave no event: {missing:?}", missing.len(), truths.len());
        };
        if truths.contains_key(&event.ports()) {
            let before = seen.insert(event.ports(), event.clone());
            assert_eq!(before, None, "two events of one endpoint, the other {event:?}");
        }
    }
    let wrong: Vec<_> = seen
        .iter()
        .map(|(ports, event)| {
            (ports, Owner { pid: event.pid, uid: event.uid, task: event.task.clone() }, &truths[ports])
        })
        .filter(|(_, got, truth)| got != *truth && !is_right_too(got, truth))
        .collect();
    assert!(wrong.is_empty(), "{} of {} owners are wrong (ports, got, truth): {wrong:#?}", wrong.len(), truths.len());
}

/// Who had it is known by the accept alone: the kernel itself closes it, or a process on its way into another program.
const BY_ACCEPT: [&str; 4] = ["io-uring-slot-exits", "io-uring-slot-killed", "server-exec", "server-programs"];

fn check_scenario(name: &str, endpoints: usize) {
    let _turn = turn();
    let mut consumer = consumer();
    let Some(truths) = run(scenario(name, &[])) else {
        eprintln!("skipped: this kernel has no {name}");
        return;
    };
    assert_eq!(truths.len(), endpoints * RUNS, "the scenario reported another number of endpoints");
    // A plain tracepoint cannot tell that no process holds the socket.
    let mut may_be_nobody = name == "never-accepted" && rung_is_tracepoint();
    // The kernel itself tears down the ring of a process that has exited, possibly after the library stopped waiting.
    may_be_nobody |= name == "io-uring-slot";
    may_be_nobody |= BY_ACCEPT.contains(&name) && !sees_accepts();
    // Any rung sees which process lets go of a socket at once.
    let is_seen = finds_holders() || name.ends_with("-lets-go") || name == "named-as-a-worker";
    if name == "accepter-holds" && !sees_accepts() {
        // Both hold it; the child is the later one.
        return check_unless(&mut consumer, &truths, |got, truth| got.pid > truth.pid && got.task == "t-child");
    }
    check_but(&mut consumer, &truths, may_be_nobody || !is_seen);
}

macro_rules! scenarios {
    ($($test:ident: $name:literal, $endpoints:literal;)*) => {
        $(#[test]
        fn $test() {
            check_scenario($name, $endpoints);
        })*
    };
}

scenarios! {
    the_client_closes_first: "client-first", 2;
    the_server_closes_first: "server-first", 2;
    the_client_resets_while_the_server_idles: "client-resets", 2;
    the_server_resets_while_the_client_idles: "server-resets", 2;
    the_client_is_killed: "client-killed", 2;
    the_server_is_killed: "server-killed", 2;
    a_preforked_worker_accepts_and_closes: "prefork", 2;
    a_forked_child_serves_what_its_parent_accepted: "forked-child-serves", 2;
    a_passed_descriptor_is_served_by_its_receiver: "passed-descriptor", 2;
    a_forked_child_holds_what_its_peer_resets: "forked-child-holds", 2;
    a_forked_child_lets_go_of_what_its_peer_resets: "forked-child-lets-go", 2;
    a_receiver_holds_what_its_peer_resets: "receiver-holds", 2;
    a_receiver_lets_go_of_what_its_peer_resets: "receiver-lets-go", 2;
    an_accepter_and_its_child_hold_what_its_peer_resets: "accepter-holds", 2;
    the_server_half_closes_first: "server-half-closes", 2;
    a_connect_is_refused: "refused", 1;
    a_connection_is_never_accepted: "never-accepted", 2;
    a_thread_with_a_name_of_its_own_connects: "thread-connects", 2;
    the_process_that_connected_has_exited: "client-exits", 2;
    the_process_that_connected_has_left_the_socket_to_a_child: "client-leaves-a-child", 2;
    a_forked_child_executes_a_program_as_its_parent_closes: "client-exec", 2;
    a_forked_child_executes_a_program_as_its_parent_resets: "client-exec-resets", 2;
    a_forked_child_executes_a_program_as_its_parent_closes_what_it_accepted: "server-exec", 2;
    a_client_closes_beside_programs_that_are_started: "client-programs", 2;
    a_server_closes_beside_programs_that_are_started: "server-programs", 2;
    a_process_executes_a_program_that_does_not_inherit_the_socket: "client-executes", 2;
    a_connect_does_not_block: "non-blocking", 2;
    an_accept_goes_through_io_uring: "io-uring", 2;
    an_accept_by_io_uring_is_one_of_many: "io-uring-multishot", 2;
    an_accept_by_io_uring_is_into_a_slot: "io-uring-slot", 2;
    a_slot_of_io_uring_holds_what_its_peer_resets: "io-uring-slot-holds", 2;
    an_accept_by_io_uring_is_into_any_slot: "io-uring-any-slot", 2;
    a_process_exits_whose_ring_has_a_connection: "io-uring-slot-exits", 2;
    a_process_is_killed_whose_ring_has_a_connection: "io-uring-slot-killed", 2;
    an_accept_is_that_of_a_32_bit_program: "accept-of-32-bit", 2;
    a_process_has_the_name_of_a_thread_of_the_kernel: "named-as-a-worker", 2;
    an_accept_is_done_by_a_worker_of_io_uring: "io-uring-worker", 2;
}

/// Opens all connections, then starts the probe, then has one side reset them.
fn check_adoption(name: &str) {
    let _turn = turn();
    let mut child = scenario(name, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let truths: Truths = lines.by_ref().take_while(|line| line != "ready").map(|line| parse_truth(&line)).collect();
    assert_eq!(truths.len(), 2 * RUNS);
    let mut consumer = consumer();
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    check(&mut consumer, &truths);
    assert!(child.wait().unwrap().success());
}

/// They are blocked in accept() when the probe is attached.
#[test]
fn servers_that_have_waited_for_a_connection_since_before_the_probe() {
    let _turn = turn();
    let mut child = scenario("waiting-server", &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    let mut consumer = consumer();
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let truths: Truths = lines.map(|line| parse_truth(&line)).collect();
    assert_eq!(truths.len(), 2 * RUNS);
    assert!(child.wait().unwrap().success());
    // Each of them lets go of a reset connection at once.
    check_but(&mut consumer, &truths, false);
}

#[test]
fn a_server_endpoint_older_than_the_probe_is_reset_by_its_peer() {
    check_adoption("adopted-server");
}

#[test]
fn a_client_endpoint_older_than_the_probe_is_reset_by_its_peer() {
    check_adoption("adopted-client");
}

/// Two network namespaces with a veth pair between them; removed when dropped.
struct TwoHosts;

impl TwoHosts {
    const CLIENT: &str = "tcpevent-client";
    const SERVER: &str = "tcpevent-server";
    /// Documentation addresses (RFC 5737, RFC 3849): unused.
    const CLIENT_V4: &str = "198.51.100.1";
    const SERVER_V4: &str = "198.51.100.2";
    const SERVER_V6: &str = "2001:db8::2";
    const BLACKHOLE: &str = "198.51.100.9";

    fn new() -> Self {
        Self::remove();
        for arguments in [
            format!("netns add {}", Self::CLIENT),
            format!("netns add {}", Self::SERVER),
            format!("link add tev0 netns {} type veth peer tev1 netns {}", Self::CLIENT, Self::SERVER),
            format!("-n {} addr add {}/24 dev tev0", Self::CLIENT, Self::CLIENT_V4),
            format!("-n {} addr add {}/24 dev tev1", Self::SERVER, Self::SERVER_V4),
            format!("-n {} addr add 2001:db8::1/64 dev tev0 nodad", Self::CLIENT),
            format!("-n {} addr add {}/64 dev tev1 nodad", Self::SERVER, Self::SERVER_V6),
            format!("-n {} link set tev0 up", Self::CLIENT),
            format!("-n {} link set tev1 up", Self::SERVER),
            // It has a neighbour entry, but no host has the address: packets go there and are dropped.
            format!(
                "-n {} neigh add {} lladdr 02:00:00:00:00:09 dev tev0 nud permanent",
                Self::CLIENT,
                Self::BLACKHOLE
            ),
        ] {
            let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) runs");
            assert!(status.success(), "ip {arguments}");
        }
        Self
    }

    fn remove() {
        for name in [Self::CLIENT, Self::SERVER] {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }

    fn run(scenario_name: &str, more: &[(&str, &str)]) -> Truths {
        let mut command = scenario(scenario_name, &[("CLIENT_NS", Self::CLIENT), ("SERVER_NS", Self::SERVER)]);
        command.envs(more.iter().copied());
        run(command).expect("this kernel can do it")
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        Self::remove();
    }
}

#[test]
fn across_two_network_namespaces() {
    let _turn = turn();
    let _hosts = TwoHosts::new();
    let mut consumer = consumer();
    for address in [TwoHosts::SERVER_V4, TwoHosts::SERVER_V6] {
        for name in ["client-first", "server-first", "client-resets", "server-resets", "server-killed", "prefork"] {
            check(&mut consumer, &TwoHosts::run(name, &[("SERVER_ADDR", address)]));
        }
    }
    let refused = [("SERVER_ADDR", TwoHosts::SERVER_V4), ("CLIENT_ADDR", TwoHosts::CLIENT_V4)];
    check(&mut consumer, &TwoHosts::run("refused", &refused));
}

#[test]
fn a_connect_times_out() {
    let _turn = turn();
    let _hosts = TwoHosts::new();
    let mut consumer = consumer();
    let truths =
        TwoHosts::run("timed-out", &[("BLACKHOLE_ADDR", TwoHosts::BLACKHOLE), ("CLIENT_ADDR", TwoHosts::CLIENT_V4)]);
    assert_eq!(truths.len(), RUNS);
    check(&mut consumer, &truths);
}
