//! tcpevent_read and its surroundings: the queue, the descriptor, waking, threads, several handles, fork.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crate::api_traffic::{cookie, cookies_of, refused};
use crate::api_watcher::{Event, Watcher};
use crate::consumer::{is_beyond_the_rung, lacks_cookies, patience, slowness, turn};
use crate::traffic::{Connection, V4, closed_port};

/// Filters for this process, so that the number of events is known.
fn own_closes() -> String {
    format!("events=2 filter=pid {}", process::id())
}

/// An endpoint that opens and closes at once: one close. Returns its cookie.
fn close_once() -> u64 {
    cookie(&refused(SocketAddr::from((Ipv4Addr::LOCALHOST, closed_port()))))
}

/// Waits for such statistics.
/// An event is counted as seen before it is in the queue: only what adds up is looked at.
fn wait_for_statistics(watcher: &mut Watcher, is_so: impl Fn(&HashMap<String, i64>) -> bool) -> HashMap<String, i64> {
    let until = Instant::now() + patience();
    loop {
        let statistics = watcher.statistics(0);
        if is_so(&statistics) && adds_up(&statistics) {
            return statistics;
        }
        assert!(Instant::now() < until, "the statistics stay {statistics:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether every event is in the queue, delivered, or shed.
fn adds_up(statistics: &HashMap<String, i64>) -> bool {
    let sum = |names: &[&str]| names.iter().map(|name| statistics[*name]).sum::<i64>();
    let found =
        sum(&["delivered", "queued", "shed_states", "shed_closes", "shed_snapshots", "shed_retries", "shed_unsent"]);
    found == sum(&["states", "closes", "snapshots", "retries", "unsent"])
}

/// That, and nothing is lost.
fn check_sums(statistics: &HashMap<String, i64>) {
    assert!(adds_up(statistics), "{statistics:?}");
    for lost in ["lost_records", "lost_owners", "skipped_runs", "undecoded"] {
        assert_eq!(statistics[lost], 0, "{lost} of {statistics:?}");
    }
}

// ---- The queue

#[test]
fn a_full_queue_drops_the_oldest_closes_and_counts_them() {
    const SLOTS: usize = 8;

    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }

    let _turn = turn();
    let mut watcher = Watcher::open(&format!("queue={SLOTS} {}", own_closes()));
    let cookies: Vec<_> = (0..30).map(|_| close_once()).collect();
    let statistics = wait_for_statistics(&mut watcher, |statistics| statistics["closes"] == 30);
    assert_eq!((statistics["queued"], statistics["shed_closes"], statistics["queue_slots"]), (8, 22, 8));
    check_sums(&statistics);

    let read = watcher.read(0, 100, 0);
    let got: Vec<_> = read.events.iter().map(|event| event.cookie).collect();
    assert_eq!(got, cookies[30 - SLOTS..]);
    assert_eq!(watcher.read(0, 100, 0).result, 0);
    let statistics = watcher.statistics(0);
    assert_eq!((statistics["delivered"], statistics["queued"]), (8, 0), "{statistics:?}");
    check_sums(&statistics);
}

#[test]
fn a_full_queue_refuses_snapshots_and_every_event_is_counted_once() {
    let _turn = turn();
    let open: Vec<_> = (0..20).map(|_| Connection::open(V4(), V4())).collect();
    // A single sweep.
    let options = format!("events=7 queue=8 interval=86400000 filter=pid {}", process::id());
    let mut watcher = Watcher::open(&options);
    let statistics = wait_for_statistics(&mut watcher, |statistics| statistics["sweeps"] == 1);
    assert!(statistics["snapshots"] >= 60, "{statistics:?}");
    assert_eq!(statistics["shed_snapshots"], statistics["snapshots"] - 8, "{statistics:?}");
    check_sums(&statistics);
    // Changes of state take their place: two of a listener, then two of a refused connect, the second of which is a
    // close.
    for _ in 0..5 {
        close_once();
    }
    let statistics = wait_for_statistics(&mut watcher, |statistics| statistics["closes"] == 5);
    assert_eq!((statistics["states"], statistics["queued"]), (15, 8), "{statistics:?}");
    // The snapshots were the oldest; of 20 changes, 8 are left.
    let shed = ["shed_snapshots", "shed_states", "shed_closes"].map(|name| statistics[name]);
    assert_eq!((shed[0], shed[1] + shed[2]), (statistics["snapshots"], 12), "{statistics:?}");
    check_sums(&statistics);
    let read = watcher.read(0, 8, 0);
    assert_eq!(read.result, 8);
    check_sums(&watcher.statistics(0));
    drop(open);
}

#[test]
fn a_read_gives_no_more_events_than_it_was_asked_for_and_in_order() {
    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    let cookies: Vec<_> = (0..10).map(|_| close_once()).collect();
    wait_for_statistics(&mut watcher, |statistics| statistics["queued"] == 10);
    let mut got = Vec::new();
    for count in [1, 3, 100] {
        let read = watcher.read(0, count, 0);
        assert!(read.events.len() <= count, "{} and not {count}", read.events.len());
        got.extend(read.events);
    }
    assert_eq!(got.iter().map(|event| event.cookie).collect::<Vec<_>>(), cookies);
    assert!(got.is_sorted_by_key(|event| event.monotonic_ns), "{got:#?}");
}

// ---- Waiting

#[test]
fn a_read_waits_no_shorter_than_its_timeout() {
    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    let late = Duration::from_millis(100) * slowness();
    for milliseconds in [0, 50, 51, 250] {
        let time = Duration::from_millis(milliseconds);
        let read = watcher.read(0, 10, milliseconds.try_into().unwrap());
        assert_eq!(read.result, 0);
        assert!((time..time + late).contains(&read.time), "{:?} and not {time:?}", read.time);
    }
    // Waits without a limit until an event comes.
    watcher.tell("read 0 10 -1");
    wait_until_it_waits(watcher.pid());
    let expected = close_once();
    let read = watcher.finish_read();
    assert_eq!(read.events.iter().map(|event| event.cookie).collect::<Vec<_>>(), [expected]);
}

#[test]
fn the_descriptor_is_readable_while_there_are_events() {
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    let poll = |watcher: &mut Watcher, milliseconds: u32| watcher.ask(&format!("poll 0 {milliseconds}"), "polled");
    assert_eq!(poll(&mut watcher, 0), "0 0");
    for _ in 0..3 {
        close_once();
    }
    let readable = format!("1 {}", libc::POLLIN);
    assert_eq!(poll(&mut watcher, 10_000), readable);
    wait_for_statistics(&mut watcher, |statistics| statistics["queued"] == 3);
    for left in [2, 1, 0] {
        // However often it is polled.
        assert_eq!(poll(&mut watcher, 0), readable);
        assert_eq!(poll(&mut watcher, 0), readable);
        assert_eq!(watcher.read(0, 1, 0).result, 1);
        assert_eq!(watcher.statistics(0)["queued"], left);
    }
    // It may be readable once too often, but not again.
    assert_eq!(watcher.read(0, 1, 0).result, 0);
    assert_eq!(poll(&mut watcher, 0), "0 0");
    // A waiting poll wakes up.
    watcher.tell("poll 0 10000");
    close_once();
    assert_eq!(watcher.answer("polled"), readable);
    assert_eq!(watcher.read(0, 10, 1000).result, 1);
}

// ---- Waking

const EINTR: i32 = -libc::EINTR;
const EBADF: i32 = -libc::EBADF;

/// Waits until the main thread of a process blocks in a system call other than read(2).
fn wait_until_it_waits(pid: u32) {
    let until = Instant::now() + patience();
    loop {
        let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        let call = text.split(' ').next().unwrap();
        if call.parse::<i64>().is_ok_and(|call| call != libc::SYS_read) {
            return;
        }
        assert!(Instant::now() < until, "it does not wait: {text}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn send(pid: u32, signal: i32) {
    // SAFETY: a signal to a child of this process that is not reaped yet.
    assert_eq!(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, 0);
}

#[test]
fn a_wake_ends_one_read_that_waits_or_else_the_next_one() {
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    watcher.tell("begin 0 10 -1");
    watcher.answer("begun");
    assert_eq!(watcher.ask("wake 0", "woken"), "0");
    assert_eq!(watcher.finish_read().result, EINTR);
    assert_eq!(watcher.read(0, 10, 0).result, 0);

    for _ in 0..3 {
        assert_eq!(watcher.ask("wake 0", "woken"), "0");
    }
    assert_eq!(watcher.ask("poll 0 0", "polled"), "1 1");
    for timeout in [-1, 10_000, 0] {
        let read = watcher.read(0, 10, timeout);
        assert_eq!(read.result, EINTR, "with {timeout} ms");
        assert!(read.time < Duration::from_secs(5), "{:?}", read.time);
    }
    assert_eq!(watcher.read(0, 10, 0).result, 0);
    assert_eq!(watcher.ask("poll 0 0", "polled"), "0 0");

    // Events are queued meanwhile.
    close_once();
    wait_for_statistics(&mut watcher, |statistics| statistics["queued"] == 1);
    assert_eq!(watcher.ask("wake 0", "woken"), "0");
    assert_eq!(watcher.read(0, 10, 0).result, EINTR);
    assert_eq!(watcher.read(0, 10, 0).result, 1);
}

#[test]
fn one_wake_ends_one_of_many_reads() {
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    for _ in 0..4 {
        watcher.tell("begin 0 10 500");
        watcher.answer("begun");
    }
    for _ in 0..2 {
        assert_eq!(watcher.ask("wake 0", "woken"), "0");
    }
    let mut results: Vec<_> = (0..4).map(|_| watcher.finish_read().result).collect();
    results.sort_unstable();
    assert_eq!(results, [EINTR, EINTR, 0, 0]);
}

#[test]
fn a_wake_in_a_signal_handler_ends_the_read_that_was_interrupted_and_no_other() {
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    watcher.ask("handler 0", "handling");
    for _ in 0..20 {
        watcher.tell("read 0 10 -1");
        wait_until_it_waits(watcher.pid());
        send(watcher.pid(), libc::SIGUSR1);
        assert_eq!(watcher.finish_read().result, EINTR);
        assert_eq!(watcher.read(0, 10, 0).result, 0);
    }
    // Between two reads, with no reader waiting.
    send(watcher.pid(), libc::SIGUSR1);
    assert_eq!(watcher.read(0, 10, -1).result, EINTR);
    assert_eq!(watcher.read(0, 10, 0).result, 0);
}

#[test]
fn any_signal_handler_ends_a_read_that_waits_and_a_stop_does_not() {
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    // The second one restarts system calls (SA_RESTART): as poll(2), the read ends all the same.
    for signal in [libc::SIGUSR2, libc::SIGHUP] {
        watcher.tell("read 0 10 -1");
        wait_until_it_waits(watcher.pid());
        send(watcher.pid(), signal);
        assert_eq!(watcher.finish_read().result, EINTR, "signal {signal}");
        assert_eq!(watcher.read(0, 10, 0).result, 0);
    }
    watcher.tell("read 0 10 300");
    wait_until_it_waits(watcher.pid());
    for signal in [libc::SIGSTOP, libc::SIGCONT] {
        send(watcher.pid(), signal);
        thread::sleep(Duration::from_millis(20));
    }
    let read = watcher.finish_read();
    assert_eq!(read.result, 0);
    assert!(read.time >= Duration::from_millis(300), "{:?}", read.time);
}

// ---- Threads and handles

#[test]
fn each_event_goes_to_one_of_many_readers() {
    const COUNT: usize = 2000;

    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }

    let _turn = turn();
    let count = COUNT / slowness() as usize;
    let mut watcher = Watcher::open(&own_closes());
    watcher.tell("follow 0 8");
    watcher.answer("following");
    let expected: BTreeSet<_> = (0..count).map(|_| close_once()).collect();
    let got: Vec<_> = (0..count).map(|_| watcher.next_event().cookie).collect();
    assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), expected);
    // The library counts queued events batch by batch.
    let expected = i64::try_from(count).unwrap();
    let statistics = wait_for_statistics(&mut watcher, |statistics| statistics["closes"] == expected);
    assert_eq!(statistics["delivered"], expected, "{statistics:?}");
    check_sums(&statistics);
    let shares = watcher.ask("threads", "threads");
    assert!(shares.split(' ').count() > 1, "one reader took all: {shares}");
    watcher.tell("close 0");
    let ends: Vec<_> = (0..9).map(|_| watcher.answer_any(&["closed", "ended"])).collect();
    assert_eq!(ends.iter().filter(|end| *end == &format!("ended {EBADF}")).count(), 8, "{ends:?}");
    assert!(ends.contains(&"closed 0".to_owned()), "{ends:?}");
}

#[test]
fn a_read_that_waits_ends_when_its_handle_is_closed() {
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    for _ in 0..3 {
        watcher.tell("begin 0 10 -1");
        watcher.answer("begun");
    }
    watcher.tell("close 0");
    let mut ends: Vec<_> = (0..4).map(|_| watcher.answer_any(&["closed", "read"])).collect();
    ends.sort_unstable();
    assert_eq!(ends[0], "closed 0");
    assert!(ends[1..].iter().all(|end| end.starts_with(&format!("read {EBADF} "))), "{ends:?}");
    for (command, word) in [("close 0", "closed"), ("wake 0", "woken")] {
        assert_eq!(watcher.ask(command, word), EBADF.to_string());
    }
    assert_eq!(watcher.ask("poll 0 0", "polled"), format!("{EBADF} 0"));
    assert_eq!(watcher.read(0, 1, -1).result, EBADF);
    assert_eq!(watcher.statistics(0)["result"], i64::from(EBADF));
}

#[test]
fn handles_have_filters_queues_and_ends_of_their_own() {
    let _turn = turn();
    let listeners = [V4(), V4()].map(|at| TcpListener::bind(at).unwrap());
    let ports = [0, 1].map(|number| listeners[number].local_addr().unwrap().port());
    let mut watcher = Watcher::idle();
    for (handle, port) in (0..).zip(ports) {
        watcher.open_handle(handle, &format!("events=2 filter=dport {port}"));
    }
    watcher.open_handle(2, "events=3");
    let clients = |listener: &TcpListener| {
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let cookies = [cookie(&client), cookie(&server)];
        crate::traffic::set_linger_0(&client);
        drop(client);
        drop(server);
        cookies
    };
    let first = [0, 1].map(|number| clients(&listeners[number]));
    for (handle, [client, _]) in (0..).zip(first) {
        let events = watcher.events_until(handle, "its client", |events| !events.is_empty());
        assert_eq!(events.iter().map(|event| event.cookie).collect::<Vec<_>>(), [client], "handle {handle}");
    }
    let _ = watcher.lives(2, [first[0][0], first[1][0]]);

    watcher.close_handle(0);
    assert_eq!(watcher.read(0, 1, 0).result, EBADF);
    let second = [0, 1].map(|number| clients(&listeners[number]));
    let events = watcher.events_until(1, "its client", |events| !events.is_empty());
    assert_eq!(events.iter().map(|event| event.cookie).collect::<Vec<_>>(), [second[1][0]]);
    // A handle opened now has seen none of that.
    watcher.open_handle(0, "events=2");
    let later = watcher.pass_later_connection(0);
    assert!(later.iter().all(|event| !second.concat().contains(&event.cookie)), "{later:#?}");
    let _ = watcher.lives(2, [second[0][0], second[1][0]]);
}

#[test]
fn a_process_can_have_64_handles_and_no_more() {
    let _turn = turn();
    let mut watcher = Watcher::open("events=2");
    // Without probes they open quickly.
    let filter = format!("filter=pid {}", process::id());
    for handle in 1..64 {
        watcher.open_handle(handle, &format!("events=4 interval=86400000 queue=16 {filter}"));
    }
    let refusal = watcher.refusal("events=4");
    assert_eq!(refusal.errno, libc::EMFILE, "{refusal:?}");
    assert!(refusal.text.contains("64 handles"), "{refusal:?}");
    watcher.pass_later_connection(0);
    watcher.close_handle(17);
    watcher.open_handle(17, "events=2");
    watcher.pass_later_connection(17);
    assert_eq!(watcher.refusal("events=4").errno, libc::EMFILE);
}

// ---- What is left behind

/// The resources of a process.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: Vec<String>,
    threads: usize,
}

fn holdings(pid: u32) -> Holdings {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut descriptors: Vec<_> = links
        .filter_map(|link| Some(format!("{} {}", link.path().display(), fs::read_link(link.path()).ok()?.display())))
        .collect();
    descriptors.sort_unstable();
    Holdings { descriptors, threads: fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() }
}

#[test]
fn cycles_of_open_and_close_leave_nothing_behind() {
    let _turn = turn();
    let mut watcher = Watcher::idle();
    watcher.ask("version", "version");
    let before = holdings(watcher.pid());
    for _ in 0..50 / slowness() {
        watcher.open_handle(0, "events=7 interval=100");
        watcher.pass_later_connection(0);
        watcher.close_handle(0);
        // Descriptors are closed when it returns; an ended thread may still be on the kernel's list.
        assert_eq!(holdings(watcher.pid()).descriptors, before.descriptors);
        let until = Instant::now() + patience();
        while holdings(watcher.pid()) != before {
            assert!(Instant::now() < until, "it holds {:?}, it held {before:?}", holdings(watcher.pid()));
            thread::sleep(Duration::from_millis(1));
        }
    }
    let refusal = watcher.refusal("filter=nonsense");
    assert_eq!(refusal.errno, libc::EINVAL);
    assert_eq!(holdings(watcher.pid()), before);
    assert_eq!(watcher.stderr(), [""; 0]);
}

/// The BPF programs and links that a process holds: "prog_id" or "link_id", and the kernel's number.
fn bpf_objects(pid: u32) -> Vec<(String, u32)> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let mut objects = Vec::new();
    for info in infos.filter_map(|info| fs::read_to_string(info.path()).ok()) {
        for (name, value) in info.lines().filter_map(|line| line.split_once(":\t")) {
            if ["prog_id", "link_id"].contains(&name) {
                objects.push((name.to_owned(), value.parse().unwrap()));
            }
        }
    }
    objects
}

/// Whether the kernel still has a BPF program or link.
fn exists(object: &(String, u32)) -> bool {
    const GET_FD_BY_ID: [i32; 2] = [13, 30];
    let command = GET_FD_BY_ID[usize::from(object.0 == "link_id")];
    let attributes = [object.1, 0, 0, 0];
    // SAFETY: a `union bpf_attr` of the given length: the number, and zeroes.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{object:?}: {error}");
        return false;
    }
    // SAFETY: it is open, and has no other owner.
    unsafe { libc::close(i32::try_from(fd).unwrap()) };
    true
}

#[test]
fn a_forked_child_has_no_handles_and_keeps_no_probe() {
    if is_beyond_the_rung("the cookie of an attempt that has failed") || lacks_cookies() {
        return;
    }
    let _turn = turn();
    let mut watcher = Watcher::open(&own_closes());
    let objects = bpf_objects(watcher.pid());
    assert!(objects.iter().any(|(name, _)| name == "prog_id"), "{objects:?}");
    assert!(objects.iter().all(exists), "{objects:?}");
    // The child calls every function, and opens and closes a handle of its own.
    let child: u32 = watcher.ask("fork", "forked").parse().unwrap();
    assert_eq!(bpf_objects(child), [], "the child holds on to them");
    let event = close_once();
    watcher.events_until(0, "the parent's event", |events| events.iter().any(|other| other.cookie == event));
    watcher.close_handle(0);
    let until = Instant::now() + patience();
    while let Some(left) = objects.iter().find(|object| exists(object)) {
        assert!(Instant::now() < until, "{left:?} is still there");
        thread::sleep(Duration::from_millis(5));
    }
    // The child lives on.
    assert_eq!(watcher.ask("release", "released"), "0");
}

#[test]
fn a_process_that_dies_with_open_handles_leaves_no_probe() {
    let _turn = turn();
    let watcher = Watcher::open("events=7 interval=100");
    let objects = bpf_objects(watcher.pid());
    assert!(!objects.is_empty());
    drop(watcher);
    let until = Instant::now() + patience();
    while let Some(left) = objects.iter().find(|object| exists(object)) {
        assert!(Instant::now() < until, "{left:?} is still there");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn tracked_endpoints_are_those_that_are_open() {
    let _turn = turn();
    let mut watcher = Watcher::open("events=2");
    let before = watcher.statistics(0)["tracked"];
    let connections: Vec<_> = (0..50).map(|_| Connection::open(V4(), V4())).collect();
    let cookies: Vec<_> = connections.iter().flat_map(cookies_of).collect();
    let open = watcher.statistics(0);
    // Other programs' endpoints come and go.
    assert!((90..=110).contains(&(open["tracked"] - before)), "{before} before, {open:?}");
    assert!(open["tracked_most"] > open["tracked"], "{open:?}");
    connections.into_iter().for_each(Connection::close_client_first);
    let is_own = |event: &&Event| cookies.contains(&event.cookie);
    watcher.events_until(0, "all ends", |events| events.iter().filter(is_own).count() == 100);
    let after = watcher.statistics(0)["tracked"];
    assert!((-10..=10).contains(&(after - before)), "{before} before, {after} after");
}
