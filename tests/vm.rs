//! The live tests, and the unit tests of the probe, under other kernels with kprobes (`tests/vm/run` boots them); and
//! the live tests by the last rung here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock};

/// How much slower than a real machine an emulated one is assumed to be.
const SLOWNESS: &str = "8";

const LIVE: &str = "live-";
const UNIT: &str = "tcpEvent-";

/// The newest build of these tests: cargo builds all before it runs the first.
fn tests(name: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_it = |path: &Path| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) && path.extension().is_none()
    };
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| is_it(path))
        .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
        .expect("they are built: run all tests, not this file alone")
}

/// A script that installs packages must not let apt remove others.
#[test]
fn what_a_machine_has_is_never_removed_by_apt() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for script in ["tests/vm/run", "tests/demo", "Makefile", "benches/run", ".ci/setup", ".ci/run"] {
        let text = std::fs::read_to_string(root.join(script)).unwrap();
        for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
            // Neither a message's words, nor a simulation by apt.
            let is_told = ["apt-get install -s ", "apt-get install --assume-no "].iter().any(|dry| line.contains(dry))
                || line.starts_with("die ")
                || line.starts_with("echo ");
            let installs = ["apt install ", "apt-get install ", "apt-get upgrade ", "apt-get dist-upgrade "];
            if !is_told && installs.iter().any(|command| line.contains(command)) {
                assert!(line.contains(" --no-remove "), "{script}: {line}");
                seen += 1;
            }
            let removes =
                ["remove", "purge", "autoremove"].iter().any(|word| line.contains(&format!("apt-get {word}")));
            assert!(is_told || !removes, "{script}: {line}");
        }
    }
    assert_eq!(seen, 2, "tests/vm/run and .ci/setup install packages");
}

/// The machines run side by side; tests on this one run alone.
static MACHINE: RwLock<()> = RwLock::new(());

/// Groups of tests that depend on the programs. What the library makes of events is the same on every kernel.
const OF_PROGRAMS: [&str; 11] = [
    "api_closes::",
    "api_ends::",
    "api_places::",
    "api_states::",
    "api_unsent::",
    "closes::",
    "containers::",
    "endpoints::",
    "old_kernel::",
    "owners::",
    "truth::",
];

enum Wanted {
    OfPrograms,
    TheOthers,
}

/// Runs these groups of the live tests by this rung, and a few by the other one.
fn run_tests_under(kernel: &str, rung: &str, wanted: &Wanted) {
    let _turn = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let arguments: Vec<&str> = match wanted {
        Wanted::OfPrograms => OF_PROGRAMS.to_vec(),
        Wanted::TheOthers => OF_PROGRAMS.iter().flat_map(|group| ["--skip", group]).collect(),
    };
    let output = Command::new(root.join("tests/vm/run"))
        // One processor: with two, QEMU's emulation runs code that the other one has just patched, and the guest dies
        // of a left-over int3 when a probe is attached or detached under traffic (seen in inet_sk_set_state and
        // tcp_set_state).
        .args([kernel, "--cpus", "1", "--timeout", "1800", "--"])
        .args([
            "sh",
            "-c",
            r#""$0" probe:: && TCPEVENT_PROBE="$1" "$2" closes::an_ip owners::the_ && shift && exec "$@""#,
        ])
        .arg(tests(UNIT))
        .arg(if rung == "kprobe" { "tp_btf" } else { "kprobe" })
        .arg(tests(LIVE))
        .args(arguments)
        .env("TCPEVENT_PROBE", rung)
        .env("TCPEVENT_TEST_SLOWNESS", SLOWNESS)
        .current_dir(root)
        .output()
        .expect("tests/vm/run runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "tests failed under {kernel}: {}", output.status);
    assert_eq!(text.matches("test result: ok.").count(), 3, "all tests have passed");
}

/// The last rung is not chosen if another one works, as on most machines.
#[test]
fn the_last_rung_passes_the_live_tests_here() {
    let _turn = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(tests(LIVE)).env("TCPEVENT_PROBE", "tracepoint").output().expect("the live tests run");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the live tests failed with the plain tracepoint: {}", output.status);
}

/// Its programs read through helpers, and keep their owners in a map. `make test-kernels` runs all rungs everywhere.
#[test]
fn the_truth_is_told_under_linux_6_1() {
    run_tests_under("6.1", "kprobe", &Wanted::OfPrograms);
}

/// As long as those of both kernels' programs together, so this one begins first: tests run in the order of their
/// names.
#[test]
fn the_library_keeps_its_word_under_linux_6_1() {
    run_tests_under("6.1", "kprobe", &Wanted::TheOthers);
}

/// By the rung that the library chooses there. Its programs are those of this machine's kernel, except that accepts are seen.
#[test]
fn the_truth_is_told_under_linux_6_12() {
    run_tests_under("6.12", "tp_btf", &Wanted::OfPrograms);
}
