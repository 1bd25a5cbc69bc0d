//! What each capability is for: without root the smallest set gives everything, and a line reports what is lost without
//! one of it.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::consumer::{
    Consumer, NOBODY, TRACEFS, c_program, finds_holders, patience, rung_is_tracepoint, slowness, turn,
};
use crate::traffic::{Peer, set_linger_0};

const SMALLEST: [&str; 3] = ["bpf", "perfmon", "dac_read_search"];

/// Neither root nor the consumer's user.
const PEER_UID: u32 = 1002;
const PEER_COMM: &str = "tev-comm";
const PEER_ARGV0: &str = "tev-argv0";

const NO_SNAPSHOTS: &str = "libtcpEvent: warn: snapshots miss the sockets of other users' processes: run as root, or \
                            grant ";
const PERF_EVENTS: &str = "grant CAP_SYS_ADMIN, or set kernel.perf_event_paranoid to 2";

const PARANOIA: &str = "/proc/sys/kernel/perf_event_paranoid";

/// Debian's kernels require CAP_SYS_ADMIN if this is above 2.
fn paranoia() -> i32 {
    std::fs::read_to_string(PARANOIA).unwrap().trim().parse().unwrap()
}

/// Makes CAP_PERFMON sufficient, until it is dropped.
struct PerfmonCounts {
    before: i32,
}

impl PerfmonCounts {
    fn ensure() -> Self {
        let before = paranoia();
        if before > 2 {
            std::fs::write(PARANOIA, "2").unwrap();
        }
        Self { before }
    }
}

impl Drop for PerfmonCounts {
    fn drop(&mut self) {
        if self.before > 2 {
            std::fs::write(PARANOIA, self.before.to_string()).unwrap();
        }
    }
}

fn smallest_without(name: &str) -> Vec<&'static str> {
    SMALLEST.into_iter().filter(|other| *other != name).collect()
}

/// Another user's server with two connections, one older than the probe, and a consumer with only these capabilities.
struct Scene {
    peer: Peer,
    clients: Vec<TcpStream>,
    /// Ports of the peer's ends: listener, old connection, new one.
    ports: [(u16, u16); 3],
    consumer: Consumer,
}

impl Scene {
    fn new(capabilities: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::with(capabilities, variables, true)
    }

    /// Without a probe, holders of sockets are looked up in /proc.
    fn without_probe(capabilities: &[&str]) -> Self {
        Self::with(capabilities, &[], false)
    }

    fn with(capabilities: &[&str], variables: &[(&str, &str)], probe: bool) -> Self {
        let mut peer = Peer::run(PEER_UID, PEER_COMM.as_bytes(), PEER_ARGV0.as_bytes());
        let old = peer.connect();
        let variables = [variables, &[("TCPEVENT_NETLINK_INTERVAL", "0.2")]].concat();
        let mut consumer = Consumer::with_capabilities(capabilities, &variables);
        if probe {
            consumer.start();
        }
        let new = peer.connect();
        consumer.tell("consume 1");
        let port = |client: &TcpStream| client.local_addr().unwrap().port();
        let ports = [0, port(&old), port(&new)].map(|remote| (peer.port(), remote));
        Self { peer, clients: vec![old, new], ports, consumer }
    }

    /// The peer's listener and both its connections come with the process that holds them.
    fn check_snapshots(&mut self) {
        let mut awaited = self.ports.to_vec();
        while !awaited.is_empty() {
            let event = self.consumer.event(&format!("{awaited:?}"), |event| awaited.contains(&event.ports()));
            awaited.retain(|ports| *ports != event.ports());
            let owner = (event.pid, event.uid, event.task.as_str());
            assert_eq!(owner, (self.peer.pid(), PEER_UID, PEER_ARGV0), "{event:?}");
        }
    }

    /// Some sweeps are made, and give no snapshot of the peer.
    fn check_no_snapshots(&mut self) {
        let until = Instant::now() + Duration::from_secs(1) * slowness();
        while let Some(event) = self.consumer.event_within(until.saturating_duration_since(Instant::now())) {
            assert!(!self.ports.contains(&event.ports()), "{event:?}");
        }
    }

    /// Resets both connections; the peer does not react. Its ends must close as its own, found by inode if accepts are
    /// not seen.
    fn check_closes(&mut self) {
        for client in self.clients.drain(..) {
            set_linger_0(&client);
        }
        let [_, old, new] = self.ports;
        for ports in [old, new] {
            let event = self.consumer.event("a close", |event| event.ports() == ports && event.task != PEER_ARGV0);
            let owner = (event.pid, event.uid, event.task.as_str());
            if ports == new && !finds_holders() {
                assert_eq!(owner, (0, 0, ""), "{event:?}");
                continue;
            }
            assert_eq!(owner, (self.peer.pid(), PEER_UID, PEER_COMM), "{event:?}");
        }
    }
}

/// It logged exactly these lines.
fn check_stderr(consumer: &mut Consumer, expected: &[&str]) {
    let until = Instant::now() + patience();
    let mut lines = consumer.stderr();
    while lines.len() < expected.len() && Instant::now() < until {
        lines.extend(consumer.stderr());
    }
    assert_eq!(lines, expected);
}

/// The start fails, and the only line on stderr ends with this remedy.
fn check_failure(mut consumer: Consumer, remedy: &str) {
    consumer.tell("setup");
    assert_eq!(consumer.expect("setup"), "setup 1");
    let lines = consumer.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("libtcpEvent: error: ") && lines[0].ends_with(remedy), "{lines:?}");
}

#[test]
fn the_smallest_set_gives_closes_and_snapshots_of_other_users_with_their_owners() {
    let _turn = turn();
    let _perfmon = PerfmonCounts::ensure();
    let mut smallest = SMALLEST.to_vec();
    if rung_is_tracepoint() {
        // Without the iterator over open files, /proc is read.
        smallest.push("sys_ptrace");
    }
    let mut scene = Scene::new(&smallest, &[]);
    scene.check_snapshots();
    scene.check_closes();
    check_stderr(&mut scene.consumer, &[]);
}

#[test]
fn without_bpf_or_perfmon_the_start_fails_with_one_line_that_names_them() {
    let _turn = turn();
    for missing in ["bpf", "perfmon"] {
        let consumer = Consumer::with_capabilities(&smallest_without(missing), &[("TCPEVENT_ON_ERROR", "continue")]);
        check_failure(consumer, "; run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)");
    }
}

#[test]
fn without_a_probe_snapshots_of_other_users_are_missing_where_proc_is_closed_and_a_line_says_so() {
    let _turn = turn();
    for (capabilities, missing) in
        [(["dac_read_search"].as_slice(), "CAP_SYS_PTRACE"), (&["sys_ptrace"], "CAP_DAC_READ_SEARCH")]
    {
        let mut scene = Scene::without_probe(capabilities);
        scene.check_no_snapshots();
        check_stderr(&mut scene.consumer, &[&format!("{NO_SNAPSHOTS}{missing}")]);
    }
    let mut scene = Scene::without_probe(&["dac_read_search", "sys_ptrace"]);
    scene.check_snapshots();
    check_stderr(&mut scene.consumer, &[]);
}

/// tracefs is root's own.
#[test]
fn only_the_plain_tracepoint_needs_dac_read_search() {
    let _turn = turn();
    let _perfmon = PerfmonCounts::ensure();
    if rung_is_tracepoint() {
        let consumer = Consumer::with_capabilities(&["bpf", "perfmon"], &[("TCPEVENT_ON_ERROR", "continue")]);
        return check_failure(consumer, "; run as root, or grant CAP_DAC_READ_SEARCH: tracefs is root's own");
    }
    let mut scene = Scene::new(&["bpf", "perfmon"], &[]);
    scene.check_snapshots();
    scene.check_closes();
    check_stderr(&mut scene.consumer, &[]);
}

#[test]
fn only_the_plain_tracepoint_needs_tracefs() {
    const REMEDY: &str = "mount tracefs: mount -t tracefs none /sys/kernel/tracing";
    let _turn = turn();
    let _perfmon = PerfmonCounts::ensure();
    let variables = [("TCPEVENT_ON_ERROR", "continue")];
    if rung_is_tracepoint() {
        return check_failure(Consumer::without_tracefs(&SMALLEST, &variables), &format!("; {REMEDY}"));
    }
    let mut consumer = Consumer::without_tracefs(&SMALLEST, &variables);
    consumer.start();
    check_stderr(&mut consumer, &[]);
}

#[test]
fn without_sweeps_no_line_is_about_them() {
    let _turn = turn();
    let _perfmon = PerfmonCounts::ensure();
    let mut consumer = Consumer::with_capabilities(&SMALLEST, &[]);
    consumer.start();
    consumer.tell("consume 1");
    std::thread::sleep(Duration::from_millis(300) * slowness());
    assert_eq!(consumer.stderr(), [""; 0]);
}

#[test]
fn a_user_namespace_has_no_capability_that_counts() {
    let _turn = turn();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(c_program("consumer")).env("TCPEVENT_ON_ERROR", "continue");
    let remedy = "; run outside of user namespaces: capabilities in one do not count for BPF";
    check_failure(Consumer::from(command), remedy);
}

#[test]
fn where_perf_events_are_for_root_alone_a_line_says_so() {
    let _turn = turn();
    if paranoia() <= 2 {
        eprintln!("skipped: on this host CAP_PERFMON is enough");
        return;
    }
    let kprobe = [("TCPEVENT_PROBE", "kprobe"), ("TCPEVENT_ON_ERROR", "continue")];
    check_failure(Consumer::with_capabilities(&SMALLEST, &kprobe), &format!("; run as root, {PERF_EVENTS}"));

    // The next rung needs none, and neither does what it sees accepts by.
    let mut scene = Scene::new(&SMALLEST, &[("TCPEVENT_PROBE", "auto"), ("TCPEVENT_LOG", "info")]);
    scene.check_snapshots();
    scene.check_closes();
    let lines = scene.consumer.stderr();
    let unseen = "accepts are not seen";
    assert!(!lines.iter().any(|line| line.contains("warn") || line.contains(unseen)), "{lines:?}");
}

/// A program whose file gives it privileges that its caller, user nobody, lacks.
struct PrivilegedByFile(PathBuf);

impl PrivilegedByFile {
    fn new(name: &str, mode: u32) -> Self {
        let folder = std::env::temp_dir().join(format!("tcpevent-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let this = Self(folder);
        fs::copy(c_program("consumer"), this.program()).unwrap();
        fs::set_permissions(this.program(), Permissions::from_mode(mode)).unwrap();
        this
    }

    fn program(&self) -> PathBuf {
        self.0.join("consumer")
    }

    fn run(&self, variables: &[(&str, &str)]) -> Consumer {
        let mut command = Command::new("unshare");
        // It may not mount that itself.
        command.args(["--mount", "sh", "-c", &format!("{TRACEFS} && exec \"$@\""), "sh", "setpriv"]);
        command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
        command.arg(self.program()).env_remove("TCPEVENT_PROBE").envs(variables.iter().copied());
        Consumer::from(command)
    }

    /// Its caller could otherwise make it inspect folders, and read types, that the caller may not see.
    fn check_that_the_environment_does_not_count(&self) {
        // Each of these would make the start fail.
        let mut consumer = self.run(&[
            ("TCPEVENT_PROBE", "none"),
            ("TCPEVENT_BTF", "/no/such/file"),
            ("TCPEVENT_FILTER", "netns /etc/shadow"),
        ]);
        consumer.start();
        consumer.cleanup();
        // Logged once.
        consumer.start();
        check_stderr(
            &mut consumer,
            &["libtcpEvent: warn: TCPEVENT_PROBE, TCPEVENT_BTF, TCPEVENT_FILTER ignored: the program's file gives it \
               privileges, so the environment does not count"],
        );
        drop(consumer);
        // Without variables there is no line.
        let mut consumer = self.run(&[]);
        consumer.start();
        assert_eq!(consumer.stderr(), [""; 0]);
    }
}

impl Drop for PrivilegedByFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_set_user_id_program_does_not_count_the_environment_and_a_line_says_so() {
    let _turn = turn();
    PrivilegedByFile::new("setuid", 0o4755).check_that_the_environment_does_not_count();
}

#[test]
fn a_program_with_file_capabilities_does_not_count_the_environment_and_a_line_says_so() {
    let _turn = turn();
    let _perfmon = PerfmonCounts::ensure();
    let program = PrivilegedByFile::new("setcap", 0o755);
    let set: Vec<_> = SMALLEST.iter().map(|name| format!("cap_{name}")).collect();
    let status = Command::new("setcap").arg(format!("{}=ep", set.join(","))).arg(program.program()).status();
    assert!(status.unwrap().success(), "no capabilities for {:?}", program.program());
    program.check_that_the_environment_does_not_count();
}
