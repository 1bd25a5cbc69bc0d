// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * The kprobes of tcp_event.bpf.c for kernels without a ring buffer: Linux 4.15 to 5.7, with a BTF file of their types. Of
 * a connection they tell the same, through a perf buffer. What these kernels do not have: global variables, so that
 * settings and counts are in maps; typed tracepoints and iterators, so that nothing looks a second time, and user space
 * finds out who owns what is older than the probe. It applies the filter, too.
 */
#include "core_types.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "perf_output.h"
#include "tcp_event.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* For the compiler to leave out what these kernels do not know: their verifiers look at all of a program. */
enum {
	can_cast = false,
	main_is_kprobe = true,
	second_look = false,
	look_at_end = false,
	look_at_end_detailed = false,
	has_typed_task = false,
	has_registers = false,
	hears_let_go = false,
};

/* Before Linux 4.16 no program calls another. */
#define ONCE_A_PROGRAM static __always_inline

#define CAST(name, ptr) ((struct name *)(ptr))

#include "process.h"

static __always_inline void read_current(struct task_struct *task, __u32 *pid, __u32 *uid, char *comm)
{
	read_current_by_helpers(pid, uid, comm);
}

#include "owner.h"

/* Preallocated, and no LRU, for the same reasons as `more_owners` of owners.h. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TCP_MOST_OWNERS);
	__type(key, __u64);
	__type(value, struct owner);
} owners SEC(".maps");

/* Which events the detailed program reports: enum tcp_wanted. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} wanted SEC(".maps");

/*
 * The record that is being filled, in place of one that a ring buffer has reserved. No other program of a kprobe runs on a
 * processor before this one has ended.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_detailed_record);
} unfinished SEC(".maps");

struct where {
	__u64 number;
};

static __always_inline struct where where_is(const struct sock *sk)
{
	return (struct where){.number = (__u64)sk};
}

static __always_inline bool is_somewhere(struct where at)
{
	return true;
}

static __always_inline struct owner *owner_at(struct where at)
{
	return bpf_map_lookup_elem(&owners, &at.number);
}

static __always_inline void note_at(struct where at, const struct owner *owner, __u64 flags)
{
	long err = bpf_map_update_elem(&owners, &at.number, owner, flags);

	if (err && err != -EEXIST)
		count_lost(TCP_LOST_OWNERS);
}

static __always_inline void forget_at(struct where at)
{
	bpf_map_delete_elem(&owners, &at.number);
}

static __always_inline void end_at(struct where at, __u64 held_ns)
{
	forget_at(at);
}

static __always_inline void *new_record(const __u64 size)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&unfinished, &zero);
}

static __always_inline void put_record(void *ctx, void *record, const __u64 size)
{
	put(ctx, record, size);
}

static __always_inline void drop_record(void *record) {}

static __always_inline bool follows_changes(void)
{
	return true;
}

static __always_inline bool is_wanted(bool ends, bool has_failed)
{
	__u32 zero = 0, *events = bpf_map_lookup_elem(&wanted, &zero);

	return events && *events & (ends ? TCP_WANTED_CLOSES : TCP_WANTED_STATES);
}

static __always_inline bool fits_socket(struct sock *sk, struct tcp_sock *tp, const bool direct)
{
	return true;
}

static __always_inline bool fits_owner(const struct tcp_record *record)
{
	return true;
}

/* Attempts that fail before a SYN are not told. */
static __always_inline void note_attempt(struct sock *sk) {}

static __always_inline bool is_told_as_unsent(struct sock *sk, int old_state)
{
	return false;
}

#include "transition.h"

static __always_inline int entry(void *ctx, struct sock *sk, int new_state, const bool detailed)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return transition(ctx, sk, old_state, new_state, false, detailed, false);
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry, struct sock *sk, int state)
{
	return entry(ctx, sk, state, false);
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry_detailed, struct sock *sk, int state)
{
	return entry(ctx, sk, state, true);
}

#include "accepts.h"
