/*
 * Preloaded into a program, makes bpf(2) look like Linux 4.15's: what that kernel lacks is refused as it would be
 * there. Everything else goes to the real one.
 *
 * libbpf, inside the library under test, calls bpf(2) through syscall(3).
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/bpf.h>

/* The last ones of Linux 4.15 (its include/uapi/linux/bpf.h). */
enum {
	LAST_COMMAND = BPF_PROG_QUERY,
	LAST_MAP_TYPE = BPF_MAP_TYPE_CPUMAP,
	LAST_PROG_TYPE = BPF_PROG_TYPE_CGROUP_DEVICE,
	LAST_HELPER = BPF_FUNC_getsockopt,
	MAP_FLAGS = BPF_F_NO_PREALLOC | BPF_F_NO_COMMON_LRU | BPF_F_NUMA_NODE | BPF_F_RDONLY | BPF_F_WRONLY,
	MOST_INSTRUCTIONS = 4096,
};

/* Whether the command's attributes have anything set beyond those of that kernel. */
static bool has_more(const union bpf_attr *attr, size_t size, size_t known)
{
	const unsigned char *bytes = (const unsigned char *)attr;

	for (; known < size; known++)
		if (bytes[known])
			return true;
	return false;
}

static bool knows(const struct bpf_insn *instruction)
{
	switch (BPF_CLASS(instruction->code)) {
	case BPF_JMP32:
		return false;
	case BPF_JMP:
		/* Calls of other functions of the program, or of the kernel, are unknown to it. */
		if (BPF_OP(instruction->code) == BPF_CALL)
			return !instruction->src_reg && instruction->imm <= LAST_HELPER;
		return true;
	case BPF_LD:
		return instruction->src_reg <= BPF_PSEUDO_MAP_FD;
	case BPF_STX:
		return BPF_MODE(instruction->code) != BPF_ATOMIC || !instruction->imm;
	default:
		return true;
	}
}

/* libbpf replaces reads of fields that the kernel's types lack by a call that is refused if it is reached. */
static bool is_poison(const struct bpf_insn *instruction)
{
	return instruction->code == (BPF_JMP | BPF_CALL) && instruction->imm == 0xbad2310;
}

/*
 * Whether verifiers before Linux 5.0 see that an instruction is unreachable: it is skipped if a register is 0, and the
 * register was set to 0. They follow both branches of all other conditions.
 */
static bool is_skipped(const struct bpf_insn *instructions, long at)
{
	long jump, set;

	for (jump = at - 1; jump > 0; jump--) {
		const struct bpf_insn *condition = &instructions[jump];

		if (condition->code != (BPF_JMP | BPF_JEQ | BPF_K) || condition->imm || jump + condition->off < at)
			continue;
		for (set = jump - 1; set >= 0 && instructions[set].dst_reg != condition->dst_reg;)
			set--;
		if (set >= 0 && instructions[set].code == (BPF_ALU64 | BPF_MOV | BPF_K) && !instructions[set].imm)
			return true;
	}
	return false;
}

static int refusal(long command, const union bpf_attr *attr, size_t size)
{
	const struct bpf_insn *instructions;
	size_t i;

	if (command > LAST_COMMAND)
		return EINVAL;
	if (command == BPF_MAP_CREATE) {
		if (has_more(attr, size, offsetof(union bpf_attr, map_name) + sizeof(attr->map_name)))
			return EINVAL;
		return attr->map_type > LAST_MAP_TYPE || attr->map_flags & ~(unsigned)MAP_FLAGS ? EINVAL : 0;
	}
	if (command != BPF_PROG_LOAD)
		return 0;
	if (has_more(attr, size, offsetof(union bpf_attr, prog_ifindex) + sizeof(attr->prog_ifindex)))
		return EINVAL;
	if (attr->prog_type > LAST_PROG_TYPE || (attr->prog_type == BPF_PROG_TYPE_KPROBE && !attr->kern_version))
		return EINVAL;
	if (attr->insn_cnt > MOST_INSTRUCTIONS)
		return E2BIG;
	instructions = (const struct bpf_insn *)(uintptr_t)attr->insns;
	for (i = 0; i < attr->insn_cnt; i++) {
		if (!knows(&instructions[i]) && !(is_poison(&instructions[i]) && is_skipped(instructions, (long)i)))
			return EINVAL;
		/* It has two parts. */
		i += instructions[i].code == (BPF_LD | BPF_IMM | BPF_DW);
	}
	return 0;
}

long syscall(long number, ...)
{
	long (*real)(long number, ...);
	long arguments[6];
	va_list list;
	int error, i;

	va_start(list, number);
	for (i = 0; i < 6; i++)
		arguments[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_bpf) {
		error = refusal(arguments[0], (const union bpf_attr *)arguments[1], (size_t)arguments[2]);
		if (error) {
			errno = error;
			return -1;
		}
	}
	/* The cast of POSIX: ISO C does not convert data pointers to function pointers. */
	*(void **)&real = dlsym(RTLD_NEXT, "syscall");
	return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
