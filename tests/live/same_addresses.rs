//! Two network namespaces, each with a connection of the same addresses and ports at the same time, but its own process
//! and bytes. The reports of one never contain the other's.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::api_watcher::{CLOSES, COUNTERS, Event, Kind, STATES_AND_CLOSES, Watcher};
use crate::consumer::{Consumer, c_program, rung_is_tracepoint, sees_accepts, turn};

/// `tests/c/pair.c`: both ends of one connection.
struct Pair {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Ports of the client and of the server.
    ports: (u16, u16),
    sent: (u64, u64),
}

impl Pair {
    fn open(in_own_namespace: bool, ports: (u16, u16), sent: (u64, u64)) -> Self {
        let mut command = Command::new(if in_own_namespace { "unshare" } else { "env" });
        if in_own_namespace {
            command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        }
        command.arg(c_program("pair")).args([ports.0.to_string(), ports.1.to_string()]);
        command.args([sent.0.to_string(), sent.1.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut pair = Self { child, lines, ports, sent };
        pair.expect("open");
        pair
    }

    fn expect(&mut self, line: &str) {
        assert_eq!(self.lines.next().unwrap().unwrap(), line);
    }

    fn tell(&mut self, how: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{how}").unwrap();
    }

    fn end(&mut self, how: &str) {
        self.tell(how);
        self.expect("closed");
    }

    fn is_of_either(&self, event: &Event) -> bool {
        [self.ports, (self.ports.1, self.ports.0)].contains(&event.ports())
    }

    /// Whether the reported process is this one's, or none.
    fn check_owner(&self, event: &Event, is_own: bool) {
        let pid = self.child.id();
        let may_be_none = rung_is_tracepoint() || (event.kind == Kind::State && !sees_accepts());
        if event.pid != 0 || !may_be_none {
            assert_eq!(event.pid, pid, "own: {is_own}: {event:#?}");
            assert!(event.comm == "pair", "{event:#?}");
        }
    }

    /// Whether the reported bytes are this one's, or none.
    fn check_bytes(&self, event: &Event) {
        if !event.knows(COUNTERS) && rung_is_tracepoint() {
            assert_eq!(event.payload(), [0; 3], "{event:#?}");
            return;
        }
        let is_client = event.ports() == self.ports;
        let (received, sent) = if is_client { (self.sent.1, self.sent.0) } else { self.sent };
        assert_eq!((event.knows(COUNTERS), event.payload_sent), (true, sent), "{event:#?}");
        // A plain tracepoint may count the peer's FIN as a byte if this end was shut down first.
        let fin = u64::from(rung_is_tracepoint() && event.old_state == "FIN_WAIT2");
        assert!((received..=received + fin).contains(&event.payload_received), "{event:#?}");
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports without another connection or a TIME_WAIT.
fn new_ports() -> (u16, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let port = NEXT.fetch_add(2, Ordering::SeqCst);
    (port, port + 1)
}

const OWN_SENT: (u64, u64) = (7_000, 900);
const OTHER_SENT: (u64, u64) = (51, 80_000);

fn both_pairs() -> [Pair; 2] {
    let ports = new_ports();
    [Pair::open(false, ports, OWN_SENT), Pair::open(true, ports, OTHER_SENT)]
}

#[test]
fn of_two_connections_that_end_one_after_the_other_each_has_its_own_owner_and_bytes() {
    let _turn = turn();
    for are_older in [false, true] {
        for events in [CLOSES, STATES_AND_CLOSES] {
            for (first, how) in [(0, "in-order"), (1, "in-order"), (0, "reset"), (1, "reset")] {
                let watcher = |before: bool| (before == are_older).then(|| Watcher::open(events));
                let before = watcher(false);
                let mut pairs = both_pairs();
                let mut watcher = before.or_else(|| watcher(true)).unwrap();
                for index in [first, 1 - first] {
                    let pair = &mut pairs[index];
                    pair.end(how);
                    let is_end = |event: &&Event| event.kind == Kind::Close && pair.is_of_either(event);
                    let all = watcher.events_until(0, "both ends", |events| events.iter().filter(is_end).count() == 2);
                    let own: Vec<_> = all.into_iter().filter(|event| pair.is_of_either(event)).collect();
                    // The other one may have given events before its own end.
                    for event in
                        own.iter().filter(|event| event.new_state != "ESTABLISHED" && event.new_state != "SYN_SENT")
                    {
                        pair.check_owner(event, index == 0);
                    }
                    own.iter().filter(|event| event.kind == Kind::Close).for_each(|event| pair.check_bytes(event));
                }
            }
        }
    }
}

#[test]
fn of_two_connections_that_end_at_the_same_time_none_has_the_others_bytes() {
    let _turn = turn();
    for are_older in [false, true] {
        for _ in 0..10 {
            let before = (!are_older).then(|| Watcher::open(CLOSES));
            let mut pairs = both_pairs();
            let mut watcher = before.unwrap_or_else(|| Watcher::open(CLOSES));
            for pair in &mut pairs {
                pair.tell("in-order");
            }
            for pair in &mut pairs {
                pair.expect("closed");
            }
            let is_its = |event: &Event| pairs[0].is_of_either(event);
            let events =
                watcher.events_until(0, "all ends", |events| events.iter().filter(|event| is_its(event)).count() == 4);
            for event in events.iter().filter(|event| is_its(event)) {
                let its = pairs.iter().find(|pair| pair.child.id() == event.pid);
                its.unwrap_or_else(|| panic!("each has been closed by its process: {event:#?}")).check_bytes(event);
            }
        }
    }
}

#[test]
fn by_the_classic_functions_no_older_connection_has_the_others_owner() {
    let _turn = turn();
    for first in [0, 1] {
        let mut pairs = both_pairs();
        let mut consumer = Consumer::started(&[("TCPEVENT_NETLINK_INTERVAL", "0")]);
        consumer.tell("consume 1");
        for index in [first, 1 - first] {
            let pair = &mut pairs[index];
            pair.end("reset");
            let (client, server) = consumer.both_ends(pair.ports);
            for event in [client, server] {
                if event.pid != 0 || !rung_is_tracepoint() {
                    assert_eq!(event.pid, pair.child.id(), "{event:#?}");
                }
                let right = if event.ports() == pair.ports { pair.sent.1 } else { pair.sent.0 };
                let unknown = if rung_is_tracepoint() { 0 } else { right };
                assert!([right, unknown].contains(&event.rx), "{event:#?}");
            }
        }
    }
}
