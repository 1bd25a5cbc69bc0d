//! Which connections are watched.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::consumer::turn;
use crate::monitor::{Monitor, failures};
use crate::network::{Net, refuse};

/// Ports without a listener.
const PORTS: [u16; 4] = [2, 3, 4, 6];

/// Has connections refused, and checks which of them are reported: those of `told`, by index.
fn check(arguments: &[&str], variables: &[(&str, &str)], attempts: &[SocketAddr], told: &[usize]) {
    let mut monitor = Monitor::start(arguments, variables);
    for to in attempts {
        refuse(*to);
    }
    // The first one that must be reported, once more, marks the end.
    let marker = attempts[told[0]];
    refuse(marker);
    let prefix = format!("TCP failure detected: {marker} (");
    let mut lines = monitor.until("the first one", |line| line.contains(&prefix));
    lines.extend(monitor.until("the first one again", |line| line.contains(&prefix)));
    // Another program's may be among them if all connections are watched.
    let mine = |text: &String| attempts.iter().any(|to| text.starts_with(&format!("{to} (")));
    let seen: Vec<_> = failures(&lines).into_iter().filter(mine).collect();
    let expected = told.iter().chain(&told[..1]).map(|index| attempts[*index]);
    assert_eq!(seen.len(), told.len() + 1, "{arguments:?} {variables:?}: {seen:#?}");
    for (text, expected) in seen.iter().zip(expected) {
        assert!(text.starts_with(&format!("{expected} (")), "{arguments:?} {variables:?}: {seen:#?}");
    }
    monitor.end_well();
}

/// Two addresses of one network, one of another, and one of IPv6.
fn addresses() -> [IpAddr; 4] {
    let (first, second) = (Net::new(), Net::new());
    [first.address(1).into(), first.address(2).into(), second.address(1).into(), Ipv6Addr::LOCALHOST.into()]
}

fn at(addresses: [IpAddr; 4], port: u16) -> [SocketAddr; 4] {
    addresses.map(|address| (address, port).into())
}

#[test]
fn destinations_are_addresses_and_prefixes() {
    let _turn = turn();
    let addresses = addresses();
    let attempts = at(addresses, PORTS[0]);
    let [first, second, third, v6] = addresses.map(|address| address.to_string());
    let [second_octet, third_octet] =
        [&first, &third].map(|address| address.split('.').nth(1).unwrap().parse::<u8>().unwrap());
    let network = format!("127.{second_octet}.0.0/16");
    assert_ne!(second_octet, third_octet);
    let both = format!("{first},{third}");
    check(&["--dest", &network], &[], &attempts, &[0, 1]);
    check(&[&format!("--dest={second}"), "--dest", &v6], &[], &attempts, &[1, 3]);
    check(&["--dest", &format!("{first}/32"), "--dest=::1/128"], &[], &attempts, &[0, 3]);
    check(&["--dest", &both], &[], &attempts, &[0, 2]);
    check(&[], &[("DEST_IP", &both)], &attempts, &[0, 2]);
    check(&[], &[("DEST_IP", &format!(" {third} {network}, ::1/128\t"))], &attempts, &[0, 1, 2, 3]);
}

#[test]
fn ports_are_numbers_and_ranges() {
    let _turn = turn();
    let address: IpAddr = Net::new().address(1).into();
    let attempts = PORTS.map(|port| SocketAddr::new(address, port));
    let dest = format!("--dest={address}");
    check(&[&dest, "--dport", "2", "--dport=4"], &[], &attempts, &[0, 2]);
    check(&[&dest, "--dport=3-5"], &[], &attempts, &[1, 2]);
    check(&[&dest], &[("DEST_PORT", "2,4-6")], &attempts, &[0, 2, 3]);
    check(&["--dport=3", "--dport=6"], &[], &attempts, &[1, 3]);
}

#[test]
fn an_option_replaces_the_variable_of_its_meaning_and_no_other() {
    let _turn = turn();
    let addresses = addresses();
    let attempts = [at(addresses, PORTS[0]), at(addresses, PORTS[1])].concat();
    let [first, second, ..] = addresses.map(|address| address.to_string());
    let variables = [("DEST_IP", second.as_str()), ("DEST_PORT", "3")];
    check(&[], &variables, &attempts, &[5]);
    check(&["--dest", &first], &variables, &attempts, &[4]);
    check(&["--dport=2"], &variables, &attempts, &[1]);
    check(&["--dest", &first, "--dport=2"], &variables, &attempts, &[0]);
    // It is not even read then.
    check(&["--dest", &first], &[("DEST_IP", "nonsense")], &attempts, &[0, 4]);
}

#[test]
fn without_a_destination_all_is_watched() {
    let _turn = turn();
    let addresses = addresses();
    let attempts = at(addresses, PORTS[0]);
    check(&[], &[], &attempts, &[0, 1, 2, 3]);
    let empty = ["DEST_IP", "DEST_PORT", "SLACK_URL", "SLACK_CA_FILE", "LOG_FILE", "LOG_RATE"].map(|name| (name, ""));
    check(&[], &empty, &attempts, &[0, 1, 2, 3]);
}

#[test]
fn the_first_line_says_what_is_watched() {
    let _turn = turn();
    let version = env!("CARGO_PKG_VERSION");
    for (arguments, destinations) in [
        (&[][..], "all destinations"),
        (&["--dest=127.99.0.1", "--dest", "::1", "--dport=80"], "127.99.0.1,::1 port 80"),
        (&["--dport=80,8000-8999"], "all destinations port 80,8000-8999"),
    ] {
        let monitor = Monitor::start(arguments, &[]);
        let last = monitor.first_lines.last().unwrap();
        let text = format!(" NOTICE watching TCP connections to {destinations} (library {version}, probe ");
        let probe = last.split_once(&text).and_then(|(_, rest)| rest.strip_suffix(')'));
        assert!(["kprobe", "tp_btf"].contains(&probe.unwrap_or(last)), "{last}");
        let no_slack = "NOTICE no Slack URL is set: failures are only logged";
        assert!(monitor.first_lines[0].ends_with(no_slack), "{:?}", monitor.first_lines);
    }
}
