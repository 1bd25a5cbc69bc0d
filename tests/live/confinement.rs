//! What hosts and container runtimes forbid: the next rung takes over, or one line says what to do.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use crate::api_traffic::Moment;
use crate::api_watcher::{Event, Kind, Watcher};
use crate::consumer::{Consumer, c_program, finds_holders, patience, rung_is_tracepoint, turn};
use crate::traffic::{Connection, Peer, V4, set_linger_0, wall_ns};

const SECCOMP: &str = "a seccomp filter refuses system calls: allow bpf and perf_event_open in the profile of the \
                       container, or the SystemCallFilter of the service";

/// What runtimes return instead of the kernel: runc before and since version 1.0.
const ERRNOS: [i32; 2] = [libc::EPERM, libc::ENOSYS];

fn confined(calls: &str, errno: i32, variables: &[(&str, &str)]) -> Consumer {
    let mut command = Command::new(c_program("confined"));
    command.args([calls, &errno.to_string()]).arg(c_program("consumer"));
    command.env("TCPEVENT_NETLINK_INTERVAL", "0").envs(variables.iter().copied());
    Consumer::from(command)
}

/// The start fails with one line that ends with this remedy.
fn check_refusal(mut consumer: Consumer, remedy: &str) {
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("libtcpEvent: error: ") && lines[0].ends_with(remedy), "{lines:?}");
}

/// Checks that it watches.
fn check_closes(consumer: &mut Consumer) {
    consumer.start();
    consumer.tell("consume 1");
    let connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    connection.close_client_first();
    let ends = consumer.both_ends(ports);
    assert_eq!([ends.0.pid, ends.1.pid], [std::process::id(); 2]);
}

/// Changes a sysctl until it is dropped.
struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    /// `None` if this kernel has no such setting.
    fn set(name: &str, value: &str) -> Option<Self> {
        let path = format!("/proc/sys/kernel/{name}");
        let before = fs::read_to_string(&path).ok()?.trim().to_owned();
        fs::write(&path, value).ok()?;
        Some(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).unwrap();
    }
}

// ---- seccomp

#[test]
fn without_the_bpf_call_one_line_names_the_filter() {
    let _turn = turn();
    for errno in ERRNOS {
        for calls in ["bpf", "both"] {
            check_refusal(confined(calls, errno, &[("TCPEVENT_ON_ERROR", "continue")]), &format!("; {SECCOMP}"));
        }
    }
}

#[test]
fn without_perf_events_the_next_rung_holds_and_nothing_is_lost() {
    let _turn = turn();
    for errno in ERRNOS {
        if rung_is_tracepoint() {
            // Such a rung is made of perf events.
            check_refusal(confined("perf", errno, &[("TCPEVENT_ON_ERROR", "continue")]), &format!("; {SECCOMP}"));
            continue;
        }
        let mut consumer = confined("perf", errno, &[("TCPEVENT_PROBE", "auto")]);
        check_closes(&mut consumer);
        assert_eq!(consumer.stderr(), [""; 0]);
        if fs::exists("/sys/bus/event_source/devices/kprobe").unwrap() {
            let kprobe = [("TCPEVENT_PROBE", "kprobe"), ("TCPEVENT_ON_ERROR", "continue")];
            check_refusal(confined("perf", errno, &kprobe), &format!("; {SECCOMP}"));
        }
    }
}

#[test]
fn a_filter_that_refuses_nothing_of_ours_is_not_blamed() {
    let _turn = turn();
    // A filter as other programs have it.
    let mut command = Command::new(c_program("confined"));
    command.args(["both", &libc::EINVAL.to_string()]).arg(c_program("consumer")).env("TCPEVENT_ON_ERROR", "continue");
    let mut consumer = Consumer::from(command);
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    let lines = consumer.stderr();
    assert!(lines.len() == 1 && !lines[0].contains("seccomp"), "{lines:?}");
}

// ---- Sysctls

#[test]
fn pointers_may_be_hidden() {
    let _turn = turn();
    let _hidden = Sysctl::set("kptr_restrict", "2").expect("every kernel has it");
    let mut consumer = Consumer::run(&[]);
    check_closes(&mut consumer);
    assert_eq!(consumer.stderr(), [""; 0]);
}

#[test]
fn unprivileged_bpf_makes_no_difference_to_the_privileged() {
    let _turn = turn();
    for value in ["0", "2"] {
        // 1 cannot be reset.
        let Some(_set) = Sysctl::set("unprivileged_bpf_disabled", value) else {
            eprintln!("skipped: this kernel takes no {value}");
            continue;
        };
        let mut consumer = Consumer::run(&[]);
        check_closes(&mut consumer);
        assert_eq!(consumer.stderr(), [""; 0]);
        let nobody = Consumer::with_capabilities(&[], &[("TCPEVENT_ON_ERROR", "continue")]);
        check_refusal(nobody, "; run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)");
    }
}

#[test]
fn root_has_perf_events_however_paranoid_the_kernel_is() {
    let _turn = turn();
    for value in ["3", "4"] {
        let _set = Sysctl::set("perf_event_paranoid", value).expect("every kernel has it");
        let mut consumer = Consumer::run(&[]);
        check_closes(&mut consumer);
        let mut peer = Peer::run(0, b"tev-paranoid", b"peer");
        let client: TcpStream = peer.connect();
        let ports = (peer.port(), client.local_addr().unwrap().port());
        set_linger_0(&client);
        drop(client);
        let event = consumer.event("the peer's end", |event| event.ports() == ports);
        assert_eq!(event.pid, if finds_holders() { peer.pid() } else { 0 }, "{event:?}");
        assert_eq!(consumer.stderr(), [""; 0]);
    }
}

/// Cannot be undone: in a virtual machine only, and alone.
#[test]
#[ignore = "the kernel stays locked down: only in a virtual machine, as the last test"]
fn a_kernel_that_is_locked_down_for_confidentiality_is_named() {
    let _turn = turn();
    let lockdown = "/sys/kernel/security/lockdown";
    if !fs::exists(lockdown).unwrap() {
        let status = Command::new("mount").args(["-t", "securityfs", "none", "/sys/kernel/security"]).status();
        assert!(status.unwrap().success(), "securityfs cannot be mounted");
    }
    if !fs::exists(lockdown).unwrap() {
        eprintln!("skipped: this kernel has no lockdown");
        return;
    }
    fs::write(lockdown, "integrity").unwrap();
    check_closes(&mut Consumer::run(&[]));
    fs::write(lockdown, "confidentiality").unwrap();
    let remedy = "; the kernel is locked down (confidentiality): boot it with lockdown=integrity or without lockdown";
    check_refusal(Consumer::run(&[("TCPEVENT_ON_ERROR", "continue")]), remedy);
}

// ---- /proc

/// A consumer in a mount namespace of its own, after running this script there.
fn after(script: &str, variables: &[(&str, &str)]) -> Consumer {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{script} && exec \"$0\"")]).arg(c_program("consumer"));
    command.env("TCPEVENT_NETLINK_INTERVAL", "0").envs(variables.iter().copied());
    Consumer::from(command)
}

#[test]
fn without_proc_closes_have_their_owners_and_a_line_says_that_there_are_no_snapshots() {
    let _turn = turn();
    let mut consumer = after("mount -t tmpfs none /proc", &[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
    check_closes(&mut consumer);
    let until = std::time::Instant::now() + patience();
    let mut lines = Vec::new();
    while lines.is_empty() {
        assert!(std::time::Instant::now() < until, "nothing is said of /proc");
        lines = consumer.stderr();
    }
    // Some more sweeps.
    lines.extend(consumer.stderr());
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert!(line.starts_with("libtcpEvent: warn: reading /proc failed: ") && line.contains("snapshots"), "{line}");
}

#[test]
fn where_proc_hides_other_users_processes_a_line_says_what_it_takes() {
    const UID: u32 = 1004;

    let _turn = turn();
    // Debian's kernels restrict perf events to CAP_SYS_ADMIN.
    let _perfmon = Sysctl::set("perf_event_paranoid", "2").expect("every kernel has it");
    let mut peer = Peer::run(UID, b"tev-hidden", b"tev-hidden");
    let script = "mount -t proc -o hidepid=2 none /proc";
    let variables = [("TCPEVENT_NETLINK_INTERVAL", "0.1")];
    let mut consumer = Consumer::with_capabilities_after(script, &["bpf", "perfmon", "dac_read_search"], &variables);
    consumer.start();
    consumer.tell("consume 1");
    let client = peer.connect();
    let ports = (peer.port(), client.local_addr().unwrap().port());
    let until = std::time::Instant::now() + patience();
    let mut lines = Vec::new();
    while lines.is_empty() {
        assert!(std::time::Instant::now() < until, "nothing is said of hidden processes");
        lines = consumer.stderr();
    }
    lines.extend(consumer.stderr());
    let line = "libtcpEvent: warn: snapshots miss the sockets of other users' processes: run as root, or grant \
                CAP_SYS_PTRACE";
    assert_eq!(lines, [line]);
    // The kernel's own observations need no /proc.
    drop(peer);
    drop(client);
    let event = consumer.event("the peer's end", |event| event.ports() == ports);
    assert_eq!((event.uid, event.task.as_str()), (UID, "tev-hidden"), "{event:?}");
}

#[test]
fn without_proc_a_refusal_is_one_line() {
    let _turn = turn();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(c_program("confined")).args(["both", "1"]);
    command.arg(c_program("consumer")).env("TCPEVENT_ON_ERROR", "continue");
    check_refusal(Consumer::from(command), SECCOMP);
}

// ---- Time namespaces

#[test]
fn in_a_time_namespace_events_bear_the_wall_clock() {
    let _turn = turn();
    for offset in ["86400", "-20"] {
        let mut command = Command::new("unshare");
        command.args(["--time", "--monotonic", offset, "--fork", "--kill-child"]).arg(c_program("consumer"));
        command.env("TCPEVENT_NETLINK_INTERVAL", "0");
        let mut consumer = Consumer::from(command);
        consumer.start();
        consumer.tell("consume 1");
        let from = wall_ns();
        let connection = Connection::open(V4(), V4());
        let ports = connection.ports();
        connection.close_client_first();
        let ends = consumer.both_ends(ports);
        for event in [ends.0, ends.1] {
            // The two clocks are read one after the other.
            let slack = 1_000_000;
            assert!((from - slack..=wall_ns() + slack).contains(&event.time_ns), "{offset}: {event:?}");
        }
    }
}

#[test]
fn in_a_time_namespace_a_handles_events_bear_both_clocks() {
    let _turn = turn();
    for offset_s in [86_400i64, -20] {
        let mut command = Command::new("unshare");
        command.args(["--time", "--monotonic", &offset_s.to_string(), "--fork", "--kill-child"]);
        command.arg(c_program("api_watch"));
        let mut watcher = Watcher::by(command);
        watcher.open_handle(0, "events=7 interval=100");
        let from = Moment::now();
        let connection = Connection::open(V4(), V4());
        let (local, remote) = connection.ports();
        let ends = [(local, remote), (remote, local)];
        let of_kind = |events: &[Event], kind| {
            let events = events.iter().filter(|event| event.kind == kind && ends.contains(&event.ports()));
            events.cloned().collect::<Vec<_>>()
        };
        let mut events = watcher.events_until(0, "snapshots", |events| of_kind(events, Kind::Snapshot).len() >= 2);
        connection.close_client_first();
        events.extend(watcher.events_until(0, "closes", |events| of_kind(events, Kind::Close).len() == 2));
        let to = Moment::now();
        for kind in [Kind::State, Kind::Snapshot, Kind::Close] {
            let events = of_kind(&events, kind);
            assert!(events.len() >= 2, "{kind:?}: {events:#?}");
            for event in events {
                // The two clocks are read one after the other.
                let slack = 1_000_000;
                assert!((from.wall_ns - slack..=to.wall_ns + slack).contains(&event.time_ns), "{offset_s}: {event:#?}");
                let monotonic_ns = event.monotonic_ns.checked_add_signed(-offset_s * 1_000_000_000).unwrap();
                assert!((from.monotonic_ns..=to.monotonic_ns).contains(&monotonic_ns), "{offset_s}: {event:#?}");
                assert!(event.age_ns <= to.monotonic_ns - from.monotonic_ns, "{offset_s}: {event:#?}");
            }
        }
    }
}
