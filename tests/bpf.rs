//! The programs for old kernels, as the compiler left them: they hold nothing that Linux 4.15 does not know. (No such
//! kernel is at hand to ask.)

use std::fs;
use std::path::Path;

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// Those that must load there.
const OLD: [&str; 2] = ["tcp_event_perf", "tcp_event_tracepoint"];

/// Instructions that one program may have.
const MOST_INSTRUCTIONS: usize = 4096;

/// The last helper of that kernel, `BPF_FUNC_getsockopt`.
const LAST_HELPER: i32 = 57;

/// `BPF_FUNC_probe_read_kernel`: where the kernel does not have it, libbpf puts `BPF_FUNC_probe_read` in its place.
const PROBE_READ_KERNEL: i32 = 113;

/// One instruction, or the first half of one that takes two.
struct Instruction {
    code: u8,
    source: u8,
    number: i32,
}

impl Instruction {
    fn class(&self) -> u8 {
        self.code & 0x07
    }
}

struct Program {
    name: String,
    instructions: Vec<Instruction>,
}

fn bytes_of(object: &str) -> Vec<u8> {
    fs::read(Path::new(env!("OUT_DIR")).join(format!("{object}.bpf.o"))).expect("build.rs keeps the objects")
}

fn programs_of(object: &str) -> Vec<Program> {
    let bytes = bytes_of(object);
    let file = object::File::parse(bytes.as_slice()).unwrap();
    let functions = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
    let programs: Vec<_> = functions
        .map(|symbol| {
            let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
            let from = usize::try_from(symbol.address()).unwrap();
            let text = &section.data().unwrap()[from..][..usize::try_from(symbol.size()).unwrap()];
            let instructions = text.chunks_exact(8).map(|bytes| Instruction {
                code: bytes[0],
                source: bytes[1] >> 4,
                number: i32::from_ne_bytes(bytes[4..].try_into().unwrap()),
            });
            Program { name: symbol.name().unwrap().to_owned(), instructions: instructions.collect() }
        })
        .collect();
    assert!(programs.len() >= 3, "{object} has its programs");
    programs
}

#[test]
fn programs_for_old_kernels_are_made_of_instructions_that_those_know() {
    // include/uapi/linux/bpf.h
    const LD_IMM64: u8 = 0x18;
    const CALL: u8 = 0x85;
    const JMP32: u8 = 0x06;
    const ATOMICS: [u8; 2] = [0xc3, 0xdb];

    for program in OLD.iter().flat_map(|object| programs_of(object)) {
        let name = &program.name;
        assert!(program.instructions.len() <= MOST_INSTRUCTIONS, "{name} has {}", program.instructions.len());
        let mut instructions = program.instructions.iter();
        while let Some(instruction) = instructions.next() {
            assert_ne!(instruction.class(), JMP32, "{name} compares 32 bits");
            match instruction.code {
                // A call of another function of the program has another source; so has one of the kernel's.
                CALL => {
                    let helper = instruction.number;
                    let is_known = (1..=LAST_HELPER).contains(&helper) || helper == PROBE_READ_KERNEL;
                    assert!(instruction.source == 0 && is_known, "{name} calls {helper} ({})", instruction.source);
                }
                code if ATOMICS.contains(&code) => assert_eq!(instruction.number, 0, "{name}: it is no mere addition"),
                LD_IMM64 => {
                    instructions.next();
                }
                _ => {}
            }
        }
    }
}

#[test]
fn programs_for_old_kernels_have_no_global_variables() {
    for object in OLD {
        let bytes = bytes_of(object);
        let file = object::File::parse(bytes.as_slice()).unwrap();
        for section in file.sections().filter(|section| section.size() > 0) {
            let name = section.name().unwrap();
            let is_data = [".data", ".bss", ".rodata", ".kconfig", ".ksyms"].iter().any(|data| name.starts_with(data));
            assert!(!is_data, "{object} has {name}");
        }
        // A function that is no program would be called from one.
        assert!(file.section_by_name(".text").is_none_or(|section| section.size() == 0), "{object} has functions");
    }
}
