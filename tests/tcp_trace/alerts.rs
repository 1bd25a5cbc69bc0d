//! Alerts: what Slack receives, and what happens when Slack does not take it.
//!
//! Tests that mostly wait take no turn: they load no CPU, and their monitors see their own connections only.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crate::consumer::{slowness, turn};
use crate::monitor::{Monitor, Summary, failures, new_folder, notices, parse, states, warnings};
use crate::network::{Bound, CLOSED, Deaf, Net, give_up, refuse, with_comm};
use crate::traffic::{own_comm, wall_ns};
use crate::webhook::{Certificate, Message, Request, SECRETS, Webhook, host_name, url};

const SECOND_NS: u64 = 1_000_000_000;

/// A monitor of these addresses that sends alerts to this webhook.
fn monitor(net: Net, webhook: &Webhook) -> Monitor {
    Monitor::start(&["--dest", &net.prefix()], &[("SLACK_URL", &webhook.url())])
}

/// The message of one refused connect of this thread.
fn message(net: Net, number: u16, comm: &str) -> String {
    format!(
        "TCP failure detected: {}:{CLOSED} (connection refused (ECONNREFUSED); pid {}, command {comm}) on {}",
        net.address(number),
        process::id(),
        host_name()
    )
}

/// Time from each request to the next.
fn distances(requests: &[Request]) -> Vec<f64> {
    let seconds = |pair: &[Request]| Duration::from_nanos(pair[1].time_ns - pair[0].time_ns).as_secs_f64();
    requests.windows(2).map(seconds).collect()
}

/// How many failures these messages report for each number, and how many without a destination.
fn counts(net: Net, messages: &[Request]) -> (BTreeMap<u16, u64>, u64) {
    let mut counts = BTreeMap::new();
    let mut others = 0;
    for request in messages {
        let message = Message::read(&request.text);
        assert!(message.lines <= 40, "{}", request.text);
        others += message.others;
        for (address, count) in message.counts {
            let (address, port) = address.rsplit_once(':').unwrap();
            assert_eq!(port, CLOSED.to_string());
            *counts.entry(net.number(address).unwrap()).or_default() += count;
        }
    }
    (counts, others)
}

// ---- Delivery

#[test]
fn a_failure_is_alerted_at_once_and_those_of_the_next_second_together() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200 204");
    let monitor = monitor(net, &webhook);
    let begin = wall_ns();
    net.refuse(1);
    let first = webhook.request();
    assert_eq!(first.text, message(net, 1, &own_comm()));
    assert!(first.time_ns - begin < SECOND_NS, "{first:?}");
    for number in [2, 3, 3] {
        net.refuse(number);
    }
    let second = webhook.request();
    assert!(second.time_ns - first.time_ns >= SECOND_NS * 99 / 100, "Slack takes one a second: {first:?}, {second:?}");
    let reason = format!(
        ":{CLOSED} (connection refused (ECONNREFUSED); last pid {}, command {}; first ",
        process::id(),
        own_comm()
    );
    let lines: Vec<_> = second.text.lines().collect();
    let [heading, most, least] = lines[..] else { panic!("{second:?}") };
    assert_eq!(heading, format!("3 TCP failures on {}:", host_name()));
    assert!(most.starts_with(&format!("2 x {}{reason}", net.address(3))), "{second:?}");
    assert!(least.starts_with(&format!("1 x {}{reason}", net.address(2))), "{second:?}");
    assert_eq!(counts(net, &[second]).0, [(2, 1), (3, 2)].into());

    let lines = monitor.end_well();
    assert_eq!(warnings(&lines).len(), 4, "there are no others than the failures': {lines:#?}");
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn ignored_failures_are_not_alerted() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200");
    let arguments = ["--ignore-given-up", "--dest", &net.prefix()];
    let monitor = Monitor::start(&arguments, &[("SLACK_URL", &webhook.url())]);
    let deaf = Deaf::new(net.at(1, 0));
    give_up(deaf.address(), Duration::ZERO);
    net.refuse(2);
    assert_eq!(webhook.request().text, message(net, 2, &own_comm()));
    monitor.end_well();
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn a_command_of_any_bytes_is_valid_json_and_no_markup() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200");
    let monitor = monitor(net, &webhook);
    for (comm, shown) in [
        (&b"<!here>&\"b\\\n\xff\x01"[..], r#"&lt;!here&gt;&amp;\"b\\\n\xff\x01"#),
        // Line separators, direction marks, and invisible characters.
        ("\u{85}a\u{2028}b\u{2029}".as_bytes(), r"\xc2\x85a\xe2\x80\xa8b\xe2\x80\xa9"),
        ("\u{202e}\u{2066}x\u{2069}".as_bytes(), r"\xe2\x80\xae\xe2\x81\xa6x\xe2\x81\xa9"),
        ("\u{200b}\u{feff}*`_~".as_bytes(), r"\xe2\x80\x8b\xef\xbb\xbf*`_~"),
        ("\u{3164}\u{fe0f}\u{e0100}y".as_bytes(), r"\xe3\x85\xa4\xef\xb8\x8f\xf3\xa0\x84\x80y"),
        ("\u{e9}\u{20ac}\u{1f980}".as_bytes(), "\u{e9}\u{20ac}\u{1f980}"),
    ] {
        with_comm(comm, || net.refuse(1));
        assert_eq!(webhook.request().text, message(net, 1, shown));
    }
    monitor.end_well();
}

#[test]
fn an_ipv6_address_is_in_brackets() {
    let _turn = turn();
    let mut webhook = Webhook::start("200");
    let address = Bound::new("::1".parse().unwrap()).address();
    let port = address.port().to_string();
    let arguments = ["--dest=::1", "--dport", &port];
    let monitor = Monitor::start(&arguments, &[("SLACK_URL", &webhook.url())]);
    refuse(address);
    let text = webhook.request().text;
    assert!(text.starts_with(&format!("TCP failure detected: [::1]:{port} (connection refused ")), "{text}");
    monitor.end_well();
}

#[test]
fn what_is_pending_at_the_end_is_still_delivered() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200");
    let mut monitor = monitor(net, &webhook);
    net.refuse(1);
    webhook.request();
    // This second's message has been used up.
    net.refuse(2);
    monitor.until("the second failure", |line| line.contains(&format!("{}:{CLOSED} (", net.address(2))));
    let lines = monitor.end_well();
    assert_eq!(warnings(&lines), [""; 0], "{lines:#?}");
    let rest = webhook.rest();
    assert_eq!(rest.iter().map(|request| &request.text).collect::<Vec<_>>(), [&message(net, 2, &own_comm())]);
}

// ---- Refusals

#[test]
fn too_many_requests_are_followed_by_none_before_slack_wants_one() {
    let net = Net::new();
    let mut webhook = Webhook::start("429:2 200");
    let mut monitor = monitor(net, &webhook);
    // In seconds, as a date, and without a value.
    for (number, plan) in [(1, "429:2 200"), (2, "429@1 200"), (3, "429 200")] {
        webhook.plan(plan);
        net.refuse(number);
        let [refused, taken] = [webhook.request(), webhook.request()];
        let not_before_ns = if plan == "429 200" { refused.time_ns + SECOND_NS } else { refused.not_before_ns };
        assert!(taken.time_ns >= not_before_ns, "{refused:?}, {taken:?}");
        // It waits whole seconds.
        assert!(taken.time_ns < not_before_ns + 2 * SECOND_NS * u64::from(slowness()), "{refused:?}, {taken:?}");
        assert_eq!((taken.text.as_str(), taken.word.as_str()), (&*message(net, number, &own_comm()), "200"));
        // After an outage, the next one is reported again.
        let lines = monitor.until("the recovery", |line| line.contains("delivered again"));
        let warned: Vec<_> = warnings(&lines).into_iter().filter(|text| text.starts_with("Slack")).collect();
        let [warned] = &warned[..] else { panic!("{lines:#?}") };
        assert!(warned.starts_with("Slack alert not delivered: HTTP status 429; trying again in "), "{warned}");
    }
    monitor.end_well();
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn slack_may_ask_for_an_hour_and_not_for_more() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("429:999999");
    let mut monitor = monitor(net, &webhook);
    net.refuse(1);
    webhook.request();
    let lines = monitor.until("the outage", |line| line.contains("not delivered"));
    let expected = "Slack alert not delivered: HTTP status 429; trying again in 3600 s";
    assert_eq!(warnings(&lines)[1..], [expected]);
    // No further attempt before, not even at the end.
    let ended = monitor.end_by(libc::SIGTERM);
    assert!(ended.took < Duration::from_secs(2) * slowness(), "{ended:?}");
    let told = warnings(&ended.well());
    assert_eq!(told, ["1 failures were not alerted: 0 refused by Slack, 1 not delivered"]);
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn an_alert_that_slack_refuses_is_dropped_and_counted() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("200");
    let mut monitor = monitor(net, &webhook);
    let mut lines = Vec::new();
    for (number, status) in [(1, "400"), (2, "404"), (3, "302")] {
        webhook.plan(status);
        net.refuse(number);
        assert_eq!(webhook.request().text, message(net, number, &own_comm()));
        let line = monitor.until("the refusal", |line| line.contains(" WARNING Slack "));
        lines.extend(line);
    }
    // The next alert is attempted.
    webhook.plan("200");
    net.refuse(4);
    assert_eq!(webhook.request().text, message(net, 4, &own_comm()));
    lines.extend(monitor.end_well());
    let told: Vec<_> =
        warnings(&lines).into_iter().filter(|text| !text.starts_with("TCP failure detected: ")).collect();
    let refused = |status| format!("Slack refused an alert of 1 failures: HTTP status {status}; it is dropped");
    let end = "3 failures were not alerted: 3 refused by Slack, 0 not delivered".to_owned();
    assert_eq!(told, [refused(400), refused(404), refused(302), end]);
    // Nor to the target of the redirect.
    assert_eq!(webhook.rest().len(), 0);
}

// ---- Outages

#[test]
fn an_outage_is_sat_out_with_growing_distances_and_its_failures_come_in_one_message() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("500 503 500 200");
    let mut monitor = monitor(net, &webhook);
    net.refuse(1);
    let mut requests = vec![webhook.request()];
    let mut expected: BTreeMap<u16, u64> = [(1, 100), (2, 150), (3, 250)].into();
    // In the order taken, as long as any are left.
    let mut left: Vec<_> = expected.clone().into_iter().collect();
    while !left.is_empty() {
        for (number, count) in &mut left {
            net.refuse(*number);
            *count -= 1;
        }
        left.retain(|(_, count)| *count > 0);
    }
    *expected.get_mut(&1).unwrap() += 1;
    requests.extend(webhook.requests_until("200"));
    assert_eq!(requests.len(), 4);
    // Up to 10 % more than is due, and the time of a request.
    for (distance, due) in distances(&requests).into_iter().zip([1.0, 2.0, 4.0]) {
        let most = due * 1.1 + 0.3 * f64::from(slowness());
        assert!((due * 0.99..most).contains(&distance), "{distance} s instead of {due} s");
    }
    assert_eq!(counts(net, &requests[3..]), (expected, 0));

    let mut lines = monitor.until("the recovery", |line| line.contains("delivered again"));
    lines.extend(monitor.end_well());
    assert_eq!(webhook.rest().len(), 0);
    let outage: Vec<_> = warnings(&lines).into_iter().filter(|text| text.starts_with("Slack")).collect();
    assert_eq!(outage, ["Slack alert not delivered: HTTP status 500; trying again in 1 s"]);
    let recovery = notices(&lines).into_iter().find(|text| text.contains("delivered again")).unwrap();
    let seconds = recovery.strip_prefix("Slack alerts are delivered again after ").unwrap();
    let seconds = seconds.strip_suffix(" s: 501 failures in one message").unwrap_or_else(|| panic!("{recovery}"));
    assert!((7..=9).contains(&seconds.parse::<u32>().unwrap()), "{recovery}");
    assert_eq!(failures(&lines).len(), 501);
}

#[test]
fn every_failure_is_counted_however_many_destinations_there_are() {
    const DESTINATIONS: u16 = 700;
    const OFTEN: u16 = 250;

    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("500 200");
    let mut monitor = monitor(net, &webhook);
    net.refuse(1);
    webhook.request();
    for _ in 0..3 {
        net.refuse(OFTEN);
    }
    (1..=DESTINATIONS).for_each(|number| net.refuse(number));
    let delivered = webhook.requests_until("200");
    let mut lines = monitor.until("the recovery", |line| line.contains("delivered again"));
    lines.extend(monitor.end_well());
    assert_eq!(webhook.rest().len(), 0);

    let (counts, others) = counts(net, &delivered);
    let total = u64::from(1 + 3 + DESTINATIONS);
    assert_eq!(counts.values().sum::<u64>() + others, total);
    assert_eq!(failures(&lines).len() as u64, total);
    // One message has 40 lines: the destinations that failed most often come first.
    assert_eq!(counts.len(), 40);
    assert_eq!(counts.get(&OFTEN), Some(&4), "{counts:?}");
    assert_eq!(counts.get(&1), Some(&2), "{counts:?}");
    let second_line = delivered.last().unwrap().text.lines().nth(1).unwrap();
    assert!(second_line.starts_with(&format!("4 x {}:", net.address(OFTEN))), "{second_line}");
}

#[test]
fn a_connection_that_is_closed_without_an_answer_is_an_outage() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("drop 200");
    let mut monitor = monitor(net, &webhook);
    net.refuse(1);
    let requests = webhook.requests_until("200");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].text, message(net, 1, &own_comm()));
    let lines = monitor.until("the recovery", |line| line.contains("delivered again"));
    let outage = &warnings(&lines)[1];
    // The text of curl_easy_strerror.
    let cause = "Slack alert not delivered: Server returned nothing (no headers, no data); trying again in 1 s";
    assert_eq!(outage, cause);
    monitor.end_well();
    assert_eq!(webhook.rest().len(), 0);
}

/// Its own failures are logged, but as alerts they would only feed themselves.
#[test]
fn failures_to_reach_the_webhook_are_not_alerted() {
    let _turn = turn();
    let net = Net::new();
    let reserved = Bound::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = reserved.address();
    // It watches all connections, its own too.
    let mut monitor = Monitor::start(&[], &[("SLACK_URL", &url("http", address))]);
    net.refuse(1);
    let mut lines = monitor.until("the outage", |line| line.contains("not delivered"));
    let outage = warnings(&lines).pop().unwrap();
    assert_eq!(outage, "Slack alert not delivered: Couldn't connect to server; trying again in 1 s");
    drop(reserved);
    let mut webhook = Webhook::start_at(address.port(), "200");
    let told = Message::read(&webhook.request().text);
    let mine = format!("{}:{CLOSED}", net.address(1));
    // May include other programs' failures.
    assert_eq!(told.counts.get(&mine), Some(&1), "{told:?}");
    assert!(!told.counts.contains_key(&address.to_string()), "{told:?}");

    let pid = monitor.pid();
    lines.extend(monitor.end_well());
    assert!(!webhook.rest().iter().any(|request| request.text.contains(&address.to_string())));
    let own = format!("{address} (connection refused (ECONNREFUSED); pid {pid}, command ");
    assert!(failures(&lines).iter().any(|text| text.starts_with(&own)), "{lines:#?}");
    let own: Vec<_> = states(&lines).into_iter().filter(|state| state.pid == pid).map(|state| state.state).collect();
    assert_eq!(own[..2], ["SYN_SENT", "CLOSE"]);
}

#[test]
fn a_webhook_that_never_answers_delays_no_line_and_not_the_end() {
    let net = Net::new();
    let mut webhook = Webhook::start("hang");
    let mut monitor = monitor(net, &webhook);
    net.refuse(1);
    let asked = Instant::now();
    webhook.request();
    monitor.until_marker(net);
    let mut number = 1;
    let mut slowest = Duration::ZERO;
    let mut outage = Vec::new();
    // All the time until it gives up, 10 s later.
    while outage.is_empty() {
        number += 1;
        let begin = Instant::now();
        net.refuse(number);
        let failure = format!("TCP failure detected: {}:", net.address(number));
        let mut lines = monitor.until("a failure", |line| line.contains(&failure));
        slowest = slowest.max(begin.elapsed());
        while let Some(line) = monitor.line_within(Duration::from_millis(100)) {
            lines.push(line);
        }
        outage = warnings(&lines).into_iter().filter(|text| text.starts_with("Slack")).collect();
        assert!(asked.elapsed() < Duration::from_secs(15) * slowness(), "it waits for ever");
    }
    assert!(slowest < Duration::from_secs(1), "a line took {slowest:?}");
    assert_eq!(outage, ["Slack alert not delivered: Timeout was reached; trying again in 1 s"]);
    assert!(asked.elapsed() > Duration::from_secs(9), "{:?}", asked.elapsed());
    webhook.expect("gone");

    // It tries again, and the answer hangs again.
    let message = Message::read(&webhook.request().text);
    assert_eq!(message.total(), u64::from(number) + 1, "with the marker");
    let ended = monitor.end_by(libc::SIGTERM);
    println!("slowest line: {slowest:?}; ended after {:?}", ended.took);
    assert!(ended.took < Duration::from_secs(10), "{ended:?}");
    let lines = ended.well();
    let failures = message.total();
    let end = format!("{failures} failures were not alerted: 0 refused by Slack, {failures} not delivered");
    assert_eq!(warnings(&lines), [end]);
    assert_eq!(Summary::of(&lines).failures, failures);
}

#[test]
fn an_answer_is_its_status_even_if_its_body_never_ends() {
    let net = Net::new();
    let mut webhook = Webhook::start("drip 200");
    let monitor = monitor(net, &webhook);
    net.refuse(1);
    webhook.request();
    net.refuse(2);
    webhook.expect("gone");
    assert_eq!(webhook.request().text, message(net, 2, &own_comm()));
    let lines = monitor.end_well();
    assert_eq!(warnings(&lines).len(), 2, "{lines:#?}");
    assert_eq!(webhook.rest().len(), 0);
}

#[test]
fn an_answer_is_read_no_further_than_it_can_be_one() {
    let net = Net::new();
    let mut webhook = Webhook::start("pour 200");
    let monitor = monitor(net, &webhook);
    net.refuse(1);
    webhook.request();
    // Both ends' buffers hold some megabytes.
    let poured: u64 = webhook.expect("poured")[0].parse().unwrap();
    assert!(poured < 64 << 20, "{poured} bytes");
    net.refuse(2);
    assert_eq!(webhook.request().text, message(net, 2, &own_comm()));
    // Both were accepted.
    assert_eq!(warnings(&monitor.end_well()).len(), 2);
}

#[test]
fn a_webhook_that_cannot_be_reached_is_given_up_after_5_seconds() {
    let net = Net::new();
    let deaf = Deaf::new(Net::new().at(1, 0));
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[("SLACK_URL", &url("http", deaf.address()))]);
    let begin = Instant::now();
    net.refuse(1);
    let lines = monitor.until("the outage", |line| line.contains("not delivered"));
    let seconds = begin.elapsed().as_secs_f64();
    assert!(seconds > 4.9 && seconds < 5.0 + 2.0 * f64::from(slowness()), "{seconds}");
    let expected = "Slack alert not delivered: Timeout was reached; trying again in 1 s";
    assert_eq!(warnings(&lines)[1..], [expected]);
}

#[test]
fn at_the_end_an_outage_is_tried_once_more() {
    let _turn = turn();
    let net = Net::new();
    let mut webhook = Webhook::start("500 500 200");
    let monitor = monitor(net, &webhook);
    net.refuse(1);
    let second = [webhook.request(), webhook.request()].into_iter().next_back().unwrap();
    // It logs only the first refusal. The second one must have arrived, so that it is now waiting 2 s.
    thread::sleep(Duration::from_millis(200) * slowness());
    let lines = monitor.end_well();
    let told: Vec<_> = warnings(&lines).into_iter().filter(|text| text.contains("not alerted")).collect();
    assert_eq!(told, [""; 0]);
    let rest = webhook.rest();
    let [request] = &rest[..] else { panic!("{rest:?}") };
    assert_eq!((request.word.as_str(), &request.text), ("200", &message(net, 1, &own_comm())));
    assert!(request.time_ns - second.time_ns < 3 * SECOND_NS / 2, "{second:?}, {request:?}");
}

// ---- Certificates and secrets

#[test]
fn over_tls_alerts_go_to_a_server_that_is_trusted_and_to_no_other() {
    let folder = new_folder("tls");
    let right = Certificate::new(&folder, "right", "127.0.0.1");
    let misnamed = Certificate::new(&folder, "misnamed", "127.0.0.2");
    let right_file = right.certificate.to_str().unwrap();
    let misnamed_file = misnamed.certificate.to_str().unwrap();

    for by_option in [true, false] {
        let net = Net::new();
        let mut webhook = Webhook::with_certificate(&right, "200");
        let (option, variable) = if by_option { (right_file, misnamed_file) } else { ("", right_file) };
        let dest = net.prefix();
        let arguments = ["--dest", &dest, "--slack-ca-file", option];
        let arguments = if by_option { &arguments[..] } else { &arguments[..2] };
        let monitor = Monitor::start(arguments, &[("SLACK_URL", &webhook.url()), ("SLACK_CA_FILE", variable)]);
        net.refuse(1);
        assert_eq!(webhook.request().text, message(net, 1, &own_comm()));
        monitor.end_well();
    }

    let mut monitors = Vec::new();
    for (certificate, authority) in [(&right, ""), (&right, misnamed_file), (&misnamed, misnamed_file)] {
        let net = Net::new();
        let webhook = Webhook::with_certificate(certificate, "200");
        let variables = [("SLACK_URL", &*webhook.url()), ("SLACK_CA_FILE", authority)];
        let mut monitor = Monitor::start(&["--dest", &net.prefix()], &variables);
        net.refuse(1);
        let lines = monitor.until("the outage", |line| line.contains("not delivered"));
        let cause = "SSL peer certificate or SSH remote key was not OK";
        let expected = format!("Slack alert not delivered: {cause}; trying again in 1 s");
        assert_eq!(warnings(&lines)[1..], [expected]);
        // It tries some more times at the end.
        monitor.signal(libc::SIGTERM);
        monitors.push((monitor, webhook));
    }
    for (monitor, mut webhook) in monitors {
        let told = warnings(&monitor.end().well());
        assert_eq!(told, ["1 failures were not alerted: 0 refused by Slack, 1 not delivered"]);
        assert_eq!(webhook.rest().len(), 0, "an alert went to a server that is not trusted");
    }
}

/// Each line read is checked for the URL: it must not be in the log.
#[test]
fn a_url_on_the_command_line_is_to_be_seen_no_more() {
    let _turn = turn();
    let folder = new_folder("secrets");
    let mut webhook = Webhook::start("200");
    for (number, joined) in [(1, true), (2, false)] {
        let net = Net::new();
        let (url, dest, log) = (webhook.url(), net.prefix(), folder.join(number.to_string()));
        let joined_url = format!("--slack-url={url}");
        let words = if joined { vec![joined_url.as_str()] } else { vec!["--slack-url", &url] };
        let after = ["--dest", &dest];
        // The option wins; and both are secrets.
        let variables = [("SLACK_URL", "http://127.0.0.1:1/hook-services")];
        let monitor = Monitor::with_log(&log, &[&words[..], &after].concat(), &variables);
        let command_line = fs::read(format!("/proc/{}/cmdline", monitor.pid())).unwrap();
        let command_line = String::from_utf8_lossy(&command_line);
        for secret in SECRETS.into_iter().chain(["http"]) {
            assert!(!command_line.contains(secret), "{command_line:?}");
        }
        // The public parts are still there.
        assert!(command_line.contains(&dest), "{command_line:?}");
        net.refuse(number);
        assert_eq!(webhook.request().text, message(net, number, &own_comm()));
        let lines = monitor.end_well();
        assert_eq!(parse(&lines).len(), lines.len());
    }
}
