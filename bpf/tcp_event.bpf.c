// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * Reports every TCP endpoint that reaches TCP_CLOSE: who owned it, its addresses and its counters. That is all that the
 * plain programs do, which have no filter. The detailed ones report every change of state, with more, of what fits the
 * filter. User space loads one kind or the other.
 *
 * Two hooks see the same transitions, and user space attaches one of them: a kprobe at the entry of
 * tcp_set_state(), or the typed tracepoint inet_sock_set_state; a second program on the tracepoint does what the first
 * has missed. Beside them, one accept hook records which process took a connection, and an iterator finds the owners
 * of endpoints that are older than the probe.
 *
 * The task on the CPU at TCP_CLOSE is often a bystander, because most endpoints close in softirq. The owner is
 * therefore noted whenever a process acts on the endpoint in its own context, and kept until the close: see owners.h.
 */
#include "core_types.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "tcp_event.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Set before the programs are loaded. */
const volatile bool main_is_kprobe = false;
const volatile bool second_look = false; /* at each change of state */
const volatile bool look_at_end = false; /* where a socket fails, and where it is destroyed */
const volatile bool look_at_end_detailed = false; /* the same, where the main program is a detailed one */

#define ONCE_A_PROGRAM static __noinline

/* Since Linux 5.11. */
#define has_typed_task bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)
#define has_registers bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs)

/* Where the kernel does not let it, user space looks who holds a socket. */
#define hears_let_go true

#include "cast.h"
#include "identity.h"
#include "owners.h"
#include "ring_output.h"
#include "filter.h"
#include "attempts.h"
#include "transition.h"
#include "done.h"

/* Called from three programs: a copy in each would make the object half as large again. */
static __noinline int transition_detailed(struct sock *sk, int old_state, int new_state, bool can_number)
{
	return transition(0, sk, old_state, new_state, true, true, can_number);
}

/* Whether a change is one that a detailed program does anything about. */
static __always_inline bool may_matter(int new_state)
{
	return follows_changes() || new_state == TCP_CLOSE || new_state == TCP_ESTABLISHED ||
	       new_state == TCP_SYN_SENT || new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK ||
	       (look_at_end && new_state == TCP_CLOSING);
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry, struct sock *sk, int state)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (can_cast)
		transition(ctx, CAST(sock, sk), old_state, state, true, false, false);
	else
		transition(ctx, sk, old_state, state, false, false, false);
	if (second_look)
		set_done(sk, state);
	return 0;
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry_detailed, struct sock *sk, int state)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (can_cast)
		transition_detailed(CAST(sock, sk), old_state, state, false);
	else
		transition(ctx, sk, old_state, state, false, true, false);
	if (!is_left_to_second_look(old_state, state))
		set_done(sk, state);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_tracepoint, struct sock *sk, int old_state, int new_state)
{
	transition(ctx, sk, old_state, new_state, true, false, true);
	if (second_look)
		set_done(sk, new_state);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_tracepoint_detailed, struct sock *sk, int old_state, int new_state)
{
	if (!may_matter(new_state))
		return 0;
	transition_detailed(sk, old_state, new_state, true);
	if (second_look)
		set_done(sk, new_state);
	return 0;
}

#include "second_look.h"
#include "accepts.h"
#include "accept_entry.h"
#include "holders.h"
#include "retries.h"
#include "unsent.h"
