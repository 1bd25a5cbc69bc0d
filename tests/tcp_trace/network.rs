//! Connections that fail, each in its own way, and networks for that.

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::monitor::wait_until;

/// A port without a listener: no program gets one as low as this by chance.
pub const CLOSED: u16 = 9;

/// Loopback addresses that no other test or program uses: a /16.
#[derive(Clone, Copy, Debug)]
pub struct Net(u8);

impl Net {
    pub fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(100);
        let second = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(second < 255, "there are not that many networks on loopback");
        Self(second)
    }

    pub fn prefix(self) -> String {
        format!("{}/16", self.address(0))
    }

    pub fn address(self, number: u16) -> Ipv4Addr {
        let [third, fourth] = number.to_be_bytes();
        Ipv4Addr::new(127, self.0, third, fourth)
    }

    pub fn at(self, number: u16, port: u16) -> SocketAddr {
        (self.address(number), port).into()
    }

    /// The number of an address; `None` if it is not one of these.
    pub fn number(self, address: &str) -> Option<u16> {
        let octets = address.parse::<Ipv4Addr>().ok()?.octets();
        (octets[..2] == [127, self.0]).then(|| u16::from_be_bytes([octets[2], octets[3]]))
    }

    /// Has a connection to this address refused.
    pub fn refuse(self, number: u16) {
        refuse(self.at(number, CLOSED));
    }

    /// The same with the last address, which is reserved for this. Returns that address.
    pub fn mark(self) -> Ipv4Addr {
        self.refuse(u16::MAX - 1);
        self.address(u16::MAX - 1)
    }
}

/// Connects to a port without a listener.
pub fn refuse(to: SocketAddr) {
    let error = TcpStream::connect(to).expect_err("somebody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
}

/// Begins to connect, and closes after some time without an answer. Returns the total time.
pub fn give_up(to: SocketAddr, after: Duration) -> Duration {
    let begin = Instant::now();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&to.into()).expect_err("a connection takes its time");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{to}");
    thread::sleep(after);
    drop(socket);
    begin.elapsed()
}

/// A listener that answers no SYN because its queue is full.
pub struct Deaf {
    listener: TcpListener,
    _first: TcpStream,
}

impl Deaf {
    pub fn new(at: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Self { listener, _first: first }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

/// Connects with this limit on the time. Returns the error, which must come.
pub fn time_out(to: SocketAddr, after: Duration) -> io::Error {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    let milliseconds = u32::try_from(after.as_millis()).unwrap();
    // SAFETY: the descriptor is open, and the value has the given 4 bytes.
    check(unsafe {
        let value = (&raw const milliseconds).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, 4)
    });
    socket.connect(&to.into()).expect_err("nobody answers there")
}

/// A port of this address that is bound but not listening, as long as this lives.
pub struct Bound(Socket);

impl Bound {
    pub fn new(address: IpAddr) -> Self {
        let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::new(address, 0))).unwrap();
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    /// Connects with the bound socket: its local port is known from the start.
    pub fn connect(self, to: SocketAddr) -> TcpStream {
        self.0.connect(&to.into()).unwrap();
        self.0.into()
    }
}

/// The result of a system call, which must be 0.
#[track_caller]
fn check(status: i32) {
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

// ---- Networks

/// Gives the calling thread a new network with a loopback. The network ends with the last thread and process in it.
fn enter_own_network() {
    // SAFETY: takes no pointers, and affects this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
    run(&["ip", "link", "set", "lo", "up"]);
}

/// Runs this in a network of its own.
pub fn in_own_network<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    in_a_thread(|| {
        enter_own_network();
        work()
    })
}

/// Runs this in a thread of its own, and passes on a panic with its message.
fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Destinations behind the router, each /24 or /64 with its own answer to connects.
pub const NO_HOST: [&str; 2] = ["10.77.1.1", "fd77:1::1"];
pub const NO_ROUTE: [&str; 2] = ["10.77.2.1", "fd77:2::1"];
pub const PROHIBITED: [&str; 2] = ["10.77.3.1", "fd77:3::1"];
pub const NO_ANSWER: [&str; 2] = ["10.77.4.1", "fd77:4::1"];
/// All of them, and the router itself.
pub const BEHIND: &[&str] = &["--dest=10.77.0.0/16", "--dest=fd77::/16"];

/// Runs this in a network whose only way out is a router.
pub fn behind_a_router<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let (thread_id, router) = channel();
        let (done, wait) = channel::<()>();
        scope.spawn(move || {
            enter_own_network();
            // SAFETY: takes and returns numbers.
            thread_id.send(unsafe { libc::gettid() }).unwrap();
            let _ = wait.recv();
        });
        let router = router.recv().unwrap();
        let result = in_a_thread(|| {
            enter_own_network();
            connect_to(router);
            work()
        });
        drop(done);
        result
    })
}

/// Connects the calling thread's network with that of the router's thread, and sets up both.
fn connect_to(router: i32) {
    let network = format!("--net=/proc/{router}/ns/net");
    let in_router = |words: &str| run(&[&["nsenter", &network], &*words.split(' ').collect::<Vec<_>>()].concat());
    let here = |words: &str| run(&words.split(' ').collect::<Vec<_>>());

    here(&format!("ip link add cable type veth peer name cable netns {router}"));
    here("ip addr add 10.77.0.1/24 dev cable");
    here("ip -6 addr add fd77::1/64 dev cable nodad");
    in_router("ip addr add 10.77.0.2/24 dev cable");
    in_router("ip -6 addr add fd77::2/64 dev cable nodad");
    in_router("ip link set cable up");
    here("ip link set cable up");
    here("ip route add default via 10.77.0.2");
    here("ip -6 route add default via fd77::2");
    // The router must not omit answers because there are many.
    for setting in ["ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv4.icmp_ratelimit=0", "ipv6.icmp.ratelimit=0"]
    {
        in_router(&format!("sysctl -qw net.{setting}"));
    }
    for (kind, destinations) in [("unreachable", NO_HOST), ("prohibit", PROHIBITED), ("blackhole", NO_ANSWER)] {
        for (address, length) in destinations.into_iter().zip([24, 64]) {
            in_router(&format!("ip route add {kind} {}", prefix_of(address, length)));
        }
    }
    // The kernels on both sides set up their routes asynchronously. Once all are in place, the router refuses.
    for address in ["10.77.0.2", "fd77::2"] {
        let router = SocketAddr::new(address.parse().unwrap(), CLOSED);
        wait_until("an answer of the router", || {
            let error = TcpStream::connect_timeout(&router, Duration::from_secs(1)).unwrap_err();
            (error.kind() == ErrorKind::ConnectionRefused).then_some(())
        });
    }
}

fn prefix_of(address: &str, length: u8) -> String {
    let network = address.strip_suffix('1').unwrap();
    format!("{network}{}/{length}", if address.contains(':') { "" } else { "0" })
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sets a sysctl of the calling thread's network.
pub fn set(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

// ---- A disk

/// Runs this with a file system of so many bytes at a folder, for the calling thread and its child processes only: it
/// is removed with them, however they end.
pub fn with_small_disk<T: Send>(folder: &Path, bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    let folder = CString::new(folder.to_str().unwrap()).unwrap();
    let options = CString::new(format!("size={bytes}")).unwrap();
    in_a_thread(move || {
        let (root, tmpfs, none) = (c"/".as_ptr(), c"tmpfs".as_ptr(), ptr::null());
        // SAFETY: the strings are NUL-terminated, and the calls change this thread's mount namespace only.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS));
            check(libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, none.cast()));
            check(libc::mount(tmpfs, folder.as_ptr(), tmpfs, 0, options.as_ptr().cast()));
        }
        work()
    })
}

/// Runs this in a thread of this name.
pub fn with_comm<T: Send>(comm: &[u8], work: impl FnOnce() -> T + Send) -> T {
    in_a_thread(|| {
        fs::write("/proc/thread-self/comm", comm).unwrap();
        work()
    })
}

/// The socket cookie.
pub fn cookie(stream: &TcpStream) -> u64 {
    let mut cookie = 0_u64;
    let mut length = 8;
    // SAFETY: the descriptor is open, and the value has the 8 bytes that `length` says.
    check(unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, value, &raw mut length)
    });
    cookie
}
