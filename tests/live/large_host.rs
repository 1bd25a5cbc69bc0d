//! A host whose processes hold very many sockets: to look who holds which takes seconds. Nobody waits for that.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::api_watcher::Watcher;
use crate::consumer::{slowness, turn};

/// In the emulator it takes long to make them.
fn held() -> usize {
    300_000 / slowness() as usize
}

/// Descriptors of a socket, all of which are in /proc: in tables of descriptors that threads have to themselves, as the number in
/// one is limited.
struct ManySockets {
    /// Ends the threads once it is dropped.
    _life: Vec<Sender<()>>,
}

impl ManySockets {
    fn open() -> Self {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a structure to fill.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        let in_each = usize::try_from(limit.rlim_cur).unwrap() - 500;
        let mut life = Vec::new();
        for first in (0..held()).step_by(in_each) {
            let (ours, theirs) = channel();
            let (ready, is_ready) = channel();
            thread::spawn(move || {
                // SAFETY: it takes numbers only.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
                let held = copies(in_each.min(held() - first));
                ready.send(()).unwrap();
                let _ = theirs.recv();
                drop(held);
            });
            is_ready.recv().unwrap();
            life.push(ours);
        }
        Self { _life: life }
    }
}

/// So many descriptors of a socket.
fn copies(count: usize) -> Vec<OwnedFd> {
    let socket = UnixDatagram::unbound().unwrap();
    let copy = || {
        // SAFETY: an open descriptor, and a new one that has no other owner.
        unsafe {
            let fd = libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        }
    };
    (0..count).map(|_| copy()).collect()
}

/// How long a command takes.
fn time(watcher: &mut Watcher, command: &str, answer: &str) -> Duration {
    let began = Instant::now();
    watcher.ask(command, answer);
    began.elapsed()
}

/// Waits until the process has a folder below this one open: it looks through it.
fn wait_for_a_look(watcher: &Watcher, at: &str) {
    let until = Instant::now() + Duration::from_secs(10) * slowness();
    let is_in = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", watcher.pid())).unwrap().flatten();
        fds.filter_map(|fd| fd.path().read_link().ok()).any(|target| target.starts_with(at))
    };
    while !is_in() {
        assert!(Instant::now() < until, "{at} was not looked through");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_sweep_that_looks_through_proc_ends_with_its_handle() {
    let _turn = turn();
    let _held = ManySockets::open();
    for _ in 0..3 {
        let mut watcher = Watcher::open("events=4 interval=1000");
        wait_for_a_look(&watcher, &format!("/proc/{}/task", std::process::id()));
        let took = time(&mut watcher, "close 0", "closed");
        assert!(took < Duration::from_millis(200) * slowness(), "{took:?}");
    }
}

#[test]
fn a_plain_tracepoint_is_there_before_all_holders_are_listed() {
    let _turn = turn();
    let _held = ManySockets::open();
    let mut watcher = Watcher::idle();
    let took = time(&mut watcher, "open 0 queue=65536 events=2 probe=3", "opened");
    assert!(took < Duration::from_secs(1) * slowness(), "open: {took:?}");
    let took = time(&mut watcher, "close 0", "closed");
    // The kernel takes its time for each tracepoint that is let go of.
    assert!(took < Duration::from_secs(1) * slowness(), "close: {took:?}");
}
