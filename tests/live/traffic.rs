//! Real connections with known facts.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::{Domain, SockRef, Socket, Type};

use crate::consumer::{Event, c_program, finds_holders, rung_is_tracepoint};

pub const V4: fn() -> SocketAddr = || (Ipv4Addr::LOCALHOST, 0).into();
pub const V6: fn() -> SocketAddr = || (Ipv6Addr::LOCALHOST, 0).into();
/// All addresses of both families.
pub const DUAL: fn() -> SocketAddr = || (Ipv6Addr::UNSPECIFIED, 0).into();

/// A connection whose two ends are in this process.
pub struct Connection {
    /// Kept open for its snapshot.
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

    /// The server closes first.
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

/// Both FINs have arrived by the time both ends are closed, so that the raw counters are the same in each run. (A plain
/// close() of the first end may turn it into a TIME_WAIT before the other's FIN arrives, or after.)
fn close_in_order(mut first: TcpStream, mut second: TcpStream) {
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    drop(second);
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
}

/// Makes a close a reset.
pub fn set_linger_0(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Short connections over IPv4 that can be told apart: each comes from an address of its own, and sends a number of
/// bytes derived from its own number. (Ports are no identity: the kernel reuses them at once.)
pub struct NumberedConnections {
    listener: TcpListener,
}

impl NumberedConnections {
    pub fn new() -> Self {
        Self { listener: TcpListener::bind(V4()).unwrap() }
    }

    /// The source address of connection `number`: one of 127.1.0.0 to 127.255.255.255.
    pub fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x7f01_0000 + number)
    }

    /// The number of bytes it sends.
    pub fn bytes(number: u32) -> usize {
        1 + (number % 997) as usize
    }

    /// As [`Self::make`]. Returns the wall clock before and after the closes.
    pub fn make_timed(&self, number: u32) -> (u64, u64) {
        let (client, server) = self.open(number);
        let before = wall_ns();
        drop(client);
        drop(server);
        (before, wall_ns())
    }

    /// Opens connection `number`, sends its bytes, receives one byte, and resets it, so that no TIME_WAIT keeps the
    /// port. Both ends are closed when this returns, the client's first.
    pub fn make(&self, number: u32) {
        self.make_timed(number);
    }

    /// A connection that is ready to be closed, the client's end first.
    fn open(&self, number: u32) -> (TcpStream, TcpStream) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Self::address(number), 0)).into()).unwrap();
        socket.connect(&self.listener.local_addr().unwrap().into()).unwrap();
        let mut client = TcpStream::from(socket);
        let (mut server, _) = self.listener.accept().unwrap();
        transfer(&mut client, &mut server, Self::bytes(number));
        // Carries the acknowledgement of the bytes.
        transfer(&mut server, &mut client, 1);
        set_linger_0(&client);
        (client, server)
    }

    /// The number of an event's connection, and whether it is the client's end. `None` for other programs' connections.
    /// Its bytes must be right.
    pub fn identify(&self, event: &Event) -> Option<(u32, bool)> {
        let port = self.listener.local_addr().unwrap().port();
        // The ports alone do not tell: with an address of its own, the client may get the listener's port.
        let is_client = event.local != Ipv4Addr::LOCALHOST.to_string();
        if port != if is_client { event.remote_port } else { event.local_port } {
            return None;
        }
        let address: Ipv4Addr = if is_client { &event.local } else { &event.remote }.parse().ok()?;
        let number = address.to_bits().checked_sub(0x7f01_0000)?;
        let bytes = Self::bytes(number) as u64;
        if is_client && rung_is_tracepoint() {
            // Its own reset removes what identifies its counters.
            assert_eq!((event.rx, event.tx), (0, 0), "{event:?}");
        } else if is_client {
            assert_eq!((event.rx, event.tx), (1, bytes + 1), "{event:?}");
        } else if event.rx != 0 || !rung_is_tracepoint() {
            // If all processors are busy for long, the counters of some come too late.
            assert_eq!(event.rx, bytes, "{event:?}");
        }
        // If accepts are not seen, the process is known if it is seen to let go of the socket.
        let may_be_nobody = !is_client && !finds_holders();
        assert!(event.pid == process::id() || may_be_nobody && event.pid == 0, "{event:?}");
        assert_eq!((event.uid, event.family), (0, 2), "{event:?}");
        Some((number, is_client))
    }
}

/// A server in another user's process, under a name of arbitrary bytes. It accepts connections and does nothing with
/// them.
pub struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Peer {
    /// Neither its comm nor its argv[0] may hold a NUL.
    pub fn run(uid: u32, comm: &[u8], argv0: &[u8]) -> Self {
        let mut command = Command::new(c_program("peer"));
        command.arg0(OsStr::from_bytes(argv0)).arg(uid.to_string()).arg(OsStr::from_bytes(comm));
        Self::from(command)
    }

    /// A process of another user whose main thread has ended.
    pub fn headless(uid: u32, comm: &str, argv0: &str) -> Self {
        let mut command = Command::new(c_program("peer"));
        command.arg0(argv0).arg(uid.to_string()).arg(comm).arg("headless");
        let peer = Self::from(command);
        let status = format!("/proc/{}/stat", peer.pid());
        while !std::fs::read_to_string(&status).unwrap().contains(") Z ") {
            std::thread::sleep(Duration::from_millis(1));
        }
        peer
    }

    /// A process of a copy of the program with more privileges than its caller: user `real` runs a file of user
    /// `effective`.
    pub fn set_user_id(copy: &Path, real: u32, effective: u32, comm: &str) -> Self {
        std::fs::copy(c_program("peer"), copy).unwrap();
        std::os::unix::fs::chown(copy, Some(effective), None).unwrap();
        std::fs::set_permissions(copy, Permissions::from_mode(0o4755)).unwrap();
        let mut command = Command::new(copy);
        command.uid(real).args(["-1", comm]);
        Self::from(command)
    }

    /// A process started by another program, such as unshare.
    pub fn run_by(mut program: Command, uid: u32, comm: &str) -> Self {
        program.arg(c_program("peer")).arg(uid.to_string()).arg(comm);
        Self::from(program)
    }

    fn from(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        Self { child, lines, port }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connects to it, and returns once it has accepted. The peer's ports are those of this end, swapped.
    pub fn connect(&mut self) -> TcpStream {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(self.lines.next().unwrap().unwrap(), "accepted");
        client
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port without a listener.
pub fn closed_port() -> u16 {
    TcpListener::bind(V4()).unwrap().local_addr().unwrap().port()
}

pub fn wall_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// The comm of the calling thread: a test runner names its threads after the tests.
pub fn own_comm() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").unwrap().trim_end().to_owned()
}

/// The name of this process: its main thread's.
pub fn process_comm() -> String {
    std::fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
}
