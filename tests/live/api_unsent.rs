//! TCPEVENT_EVENTS_UNSENT: attempts to connect that fail before anything is sent.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use libbpf_rs::libbpf_sys;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::api::{run_script, watcher};
use crate::api_network::Network;
use crate::api_places::Cgroups;
use crate::api_traffic::{
    CLOSE, SYN_SENT, begin_connect, disconnect, monotonic_ns, set_option, tcp_socket, wait_for_state,
};
use crate::api_watcher::{Direction, ERROR, Event, FAILED, Kind, OWNER, UID, Watcher, told_place};
use crate::consumer::{is_beyond_the_rung, lacks_cookies, slowness, turn};
use crate::traffic::{Connection, V4, V6, closed_port, own_comm, set_linger_0};

const UNSENT: &str = "events=16";
const UNSENT_AND_CLOSES: &str = "events=18";

/// include/uapi/linux/tcp.h
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;

fn is_skipped() -> bool {
    is_beyond_the_rung("attempts that fail before a SYN") || lacks_cookies()
}

/// Whether this kernel lets more than the system call connect be seen: it has trampolines.
fn all_ways_are_heard() -> bool {
    let (lines, _) = run_script(watcher(), "open 0 events=16 log=1\nclose 0\n");
    !lines.iter().any(|line| line.contains("of the system call connect alone"))
}

/// A way to connect, which returns an errno or 0.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Blocking,
    NonBlocking,
    IoUring,
    FastOpen,
}

impl Way {
    const ALL: [Self; 4] = [Self::Blocking, Self::NonBlocking, Self::IoUring, Self::FastOpen];

    fn connect(self, socket: &Socket, to: SocketAddr) -> i32 {
        let address = SockAddr::from(to);
        let errno = |error: io::Error| error.raw_os_error().unwrap();
        match self {
            Self::Blocking => socket.connect(&address).map_or_else(errno, |()| 0),
            Self::NonBlocking => {
                socket.set_nonblocking(true).unwrap();
                socket.connect(&address).map_or_else(errno, |()| 0)
            }
            Self::IoUring => by_io_uring(socket.as_raw_fd(), &address),
            Self::FastOpen => {
                socket.send_to_with_flags(b"hello", &address, libc::MSG_FASTOPEN).map_or_else(errno, |_| 0)
            }
        }
    }
}

fn by_io_uring(socket: RawFd, address: &SockAddr) -> i32 {
    let mut ring = IoUring::new(1).unwrap();
    let connect = opcode::Connect::new(types::Fd(socket), address.as_ptr().cast(), address.len()).build();
    // SAFETY: socket and address live until it is completed.
    unsafe { ring.submission().push(&connect).unwrap() };
    ring.submit_and_wait(1).unwrap();
    -ring.completion().next().unwrap().result()
}

/// An attempt that has failed.
#[derive(Debug)]
struct Attempt {
    class: &'static str,
    way: Way,
    to: SocketAddr,
    local_port: u16,
    errno: i32,
    /// CLOCK_MONOTONIC.
    between: [u64; 2],
}

/// A class of failures: where to connect to, and what is done to the socket before.
type Class = (&'static str, &'static str, fn(&Socket));

fn nothing(_: &Socket) {}

/// Each for IPv4 and IPv6. The errno is what connect says.
const CLASSES: [Class; 12] = [
    ("no route", "192.0.2.1", nothing),
    ("no route", "2001:db8::1", nothing),
    ("unreachable", "192.0.2.17", nothing),
    ("unreachable", "2001:db8:1::1", nothing),
    ("prohibited", "192.0.2.33", nothing),
    ("prohibited", "2001:db8:2::1", nothing),
    ("blackhole", "192.0.2.49", nothing),
    ("blackhole", "2001:db8:3::1", nothing),
    ("bad source", Network::THERE_V4, |socket| {
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    }),
    ("multicast", "224.0.0.9", nothing),
    ("another family", "198.51.100.2", nothing),
    ("source of another interface", "fe80::1", |socket| {
        socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()).unwrap();
    }),
];

/// Of a host that has none for IPv6.
const WITHOUT_ADDRESS: Class = ("no address", "2001:db8:4::1", nothing);

/// Makes the routes of the classes.
fn set_up(network: &Network) {
    for (kind, v4, v6) in [
        ("unreachable", "192.0.2.16/28", "2001:db8:1::/48"),
        ("prohibit", "192.0.2.32/28", "2001:db8:2::/48"),
        ("blackhole", "192.0.2.48/28", "2001:db8:3::/48"),
    ] {
        network.here.ip(&format!("route add {kind} {v4}"));
        network.here.ip(&format!("-6 route add {kind} {v6}"));
    }
    for device in ["tev1", "lo"] {
        network.there.ip(&format!("-6 addr flush dev {device}"));
    }
    network.there.ip("-6 route add 2001:db8:4::/48 dev tev1");
}

/// Tries a class; each attempt has a remote port of its own.
fn attempt(&(class, to, prepare): &Class, way: Way, port: &mut u16) -> Attempt {
    *port += 1;
    let to = SocketAddr::new(to.parse().unwrap(), *port);
    let socket = if class == "another family" { tcp_socket(V6()) } else { tcp_socket(to) };
    if class == "another family" {
        socket.set_only_v6(true).unwrap();
    }
    prepare(&socket);
    tried(class, way, &socket, to)
}

fn tried(class: &'static str, way: Way, socket: &Socket, to: SocketAddr) -> Attempt {
    let local_port = socket.local_addr().unwrap().as_socket().map_or(0, |local| local.port());
    let before = monotonic_ns();
    let errno = way.connect(socket, to);
    let attempt = Attempt { class, way, to, local_port, errno, between: [before, monotonic_ns()] };
    assert!(![0, libc::EINPROGRESS].contains(&errno), "{attempt:?}");
    attempt
}

/// Sockets for which there is no local port: the only one is in use.
struct OutOfPorts(Vec<TcpListener>, Vec<TcpStream>);

impl OutOfPorts {
    fn make() -> Self {
        let listeners: Vec<_> = [V4(), V6()].map(|at| TcpListener::bind(at).unwrap()).into();
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "61000 61000").unwrap();
        let streams = listeners.iter().map(|listener| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let streams = streams.collect();
        Self(listeners, streams)
    }

    fn attempts(&self, way: Way) -> Vec<Attempt> {
        let to = self.0.iter().map(|listener| listener.local_addr().unwrap());
        let attempts = to.map(|to| tried("no local port", way, &tcp_socket(to), to)).collect();
        assert_eq!(self.1.len(), 2);
        attempts
    }
}

/// A program of a cgroup's that lets nobody connect.
fn forbid_connects(cgroup: &fs::File) {
    for attach_type in [libbpf_sys::BPF_CGROUP_INET4_CONNECT, libbpf_sys::BPF_CGROUP_INET6_CONNECT] {
        // mov r0, 0; exit
        let instructions = [
            libbpf_sys::bpf_insn { code: 0xb7, ..Default::default() },
            libbpf_sys::bpf_insn { code: 0x95, ..Default::default() },
        ];
        let mut options = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: attach_type,
            ..Default::default()
        };
        // SAFETY: as many instructions as it is told of, and options of the size that they say. The kernel holds the program from
        // the second call on, for as long as there is the cgroup.
        unsafe {
            let program = libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
                c"forbid".as_ptr(),
                c"GPL".as_ptr(),
                instructions.as_ptr(),
                instructions.len() as libbpf_sys::size_t,
                &raw mut options,
            );
            assert!(program >= 0, "{}", io::Error::last_os_error());
            let result = libbpf_sys::bpf_prog_attach(program, cgroup.as_raw_fd(), attach_type, 0);
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            libc::close(program);
        }
    }
}

/// Sockets of a cgroup whose program lets nobody connect.
fn forbidden(way: Way, port: u16) -> [Attempt; 2] {
    let cgroups = Cgroups::find();
    let cgroup = cgroups.make("tcpevent-unsent");
    forbid_connects(&fs::File::open(&cgroup.folder).unwrap());
    let own = cgroups.own();
    let pid = process::id().to_string();
    // A socket belongs to the cgroup that its process is in when it makes it.
    fs::write(cgroup.folder.join("cgroup.procs"), &pid).unwrap();
    let sockets = [V4(), V6()].map(|to| (tcp_socket(to), to));
    fs::write(own.join("cgroup.procs"), &pid).unwrap();
    sockets.map(|(socket, to)| tried("forbidden by a cgroup's program", way, &socket, SocketAddr::new(to.ip(), port)))
}

fn check(event: &Event, attempt: &Attempt) {
    assert_eq!(
        (event.kind, event.error, event.flags),
        (Kind::Unsent, attempt.errno, FAILED),
        "{attempt:?}: {event:#?}"
    );
    assert_eq!((event.remote, event.local.port()), (attempt.to, attempt.local_port), "{attempt:?}: {event:#?}");
    assert_eq!((event.pid, event.owner_by.as_str()), (process::id(), "connect"), "{attempt:?}: {event:#?}");
    assert_eq!(event.known, OWNER | UID | ERROR | told_place(), "{attempt:?}: {event:#?}");
    assert_eq!((event.old_state.as_str(), event.new_state.as_str()), ("CLOSE", "CLOSE"), "{event:#?}");
    assert_eq!((event.direction, event.payload(), event.age_ns), (Direction::Connected, [0; 3], 0), "{event:#?}");
    let [before, after] = attempt.between;
    assert!((before..=after).contains(&event.monotonic_ns), "{attempt:?}: {event:#?}");
    // A worker of io_uring has a name of its own.
    assert!(event.comm == own_comm() || attempt.way == Way::IoUring, "{attempt:?}: {event:#?}");
}

/// Ends another thread's loop, even where this one panics.
struct SetWhenDropped<'flag>(&'flag AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn each_class_is_told_once_and_no_connection_that_succeeds() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    set_up(&network);
    let mut watcher = Watcher::open(UNSENT);
    let is_there = |way: &Way| *way != Way::IoUring || IoUring::new(1).is_ok();
    let ways = if all_ways_are_heard() { &Way::ALL[..] } else { &Way::ALL[..2] };
    let ways: Vec<_> = ways.iter().copied().filter(is_there).collect();
    let ways = &ways[..];
    // Before any other: meanwhile no socket of this process connects.
    let mut forbidden_ones = Vec::new();
    network.here.run(|| {
        for (way, port) in ways.iter().zip((2000..).step_by(10)) {
            forbidden_ones.extend(forbidden(*way, port));
        }
    });
    let is_over = AtomicBool::new(false);
    let (others, succeeded) = thread::scope(|scope| {
        let over = SetWhenDropped(&is_over);
        let successes = scope.spawn(|| {
            let mut count = 0;
            while count < 10_000 / slowness() || !is_over.load(Ordering::SeqCst) {
                let connection = Connection::open(V4(), V4());
                set_linger_0(&connection.client);
                drop(connection);
                count += 1;
            }
            count
        });
        let attempts = network.here.run(|| {
            let mut port = 1000;
            let classes = CLASSES.iter().flat_map(|class| ways.iter().map(move |way| (class, *way)));
            let mut attempts: Vec<_> = classes.map(|(class, way)| attempt(class, way, &mut port)).collect();
            for way in ways {
                attempts.push(network.there.run(|| attempt(&WITHOUT_ADDRESS, *way, &mut port)));
            }
            let out_of_ports = OutOfPorts::make();
            for way in ways {
                attempts.extend(out_of_ports.attempts(*way));
            }
            attempts
        });
        drop(over);
        (attempts, successes.join().unwrap())
    });
    let attempts: Vec<_> = forbidden_ones.into_iter().chain(others).collect();
    let own = process::id();
    let events = watcher.events_until(0, "each attempt", |events| {
        events.iter().filter(|event| event.pid == own).count() >= attempts.len()
    });
    let events: Vec<_> = events.into_iter().filter(|event| event.pid == own).collect();
    for (event, attempt) in events.iter().zip(&attempts) {
        check(event, attempt);
    }
    assert_eq!(events.len(), attempts.len());
    assert!(watcher.read(0, 1000, 200).events.iter().all(|event| event.pid != own));
    let statistics = watcher.statistics(0);
    assert!(statistics["unsent"] >= i64::try_from(attempts.len()).unwrap(), "{statistics:?}");
    assert_eq!((statistics["closes"], statistics["shed_unsent"]), (0, 0), "{statistics:?}");
    for Attempt { class, way, to, errno, .. } in &attempts {
        println!("{class}, {way:?}, {to}: {}", io::Error::from_raw_os_error(*errno));
    }
    println!("{} attempts, beside {succeeded} connections that succeeded", attempts.len());
}

/// What is told of in another way, or is no failure; and other protocols.
#[test]
fn what_is_under_way_or_told_as_a_close_is_not_told_again() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    set_up(&network);
    let mut watcher = Watcher::open(UNSENT_AND_CLOSES);
    watcher.open_handle(1, UNSENT);
    let closed = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), closed_port());

    // Refused by a SYN's answer; and once more, by the call that fetches the error.
    assert_eq!(Way::Blocking.connect(&tcp_socket(closed), closed), libc::ECONNREFUSED);
    let later = tcp_socket(closed);
    assert_eq!(Way::NonBlocking.connect(&later, closed), libc::EINPROGRESS);
    while [libc::EALREADY, libc::EINPROGRESS].contains(&Way::NonBlocking.connect(&later, closed)) {}
    // A router says that there is no such host: the call that began the attempt has returned long ago.
    network.route_unreachable(Some("unreachable"));
    let unreachable = SocketAddr::new(Network::UNREACHABLE_V4.parse().unwrap(), 9);
    let answered = network.here.run(|| Way::Blocking.connect(&tcp_socket(unreachable), unreachable));
    assert_eq!(answered, libc::EHOSTUNREACH);
    // Established, and reset before a call of connect has said so; and what is sent with the SYN, to a port that is closed.
    let listener = TcpListener::bind(V4()).unwrap();
    let to = listener.local_addr().unwrap();
    let client = tcp_socket(to);
    assert_eq!(Way::NonBlocking.connect(&client, to), libc::EINPROGRESS);
    set_linger_0(&listener.accept().unwrap().0);
    wait_for_state(&client, CLOSE);
    assert_eq!(Way::NonBlocking.connect(&client, to), libc::ECONNRESET);
    let mut deferred = tcp_socket(closed);
    for option in [libc::TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE] {
        set_option(&deferred, libc::IPPROTO_TCP, option, 1);
    }
    assert_eq!(Way::Blocking.connect(&deferred, closed), 0);
    assert_eq!(deferred.write(b"hello").unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    // Two threads wait for the same attempt, which is given up by a third one.
    network.here.cut();
    let silent = SocketAddr::new(Network::THERE_V4.parse().unwrap(), 9);
    let shared = network.here.run(|| tcp_socket(silent));
    thread::scope(|scope| {
        let wait = || Way::Blocking.connect(&shared, silent);
        let waiting = [scope.spawn(wait), scope.spawn(wait)];
        wait_for_state(&shared, SYN_SENT);
        // The second one may come after the first has been given up: it begins another attempt then.
        while !waiting.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(100));
            let _ = shared.shutdown(Shutdown::Both);
        }
        for waiting in waiting {
            assert_ne!(waiting.join().unwrap(), 0);
        }
    });
    // Already connected, or on the way.
    let connection = Connection::open(V4(), V4());
    let stream = Socket::from(connection.client.try_clone().unwrap());
    assert_eq!(Way::Blocking.connect(&stream, closed), libc::EISCONN);
    let waits = network.here.run(|| begin_connect(silent));
    assert_eq!(Way::NonBlocking.connect(&waits, silent), libc::EALREADY);
    // No socket of TCP, and no address in memory.
    let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    let nowhere = SocketAddr::new("192.0.2.17".parse().unwrap(), 9);
    assert_eq!(network.here.run(|| Way::Blocking.connect(&socket_there(&datagrams), nowhere)), libc::EHOSTUNREACH);
    // SAFETY: an address that there is not.
    assert_eq!(unsafe { libc::connect(tcp_socket(closed).as_raw_fd(), std::ptr::without_provenance(8), 16) }, -1);
    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));

    // The last one is told.
    let last = SocketAddr::new("192.0.2.17".parse().unwrap(), 7000);
    network.here.run(|| tried("last", Way::Blocking, &tcp_socket(last), last));
    for handle in [0, 1] {
        let events = watcher.events_until(handle, "the last", |events| events.iter().any(|event| event.remote == last));
        let told = events.iter().filter(|event| event.kind == Kind::Unsent && event.pid == process::id());
        assert_eq!(told.count(), 1, "{events:#?}");
    }
}

/// A datagram socket of the calling thread's network namespace in place of this one.
fn socket_there(like: &Socket) -> Socket {
    Socket::new(like.domain().unwrap(), like.r#type().unwrap(), None).unwrap()
}

/// The socket goes to SYN_SENT and back: that is no close here, but it is where nobody asks for more.
#[test]
fn an_attempt_without_a_local_port_is_told_once() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    let mut watcher = Watcher::open(UNSENT_AND_CLOSES);
    watcher.open_handle(1, "events=2");
    let (attempts, out_of_ports) = network.here.run(|| {
        let out_of_ports = OutOfPorts::make();
        (out_of_ports.attempts(Way::Blocking), out_of_ports)
    });
    for (handle, kind, errno) in [(0, Kind::Unsent, libc::EADDRNOTAVAIL), (1, Kind::Close, 0)] {
        let events = watcher.pass_later_connection(handle);
        for attempt in &attempts {
            assert_eq!(attempt.errno, libc::EADDRNOTAVAIL, "{attempt:?}");
            let told: Vec<_> = events.iter().filter(|event| event.remote == attempt.to).collect();
            assert_eq!(told.len(), 1, "{told:#?}");
            assert_eq!((told[0].kind, told[0].error), (kind, errno), "{told:#?}");
        }
    }
    drop(out_of_ports);
}

/// A socket that has failed, or is dissolved, and is tried again.
#[test]
fn each_attempt_of_a_socket_is_told_by_itself() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    set_up(&network);
    let mut watcher = Watcher::open(UNSENT);
    let unreachable = |port| SocketAddr::new("192.0.2.17".parse().unwrap(), port);
    let silent = SocketAddr::new(Network::THERE_V4.parse().unwrap(), 9);
    network.here.cut();
    let attempts = network.here.run(|| {
        let socket = tcp_socket(silent);
        let mut attempts = vec![tried("first", Way::Blocking, &socket, unreachable(1))];
        attempts.push(tried("again", Way::Blocking, &socket, unreachable(2)));
        socket.set_nonblocking(true).unwrap();
        assert_eq!(Way::NonBlocking.connect(&socket, silent), libc::EINPROGRESS);
        disconnect(&socket);
        attempts.push(tried("dissolved", Way::Blocking, &socket, unreachable(3)));
        let closed = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), closed_port());
        socket.set_nonblocking(false).unwrap();
        assert_eq!(Way::Blocking.connect(&socket, closed), libc::ECONNREFUSED);
        attempts.push(tried("refused before", Way::Blocking, &socket, unreachable(4)));
        // Given up by shutdown; and one that has never sent a SYN.
        socket.set_nonblocking(true).unwrap();
        assert_eq!(Way::NonBlocking.connect(&socket, silent), libc::EINPROGRESS);
        let _ = socket.shutdown(Shutdown::Both);
        attempts.push(tried("shut down", Way::Blocking, &socket, unreachable(5)));
        let fresh = tcp_socket(silent);
        disconnect(&fresh);
        attempts.push(tried("dissolved at first", Way::Blocking, &fresh, unreachable(6)));
        attempts.push(tried("once more", Way::Blocking, &fresh, unreachable(7)));
        attempts
    });
    let events = watcher.events_until(0, "four", |events| events.iter().any(|event| event.remote == unreachable(4)));
    let events: Vec<_> = events.iter().filter(|event| event.pid == process::id()).collect();
    assert_eq!(events.len(), attempts.len(), "{events:#?}");
    for (event, attempt) in events.iter().zip(&attempts) {
        assert_eq!((event.remote, event.error), (attempt.to, libc::EHOSTUNREACH), "{attempt:?}: {event:#?}");
    }
}

#[test]
fn what_does_not_fit_is_not_told() {
    if is_skipped() {
        return;
    }
    let _turn = turn();
    let network = Network::new();
    set_up(&network);
    let mut watcher = Watcher::open(UNSENT);
    let own = process::id();
    let netns = network.here.path();
    let fitting = [
        "dport 7001".to_owned(),
        "dst 192.0.2.16/28".to_owned(),
        format!("pid {own} failed"),
        format!("netns {netns} family inet"),
        "uid 0 sport 0".to_owned(),
    ];
    let others = [
        "dport 7002".to_owned(),
        "dst 192.0.2.0/28".to_owned(),
        format!("pid {}", watcher.pid()),
        "family inet6".to_owned(),
        "sport 7001".to_owned(),
        "netns self".to_owned(),
    ];
    for (handle, filter) in (1..).zip(fitting.iter().chain(&others)) {
        watcher.open_handle(handle, &format!("{UNSENT} filter={filter}"));
    }
    let to = SocketAddr::new("192.0.2.17".parse().unwrap(), 7001);
    network.here.run(|| tried("unreachable", Way::Blocking, &tcp_socket(to), to));
    let count = u32::try_from(fitting.len()).unwrap();
    for handle in 0..=count {
        let events =
            watcher.events_until(handle, "the attempt", |events| events.iter().any(|event| event.remote == to));
        assert_eq!(events.iter().filter(|event| event.remote == to).count(), 1);
    }
    for (handle, filter) in (count + 1..).zip(&others) {
        let events = watcher.read(handle, 1000, 100 * i64::from(slowness())).events;
        assert!(events.iter().all(|event| event.remote != to), "{filter}");
    }
}

#[test]
fn where_they_are_not_told_the_log_says_so() {
    let _turn = turn();
    let (lines, _) = run_script(watcher(), "open 0 events=16 log=1 probe=3\nclose 0\n");
    let said =
        "log 1 attempts that fail before a SYN are not told: that takes the probe kprobe or tp_btf, and Linux 5.8";
    assert!(lines.iter().any(|line| line == said), "{lines:#?}");
}
