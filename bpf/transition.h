/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What a change of state means, for whichever hook has seen it: who owns the endpoint from now on, and what is reported.
 * Shared by tcp_event.bpf.c and tcp_event_perf.bpf.c.
 *
 * The program that includes this file has said how it is attached (constants: main_is_kprobe, second_look, look_at_end) and
 * where it keeps owners (owner_of(), note_owner(), forget_owner(), end_owner()), beside what report.h asks for.
 */
#ifndef TCPEVENT_TRANSITION_H
#define TCPEVENT_TRANSITION_H

#include "report.h"

/*
 * False where there is none. What is copied is no pointer that the verifier would follow once for each map that it may be
 * of.
 */
static __always_inline bool copy_owner(struct owner *to, const struct sock *sk)
{
	const struct owner *known = owner_of(sk);

	if (known)
		*to = *known;
	return known;
}

/*
 * Whether a thread of the kernel acts for a process: it ends what that has closed, or opens another connection of MPTCP
 * beside the first one. Whose that is, is known by other means.
 */
static __always_inline bool acts_for_another(struct task_struct *task, struct sock *sk, int new_state)
{
	return is_kernel_thread(task) && (new_state != TCP_SYN_SENT || is_of_mptcp(sk));
}

/*
 * Whether the end of a handshake that began at a listener, or of one with a simultaneous SYN, finds the endpoint in a process's
 * hands, and with an entry. Where the accept was not seen, Fast Open's has none; a socket that its process connects is older than
 * the probe then.
 */
static __always_inline bool is_in_hands(struct sock *sk, const struct owner *known)
{
	struct socket *socket = socket_of(sk);

	return socket && ((known && !known->has_ended) || BPF_CORE_READ(socket, state) != SS_CONNECTED);
}

/*
 * A connection begins: whatever the address of its socket stood for before is over. Or a process acts on it. The plain
 * programs report no age.
 */
static __always_inline void note_change(struct sock *sk, int new_state, const bool detailed)
{
	bool is_born = new_state == TCP_SYN_SENT || new_state == TCP_ESTABLISHED;
	struct owner *known = owner_of(sk), fresh = {}, *owner = known ? known : &fresh, current;
	struct task_struct *task;
	bool is_taken;

	if (!known && !main_is_kprobe && !speaks_tcp(sk))
		return;
	/*
	 * At a listener, or in a process's hands already. (The plain program at the tracepoint leaves nothing of an earlier socket
	 * at the same address: see close_at_end().)
	 */
	if (new_state == TCP_ESTABLISHED &&
	    (!detailed && look_at_end ? known && !known->has_ended : is_in_hands(sk, known)))
		return;
	/* A process may have taken it just now, on another processor; MPTCP gives it a struct socket after that only. */
	is_taken = new_state == TCP_ESTABLISHED && owner->origin == TCP_ORIGIN_ACCEPT && !owner->birth_ns;
	if (is_born) {
		owner->birth_ns = detailed ? bpf_ktime_get_ns() : 1;
		owner->established_ns = 0;
		owner->state = 0;
		owner->has_ended = 0;
		owner->direction = new_state == TCP_SYN_SENT ? TCP_DIRECTION_CONNECTED : TCP_DIRECTION_ACCEPTED;
		if (!is_taken)
			owner->origin = TCP_ORIGIN_NONE;
	}
	if (new_state != TCP_ESTABLISHED) {
		task = current_task();
		if (!acts_for_another(task, sk, new_state)) {
			set_actor(&current, task, new_state == TCP_SYN_SENT ? TCP_ORIGIN_CONNECT : TCP_ORIGIN_CLOSE);
			if (!is_born && is_let_go_by_exec(owner, &current))
				return;
			owner->pid = current.pid;
			owner->uid = current.uid;
			owner->origin = current.origin;
			__builtin_memcpy(owner->comm, current.comm, sizeof(owner->comm));
		} else if (!is_born) {
			return;
		}
	}
	if (!known)
		note_owner(sk, &fresh, new_state == TCP_ESTABLISHED ? BPF_NOEXIST : BPF_ANY);
}

/*
 * With a kprobe, the first change of a connection's state is left to the second look, whose program can have the kernel
 * give the socket its number.
 */
static __always_inline bool is_left_to_second_look(int old_state, int new_state)
{
	return main_is_kprobe && second_look &&
	       (new_state == TCP_SYN_SENT || (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV));
}

/* Any change of state. `known` is the owner of an endpoint that goes to TCP_CLOSE; of any other it is filled here. */
static __always_inline __u64 report_change(void *ctx, struct sock *sk, struct owner *known, int old_state,
					   int new_state, const bool direct)
{
	struct owner *entry;

	/* A connection that begins at a listener: it has no addresses yet, and may never be one. */
	if (old_state == new_state || (new_state == TCP_SYN_RECV && old_state == TCP_LISTEN))
		return 0;
	if (new_state != TCP_CLOSE) {
		entry = owner_of(sk);
		if (entry && new_state == TCP_ESTABLISHED) {
			entry->established_ns = bpf_ktime_get_ns();
			/* Accepted before its handshake was over: Fast Open. */
			if (!entry->birth_ns)
				entry->birth_ns = entry->established_ns;
		}
		if (is_left_to_second_look(old_state, new_state)) {
			if (entry && !direct)
				return 0;
			if (direct)
				cookie_of(sk, direct);
		}
		if (entry) {
			entry->state = new_state;
			*known = *entry;
		}
	}
	return report_detailed(ctx, sk, known, old_state, new_state, direct);
}

static __always_inline int transition(void *ctx, struct sock *sk, int old_state, int new_state, const bool direct,
				      const bool detailed)
{
	struct owner known = {};
	bool is_known = false;
	__u64 held_ns = 0;

	if (new_state == TCP_CLOSE) {
		/* A socket that was closed before changes nothing, and a listener is no connection. */
		if (old_state == TCP_CLOSE || (old_state == TCP_LISTEN && !detailed))
			return 0;
		is_known = copy_owner(&known, sk);
		/* Fast Open, whose handshake has not come to its end: that is what age is counted from. */
		if (old_state == TCP_SYN_RECV && is_known && !known.birth_ns)
			known.birth_ns = detailed ? bpf_ktime_get_ns() : 1;
	} else if (new_state == TCP_SYN_SENT || (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV) ||
		   ((new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) && is_locked_by_process(sk, direct))) {
		note_change(sk, new_state, detailed);
	}
	if (detailed)
		held_ns = report_change(ctx, sk, &known, old_state, new_state, direct);
	else if (new_state == TCP_CLOSE && (old_state != TCP_SYN_RECV || is_end(sk, &known, old_state)))
		held_ns = report(ctx, sk, &known, old_state, direct);
	if (is_known)
		end_owner(sk, held_ns);
	return 0;
}

#endif
