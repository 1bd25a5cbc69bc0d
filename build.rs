//! Compiles and embeds the BPF programs, and gives the shared library the name, flags and needs that its
//! consumers rely on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::btf::types::{Enum, Struct, Union};
use libbpf_rs::btf::{Btf, BtfType};

/// Each with the instruction set of the oldest kernel that it is for: Linux 5.8, 4.15.
const PROGRAMS: [(&str, &str); 3] =
    [("tcp_event", "-mcpu=v3"), ("tcp_event_perf", "-mcpu=v1"), ("tcp_event_tracepoint", "-mcpu=v1")];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (program, instructions) in PROGRAMS {
        // Kept: types are read from it below, and tests/bpf.rs looks into it.
        let object = out.join(format!("{program}.bpf.o"));
        let mut builder = SkeletonBuilder::new();
        builder
            .source(format!("bpf/{program}.bpf.c"))
            .clang_args([instructions, "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Ibpf"])
            .obj(&object)
            // None: only the compiler reads the skeleton. A rustup toolchain without rustfmt has a command of that name that fails.
            .rustfmt("");
        builder.build().expect("clang could not compile the BPF program");
        let whole = fs::read(&object).expect("the object was written");
        fs::write(&object, without_lines(whole).expect("the object is ELF of 64 bits"))
            .expect("OUT_DIR can be written to");
        builder.generate(out.join(format!("{program}.skel.rs"))).expect("the skeleton could not be written");
    }
    let names = names_of_types(&out.join("tcp_event.bpf.o"));
    fs::write(out.join("tcp_event.types.rs"), format!("&{names:?}")).expect("OUT_DIR can be written to");
    println!("cargo:rerun-if-changed=bpf");

    // rustc gives a cdylib no SONAME.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtcpEvent.so");
    // Threads of the host keep our thread-local destructors: unmapping the library would leave them dangling,
    // so dlclose must not unmap it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,relro,-z,now");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--as-needed");
}

/// An object without the source lines of its instructions, which take a fourth of it: they are for what the verifier writes of a
/// program that it refuses. What `.BTF.ext` has of functions and relocations stays.
fn without_lines(mut object: Vec<u8>) -> Option<Vec<u8>> {
    // elf(5): of the file's header, and of a section's.
    const SECTIONS: usize = 40;
    const SECTION_LENGTH: usize = 58;
    const SECTION_COUNT: usize = 60;
    const SECTION_NAMES: usize = 62;
    const OFFSET: usize = 24;
    const SIZE: usize = 32;
    // include/linux/btf.h (libbpf's btf_internal.h): of struct btf_ext_header.
    const HEADER_LENGTH: usize = 4;
    const LINES: usize = 16;
    const LINES_LENGTH: usize = 20;
    const RELOCATIONS: usize = 24;

    let short = |bytes: &[u8], at: usize| Some(usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    let word = |bytes: &[u8], at: usize| usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok();
    let long = |bytes: &[u8], at: usize| usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok();

    let (table, length) = (long(&object, SECTIONS)?, short(&object, SECTION_LENGTH)?);
    let section = |number: usize| table + number * length;
    let names = long(&object, section(short(&object, SECTION_NAMES)?) + OFFSET)?;
    let count = short(&object, SECTION_COUNT)?;
    let has_name = |number: usize| {
        let name = word(&object, section(number)).and_then(|at| object.get(names + at..));
        name.is_some_and(|name| name.starts_with(b".BTF.ext\0"))
    };
    let ext_section = (0..count).find(|number| has_name(*number))?;
    let ext = long(&object, section(ext_section) + OFFSET)?;

    // As much of them as leaves all that follows aligned.
    let lines = ext + word(&object, ext + HEADER_LENGTH)? + word(&object, ext + LINES)?;
    let removed = word(&object, ext + LINES_LENGTH)? & !7;
    let set_word = |object: &mut [u8], at: usize, value: usize| {
        object.get_mut(at..at + 4)?.copy_from_slice(&u32::try_from(value).ok()?.to_le_bytes());
        Some(())
    };
    let set_long = |object: &mut [u8], at: usize, value: usize| {
        object.get_mut(at..at + 8)?.copy_from_slice(&u64::try_from(value).ok()?.to_le_bytes());
        Some(())
    };
    let relocations = word(&object, ext + RELOCATIONS)?;
    set_word(&mut object, ext + LINES_LENGTH, 0)?;
    set_word(&mut object, ext + RELOCATIONS, relocations.checked_sub(removed)?)?;
    for number in 0..count {
        let at = section(number);
        let (offset, size) = (long(&object, at + OFFSET)?, long(&object, at + SIZE)?);
        if number == ext_section {
            set_long(&mut object, at + SIZE, size.checked_sub(removed)?)?;
        } else if offset > lines {
            set_long(&mut object, at + OFFSET, offset - removed)?;
        }
    }
    if table > lines {
        set_long(&mut object, SECTIONS, table - removed)?;
    }
    object.drain(lines..lines + removed);
    Some(object)
}

/// The structures, unions and enumerations that a program has, without what stands for a version of one (`___`): libbpf
/// looks for them among the kernel's.
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
