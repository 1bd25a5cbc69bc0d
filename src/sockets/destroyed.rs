//! Notifications of sockets that the kernel has freed, with their last counters. The kernel multicasts them for the
//! sockets of this network namespace.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::diag::{self, Destroyed, Reply};
use super::socket::receive;
use crate::sys::log::{self, Level};
use crate::sys::own_fd::Guarded;

/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` (include/uapi/linux/sock_diag.h).
const GROUPS: [u32; 2] = [1, 3];

/// Room for some ten thousand unread notifications. A limit; nothing is allocated up front.
const QUEUE_BYTES: libc::c_int = 16 << 20;

/// A notification takes some 400 bytes.
const BUFFER_LEN: usize = 1 << 13;

/// Listens for notifications.
pub struct Listener {
    socket: Guarded<Socket>,
    buffer: Vec<u8>,
    /// How often the kernel had to drop notifications.
    overruns: u64,
}

impl Listener {
    /// Joins the groups of both families. A kernel without IPv6 has just one.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        enlarge(socket.as_raw_fd());
        let mut joined = GROUPS.map(|group| socket.add_membership(group));
        if joined.iter().all(Result::is_err) {
            std::mem::replace(&mut joined[0], Ok(()))?;
        }
        let fd = socket.as_raw_fd();
        let socket = Guarded::new(socket, [fd]);
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER_LEN), overruns: 0 })
    }

    /// Readable when a notification is queued.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Passes on all queued notifications.
    pub fn read(&mut self, mut each: impl FnMut(Destroyed)) {
        // If the host has put another socket in its place, that one is not ours to read.
        while self.socket.may_be_whole() {
            match receive(&self.socket, &mut self.buffer) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.overruns += 1;
                    let overruns = self.overruns;
                    log::line(
                        Level::Debug,
                        format_args!(
                            "closes have no byte counts: notifications were dropped (ENOBUFS, {overruns} times)"
                        ),
                    );
                    continue;
                }
                // None left.
                Err(_) => return,
            }
            diag::for_each_reply(&self.buffer, 0, |reply| {
                if let Reply::Socket(payload) = reply {
                    diag::parse_destroyed(payload).into_iter().for_each(&mut each);
                }
            });
        }
    }
}

/// Exceeds the usual limit if this process may, otherwise takes as much as the limit allows.
fn enlarge(fd: RawFd) {
    let bytes = QUEUE_BYTES;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: a number, with its size.
        let result = unsafe {
            let size = size_of::<libc::c_int>().try_into().unwrap_or(0);
            libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const bytes).cast(), size)
        };
        if result == 0 {
            return;
        }
    }
}
