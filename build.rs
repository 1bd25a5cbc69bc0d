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
        SkeletonBuilder::new()
            .source(format!("bpf/{program}.bpf.c"))
            .clang_args([instructions, "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Ibpf"])
            // Kept: types are read from it below, and tests/bpf.rs looks into it.
            .obj(out.join(format!("{program}.bpf.o")))
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .expect("clang could not compile the BPF program");
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
