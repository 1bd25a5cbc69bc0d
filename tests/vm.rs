//! The live tests under other kernels, which have kprobes: all rungs each. `tests/vm/run` boots them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// How much slower than a real machine an emulated one is taken to be.
const SLOWNESS: &str = "8";

/// The newest build of the live tests: cargo builds all tests before it runs the first.
fn live_tests() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_live = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("live-")) && path.extension().is_none()
    };
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| is_live(path))
        .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
        .expect("the live tests are built: run all tests, not this file alone")
}

fn run_live_tests_under(kernel: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("tests/vm/run"))
        // One processor: with two, QEMU's emulation runs code that the other one has just patched, and the guest dies
        // of a left-over int3 where a probe comes or goes under traffic (seen in inet_sk_set_state and tcp_set_state).
        .args([kernel, "--cpus", "1", "--timeout", "1800", "--", "sh", "-c"])
        .arg(
            "for rung in kprobe tp_btf tracepoint; do
                 echo \"== Linux $(uname -r), $rung\"
                 TCPEVENT_PROBE=$rung \"$0\" || failed=1
             done
             exit ${failed:-0}",
        )
        .arg(live_tests())
        .env("TCPEVENT_TEST_SLOWNESS", SLOWNESS)
        .current_dir(root)
        .output()
        .expect("tests/vm/run runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the live tests failed under {kernel}: {}", output.status);
    for rung in ["kprobe", "tp_btf", "tracepoint"] {
        assert!(text.contains(&format!(", {rung}\n")), "{rung} was not tested under {kernel}");
    }
    assert_eq!(text.matches("test result: ok.").count(), 3, "all rungs have passed");
}

/// The last rung is not chosen where another one works, as on most machines.
#[test]
fn the_last_rung_passes_the_live_tests_here() {
    let output = Command::new(live_tests()).env("TCPEVENT_PROBE", "tracepoint").output().expect("the live tests run");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the live tests failed with the plain tracepoint: {}", output.status);
}

#[test]
fn all_rungs_pass_the_live_tests_under_linux_6_1() {
    run_live_tests_under("6.1");
}

#[test]
fn all_rungs_pass_the_live_tests_under_linux_6_12() {
    run_live_tests_under("6.12");
}
