/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Which process takes a connection. Part of tcp_event.bpf.c and tcp_event_perf.bpf.c.
 */
#ifndef TCPEVENT_ACCEPTS_H
#define TCPEVENT_ACCEPTS_H

#include "owner.h"
#include "socket.h"
#include "tcp_event.h"

/* It may have closed meanwhile, before the entry was there to be deleted. */
static __always_inline void forget_if_closed(struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		forget_at(where_is(sk));
}

/*
 * The current process has taken a connection that is not known from a listener: it is older than the probe, or was missed;
 * or it is MPTCP's.
 */
ONCE_A_PROGRAM int accepted_unknown(struct sock *taken)
{
	struct owner owner = {.direction = TCP_DIRECTION_ACCEPTED}, *known;
	struct sock *sk = connection_of(taken);
	struct where at;

	/* Reset while it waited to be accepted: its close is reported, nothing will take the entry away again. */
	if (!sk || !is_tcp(sk) || BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		return 0;
	at = where_is(sk);
	known = owner_at(at);
	if (known) {
		set_actor(known, current_task(), TCP_ORIGIN_ACCEPT);
		return 0;
	}
	set_actor(&owner, current_task(), TCP_ORIGIN_ACCEPT);
	note_at(at, &owner, BPF_ANY);
	forget_if_closed(sk);
	return 0;
}

static __always_inline int accepted(struct sock *sk)
{
	struct owner *known;

	if (!sk)
		return 0;
	known = owner_at(where_is(sk));
	/* What is known need not be looked at: it is a TCP socket, and not closed. */
	if (!known)
		return accepted_unknown(sk);
	set_actor(known, current_task(), TCP_ORIGIN_ACCEPT);
	return 0;
}

/*
 * inet_accept() calls it for the new socket, in the context of the process. Not a kretprobe on inet_csk_accept(): one
 * is taken for as long as a process waits there, and the kernel has few of them (kretprobe.maxactive) for all the
 * servers of a host. Nor the exits of the system calls: with a program on any of their tracepoints, every system call of the
 * host takes the slow way through the kernel.
 */
SEC("kprobe/security_sock_graft")
int BPF_KPROBE(accept_graft, struct sock *sk)
{
	return accepted(sk);
}

#endif
