//! The command line and the variables.

use crate::monitor::{command, run_to_end};

/// Arguments, variables, and how the line must begin, after the program's name.
type Wrong = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

const WRONG: [Wrong; 56] = [
    (&["--dest", "1.2.3.4.5"], &[], "--dest: 1.2.3.4.5: "),
    (&["--dest=10.0.0.256"], &[], "--dest: 10.0.0.256: "),
    (&["--dest=10.0.0.0/33"], &[], "--dest: 10.0.0.0/33: "),
    (&["--dest=10.0.0.0/"], &[], "--dest: 10.0.0.0/: "),
    (&["--dest=10.0.0.0/-1"], &[], "--dest: 10.0.0.0/-1: "),
    (&["--dest=10.0.0.0/+8"], &[], "--dest: 10.0.0.0/+8: "),
    (&["--dest=10.0.0.0/8/8"], &[], "--dest: 10.0.0.0/8/8: "),
    (&["--dest=/8"], &[], "--dest: /8: "),
    (&["--dest=::1/129"], &[], "--dest: ::1/129: "),
    (&["--dest=fe80::1%lo"], &[], "--dest: fe80::1%lo: "),
    (&["--dest=2001:db8::1::2"], &[], "--dest: 2001:db8::1::2: "),
    (&["--dest=[::1]"], &[], "--dest: [::1]: "),
    (&["--dest=localhost"], &[], "--dest: localhost: "),
    // No word of the user's may get into the filter as anything else.
    (&["--dest=10.0.0.1 dport 9"], &[], "--dest: dport: "),
    (&["--dest", "failed"], &[], "--dest: failed: "),
    (&["--dest=10.0.0.1,src"], &[], "--dest: src: "),
    (&["--dest=10.0.0.1\nfailed"], &[], "--dest: failed: "),
    (&["--dest=10.0.0.1\x0bfailed"], &[], r"--dest: 10.0.0.1\x0bfailed: "),
    (&["--dport=80 dst 10.0.0.1"], &[], "--dport: dst: "),
    (&["--dport", "0"], &[], "--dport: 0: "),
    (&["--dport=65536"], &[], "--dport: 65536: "),
    (&["--dport=4294967376"], &[], "--dport: 4294967376: "),
    (&["--dport=-80"], &[], "--dport: -80: "),
    (&["--dport=80-"], &[], "--dport: 80-: "),
    (&["--dport=90-80"], &[], "--dport: 90-80: "),
    (&["--dport=1-2-3"], &[], "--dport: 1-2-3: "),
    (&["--dport=+80"], &[], "--dport: +80: "),
    (&["--dport=0x50"], &[], "--dport: 0x50: "),
    (&["--dport=http"], &[], "--dport: http: "),
    (&["--dport=80,http"], &[], "--dport: http: "),
    (&["--dest", ""], &[], "--dest: "),
    (&["--dest= ,"], &[], "--dest: "),
    (&["--dport="], &[], "--dport: "),
    (&["--log-file="], &[], "--log-file: "),
    (&["--log-rate="], &[], "--log-rate: "),
    (&["--log-rate=-1"], &[], "--log-rate: -1: "),
    (&["--log-rate=1.5"], &[], "--log-rate: 1.5: "),
    (&["--log-rate=100000"], &[], "--log-rate: 100000: "),
    (&["--slack-url="], &[], "--slack-url: "),
    (&["--slack-ca-file="], &[], "--slack-ca-file: "),
    (&["--dest"], &[], "--dest: "),
    (&["--json", "--dport"], &[], "--dport: "),
    (&["--json=yes"], &[], "--json: "),
    (&["--colour"], &[], "--colour: "),
    // It may be a mistyped secret.
    (&["--slack-uri=http://127.0.0.1/hook-services"], &[], "--slack-uri: "),
    (&["-x"], &[], "-x: "),
    (&["here"], &[], "here: "),
    (&["--slack-url", "ftp://127.0.0.1/hook-services"], &[], "--slack-url: not an http or https URL "),
    (&["--slack-url=127.0.0.1/hook-services"], &[], "--slack-url: not an http or https URL "),
    (&["--slack-url=file:///hook-services"], &[], "--slack-url: not an http or https URL "),
    (&["--slack-url=http://"], &[], "--slack-url: not an http or https URL "),
    (&[], &[("DEST_IP", "10.0.0.300")], "DEST_IP: 10.0.0.300: "),
    (&[], &[("DEST_IP", "10.0.0.1 10.0.0.300")], "DEST_IP: 10.0.0.300: "),
    (&[], &[("DEST_PORT", "80,8000-7000")], "DEST_PORT: 8000-7000: "),
    (&[], &[("LOG_RATE", "many")], "LOG_RATE: many: "),
    (&[], &[("SLACK_URL", "ftp://127.0.0.1/hook-services")], "SLACK_URL: not an http or https URL "),
];

#[test]
fn bad_usage_is_status_2_and_one_line_that_names_it() {
    for (arguments, variables, begin) in WRONG {
        let line = run_to_end(command(arguments, variables)).badly(2);
        let rest = line.strip_prefix(&format!("tcp_trace: {begin}"));
        let rest = rest.unwrap_or_else(|| panic!("{arguments:?} {variables:?}: {line}"));
        assert!(!rest.is_empty(), "it says no remedy: {line}");
    }
}

#[test]
fn a_start_that_fails_is_status_1_and_one_line_that_says_why() {
    for (arguments, variables, parts) in [
        (&["--log-file=/no/such/log"][..], &[][..], ["/no/such/log", "No such file or directory"]),
        (&[], &[("LOG_FILE", "/no/such/log")], ["/no/such/log", "No such file or directory"]),
        (&["--log-file=/"], &[], [" /", "Is a directory"]),
        (
            &["--slack-url=http://127.0.0.1/", "--slack-ca-file=/no/such/file"],
            &[],
            ["/no/such/file", "No such file or directory"],
        ),
    ] {
        let line = run_to_end(command(arguments, variables)).badly(1);
        assert!(line.starts_with("tcp_trace: ") && parts.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn help_and_version_are_answers_and_no_errors() {
    let help = run_to_end(command(&["--help"], &[]));
    assert_eq!((help.status, help.errors.len()), (Some(0), 0));
    let text = help.lines.join("\n");
    assert!(text.starts_with("Usage: tcp_trace "), "{text}");
    for option in [
        "dest",
        "dport",
        "log-file",
        "log-rate",
        "json",
        "slack-url",
        "slack-ca-file",
        "ignore-given-up",
        "help",
        "version",
    ] {
        assert!(text.contains(&format!("\n  --{option} ")), "{option} is not in {text}");
    }
    for variable in crate::monitor::VARIABLES {
        assert!(text.contains(&format!("${variable}")), "{variable} is not in {text}");
    }
    assert!(help.lines.iter().all(|line| line.chars().count() <= 120), "{text}");
    let version = run_to_end(command(&["--version"], &[]));
    assert_eq!((version.status, version.errors.len()), (Some(0), 0));
    let number = env!("CARGO_PKG_VERSION");
    assert_eq!(version.lines, [format!("tcp_trace {number} (library {number})")]);
}
