//! The last change to the BPF programs' instructions, right before they go to the kernel: what libbpf would look up among
//! all of the kernel's types, once for each program, and what an old kernel does not know.

use std::cell::RefCell;
use std::os::raw::{c_int, c_long};

use libbpf_rs::libbpf_sys::{
    self, BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACEPOINT, BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_TRACE_ITER, BPF_TRACE_RAW_TP, bpf_attach_type, bpf_insn, bpf_prog_load_opts,
    bpf_prog_type, bpf_program,
};

use crate::sys::once::Once;
use crate::sys::shared::TCP_RDONLY_CAST;

const RDONLY_CAST: i32 = i32::from_ne_bytes(TCP_RDONLY_CAST.to_ne_bytes());

// include/uapi/linux/bpf.h
const CALL: u8 = 0x85;
const PSEUDO_KFUNC_CALL: u8 = 2;
const ATOMIC: u8 = 0xc3;
const ATOMIC_64: u8 = 0xdb;
const FETCH: i32 = 1;
const MOV_64: u8 = 0xb7;

/// `bpf_get_ns_current_pid_tgid`, since Linux 5.7.
const NAMESPACE_ID: i32 = 120;

/// `bpf_get_stack`, since Linux 4.18.
const STACK: i32 = 67;

/// What the programs have to be changed by.
#[derive(Clone, Debug, Default)]
pub(super) struct Fitting {
    /// The kernel's type of each tracepoint, function and iterator that a program is for, by the name of its section.
    pub targets: Vec<(&'static str, u32)>,
    /// The kernel's function `bpf_rdonly_cast`, where programs may call it and have atomic instructions (Linux 6.2).
    pub rdonly_cast: Option<u32>,
    /// Whether programs may ask for process IDs of another PID namespace than the initial one.
    pub knows_namespaces: bool,
    /// Whether programs may ask for the stack of the current process.
    pub knows_stacks: bool,
}

thread_local! {
    /// That of the load under way in this thread: libbpf hands its callbacks nothing of ours.
    static FITTING: RefCell<Option<Fitting>> = const { RefCell::new(None) };
}

impl Fitting {
    /// Loads programs. All those of this library's sections must be opened after the first call of [`take_over`].
    pub(super) fn during<T>(&self, load: impl FnOnce() -> T) -> T {
        FITTING.set(Some(self.clone()));
        let loaded = load();
        FITTING.set(None);
        loaded
    }

    /// The number that a section's program is for.
    pub(super) fn target(&self, section: &str) -> Option<u32> {
        self.targets.iter().find(|(name, _)| *name == section).map(|(_, id)| *id)
    }

    fn fit(&self, instructions: &mut [bpf_insn]) {
        for instruction in instructions {
            match (instruction.code, self.rdonly_cast) {
                (CALL, Some(function)) if instruction.imm == RDONLY_CAST => {
                    instruction.set_src_reg(PSEUDO_KFUNC_CALL);
                    instruction.imm = immediate(function);
                }
                // It fails, then.
                (CALL, _)
                    if !self.knows_namespaces && instruction.imm == NAMESPACE_ID && instruction.src_reg() == 0 =>
                {
                    *instruction = self::instruction(MOV_64, 0, 0, 0, -libc::EINVAL);
                }
                (CALL, _) if !self.knows_stacks && instruction.imm == STACK && instruction.src_reg() == 0 => {
                    *instruction = self::instruction(MOV_64, 0, 0, 0, -libc::EINVAL);
                }
                // Not reached, but the kernel may know no atomic instructions that give the old value (before Linux
                // 5.12), and looks at all instructions for what it does not know.
                (ATOMIC | ATOMIC_64, None) if instruction.imm & FETCH != 0 => {
                    *instruction = bpf_insn { code: MOV_64, ..bpf_insn::default() };
                }
                _ => {}
            }
        }
    }
}

/// Has libbpf call [`prepare`] for the programs of sections that begin like these.
pub(super) fn take_over() {
    static ONCE: Once = Once::new();
    ONCE.call(|| {
        let options = libbpf_sys::libbpf_prog_handler_opts {
            sz: size_of::<libbpf_sys::libbpf_prog_handler_opts>() as libbpf_sys::size_t,
            prog_prepare_load_fn: Some(prepare),
            ..Default::default()
        };
        // A program of type TRACING would make libbpf read all of the kernel's types.
        for (section, kind) in [
            (c"tp_btf+", BPF_PROG_TYPE_RAW_TRACEPOINT),
            (c"iter+", BPF_PROG_TYPE_RAW_TRACEPOINT),
            (c"fentry+", BPF_PROG_TYPE_RAW_TRACEPOINT),
            (c"fexit+", BPF_PROG_TYPE_RAW_TRACEPOINT),
            (c"raw_tp+", BPF_PROG_TYPE_RAW_TRACEPOINT),
            (c"kprobe+", BPF_PROG_TYPE_KPROBE),
            (c"tracepoint+", BPF_PROG_TYPE_TRACEPOINT),
        ] {
            // SAFETY: a name, which is copied, and options of the size that they say. This library has a libbpf of its
            // own, whose list of sections nobody else changes.
            unsafe { libbpf_sys::libbpf_register_prog_handler(section.as_ptr(), kind, 0, &raw const options) };
        }
    });
}

/// Of a section whose programs are for something which has a type in the kernel.
pub(super) fn attach_type_of(section: &str) -> Option<bpf_attach_type> {
    match section.split_once('/')?.0 {
        "tp_btf" => Some(BPF_TRACE_RAW_TP),
        "iter" => Some(BPF_TRACE_ITER),
        "fentry" => Some(BPF_TRACE_FENTRY),
        "fexit" => Some(BPF_TRACE_FEXIT),
        _ => None,
    }
}

/// libbpf is about to load a program, relocated.
extern "C" fn prepare(program: *mut bpf_program, options: *mut bpf_prog_load_opts, _: c_long) -> c_int {
    FITTING.with_borrow(|fitting| {
        let Some(fitting) = fitting else {
            return 0;
        };
        // SAFETY: libbpf's program and options, for the time of this call; the section's name and the instructions live as
        // long as the program, and it makes a copy of the new ones.
        unsafe {
            let section = std::ffi::CStr::from_ptr(libbpf_sys::bpf_program__section_name(program));
            let section = section.to_str().unwrap_or_default();
            if let Some(attach_type) = attach_type_of(section) {
                let Some(target) = fitting.target(section) else {
                    return -libc::ESRCH;
                };
                libbpf_sys::bpf_program__set_type(program, BPF_PROG_TYPE_TRACING);
                libbpf_sys::bpf_program__set_expected_attach_type(program, attach_type);
                (*options).expected_attach_type = attach_type;
                (*options).attach_btf_id = target;
            }
            let count = libbpf_sys::bpf_program__insn_cnt(program);
            let length = usize::try_from(count).unwrap_or_default();
            let mut instructions = std::slice::from_raw_parts(libbpf_sys::bpf_program__insns(program), length).to_vec();
            fitting.fit(&mut instructions);
            libbpf_sys::bpf_program__set_insns(program, instructions.as_mut_ptr(), count)
        }
    })
}

/// Whether this kernel takes a program of these instructions.
fn is_taken(instructions: &[bpf_insn]) -> bool {
    is_taken_for(BPF_PROG_TYPE_KPROBE, bpf_prog_load_opts::default(), instructions)
}

/// The same, of a type and for something that has a type in the kernel.
fn is_taken_for(kind: bpf_prog_type, options: bpf_prog_load_opts, instructions: &[bpf_insn]) -> bool {
    let mut options = bpf_prog_load_opts { sz: size_of::<bpf_prog_load_opts>() as libbpf_sys::size_t, ..options };
    // SAFETY: as many instructions as it is told of, and options of the size that they say.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            std::ptr::null(),
            c"Dual MIT/GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as libbpf_sys::size_t,
            &raw mut options,
        )
    };
    // SAFETY: the descriptor is this function's own.
    fd >= 0 && unsafe { libc::close(fd) } == 0
}

fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
    let mut instruction = bpf_insn { code, off, imm, ..bpf_insn::default() };
    instruction.set_dst_reg(dst);
    instruction.set_src_reg(src);
    instruction
}

/// An ID as the signed number that an instruction holds.
fn immediate(id: u32) -> i32 {
    i32::from_ne_bytes(id.to_ne_bytes())
}

const EXIT: u8 = 0x95;
/// To where the frame pointer, register 10, points.
const STORE_64: u8 = 0x7a;

/// Whether a program may call `bpf_rdonly_cast`, and exchange what is in memory: by trial.
pub(super) fn can_cast(function: u32, to: u32) -> bool {
    const COMPARE_AND_EXCHANGE: i32 = 0xf1;
    is_taken(&[
        instruction(MOV_64, 1, 0, 0, 0),
        instruction(MOV_64, 2, 0, 0, immediate(to)),
        instruction(CALL, 0, PSEUDO_KFUNC_CALL, 0, immediate(function)),
        instruction(STORE_64, 10, 0, -8, 0),
        instruction(MOV_64, 0, 0, 0, 0),
        instruction(MOV_64, 1, 0, 0, 1),
        instruction(ATOMIC_64, 10, 1, -8, COMPARE_AND_EXCHANGE),
        instruction(MOV_64, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ])
}

/// Whether a program may be at the entry of a function: by trial. Some kernels have no trampolines, and some refuse them.
pub(super) fn can_enter(function: u32) -> bool {
    let options = bpf_prog_load_opts {
        expected_attach_type: BPF_TRACE_FENTRY,
        attach_btf_id: function,
        ..bpf_prog_load_opts::default()
    };
    is_taken_for(BPF_PROG_TYPE_TRACING, options, &[instruction(MOV_64, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)])
}

/// Whether a program may ask for a process ID of another PID namespace than the initial one: by trial.
pub(super) fn knows_namespaces() -> bool {
    const COPY_64: u8 = 0xbf;
    const ADD_64: u8 = 0x07;
    is_taken(&[
        instruction(STORE_64, 10, 0, -8, 0),
        instruction(MOV_64, 1, 0, 0, 0),
        instruction(MOV_64, 2, 0, 0, 0),
        instruction(COPY_64, 3, 10, 0, 0),
        instruction(ADD_64, 3, 0, 0, -8),
        instruction(MOV_64, 4, 0, 0, 8),
        instruction(CALL, 0, 0, 0, NAMESPACE_ID),
        instruction(MOV_64, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ])
}

/// Whether a program may ask where the current process is in user mode: by trial.
pub(super) fn knows_stacks() -> bool {
    const COPY_64: u8 = 0xbf;
    const ADD_64: u8 = 0x07;
    const OF_USER_MODE: i32 = 256;
    is_taken(&[
        instruction(STORE_64, 10, 0, -8, 0),
        instruction(COPY_64, 2, 10, 0, 0),
        instruction(ADD_64, 2, 0, 0, -8),
        instruction(MOV_64, 3, 0, 0, 8),
        instruction(MOV_64, 4, 0, 0, OF_USER_MODE),
        instruction(CALL, 0, 0, 0, STACK),
        instruction(MOV_64, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPARE_AND_EXCHANGE: i32 = 0xf1;
    const ADD: i32 = 0;

    fn program() -> Vec<bpf_insn> {
        vec![
            instruction(CALL, 0, 0, 0, RDONLY_CAST),
            // A helper, and another program's function.
            instruction(CALL, 0, 0, 0, 5),
            instruction(CALL, 0, 1, 0, RDONLY_CAST - 1),
            instruction(ATOMIC_64, 10, 1, -8, COMPARE_AND_EXCHANGE),
            instruction(ATOMIC, 10, 1, -8, ADD | FETCH),
            instruction(ATOMIC_64, 10, 1, -8, ADD),
            instruction(EXIT, 0, 0, 0, 0),
        ]
    }

    fn fitted(rdonly_cast: Option<u32>) -> Vec<bpf_insn> {
        let mut instructions = program();
        Fitting { rdonly_cast, ..Fitting::default() }.fit(&mut instructions);
        instructions
    }

    /// Numbers of those that are not what they were.
    fn changed(fitted: &[bpf_insn]) -> Vec<usize> {
        let parts = |insn: &bpf_insn| (insn.code, insn.dst_reg(), insn.src_reg(), insn.off, insn.imm);
        (0..fitted.len()).filter(|at| parts(&fitted[*at]) != parts(&program()[*at])).collect()
    }

    #[test]
    fn the_placeholder_becomes_a_call_of_the_kernels_function() {
        let fitted = fitted(Some(4711));
        assert_eq!(changed(&fitted), [0]);
        assert_eq!((fitted[0].code, fitted[0].src_reg(), fitted[0].imm), (CALL, PSEUDO_KFUNC_CALL, 4711));
    }

    #[test]
    fn an_old_kernel_sees_no_atomic_instruction_that_gives_the_old_value() {
        let fitted = fitted(None);
        assert_eq!(changed(&fitted), [3, 4]);
        for at in [3, 4] {
            assert_eq!((fitted[at].code, fitted[at].dst_reg(), fitted[at].imm), (MOV_64, 0, 0));
        }
    }

    /// As root only: others may load no programs.
    #[test]
    fn a_cast_is_taken_where_the_function_is_one() {
        // SAFETY: it takes nothing and cannot fail.
        if unsafe { libc::geteuid() } == 0 {
            assert!(!can_cast(u32::MAX, 1));
        }
    }
}
