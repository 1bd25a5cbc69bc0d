//! The service and the manual: what is installed, and systemd's view of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::consumer::root;
use crate::monitor::{new_folder, program};

/// How exposed the service is, in tenths, by systemd 252's reckoning: 0 to 100. It needs BPF, the network and nothing
/// else.
const EXPOSURE: &str = "16";

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// Runs make in the project, as a packager does.
fn make(target: &str, destination: &Path) -> String {
    // Installation builds nothing.
    program();
    let output = Command::new("make")
        .current_dir(root())
        .args(["--no-print-directory", target, "PREFIX=/usr/local"])
        .arg(format!("DESTDIR={}", destination.display()))
        .env_remove("MAKEFLAGS")
        .output()
        .unwrap();
    assert!(output.status.success(), "make {target}: {}", said(&output));
    said(&output)
}

/// All files below a folder, by their paths in it.
fn files(folder: &Path) -> BTreeSet<String> {
    fn collect(folder: &Path, top: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, top, found);
            } else {
                found.insert(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    let mut found = BTreeSet::new();
    if folder.exists() {
        collect(folder, folder, &mut found);
    }
    found
}

const PROGRAM: &str = "usr/local/bin/tcp_trace";
const UNIT: &str = "usr/local/lib/systemd/system/tcp_trace.service";
const ROTATION: &str = "etc/logrotate.d/tcp_trace";
const DEFAULTS: &str = "etc/default/tcp_trace";

/// Where a page of the manual is installed, by its section.
fn page_path(name: &str) -> String {
    format!("usr/local/share/man/man{}/{name}", name.rsplit('.').next().unwrap())
}

#[test]
fn install_puts_service_and_manual_in_place_and_uninstall_takes_it_away() {
    let folder = new_folder("install");
    let place = folder.join("root");
    make("install", &place);
    for (file, mode) in [(PROGRAM, 0o755), (UNIT, 0o644), (ROTATION, 0o644), (DEFAULTS, 0o600)] {
        let data = fs::metadata(place.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(data.permissions().mode() & 0o7777, mode, "{file}");
    }
    let source = |name: &str| fs::read_to_string(root().join("examples/tcp_trace").join(name)).unwrap();
    let installed = |name: &str| fs::read_to_string(place.join(name)).unwrap();
    assert_eq!(installed(UNIT), source("tcp_trace.service").replace("@PREFIX@", "/usr/local"));
    let pages: BTreeSet<_> = files(&root().join("man")).iter().map(|name| page_path(name)).collect();
    let there: BTreeSet<_> =
        files(&place).into_iter().filter(|name| name.starts_with("usr/local/share/man/")).collect();
    assert_eq!((there.len(), &there), (8, &pages));
    for name in &pages {
        assert_eq!(fs::metadata(place.join(name)).unwrap().permissions().mode() & 0o7777, 0o644, "{name}");
    }
    assert!(installed(UNIT).contains("\nExecStart=/usr/local/bin/tcp_trace"));
    assert_eq!(installed(ROTATION), source("tcp_trace.logrotate"));
    assert_eq!(installed(DEFAULTS), source("tcp_trace.default"));
    // It finds its library relative to its own path.
    let version = Command::new(place.join(PROGRAM)).arg("--version").output().unwrap();
    assert!(version.status.success(), "{}", said(&version));

    make("uninstall", &place);
    assert_eq!(files(&place), BTreeSet::new());
    assert!(!place.join("usr").exists() || files(&place.join("usr")).is_empty());
}

#[test]
fn settings_that_were_edited_are_never_overwritten_nor_removed() {
    let folder = new_folder("install-edited");
    let place = folder.join("root");
    make("install", &place);
    let settings = place.join(DEFAULTS);
    fs::write(&settings, "DEST_IP=192.0.2.7\n").unwrap();
    make("install", &place);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "DEST_IP=192.0.2.7\n");
    let words = make("uninstall", &place);
    assert_eq!(files(&place), [DEFAULTS.to_owned()].into());
    assert!(words.contains(settings.to_str().unwrap()), "no line says that it stays: {words}");
}

/// The installed unit, for an existing program.
fn unit(name: &str) -> PathBuf {
    let prefix = new_folder(name);
    fs::create_dir(prefix.join("bin")).unwrap();
    fs::copy(program(), prefix.join("bin/tcp_trace")).unwrap();
    let text = fs::read_to_string(root().join("examples/tcp_trace/tcp_trace.service")).unwrap();
    let text = text.replace("@PREFIX@", prefix.to_str().unwrap());
    assert!(!text.contains("@PREFIX@"), "{text}");
    let path = prefix.join("tcp_trace.service");
    fs::write(&path, text).unwrap();
    path
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_PAGER", "").output();
    output.expect("systemd-analyze runs: apt-get install systemd")
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let output = analyze(&["verify", "--recursive-errors=no"], &unit("unit-verify"));
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
}

#[test]
fn the_unit_is_as_little_exposed_as_it_can_be() {
    let output = analyze(&["security", "--offline=true", "--threshold", EXPOSURE], &unit("unit-security"));
    assert!(output.status.success(), "{}", said(&output));
}

/// The program must accept the examples of the settings.
#[test]
fn the_examples_of_the_settings_are_taken() {
    let text = fs::read_to_string(root().join("examples/tcp_trace/tcp_trace.default")).unwrap();
    let settings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).collect();
    for name in ["DEST_IP", "DEST_PORT", "SLACK_URL", "SLACK_CA_FILE"] {
        assert!(settings.iter().any(|(other, _)| *other == name), "{name} is not in {text}");
    }
    let watched = settings.iter().filter(|(name, _)| ["DEST_IP", "DEST_PORT"].contains(name));
    let monitor = crate::monitor::Monitor::start(&[], &watched.copied().collect::<Vec<_>>());
    monitor.end_well();
}
