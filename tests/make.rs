//! The Makefile on different machines: without libcurl, or with a compiler that has more warnings.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The project under another path, with a `build` folder of its own.
fn project(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(root()).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if name != "build" && name != ".git" {
            symlink(entry.path(), folder.join(name)).unwrap();
        }
    }
    folder
}

/// Runs make there. The library is built already: cargo has nothing to do.
fn make(project: &Path, arguments: &[&str]) -> Output {
    assert!(root().join("target/release/libtcpEvent.so").exists(), "the library is missing: run `make` first");
    Command::new("make")
        .current_dir(project)
        .args(["--no-print-directory", "CARGO=true"])
        .args(arguments)
        .env_remove("MAKEFLAGS")
        .env_remove("WERROR")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// Files that `make install` puts into a folder.
fn installed(project: &Path, arguments: &[&str]) -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                collect(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }

    let destination = project.join("destination");
    let destdir = format!("DESTDIR={}", destination.display());
    let output = make(project, &[&["install", &destdir], arguments].concat());
    assert!(output.status.success(), "{}", said(&output));
    let mut found = Vec::new();
    collect(&destination, &mut found);
    found
}

#[test]
fn without_libcurl_all_is_built_and_installed_but_for_tcp_trace() {
    let project = project("without-libcurl");
    // A header that cannot be included stands for a missing one.
    let headers = project.join("headers");
    fs::create_dir_all(headers.join("curl")).unwrap();
    fs::write(headers.join("curl/curl.h"), "#error there is no libcurl\n").unwrap();
    let flags = format!("CPPFLAGS=-I{}", headers.display());

    let output = make(&project, &[&flags]);
    assert!(output.status.success(), "{}", said(&output));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.starts_with("tcp_trace is not built: ") && errors.contains("libcurl4-openssl-dev"), "{errors}");
    for (program, is_built) in [("tcp_table", true), ("examples/dlopen", true), ("tcp_trace", false)] {
        assert_eq!(project.join("build").join(program).exists(), is_built, "{program}");
    }

    let files = installed(&project, &[&flags]);
    let is_there = |end: &str| files.iter().any(|file| file.ends_with(end));
    assert!(is_there("lib/libtcpEvent.so") && is_there("bin/tcp_table"), "{files:#?}");
    for end in ["bin/tcp_trace", "system/tcp_trace.service", "logrotate.d/tcp_trace", "default/tcp_trace"] {
        assert!(!is_there(end), "{end} was installed");
    }

    // Installed later.
    let output = make(&project, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(project.join("build/tcp_trace").exists(), "{}", said(&output));
    assert!(installed(&project, &[]).iter().any(|file| file.ends_with("bin/tcp_trace")));
}

#[test]
fn warnings_stop_the_build_only_where_that_is_asked_for() {
    let project = project("warnings");
    // Every function has a larger frame than that.
    let noisy = "CFLAGS=-Wframe-larger-than=1";
    let output = make(&project, &["build/examples/dlopen", noisy, "WERROR=-Werror"]);
    assert!(!output.status.success() && said(&output).contains("frame-larger-than"), "{}", said(&output));
    let output = make(&project, &["build/examples/dlopen", noisy]);
    assert!(output.status.success() && said(&output).contains("frame-larger-than"), "{}", said(&output));
}
