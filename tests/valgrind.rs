//! C consumers under valgrind's memcheck: no error and no definite leak, from the first call to the end of the process.
//!
//! The released library is stripped. For stacks with names, build one that is not: `CARGO_PROFILE_RELEASE_STRIP=none`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use consumer::{Consumer, c_program, turn};
use traffic::{Connection, V4, V6};

#[path = "live/consumer.rs"]
#[allow(dead_code)] // The live tests use the rest.
mod consumer;
#[path = "live/traffic.rs"]
#[allow(dead_code)]
mod traffic;

/// Differs from any exit status of a consumer's own.
const ERROR_STATUS: i32 = 99;

/// A consumer under memcheck.
struct Watched {
    consumer: Consumer,
    /// The report of memcheck.
    report: PathBuf,
}

/// Runs with tracefs mounted, as systemd mounts it: valgrind does not know the calls for a private mount (Linux 5.2)
/// yet.
fn valgrind() -> Command {
    const SCRIPT: &str = "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing || exit
                          exec valgrind \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh"]);
    command
}

impl Watched {
    /// Runs a program of `tests/c`, with as many snapshots as possible.
    fn run(name: &str) -> Self {
        let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("valgrind-{name}.txt"));
        let _ = fs::remove_file(&report);
        assert!(
            Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()),
            "valgrind does not run: `.ci/setup test` installs it"
        );
        let mut command = valgrind();
        command
            .arg(format!("--error-exitcode={ERROR_STATUS}"))
            .arg(format!("--log-file={}", report.display()))
            .args(["--leak-check=full", "--errors-for-leak-kinds=definite", "--show-leak-kinds=definite"])
            .arg(c_program(name))
            .env("TCPEVENT_NETLINK_INTERVAL", "0.2")
            // A process under valgrind is slow to read.
            .env("TCPEVENT_QUEUE", "100000");
        Self { consumer: Consumer::from(command), report }
    }

    /// Waits for the end, which must be of this status, with an empty report.
    fn end(mut self, status: i32) {
        let ended = self.consumer.wait();
        // memcheck mentions commands of bpf(2) that it does not know; that is no error.
        let report = fs::read_to_string(&self.report).unwrap();
        assert_eq!(ended, Some(status), "{report}");
        assert!(report.contains("ERROR SUMMARY: 0 errors from 0 contexts"), "{report}");
        assert_eq!(self.consumer.stderr(), [""; 0]);
    }
}

/// Opens and closes a connection. Returns the ports of both its ends.
fn connect_once() -> [(u16, u16); 2] {
    let mut connection = Connection::open(V4(), V4());
    let ports = connection.ports();
    connection.send_up(100);
    connection.close_client_first();
    [ports, (ports.1, ports.0)]
}

/// Takes events until each of these endpoints had one.
fn expect_all(consumer: &mut Consumer, mut endpoints: HashSet<(u16, u16)>) {
    while !endpoints.is_empty() {
        let event = consumer.event(&format!("{endpoints:?}"), |event| endpoints.contains(&event.ports()));
        endpoints.remove(&event.ports());
    }
}

#[test]
fn a_consumer_on_two_threads_that_cleans_up_and_starts_again_has_no_memory_error() {
    let _turn = turn();
    let mut watched = Watched::run("consumer");
    let consumer = &mut watched.consumer;
    consumer.start();
    consumer.tell("consume 2");
    expect_all(consumer, (0..100).flat_map(|_| connect_once()).collect());
    // An open connection can only come from a snapshot.
    let open = Connection::open(V6(), V6());
    consumer.event("a snapshot", |event| event.ports() == open.ports());
    consumer.cleanup();
    consumer.start();
    expect_all(consumer, connect_once().into());
    consumer.event("a snapshot", |event| event.ports() == open.ports());
    consumer.cleanup();
    consumer.tell("exit 0");
    watched.end(0);
}

#[test]
fn a_consumer_that_is_interrupted_while_it_dequeues_has_no_memory_error() {
    let _turn = turn();
    for delay in [0, 50, 500].map(Duration::from_millis) {
        let mut watched = Watched::run("interrupted");
        watched.consumer.expect("ready");
        let interrupted = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !interrupted.load(Ordering::Relaxed) {
                    connect_once();
                }
            });
            thread::sleep(delay);
            // SAFETY: a signal to a child of this process that is not reaped yet.
            unsafe { libc::kill(watched.consumer.pid().try_into().unwrap(), libc::SIGINT) };
            interrupted.store(true, Ordering::Relaxed);
        });
        watched.consumer.expect("handler");
        watched.end(libc::SIGINT);
    }
}

/// Runs a program of `tests/c` in one of its modes. Forked children get no leak check: memory of the parent's other
/// threads has no owner there.
fn has_no_memory_error(program: &str, mode: &str, argument: Option<&str>, leak_check: &str) {
    let _turn = turn();
    let output = valgrind()
        .arg(format!("--error-exitcode={ERROR_STATUS}"))
        .args(["-q", &format!("--leak-check={leak_check}"), "--errors-for-leak-kinds=definite"])
        .arg("--show-leak-kinds=definite")
        .arg(c_program(program))
        .arg(mode)
        .args(argument)
        .env("TCPEVENT_NETLINK_INTERVAL", "0")
        .env("TCPEVENT_QUEUE", "100000")
        .env("TCPEVENT_TEST_SLOWNESS", "10")
        .output()
        .expect("valgrind runs");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_host_that_unloads_and_loads_the_library_has_no_memory_error() {
    has_no_memory_error("host", "reload", consumer::library().to_str(), "full");
}

#[test]
fn a_host_that_forks_has_no_memory_error() {
    has_no_memory_error("host", "fork", None, "no");
}

#[test]
fn a_host_without_standard_streams_has_no_memory_error() {
    has_no_memory_error("host", "closed", None, "full");
}

#[test]
fn a_host_under_fire_of_signals_has_no_memory_error() {
    has_no_memory_error("host", "storm", Some("10"), "full");
}

#[test]
fn hostile_callers_of_the_api_meet_no_memory_error() {
    has_no_memory_error("api", "arguments", None, "full");
}

#[test]
fn handles_that_are_closed_while_they_are_used_make_no_memory_error() {
    has_no_memory_error("api", "closes", Some("5"), "full");
}
