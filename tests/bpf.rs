//! The compiled programs for old kernels: they contain nothing unknown to Linux 4.15. (There is no such kernel to try
//! them on.)

use std::path::Path;

use libbpf_rs::libbpf_sys::bpf_insn;
use libbpf_rs::{MapType, ObjectBuilder, OpenObject};

/// The objects that must load there, and the number of programs in each.
const OLD: [(&str, usize); 2] = [("tcp_event_perf", 4), ("tcp_event_tracepoint", 6)];

fn open(object: &str) -> OpenObject {
    // build.rs keeps them.
    let path = Path::new(env!("OUT_DIR")).join(format!("{object}.bpf.o"));
    ObjectBuilder::default().open_file(path).expect("it is an object")
}

/// Whether an instruction is known; one of two halves is judged by its first.
fn is_known(instruction: bpf_insn) -> bool {
    // include/uapi/linux/bpf.h
    const CALL: u8 = 0x85;
    const JMP32: u8 = 0x06;
    const ATOMIC: u8 = 0xc3;
    const ATOMIC_64: u8 = 0xdb;
    // BPF_FUNC_getsockopt, the last helper of that kernel.
    const LAST_HELPER: i32 = 57;
    // BPF_FUNC_probe_read_kernel: if the kernel lacks it, libbpf uses BPF_FUNC_probe_read instead.
    const PROBE_READ_KERNEL: i32 = 113;
    // BPF_FUNC_get_ns_current_pid_tgid and BPF_FUNC_get_stack: src/probe/instructions.rs removes their calls.
    const NAMESPACE_ID: i32 = 120;
    const STACK: i32 = 67;

    match instruction.code {
        // A call of another function of the program, or of a kernel function, has a source register.
        CALL => {
            let helper = instruction.imm;
            let is_replaced = [PROBE_READ_KERNEL, NAMESPACE_ID, STACK].contains(&helper);
            instruction.src_reg() == 0 && ((1..=LAST_HELPER).contains(&helper) || is_replaced)
        }
        // Anything but a plain addition.
        ATOMIC | ATOMIC_64 => instruction.imm == 0,
        code => code & 0x07 != JMP32,
    }
}

#[test]
fn programs_for_old_kernels_are_made_of_instructions_that_those_know() {
    const LD_IMM64: u8 = 0x18;
    const MOST_INSTRUCTIONS: usize = 4096;

    for (object, programs) in OLD {
        let open = open(object);
        assert_eq!(open.progs().count(), programs);
        for program in open.progs() {
            let name = program.name().to_string_lossy();
            let instructions = program.insns();
            assert!((2..=MOST_INSTRUCTIONS).contains(&instructions.len()), "{name} has {}", instructions.len());
            let mut at = 0;
            while let Some(&instruction) = instructions.get(at) {
                assert!(is_known(instruction), "instruction {at} of {name}: {instruction:?}");
                at += if instruction.code == LD_IMM64 { 2 } else { 1 };
            }
        }
    }
}

#[test]
fn maps_for_old_kernels_are_of_kinds_that_those_know() {
    for (object, _) in OLD {
        let open = open(object);
        assert!(open.maps().count() >= 5);
        // Includes the maps of global variables, which would be arrays with a flag.
        for map in open.maps() {
            let name = map.name().to_string_lossy();
            let kinds =
                [MapType::Hash, MapType::LruHash, MapType::Array, MapType::PercpuArray, MapType::PerfEventArray];
            assert!(kinds.contains(&map.map_type()), "{name} is a {:?}", map.map_type());
            assert_eq!(map.map_flags(), 0, "{name}");
            assert!(!name.contains('.'), "{name} is one of variables");
        }
    }
}
