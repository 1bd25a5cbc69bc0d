//! Start, stop, restart, failure.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::consumer::{Consumer, NOBODY, c_program, patience, slowness, turn};
use crate::traffic::{Connection, V4};

/// One connection, opened and closed. Returns its ports.
fn connect_once() -> (u16, u16) {
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    connection.close_client_first();
    ports
}

fn wait_for_status(consumer: &mut Consumer, status: u32) {
    let until = std::time::Instant::now() + patience();
    loop {
        consumer.tell("status");
        if consumer.expect("status") == format!("status {status}") {
            return;
        }
        assert!(std::time::Instant::now() < until, "the status does not become {status}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn status_follows_the_probe_and_it_can_be_started_again() {
    let _turn = turn();
    let mut consumer = Consumer::run(&[]);
    consumer.tell("status");
    assert_eq!(consumer.expect("status"), "status 0");
    consumer.start();
    consumer.tell("consume 1");
    for _ in 0..5 {
        consumer.both_ends(connect_once());
        consumer.cleanup();
        consumer.tell("status");
        assert_eq!(consumer.expect("status"), "status 0");
        consumer.start();
    }
    assert_eq!(consumer.stderr(), [""; 0]);
}

#[test]
fn cleanup_detaches_and_queued_events_can_still_be_taken() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    let before = connect_once();
    std::thread::sleep(Duration::from_millis(50) * slowness());
    consumer.cleanup();
    // A second call does nothing.
    consumer.cleanup();
    wait_for_programs_to_go(&consumer);
    let after = connect_once();
    consumer.tell("consume 1");
    consumer.both_ends(before);
    assert!(consumer.events_until_silence().iter().all(|event| event.ports() != after));
    // Now it blocks until a probe is started and an event comes.
    consumer.start();
    consumer.both_ends(connect_once());
}

/// Waits until the process holds no BPF object any more.
fn wait_for_programs_to_go(consumer: &Consumer) {
    let until = std::time::Instant::now() + patience();
    let folder = format!("/proc/{}/fd", consumer.pid());
    let held = || {
        std::fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|link| link.to_string_lossy().contains("bpf"))
    };
    while held() {
        assert!(std::time::Instant::now() < until, "the BPF objects stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn cleanup_is_a_no_op_where_nothing_runs() {
    let _turn = turn();
    let mut consumer = Consumer::run(&[("TCPEVENT_NETLINK_INTERVAL", "0.2")]);
    let connection = Connection::open(V4(), V4());
    consumer.cleanup();
    consumer.tell("consume 1");
    consumer.event("a snapshot", |event| event.ports() == connection.ports());
    consumer.cleanup();
    consumer.events_until_silence();
    std::thread::sleep(Duration::from_millis(500) * slowness());
    assert!(consumer.events_until_silence().is_empty(), "the sweeps go on after cleanup");
    // Both kinds arrive again.
    consumer.start();
    consumer.event("a snapshot", |event| event.ports() == connection.ports());
    consumer.both_ends(connect_once());
}

#[test]
fn a_second_probe_is_refused_and_the_first_goes_on() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[]);
    consumer.tell("add");
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    consumer.tell("consume 1");
    consumer.both_ends(connect_once());
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("a probe is running already: call cleanup()"), "{lines:?}");
}

#[test]
fn setup_bpf_waits_and_returns_0_after_cleanup() {
    let _turn = turn();
    let mut consumer = Consumer::run(&[]);
    consumer.tell("setup");
    wait_for_status(&mut consumer, 1);
    consumer.tell("consume 1");
    consumer.both_ends(connect_once());
    consumer.cleanup();
    assert_eq!(consumer.expect("setup"), "setup 0");
}

#[test]
fn exit_with_everything_running_ends_cleanly() {
    let _turn = turn();
    let mut consumer = Consumer::started(&[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
    consumer.tell("consume 4");
    connect_once();
    consumer.tell("exit 7");
    assert_eq!(consumer.wait(), Some(7));
}

#[test]
fn cleanup_in_a_signal_handler_on_the_thread_that_dequeues() {
    let _turn = turn();
    for delay in [0, 1, 5, 20, 100, 300] {
        let mut consumer = Consumer::from(Command::new(c_program("interrupted")));
        consumer.expect("ready");
        std::thread::sleep(Duration::from_millis(delay));
        // SAFETY: a signal to a child of this process that is not reaped yet.
        unsafe { libc::kill(consumer.pid().try_into().unwrap(), libc::SIGINT) };
        consumer.expect("handler");
        assert_eq!(consumer.expect("status"), "status 0");
        assert_eq!(consumer.wait(), Some(2), "{:?}", consumer.stderr());
    }
}

#[test]
fn print_char_array_prints_on_stdout_and_takes_null() {
    let _turn = turn();
    let mut consumer = Consumer::run(&[]);
    consumer.tell("array");
    consumer.tell("array some text");
    assert_eq!(consumer.expect("Array:"), "Array: some text");
}

#[test]
fn without_privilege_one_line_names_the_remedy_and_the_process_exits_with_1() {
    let _turn = turn();
    let mut consumer = Consumer::with_capabilities(&[], &[]);
    consumer.tell("add");
    assert_eq!(consumer.wait(), Some(1));
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("libtcpEvent: error: cannot watch TCP connections: "), "{lines:?}");
    assert!(lines[0].contains("run as root, or grant CAP_BPF and CAP_PERFMON"), "{lines:?}");
}

#[test]
fn without_privilege_on_error_continue_keeps_the_process_and_its_snapshots() {
    let _turn = turn();
    let mut consumer =
        Consumer::with_capabilities(&[], &[("TCPEVENT_ON_ERROR", "continue"), ("TCPEVENT_NETLINK_INTERVAL", "0.2")]);
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    consumer.tell("status");
    assert_eq!(consumer.expect("status"), "status 0");
    assert_eq!(consumer.stderr().len(), 1);
    // A new call tries again.
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    // Snapshots of the same user's processes need no privilege.
    let mut child = Command::new("python3")
        .args([
            "-c",
            "import socket; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); input()",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .uid(NOBODY)
        .gid(NOBODY)
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    consumer.tell("consume 1");
    let event = consumer.event("a snapshot", |event| event.local_port == port);
    assert_eq!((event.pid, event.uid), (child.id(), NOBODY));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_bad_setting_is_an_error_that_names_it() {
    let _turn = turn();
    for (name, value, takes) in [
        ("TCPEVENT_PROBE", "best", "auto, kprobe, tp_btf or tracepoint"),
        ("TCPEVENT_QUEUE", "0", "a number of slots from 1 to 1048576"),
        ("TCPEVENT_NETLINK_INTERVAL", "soon", "seconds from 0.1 to 86400, or 0 for off"),
        ("TCPEVENT_ON_ERROR", "stop", "exit or continue"),
        ("TCPEVENT_LOG", "all", "error, warn, info or debug"),
        ("TCPEVENT_BTF", "/no/such", "the path of a readable BTF file"),
    ] {
        let mut consumer = Consumer::run(&[(name, value)]);
        consumer.tell("add");
        assert_eq!(consumer.wait(), Some(1), "{name}={value}");
        let lines = consumer.stderr();
        assert_eq!(lines, [format!("libtcpEvent: error: {name}={value:?} is not valid: it takes {takes}")]);
    }
}

#[test]
fn a_rung_that_this_kernel_lacks_is_refused_with_the_reason() {
    let _turn = turn();
    if std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists() {
        eprintln!("skipped: this kernel has every rung");
        return;
    }
    let mut command = Command::new(c_program("consumer"));
    command.env("TCPEVENT_NETLINK_INTERVAL", "0").env("TCPEVENT_PROBE", "kprobe");
    expect_failure(command, "kprobe: the kernel has no kprobes (CONFIG_KPROBES); ");
}

fn expect_failure(command: Command, text: &str) {
    let mut consumer = Consumer::from(command);
    consumer.tell("add");
    assert_eq!(consumer.wait(), Some(1));
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(text), "{lines:?}");
}

/// A consumer on a kernel without type information.
fn without_btf(rung: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind /mnt /sys/kernel/btf && exec \"$0\""]);
    command.arg(c_program("consumer")).env("TCPEVENT_NETLINK_INTERVAL", "0").env("TCPEVENT_PROBE", rung);
    command
}

#[test]
fn without_btf_the_line_names_the_variable_where_that_helps() {
    let _turn = turn();
    expect_failure(without_btf("kprobe"), "set TCPEVENT_BTF to a BTF file for it");
    expect_failure(without_btf("tp_btf"), "leave TCPEVENT_PROBE at auto");
}

#[test]
fn without_btf_the_tracepoint_is_taken_and_a_line_says_what_it_lacks() {
    let _turn = turn();
    let mut consumer = Consumer::from(without_btf("auto"));
    consumer.start();
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("libtcpEvent: warn: attached by a plain tracepoint: "), "{lines:?}");
}
