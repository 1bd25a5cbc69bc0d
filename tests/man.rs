//! The manual pages are complete: each function, constant and field of the headers, each filter word, each option of a
//! program is in its page. Cross-references lead somewhere. (`make lint` checks their form with mandoc.)

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use tcpEvent::Filter;
use tcpEvent::internals::classic::env::Settings;

/// Pages, and the structures of a header whose fields they describe.
const PAGES: [(&str, &str); 8] = [
    ("tcpEvent.3", "tcp_event_t"),
    ("tcpevent_open.3", "tcpevent_options"),
    ("tcpevent_read.3", "tcpevent_event"),
    ("tcpevent_get_statistics.3", "tcpevent_statistics"),
    ("tcpevent.7", ""),
    ("tcpevent_filter.7", ""),
    ("tcp_table.8", ""),
    ("tcp_trace.8", ""),
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn page(name: &str) -> String {
    read(&format!("man/{name}"))
}

/// Headers without their comments, by lines.
fn header(name: &str) -> String {
    let text = read(&format!("include/{name}"));
    let mut code = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").expect("comments end").1;
    }
    code + rest
}

/// The first words of the items of a kind: those of `.It Fa size` and `.It Fn AddProbe program`, for example.
fn items(page: &str, kind: &str) -> BTreeSet<String> {
    let start = format!(".It {kind} ");
    page.lines().filter_map(|line| line.strip_prefix(&start)?.split_whitespace().next()).map(str::to_owned).collect()
}

/// The word before a character, at the end of a text.
fn last_word(text: &str) -> &str {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let start = text.rfind(|c| !is_of_word(c)).map_or(0, |at| at + 1);
    &text[start..]
}

/// The functions that a header declares: the word before the parenthesis of a declaration that is no type.
fn functions(header: &str) -> BTreeSet<String> {
    let code: String = header.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    code.split(';')
        // It may be preceded by `extern "C" {`, or the end of a structure.
        .map(|declaration| declaration.rsplit(['{', '}']).next().unwrap())
        .filter(|declaration| !declaration.contains("typedef"))
        .filter_map(|declaration| Some(last_word(declaration.split_once('(')?.0)))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn fields<'header>(header: &'header str, structure: &str) -> Vec<&'header str> {
    // Packed ones have an attribute before their names.
    let start = format!("{structure} {{");
    let body = header.split_once(&start).unwrap_or_else(|| panic!("no structure {structure}")).1;
    let body = body.split_once('}').unwrap().0;
    body.split(';').map(|field| last_word(field.split('[').next().unwrap())).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_function_of_the_headers_has_a_synopsis_and_a_description() {
    let pages: Vec<_> = PAGES.iter().map(|(name, _)| page(name)).collect();
    let (classic, new) = (functions(&header("event.h")), functions(&header("tcpevent.h")));
    assert_eq!((classic.len(), new.len()), (6, 13), "{classic:?} {new:?}");
    for name in classic.union(&new) {
        let is_of_page = |page: &&String| page.contains(&format!("\n.Fo {name}\n"));
        let page = pages.iter().find(is_of_page).unwrap_or_else(|| panic!("{name}: no page has its synopsis"));
        let (synopsis, description) = page.split_once("\n.Sh DESCRIPTION\n").unwrap();
        let is_named = synopsis
            .lines()
            .any(|line| line.strip_prefix(".Nm ").and_then(|rest| rest.split(' ').next()) == Some(name.as_str()));
        assert!(is_named, "{name} is not among the names of its page");
        let mentions = [format!(".Fn {name}"), format!(".It Fn {name}")];
        let is_told = description
            .lines()
            .any(|line| mentions.iter().any(|mention| line == mention || line.starts_with(&format!("{mention} "))));
        assert!(is_told, "{name} has a synopsis only");
    }
}

#[test]
fn every_constant_of_the_headers_is_explained() {
    let told: BTreeSet<_> = PAGES.iter().flat_map(|(name, _)| items(&page(name), "Dv")).collect();
    let code = header("tcpevent.h");
    let constants: Vec<_> =
        code.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' ')).map(|(name, _)| name).collect();
    assert!(constants.len() > 25, "{constants:?}");
    for name in constants {
        assert!(told.contains(name), "{name} is in no page");
    }
}

#[test]
fn every_field_of_the_structures_is_explained() {
    let code = header("common.h") + &header("tcpevent.h");
    for (name, structure) in PAGES.into_iter().filter(|(_, structure)| !structure.is_empty()) {
        let page = page(name);
        assert!(page.contains(&format!("\n.Ss The structure {structure}\n")), "{name} has no section of {structure}");
        let told = items(&page, "Fa");
        let fields = fields(&code, structure);
        assert!(fields.len() > 10, "{structure}: {fields:?}");
        for field in fields {
            assert!(told.contains(field), "{structure}.{field} is not in {name}");
        }
    }
}

/// And the remedy, in the page on debugging.
#[test]
fn every_counter_is_explained_for_debugging() {
    let page = read("docs/debugging.md");
    for field in fields(&header("tcpevent.h"), "tcpevent_statistics") {
        let is_counter = !["size", "probe"].contains(&field);
        assert!(!is_counter || page.contains(&format!("`{field}`")), "{field} is not in docs/debugging.md");
    }
}

#[test]
fn every_word_of_a_filter_is_explained() {
    // The error for an invalid word lists all valid ones.
    let error = Filter::parse("filter", "none").unwrap_err().to_string();
    let words = error.split_once("must be ").unwrap().1.replace(" or ", ", ");
    let told = items(&page("tcpevent_filter.7"), "Cm");
    let words: BTreeSet<_> = words.split(", ").map(str::to_owned).collect();
    assert!(words.contains("dport") && words.contains("failed"), "{words:?}");
    assert_eq!(told, words);
}

#[test]
fn every_variable_of_the_classic_functions_is_explained() {
    let asked = std::cell::RefCell::new(BTreeSet::new());
    let _ = Settings::read(|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    });
    assert_eq!(items(&page("tcpEvent.3"), "Ev"), asked.into_inner());
}

#[test]
fn every_option_of_the_programs_is_explained() {
    for (program, page_name) in [("tcp_table", "tcp_table.8"), ("tcp_trace", "tcp_trace.8")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("build").join(program);
        assert!(path.exists(), "{} is missing: run `make` first", path.display());
        let output = Command::new(path).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let page = page(page_name);
        let told = items(&page, "Fl");
        let options: BTreeSet<_> = help
            .lines()
            .filter_map(|line| line.strip_prefix("  --")?.split_whitespace().next())
            .map(|name| format!("-{name}"))
            .collect();
        assert!(options.contains("-version"), "{help}");
        assert_eq!(told, options, "{page_name}");
        for option in &options {
            let synopsis = page.split_once("\n.Sh DESCRIPTION\n").unwrap().0;
            assert!(synopsis.contains(option.as_str()), "{option} is not in the synopsis of {page_name}");
        }
        let variables: BTreeSet<_> = help
            .split('$')
            .skip(1)
            .map(|text| text.split(|c: char| c != '_' && !c.is_ascii_uppercase()).next().unwrap().to_owned())
            .collect();
        assert!(variables.is_subset(&items(&page, "Ev")), "{variables:?} are not all in {page_name}");
    }
}

#[test]
fn references_between_the_pages_lead_somewhere() {
    for (name, _) in PAGES {
        for line in page(name).lines() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "Xr" && *word != ".Xr").skip(1);
            let (Some(to), Some(section)) = (words.next(), words.next()) else { continue };
            if to.to_lowercase().starts_with("tcp") && (to, section) != ("tcp", "7") {
                let is_there = PAGES.iter().any(|(page, _)| *page == format!("{to}.{section}"));
                assert!(is_there, "{name} refers to {to}({section})");
            }
        }
    }
}

/// Links to files; anchors are not checked.
#[test]
fn links_between_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for folder in ["", "docs", "examples/tcp_trace", "tests/vm"].map(|name| root.join(name)) {
        let documents = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        for document in documents.filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
            let text = fs::read_to_string(&document).unwrap();
            for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
                let is_file = !link.is_empty() && !link.contains("://");
                assert!(!is_file || folder.join(link).exists(), "{}: {link}", document.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "{seen} links");
}

#[test]
fn every_page_is_tested_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let there: BTreeSet<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, PAGES.map(|(name, _)| name.to_owned()).into());
}
