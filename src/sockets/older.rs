//! Who holds which endpoint, listed once, for closes of connections older than the probe. Another network namespace may
//! have a connection with the same addresses: before naming a holder, it asks the kernel whether the event can be of
//! the listed one.
//!
//! On a large host the listing takes seconds. It has a thread of its own, for which a start waits for a moment only.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netlink_sys::Socket;

use super::diag::{self, Families, Reply};
use super::holders::{self, HolderIterator, IsOver, Owners};
use super::socket::{BUFFER_LEN, REPLY_TIME, open_socket, receive, retry};
use crate::error::Error;
use crate::event::endpoint::Endpoint;
use crate::event::{Begin, COMM_LEN, Event, Kind, OwnerBy, state};
use crate::sys::log::{self, Level};
use crate::sys::own_fd::Guarded;
use crate::sys::threads::spawn;
use crate::sys::wake::{Sleeper, Waker, Woken};

/// At most so many endpoints are kept.
const MOST: usize = 1 << 17;

/// A start waits no longer than this. Most hosts are listed within some milliseconds.
const START_WAIT: Duration = Duration::from_millis(500);

/// The holders of the endpoints that were open at one moment.
pub struct OlderEndpoints<'run> {
    sleeper: &'run Sleeper<'run>,
    /// The listing that is under way.
    listing: Option<Listing>,
    by_endpoint: Endpoints,
    buffer: Vec<u8>,
}

type Endpoints = HashMap<Endpoint, Listed>;

/// What the thread has listed, once it has. (A channel for one value is 13 KB of code.)
#[derive(Default)]
struct Outcome {
    listed: Mutex<Option<io::Result<Endpoints>>>,
    has_come: Condvar,
}

impl Outcome {
    fn give(&self, listed: io::Result<Endpoints>) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some(listed);
        self.has_come.notify_one();
    }

    /// `None` where it has not come within that time, and once it was taken.
    fn take_within(&self, time: Duration) -> Option<io::Result<Endpoints>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.has_come.wait_timeout_while(listed, time, |listed| listed.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }

    fn take(&self) -> Option<io::Result<Endpoints>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A thread that lists. Dropping it ends the thread, and waits for that.
struct Listing {
    waker: Arc<Waker>,
    is_over: Arc<AtomicBool>,
    outcome: Arc<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Listing {
    fn start() -> Result<Self, Error> {
        let (waker, is_over) = (Arc::new(Waker::new()), Arc::new(AtomicBool::new(false)));
        let outcome = Arc::new(Outcome::default());
        let thread = {
            let (waker, is_over, outcome) = (Arc::clone(&waker), Arc::clone(&is_over), Arc::clone(&outcome));
            spawn("tcpevent-older", move || {
                outcome.give(waker.sleeper().and_then(|sleeper| list(&sleeper, &|| is_over.load(Ordering::SeqCst))));
            })?
        };
        Ok(Self { waker, is_over, outcome, thread: Some(thread) })
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Where it cannot be woken, it ends with the next reply, or without one.
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // One that has panicked is over, too.
            let _ = thread.join();
        }
    }
}

/// An endpoint that was open, and who held it.
#[derive(Clone, Copy)]
struct Listed {
    pid: u32,
    uid: u32,
    comm: [u8; COMM_LEN],
    cookie: u64,
    family: u16,
    /// The last known one.
    state: u8,
}

impl<'run> OlderEndpoints<'run> {
    /// Lists the open endpoints. If that fails, it knows of none.
    pub fn list(sleeper: &'run Sleeper<'run>) -> Self {
        let mut this = Self { sleeper, listing: None, by_endpoint: HashMap::new(), buffer: Vec::new() };
        match Listing::start() {
            Ok(listing) => {
                let listed = listing.outcome.take_within(START_WAIT);
                this.listing = Some(listing);
                if let Some(listed) = listed {
                    this.take(listed);
                } else {
                    log::line(
                        Level::Info,
                        "who holds the connections that are older than the probe is still being listed",
                    );
                }
            }
            Err(error) => say_unlisted(&error),
        }
        this
    }

    /// The listing has come to its end.
    fn take(&mut self, listed: io::Result<Endpoints>) {
        self.listing = None;
        match listed {
            Ok(endpoints) => self.by_endpoint = endpoints,
            Err(error) => say_unlisted(&error),
        }
    }

    /// Adds the holder if the event has no owner. Forgets an endpoint that has closed. `is_own`: the event is known to
    /// be of this network namespace.
    pub fn complete(&mut self, event: &mut Event, is_own: bool) {
        // A connection that began since is another one with the same addresses.
        if event.begin != Begin::Older {
            return;
        }
        if let Some(listed) = self.listing.as_ref().and_then(|listing| listing.outcome.take()) {
            self.take(listed);
        }
        let endpoint = Endpoint::of(event);
        let Some(listed) = self.by_endpoint.get(&endpoint).copied() else {
            return;
        };
        if !is_own && !self.can_be(event, &listed) {
            return;
        }
        if event.new_state == state::CLOSE {
            self.by_endpoint.remove(&endpoint);
        } else {
            self.by_endpoint.insert(endpoint, Listed { state: event.new_state, ..listed });
        }
        if event.owner_by == OwnerBy::Unknown {
            let Listed { pid, uid, comm, .. } = listed;
            (event.pid, event.uid, event.comm, event.owner_by) = (pid, uid, comm, OwnerBy::Inode);
        }
    }

    /// Whether an event can be of the listed endpoint: whether that one has made the same change.
    fn can_be(&mut self, event: &Event, listed: &Listed) -> bool {
        // Either all changes of state arrive, or only closes.
        if event.kind == Kind::State && listed.state != event.old_state {
            return false;
        }
        match self.state_now(event, listed) {
            Ok(None) => true,
            Ok(Some(now)) => event.new_state != state::CLOSE && now != event.old_state,
            Err(error) => {
                log::line(Level::Debug, format_args!("sock_diag failed for one socket: {error}"));
                false
            }
        }
    }

    /// `None` once it has closed.
    fn state_now(&mut self, event: &Event, listed: &Listed) -> io::Result<Option<u8>> {
        const SEQUENCE: u32 = 3;

        let mut again = Event { cookie: listed.cookie, family: listed.family, ..event.clone() };
        if i32::from(listed.family) == libc::AF_INET6 && i32::from(event.family) == libc::AF_INET {
            (again.local_addr, again.remote_addr) = (mapped(event.local_addr), mapped(event.remote_addr));
        }
        let request = diag::request_again(&again, SEQUENCE);
        let mut found = None;
        let take = |event: Event| found = Some(event.new_state);
        match ask(&open_socket()?, self.sleeper, (&request, SEQUENCE, Answer::Socket), &mut self.buffer, take) {
            Ok(()) => Ok(found),
            // It is gone, or replaced by another (sock_diag_check_cookie).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn say_unlisted(error: &dyn Display) {
    log::line(Level::Info, format_args!("connections older than the probe have no owner yet: {error}"));
}

/// The body of the thread.
fn list(sleeper: &Sleeper<'_>, is_over: IsOver<'_>) -> io::Result<Endpoints> {
    let owners = Owners::find(&HolderIterator::new(), is_over)?;
    let (mut endpoints, mut holders) = (Endpoints::new(), HashMap::new());
    let mut buffer = Vec::with_capacity(BUFFER_LEN);
    let mut outcome = Ok(());
    let mut enough_memory = true;
    // The kernel may lack one family.
    for (families, sequence) in [(Families::Inet, 1), (Families::Inet6, 2)] {
        let request = diag::dump_request(families, false, sequence);
        let request = (request.as_slice(), sequence, Answer::Listing);
        let listed = ask(&open_socket()?, sleeper, request, &mut buffer, |event| {
            enough_memory &= holders.try_reserve(1).is_ok() && endpoints.try_reserve(1).is_ok();
            if event.old_state == state::LISTEN || endpoints.len() >= MOST || !enough_memory {
                return;
            }
            let holder = owners.holder(event.inode).and_then(|pid| {
                let identity = *holders.entry(pid).or_insert_with(|| holders::read_identity(pid));
                identity.map(|(comm, uid)| (pid, comm, uid))
            });
            if let Some((pid, comm, uid)) = holder {
                let Event { cookie, family, new_state, .. } = event;
                let listed = Listed { pid, uid, comm, cookie, family, state: new_state };
                endpoints.insert(Endpoint::of(&event), listed);
            }
        });
        outcome = if families == Families::Inet { listed } else { outcome.or(listed) };
    }
    if !enough_memory {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    outcome.map(|()| endpoints)
}

/// An IPv4 address in its IPv4-mapped form, as an IPv6 socket has it.
fn mapped(address: [u8; 16]) -> [u8; 16] {
    let mut mapped = [0; 16];
    mapped[10..12].fill(0xff);
    mapped[12..].copy_from_slice(&address[..4]);
    mapped
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Listing,
    Socket,
}

/// Sends a request, and reads the answer.
fn ask(
    socket: &Guarded<Socket>,
    sleeper: &Sleeper<'_>,
    (request, sequence, answer): (&[u8], u32, Answer),
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(Event),
) -> io::Result<()> {
    buffer.clear();
    buffer.reserve(BUFFER_LEN);
    retry(|| socket.send(request, 0))?;
    loop {
        match sleeper.wait(Some(socket.as_raw_fd()), Some(REPLY_TIME)) {
            Woken::Told => return Err(io::ErrorKind::Interrupted.into()),
            Woken::TimedOut => return Err(io::ErrorKind::TimedOut.into()),
            Woken::Ready => {}
        }
        receive(socket, buffer)?;
        let mut ended = None;
        diag::for_each_reply(buffer, sequence, |reply| match reply {
            Reply::Socket(payload) => {
                if let Some(event) = diag::parse_socket(payload) {
                    each(event);
                }
                if answer == Answer::Socket {
                    ended = Some(Ok(()));
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    /// A change of state that a plain tracepoint reports of the endpoint with these addresses.
    fn change(local: SocketAddr, remote: SocketAddr, old_state: u8, new_state: u8) -> Event {
        let kind = if new_state == state::CLOSE { Kind::Close } else { Kind::State };
        let mut event = Event { begin: Begin::Older, old_state, new_state, ..Event::of(kind) };
        (event.local_port, event.remote_port) = (local.port(), remote.port());
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&address.octets());
                bytes
            }
            IpAddr::V6(address) => address.octets(),
        };
        (event.local_addr, event.remote_addr) = (address(local.ip()), address(remote.ip()));
        event.family = if local.is_ipv4() { 2 } else { 10 };
        event
    }

    #[test]
    fn a_change_that_the_listed_endpoint_has_not_made_is_anothers() {
        let waker = Waker::new();
        let sleeper = waker.sleeper().unwrap();
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let mut older = OlderEndpoints::list(&sleeper);
            let mut pid_told = |old_state, new_state, is_own| {
                let mut event = change(local, remote, old_state, new_state);
                older.complete(&mut event, is_own);
                event.pid
            };
            let own_pid = std::process::id();
            assert_eq!(pid_told(state::ESTABLISHED, state::CLOSE, false), 0);
            assert_eq!(pid_told(state::ESTABLISHED, state::CLOSE_WAIT, false), 0);
            drop(server);
            // The FIN has arrived once this read returns.
            assert_eq!(std::io::Read::read(&mut &client, &mut [0]).unwrap(), 0);
            assert_eq!(pid_told(state::ESTABLISHED, state::CLOSE_WAIT, false), own_pid);
            assert_eq!(pid_told(state::ESTABLISHED, state::CLOSE_WAIT, false), 0);
            socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(client);
            assert_eq!(pid_told(state::CLOSE_WAIT, state::CLOSE, false), own_pid);
            assert_eq!(pid_told(state::CLOSE_WAIT, state::CLOSE, true), 0);
        }
    }

    #[test]
    fn an_end_of_this_network_namespace_is_the_listed_endpoints() {
        let waker = Waker::new();
        let sleeper = waker.sleeper().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut older = OlderEndpoints::list(&sleeper);
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let mut event = change(local, remote, state::ESTABLISHED, state::CLOSE);
        event.begin = Begin::Seen;
        older.complete(&mut event, true);
        assert_eq!(event.pid, 0);
        event.begin = Begin::Older;
        older.complete(&mut event, true);
        assert_eq!((event.pid, event.owner_by), (std::process::id(), OwnerBy::Inode));
    }
}
