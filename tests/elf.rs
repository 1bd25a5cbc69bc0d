//! The released library as linked: its name, exports, dependencies, protections and size.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::{fs, str};

use object::elf;
use object::read::elf::{Dynamic, ElfFile64, FileHeader, ProgramHeader, Sym};
use object::{Architecture, ImportFlags, NameOrOrdinal, Object, ObjectSection};

/// The documented limit.
const MOST_BYTES: usize = 1_450_000;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/libtcpEvent.so");
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `cargo build --release` first", path.display()))
});

fn library() -> &'static ElfFile64<'static> {
    static PARSED: LazyLock<ElfFile64> = LazyLock::new(|| ElfFile64::parse(BYTES.as_slice()).unwrap());
    &PARSED
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The entries of the dynamic section with this tag.
fn entries(tag: elf::DynamicTag) -> Vec<Dynamic> {
    library().elf_dynamic_table().unwrap().iter().filter(|entry| entry.tag == tag).collect()
}

/// The same, as strings.
fn strings(tag: elf::DynamicTag) -> Vec<&'static str> {
    let table = library().elf_dynamic_table().unwrap();
    entries(tag).into_iter().map(|entry| text(table.string(entry).unwrap())).collect()
}

/// The same, as a set of bits; empty without such an entry.
fn flags(tag: elf::DynamicTag) -> u64 {
    entries(tag).iter().fold(0, |bits, entry| bits | entry.val)
}

fn segments(kind: elf::ProgramType) -> Vec<&'static elf::ProgramHeader64<object::Endianness>> {
    let endian = library().endian();
    library().elf_program_headers().iter().filter(|segment| segment.p_type(endian) == kind).collect()
}

#[test]
fn it_exports_the_six_functions_and_beside_them_only_tcpevent_ones() {
    let library = library();
    let symbols = library.elf_dynamic_symbol_table();
    let mut exports = Vec::new();
    for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined(library.endian()) && !symbol.is_local()) {
        let name = text(symbols.symbol_name(library.endian(), symbol).unwrap());
        assert_eq!(symbol.st_type(), elf::STT_FUNC, "{name}");
        assert_eq!(symbol.st_visibility(), elf::STV_DEFAULT, "{name}");
        exports.push(name);
    }
    exports.retain(|name| !name.starts_with("tcpevent_"));
    exports.sort_unstable();
    assert_eq!(exports, ["AddProbe", "DequeuePerfEvent", "cleanup", "getStatus", "printCharArray", "setupBPF"]);
}

#[test]
fn its_name_is_the_one_that_consumers_were_linked_with() {
    assert_eq!(strings(elf::DT_SONAME), ["libtcpEvent.so"]);
}

#[test]
fn it_needs_libc_libgcc_and_the_loader_and_looks_where_the_system_says() {
    let loader = match library().architecture() {
        Architecture::X86_64 => "ld-linux-x86-64.so.2",
        Architecture::Aarch64 => "ld-linux-aarch64.so.1",
        other => panic!("the loader's name on {other:?} is to be added here"),
    };
    let needed = strings(elf::DT_NEEDED);
    assert!(needed.contains(&"libc.so.6"), "{needed:?}");
    for name in needed {
        assert!(["libc.so.6", "libgcc_s.so.1", loader].contains(&name), "{name}");
    }
    assert_eq!(strings(elf::DT_RPATH), [""; 0]);
    assert_eq!(strings(elf::DT_RUNPATH), [""; 0]);
}

#[test]
fn it_needs_no_newer_libc_than_this_machine_has() {
    let imports = library().imports().unwrap().map(Result::unwrap);
    let versions = imports.filter_map(|import| {
        let (ImportFlags::Elf { version: Some(version), .. }, NameOrOrdinal::Name(name)) =
            (import.flags(), import.name())
        else {
            return None;
        };
        Some((Version::parse(text(version).strip_prefix("GLIBC_")?), text(name)))
    });
    let newest = versions.max().expect("functions of glibc");
    println!("the newest glibc that it needs is {newest:?}");
    // SAFETY: returns a static string.
    let here = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    assert!(newest.0 <= Version::parse(text(here.to_bytes())), "{newest:?}, and here is {here:?}");
}

/// Numbers between dots.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(Vec<u32>);

impl Version {
    fn parse(text: &str) -> Self {
        Self(text.split('.').map(|number| number.parse().unwrap()).collect())
    }
}

#[test]
fn it_stays_loaded_once_it_is() {
    assert_ne!(flags(elf::DT_FLAGS_1) & elf::DF_1_NODELETE.0, 0);
}

#[test]
fn all_its_symbols_are_bound_when_it_is_loaded() {
    assert_ne!(flags(elf::DT_FLAGS_1) & elf::DF_1_NOW.0, 0);
    assert_ne!(flags(elf::DT_FLAGS) & elf::DF_BIND_NOW.0, 0);
}

#[test]
fn its_relocated_data_is_read_only_from_then_on() {
    let [relro] = segments(elf::PT_GNU_RELRO)[..] else { panic!("no RELRO segment") };
    let library = library();
    let endian = library.endian();
    let protected = relro.p_vaddr(endian)..relro.p_vaddr(endian) + relro.p_memsz(endian);
    for name in [".data.rel.ro", ".dynamic", ".got", ".init_array", ".fini_array"] {
        let section = library.section_by_name(name).unwrap_or_else(|| panic!("no {name}"));
        let end = section.address() + section.size();
        assert!(protected.contains(&section.address()) && end <= protected.end, "{name} is not in {protected:x?}");
    }
}

#[test]
fn nothing_in_it_is_both_writable_and_executable() {
    let endian = library().endian();
    let [stack] = segments(elf::PT_GNU_STACK)[..] else { panic!("the stack would be executable") };
    assert!(!stack.p_flags(endian).contains(elf::PF_X));
    for segment in segments(elf::PT_LOAD) {
        assert!(!segment.p_flags(endian).contains(elf::PF_W | elf::PF_X), "{segment:?}");
    }
    // Relocations in the code would make it writable.
    assert!(entries(elf::DT_TEXTREL).is_empty());
    assert_eq!(flags(elf::DT_FLAGS) & elf::DF_TEXTREL.0, 0);
}

#[test]
fn a_running_program_can_load_it() {
    // dlopen has almost no room for thread-local data of the static model.
    assert_eq!(flags(elf::DT_FLAGS) & elf::DF_STATIC_TLS.0, 0);
}

#[test]
fn it_is_stripped_and_small() {
    let names: Vec<_> = library().sections().map(|section| section.name().unwrap().to_owned()).collect();
    assert!(names.iter().all(|name| name != ".symtab" && !name.starts_with(".debug")), "{names:?}");
    let size = BYTES.len();
    println!("it has {size} bytes");
    assert!(size <= MOST_BYTES, "{size} bytes are more than {MOST_BYTES}");
}

#[test]
fn it_embeds_a_bpf_object_with_relocations_for_other_kernels() {
    let section = library().section_by_name(".bpf.objs").expect("a section of BPF objects");
    let object = ElfFile64::<object::Endianness>::parse(section.data().unwrap()).unwrap();
    assert_eq!(object.elf_header().e_machine(object.endian()), elf::EM_BPF);
    for name in [".BTF", ".BTF.ext", "license"] {
        assert!(object.section_by_name(name).is_some_and(|section| section.size() > 0), "no {name}");
    }
}

/// Runs a tool of binutils over the library.
fn binutils(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/libtcpEvent.so"))
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// The contents of a slot of the global offset table once the library is loaded.
#[derive(Clone, Debug)]
enum Slot {
    Import(String),
    Own(u64),
}

fn slots() -> HashMap<u64, Slot> {
    binutils("readelf", &["--relocs", "--wide"])
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let slot = match columns[..] {
                [_, _, "R_X86_64_RELATIVE", to] => Slot::Own(hex(to)?),
                [_, _, "R_X86_64_GLOB_DAT" | "R_X86_64_JUMP_SLOT", _, name, ..] => {
                    Slot::Import(name.split('@').next()?.to_owned())
                }
                _ => return None,
            };
            Some((hex(columns[0])?, slot))
        })
        .collect()
}

/// First and last address of each function, from the unwind tables.
fn functions() -> Vec<(u64, u64)> {
    binutils("readelf", &["--debug-dump=frames"])
        .lines()
        .filter_map(|line| {
            let (start, end) = line.split_once(" pc=")?.1.split_once("..")?;
            Some((hex(start)?, hex(end)?))
        })
        .collect()
}

/// Stands for the instruction, among the names of functions.
#[cfg(target_arch = "x86_64")]
const SYSTEM_CALL: &str = "(a system call)";

/// These two run in signal handlers. Whatever they can reach, through calls and jumps, leaves the library for functions of
/// signal-safety(7) only; and for errno, the state of cancellation, of which the C library keeps a word for each thread, and
/// the copying of memory: they take no lock.
#[test]
#[cfg(target_arch = "x86_64")]
fn cleanup_and_wake_call_async_signal_safe_functions_only() {
    const SAFE: [&str; 6] = ["close", "fstat", "open", "read", "readlink", "write"];
    const OTHERS: [&str; 4] = ["__errno_location", "memset", "pthread_setcancelstate", SYSTEM_CALL];

    for function in ["cleanup", "tcpevent_wake"] {
        let imports = imports_of(function);
        assert!(imports.iter().any(|name| name == SYSTEM_CALL), "{function}: {imports:?}");
        for name in imports {
            let name = name.as_str();
            assert!(SAFE.contains(&name) || OTHERS.contains(&name), "{function} may call {name}");
        }
    }
}

/// The functions of other libraries that one of ours can reach, and [`SYSTEM_CALL`] if it makes one itself.
#[cfg(target_arch = "x86_64")]
fn imports_of(function: &str) -> Vec<String> {
    let (slots, functions) = (slots(), functions());
    let symbols = library().elf_dynamic_symbol_table();
    let start = symbols
        .iter()
        .find(|symbol| symbols.symbol_name(library().endian(), symbol).unwrap() == function.as_bytes())
        .unwrap()
        .st_value(library().endian());
    let mut imports = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut unseen = vec![start];
    while let Some(address) = unseen.pop() {
        let within = |target: u64| functions.iter().copied().find(|(start, end)| (*start..*end).contains(&target));
        let (from, to) = within(address).unwrap_or_else(|| panic!("{address:#x} is in no function"));
        if !seen.insert(from) {
            continue;
        }
        let code = binutils(
            "objdump",
            &["-d", "--no-show-raw-insn", &format!("--start-address={from:#x}"), &format!("--stop-address={to:#x}")],
        );
        for line in code.lines() {
            let Some((_, instruction)) = line.split_once(":\t") else { continue };
            let (name, operand) = instruction.split_once(' ').unwrap_or((instruction, ""));
            if instruction == "syscall" {
                imports.insert(SYSTEM_CALL.to_owned());
            }
            if !name.starts_with("call") && !name.starts_with('j') {
                continue;
            }
            if let Some((_, slot)) = instruction.split_once("(%rip)") {
                let slot = hex(slot.trim_start_matches([' ', '#']).split(' ').next().unwrap()).unwrap();
                match slots.get(&slot).unwrap_or_else(|| panic!("an unknown slot: {line}")) {
                    Slot::Import(name) => drop(imports.insert(name.clone())),
                    Slot::Own(address) => unseen.push(*address),
                }
            } else {
                let target = hex(operand.trim().split(' ').next().unwrap());
                unseen.push(target.unwrap_or_else(|| panic!("it may go anywhere: {line}")));
            }
        }
    }
    imports.into_iter().collect()
}
