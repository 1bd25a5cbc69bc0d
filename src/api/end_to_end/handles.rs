//! By the functions of `tcpevent.h`.

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::ptr;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::kernel::ACCEPT;
use super::{Change, Kernel, LetGo, PATIENCE, Reports, wait_until};
use crate::api::handles::functions::{
    tcpevent_close, tcpevent_fd, tcpevent_get_statistics, tcpevent_last_error, tcpevent_open, tcpevent_read,
    tcpevent_wake,
};
use crate::api::handles::types::{
    TCPEVENT_EVENTS_STATES, TCPEVENT_KIND_CLOSE, TCPEVENT_OWNER_BY_ACCEPT, TCPEVENT_OWNER_BY_INODE, tcpevent_event,
    tcpevent_options, tcpevent_statistics, tcpevent_watch,
};
use crate::event::COMM_LEN;

const FOR_EVER: c_int = -1;

/// A handle, closed when dropped.
struct Handle(*mut tcpevent_watch);

// SAFETY: a number, which the library looks up.
unsafe impl Send for Handle {}
// SAFETY: likewise.
unsafe impl Sync for Handle {}

/// What a handle is to watch.
#[derive(Clone, Copy)]
struct Wanted {
    queue_slots: u32,
    filter: &'static str,
}

const ALL: Wanted = Wanted { queue_slots: 1024, filter: "" };

impl Handle {
    fn open(kernel: &Kernel, wanted: Wanted) -> (Self, Reports) {
        (Self::try_open(kernel.path(), wanted).unwrap(), kernel.reports())
    }

    fn try_open(path: &Path, wanted: Wanted) -> Result<Self, c_int> {
        let (filter, path) = (CString::new(wanted.filter).unwrap(), CString::new(path.as_os_str().as_bytes()).unwrap());
        let options = tcpevent_options {
            size: size_of::<tcpevent_options>(),
            events: TCPEVENT_EVENTS_STATES,
            queue_slots: wanted.queue_slots,
            filter: filter.as_ptr(),
            btf_path: path.as_ptr(),
            // SAFETY: numbers, and pointers that may be NULL.
            ..unsafe { mem::zeroed() }
        };
        let mut handle = ptr::null_mut();
        // SAFETY: options of their size, whose texts live, and a place for the handle.
        match unsafe { tcpevent_open(&raw const options, &raw mut handle) } {
            0 => Ok(Self(handle)),
            error => Err(error),
        }
    }

    /// As many events as there are, at most `count`, or a negative errno.
    fn read(&self, count: usize, timeout_ms: c_int) -> Result<Vec<tcpevent_event>, c_int> {
        // SAFETY: plain numbers.
        let mut events = vec![unsafe { mem::zeroed::<tcpevent_event>() }; count];
        // SAFETY: room for so many events of that size.
        let result =
            unsafe { tcpevent_read(self.0, events.as_mut_ptr(), size_of::<tcpevent_event>(), count, timeout_ms) };
        events.truncate(usize::try_from(result).map_err(|_| result)?);
        Ok(events)
    }

    /// The numbers of all events that are read until one is this.
    fn numbers_until(&self, last: u64) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.last() != Some(&last) {
            let read = self.read(100, c_int::try_from(PATIENCE.as_millis()).unwrap()).unwrap();
            assert!(!read.is_empty(), "{last} does not come; {numbers:?}");
            numbers.extend(read.iter().map(|event| event.cookie));
        }
        numbers
    }

    fn one(&self) -> tcpevent_event {
        self.read(1, c_int::try_from(PATIENCE.as_millis()).unwrap()).unwrap()[0]
    }

    fn is_readable(&self, timeout_ms: c_int) -> bool {
        let mut fd = libc::pollfd { fd: tcpevent_fd(self.0), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor.
        unsafe { libc::poll(&raw mut fd, 1, timeout_ms) == 1 }
    }

    fn statistics(&self) -> tcpevent_statistics {
        let mut statistics = tcpevent_statistics { size: size_of::<tcpevent_statistics>(), ..Default::default() };
        // SAFETY: room for its size.
        assert_eq!(unsafe { tcpevent_get_statistics(self.0, &raw mut statistics) }, 0);
        statistics
    }

    /// Events that have found their place, or none. One is counted as seen a moment before.
    fn kept_or_shed(&self) -> u64 {
        let statistics = self.statistics();
        statistics.queued + statistics.shed_states + statistics.shed_closes
    }

    fn close(&self) -> c_int {
        tcpevent_close(self.0)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

fn last_error() -> String {
    // SAFETY: a text that is valid until the next error of this thread.
    unsafe { CStr::from_ptr(tcpevent_last_error()) }.to_str().unwrap().to_owned()
}

fn closes(numbers: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
    numbers.into_iter().map(|number| Change::close(number).record()).collect()
}

fn comm(name: &str) -> [c_char; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    for (to, from) in comm.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    comm
}

#[test]
fn a_record_arrives_as_the_event_that_it_stands_for() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    reports.write(&[Change { pid: 4711, uid: 1000, inode: 12, ..Change::close(5) }.record()]);
    let event = handle.one();
    assert_eq!((event.kind, event.old_state, event.new_state), (TCPEVENT_KIND_CLOSE, 9, 7));
    assert_eq!((event.cookie, event.inode, event.pid, event.uid), (5, 12, 4711, 1000));
    assert_eq!((event.local_port, event.remote_port), (40_000, 443));
    assert_eq!((&event.local_addr[..4], &event.remote_addr[..4]), (&[127, 0, 0, 1][..], &[192, 0, 2, 1][..]));
    assert_eq!(event.comm, comm("synthetic"));
}

#[test]
fn events_keep_the_order_of_their_records_in_a_flood() {
    const EVENTS: u64 = 20_000;
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, Wanted { queue_slots: 1 << 15, ..ALL });
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=EVENTS {
                let change = if number % 3 == 0 { Change::close(number) } else { Change::established(number) };
                reports.write(&[change.record()]);
            }
        });
        assert_eq!(handle.numbers_until(EVENTS), (1..=EVENTS).collect::<Vec<_>>());
    });
    let statistics = handle.statistics();
    assert_eq!((statistics.closes, statistics.states), (EVENTS / 3, EVENTS - EVENTS / 3));
    assert_eq!((statistics.delivered, statistics.queued), (EVENTS, 0));
}

#[test]
fn a_full_queue_sheds_its_oldest_and_counts_them() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, Wanted { queue_slots: 4, ..ALL });
    let mut records = closes(1..=9);
    records.insert(2, Change::established(100).record());
    reports.write(&records);
    wait_until("all are queued or shed", || handle.kept_or_shed() == 10);
    let seen = handle.statistics();
    assert_eq!(seen.closes, 9);
    assert_eq!((seen.states, seen.shed_states, seen.shed_closes), (1, 1, 5));
    assert_eq!((seen.queued, seen.delivered, seen.queue_slots), (4, 0, 4));
    assert_eq!(handle.numbers_until(9), [6, 7, 8, 9]);
    let read = handle.statistics();
    assert_eq!((read.queued, read.delivered), (0, 4));
}

#[test]
fn what_does_not_fit_the_filter_is_not_seen() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, Wanted { filter: "dport 443 pid 4711", ..ALL });
    let from = |number, pid| Change { pid, ..Change::close(number) };
    let elsewhere = Change { remote_port: 80, ..from(3, 4711) };
    reports.write(&[from(1, 1), from(2, 4711), elsewhere, from(4, 4711)].map(|change| change.record()));
    assert_eq!(handle.numbers_until(4), [2, 4]);
    assert_eq!(handle.statistics().closes, 2);
}

#[test]
fn a_filter_for_failures_lets_nothing_else_pass() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, Wanted { filter: "failed", ..ALL });
    let given_up = Change { given_up: true, ..Change::failed(4, 0) };
    let refused = Change::failed(3, libc::ECONNREFUSED);
    reports.write(&[Change::close(1), Change::established(2), refused, given_up].map(|change| change.record()));
    let events = [handle.one(), handle.one()];
    assert_eq!(events.map(|event| (event.cookie, event.error)), [(3, libc::ECONNREFUSED), (4, 0)]);
    assert_ne!(events[0].flags, events[1].flags);
    assert_eq!((handle.statistics().closes, handle.statistics().states), (2, 0));
}

/// The process that holds the socket's inode: this one, of whom nothing was seen.
#[test]
fn an_owner_that_is_found_by_inode_counts_for_the_filter() {
    let own: &'static str = Box::leak(format!("pid {}", std::process::id()).into_boxed_str());
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let inode = link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, Wanted { filter: own, ..ALL });
    let unowned = |number, inode| Change { origin: 0, pid: 0, inode, ..Change::close(number) };
    reports.write(&[unowned(1, u64::MAX), unowned(2, inode)].map(|change| change.record()));
    let event = handle.one();
    assert_eq!((event.cookie, event.pid, event.owner_by), (2, std::process::id(), TCPEVENT_OWNER_BY_INODE));
    let statistics = handle.statistics();
    assert_eq!((statistics.closes, statistics.unowned), (1, 1));
}

#[test]
fn who_lets_go_of_a_socket_owns_its_close() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, Wanted { filter: "pid 8", ..ALL });
    let held = |number| Change { held: true, origin: ACCEPT, pid: 4711, ..Change::close(number) };
    let let_go = |of, pid| LetGo { of, pid }.record();
    // Of three held ones the second goes to another process than is wanted, and the one behind does not wait for any.
    let free = Change { pid: 8, ..Change::close(9) };
    let closes = [held(1), held(2), held(3), free].map(|close| close.record());
    // Together: they wait for 10 ms only.
    reports.write(&[closes.as_slice(), &[let_go(3, 8), let_go(2, 9), let_go(1, 8)]].concat());
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let event = handle.one();
        if event.cookie != 9 {
            assert_eq!((event.owner_by, event.uid, event.comm), (TCPEVENT_OWNER_BY_INODE, 7, comm("let-go")));
        }
        numbers.push(event.cookie);
    }
    assert_eq!(numbers, [9, 3, 1]);
    assert_eq!(handle.statistics().closes, 3);
}

#[test]
fn a_held_close_that_nobody_lets_go_of_goes_to_its_accepter() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    let held = Change { held: true, origin: ACCEPT, pid: std::process::id(), ..Change::close(1) };
    reports.write(&[held.record(), Change::close(2).record()]);
    assert_eq!(handle.one().cookie, 2);
    let event = handle.one();
    assert_eq!((event.cookie, event.pid, event.owner_by), (1, std::process::id(), TCPEVENT_OWNER_BY_ACCEPT));
}

#[test]
fn the_descriptor_is_readable_while_there_are_events() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    for _ in 0..3 {
        assert!(!handle.is_readable(0));
        reports.write(&closes(1..=2));
        wait_until("both are queued", || handle.statistics().queued == 2);
        assert!(handle.is_readable(c_int::try_from(PATIENCE.as_millis()).unwrap()));
        assert_eq!(handle.read(1, 0).unwrap().len(), 1);
        assert!(handle.is_readable(0));
        assert_eq!(handle.read(2, 0).unwrap().len(), 1);
        assert!(handle.read(1, 0).unwrap().is_empty());
    }
}

#[test]
fn a_wake_ends_one_read() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    thread::scope(|scope| {
        let reader = scope.spawn(|| handle.read(1, FOR_EVER).map(|events| events.len()));
        thread::sleep(Duration::from_millis(20));
        assert_eq!(tcpevent_wake(handle.0), 0);
        assert_eq!(reader.join().unwrap(), Err(-libc::EINTR));
    });
    // Before the events, whose turn is next.
    reports.write(&closes([1]));
    wait_until("it is queued", || handle.statistics().queued == 1);
    assert_eq!(tcpevent_wake(handle.0), 0);
    assert_eq!(handle.read(1, FOR_EVER).map(|events| events.len()), Err(-libc::EINTR));
    assert_eq!(handle.one().cookie, 1);
}

#[test]
fn a_close_ends_the_reads_that_wait_and_the_probe() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| handle.read(1, FOR_EVER).map(|_| ()))).collect();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(handle.close(), 0);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Err(-libc::EBADF));
        }
    });
    assert_eq!(handle.close(), -libc::EBADF);
    assert_eq!(tcpevent_wake(handle.0), -libc::EBADF);
    assert_eq!(tcpevent_fd(handle.0), -libc::EBADF);
    assert!(last_error().starts_with("handle is not open"), "{}", last_error());
    let error = reports.try_write(&closes([1])).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_probe_that_fails_is_an_error_once_all_events_are_read() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    // One of them waits for its owner in that moment.
    let held = Change { held: true, origin: ACCEPT, pid: std::process::id(), ..Change::close(3) };
    reports.write(&[Change::close(1).record(), Change::close(2).record(), held.record()]);
    drop(reports);
    assert_eq!(handle.numbers_until(3), [1, 2, 3]);
    for _ in 0..2 {
        assert_eq!(handle.read(1, FOR_EVER).map(|_| ()), Err(-libc::EIO));
        assert!(last_error().starts_with("the probe has failed"), "{}", last_error());
        assert!(handle.is_readable(0));
    }
    assert_eq!(handle.close(), 0);
}

#[test]
fn a_probe_that_fails_ends_all_reads_that_wait() {
    for _ in 0..100 {
        let kernel = Kernel::new();
        let (handle, reports) = Handle::open(&kernel, ALL);
        thread::scope(|scope| {
            let wait = || handle.read(1, c_int::try_from(PATIENCE.as_millis()).unwrap()).map(|events| events.len());
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(wait)).collect();
            thread::sleep(Duration::from_millis(1));
            drop(reports);
            for reader in readers {
                assert_eq!(reader.join().unwrap(), Err(-libc::EIO));
            }
        });
    }
}

#[test]
fn a_probe_that_cannot_be_read_is_refused() {
    // The socket of a kernel that is gone.
    let path = Kernel::new().path().with_extension("gone");
    drop(UnixListener::bind(&path).unwrap());
    assert!(Handle::try_open(&path, ALL).is_err_and(|error| error < 0));
    std::fs::remove_file(&path).unwrap();
    assert!(last_error().contains("the synthetic buffer cannot be read: "), "{}", last_error());
}

#[test]
fn what_is_no_record_is_counted() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    let unknown_origin = Change { origin: 9, ..Change::close(3) };
    reports.write(&[vec![], vec![0; 10], unknown_origin.record(), Change::close(4).record()]);
    assert_eq!(handle.numbers_until(4), [4]);
    assert_eq!(handle.statistics().undecoded, 3);
}

#[test]
fn a_forked_child_has_no_handles_and_its_parent_keeps_them() {
    let kernel = Kernel::new();
    let (handle, mut reports) = Handle::open(&kernel, ALL);
    // SAFETY: the child calls the library, which allows for that, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let results = [
            handle.read(1, FOR_EVER).map_or_else(|error| error, |_| 0),
            tcpevent_wake(handle.0),
            tcpevent_fd(handle.0),
            tcpevent_close(handle.0),
        ];
        let is_right = results.iter().all(|result| *result == -libc::EBADF);
        // SAFETY: it does not return.
        unsafe { libc::_exit((!is_right).into()) };
    }
    let mut status = 0;
    // SAFETY: a number to fill.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    reports.write(&closes([1]));
    assert_eq!(handle.one().cookie, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in whatever parts: what fits and still has a place is read, and the rest is counted.
    #[test]
    fn what_fits_is_read_or_counted(
        slots in 1u32..8,
        changes in proptest::collection::vec((any::<bool>(), 0u32..2, 1usize..5), 0..30),
    ) {
        let kernel = Kernel::new();
        let (handle, mut reports) = Handle::open(&kernel, Wanted { queue_slots: slots, filter: "uid 1" });
        let mut wanted = Vec::new();
        let mut records = Vec::new();
        for (number, (is_close, uid, together)) in (1..).zip(changes) {
            let change = if is_close { Change::close(number) } else { Change::established(number) };
            records.push(Change { uid, ..change }.record());
            if uid == 1 {
                wanted.push(number);
            }
            if records.len() >= together {
                reports.write(&mem::take(&mut records));
            }
        }
        wanted.push(u64::MAX);
        records.push(Change { uid: 1, ..Change::close(u64::MAX) }.record());
        reports.write(&records);
        wait_until("all are queued or shed", || handle.kept_or_shed() == wanted.len() as u64);

        let kept = wanted.len().min(slots as usize);
        prop_assert_eq!(handle.numbers_until(u64::MAX), &wanted[wanted.len() - kept..]);
        let statistics = handle.statistics();
        prop_assert_eq!((statistics.queued, statistics.delivered), (0, kept as u64));
        prop_assert_eq!(statistics.shed_states + statistics.shed_closes, (wanted.len() - kept) as u64);
    }
}
