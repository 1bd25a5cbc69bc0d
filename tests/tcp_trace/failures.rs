//! Connections that fail, and those that must not be taken for failed ones.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process;
use std::thread;
use std::time::Duration;

use crate::consumer::turn;
use crate::monitor::{Monitor, Summary, failures, signal_process, states, warnings};
use crate::network::{
    BEHIND, Bound, CLOSED, Deaf, NO_ANSWER, NO_HOST, NO_ROUTE, Net, PROHIBITED, behind_a_router, give_up,
    in_own_network, refuse, set, time_out,
};
use crate::traffic::{own_comm, set_linger_0};

/// The warning of this thread's failed connect, from the address on.
fn warning(address: SocketAddr, reason: &str) -> String {
    format!("{address} ({reason}; pid {}, command {})", process::id(), own_comm())
}

/// How the program describes the error returned by a connect.
fn reason(error: &io::Error) -> &'static str {
    match error.raw_os_error().unwrap() {
        libc::ECONNREFUSED => "connection refused (ECONNREFUSED)",
        libc::ETIMEDOUT => "timed out (ETIMEDOUT)",
        libc::EHOSTUNREACH => "no route to host (EHOSTUNREACH)",
        libc::ENETUNREACH => "network unreachable (ENETUNREACH)",
        libc::EACCES => "prohibited by a router or firewall (EACCES)",
        _ => panic!("{error}"),
    }
}

/// The warning must say that the program gave up, after a time between these two.
fn check_given_up(text: &str, address: SocketAddr, least: Duration, most: Duration) {
    let whole = warning(address, "given up by the program after N s");
    let (start, end) = whole.split_once('N').unwrap();
    let seconds = text.strip_prefix(start).and_then(|text| text.strip_suffix(end));
    let seconds: f64 = seconds.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{text} is not {whole}"));
    // It is given to the millisecond.
    assert!((least.as_secs_f64()..most.as_secs_f64() + 0.001).contains(&seconds), "{text}: {least:?}, {most:?}");
}

#[test]
fn a_refused_connection_is_reported_with_its_reason() {
    let _turn = turn();
    let net = Net::new();
    let v6 = Bound::new(IpAddr::V6(Ipv6Addr::LOCALHOST)).address();
    let mut monitor = Monitor::start(&["--dest", &net.prefix(), "--dest=::1"], &[]);
    for address in [net.at(1, CLOSED), v6] {
        refuse(address);
        let mut lines = monitor.until_marker(net);
        lines.retain(|line| line.contains(&address.ip().to_string()) && line.contains(&address.port().to_string()));
        let names: Vec<_> = states(&lines).into_iter().map(|state| (state.state, state.pid)).collect();
        assert_eq!(names, [("SYN_SENT".to_owned(), process::id()), ("CLOSE".to_owned(), process::id())]);
        assert_eq!(failures(&lines), [warning(address, "connection refused (ECONNREFUSED)")]);
        // After the line of the close.
        assert!(lines[2].contains("WARNING"), "{lines:#?}");
    }
}

#[test]
fn a_program_that_gives_up_is_reported_with_the_time_it_waited() {
    let _turn = turn();
    let net = Net::new();
    let deaf = Deaf::new(net.at(1, 0));
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    let after = Duration::from_millis(200);
    let took = give_up(deaf.address(), after);
    let told = failures(&monitor.until_marker(net));
    let [text] = &told[..] else { panic!("{told:?}") };
    check_given_up(text, deaf.address(), after, took);
}

#[test]
fn given_up_connections_can_be_ignored_but_for_their_states() {
    let _turn = turn();
    let net = Net::new();
    let deaf = Deaf::new(net.at(1, 0));
    let mut monitor = Monitor::start(&["--ignore-given-up", "--dest", &net.prefix()], &[]);
    give_up(deaf.address(), Duration::from_millis(10));
    net.refuse(2);
    let lines = monitor.until_marker(net);
    assert_eq!(failures(&lines), [warning(net.at(2, CLOSED), "connection refused (ECONNREFUSED)")]);
    let of_deaf = states(&lines).into_iter().filter(|state| state.remote == deaf.address().ip().to_string());
    assert_eq!(of_deaf.map(|state| state.state).collect::<Vec<_>>(), ["SYN_SENT", "CLOSE"]);
    // The marker is one too.
    assert_eq!(Summary::of(&monitor.end_well()).failures, 2);
}

/// The reason must match the error that connect returned to the program.
#[test]
fn an_error_from_a_router_is_reported_as_the_program_got_it() {
    let _turn = turn();
    let mut monitor = Monitor::start(BEHIND, &[]);
    let after = Duration::from_millis(200);
    let (mut expected, given_up, took) = behind_a_router(|| {
        set("ipv4/tcp_syn_retries", "1");
        let destinations = [NO_HOST, NO_ROUTE, PROHIBITED, NO_ANSWER].concat();
        let silent: SocketAddr = (NO_ANSWER[0].parse::<IpAddr>().unwrap(), CLOSED + 1).into();
        thread::scope(|scope| {
            let attempt = |address: &str| {
                let to = SocketAddr::new(address.parse().unwrap(), CLOSED);
                scope.spawn(move || {
                    let error = TcpStream::connect(to).expect_err("there is no way");
                    warning(to, reason(&error))
                })
            };
            let attempts: Vec<_> = destinations.into_iter().map(attempt).collect();
            let one_more = scope.spawn(move || give_up(silent, after));
            let warnings: Vec<_> = attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect();
            (warnings, silent, one_more.join().unwrap())
        })
    });
    // One of each, so that a table of reasons that mixes them up is detected.
    for name in ["EHOSTUNREACH", "ENETUNREACH", "EACCES", "ETIMEDOUT"] {
        assert!(expected.iter().any(|warning| warning.contains(name)), "no {name} among {expected:#?}");
    }
    let mut told = Vec::new();
    while told.len() < expected.len() + 1 {
        let one_of = format!("one more of {expected:#?}");
        let lines = monitor.until(&one_of, |line| line.contains("TCP failure detected: "));
        // The router itself refuses while its network is set up.
        let of_router = |text: &String| text.starts_with("10.77.0.2:") || text.starts_with("[fd77::2]:");
        told.extend(failures(&lines).into_iter().filter(|text| !of_router(text)));
    }
    let at = told.iter().position(|text| text.starts_with(&given_up.to_string())).expect("one was given up");
    check_given_up(&told.remove(at), given_up, after, took);
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}

#[test]
fn a_timeout_set_by_the_program_is_reported() {
    let _turn = turn();
    let net = Net::new();
    let deaf = Deaf::new(net.at(1, 0));
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    let error = time_out(deaf.address(), Duration::from_millis(1200));
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    assert_eq!(failures(&monitor.until_marker(net)), [warning(deaf.address(), "timed out (ETIMEDOUT)")]);
}

#[test]
fn a_connection_without_a_free_port_could_not_be_started() {
    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    let to = in_own_network(|| {
        set("ipv4/ip_local_port_range", "40000 40001");
        let listener = TcpListener::bind(net.at(1, 7)).unwrap();
        let to = listener.local_addr().unwrap();
        let _both_ports = [TcpStream::connect(to).unwrap(), TcpStream::connect(to).unwrap()];
        let error = TcpStream::connect(to).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        to
    });
    assert_eq!(failures(&monitor.until_marker(net)), [warning(to, "could not be started")]);
}

#[test]
fn connections_that_were_established_are_no_failures_however_they_end() {
    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    let listener = TcpListener::bind(net.at(1, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    // From an address of the same network: both ends are watched.
    let connect = || Bound::new(net.address(2).into()).connect(to);
    let open = || {
        let client = connect();
        (client, listener.accept().unwrap().0)
    };
    // Closed in order.
    drop(open());
    // Reset by either end.
    let (client, mut server) = open();
    set_linger_0(&client);
    drop(client);
    server.read(&mut [0]).unwrap_err();
    let (mut client, server) = open();
    set_linger_0(&server);
    drop(server);
    client.read(&mut [0]).unwrap_err();
    // Never accepted.
    let client = connect();
    drop(listener);
    drop(client);
    let lines = monitor.until_marker(net);
    assert_eq!(warnings(&lines), [""; 0]);
    let established = states(&lines).iter().filter(|state| state.state == "ESTABLISHED").count();
    assert_eq!(established, 2 * 4, "{lines:#?}");
}

#[test]
fn each_of_1000_failures_is_reported_once() {
    const COUNT: u16 = 1000;

    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    thread::scope(|scope| {
        for half in [1..=COUNT / 2, COUNT / 2 + 1..=COUNT] {
            scope.spawn(move || half.for_each(|number| net.refuse(number)));
        }
    });
    let lines = monitor.until_marker(net);
    let mut told = BTreeMap::<u16, u32>::new();
    for warning in failures(&lines) {
        let (address, rest) = warning.split_once(':').unwrap();
        assert!(rest.starts_with(&format!("{CLOSED} (connection refused ")), "{warning}");
        *told.entry(net.number(address).unwrap()).or_default() += 1;
    }
    assert_eq!(told, (1..=COUNT).map(|number| (number, 1)).collect());
    assert_eq!(states(&lines).len(), usize::from(2 * COUNT));
    assert_eq!(warnings(&lines).len(), usize::from(COUNT), "nothing else is to be warned of");
    // Includes the marker.
    let summary = Summary::of(&monitor.end_well());
    let (states, failures) = (2 * u64::from(COUNT + 1), u64::from(COUNT + 1));
    assert_eq!(summary, Summary { states, failures, lost: 0 });
}

/// A monitor that is stopped: what it reports and what it calls lost must add up.
#[test]
fn what_is_lost_is_counted() {
    const COUNT: u16 = 10_000;

    let _turn = turn();
    let net = Net::new();
    let mut monitor = Monitor::start(&["--dest", &net.prefix()], &[]);
    signal_process(monitor.pid(), libc::SIGSTOP);
    thread::scope(|scope| {
        for half in [1..=COUNT / 2, COUNT / 2 + 1..=COUNT] {
            scope.spawn(move || half.for_each(|number| net.refuse(number)));
        }
    });
    signal_process(monitor.pid(), libc::SIGCONT);
    // What comes once there is room again is reported after everything that was queued.
    let mut made = COUNT;
    let mut lines = Vec::new();
    let mut is_last_told = false;
    while !is_last_told {
        made += 1;
        net.refuse(made);
        let address = net.address(made).to_string();
        while !is_last_told {
            let Some(line) = monitor.line_within(Duration::from_millis(100)) else { break };
            is_last_told = line.contains(&address) && line.contains("TCP failure");
            lines.push(line);
        }
    }
    lines.extend(monitor.end_well());
    let summary = Summary::of(&lines);
    let told = states(&lines).len() as u64;
    assert_eq!(summary.states, told);
    assert_eq!(told + summary.lost, 2 * u64::from(made), "{summary:?}");
    assert_eq!(summary.failures, failures(&lines).len() as u64);
    let mut sum = 0;
    for warning in warnings(&lines).iter().filter_map(|text| text.strip_prefix("lost ")) {
        let numbers: Vec<u64> =
            warning.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        let [lost, queue, ring] = numbers[..] else { panic!("{warning}") };
        assert_eq!(warning, format!("{lost} events (queue full: {queue}, ring full: {ring})"));
        assert_eq!(lost, queue + ring);
        sum += lost;
    }
    assert!(sum > 0 && sum == summary.lost, "{sum}, {summary:?}");
}
