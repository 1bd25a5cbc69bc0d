//! Processes that fail endlessly: the log stays bounded, and other processes' failures are still reported.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::consumer::{NOBODY, c_program, slowness, turn};
use crate::monitor::{
    Monitor, Summary, What, command, failures, new_folder, objects, parse, signal_process, states, warnings,
};
use crate::network::{CLOSED, Net, with_comm};
use crate::traffic::own_comm;
use crate::webhook::{Message, Webhook};

/// Processes of one user that connect endlessly.
struct Flood(Child);

impl Flood {
    /// Connects to the addresses from this number on.
    fn start(net: Net, processes: u32, seconds: u32, first: u16, addresses: u16) -> Self {
        let mut command = Command::new(c_program("flood"));
        command.args([processes, seconds].map(|number| number.to_string()));
        command.args([net.address(first).to_string(), addresses.to_string(), CLOSED.to_string()]);
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for its end. Returns the number of connections.
    fn end(self) -> u64 {
        let output = self.0.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().parse().unwrap()
    }
}

/// The omitted lines that the log reports: how many, and the last users of each report.
fn left_out(texts: &[String]) -> (u64, Vec<String>) {
    let mut count = 0;
    let mut last = Vec::new();
    for text in texts.iter().filter_map(|text| text.strip_prefix("left out ")) {
        let (lines, rest) = text.split_once(" lines (--log-rate ").unwrap_or_else(|| panic!("{text}"));
        let (_, rest) = rest.split_once("); the last one: ").unwrap_or_else(|| panic!("{text}"));
        count += lines.parse::<u64>().unwrap();
        last.push(rest.to_owned());
    }
    (count, last)
}

fn told(lines: &[String]) -> u64 {
    (states(lines).len() + failures(lines).len()) as u64
}

// ---- A flood by one user

/// While 64 processes of one user fail as fast as they can, at addresses from 1,000 on, another process fails at number
/// 1 now and then.
fn check_flood(name: &str, addresses: u16) {
    const PROCESSES: u32 = 64;
    const SECONDS: u32 = 8;
    /// Lines a second: a user may have half, with 200 s of it at once.
    const RATE: u64 = 100;
    const AT_ONCE_S: u64 = 200;

    let _turn = turn();
    let net = Net::new();
    let log = new_folder(name).join("log");
    let mut webhook = Webhook::start("200");
    let (rate, url) = (RATE.to_string(), webhook.url());
    // By the variables: a program without such a limit must not fail for want of the option.
    let variables = [("SLACK_URL", url.as_str()), ("LOG_RATE", rate.as_str())];
    let monitor = Monitor::with_log(&log, &["--dest", &net.prefix()], &variables);
    let begin = Instant::now();
    let flood = Flood::start(net, PROCESSES, SECONDS * slowness(), 1000, addresses);
    std::thread::sleep(Duration::from_secs(2) * slowness());

    let mine = net.at(1, CLOSED).to_string();
    let first = Instant::now();
    let (mut attempts, mut alerted) = (0_u32, None);
    while alerted.is_none() && first.elapsed() < Duration::from_secs(5) * slowness() {
        attempts += 1;
        net.refuse(1);
        let request = webhook.request_within(Duration::from_millis(200));
        let names_mine = |text: &str| Message::read(text).counts.contains_key(&mine);
        alerted = request.filter(|request| names_mine(&request.text)).map(|_| first.elapsed());
    }
    let made = flood.end();
    let took_s = begin.elapsed().as_secs() + 1;
    let ended = monitor.end_by(libc::SIGTERM);
    let lines = ended.well();
    let bytes = std::fs::metadata(&log).unwrap().len();
    let summary = Summary::of(&lines);
    let texts = warnings(&lines);
    let (out, last) = left_out(&texts);
    let share = summary.lost * 100 / (summary.lost + summary.states);
    println!(
        "{made} connections; {summary:?}, {share} % lost; {out} lines left out, {bytes} bytes; {attempts} attempts"
    );

    let alerted = alerted.unwrap_or_else(|| panic!("no alert names {mine} while others fail; {attempts} attempts"));
    println!("alerted after {alerted:?}");
    // The log is bounded, ...
    let most = RATE / 2 * (AT_ONCE_S + took_s);
    let of_flood = |state: &&crate::monitor::State| net.number(&state.remote).is_some_and(|number| number >= 1000);
    let flood_lines = states(&lines).iter().filter(of_flood).count() as u64;
    assert!(flood_lines <= most, "{flood_lines} lines of one user, not {most}");
    assert!(bytes < 130 * (RATE * (AT_ONCE_S + took_s)), "{bytes} bytes");
    // ... what it omits is counted, ...
    assert!(out > 0, "{texts:#?}");
    assert_eq!(told(&lines) + out, summary.states + summary.failures);
    let culprit = format!("user {NOBODY}, pid ");
    assert!(last.iter().any(|text| text.starts_with(&culprit) && text.contains(", command flood, to ")), "{last:#?}");
    // ... and other users' failures are in it.
    assert!(failures(&lines).iter().any(|text| text.starts_with(&format!("{mine} ("))), "{texts:#?}");
    assert!(share < 40, "{share} % of all events are lost");
    // No alert follows the end.
    webhook.rest();
}

#[test]
fn a_flood_at_one_destination_neither_fills_the_log_nor_drowns_others() {
    check_flood("flood-one", 1);
}

#[test]
fn a_flood_at_many_destinations_neither_fills_the_log_nor_drowns_others() {
    check_flood("flood-many", 60_000);
}

// ---- What the log leaves out

#[test]
fn a_destination_and_a_user_have_their_share_of_the_log_and_the_rest_is_counted() {
    let _turn = turn();
    for json in [false, true] {
        let net = Net::new();
        let folder = new_folder("log-rate");
        let log = folder.join("log");
        // A line a second: 200 at once, 100 of a user, 50 of a destination.
        let mut command = command(&["--log-rate=1", "--dest", &net.prefix()], &[]);
        command.env("LOG_FILE", &log).args(json.then_some("--json"));
        let monitor = Monitor::run_with_log(&log, command);
        for _ in 0..60 {
            net.refuse(1);
        }
        for number in 2..=4 {
            net.refuse(number);
        }
        // This user has none left.
        for _ in 0..20 {
            net.refuse(5);
        }
        for number in 6..20 {
            net.refuse(number);
        }
        // Another user has.
        Flood::start(net, 1, 0, 20, 1).end();
        let made = 60 + 3 + 20 + 14;
        let texts = if json {
            let ended = monitor.end_by(libc::SIGTERM);
            let objects = objects(&ended.lines, &folder);
            let kind =
                |name: &str| objects.iter().filter(|object| object["kind"] == format!("\"{name}\"")).count() as u64;
            let texts: Vec<_> = objects
                .iter()
                .filter(|object| object["kind"] == "\"warning\"")
                .map(|object| object["text"].trim_matches('"').to_owned())
                .collect();
            assert_eq!(kind("state") + kind("failure") + left_out(&texts).0, 3 * made);
            texts
        } else {
            let lines = monitor.end_well();
            let mut of = std::collections::BTreeMap::<u16, usize>::new();
            for state in states(&lines) {
                *of.entry(net.number(&state.remote).unwrap()).or_default() += 1;
            }
            // A connection has three lines, two of them states; a few more may be earned meanwhile.
            assert!((32..=36).contains(&of[&1]), "{of:?}");
            assert_eq!((of[&2], of[&3], of[&4]), (2, 2, 2), "{of:?}");
            assert!((4..=30).contains(&of[&5]), "{of:?}");
            let all: usize = of.values().sum();
            assert!((66..=70).contains(&all), "{of:?}");
            assert_eq!(told(&lines) + left_out(&warnings(&lines)).0, 3 * made);
            assert_eq!(Summary::of(&lines), Summary { states: 2 * made, failures: made, lost: 0 });
            warnings(&lines)
        };
        let (_, last) = left_out(&texts);
        let of_me = format!("user 0, pid {}, command {}, to {}", std::process::id(), own_comm(), net.at(19, CLOSED));
        assert_eq!(last.last(), Some(&of_me), "{last:?}");
    }
}

#[test]
fn without_a_limit_and_by_default_a_busy_moment_is_logged_whole() {
    const COUNT: u16 = 3000;

    let _turn = turn();
    for arguments in [&["--log-rate", "0"][..], &[]] {
        let net = Net::new();
        let log = new_folder("log-whole").join("log");
        let mut command = command(&["--dest", &net.prefix()], &[("LOG_RATE", "")]);
        command.env("LOG_FILE", &log).args(arguments);
        let monitor = Monitor::run_with_log(&log, command);
        (0..COUNT).for_each(|number| net.refuse(1 + number % 2));
        let lines = monitor.end_well();
        let count = u64::from(COUNT);
        assert_eq!(Summary::of(&lines), Summary { states: 2 * count, failures: count, lost: 0 });
        assert_eq!(told(&lines), 3 * count);
    }
}

#[test]
fn omitted_lines_are_reported_on_one_line_whatever_the_command() {
    let _turn = turn();
    let net = Net::new();
    let log = new_folder("log-rate-name").join("log");
    let monitor = Monitor::with_log(&log, &["--log-rate=1", "--dest", &net.prefix()], &[]);
    with_comm("a\n\u{2028}\u{202e}b".as_bytes(), || (0..60).for_each(|_| net.refuse(1)));
    let lines = monitor.end_well();
    let told: Vec<_> = parse(&lines)
        .into_iter()
        .filter_map(|line| if let What::Warning(text) = line.what { Some(text) } else { None })
        .filter(|text| text.starts_with("left out "))
        .collect();
    let end = format!(r", command a\n\xe2\x80\xa8\xe2\x80\xaeb, to {}", net.at(1, CLOSED));
    assert!(!told.is_empty() && told.iter().all(|text| text.ends_with(&end)), "{told:#?}");
}

// ---- What an alert names

#[test]
fn an_alert_says_that_events_were_lost_and_failures_may_be_among_them() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200");
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[("SLACK_URL", &webhook.url())]);
    // While it is stopped.
    signal_process(monitor.pid(), libc::SIGSTOP);
    (1..=10_000).for_each(|number| net.refuse(number));
    signal_process(monitor.pid(), libc::SIGCONT);
    monitor.until("the loss", |line| line.contains(" WARNING lost "));
    // A message needs another failure if all others were reported.
    net.refuse(10_001);
    let mut messages = Vec::new();
    while messages.last().is_none_or(|message: &Message| message.lost == 0) {
        messages.push(Message::read(&webhook.request().text));
    }
    let summary = Summary::of(&monitor.end_well());
    messages.extend(webhook.rest().iter().map(|request| Message::read(&request.text)));
    let lost: u64 = messages.iter().map(|message| message.lost).sum();
    let told: u64 = messages.iter().map(Message::total).sum();
    assert_eq!((lost, told), (summary.lost, summary.failures), "{messages:#?}");
}

#[test]
fn a_process_that_fails_everywhere_leaves_room_for_others_in_an_alert() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("500 200");
    let monitor = Monitor::start(&["--dest", &net.prefix()], &[("SLACK_URL", &webhook.url())]);
    net.refuse(1000);
    assert_eq!(webhook.request().word, "500");
    // Before the next message, one process fails several times at each of 400 destinations, and another one once at
    // one.
    for _ in 0..3 {
        (1000..1400).for_each(|number| net.refuse(number));
    }
    let mut other = Command::new("python3");
    let script = "import socket, sys; socket.socket().connect_ex((sys.argv[1], int(sys.argv[2])))";
    other.args(["-c", script, &net.address(1).to_string(), &CLOSED.to_string()]);
    assert!(other.status().unwrap().success());

    let message = Message::read(&webhook.requests_until("200").pop().unwrap().text);
    assert_eq!(message.counts.get(&net.at(1, CLOSED).to_string()), Some(&1), "{message:#?}");
    assert_eq!((message.total(), message.lines), (1 + 3 * 400 + 1, 40));
    monitor.end_well();
}

#[test]
fn destinations_not_reported_before_come_first_in_an_alert() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200");
    let monitor = Monitor::start(&["--dest", &net.prefix()], &[("SLACK_URL", &webhook.url())]);
    let fail_often = || {
        for _ in 0..5 {
            (1000..1040).for_each(|number| net.refuse(number));
        }
    };
    // The first message has one or a few of them, the second one all.
    fail_often();
    let (mut total, mut first) = (0, Vec::new());
    while total < 5 * 40 {
        let message = Message::read(&webhook.request().text);
        total += message.total();
        first.extend(message.counts.into_keys());
    }
    assert!(first.len() >= 40, "{first:?}");
    webhook.plan("500 200");
    net.refuse(1000);
    assert_eq!(webhook.request().word, "500");
    fail_often();
    net.refuse(1);
    let request = webhook.requests_until("200").pop().unwrap();
    assert_eq!(Message::read(&request.text).total(), 1 + 5 * 40 + 1);
    let line = request.text.lines().nth(1).unwrap();
    assert!(line.starts_with(&format!("1 x {} (", net.at(1, CLOSED))), "{}", request.text);
    monitor.end_well();
}
