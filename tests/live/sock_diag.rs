//! Snapshots by other kernels' sock_diag, which `tests/c/picky_kernel.c` stands for: what there is comes, and one line says
//! what does not.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::consumer::{Consumer, Event, c_preload, c_program, patience, slowness, turn};
use crate::traffic::{Connection, V4, V6};

const INTERVAL: Duration = Duration::from_millis(200);

/// A consumer that sweeps each 0.2 s, before such a kernel.
struct Picky {
    consumer: Consumer,
    requests: PathBuf,
    began: Instant,
}

impl Picky {
    fn new(kernel: &str) -> Self {
        let requests = PathBuf::from(format!("/tmp/tcpevent-requests-{}", std::process::id()));
        let _ = fs::remove_file(&requests);
        let mut command = Command::new(c_program("consumer"));
        command.env("LD_PRELOAD", c_preload("picky_kernel")).env("PICKY", kernel).env("PICKY_COUNT", &requests);
        command.env("TCPEVENT_NETLINK_INTERVAL", INTERVAL.as_secs_f32().to_string());
        let mut consumer = Consumer::from(command);
        let began = Instant::now();
        consumer.tell("consume 1");
        Self { consumer, requests, began }
    }

    fn requests(&self) -> u64 {
        fs::metadata(&self.requests).map_or(0, |file| file.len())
    }

    /// Some sweeps were made, each with no more requests than it takes.
    fn check_pace(&self, most_a_sweep: u64) {
        let until = Instant::now() + patience();
        while self.requests() < 4 * most_a_sweep {
            assert!(Instant::now() < until, "it asks no more, after {} requests", self.requests());
            std::thread::sleep(Duration::from_millis(10));
        }
        let requests = self.requests();
        let sweeps = self.began.elapsed().as_millis() / INTERVAL.as_millis() + 1;
        assert!(u128::from(requests) <= sweeps * u128::from(most_a_sweep), "{requests} requests in {sweeps} sweeps");
    }

    /// These lines, and no more after some sweeps.
    fn check_stderr(&mut self, expected: &[&str]) {
        let until = Instant::now() + patience();
        let mut lines = self.consumer.stderr();
        while lines.len() < expected.len() && Instant::now() < until {
            lines.extend(self.consumer.stderr());
        }
        assert_eq!(lines, expected);
    }

    /// The snapshots that come of two connections, IPv4 and IPv6, while several sweeps are made.
    fn families(&mut self, connections: [&Connection; 2]) -> [bool; 2] {
        let until = Instant::now() + 5 * INTERVAL * slowness();
        let mut seen = [false; 2];
        while let Some(event) = self.consumer.event_within(until.saturating_duration_since(Instant::now())) {
            for (seen, connection) in seen.iter_mut().zip(connections) {
                *seen |= event.ports() == connection.ports();
            }
        }
        seen
    }
}

impl Drop for Picky {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.requests);
    }
}

const REFUSED: &str = "libtcpEvent: warn: listing sockets by sock_diag failed: No such file or directory (os error 2)";

#[test]
fn a_kernel_that_lists_one_family_at_a_time_gives_both() {
    let _turn = turn();
    let (v4, v6) = (Connection::open(V4(), V4()), Connection::open(V6(), V6()));
    let mut picky = Picky::new("one-family");
    assert_eq!(picky.families([&v4, &v6]), [true, true]);
    picky.check_stderr(&[]);
    picky.check_pace(3);
}

#[test]
fn without_a_family_the_other_one_comes_and_a_line_says_which_does_not() {
    let _turn = turn();
    let (v4, v6) = (Connection::open(V4(), V4()), Connection::open(V6(), V6()));
    for (kernel, expected, name) in
        [("one-family no-ipv6", [true, false], "IPv6"), ("one-family no-ipv4", [false, true], "IPv4")]
    {
        let mut picky = Picky::new(kernel);
        assert_eq!(picky.families([&v4, &v6]), expected);
        picky.check_stderr(&[&format!("{REFUSED}; snapshots of {name} connections are missing until it works")]);
        picky.check_pace(3);
    }
}

#[test]
fn without_the_module_a_line_says_how_to_load_it() {
    let _turn = turn();
    let (v4, v6) = (Connection::open(V4(), V4()), Connection::open(V6(), V6()));
    let mut picky = Picky::new("no-module");
    assert_eq!(picky.families([&v4, &v6]), [false, false]);
    let hint = "(is the module tcp_diag there? try modprobe tcp_diag)";
    picky.check_stderr(&[&format!("{REFUSED} {hint}; snapshots of open connections are missing until it works")]);
    picky.check_pace(3);
    // Closes do not need it.
    picky.consumer.start();
    let ports = v4.ports();
    v4.close_client_first();
    picky.consumer.both_ends(ports);
}

#[test]
fn without_netlink_sockets_a_line_says_so() {
    let _turn = turn();
    let (v4, v6) = (Connection::open(V4(), V4()), Connection::open(V6(), V6()));
    let mut picky = Picky::new("no-socket");
    assert_eq!(picky.families([&v4, &v6]), [false, false]);
    let refused = "libtcpEvent: warn: opening a sock_diag socket failed: Protocol not supported (os error 93)";
    picky.check_stderr(&[&format!("{refused}; snapshots of open connections are missing until it works")]);
    picky.check_pace(3);
}

#[test]
fn a_tcp_info_without_bytes_sent_has_the_acknowledged_ones_in_their_place() {
    let _turn = turn();
    let mut connection = Connection::open(V4(), V4());
    connection.send_up(5000);
    connection.send_down(3);
    let counters = |event: &Event| (event.rx, event.tx, event.segs_out, event.segs_in);
    let mut picky = Picky::new("one-family");
    let (client, server) = picky.consumer.both_ends(connection.ports());
    assert_eq!([client.tx, server.tx], [5000, 3]);
    let mut old = Picky::new("short-info");
    let (old_client, old_server) = old.consumer.both_ends(connection.ports());
    // The opener's SYN is acknowledged too.
    assert_eq!(counters(&old_client), (client.rx, 5001, client.segs_out, client.segs_in));
    assert_eq!(counters(&old_server), counters(&server));
    old.check_stderr(&[]);
}
