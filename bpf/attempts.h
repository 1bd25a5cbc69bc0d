/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Attempts to connect, for who wants those that fail before a SYN: a socket that has gone to SYN_SENT has its attempt told in another
 * way. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_ATTEMPTS_H
#define TCPEVENT_ATTEMPTS_H

#include "filter.h"
#include "process.h"
#include "socket.h"

enum attempt {
	ATTEMPT_NONE, /* the socket has none under way; what it has had, its program knows the result of */
	ATTEMPT_TOLD, /* it has got as far as SYN_SENT, and no call of connect has given the result yet */
};

/*
 * By the inode of the socket. Of one that was evicted it is not known whether its attempt was told; then nothing is told of the next
 * one. Made only where it is wanted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u64);
	__type(value, __u8);
} attempts SEC(".maps");

/* Which ways to connect are heard: set by user space once they are. */
__u32 heard_connects;

static __always_inline bool follows_attempts(void)
{
	return wanted & TCP_WANTED_UNSENT;
}

/* NULL where none is known. */
static __always_inline __u8 *attempt_of(__u64 inode)
{
	return inode ? bpf_map_lookup_elem(&attempts, &inode) : 0;
}

static __always_inline void set_attempt(__u64 inode, __u8 attempt)
{
	if (inode)
		bpf_map_update_elem(&attempts, &inode, &attempt, BPF_ANY);
}

static __noinline int begin_attempt(struct sock *sk)
{
	/* MPTCP's own socket has the inode of its first connection, which goes to SYN_SENT by itself. */
	if (speaks_tcp(sk))
		set_attempt(inode_of(sk), ATTEMPT_TOLD);
	return 0;
}

/* A socket goes to SYN_SENT. */
static __always_inline void note_attempt(struct sock *sk)
{
	if (follows_attempts())
		begin_attempt(sk);
}

/*
 * Whether an attempt ends in SYN_SENT before anything was sent, as for want of a local port: then connect says why, and the socket does
 * not (tcp_v4_connect()).
 */
static __noinline int has_sent_nothing(struct sock *sk)
{
	__u32 heard = *(volatile __u32 *)&heard_connects;
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct socket *socket = socket_of(sk);
	__u8 *attempt;

	if (!heard || !socket || !speaks_tcp(sk))
		return false;
	attempt = attempt_of(inode_of(sk));
	/* By shutdown: another call of connect is another attempt. */
	if (attempt && state_of(socket) == SS_DISCONNECTING)
		*attempt = ATTEMPT_NONE;
	if (state_of(socket) != SS_UNCONNECTED || BPF_CORE_READ(sk, sk_err))
		return false;
	/* Who connects in another way is not heard of. */
	if (is_kernel_thread(current_task()) || (heard != TCP_HEARD_ALL && !is_in_connect()))
		return false;
	/* Who wants all changes is told of this one. */
	if (wanted & TCP_WANTED_STATES)
		return false;
	/* As where connect returns. */
	if (!attempt)
		return !BPF_CORE_READ(tp, write_seq);
	*attempt = ATTEMPT_NONE;
	return true;
}

static __always_inline bool is_told_as_unsent(struct sock *sk, int old_state)
{
	return follows_attempts() && old_state == TCP_SYN_SENT && has_sent_nothing(sk);
}

#endif
