//! The programs for old kernels, as the compiler left them: they hold nothing that Linux 4.15 does not know. (No such
//! kernel is at hand to ask.)

use std::path::Path;

use libbpf_rs::libbpf_sys::bpf_insn;
use libbpf_rs::{MapType, ObjectBuilder, OpenObject};

/// Those that must load there, and how many programs each has.
const OLD: [(&str, usize); 2] = [("tcp_event_perf", 4), ("tcp_event_tracepoint", 6)];

fn open(object: &str) -> OpenObject {
    // build.rs keeps them.
    let path = Path::new(env!("OUT_DIR")).join(format!("{object}.bpf.o"));
    ObjectBuilder::default().open_file(path).expect("it is an object")
}

/// Whether all that an instruction may be is known, whose first half it is where it takes two.
fn is_known(instruction: bpf_insn) -> bool {
    // include/uapi/linux/bpf.h
    const CALL: u8 = 0x85;
    const JMP32: u8 = 0x06;
    const ATOMIC: u8 = 0xc3;
    const ATOMIC_64: u8 = 0xdb;
    // BPF_FUNC_getsockopt, the last helper of that kernel.
    const LAST_HELPER: i32 = 57;
    // BPF_FUNC_probe_read_kernel: where the kernel does not have it, libbpf puts BPF_FUNC_probe_read in its place.
    const PROBE_READ_KERNEL: i32 = 113;
    // BPF_FUNC_get_ns_current_pid_tgid and BPF_FUNC_get_stack: src/probe/instructions.rs takes their calls away.
    const NAMESPACE_ID: i32 = 120;
    const STACK: i32 = 67;

    match instruction.code {
        // A call of another function of the program, or of one of the kernel's, has a source.
        CALL => {
            let helper = instruction.imm;
            let is_replaced = [PROBE_READ_KERNEL, NAMESPACE_ID, STACK].contains(&helper);
            instruction.src_reg() == 0 && ((1..=LAST_HELPER).contains(&helper) || is_replaced)
        }
        // Other than a mere addition.
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
        // Among them would be those of global variables, which are arrays with a flag.
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
