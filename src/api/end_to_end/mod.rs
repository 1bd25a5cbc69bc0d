//! From the record to the reader, without a kernel and without root: what is written to the socket of a synthetic probe
//! (`ingest/synthetic.rs`) is decoded, completed, filtered, queued and read by the functions that hosts call.

mod handles;
mod kernel;
mod native;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use self::kernel::{Change, Kernel, LetGo, Reports};

/// How long something that must happen is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what is told by nothing but itself.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "this does not come to be: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn all_of_it_works_for_an_ordinary_user() {
    const NOBODY: u32 = 65534;
    // SAFETY: it cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    // By its descriptor: that user need not see the folder.
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let output = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .args(["end_to_end::", "--skip", "ordinary_user"])
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("a_wake_ends_one_read ... ok"), "{said}");
}
