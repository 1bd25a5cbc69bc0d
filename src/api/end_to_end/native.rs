//! By the crate's own face.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use super::{Change, Kernel, PATIENCE, Reports, wait_until};
use crate::api::native::{Read, Watch};
use crate::event::Kind;
use crate::sys::wake;

fn open(kernel: &Kernel) -> (Watch, Reports) {
    (Watch::builder().states().btf(kernel.path()).open().unwrap(), kernel.reports())
}

fn closes(numbers: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
    numbers.into_iter().map(|number| Change::close(number).record()).collect()
}

#[test]
fn events_are_iterated_in_their_order_until_a_wake() {
    let kernel = Kernel::new();
    let (watch, mut reports) = open(&kernel);
    reports.write(&closes(1..=200));
    let numbers: Vec<_> = watch.events().take(200).map(|event| event.unwrap().cookie).collect();
    assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
    thread::scope(|scope| {
        let reader = scope.spawn(|| watch.events().next().is_none());
        thread::sleep(Duration::from_millis(20));
        watch.wake();
        assert!(reader.join().unwrap());
    });
}

#[test]
fn a_read_takes_no_more_than_it_is_told_and_waits_no_longer() {
    let kernel = Kernel::new();
    let filter = "dport 443".parse().unwrap();
    let watch = Watch::builder().closes().filter(filter).btf(kernel.path()).queue_slots(2).open().unwrap();
    let mut reports = kernel.reports();
    let elsewhere = Change { remote_port: 80, ..Change::close(9) };
    reports.write(&[closes(1..=3), vec![elsewhere.record()]].concat());
    wait_until("all are queued or shed", || {
        let statistics = watch.statistics().unwrap();
        statistics.queued as u64 + statistics.counters.shed.closes == 3
    });
    let statistics = watch.statistics().unwrap();
    assert_eq!(statistics.counters.closes, 3);
    assert_eq!((statistics.queued, statistics.queue_slots, statistics.counters.shed.closes), (2, 2, 1));

    let mut events = Vec::new();
    assert_eq!(watch.read(&mut events, 1, Some(PATIENCE)).unwrap(), Read::Events(1));
    assert_eq!(watch.read(&mut events, 10, Some(PATIENCE)).unwrap(), Read::Events(1));
    assert_eq!(watch.read(&mut events, 10, Some(Duration::ZERO)).unwrap(), Read::TimedOut);
    assert_eq!(watch.read(&mut events, 10, Some(Duration::from_millis(5))).unwrap(), Read::TimedOut);
    let found: Vec<_> = events.iter().map(|event| (event.cookie, event.kind, event.remote().port())).collect();
    assert_eq!(found, [(2, Kind::Close, 443), (3, Kind::Close, 443)]);
    assert_eq!(watch.statistics().unwrap().delivered, 2);
}

#[test]
fn the_descriptor_is_readable_once_there_is_an_event() {
    let kernel = Kernel::new();
    let (watch, mut reports) = open(&kernel);
    let is_readable = |time| {
        let mut fds = [libc::pollfd { fd: watch.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        wake::poll(&mut fds, Some(time)) == 1
    };
    assert!(!is_readable(Duration::ZERO));
    reports.write(&closes([1]));
    assert!(is_readable(PATIENCE));
}

#[test]
fn a_probe_that_fails_ends_the_events_with_an_error() {
    let kernel = Kernel::new();
    let (watch, mut reports) = open(&kernel);
    reports.write(&closes(1..=2));
    drop(reports);
    let mut events = watch.events();
    assert_eq!(events.next().unwrap().unwrap().cookie, 1);
    assert_eq!(events.next().unwrap().unwrap().cookie, 2);
    assert_eq!(events.next().unwrap().unwrap_err().errno(), libc::EIO);
}

#[test]
fn dropping_a_watch_ends_its_probe() {
    let kernel = Kernel::new();
    let (watch, mut reports) = open(&kernel);
    drop(watch);
    assert_eq!(reports.try_write(&closes([1])).unwrap_err().kind(), ErrorKind::BrokenPipe);
}
