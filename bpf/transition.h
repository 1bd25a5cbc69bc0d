/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What a change of state means, for whichever hook has seen it: who owns the endpoint from now on, and what is reported.
 * Shared by tcp_event.bpf.c and tcp_event_perf.bpf.c.
 *
 * The program that includes this file has said whether functions can be called, and so be there once (ONCE_A_PROGRAM), how it
 * is attached (constants: main_is_kprobe, second_look, look_at_end) and where it keeps owners (where_is(), is_somewhere(),
 * owner_at(), note_at(), forget_at(), end_at()) and attempts to connect (note_attempt(), is_told_as_unsent()),
 * beside what report.h asks for.
 */
#ifndef TCPEVENT_TRANSITION_H
#define TCPEVENT_TRANSITION_H

#include "report.h"

/*
 * False where there is none. What is copied is no pointer that the verifier would follow once for each map that it may be
 * of.
 */
static __always_inline bool copy_owner(struct owner *to, struct where at)
{
	const struct owner *known = owner_at(at);

	if (known)
		*to = *known;
	return known;
}

/*
 * Whether the end of a handshake that began at a listener, or of one with a simultaneous SYN, finds the endpoint in a process's
 * hands, and with an entry. Where the accept was not seen, Fast Open's has none; a socket that its process connects is older than
 * the probe then.
 */
static __always_inline bool is_in_hands(struct sock *sk, const struct owner *known)
{
	struct socket *socket = socket_of(sk);

	return socket && ((known && !known->has_ended) || state_of(socket) != SS_CONNECTED);
}

/* What an entry has of an endpoint's life so far is that of another one, or of nobody. The plain programs report no age. */
static __always_inline void begin_anew(struct owner *owner, __u8 direction, bool detailed)
{
	owner->birth_ns = detailed ? bpf_ktime_get_ns() : 1;
	owner->established_ns = 0;
	owner->state = 0;
	owner->direction = direction;
	owner->has_ended = 0;
}

/* For who looks at the end, and must know what state an endpoint has been in. */
static __always_inline void note_state(struct owner *owner, int state)
{
	if (look_at_end_detailed)
		owner->state = state;
}

/*
 * A process connects: whatever the address of its socket stood for before is over. A thread of the kernel opens another connection
 * of MPTCP beside the first one: whose that is, is known by other means.
 */
ONCE_A_PROGRAM void note_connect(struct sock *sk, bool detailed)
{
	struct where at = where_is(sk);
	struct owner *known = owner_at(at), fresh = {};
	struct task_struct *task;

	if (!known && !main_is_kprobe && !speaks_tcp(sk))
		return;
	begin_anew(&fresh, TCP_DIRECTION_CONNECTED, detailed);
	note_state(&fresh, TCP_SYN_SENT);
	task = current_task();
	if (!is_kernel_thread(task) || !is_of_mptcp(sk))
		set_actor(&fresh, task, TCP_ORIGIN_CONNECT);
	if (known)
		*known = fresh;
	else
		note_at(at, &fresh, BPF_ANY);
}

/* A connection begins at a listener. False where it has begun before. */
ONCE_A_PROGRAM bool note_birth(struct sock *sk, bool detailed)
{
	struct where at = where_is(sk);
	struct owner *known = owner_at(at);

	/* Who looks at the end leaves nothing of an earlier socket at the same address. */
	if (look_at_end ? known && !known->has_ended : is_in_hands(sk, known))
		return false;
	if (known) {
		/* A process may have taken it just now, on another processor; MPTCP gives it a struct socket after that only. */
		if (known->origin != TCP_ORIGIN_ACCEPT || known->birth_ns)
			*known = (struct owner){};
		begin_anew(known, TCP_DIRECTION_ACCEPTED, detailed);
		note_state(known, TCP_ESTABLISHED);
		known->established_ns = known->birth_ns;
	} else if (main_is_kprobe || speaks_tcp(sk)) {
		struct owner fresh = {};

		begin_anew(&fresh, TCP_DIRECTION_ACCEPTED, detailed);
		note_state(&fresh, TCP_ESTABLISHED);
		fresh.established_ns = fresh.birth_ns;
		note_at(at, &fresh, BPF_NOEXIST);
	}
	return true;
}

/* The handshake is over. */
static __always_inline void note_established(struct owner *owner)
{
	owner->established_ns = bpf_ktime_get_ns();
	/* Accepted before its handshake was over: Fast Open. */
	if (!owner->birth_ns)
		owner->birth_ns = owner->established_ns;
}

/* A process acts on an endpoint. A thread of the kernel ends what a process has closed: that is no act. */
ONCE_A_PROGRAM void note_act(struct sock *sk, int new_state)
{
	struct task_struct *task = current_task();
	struct owner current = {}, *known;
	struct where at;

	if (is_kernel_thread(task))
		return;
	at = where_is(sk);
	known = owner_at(at);
	if (known) {
		note_state(known, new_state);
		set_actor(&current, task, TCP_ORIGIN_CLOSE);
		if (is_let_go_by_exec(known, &current))
			return;
		known->pid = current.pid;
		known->uid = current.uid;
		known->origin = TCP_ORIGIN_CLOSE;
		*(__u64 *)known->comm = *(__u64 *)current.comm;
		*(__u64 *)(known->comm + 8) = *(__u64 *)(current.comm + 8);
	} else if (main_is_kprobe || speaks_tcp(sk)) {
		set_actor(&current, task, TCP_ORIGIN_CLOSE);
		if (!is_in_exec())
			note_at(at, &current, BPF_ANY);
	}
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
					   int new_state, const bool direct, bool can_number)
{
	struct owner *entry;

	/* A connection that begins at a listener: it has no addresses yet, and may never be one. */
	if (old_state == new_state || (new_state == TCP_SYN_RECV && old_state == TCP_LISTEN))
		return 0;
	if (new_state != TCP_CLOSE) {
		entry = owner_at(where_is(sk));
		if (entry && new_state == TCP_ESTABLISHED)
			note_established(entry);
		if (is_left_to_second_look(old_state, new_state)) {
			if (entry && !can_number)
				return 0;
			if (can_number)
				cookie_of(sk, true);
		}
		if (entry) {
			entry->state = new_state;
			*known = *entry;
		}
	}
	return report_detailed(ctx, sk, known, old_state, new_state, direct, can_number);
}

/*
 * `direct`: the pointer has a type. `can_number`: the program may have the kernel give the socket its number, as that of a
 * kprobe may not.
 */
static __always_inline int transition(void *ctx, struct sock *sk, int old_state, int new_state, const bool direct,
				      const bool detailed, bool can_number)
{
	struct owner known = {}, *entry;
	struct where at = {};
	bool is_known = false, has_begun = false, established;
	__u64 held_ns = 0;

	if (new_state == TCP_CLOSE) {
		/* A socket that was closed before changes nothing, and a listener is no connection. */
		if (old_state == TCP_CLOSE || (old_state == TCP_LISTEN && !detailed))
			return 0;
		at = where_is(sk);
		if (!is_somewhere(at))
			return 0;
		is_known = forget(1 + copy_owner(&known, at)) - 1;
		/* Fast Open, whose handshake has not come to its end: that is what age is counted from. */
		if (old_state == TCP_SYN_RECV && is_known && !known.birth_ns)
			known.birth_ns = detailed ? bpf_ktime_get_ns() : 1;
	} else if (new_state == TCP_SYN_SENT) {
		note_connect(sk, detailed);
		if (detailed)
			note_attempt(sk);
	} else if (new_state == TCP_ESTABLISHED) {
		if (old_state == TCP_SYN_RECV)
			has_begun = note_birth(sk, detailed);
	} else if ((new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) && is_locked_by_process(sk, direct)) {
		note_act(sk, new_state);
	}
	if (detailed && !follows_changes() && new_state != TCP_CLOSE) {
		/* Of closes it is told when the connection was established. */
		established = new_state == TCP_ESTABLISHED && !has_begun;
		entry = established || new_state == TCP_CLOSING ? owner_at(where_is(sk)) : 0;
		if (entry && established)
			note_established(entry);
		if (entry)
			note_state(entry, new_state);
		return 0;
	}
	if (detailed && new_state == TCP_CLOSE && is_told_as_unsent(sk, old_state))
		held_ns = 0;
	else if (detailed)
		held_ns = report_change(ctx, sk, &known, old_state, new_state, direct, can_number);
	else if (new_state == TCP_CLOSE && (old_state != TCP_SYN_RECV || is_end(sk, &known, old_state)))
		held_ns = report(ctx, sk, &known, forget((__u32)old_state), direct);
	if (is_known)
		end_at(at, held_ns);
	return 0;
}

#endif
