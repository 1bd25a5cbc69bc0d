//! The monitor without a kernel and without root: its library reads records from a socket (`make synthetic`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::consumer::{NOBODY, c_preload, root, turn};
use crate::kernel::{Change, Kernel, Reports};
use crate::monitor::{Monitor, Summary, failures, leave_out_own_settings, program, states};
use crate::webhook::{Webhook, host_name};

/// The program and what it loads, where every user can read it.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let library = root().join("target/synthetic/libtcpEvent.so");
        assert!(library.exists(), "{} is missing: run `make synthetic` first", library.display());
        // SAFETY: it cannot fail.
        let folder = std::env::temp_dir().join(format!("tcpevent-synthetic-{}", unsafe { libc::geteuid() }));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        for (file, name) in
            [(library, "libtcpEvent.so"), (c_preload("synthetic"), "synthetic.so"), (program(), "tcp_trace")]
        {
            // Not over a file that a process still runs.
            let _ = fs::remove_file(folder.join(name));
            fs::copy(&file, folder.join(name)).unwrap();
        }
        folder
    })
}

/// A monitor of an ordinary user's, and what it will see.
fn start(arguments: &[&str], variables: &[(&str, &str)]) -> (Monitor, Reports) {
    let kernel = Kernel::new();
    let folder = folder();
    let mut command = Command::new(folder.join("tcp_trace"));
    leave_out_own_settings(&mut command);
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .env("LD_LIBRARY_PATH", folder)
        .env("LD_PRELOAD", folder.join("synthetic.so"))
        .env("SYNTHETIC", kernel.path());
    // SAFETY: it cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    (Monitor::run(command), kernel.reports())
}

fn records<const N: usize>(changes: [Change; N]) -> [Vec<u8>; N] {
    changes.map(|change| change.record())
}

/// All lines up to that of the connection to this port.
fn lines_until(monitor: &mut Monitor, port: u16) -> Vec<String> {
    monitor.until("the last one", |line| line.ends_with(&format!(" {port}")))
}

#[test]
fn an_attempt_is_told_with_its_states_and_the_reason_of_its_failure() {
    let _turn = turn();
    let (mut monitor, mut reports) = start(&[], &[]);
    let given_up = Change { given_up: true, ..Change::failed(1_500_000_001, 0) };
    reports.write(&records([
        Change::failed(1, libc::ECONNREFUSED),
        Change::failed(2, libc::ETIMEDOUT),
        Change::failed(3, libc::EHOSTUNREACH),
        Change { pid: 4711, ..Change::failed(4, libc::EUCLEAN) },
        given_up,
        Change::established(5),
        Change { remote_port: 9, ..Change::close(6) },
    ]));
    let lines = lines_until(&mut monitor, 9);
    let names: Vec<_> = states(&lines).into_iter().map(|state| state.state).collect();
    assert_eq!(names, ["CLOSE", "CLOSE", "CLOSE", "CLOSE", "CLOSE", "ESTABLISHED", "CLOSE"]);
    let reasons = [
        "connection refused (ECONNREFUSED); pid 1",
        "timed out (ETIMEDOUT); pid 1",
        "no route to host (EHOSTUNREACH); pid 1",
        "Structure needs cleaning (EUCLEAN); pid 4711",
        "given up by the program after 1.500 s; pid 1",
    ];
    let expected = reasons.map(|reason| format!("192.0.2.1:443 ({reason}, command synthetic)"));
    assert_eq!(failures(&lines), expected);
    assert_eq!(Summary::of(&monitor.end_well()), Summary { states: 7, failures: 5, lost: 0 });
}

#[test]
fn a_failure_is_alerted_at_once_and_those_that_follow_together() {
    let _turn = turn();
    let mut webhook = Webhook::start("200");
    let (monitor, mut reports) = start(&[], &[("SLACK_URL", &webhook.url())]);
    let refused = |number, remote_port| Change { remote_port, ..Change::failed(number, libc::ECONNREFUSED) };
    reports.write(&records([refused(1, 443)]));
    let because = "connection refused (ECONNREFUSED)";
    let first = webhook.request();
    let expected =
        format!("TCP failure detected: 192.0.2.1:443 ({because}; pid 1, command synthetic) on {}", host_name());
    assert_eq!(first.text, expected);
    reports.write(&records([refused(2, 80), refused(3, 8080), refused(4, 80), Change::close(5)]));
    let second = webhook.request();
    let lines: Vec<_> = second.text.lines().collect();
    let [heading, most, least] = lines[..] else { panic!("{second:?}") };
    assert_eq!(heading, format!("3 TCP failures on {}:", host_name()));
    assert!(most.starts_with(&format!("2 x 192.0.2.1:80 ({because}; last pid 1, ")), "{second:?}");
    assert!(least.starts_with(&format!("1 x 192.0.2.1:8080 ({because}; last pid 1, ")), "{second:?}");
    monitor.end_well();
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn what_is_not_asked_for_is_neither_told_nor_alerted() {
    let _turn = turn();
    let mut webhook = Webhook::start("200");
    let arguments = ["--ignore-given-up", "--dport", "443"];
    let (mut monitor, mut reports) = start(&arguments, &[("SLACK_URL", &webhook.url())]);
    reports.write(&records([
        Change { given_up: true, ..Change::failed(1, 0) },
        Change { remote_port: 80, ..Change::failed(2, libc::ECONNREFUSED) },
        Change { pid: 3, ..Change::failed(3, libc::ETIMEDOUT) },
    ]));
    let lines = monitor.until("the failure", |line| line.contains("TCP failure detected: "));
    assert_eq!(states(&lines).into_iter().map(|state| state.pid).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(failures(&lines), ["192.0.2.1:443 (timed out (ETIMEDOUT); pid 3, command synthetic)"]);
    assert!(webhook.request().text.contains("; pid 3, "));
    monitor.end_well();
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn a_probe_that_fails_ends_it_once_all_is_told() {
    let _turn = turn();
    let (monitor, mut reports) = start(&[], &[]);
    reports.write(&records([Change::close(1), Change::failed(2, libc::ECONNREFUSED)]));
    drop(reports);
    let ended = monitor.end();
    assert_eq!(ended.status, Some(1), "{ended:#?}");
    assert!(ended.errors.iter().any(|line| line.contains("the probe has failed")), "{ended:#?}");
    assert!(ended.lines.iter().any(|line| line.contains("WARNING the probe has failed")), "{ended:#?}");
    assert_eq!((states(&ended.lines).len(), failures(&ended.lines).len()), (2, 1));
}
