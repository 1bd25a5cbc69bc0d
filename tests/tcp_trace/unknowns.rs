//! What the plain tracepoint does not know must not be reported as known.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process;
use std::time::Duration;

use crate::consumer::turn;
use crate::monitor::{Monitor, Object, command_by_tracepoint, failures, new_folder, objects};
use crate::network::{Bound, Deaf, Net, give_up, time_out};
use crate::traffic::own_comm;

fn start(arguments: &[&str]) -> Monitor {
    let monitor = Monitor::run(command_by_tracepoint(arguments));
    assert!(monitor.first_lines.last().unwrap().contains("probe tracepoint"), "{:?}", monitor.first_lines);
    monitor
}

#[test]
fn a_failure_whose_reason_is_not_known_says_so() {
    let _turn = turn();
    let net = Net::new();
    let deaf = Deaf::new(net.at(1, 0));
    let mut monitor = start(&["--ignore-given-up", "--dest", &net.prefix()]);
    // The kernel itself ends this connect: the program does not give up.
    time_out(deaf.address(), Duration::from_millis(1200));
    let expected = format!("{} (reason unknown; pid {}, command {})", deaf.address(), process::id(), own_comm());
    assert_eq!(failures(&monitor.until_marker(net)), [expected]);
    monitor.end_well();
}

#[test]
fn json_has_no_figure_and_no_reason_that_is_not_known() {
    let _turn = turn();
    let net = Net::new();
    let folder = new_folder("json-unknown");
    let deaf = Deaf::new(net.at(1, 0));
    let mut monitor = start(&["--json", "--dest", &net.prefix()]);
    time_out(deaf.address(), Duration::from_millis(1200));
    give_up(deaf.address(), Duration::from_millis(100));
    // One with a reason, and one with figures.
    net.refuse(2);
    let listener = TcpListener::bind(net.at(3, 0)).unwrap();
    let mut client = Bound::new(net.address(4).into()).connect(listener.local_addr().unwrap());
    let mut server = listener.accept().unwrap().0;
    client.write_all(&[b'x'; 5000]).unwrap();
    server.read_exact(&mut [0; 5000]).unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);

    let mut lines = monitor.until_marker(net);
    // Its counters, and so its close, come from the kernel a little later.
    let is_close = |line: &str| {
        line.contains(&format!("\"local_addr\":\"{}\"", net.address(4))) && line.contains(",\"new_state\":\"CLOSE\"")
    };
    if !lines.iter().any(|line| is_close(line)) {
        lines.extend(monitor.until("the close that is counted", is_close));
    }
    let objects = objects(&lines, &folder);
    let of = |kind: &str, field: &str, number: u16| -> Vec<Object> {
        let address = format!("\"{}\"", net.address(number));
        let kind = format!("\"{kind}\"");
        let is_its = |object: &&Object| object.get(field) == Some(&address) && object["kind"] == kind;
        objects.iter().filter(is_its).cloned().collect()
    };
    let closes = |field, number| -> Vec<Object> {
        of("state", field, number).into_iter().filter(|object| object["new_state"] == "\"CLOSE\"").collect()
    };
    let values =
        |object: &Object, names: &[&str]| -> Vec<String> { names.iter().map(|name| object[*name].clone()).collect() };
    let figures = ["payload_sent", "payload_received", "bytes_retransmitted"];

    let failed = closes("remote_addr", 1);
    assert_eq!(failed.len(), 2, "{objects:#?}");
    for (object, given_up) in failed.iter().zip(["false", "true"]) {
        assert_eq!(values(object, &figures), ["null"; 3], "{object:#?}");
        assert_eq!(values(object, &["error", "given_up", "ending"]), ["\"unknown\"", given_up, "null"], "{object:#?}");
    }
    let told = of("failure", "remote_addr", 1);
    assert_eq!(values(&told[0], &["error", "reason"]), ["\"unknown\"", "\"reason unknown\""]);
    assert!(told[1]["reason"].starts_with("\"given up by the program after "), "{told:#?}");

    let refused = closes("remote_addr", 2);
    assert_eq!(values(&refused[0], &["error", "payload_sent"]), ["\"ECONNREFUSED\"", "null"]);
    let client = closes("local_addr", 4);
    assert_eq!(
        values(&client[0], &["error", "payload_sent", "payload_received"]),
        ["null", "5000", "0"],
        "{client:#?}"
    );
    monitor.end_well();
}
