//! Who holds which endpoint, listed once: for the closes of connections that are older than the probe.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use super::diag::{self, Families, Reply};
use super::holders::{self, HolderIterator, Owners};
use super::socket::{BUFFER_LEN, REPLY_TIME, open_socket, receive, retry};
use crate::event::endpoint::Endpoint;
use crate::event::{Begin, COMM_LEN, Event, Origin, state};
use crate::sys::log::{self, Level};
use crate::sys::wake::{Sleeper, Woken};

/// Endpoints that are kept at most.
const MOST: usize = 1 << 17;

/// The holders of endpoints that were open at one moment.
#[derive(Default)]
pub struct OlderEndpoints(HashMap<Endpoint, Holder>);

#[derive(Clone, Copy)]
struct Holder {
    pid: u32,
    uid: u32,
    comm: [u8; COMM_LEN],
}

impl OlderEndpoints {
    /// Lists what is open. Where that is not possible, nothing is known.
    pub fn list(sleeper: &Sleeper<'_>) -> Self {
        let mut this = Self::default();
        if let Err(error) = this.fill(sleeper) {
            log::line(Level::Info, format_args!("connections older than the probe have no owner yet: {error}"));
        }
        this
    }

    fn fill(&mut self, sleeper: &Sleeper<'_>) -> io::Result<()> {
        let owners = Owners::find(&HolderIterator::new())?;
        let mut holders = HashMap::new();
        let mut buffer = Vec::with_capacity(BUFFER_LEN);
        let mut outcome = Ok(());
        let mut enough_memory = true;
        // One family may be missing from the kernel.
        for (families, sequence) in [(Families::Inet, 1), (Families::Inet6, 2)] {
            let listed = list_sockets(families, sequence, sleeper, &mut buffer, |event| {
                enough_memory &= holders.try_reserve(1).is_ok() && self.0.try_reserve(1).is_ok();
                if event.old_state == state::LISTEN || self.0.len() >= MOST || !enough_memory {
                    return;
                }
                let holder = owners.holder(event.inode).and_then(|pid| {
                    let identity = *holders.entry(pid).or_insert_with(|| holders::read_identity(pid));
                    identity.map(|(comm, uid)| Holder { pid, uid, comm })
                });
                if let Some(holder) = holder {
                    self.0.insert(Endpoint::of(&event), holder);
                }
            });
            outcome = if families == Families::Inet { listed } else { outcome.or(listed) };
        }
        if enough_memory { outcome } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }

    /// Names the holder where nobody else is known. An endpoint that has closed is forgotten.
    pub fn complete(&mut self, event: &mut Event) {
        // One that has begun since is another, of the same addresses: perhaps in another network namespace.
        if self.0.is_empty() || event.begin != Begin::Older {
            return;
        }
        let endpoint = Endpoint::of(event);
        let holder =
            if event.new_state == state::CLOSE { self.0.remove(&endpoint) } else { self.0.get(&endpoint).copied() };
        if event.origin != Origin::Guess {
            return;
        }
        if let Some(Holder { pid, uid, comm }) = holder {
            (event.pid, event.uid, event.comm, event.origin) = (pid, uid, comm, Origin::Inode);
        }
    }
}

fn list_sockets(
    families: Families,
    sequence: u32,
    sleeper: &Sleeper<'_>,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(Event),
) -> io::Result<()> {
    let socket = open_socket()?;
    retry(|| socket.send(&diag::dump_request(families, sequence), 0))?;
    loop {
        match sleeper.wait(Some(socket.as_raw_fd()), Some(REPLY_TIME)) {
            Woken::Told => return Ok(()),
            Woken::TimedOut => return Err(io::ErrorKind::TimedOut.into()),
            Woken::Ready => {}
        }
        receive(&socket, buffer)?;
        let mut ended = None;
        diag::for_each_reply(buffer, sequence, |reply| match reply {
            Reply::Socket(payload) => {
                if let Some(event) = diag::parse_socket(payload) {
                    each(event);
                }
            }
            Reply::Done(0) => ended = Some(Ok(())),
            Reply::Done(errno) | Reply::Error(errno) => ended = Some(Err(io::Error::from_raw_os_error(errno))),
            Reply::Interrupted | Reply::Malformed => {}
        });
        if let Some(result) = ended {
            return result;
        }
    }
}
