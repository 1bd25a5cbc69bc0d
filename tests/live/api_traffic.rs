//! What the kernel says of a test's sockets, to compare with the library's events.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::mem::{MaybeUninit, zeroed};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use socket2::{Domain, SockRef, Socket, Type};
use tcpEvent::internals::classic::abi::anu_tcp_info;

use crate::consumer::patience;
use crate::traffic::{Connection, V4, wall_ns};

/// A socket option that is a plain structure; fields unknown to the kernel are 0.
pub fn option<T: Copy>(socket: &impl AsRawFd, level: i32, name: i32) -> T {
    // SAFETY: only used for integers and structures of integers.
    let mut value: T = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    // SAFETY: a place to write to, and its size.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    assert_eq!(result, 0, "getsockopt({level}, {name}): {}", io::Error::last_os_error());
    value
}

pub fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: a place to read from, and its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "setsockopt({level}, {name}): {}", io::Error::last_os_error());
}

/// The socket cookie. Asking makes the kernel assign one, so the test asks only after the library has had its chance to
/// do so.
pub fn cookie(socket: &impl AsFd) -> u64 {
    let cookie = option(&socket.as_fd(), libc::SOL_SOCKET, libc::SO_COOKIE);
    let socket = SockRef::from(socket);
    let address = |address: io::Result<socket2::SockAddr>| address.ok().and_then(|address| address.as_socket());
    let endpoint = (address(socket.local_addr()), address(socket.peer_addr()));
    endpoints().push((cookie, endpoint.0, endpoint.1));
    cookie
}

type Endpoints = Vec<(u64, Option<SocketAddr>, Option<SocketAddr>)>;

fn endpoints() -> MutexGuard<'static, Endpoints> {
    static ENDPOINTS: Mutex<Endpoints> = Mutex::new(Vec::new());
    ENDPOINTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last cookie asked for of a socket with this endpoint: for a probe that does not report cookies.
pub fn cookie_at(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let is = |known: Option<SocketAddr>, address: SocketAddr| {
        known.is_none_or(|known| known == address || (address.port() == 0 && known.ip() == address.ip()))
    };
    let endpoints = endpoints();
    let found = endpoints.iter().rev().find(|(_, own, peer)| own.is_some() && is(*own, local) && is(*peer, remote));
    found.map(|(cookie, ..)| *cookie)
}

/// Cookies of the client's end and the server's.
pub fn cookies_of(connection: &Connection) -> [u64; 2] {
    [cookie(&connection.client), cookie(&connection.server)]
}

pub fn tcp_info(socket: &impl AsRawFd) -> anu_tcp_info {
    option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)
}

/// TCP_INFO of both ends once all segments have arrived and all payload is acknowledged: nothing in flight can change a
/// counter any more.
pub fn settled_tcp_info(connection: &Connection) -> [anu_tcp_info; 2] {
    let until = Instant::now() + patience();
    loop {
        let [client, server] = [tcp_info(&connection.client), tcp_info(&connection.server)];
        // The SYN-ACK was sent before the server's end was a connection.
        if client.tcpi_segs_out == server.tcpi_segs_in
            && client.tcpi_segs_in == server.tcpi_segs_out + 1
            && client.tcpi_unacked + server.tcpi_unacked == 0
        {
            return [client, server];
        }
        assert!(Instant::now() < until, "the connection does not come to rest");
        std::thread::yield_now();
    }
}

// States as TCP_INFO has them.
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const SYN_RECV: u8 = 3;
pub const FIN_WAIT2: u8 = 5;
pub const CLOSE: u8 = 7;
pub const CLOSE_WAIT: u8 = 8;

/// Waits until a socket is in a state: the peer's segments may take a while.
pub fn wait_for_state(socket: &impl AsRawFd, state: u8) {
    let until = Instant::now() + patience();
    while tcp_info(socket).tcpi_state != state {
        assert!(Instant::now() < until, "it stays in state {}", tcp_info(socket).tcpi_state);
        std::thread::yield_now();
    }
}

/// The command of this process: its first thread's.
pub fn own_process_comm() -> String {
    std::fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
}

/// The inode number in /proc/PID/fd.
pub fn inode(socket: &impl AsFd) -> u64 {
    File::from(socket.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: a place to write to, filled if the call returns 0.
    let now = unsafe {
        assert_eq!(libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr()), 0);
        now.assume_init()
    };
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub monotonic_ns: u64,
    pub wall_ns: u64,
}

impl Moment {
    pub fn now() -> Self {
        Self { monotonic_ns: monotonic_ns(), wall_ns: wall_ns() }
    }
}

pub fn tcp_socket(to: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap()
}

/// A socket whose connect has begun and continues by itself.
pub fn begin_connect(to: SocketAddr) -> Socket {
    let socket = tcp_socket(to);
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&to.into()).expect_err("nobody answers there");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
    socket
}

/// Dissolves a socket's association as in connect(2): its connection is reset, and it can connect again.
pub fn disconnect(socket: &impl AsRawFd) {
    // SAFETY: an address of a family that has no further fields, and its size.
    unsafe {
        let mut nowhere: libc::sockaddr = zeroed();
        nowhere.sa_family = libc::AF_UNSPEC.try_into().unwrap();
        let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap();
        assert_eq!(libc::connect(socket.as_raw_fd(), &raw const nowhere, length), 0, "{}", io::Error::last_os_error());
    }
}

/// A refused connect. Returns its socket.
pub fn refused(to: SocketAddr) -> Socket {
    let socket = tcp_socket(to);
    let error = socket.connect(&to.into()).expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    socket
}

/// A socket connected to itself: it opened by a simultaneous open, and closes by a simultaneous close when shut down.
pub fn self_connected() -> TcpStream {
    let socket = tcp_socket(V4());
    socket.bind(&V4().into()).unwrap();
    let own = socket.local_addr().unwrap();
    socket.connect(&own).unwrap();
    socket.into()
}

/// Inode number of the calling thread's network namespace.
pub fn own_netns() -> u32 {
    let inode = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    inode.try_into().unwrap()
}
