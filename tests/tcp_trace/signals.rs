//! How it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::consumer::{slowness, turn};
use crate::monitor::{Monitor, Summary, command, failures, new_folder, patience, run_to_end, states, wait_until};
use crate::network::Net;
use crate::webhook::Webhook;

/// Everything that happened before the signal is reported.
#[test]
fn either_signal_ends_it_with_everything_reported_and_a_summary() {
    const COUNT: u16 = 300;

    let _turn = turn();
    let folder = new_folder("ends");
    for (signal, to_file) in
        [(libc::SIGTERM, true), (libc::SIGINT, true), (libc::SIGTERM, false), (libc::SIGINT, false)]
    {
        let net = Net::new();
        let prefix = net.prefix();
        let log = folder.join(signal.to_string());
        let monitor = if to_file {
            Monitor::with_log(&log, &["--dest", &prefix], &[])
        } else {
            Monitor::start(&["--dest", &prefix], &[])
        };
        (1..=COUNT).for_each(|number| net.refuse(number));
        let ended = monitor.end_by(signal);
        assert!(ended.took < Duration::from_secs(2) * slowness(), "{:?}", ended.took);
        let lines = ended.well();
        assert_eq!(failures(&lines).len(), usize::from(COUNT), "{signal}, to a file: {to_file}");
        assert_eq!(states(&lines).len(), usize::from(2 * COUNT));
        let count = u64::from(COUNT);
        assert_eq!(Summary::of(&lines), Summary { states: 2 * count, failures: count, lost: 0 });
    }
}

#[test]
fn a_second_signal_does_not_wait_for_alerts() {
    let _turn = turn();
    for (first, second) in [(libc::SIGTERM, libc::SIGINT), (libc::SIGINT, libc::SIGTERM)] {
        let net = Net::new();
        let mut webhook = Webhook::start("hang");
        let monitor = Monitor::start(&["--dest", &net.prefix()], &[("SLACK_URL", &webhook.url())]);
        net.refuse(1);
        webhook.request();
        let begin = Instant::now();
        monitor.signal(first);
        // A different second signal, once the first has been taken: until then both would be pending.
        wait_until("the first signal is taken", || (pending(monitor.pid()) & 1 << (first - 1) == 0).then_some(()));
        monitor.signal(second);
        let ended = monitor.end();
        assert_eq!((ended.status, ended.signal), (None, Some(second)), "{ended:?}");
        assert!(begin.elapsed() < Duration::from_secs(3) * slowness(), "{:?}", begin.elapsed());
    }
}

/// The signals pending for a process.
fn pending(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t"));
    set.map_or(0, |set| u64::from_str_radix(set, 16).unwrap())
}

#[test]
fn a_hangup_is_nothing_to_a_log_on_stdout() {
    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    for number in 1..=3 {
        monitor.signal(libc::SIGHUP);
        net.refuse(number);
    }
    assert_eq!(failures(&monitor.until_marker(net)).len(), 3);
    monitor.end_well();
}

#[test]
fn it_ends_when_its_log_has_no_reader_any_more() {
    let _turn = turn();
    let net = Net::new();
    let mut child = command(&["--dest", &net.prefix()], &[])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("watching") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "it has ended");
    }
    drop(reader);
    let until = Instant::now() + patience();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("it goes on");
        }
        net.refuse(1);
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert_eq!(errors, "tcp_trace: the log on standard output has no reader any more\n");
}

/// A FIFO as log must wait for its reader. A signal must end that.
#[test]
fn a_fifo_that_has_no_reader_does_not_keep_it_from_ending() {
    let fifo = new_folder("fifo").join("log");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let net = Net::new();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut command = command(&["--dest", &net.prefix()], &[]);
        command.env("LOG_FILE", &fifo);
        let monitor = Monitor::run_without_log(command);
        // Once it opens the log its signals are blocked, and it has a descriptor for them.
        wait_until("the descriptor for signals", || {
            let descriptors = fs::read_dir(format!("/proc/{}/fd", monitor.pid())).unwrap();
            let links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
            (links.filter(|link| link.to_string_lossy().contains("signalfd")).count() >= 2).then_some(())
        });
        let ended = monitor.end_by(signal);
        assert!(ended.took < Duration::from_secs(2) * slowness(), "{:?}", ended.took);
        let line = ended.badly(1);
        assert!(line.contains("cannot open the log") && line.contains("nothing has opened it for reading"), "{line}");
    }
}

/// In a folder that others can write to, a link could make it write to any file.
#[test]
fn a_log_that_is_a_symbolic_link_is_not_followed() {
    let folder = new_folder("link");
    let (target, log) = (folder.join("target"), folder.join("log"));
    fs::write(&target, "as it was\n").unwrap();
    std::os::unix::fs::symlink(&target, &log).unwrap();
    let net = Net::new();
    let line = run_to_end(command(&["--dest", &net.prefix(), "--log-file", log.to_str().unwrap()], &[])).badly(1);
    assert!(line.contains("it is a symbolic link, and links are not followed"), "{line}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "as it was\n");
}
