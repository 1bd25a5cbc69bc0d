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
	ATTEMPT_NONE, /* the socket has none under way, but has had one */
	ATTEMPT_TOLD, /* it has got as far as SYN_SENT, and the program has not been given its result yet */
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
static __always_inline __u8 *attempt_of(struct sock *sk)
{
	__u64 inode = inode_of(sk);

	return inode ? bpf_map_lookup_elem(&attempts, &inode) : 0;
}

static __noinline int begin_attempt(struct sock *sk)
{
	__u8 told = ATTEMPT_TOLD;
	__u64 inode = inode_of(sk);

	if (inode)
		bpf_map_update_elem(&attempts, &inode, &told, BPF_ANY);
	return 0;
}

static __noinline int forget_attempt(struct sock *sk)
{
	__u8 *attempt = attempt_of(sk);

	if (attempt)
		*attempt = ATTEMPT_NONE;
	return 0;
}

/* A socket goes to SYN_SENT. */
static __always_inline void note_attempt(struct sock *sk)
{
	if (follows_attempts())
		begin_attempt(sk);
}

/* It is established, or dissolved. */
static __always_inline void end_attempt(struct sock *sk)
{
	if (follows_attempts())
		forget_attempt(sk);
}

/* Whether the current process is in the system call connect itself. */
static __always_inline bool is_in_connect(void)
{
	struct pt_regs *registers = user_registers();

	if (!registers)
		return false;
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(registers, orig_ax) == 42;
#else
	return BPF_CORE_READ(registers, syscallno) == 203;
#endif
}

/*
 * Whether an attempt ends in SYN_SENT before anything was sent, as for want of a local port: then connect says why, and the socket does
 * not (tcp_v4_connect()).
 */
static __noinline int has_sent_nothing(struct sock *sk)
{
	__u32 heard = *(volatile __u32 *)&heard_connects;
	struct socket *socket;
	__u8 *attempt;

	if (!heard)
		return false;
	socket = socket_of(sk);
	if (!socket || state_of(socket) != SS_UNCONNECTED || BPF_CORE_READ(sk, sk_err))
		return false;
	if (heard != TCP_HEARD_ALL && !is_in_connect())
		return false;
	attempt = attempt_of(sk);
	if (!attempt)
		return false;
	*attempt = ATTEMPT_NONE;
	return true;
}

static __always_inline bool is_told_as_unsent(struct sock *sk, int old_state)
{
	/* Who wants all changes is told of this one. */
	return follows_attempts() && !(wanted & TCP_WANTED_STATES) && old_state == TCP_SYN_SENT && has_sent_nothing(sk);
}

#endif
