//! What the rung for old kernels does in its own way, tested on this one.

use std::process::{Command, id};

use crate::consumer::{Consumer, c_program, turn};
use crate::traffic::{Connection, V4, V6};

const TRACEPOINT: (&str, &str) = ("TCPEVENT_PROBE", "tracepoint");

/// The counters do not come with the close itself.
#[test]
fn bytes_are_right_at_both_ends_of_either_family() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[TRACEPOINT]);
    check_bytes(&mut consumer, 20);
    assert_eq!(consumer.stderr(), [""; 0]);
}

/// So many connections of either family are seen at both ends, with their owner and their bytes.
pub fn check_bytes(consumer: &mut Consumer, rounds: usize) {
    consumer.tell("consume 1");
    for address in [V4(), V6()] {
        for round in 0..rounds {
            let mut connection = Connection::open(address, address);
            let ports = connection.ports();
            connection.send_up(5_000 + round);
            connection.send_down(70_000);
            if round % 2 == 0 {
                connection.close_client_first();
            } else {
                connection.close_server_first();
            }
            let (client, server) = consumer.both_ends(ports);
            let sent = 5_000 + round as u64;
            assert_eq!((client.pid, server.pid), (id(), id()));
            assert_eq!((client.rx, client.tx, server.rx, server.tx), (70_001, sent + 2, sent + 1, 70_001));
            assert!(client.segs_out > 0 && client.segs_in > 0 && server.segs_out > 0, "{client:?} {server:?}");
        }
    }
}

/// A consumer in a mount namespace of its own, in which tracefs is not mounted.
fn without_tracefs(variables: &[(&str, &str)]) -> Consumer {
    let mut command = Command::new("unshare");
    let script = "umount -l /sys/kernel/tracing 2>/dev/null; umount -l /sys/kernel/debug 2>/dev/null
                  [ ! -e /sys/kernel/tracing/events ] && exec \"$0\"";
    command.args(["--mount", "sh", "-c", script]).arg(c_program("consumer"));
    command.env("TCPEVENT_NETLINK_INTERVAL", "0").envs(variables.iter().copied());
    Consumer::from(command)
}

#[test]
fn tracefs_need_not_be_mounted() {
    let _turn = turn();
    for rung in ["auto", "tracepoint"] {
        let mut consumer = without_tracefs(&[("TCPEVENT_PROBE", rung), ("TCPEVENT_LOG", "info")]);
        consumer.start();
        consumer.tell("consume 1");
        let connection = Connection::open(V4(), V4());
        let ports = connection.ports();
        connection.close_client_first();
        consumer.both_ends(ports);
        let log = consumer.stderr();
        // Nothing was done without it.
        assert!(!log.iter().any(|line| line.contains("tracefs") || line.contains("NoAccept")), "{log:?}");
    }
}

#[test]
fn a_filter_by_what_it_cannot_know_refuses_the_start() {
    let _turn = turn();
    for filter in ["netns 4026531840", "cgroup 1"] {
        let mut command = Command::new(c_program("consumer"));
        command.envs([TRACEPOINT, ("TCPEVENT_FILTER", filter), ("TCPEVENT_ON_ERROR", "continue")]);
        let mut consumer = Consumer::from(command);
        consumer.tell("setup");
        assert_eq!(consumer.expect("setup"), "setup 1");
        assert_eq!(
            consumer.stderr(),
            ["libtcpEvent: error: cannot watch TCP connections: tracepoint: it knows neither network namespaces nor \
              cgroups; take netns and cgroup out of the filter, or use a kernel with type information"]
        );
    }
}
