//! Compiles and embeds the BPF programs, and gives the shared library the name, flags and needs that its
//! consumers rely on.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

/// Each with the instruction set of the oldest kernel that it is for: Linux 5.8, 4.15.
const PROGRAMS: [(&str, &str); 3] =
    [("tcp_event", "-mcpu=v3"), ("tcp_event_perf", "-mcpu=v1"), ("tcp_event_tracepoint", "-mcpu=v1")];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (program, instructions) in PROGRAMS {
        SkeletonBuilder::new()
            .source(format!("bpf/{program}.bpf.c"))
            .clang_args([instructions, "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Ibpf"])
            // Kept: tests/bpf.rs looks into it.
            .obj(out.join(format!("{program}.bpf.o")))
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .expect("clang could not compile the BPF program");
    }
    println!("cargo:rerun-if-changed=bpf");

    // rustc gives a cdylib no SONAME.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtcpEvent.so");
    // Threads of the host keep our thread-local destructors: unmapping the library would leave them dangling,
    // so dlclose must not unmap it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,relro,-z,now");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--as-needed");
}
