/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Reads of the current process.
 *
 * The program that includes this file has said what the kernel can do: has_typed_task, has_registers.
 */
#ifndef TCPEVENT_PROCESS_H
#define TCPEVENT_PROCESS_H

/* By a pointer that has a type, and so is read without probing, where the kernel gives one. */
static __always_inline struct task_struct *current_task(void)
{
	return has_typed_task ? bpf_get_current_task_btf() : (struct task_struct *)bpf_get_current_task();
}

/* A thread of the kernel's own. */
static __always_inline bool is_kernel_thread(struct task_struct *task)
{
	return (has_typed_task ? task->flags : BPF_CORE_READ(task, flags)) & PF_KTHREAD;
}

/* Of the current task, as it has entered the kernel; or NULL where they cannot be found. */
static __always_inline struct pt_regs *user_registers(void)
{
	struct pt_regs *registers = 0;

	/* Since Linux 5.15. */
	if (has_registers)
		return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
#if defined(__TARGET_ARCH_x86)
	/* At the end of a stack of 16 KiB (arch/x86/include/asm/page_64_types.h), and so it is where they are of user mode. */
	registers = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), stack) + (16 << 10) - 21 * sizeof(long);
	if ((BPF_CORE_READ(registers, cs) & 3) != 3)
		registers = 0;
#endif
	return registers;
}

/* Of the system call that it has entered the kernel by. The first one's register may hold the result by now. */
#if defined(__TARGET_ARCH_x86)
#define FIRST_ARGUMENT(registers) BPF_CORE_READ(registers, di)
#define SECOND_ARGUMENT(registers) BPF_CORE_READ(registers, si)
#define THIRD_ARGUMENT(registers) BPF_CORE_READ(registers, dx)
#else
#define FIRST_ARGUMENT(registers) BPF_CORE_READ(registers, orig_x0)
#define SECOND_ARGUMENT(registers) BPF_CORE_READ(registers, user_regs.regs[1])
#define THIRD_ARGUMENT(registers) BPF_CORE_READ(registers, user_regs.regs[2])
#endif

/* The number of that system call. */
static __always_inline __s32 call_of(struct pt_regs *registers)
{
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(registers, orig_ax);
#else
	return BPF_CORE_READ(registers, syscallno);
#endif
}

/* Whether the current process is in the system call connect. */
static __always_inline bool is_in_connect(void)
{
	struct pt_regs *registers = user_registers();

#if defined(__TARGET_ARCH_x86)
	return registers && call_of(registers) == 42;
#else
	return registers && call_of(registers) == 203;
#endif
}

/*
 * Whether the current process executes another program. It lets go of files as task work, on its way back to user mode
 * (do_close_on_exec(), ____fput()): it has the other program's name by then, and in_execve is no longer set; but the number of
 * the system call is what it was.
 */
static __always_inline bool is_in_exec(void)
{
	struct pt_regs *registers = user_registers();
	__s32 call;

	if (!registers)
		return false;
	call = call_of(registers);
#if defined(__TARGET_ARCH_x86)
	/* execve and execveat: of x86-64, of its programs with short pointers, and of 32-bit ones. (Their 11 is munmap elsewhere.) */
	return call == 59 || call == 322 || call == 520 || call == 545 || call == 11 || call == 358;
#else
	return call == 221 || call == 281 || call == 11 || call == 387;
#endif
}

/* The current process, by helpers that every kernel has. */
static __always_inline void read_current_by_helpers(__u32 *pid, __u32 *uid, char *comm)
{
	*pid = bpf_get_current_pid_tgid() >> 32;
	*uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(comm, TASK_COMM_LEN);
}

#endif
