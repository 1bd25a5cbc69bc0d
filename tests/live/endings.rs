//! Calls where the process or a thread ends, and threads that are ended within a call: `tests/c/endings.cc`.

use std::process::Command;

use crate::consumer::{c_program, turn};

/// Runs the program. The library must log nothing.
fn endings(arguments: &[&str]) -> String {
    let _turn = turn();
    let mut command = Command::new(c_program("endings"));
    command.args(arguments).env("TCPEVENT_NETLINK_INTERVAL", "0.1").env("TCPEVENT_QUEUE", "100000");
    // A rung chosen by default logs what it cannot do.
    if std::env::var_os("TCPEVENT_PROBE").is_none() {
        command.env("TCPEVENT_LOG", "error");
    }
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}: {stdout}{stderr}", output.status);
    assert_eq!(stderr, "", "{arguments:?}");
    stdout.into_owned()
}

#[test]
fn every_call_works_after_main_has_returned() {
    let said = endings(&["exit"]);
    assert_eq!(said, "destructor\nunloaded\n");
}

#[test]
fn every_call_works_in_destructors_of_a_thread_that_ends() {
    endings(&["thread"]);
}

#[test]
fn a_thread_that_waits_can_be_cancelled() {
    for call in ["dequeue", "read", "setup"] {
        for kind in ["deferred", "async"] {
            endings(&["cancel", call, kind]);
        }
    }
}

#[test]
fn cancellation_waits_until_any_other_call_is_over() {
    for call in ["open", "add"] {
        for kind in ["deferred", "async"] {
            endings(&["cancel", call, kind]);
        }
    }
}

#[test]
fn a_signal_handler_may_end_the_thread_that_waits() {
    for call in ["dequeue", "read", "setup"] {
        endings(&["leave", call]);
    }
}

#[test]
fn a_handle_can_be_closed_after_a_jump_out_of_a_read() {
    endings(&["jump"]);
}
