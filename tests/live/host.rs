//! What hosts do to a library, and what a library must not do to its host.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::consumer::{Consumer, c_program, library, patience, pipe, slowness, soak, turn};
use crate::traffic::{Connection, V4};

/// Runs `tests/c/host.c` in one of its modes.
fn host(mode: &str, argument: Option<&str>, variables: &[(&str, &str)]) {
    let _turn = turn();
    let output =
        Command::new(c_program("host")).arg(mode).args(argument).envs(variables.iter().copied()).output().unwrap();
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{}", said.0.trim_end());
    assert!(output.status.success(), "{}: {said:?}", output.status);
}

/// Cargo's search path for libraries has others before it.
#[test]
fn the_library_under_test_is_the_one_that_ships() {
    let _turn = turn();
    let mut consumer = Consumer::run(&[]);
    consumer.start();
    let mappings = fs::read_to_string(format!("/proc/{}/maps", consumer.pid())).unwrap();
    let mut loaded: Vec<_> = mappings.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| path).collect();
    loaded.retain(|path| path.ends_with("libtcpEvent.so"));
    loaded.dedup();
    assert_eq!(loaded, [library().canonicalize().unwrap().to_str().unwrap().trim_start_matches('/')]);
}

#[test]
fn cleanup_from_a_signal_handler_at_random_moments_neither_hangs_nor_crashes() {
    let count = match (soak(), slowness() > 1) {
        (true, _) => "10000",
        (false, false) => "100",
        (false, true) => "20",
    };
    host("storm", Some(count), &[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
}

#[test]
fn dlclose_with_and_without_cleanup_and_dlopen_again() {
    host("reload", library().to_str(), &[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
}

#[test]
fn forked_children_leave_the_parent_alone_and_can_use_the_library() {
    host("fork", None, &[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
}

/// `make soak` forks a thousand.
#[test]
fn children_forked_amid_all_calls_can_use_the_library() {
    let count = match (soak(), slowness() > 1) {
        (true, _) => "1000",
        (false, false) => "60",
        (false, true) => "4",
    };
    let _turn = turn();
    let mut command = Command::new(c_program("forks"));
    command
        .arg(count)
        .env("TCPEVENT_NETLINK_INTERVAL", "0.1")
        .env("TCPEVENT_LOG", "error")
        .env("TCPEVENT_QUEUE", "100000");
    let output = command.output().unwrap();
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said:?}", output.status);
    println!("{}", said.0.trim_end());
}

#[test]
fn a_host_without_standard_streams_keeps_their_numbers_free() {
    host("closed", None, &[("TCPEVENT_NETLINK_INTERVAL", "0")]);
}

#[test]
fn another_libbpf_in_the_process_keeps_its_print_callback() {
    host("libbpf", library().to_str(), &[("TCPEVENT_LOG", "debug")]);
}

/// The resources of a process.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: Vec<String>,
    threads: usize,
}

fn holdings(consumer: &Consumer) -> Holdings {
    let folder = format!("/proc/{}", consumer.pid());
    let mut descriptors: Vec<String> = fs::read_dir(format!("{folder}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    descriptors.sort();
    Holdings { descriptors, threads: fs::read_dir(format!("{folder}/task")).unwrap().count() }
}

fn resident_kib(consumer: &mut Consumer) -> u64 {
    consumer.tell("memory");
    consumer.expect("memory").split(' ').nth(1).unwrap().parse().unwrap()
}

/// Waits until a consumer holds what it held before.
fn settle(consumer: &Consumer, before: &Holdings) {
    let until = Instant::now() + patience();
    while holdings(consumer) != *before {
        assert!(Instant::now() < until, "it holds {:?}, it held {before:?}", holdings(consumer));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn cycles_of_start_traffic_and_cleanup_end_where_they_began() {
    let _turn = turn();
    let cycles = if soak() { 1000 } else { 100 / slowness() };
    let mut consumer = Consumer::run(&[]);
    consumer.tell("consume 1");
    consumer.tell("status");
    consumer.expect("status");
    let before = holdings(&consumer);
    let mut first = 0;
    for cycle in 0..cycles {
        consumer.start();
        let connection = Connection::open(V4(), V4());
        let ports = connection.ports();
        connection.close_client_first();
        consumer.both_ends(ports);
        consumer.cleanup();
        settle(&consumer, &before);
        // Allocators settle in the first rounds.
        if cycle == cycles / 10 {
            first = resident_kib(&mut consumer);
        }
    }
    let last = resident_kib(&mut consumer);
    println!("{cycles} cycles: resident {first} KiB after a tenth, {last} KiB at the end");
    assert!(last <= first + 256, "it grew from {first} to {last} KiB");
}

#[test]
fn few_descriptors_give_a_clear_error_or_work() {
    let _turn = turn();
    let mut worked = 0;
    // Merely loading a program linked with the library takes 5.
    for limit in (5..40).step_by(if slowness() > 1 { 7 } else { 1 }) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\"")]).arg(c_program("consumer"));
        command.env("TCPEVENT_NETLINK_INTERVAL", "0").env("TCPEVENT_ON_ERROR", "continue");
        // It takes no events: those of a busy host would fill its queue, which it would say too.
        command.env("TCPEVENT_FILTER", "sport 1 dport 1");
        let mut consumer = Consumer::from(command);
        consumer.tell("setup");
        let until = Instant::now() + patience();
        loop {
            consumer.tell("status");
            if consumer.expect_any(&["status", "setup"]) == "status 1" {
                worked += 1;
                break;
            }
            let errors = consumer.stderr();
            if !errors.is_empty() {
                assert_eq!(errors.len(), 1, "{limit} descriptors: {errors:?}");
                assert!(errors[0].starts_with("libtcpEvent: error: "), "{errors:?}");
                assert!(errors[0].contains("(ulimit -n)"), "{limit} descriptors: {errors:?}");
                break;
            }
            assert!(Instant::now() < until, "{limit} descriptors: neither an error nor a start");
        }
    }
    assert!(worked > 0, "it worked with {worked} of the limits");
}

/// Runs `tests/c/limits.c` in one of its modes. Returns its output and the library's.
fn limits(arguments: &[&str], variables: &[(&str, &str)]) -> (String, String) {
    let _turn = turn();
    let output = Command::new(c_program("limits")).args(arguments).envs(variables.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{arguments:?}: {}: {said:?}", output.status);
    let [stdout, stderr] = said;
    (stdout, stderr)
}

#[test]
fn little_memory_is_an_error_of_a_handle() {
    for slots in ["1", "10000", "1048576"] {
        limits(&["memory", slots], &[]);
    }
}

#[test]
fn a_classic_queue_is_as_long_as_there_is_memory_for() {
    let (stdout, stderr) = limits(&["queue"], &[("TCPEVENT_QUEUE", "1048576"), ("TCPEVENT_NETLINK_INTERVAL", "0")]);
    assert!(["524288 slots\n", "262144 slots\n"].contains(&stdout.as_str()), "{stdout}{stderr}");
    assert!(stderr.contains("TCPEVENT_QUEUE is 1048576: there is no memory for so many"), "{stderr}");
}

#[test]
fn a_sweep_that_runs_out_of_memory_ends_with_a_line_and_the_next_ones_go_on() {
    let (stdout, _) = limits(&["sweeps"], &[]);
    let line = "failed: out of memory; snapshots of open connections are missing until it works\n";
    assert!(stdout.ends_with(line), "{stdout}");
}

#[test]
fn a_host_that_closes_every_descriptor_keeps_those_that_it_opens_then() {
    for what in ["classic", "handle"] {
        let (_, stderr) = limits(&["closed", what], &[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
        // The lines of a handle do not go to stderr.
        assert_eq!(stderr.contains("the host has closed descriptors"), what == "classic", "{stderr}");
    }
}

#[test]
fn every_call_needs_but_a_small_stack() {
    // The smallest stack of a thread: PTHREAD_STACK_MIN.
    limits(&["stack", "16384"], &[("TCPEVENT_NETLINK_INTERVAL", "0.1")]);
}

#[test]
fn little_lockable_memory_is_enough() {
    let _turn = turn();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 64 && exec \"$0\""]).arg(c_program("consumer"));
    let mut consumer = Consumer::from(command);
    consumer.start();
}

#[test]
fn a_full_disk_or_a_full_pipe_behind_stderr_changes_nothing() {
    let _turn = turn();
    let full = Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    // This pipe has no reader, and the debug log fills it at once.
    let (_unread, writer) = pipe();
    for stderr in [full, Stdio::from(writer)] {
        let mut command = Command::new(c_program("consumer"));
        command.env("TCPEVENT_LOG", "debug").env("TCPEVENT_NETLINK_INTERVAL", "0.1");
        let mut consumer = Consumer::with_stderr(command, stderr);
        for _ in 0..5 {
            consumer.start();
            consumer.cleanup();
        }
        consumer.start();
        consumer.tell("consume 1");
        let connection = Connection::open(V4(), V4());
        let ports = connection.ports();
        connection.close_client_first();
        consumer.event("the client's end", |event| event.ports() == ports);
    }
}

#[test]
fn a_reader_of_stderr_that_is_gone_does_not_kill_the_host() {
    let _turn = turn();
    let (reader, writer) = pipe();
    drop(reader);
    let mut command = Command::new(c_program("consumer"));
    // Rust resets SIGPIPE in its children: it would kill this one.
    command.env("TCPEVENT_LOG", "debug").env("TCPEVENT_NETLINK_INTERVAL", "0");
    let mut consumer = Consumer::with_stderr(command, Stdio::from(writer));
    consumer.start();
    // From one of the host's threads too.
    consumer.tell("add");
    std::thread::sleep(Duration::from_millis(100) * slowness());
    consumer.tell("status");
    assert_eq!(consumer.expect("status"), "status 1");
}
