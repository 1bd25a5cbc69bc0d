//! A netlink socket for sock_diag requests, and the reading of the kernel's replies.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use crate::sys::descriptors::StandardStreams;
use crate::sys::own_fd::Guarded;

/// The kernel fills a dump's datagrams up to 32 KiB if the buffer has room for that.
pub(super) const BUFFER_LEN: usize = 1 << 16;

/// A reply that takes longer is given up; the next sweep asks again.
pub(super) const REPLY_TIME: Duration = Duration::from_secs(5);

pub(super) fn open_socket() -> io::Result<Guarded<Socket>> {
    let _streams = StandardStreams::hold();
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let fd = socket.as_raw_fd();
    Ok(Guarded::new(socket, [fd]))
}

/// The port of the kernel's end of every netlink socket. No process can have it (kernel: netlink_autobind, netlink_bind).
const KERNEL_PORT: u32 = 0;

/// Reads one datagram of the kernel into the buffer, and returns its full length. A datagram from a process is
/// discarded: the buffer is empty then. With `CAP_NET_ADMIN` over a network namespace, which the root of a user
/// namespace has, a process may send to any netlink socket in it, and to its groups (kernel: netlink_sendmsg).
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.clear();
    let (length, sender) = retry(|| socket.recv_from(buffer, libc::MSG_TRUNC))?;
    if sender.port_number() == KERNEL_PORT {
        return Ok(length);
    }
    buffer.clear();
    Ok(0)
}

/// Repeats a call that a signal interrupted. The thread blocks all signals, but a debugger may stop it.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
