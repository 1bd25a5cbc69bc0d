//! Real connections with a known truth.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

pub const V4: fn() -> SocketAddr = || (Ipv4Addr::LOCALHOST, 0).into();
pub const V6: fn() -> SocketAddr = || (Ipv6Addr::LOCALHOST, 0).into();
/// All addresses of both families.
pub const DUAL: fn() -> SocketAddr = || (Ipv6Addr::UNSPECIFIED, 0).into();

/// A connection whose two ends are in this process.
pub struct Connection {
    /// Kept for its snapshot.
    _listener: TcpListener,
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Connection {
    /// Listens at one address and connects to another, at the same port.
    pub fn open(listen: SocketAddr, mut to: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).unwrap();
        to.set_port(listener.local_addr().unwrap().port());
        let client = TcpStream::connect(to).unwrap();
        let (server, _) = listener.accept().unwrap();
        Self { _listener: listener, client, server }
    }

    /// Ports of the client's end, local and remote.
    pub fn ports(&self) -> (u16, u16) {
        (self.client.local_addr().unwrap().port(), self.client.peer_addr().unwrap().port())
    }

    /// From the client to the server, read whole.
    pub fn send_up(&mut self, bytes: usize) {
        transfer(&mut self.client, &mut self.server, bytes);
    }

    /// From the server to the client, read whole.
    pub fn send_down(&mut self, bytes: usize) {
        transfer(&mut self.server, &mut self.client, bytes);
    }

    /// The client closes; the server sees that, then closes too.
    pub fn close_client_first(self) {
        let Self { client, server, .. } = self;
        close_in_order(client, server);
    }

    /// The other way round.
    pub fn close_server_first(self) {
        let Self { client, server, .. } = self;
        close_in_order(server, client);
    }

    /// The client resets, and the server sees that.
    pub fn reset_by_client(self) {
        let Self { client, mut server, .. } = self;
        set_linger_0(&client);
        drop(client);
        let error = server.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    let chunk = vec![b'x'; 16384];
    let mut buffer = vec![0; 65536];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(chunk.len());
        from.write_all(&chunk[..count]).unwrap();
        let mut unread = count;
        while unread > 0 {
            let got = to.read(&mut buffer[..unread.min(65536)]).unwrap();
            assert!(got > 0, "the connection ended early");
            unread -= got;
        }
        left -= count;
    }
}

/// Both FINs are received by the time that both ends are closed, so that the raw counters are the same in each run.
/// (A plain close() of the first end may turn it into a TIME_WAIT before the other's FIN comes, or after.)
fn close_in_order(mut first: TcpStream, mut second: TcpStream) {
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    drop(second);
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
}

pub fn set_linger_0(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: a valid descriptor, and a linger of its true size.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>().try_into().unwrap(),
        )
    };
    assert_eq!(result, 0);
}

/// A port at which nothing listens.
pub fn closed_port() -> u16 {
    TcpListener::bind(V4()).unwrap().local_addr().unwrap().port()
}

pub fn wall_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// The comm of the calling thread: a test runner's threads bear the tests' names.
pub fn own_comm() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").unwrap().trim_end().to_owned()
}
