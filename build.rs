//! Compiles and embeds the BPF programs, and gives the shared library the name, flags and dependencies that its
//! consumers rely on.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::btf::types::{Array, Composite, Enum, Int, Struct, Union};
use libbpf_rs::btf::{Btf, BtfKind, BtfType, HasSize, TypeId};

use slim::Object;

#[path = "bpf/shared.rs"]
mod shared;
#[path = "bpf/slim.rs"]
mod slim;

/// Each with the instruction set of its oldest kernel: Linux 5.8, 4.15.
const PROGRAMS: [(&str, &str); 3] =
    [("tcp_event", "-mcpu=v3"), ("tcp_event_perf", "-mcpu=v1"), ("tcp_event_tracepoint", "-mcpu=v1")];

fn main() {
    // As in the Makefile: a warning stops no user's build.
    println!("cargo:rerun-if-env-changed=WERROR");
    let werror = env::var("WERROR").ok().filter(|value| value == "-Werror");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compile = |name: &str, instructions, object: &Path| {
        let mut builder = SkeletonBuilder::new();
        builder
            .source(format!("bpf/{name}.bpf.c"))
            .clang_args(
                [instructions, "-Wall", "-Wextra", "-Wno-unused-parameter", "-Ibpf"]
                    .into_iter()
                    .chain(werror.as_deref()),
            )
            .obj(object)
            // None: only the compiler reads the skeleton. A rustup toolchain without rustfmt has a command of that name that fails.
            .rustfmt("");
        builder.build().expect("clang could not compile the BPF program");
        builder
    };
    for (program, instructions) in PROGRAMS {
        // Kept: types are read from it below, and tests/bpf.rs looks into it.
        let object = out.join(format!("{program}.bpf.o"));
        let mut builder = compile(program, instructions, &object);
        let whole = fs::read(&object).expect("the object was written");
        fs::write(&object, Object::slim(whole).expect("the object is ELF of 64 bits, with type information"))
            .expect("OUT_DIR can be written to");
        builder.generate(out.join(format!("{program}.skel.rs"))).expect("the skeleton could not be written");
    }
    let object = out.join("shared.bpf.o");
    compile("shared", PROGRAMS[0].1, &object);
    fs::write(out.join("shared.rs"), shared::rust_of(&object)).expect("OUT_DIR can be written to");
    let relocated = ["tcp_event", "tcp_event_perf"].map(|program| out.join(format!("{program}.bpf.o")));
    let names: BTreeSet<_> = relocated.iter().flat_map(|object| names_of_types(object)).collect();
    fs::write(out.join("types.rs"), format!("&{:?}", Vec::from_iter(names))).expect("OUT_DIR can be written to");
    let accesses: BTreeSet<_> = relocated.iter().flat_map(|object| accesses(object)).collect();
    let accesses = Vec::from_iter(accesses).join(",\n");
    fs::write(out.join("accesses.rs"), format!("&[{accesses}]")).expect("OUT_DIR can be written to");
    println!("cargo:rerun-if-changed=bpf");

    // rustc gives a cdylib no SONAME.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtcpEvent.so");
    // Threads of the host keep our thread-local destructors: unmapping the library would leave them dangling,
    // so dlclose must not unmap it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,relro,-z,now");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--as-needed");
}

/// The structures, unions and enumerations of a program, without their flavours (`___`): libbpf looks for them among
/// the kernel's.
fn names_of_types(object: &Path) -> Vec<String> {
    let btf = Btf::from_path(object).expect("the object has type information");
    let mut names = BTreeSet::new();
    let mut note = |found: BtfType<'_>| {
        let name = found.name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.split("___").next().unwrap_or_default();
        if !name.is_empty() {
            names.insert(name.to_owned());
        }
    };
    btf.type_by_kind::<Struct<'_>>().for_each(|found| note(*found));
    btf.type_by_kind::<Union<'_>>().for_each(|found| note(*found));
    btf.type_by_kind::<Enum<'_>>().for_each(|found| note(*found));
    names.into_iter().collect()
}

/// A program's reads of kernel structures, from its relocations: each an `Access` of `src/probe/accesses.rs`.
fn accesses(object: &Path) -> BTreeSet<String> {
    let btf = Btf::from_path(object).expect("the object has type information");
    let relocations = relocations(object).expect("the object has relocations");
    relocations.into_iter().map(|relocation| access(&btf, &relocation)).filter(|access| !access.is_empty()).collect()
}

/// `struct bpf_core_relo`, without its instruction.
struct Relocation {
    /// The type at which the access begins.
    root: u32,
    /// Indices of members and elements, separated by colons. The first one is of an array of the root.
    path: String,
    kind: usize,
}

/// The relocations of all sections of an object (include/linux/btf.h: `struct btf_ext_header`; its sections in libbpf's
/// `btf_ext_info`).
fn relocations(object: &Path) -> Option<Vec<Relocation>> {
    const HEADER_LENGTH: usize = 4;
    const STRINGS: usize = 16;
    const RELOCATIONS: usize = 24;
    const RELOCATIONS_LENGTH: usize = 28;

    let object = fs::read(object).ok()?;
    let (types, ext) = (section(&object, b".BTF\0")?, section(&object, b".BTF.ext\0")?);
    let word = |bytes: &[u8], at: usize| usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok();
    let strings = types.get(word(types, HEADER_LENGTH)? + word(types, STRINGS)?..)?;
    let start = word(ext, HEADER_LENGTH)? + word(ext, RELOCATIONS)?;
    let all = ext.get(start..start + word(ext, RELOCATIONS_LENGTH)?)?;
    let length = word(all, 0)?;
    let mut found = Vec::new();
    let mut at = 4;
    while at < all.len() {
        let count = word(all, at + 4)?;
        at += 8;
        for _ in 0..count {
            let path = strings.get(word(all, at + 8)?..)?.split(|byte| *byte == 0).next()?;
            let path = String::from_utf8(path.to_vec()).ok()?;
            let root = word(all, at + 4)?.try_into().ok()?;
            found.push(Relocation { root, path, kind: word(all, at + 12)? });
            at += length;
        }
    }
    Some(found)
}

/// The bytes of a section of a 64-bit ELF file, by its name with the NUL (elf(5)).
fn section<'object>(object: &'object [u8], name: &[u8]) -> Option<&'object [u8]> {
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(*object.get(at..)?.first_chunk()?)));
    let word = |at: usize| usize::try_from(u32::from_le_bytes(*object.get(at..)?.first_chunk()?)).ok();
    let long = |at: usize| usize::try_from(u64::from_le_bytes(*object.get(at..)?.first_chunk()?)).ok();
    let header = |number: usize| Some(long(40)? + number * short(58)?);
    let names = long(header(short(62)?)? + 24)?;
    let found = (0..short(60)?).filter_map(header).find(|at| {
        word(*at).and_then(|offset| object.get(names + offset..)).is_some_and(|found| found.starts_with(name))
    })?;
    object.get(long(found + 24)?..)?.get(..long(found + 32)?)
}

/// The Rust code of one access; empty if it is not to a structure.
fn access(btf: &Btf<'_>, relocation: &Relocation) -> String {
    /// The first of the kinds that are not about a field (`enum bpf_core_relo_kind`), and the one about a type's size.
    const NOT_OF_FIELDS: usize = 6;
    const TYPE_SIZE: usize = 9;

    let by_id = |id: TypeId| btf.type_by_id::<BtfType<'_>>(id).expect("the type is there");
    if relocation.kind >= NOT_OF_FIELDS && relocation.kind != TYPE_SIZE {
        return String::new();
    }
    let mut found = by_id(relocation.root.into()).skip_mods_and_typedefs();
    let name = found.name().and_then(|name| name.to_str()).unwrap_or_default();
    let of = name.split("___").next().unwrap_or_default();
    assert!(!of.is_empty(), "a structure without a name is accessed");
    let mut steps = String::new();
    for index in relocation.path.split(':').skip(1) {
        let index: usize = index.parse().expect("a number");
        found = if let Ok(array) = Array::try_from(found) {
            write!(steps, "Step::Element({index}), ").expect("a string takes all");
            array.contained_type()
        } else {
            let composite = Composite::try_from(found).expect("only structures and arrays have parts");
            let member = composite.get(index).expect("the member is there");
            if let Some(name) = member.name.and_then(|name| name.to_str()).filter(|name| !name.is_empty()) {
                write!(steps, "Step::Member({name:?}), ").expect("a string takes all");
            }
            by_id(member.ty)
        };
        found = found.skip_mods_and_typedefs();
    }
    let mut elements = 1;
    while let Ok(array) = Array::try_from(found) {
        elements *= array.capacity();
        found = array.contained_type().skip_mods_and_typedefs();
    }
    let (shape, size) = if let Ok(number) = Int::try_from(found) {
        ("Number", number.size())
    } else if let Ok(number) = Enum::try_from(found) {
        ("Number", number.size())
    } else if let Ok(composite) = Composite::try_from(found) {
        ("Composite", composite.size())
    } else {
        assert_eq!(found.kind(), BtfKind::Ptr, "{of}: what is accessed");
        ("Pointer", size_of::<u64>())
    };
    let bits = size * 8;
    format!("Access {{ of: {of:?}, steps: &[{steps}], shape: Shape::{shape}, bits: {bits}, elements: {elements} }}")
}
