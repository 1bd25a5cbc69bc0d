//! tcpevent_open and its errors; and the library writes nothing that was not asked for.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::api_watcher::Watcher;
use crate::consumer::{NOBODY, c_program, kernel_version, slowness, turn};

/// Runs `tests/c/api.c` in one of its modes.
fn hostile(arguments: &[&str]) {
    let _turn = turn();
    let output = Command::new(c_program("api")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && said == ["", ""], "{}: {said:?}", output.status);
}

#[test]
fn hostile_arguments_are_refused_with_a_text_and_do_no_harm() {
    hostile(&["arguments"]);
}

#[test]
fn a_handle_can_be_closed_while_others_use_it() {
    hostile(&["closes", if slowness() > 1 { "2" } else { "10" }]);
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(Watcher::idle().ask("version", "version"), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_log_goes_to_the_program_at_the_level_it_asks_for() {
    let _turn = turn();
    let (lines, _) = run_script(watcher(), "open 0 log=2\nstatistics 0\nclose 0\n");
    let (of_log, others): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.starts_with("log "));
    let probe = if others[1].contains(" probe=1 ") {
        "kprobe"
    } else if others[1].contains(" probe=3 ") {
        "tracepoint"
    } else {
        "tp_btf"
    };
    assert!(of_log.contains(&&format!("log 2 attached by {probe}")), "{of_log:?}");
    assert!(of_log.iter().all(|line| line.starts_with("log 2 ")), "{of_log:?}");

    // A healthy start has no warnings. The log goes only to the handle that asked for it.
    let (lines, _) = run_script(watcher(), "open 0 log=1\nclose 0\nopen 1 log=3\nclose 1\n");
    let closed = lines.iter().position(|line| line == "closed 0").unwrap();
    assert_eq!(lines[..closed], ["opened 0"]);
    assert!(lines.iter().any(|line| line.starts_with("log 3 ")), "{lines:?}");
    assert!(lines.iter().all(|line| !line.starts_with("log 1 ")), "{lines:?}");
}

pub fn watcher() -> Command {
    Command::new(c_program("api_watch"))
}

/// All that `tests/c/api_watch.c` prints for these commands: lines on stdout, text on stderr.
pub fn run_script(mut program: Command, script: &str) -> (Vec<String>, String) {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let [lines, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{}: {errors}", output.status);
    (lines.lines().map(ToOwned::to_owned).collect(), errors)
}

#[test]
fn nothing_is_written_anywhere_and_the_environment_is_nothing_to_it() {
    let _turn = turn();
    let variables = [
        ("TCPEVENT_LOG", "debug"),
        ("TCPEVENT_FILTER", "nonsense"),
        ("TCPEVENT_QUEUE", "many"),
        ("TCPEVENT_NETLINK_INTERVAL", "soon"),
        ("TCPEVENT_ON_ERROR", "exit"),
        ("TCPEVENT_BTF", "/no/such/file"),
    ];
    let script = "\
open 0 events=7 queue=1 interval=100
open 1 probe=9
open 2 filter=nonsense
open 3 btf=/no/such/file
read 0 1 300
read 5 1 0
statistics 0
poll 0 0
close 0
close 0
become 65534
open 4
";
    let mut program = watcher();
    program.envs(variables);
    let (lines, errors) = run_script(program, script);
    assert_eq!(errors, "");
    let words: Vec<_> = lines.iter().filter_map(|line| line.split([' ', '\t']).next()).collect();
    let known = ["opened", "refused", "event", "read", "statistics", "polled", "closed", "became"];
    assert!(words.iter().all(|word| known.contains(word)), "{lines:#?}");
    let without_events: Vec<_> = words.iter().filter(|word| **word != "event").copied().collect();
    let expected = [
        "opened",
        "refused",
        "refused",
        "refused",
        "read",
        "read",
        "statistics",
        "polled",
        "closed",
        "closed",
        "became",
        "refused",
    ];
    assert_eq!(without_events, expected, "{lines:#?}");
}

#[test]
fn without_privilege_the_error_names_the_capabilities_and_the_process_goes_on() {
    let _turn = turn();
    let mut watcher = Watcher::idle();
    watcher.ask(&format!("become {NOBODY}"), "became");
    for _ in 0..2 {
        let refusal = watcher.refusal("");
        assert_eq!(refusal.errno, libc::EPERM, "{refusal:?}");
        assert!(refusal.text.contains("CAP_BPF") && refusal.text.contains("CAP_PERFMON"), "{refusal:?}");
    }
    assert_eq!(watcher.ask("version", "version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(watcher.stderr(), [""; 0]);
}

#[test]
fn the_probe_is_the_one_that_was_asked_for() {
    let _turn = turn();
    let mut watcher = Watcher::open("probe=2");
    assert_eq!(watcher.statistics(0)["probe"], 2);
    watcher.pass_later_connection(0);
    watcher.close_handle(0);
    if Path::new("/sys/bus/event_source/devices/kprobe").exists() {
        watcher.open_handle(0, "probe=1");
        assert_eq!(watcher.statistics(0)["probe"], 1);
        watcher.pass_later_connection(0);
        // The first one that works: the typed tracepoint, but where its programs can be preempted.
        watcher.open_handle(1, "probe=0");
        assert_eq!(watcher.statistics(1)["probe"], if kernel_version() < (7, 0) { 2 } else { 1 });
    } else {
        let refusal = watcher.refusal("probe=1");
        assert_eq!(refusal.errno, libc::EOPNOTSUPP, "{refusal:?}");
        assert!(refusal.text.contains("kprobe: the kernel has no kprobes (CONFIG_KPROBES)"), "{refusal:?}");
        watcher.open_handle(1, "probe=0");
        assert_eq!(watcher.statistics(1)["probe"], 2);
    }
}

#[test]
fn few_descriptors_are_an_error_that_says_so_or_enough() {
    let _turn = turn();
    let mut opened = 0;
    // Merely loading a program linked with the library takes 5.
    for limit in (5..40).step_by(if slowness() > 1 { 7 } else { 2 }) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\"")]).arg(c_program("api_watch"));
        let (lines, errors) = run_script(command, "open 0\n");
        let text = lines.concat();
        assert_eq!(errors, "", "{limit} descriptors");
        if text == "opened 0" {
            opened += 1;
            continue;
        }
        assert!(text.starts_with(&format!("refused {} ", libc::EMFILE)), "{limit} descriptors: {text:?}");
        assert!(text.contains("(ulimit -n)") && lines.len() == 1, "{limit} descriptors: {lines:?}");
    }
    assert!(opened > 0, "no limit was enough");
}
