//! The privileges it needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use crate::consumer::{NOBODY, library, turn};
use crate::monitor::{Ended, Monitor, State, failures, leave_out_own_settings, program, run_to_end, states};
use crate::network::{CLOSED, Net};
use crate::traffic::own_comm;

/// The program and its library in a folder that every user can read: the project may be in root's home.
struct ForAll(PathBuf);

impl ForAll {
    fn new() -> Self {
        let folder = Path::new("/tmp").join(format!("tcp_trace-for-all.{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let copies = Self(folder);
        fs::set_permissions(&copies.0, PermissionsExt::from_mode(0o755)).unwrap();
        for file in [program(), library()] {
            fs::copy(&file, copies.0.join(file.file_name().unwrap())).unwrap();
        }
        copies
    }

    /// The program as user nobody, with only these capabilities.
    fn command(&self, capabilities: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        leave_out_own_settings(&mut command);
        command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
        let set: String = capabilities.iter().flat_map(|name| [",+", name]).collect();
        command.arg(format!("--inh-caps=-all{set}")).arg(format!("--ambient-caps=-all{set}"));
        command.arg(self.0.join("tcp_trace"));
        command
    }
}

impl Drop for ForAll {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn two_capabilities_are_enough() {
    let _turn = turn();
    let copies = ForAll::new();
    let net = Net::new();
    let mut command = copies.command(&["bpf", "perfmon"]);
    command.args(["--dest", &net.prefix()]);
    let mut monitor = Monitor::run(command);
    net.refuse(1);
    let lines = monitor.until_marker(net);
    let me = process::id();
    let expected = |state: &str, local_port| State {
        pid: me,
        state: state.to_owned(),
        local: "127.0.0.1".to_owned(),
        remote: net.address(1).to_string(),
        local_port,
        remote_port: CLOSED,
    };
    let seen = states(&lines);
    let port = seen.last().unwrap().local_port;
    assert_eq!(seen, [expected("SYN_SENT", 0), expected("CLOSE", port)]);
    let warning =
        format!("{}:{CLOSED} (connection refused (ECONNREFUSED); pid {me}, command {})", net.address(1), own_comm());
    assert_eq!(failures(&lines), [warning]);
    monitor.end_well();
}

#[test]
fn without_them_the_start_fails_with_one_line_that_names_them() {
    let _turn = turn();
    let copies = ForAll::new();
    for capabilities in [&[][..], &["bpf"], &["perfmon"]] {
        let ended: Ended = run_to_end(copies.command(capabilities));
        // While starting it says that no alerts are sent; then it fails.
        let line = ended.errors.last().unwrap_or_else(|| panic!("{ended:?}")).clone();
        assert_eq!((ended.status, ended.errors.len()), (Some(1), 1), "{ended:?}");
        assert!(line.starts_with("tcp_trace: ") && line.contains("CAP_BPF and CAP_PERFMON"), "{line}");
    }
}
