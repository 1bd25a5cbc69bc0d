//! Snapshots with other kernels' sock_diag, imitated by `tests/c/picky_kernel.c`: what is available arrives, and one
//! line reports what is not. And forged messages, which are ignored.

use std::fs;
use std::net::{IpAddr, SocketAddr as InetAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use crate::consumer::{Consumer, Event, c_preload, c_program, patience, slowness, turn};
use crate::traffic::{Connection, V4, V6, set_linger_0};

const INTERVAL: Duration = Duration::from_millis(200);

/// A consumer that sweeps every 0.2 s, on such a kernel.
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

    /// Some sweeps were made, each with at most so many requests.
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

    /// Exactly these lines, even after some sweeps.
    fn check_stderr(&mut self, expected: &[&str]) {
        let until = Instant::now() + patience();
        let mut lines = self.consumer.stderr();
        while lines.len() < expected.len() && Instant::now() < until {
            lines.extend(self.consumer.stderr());
        }
        assert_eq!(lines, expected);
    }

    /// Which of two connections, IPv4 and IPv6, give snapshots during several sweeps.
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
    // The initiator's SYN is acknowledged too.
    assert_eq!(counters(&old_client), (client.rx, 5001, client.segs_out, client.segs_in));
    assert_eq!(counters(&old_server), counters(&server));
    old.check_stderr(&[]);
}

// ---- Forged messages

/// The received and sent bytes that a forged message claims.
const FORGED: u64 = 0xf0e6_ed00;

/// A notification as the kernel sends it after freeing a socket (net/core/sock_diag.c:
/// sock_diag_broadcast_destroy_work): `struct nlmsghdr`, `struct inet_diag_msg`, and a `struct tcp_info` as attribute.
fn forged_end_of(local: InetAddr, remote: InetAddr) -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const INET_DIAG_INFO: u16 = 2;
    const CLOSE: u8 = 7;
    const TCP_INFO_LEN: usize = 232;
    let mut message = vec![2, CLOSE, 0, 0];
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    for address in [local, remote] {
        let IpAddr::V4(address) = address.ip() else { panic!("{address} is not of IPv4") };
        message.extend(address.octets());
        message.extend([0; 12]);
    }
    // Interface, cookie, timer, queues, user, inode.
    message.extend([0; 32]);
    assert_eq!(message.len(), 72);
    message.extend(u16::try_from(TCP_INFO_LEN + 4).unwrap().to_ne_bytes());
    message.extend(INET_DIAG_INFO.to_ne_bytes());
    let mut info = [0; TCP_INFO_LEN];
    // tcpi_bytes_acked, tcpi_bytes_received and tcpi_bytes_sent.
    for offset in [120, 128, 200] {
        info[offset..offset + 8].copy_from_slice(&FORGED.to_ne_bytes());
    }
    message.extend(info);
    let mut datagram = Vec::new();
    datagram.extend(u32::try_from(message.len() + 16).unwrap().to_ne_bytes());
    datagram.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    datagram.extend([0; 10]);
    datagram.extend(message);
    datagram
}

/// Ports of the sockets that listen for freed sockets of both families: those in the groups 1 and 3 of sock_diag.
fn ports_of_listeners() -> Vec<u32> {
    let sockets = fs::read_to_string("/proc/net/netlink").unwrap();
    let ports = sockets.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let groups = u32::from_str_radix(columns.get(3)?, 16).ok()?;
        (columns[1] == "4" && groups & 0b101 == 0b101).then(|| columns[2].parse().unwrap())
    });
    ports.collect()
}

/// A close waits for its counters, but for 50 ms at most while none come.
const SOON: Duration = Duration::from_millis(40);

/// The plain tracepoint has its byte counts from notifications. `send` gets the ports of the sockets that listen for them, and
/// two forged ones, of the ends of a connection: its byte counts must be its own.
pub fn check_with_forged_ends(mut send: impl FnMut(&[u32], &[Vec<u8>; 2])) {
    const ATTEMPTS: usize = 20;

    let mut consumer = Consumer::started(&[("TCPEVENT_PROBE", "tracepoint")]);
    consumer.tell("consume 1");
    let ports = ports_of_listeners();
    assert!(!ports.is_empty(), "the consumer listens for ends");
    for _ in 0..ATTEMPTS {
        let mut connection = Connection::open(V4(), V4());
        connection.send_up(5_000);
        connection.send_down(70_000);
        let (client, server) = (connection.client.local_addr().unwrap(), connection.client.peer_addr().unwrap());

        // The server's end closes as the reset comes; the kernel tells its counters when the process lets go of it.
        let Connection { client: closing, server: held, .. } = connection;
        let began = Instant::now();
        set_linger_0(&closing);
        drop(closing);
        send(&ports, &[forged_end_of(client, server), forged_end_of(server, client)]);
        drop(held);
        let was_soon = began.elapsed() < SOON;
        let ends = consumer.both_ends((client.port(), server.port()));
        // The end that resets has no counters any more.
        assert_ne!(ends.0.rx, FORGED, "{ends:?}");
        if was_soon {
            assert_eq!((ends.1.rx, ends.1.tx), (5_000, 70_000), "{ends:?}");
            return;
        }
        assert!([(5_000, 70_000), (0, 0)].contains(&(ends.1.rx, ends.1.tx)), "{ends:?}");
    }
    eprintln!("none of {ATTEMPTS} ends was let go of in time");
}

/// A netlink socket for sending such messages.
pub fn sender() -> Socket {
    let mut sender = Socket::new(NETLINK_SOCK_DIAG).unwrap();
    sender.bind_auto().unwrap();
    sender
}

/// The addresses of both groups, to which the kernel sends.
pub fn groups() -> [SocketAddr; 2] {
    [SocketAddr::new(0, 1), SocketAddr::new(0, 1 << 2)]
}

/// A process with CAP_NET_ADMIN over the network namespace may send what looks like a notification.
#[test]
fn a_forged_end_of_a_connection_leaves_its_byte_counts_alone() {
    let _turn = turn();
    check_with_forged_ends(|ports, forged| {
        let sender = sender();
        for _ in 0..20 {
            for datagram in forged {
                // To the sockets themselves, and to both groups.
                let places = ports.iter().map(|port| SocketAddr::new(*port, 0));
                for place in places.chain(groups()) {
                    sender.send_to(datagram, &place, libc::MSG_DONTWAIT).expect("CAP_NET_ADMIN allows it");
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
