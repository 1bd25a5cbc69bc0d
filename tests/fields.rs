//! The fields and constants of an event are written down once, in `src/api/handles/types.rs`. The header made of it is turned
//! here into the tables of `docs/events.md`, the lists of `man/tcpevent_read.3` and the structure of `examples/watch.py`.
//! `UPDATE_HEADERS=1` (`make headers`) writes those anew.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The text on a field, or on a constant.
struct Entry {
    name: String,
    /// Its C type: `uint8_t[16]`. Empty for a constant.
    kind: String,
    comment: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The comments in a piece of a header, each with its subject.
fn entries(code: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for piece in code.split("/**").skip(1) {
        let (comment, rest) = piece.split_once("*/").expect("comments end");
        let lines = comment.lines().map(|line| line.trim().trim_start_matches('*').trim());
        let comment = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        let declaration = rest.trim_start().lines().next().unwrap_or_default();
        let (name, kind) = if let Some(definition) = declaration.strip_prefix("#define ") {
            (definition.split(' ').next().unwrap().to_owned(), String::new())
        } else {
            let (kind, name) = declaration.trim_end_matches(';').rsplit_once(' ').unwrap_or_default();
            match name.split_once('[') {
                Some((name, length)) => (name.to_owned(), format!("{kind}[{length}")),
                None => (name.to_owned(), kind.to_owned()),
            }
        };
        entries.push(Entry { name, kind, comment });
    }
    entries
}

fn fields() -> Vec<Entry> {
    let header = read("include/tcpevent.h");
    let (_, body) = header.split_once("\nstruct tcpevent_event {").expect("the structure is there");
    let fields = entries(body.split_once("\n}").expect("it ends").0);
    assert!(fields.len() > 30, "{} fields", fields.len());
    fields
}

/// The constants with this beginning.
fn constants(group: &str) -> Vec<Entry> {
    let header = read("include/tcpevent.h");
    let mut constants = entries(&header);
    constants.retain(|entry| entry.kind.is_empty() && entry.name.starts_with(&format!("TCPEVENT_{group}_")));
    assert!(constants.len() > 2, "{group}: {} constants", constants.len());
    constants
}

const GROUPS: [&str; 6] = ["KIND", "DIRECTION", "OWNER_BY", "ENDING", "KNOWN", "FLAG"];

/// `u8[16]` for `uint8_t[16]`.
fn short(kind: &str) -> String {
    let (scalar, length) = kind.split_at(kind.find('[').unwrap_or(kind.len()));
    let short = match scalar.strip_suffix("_t") {
        Some(scalar) => scalar.replace("uint", "u").replace("int", "i"),
        None => scalar.to_owned(),
    };
    short + length
}

// ---- Markdown

/// Constants and paths, bare in the header, become code.
fn markdown(comment: &str) -> String {
    let is_code = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '/');
        word.contains("TCPEVENT_") || word.starts_with('_') || word.starts_with("/proc") || word == "UINT32_MAX"
    };
    let words = comment.split(' ').map(|word| {
        if word.contains('`') || !is_code(word) {
            return word.to_owned();
        }
        let start = word.len() - word.trim_start_matches('(').len();
        let end = word.trim_end_matches([',', '.', ':', ';', ')']).len();
        format!("{}`{}`{}", &word[..start], &word[start..end], &word[end..])
    });
    words.collect::<Vec<_>>().join(" ")
}

fn table_of_fields() -> String {
    let mut table = "| field | type | meaning |\n|---|---|---|\n".to_owned();
    for Entry { name, kind, comment } in fields() {
        writeln!(table, "| `{name}` | {} | {} |", short(&kind), markdown(&comment)).unwrap();
    }
    table
}

fn table_of_constants(group: &str) -> String {
    let mut table = "| constant | meaning |\n|---|---|\n".to_owned();
    for Entry { name, comment, .. } in constants(group) {
        writeln!(table, "| `{name}` | {} |", markdown(&comment)).unwrap();
    }
    table
}

// ---- mdoc

/// Lines of a manual page: each sentence begins one, and none is longer than 80 bytes.
fn roff(comment: &str) -> String {
    let mut text = String::new();
    let mut line = String::new();
    let mut in_code = false;
    for word in comment.split(' ') {
        let mut plain = String::new();
        for piece in word.split_inclusive('`') {
            plain += &piece.replace('\\', "\\e").replace('`', if in_code { "\\fP" } else { "\\fI" });
            in_code ^= piece.ends_with('`');
        }
        if !line.is_empty() && line.len() + plain.len() >= 78 {
            text += &(line.clone() + "\n");
            line.clear();
        }
        if !line.is_empty() {
            line += " ";
        }
        line += &plain;
        if word.ends_with('.') {
            text += &(line.clone() + "\n");
            line.clear();
        }
    }
    assert!(line.is_empty(), "no sentence: {comment}");
    text
}

fn list_of_fields() -> String {
    let mut list = ".Bl -tag -width Ds\n".to_owned();
    for Entry { name, kind, comment } in fields() {
        write!(list, ".It Fa {name} Pq Vt {kind}\n{}", roff(&comment)).unwrap();
    }
    list + ".El\n"
}

fn lists_of_constants() -> String {
    let mut lists = String::new();
    for group in GROUPS {
        let field = if group == "FLAG" { "flags".to_owned() } else { group.to_lowercase() };
        write!(lists, ".Pp\nOf\n.Fa {field} :\n.Bl -tag -width Ds\n").unwrap();
        for Entry { name, comment, .. } in constants(group) {
            write!(lists, ".It Dv {name}\n{}", roff(&comment)).unwrap();
        }
        lists += ".El\n";
    }
    lists
}

// ---- Python

fn ctypes() -> String {
    let mut runs: Vec<(String, Vec<String>)> = Vec::new();
    for Entry { name, kind, .. } in fields() {
        let (scalar, length) = kind.split_once('[').unwrap_or((&kind, ""));
        let scalar = match scalar {
            "char" => "c.c_char".to_owned(),
            "int32_t" => "c.c_int32".to_owned(),
            _ => short(scalar).to_uppercase(),
        };
        let of = if length.is_empty() { scalar } else { format!("{scalar} * {}", length.trim_end_matches(']')) };
        match runs.last_mut() {
            Some((kind, names)) if *kind == of && names.join(" ").len() + name.len() < 90 => names.push(name),
            _ => runs.push((of, vec![name])),
        }
    }
    runs.into_iter()
        .fold(String::new(), |text, (kind, names)| text + &format!("        ({kind}, \"{}\"),\n", names.join(" ")))
}

// ---- Where they are

/// Compares what is between two lines of a file with what it should be, or replaces it.
fn check(path: &str, (start, end): (&str, &str), wanted: &str) {
    let text = read(path);
    let (before, rest) = text.split_once(start).unwrap_or_else(|| panic!("{path} has no {start:?}"));
    let (found, after) = rest.split_once(end).unwrap_or_else(|| panic!("{path} has no {end:?} behind {start:?}"));
    if env::var_os("UPDATE_HEADERS").is_some() {
        let text = [before, start, wanted, end, after].concat();
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), text).unwrap();
    } else {
        assert!(
            found == wanted,
            "{path}, behind {start:?}, is not what include/tcpevent.h gives: run `make headers` and commit the result"
        );
    }
}

#[test]
fn the_tables_of_events_md_are_those_of_the_header() {
    check("docs/events.md", ("<!-- fields, by make headers -->\n", "<!-- -->"), &table_of_fields());
    for group in GROUPS {
        let start = format!("<!-- {group}, by make headers -->\n");
        check("docs/events.md", (&start, "<!-- -->"), &table_of_constants(group));
    }
}

#[test]
fn the_lists_of_the_manual_are_those_of_the_header() {
    let end = ".\\\" end of make headers";
    check("man/tcpevent_read.3", (".\\\" fields, by make headers\n", end), &list_of_fields());
    check("man/tcpevent_read.3", (".\\\" constants, by make headers\n", end), &lists_of_constants());
}

/// Twice: `docs/api.md` shows the example verbatim.
#[test]
fn the_structure_of_watch_py_is_that_of_the_header() {
    for path in ["examples/watch.py", "docs/api.md"] {
        check(path, ("class Event(c.Structure):\n    _fields_ = fields(\n", "    )\n"), &ctypes());
    }
}

// ---- JSON

/// Where `tcp_trace` writes a field as it is, it has the field's name; these are its own.
#[test]
fn the_names_in_the_json_of_tcp_trace_are_those_of_the_header() {
    const OWN: [&str; 7] = ["time", "kind", "age_ms", "failed", "given_up", "reason", "text"];

    let source = read("examples/tcp_trace/record.c");
    let names = source.split("\\\"").skip(1).zip(source.split("\\\"").skip(2));
    let names = names.filter(|(_, behind)| behind.starts_with(':')).map(|(name, _)| name);
    let numbers = source.split("put_number(text, \"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let names: Vec<_> = names.chain(numbers).filter(|name| !name.starts_with('%')).collect();
    assert!(names.len() > 20 && names.contains(&"payload_sent") && names.contains(&"cookie"), "{names:?}");
    let fields: Vec<_> = fields().into_iter().map(|field| field.name).collect();
    for name in names {
        assert!(OWN.contains(&name) || fields.iter().any(|field| field == name), "{name} is no field");
    }
}
