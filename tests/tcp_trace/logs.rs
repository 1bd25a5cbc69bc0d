//! Log files that are rotated, or on a full disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::consumer::{root, turn};
use crate::monitor::{
    Monitor, Summary, What, command, failures, new_folder, notices, parse, read_log, states, wait_until, warnings,
    whole_lines,
};
use crate::network::{Net, with_small_disk};

#[test]
fn a_log_file_is_made_for_its_owner_and_group_and_then_added_to() {
    let _turn = turn();
    let folder = new_folder("added-to");
    let net = Net::new();
    let (by_variable, by_option) = (folder.join("variable"), folder.join("option"));
    Monitor::with_log(&by_variable, &["--dest", &net.prefix()], &[]).end_well();
    assert_eq!(fs::metadata(&by_variable).unwrap().permissions().mode() & 0o7777, 0o640);
    let first = read_log(&by_variable);
    Monitor::with_log(&by_variable, &["--dest", &net.prefix()], &[]).end_well();
    let both = read_log(&by_variable);
    assert!(both.len() == 2 * first.len() && both.starts_with(&first), "{both:#?}");

    // The option wins.
    let variables = [("LOG_FILE", by_variable.to_str().unwrap())];
    let arguments = ["--dest", &net.prefix(), "--log-file", by_option.to_str().unwrap()];
    Monitor::run_with_log(&by_option, command(&arguments, &variables)).end_well();
    assert_eq!(read_log(&by_variable), both);
}

// ---- Rotation

const INSTALLED_LOG: &str = "/var/log/tcp_trace/tcp_trace.log";

/// Connections that are refused one after another while something else runs, each at the address of its number. Returns
/// their number.
fn while_refused(net: Net, work: impl FnOnce()) -> u16 {
    /// Ends the traffic when the work has ended, or has panicked.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                net.refuse(number);
                // Some thousands a second: at full speed the numbers would run out before the work is done.
                thread::sleep(Duration::from_micros(100));
            }
            number
        });
        let finished = Done(&done);
        work();
        drop(finished);
        traffic.join().unwrap()
    })
}

/// All lines of each must be there, once and in order, from the first file to the last.
fn check_all_told(net: Net, count: u16, lines: &[String]) {
    let mut states_of = BTreeMap::<u16, Vec<String>>::new();
    let mut number = 1;
    for line in parse(lines) {
        match line.what {
            What::State(state) => {
                assert_eq!(net.number(&state.remote), Some(number), "out of order: {state:?}");
                states_of.entry(number).or_default().push(state.state);
            }
            What::Warning(text) => {
                let address = text.strip_prefix("TCP failure detected: ").unwrap_or_else(|| panic!("{text}"));
                assert_eq!(net.number(address.split_once(':').unwrap().0), Some(number), "out of order: {text}");
                assert_eq!(states_of[&number], ["SYN_SENT", "CLOSE"]);
                number += 1;
            }
            What::Notice(_) => {}
        }
    }
    assert_eq!(number - 1, count);
}

#[test]
fn no_line_is_lost_or_doubled_when_the_log_is_moved_away() {
    const ROTATIONS: usize = 50;

    let _turn = turn();
    let folder = new_folder("rotation");
    let net = Net::new();
    let log = folder.join("log");
    let moved = |number: usize| folder.join(format!("log.{number}"));
    let monitor = Monitor::with_log(&log, &["--log-rate=0", "--dest", &net.prefix()], &[]);
    let count = while_refused(net, || {
        for rotation in 1..=ROTATIONS {
            fs::rename(&log, moved(rotation)).unwrap();
            monitor.signal(libc::SIGHUP);
            wait_until("lines in a new log", || fs::metadata(&log).is_ok_and(|data| data.size() > 1000).then_some(()));
        }
    });
    let mut lines: Vec<_> = (1..=ROTATIONS).flat_map(|rotation| read_log(&moved(rotation))).collect();
    lines.extend(monitor.end_well());
    println!("{count} connections, {ROTATIONS} rotations");
    check_all_told(net, count, &lines);
}

/// The installed configuration, with another log and monitor.
fn logrotate_config(log: &Path, pid: u32, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(root().join("examples/tcp_trace/tcp_trace.logrotate")).unwrap();
    assert_eq!(text.matches(INSTALLED_LOG).count(), 1, "{text}");
    let text = text.replace(INSTALLED_LOG, log.to_str().unwrap());
    let (before, script) = text.split_once("postrotate\n").unwrap();
    let (script, after) = script.split_once("endscript\n").unwrap();
    assert!(script.contains("--signal=HUP tcp_trace.service"), "{script}");
    let path = folder.join("logrotate.conf");
    fs::write(&path, format!("{before}postrotate\nkill -HUP {pid}\nendscript\n{after}")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    path
}

fn logrotate(arguments: &[&str], folder: &Path, config: &Path) -> String {
    let output = Command::new("logrotate")
        .args(arguments)
        .arg("-s")
        .arg(folder.join("state"))
        .arg(config)
        .output()
        .expect("logrotate runs: apt-get install logrotate");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn logrotate_takes_the_configuration_that_is_installed() {
    let folder = new_folder("logrotate-debug");
    let path = folder.join("tcp_trace.conf");
    fs::copy(root().join("examples/tcp_trace/tcp_trace.logrotate"), &path).unwrap();
    let said = logrotate(&["-d"], &folder, &path);
    assert!(said.contains(&format!("rotating pattern: {INSTALLED_LOG} ")), "{said}");
    assert!(!said.contains("error:"), "{said}");
}

#[test]
fn no_line_is_lost_or_doubled_by_logrotate() {
    const ROTATIONS: usize = 6;

    let _turn = turn();
    let folder = new_folder("logrotate");
    let net = Net::new();
    let log = folder.join("tcp_trace.log");
    let monitor = Monitor::with_log(&log, &["--log-rate=0", "--dest", &net.prefix()], &[]);
    let config = logrotate_config(&log, monitor.pid(), &folder);
    let count = while_refused(net, || {
        for _ in 0..ROTATIONS {
            let before = fs::metadata(&log).unwrap().ino();
            let said = logrotate(&["-f"], &folder, &config);
            assert_eq!(said, "");
            wait_until("lines in a new log", || {
                fs::metadata(&log).is_ok_and(|data| data.ino() != before && data.size() > 1000).then_some(())
            });
        }
    });
    let last = monitor.end_well();
    // log.1 is the youngest; the older ones are compressed.
    let mut rotated: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    rotated.retain(|path| path.to_str().unwrap().contains("tcp_trace.log."));
    let number = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.split('.').nth(2).unwrap().parse::<usize>().unwrap()
    };
    rotated.sort_by_key(number);
    assert_eq!(rotated.iter().map(number).collect::<Vec<_>>(), (1..=ROTATIONS).collect::<Vec<_>>());
    let mut lines = Vec::new();
    for path in rotated.iter().rev() {
        let plain = folder.join("plain");
        let output = Command::new("gzip").arg("-cdf").arg(path).output().unwrap();
        assert!(output.status.success(), "{}", path.display());
        fs::write(&plain, output.stdout).unwrap();
        lines.extend(read_log(&plain));
    }
    lines.extend(last);
    println!("{count} connections, {ROTATIONS} rotations");
    check_all_told(net, count, &lines);
}

#[test]
fn where_no_new_log_can_be_opened_the_old_one_goes_on() {
    let _turn = turn();
    let folder = new_folder("gone");
    let net = Net::new();
    let (logs, moved) = (folder.join("logs"), folder.join("moved"));
    fs::create_dir(&logs).unwrap();
    let monitor = Monitor::with_log(&logs.join("log"), &["--dest", &net.prefix()], &[]);
    fs::rename(&logs, &moved).unwrap();
    monitor.signal(libc::SIGHUP);
    let old = moved.join("log");
    wait_until("a warning", || (warnings(&read_log(&old)).len() == 1).then_some(()));
    net.refuse(1);
    wait_until("a failure", || (failures(&read_log(&old)).len() == 1).then_some(()));
    // Moved back: the next signal finds it.
    fs::rename(&moved, &logs).unwrap();
    monitor.signal(libc::SIGHUP);
    net.refuse(2);
    let lines = monitor.end_well();
    assert_eq!(failures(&lines).len(), 2);
    assert!(warnings(&lines)[0].contains("No such file or directory"), "{lines:#?}");
}

// ---- A full disk

#[test]
fn lines_lost_to_a_full_disk_are_reported_and_no_line_is_cut() {
    const DISK: usize = 1024 * 1024;
    /// Initial room for the log, in lines of some 100 bytes.
    const ROOM: usize = 32 * 1024;
    /// Lines of a connection.
    const EACH: u64 = 3;

    let _turn = turn();
    let folder = new_folder("full");
    with_small_disk(&folder, DISK, || {
        let (log, ballast) = (folder.join("log"), folder.join("ballast"));
        fs::write(&ballast, vec![0; DISK - ROOM]).unwrap();
        let cannot = format!(
            "tcp_trace: cannot write the log {}: No space left on device; lines are lost until it can be written",
            log.display()
        );
        let net = Net::new();
        let mut monitor = Monitor::with_log(&log, &["--dest", &net.prefix()], &[]);
        // Several times what fits.
        let mut count = 0;
        for _ in 0..500 {
            count += 1;
            net.refuse(count);
        }
        monitor.error("the full disk", |line| line == cannot);
        // The rest of the disk may still take a line or two.
        for _ in 0..500 {
            count += 1;
            net.refuse(count);
        }
        let full = wait_until("whole lines", || read_log_if_whole(&log));
        let told = failures(&full).len();
        assert!(told > 50 && told < 400, "{told} of {count}");

        // Then there is room enough even for earlier events that the program has yet to read.
        fs::remove_file(&ballast).unwrap();
        let before = count;
        wait_until("lines again", || {
            count += 1;
            net.refuse(count);
            let lines = read_log_if_whole(&log)?;
            let number = |text: &String| net.number(text.split(':').next().unwrap()).unwrap();
            failures(&lines).iter().any(|text| number(text) > before).then_some(())
        });
        let ended = monitor.end_by(libc::SIGTERM);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        let lines = &ended.lines;
        let lost: Vec<u64> = warnings(lines)
            .iter()
            .filter_map(|text| text.strip_suffix(" lines of the log were lost: No space left on device"))
            .map(|count| count.parse().unwrap())
            .collect();
        // Each time there was room for a line again. One on stderr was read above.
        assert!(ended.errors.len() < lost.len() && ended.errors.iter().all(|line| *line == cannot), "{ended:#?}");
        let lost: u64 = lost.iter().sum();
        let kept = (states(lines).len() + failures(lines).len()) as u64;
        assert_eq!(kept + lost, EACH * u64::from(count));
        let count = u64::from(count);
        // It kept watching meanwhile.
        assert_eq!(Summary::of(lines), Summary { states: 2 * count, failures: count, lost: 0 });
        assert_eq!(notices(lines).iter().filter(|text| text.starts_with("stopped")).count(), 1);
    });
}

/// The lines of a log that is being written to. `None` at a moment when a line is being cut off or completed, right
/// after a write that was cut short.
fn read_log_if_whole(path: &Path) -> Option<Vec<String>> {
    whole_lines(&fs::read(path).unwrap())
}

#[test]
fn a_disk_that_stays_full_is_reported_on_stderr() {
    let _turn = turn();
    let net = Net::new();
    let mut command = command(&["--dest", &net.prefix()], &[]);
    command.env("LOG_FILE", "/dev/full");
    let mut monitor = Monitor::run_without_log(command);
    let cannot = "tcp_trace: cannot write the log /dev/full: No space left on device; lines are lost until it can be \
                  written";
    monitor.error("the full disk", |line| line == cannot);
    let ended = monitor.end_by(libc::SIGTERM);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let [end] = &ended.errors[..] else { panic!("{ended:?}") };
    let (count, words) = end.strip_prefix("tcp_trace: ").and_then(|text| text.split_once(' ')).unwrap();
    assert!(count.parse::<u64>().unwrap() >= 2, "{end}");
    assert_eq!(words, "lines of the log were lost: No space left on device");
}
