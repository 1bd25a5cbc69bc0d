//! The folders of `src/` follow the data: imports go one way, and never in a circle. Nor do the includes of `bpf/`, where no
//! function is declared ahead of its definition.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};

/// From what consumers call down to what everything uses. A folder may import from those after it.
const FLOORS: [&[&str]; 8] =
    [&["api"], &["ingest"], &["probe", "sockets"], &["queue"], &["config"], &["event"], &["sys"], &["error"]];

/// What each module imports, by the path of the module: `probe::types`. Or what each file of `bpf/` includes.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// The sources of all modules except `lib.rs`, which declares them.
fn sources(folder: &Path, module: &str, found: &mut BTreeMap<String, syn::File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let inner = if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") };
        if path.is_dir() {
            sources(&path, &inner, found);
        } else if name != "lib" {
            let module = if name == "mod" { module.to_owned() } else { inner };
            found.insert(module, syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
        }
    }
}

/// Collects a file's paths that begin at the crate, at the module itself or at its parent.
struct Paths<'file> {
    module: &'file str,
    paths: Vec<String>,
}

impl Paths<'_> {
    fn add(&mut self, segments: &[String]) {
        let (first, rest) = segments.split_first().unwrap();
        let base = match first.as_str() {
            "crate" => String::new(),
            "self" => self.module.to_owned(),
            "super" => self.module.rsplit_once("::").map_or(String::new(), |(above, _)| above.to_owned()),
            _ => return,
        };
        let all = std::iter::once(base).filter(|base| !base.is_empty()).chain(rest.iter().cloned());
        self.paths.push(all.collect::<Vec<_>>().join("::"));
    }

    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(name) => self.add(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // Tests may import anything.
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {
        // `pub(super)` imports nothing.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }
}

fn imports() -> Imports {
    let mut files = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    let modules: BTreeSet<_> = files.keys().cloned().collect();
    // A path usually ends with an item.
    let module_of = |path: &str| {
        let mut path = path;
        loop {
            if modules.contains(path) {
                return Some(path.to_owned());
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let imports_of = |(module, file): (&String, &syn::File)| {
        let mut paths = Paths { module, paths: Vec::new() };
        paths.visit_file(file);
        let imported = paths.paths.iter().filter_map(|path| module_of(path)).filter(|path| path != module);
        (module.clone(), imported.collect())
    };
    files.iter().map(imports_of).collect()
}

/// The way from a module back to itself, if there is one.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    fn visit(module: &str, imports: &Imports, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if let Some(place) = way.iter().position(|passed| passed == module) {
            way.drain(..place);
            return true;
        }
        if done.contains(module) {
            return false;
        }
        way.push(module.to_owned());
        if imports.get(module).into_iter().flatten().any(|next| visit(next, imports, way, done)) {
            return true;
        }
        way.pop();
        done.insert(module.to_owned());
        false
    }
    let (mut way, mut done) = (Vec::new(), BTreeSet::new());
    imports.keys().any(|module| visit(module, imports, &mut way, &mut done)).then_some(way)
}

fn top(module: &str) -> &str {
    module.split_once("::").map_or(module, |(top, _)| top)
}

#[test]
fn no_file_imports_in_a_circle() {
    let imports = imports();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 100, "imports are found: {imports:#?}");
    assert_eq!(circle(&imports), None);
}

#[test]
fn imports_go_down_only() {
    let floor = |module: &str| {
        let floor = FLOORS.iter().position(|floor| floor.contains(&top(module)));
        floor.unwrap_or_else(|| panic!("{module} has no floor: give it one"))
    };
    for (module, imported) in imports() {
        for other in imported {
            let is_down = floor(&module) < floor(&other) || top(&module) == top(&other);
            assert!(is_down, "{module} imports {other}");
        }
    }
}

#[test]
fn a_circle_is_found() {
    let imports = [("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")];
    let imports = imports.map(|(from, to)| (from.to_owned(), BTreeSet::from([to.to_owned()])));
    assert_eq!(circle(&imports.into()), Some(vec!["b".to_owned(), "c".to_owned()]));
}

/// The files of `bpf/` that clang reads, by name.
fn bpf_sources() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_c = paths.filter(|path| path.extension().is_some_and(|extension| extension == "h" || extension == "c"));
    of_c.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// The files beside it that a file includes.
fn includes(source: &str) -> BTreeSet<String> {
    let quoted = source.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
    quoted.map(str::to_owned).collect()
}

/// What a file has outside of braces, parted at its semicolons and at the ends of its functions: no comment, no line of the
/// preprocessor.
fn outer_statements(source: &str) -> Vec<String> {
    let mut code = String::new();
    let mut rest = source;
    while let Some((before, behind)) = rest.split_once("/*") {
        code.push_str(before);
        rest = behind.split_once("*/").expect("a comment ends").1;
    }
    code.push_str(rest);

    let (mut statements, mut statement, mut depth, mut goes_on) = (Vec::new(), String::new(), 0, false);
    for line in code.lines() {
        let is_directive = goes_on || line.starts_with('#') || line.starts_with("//");
        goes_on = is_directive && line.ends_with('\\');
        if is_directive {
            continue;
        }
        for sign in line.chars() {
            match sign {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ if depth > 0 => continue,
                _ => {}
            }
            statement.push(sign);
            // `}` may end a structure too, whose name follows: that is no function's.
            if depth == 0 && (sign == ';' || sign == '}') {
                statements.push(std::mem::take(&mut statement).trim().to_owned());
            }
        }
        statement.push(' ');
    }
    statements
}

/// The functions that a file declares and does not define there.
fn declarations(source: &str) -> Vec<String> {
    // Maps and variables have a section; an initial value may be a call.
    let is_other = |statement: &String| {
        ["_Static_assert", "typedef"].iter().any(|word| statement.starts_with(word))
            || ["SEC(", "="].iter().any(|word| statement.contains(word))
    };
    let ends_without_body = |statement: &String| statement.ends_with(';') && statement.contains('(');
    outer_statements(source).into_iter().filter(|found| ends_without_body(found) && !is_other(found)).collect()
}

#[test]
fn no_bpf_file_includes_in_a_circle() {
    let sources = bpf_sources();
    let imports: Imports = sources.iter().map(|(name, source)| (name.clone(), includes(source))).collect();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 30, "includes are found: {imports:#?}");
    for included in imports.values().flatten() {
        assert!(sources.contains_key(included), "{included} is there");
    }
    assert_eq!(circle(&imports), None);
}

#[test]
fn no_bpf_function_is_declared_ahead() {
    for (name, source) in bpf_sources() {
        assert!(!outer_statements(&source).is_empty(), "{name} has statements");
        assert_eq!(declarations(&source), Vec::<String>::new(), "{name} declares them");
    }
}

#[test]
fn each_bpf_file_opens_with_what_it_is_for() {
    for (name, source) in bpf_sources() {
        let second = source.lines().nth(1);
        assert!(source.contains("SPDX-License-Identifier") && second == Some("/*"), "{name} begins with {second:?}");
    }
}

#[test]
fn a_declaration_is_found_and_a_definition_is_none() {
    let source = "#include \"a.h\"\n#define F(x) \\\n\tg(x);\n/* int no(void); */\nstruct { int a; } map SEC(\".maps\");\n\
        _Static_assert(sizeof(int) == 4, \"int\");\nint (*const pointer)(void) = 0;\nint x;\n\
        static int defined(int a)\n{\n\tg(a);\n}\nstatic __always_inline int declared(int a,\n\tint b);\n";
    assert_eq!(declarations(source), ["static __always_inline int declared(int a, \tint b);"]);
    assert_eq!(includes(source), BTreeSet::from(["a.h".to_owned()]));
}
