//! The documents: their code is that of the examples, their links lead somewhere, and they describe every name of the
//! headers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files in a folder of the project with one of these extensions, as paths from its root.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let has_extension =
        |name: &String| extensions.iter().any(|wanted| Path::new(name).extension().is_some_and(|its| its == *wanted));
    let mut paths: Vec<_> = names.filter(has_extension).map(|name| format!("{folder}/{name}")).collect();
    paths.sort();
    paths
}

fn documents() -> Vec<String> {
    let mut paths = files("docs", &["md"]);
    paths.extend(["README.md", "examples/tcp_trace/README.md", "tests/vm/README.md"].map(ToOwned::to_owned));
    paths
}

fn examples() -> Vec<String> {
    files("examples", &["c", "cs", "py", "rs"])
}

/// The code blocks of a document that show an example, with its path.
fn shown(document: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(path) = line.strip_prefix("<!-- examples/").and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        assert!(lines.next().is_some_and(|line| line.starts_with("```")), "no code follows the mark of {path}");
        let code: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((format!("examples/{path}"), code.join("\n") + "\n"));
    }
    blocks
}

#[test]
fn the_documents_show_every_example_as_it_is() {
    let mut seen = BTreeSet::new();
    for document in documents() {
        for (example, code) in shown(&read(&document)) {
            assert!(code == read(&example), "{document} shows {example} as it is not");
            seen.insert(example);
        }
    }
    assert_eq!(seen, examples().into_iter().collect());
}

#[test]
fn an_example_is_short() {
    for example in examples() {
        let lines = read(&example).lines().count();
        assert!(lines <= 80, "{example} has {lines} lines");
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "it has {lines} lines");
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Lines outside code blocks.
fn prose(document: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    document.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut seen = 0;
    for document in documents() {
        let text = read(&document);
        let folder = root().join(&document).parent().unwrap().to_owned();
        for target in prose(&text).flat_map(targets).filter(|target| !target.contains("://")) {
            let (path, place) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { root().join(&document) } else { folder.join(path) };
            assert!(file.exists(), "{document}: {target} is not there");
            if !place.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let mut headings = prose(&text).filter_map(|line| line.strip_prefix('#'));
                let is_there = headings.any(|heading| anchor(heading.trim_start_matches('#')) == place);
                assert!(is_there, "{document}: {target} has no such heading");
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} links");
}

/// The names of the fields of a structure in a header.
fn fields(header: &str, structure: &str) -> Vec<String> {
    let text = read(header);
    let (_, body) = text.split_once(&format!(" {structure} {{")).expect("it is there");
    let (body, _) = body.split_once("\n}").unwrap();
    let declarations = body.lines().map(str::trim).filter(|line| line.ends_with(';') && !line.starts_with('*'));
    let name = |line: &str| {
        let line = line.trim_end_matches(';');
        let line = line.split('[').next().unwrap();
        line.rsplit([' ', '*']).next().unwrap().to_owned()
    };
    declarations.map(name).collect()
}

/// Whether a table has a row of that name: in its first cell, or in its second if the first is an offset.
fn has_row(document: &str, name: &str) -> bool {
    let quoted = format!("`{name}`");
    prose(document).any(|line| line.starts_with('|') && line.split(" | ").take(2).any(|cell| cell.contains(&quoted)))
}

#[test]
fn every_field_has_its_row() {
    for (header, structure, document, least) in [
        ("include/common.h", "tcp_event_t", "docs/events.md", 13),
        ("include/tcpevent.h", "tcpevent_event", "docs/events.md", 30),
        ("include/tcpevent.h", "tcpevent_options", "docs/api.md", 11),
        ("include/tcpevent.h", "tcpevent_statistics", "docs/api.md", 15),
    ] {
        let fields = fields(header, structure);
        assert!(fields.len() >= least, "{structure}: {fields:?}");
        let text = read(document);
        for field in fields {
            assert!(has_row(&text, &field), "{document} has no row for {structure}.{field}");
        }
    }
}

/// The words of a text with this beginning that are written as identifiers.
fn words<'a>(text: &'a str, beginning: &'a str) -> BTreeSet<&'a str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with(beginning)).collect()
}

#[test]
fn every_flag_origin_and_variable_has_its_row() {
    let header = read("include/tcpevent.h");
    let definitions = header.lines().filter_map(|line| line.strip_prefix("#define TCPEVENT_"));
    let constants: Vec<_> = definitions.filter_map(|line| line.split(' ').next()).collect();
    assert!(constants.len() > 20, "{constants:?}");
    let events = read("docs/events.md");
    let all = events.clone() + &read("docs/api.md");
    for name in constants.iter().filter(|name| **name != "H") {
        let (group, value) = name.split_once('_').unwrap_or((name, ""));
        let is_told = match group {
            // One row has several of these, by their ends: TCPEVENT_KIND_STATE, _CLOSE.
            "KIND" | "PROBE" | "DIRECTION" | "LOG" => all.contains(&format!("_{value}`")),
            "EVENTS" => all.contains(&format!("`TCPEVENT_{name}`")),
            _ => has_row(&events, &format!("TCPEVENT_{name}")),
        };
        assert!(is_told, "TCPEVENT_{name} is not described");
    }

    let classic = read("docs/classic.md");
    let settings = read("src/api/classic/env.rs");
    let variables: BTreeSet<_> = words(&settings, "TCPEVENT_").into_iter().filter(|word| word.len() > 9).collect();
    assert!(variables.len() >= 7, "{variables:?}");
    for variable in variables {
        assert!(has_row(&classic, variable), "docs/classic.md has no row for {variable}");
    }
}

#[test]
fn every_function_is_described() {
    for (header, beginning, document) in
        [("include/event.h", "", "docs/classic.md"), ("include/tcpevent.h", "tcpevent_", "docs/api.md")]
    {
        let text = read(header);
        let text = text.split_once("extern \"C\" {").unwrap().1;
        let declarations = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let names: Vec<_> = declarations
            .filter_map(|line| line.split_once('('))
            .map(|(before, _)| before.rsplit([' ', '*']).next().unwrap())
            .collect();
        assert!(names.len() >= 6 && names.iter().all(|name| name.starts_with(beginning)), "{names:?}");
        let document_text = read(document);
        for name in names {
            let mut first_cells = prose(&document_text).filter_map(|line| line.strip_prefix('|')?.split(" | ").next());
            // By its declaration, a call of it, or in a list of names.
            let is_its = |cell: &str| {
                cell.contains(&format!("{name}(")) || !beginning.is_empty() && cell.contains(&format!("`{name}`"))
            };
            assert!(first_cells.any(is_its), "{document} has no row for {name}");
        }
    }
}

/// `tests/vm/matrix --write-table` writes between them.
#[test]
fn the_table_of_kernels_has_its_place() {
    let results = read("tests/vm/rungs/results.py");
    let mark = |name: &str| {
        let line = results.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let text = read("docs/kernels.md");
    let begin = text.find(&mark("BEGIN")).expect("it begins");
    let end = text.find(&mark("END")).expect("it ends");
    assert!(begin < end && text[begin..end].contains("| kernel | BTF | kprobe | tp_btf | tracepoint |"));
}

/// The figures of the README are those of the last run of `make bench`.
#[test]
fn the_readme_has_the_figures_of_the_last_benchmark() {
    let benchmarks = read("BENCHMARKS.md");
    let cells = |row: &str| -> Vec<String> {
        let line = benchmarks.lines().find(|line| line.starts_with(&format!("| {row} |"))).expect(row);
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let number = |cell: &str| -> f64 { cell.split(' ').next().unwrap().parse().expect(cell) };
    let readme = read("README.md");
    for (row, title) in [
        ("BPF time a connection, tp_btf", "kernel time for a connection, both ends"),
        ("CPU of the watching process a connection, tp_btf", "CPU time of the watching process for a connection"),
    ] {
        let found = cells(row);
        let told = readme.lines().find(|line| line.starts_with(&format!("| {title} |"))).expect(title);
        let told: Vec<_> = told.split('|').map(|cell| cell.trim().to_owned()).collect();
        for (found, told) in found[2..4].iter().zip(&told[2..4]) {
            let (found, told) = (number(found), number(told));
            assert!((found - told).abs() <= 0.02 * found, "{title}: {told} is not {found}");
        }
    }
}

/// All files of a folder and its subfolders.
fn tree(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let paths = entries.map(|entry| format!("{folder}/{}", entry.unwrap().file_name().into_string().unwrap()));
    paths.flat_map(|path| if root().join(&path).is_dir() { tree(&path) } else { vec![path] }).collect()
}

/// Checks the list with a counter that is in all places.
#[test]
fn a_field_is_in_the_files_that_contributing_lists_and_in_no_others() {
    const FIELD: &str = "min_rtt_us";

    let text = read("CONTRIBUTING.md");
    let (_, section) = text.split_once("## How to add a field to the events").unwrap();
    let section = section.split_once("\n## ").unwrap().0;
    let by_hand: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).collect();
    let by_hand: Vec<_> = by_hand.into_iter().map(|(path, _)| path).collect();
    assert!((5..=9).contains(&by_hand.len()), "{by_hand:?}");
    let named: BTreeSet<_> = section.split('`').skip(1).step_by(2).filter(|name| root().join(name).is_file()).collect();
    for path in &by_hand {
        assert!(named.contains(path), "{path} is not there");
        // There it has the kernel's name, or none.
        let has_it = read(path).contains(FIELD) || ["bpf/core_types.h", "CHANGELOG.md"].contains(path);
        assert!(has_it, "{path} does not have {FIELD}");
    }
    for path in ["bpf", "docs", "examples", "include", "man", "src", "tcp_table"].into_iter().flat_map(tree) {
        let has_it = fs::read_to_string(root().join(&path)).is_ok_and(|text| text.contains(FIELD));
        assert!(!has_it || named.contains(path.as_str()), "{path} has {FIELD}, and is not in the list");
    }
}
