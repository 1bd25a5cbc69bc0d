/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Who owns an endpoint, what else is kept of it while it lives, and whether a process acts on it.
 *
 * The program that includes this file has said who the current process is: read_current().
 */
#ifndef TCPEVENT_OWNER_H
#define TCPEVENT_OWNER_H

#include "process.h"
#include "socket.h"

struct owner {
	__u64 birth_ns; /* once it has ended: when its close was reported */
	__u64 established_ns; /* this, state and direction: for the detailed programs */
	__u32 pid;
	__u32 uid;
	char comm[TASK_COMM_LEN];
	__u8 origin;
	__u8 state; /* the last one that was reported */
	__u8 direction;
	__u8 has_ended; /* nothing is left to report but who lets go of the socket */
	__u8 pad[4];
};

/*
 * Whether a process other than the known owner, or the owner under another name, lets go of the socket because it executes a
 * program. That is no act: it may be a child that has just been forked, and has a copy of all that its parent has open.
 */
static __always_inline bool is_let_go_by_exec(const struct owner *known, const struct owner *current)
{
	const __u64 *name = (const __u64 *)known->comm, *other = (const __u64 *)current->comm;

	if (known->origin && known->pid == current->pid && name[0] == other[0] && name[1] == other[1])
		return false;
	return is_in_exec();
}

static __always_inline void set_actor(struct owner *owner, struct task_struct *task, __u8 origin)
{
	read_current(task, &owner->pid, &owner->uid, owner->comm);
	owner->origin = origin;
}

/*
 * True where the current process is in a system call on this very socket: lock_sock() has set sk_lock.owned. Softirq
 * leaves an owned socket alone (the packet goes to its backlog), so the current task is no bystander then. A thread of the
 * kernel is: MPTCP has one end the TCP connections of what a process has closed (mptcp_worker).
 */
static __always_inline bool in_owner_context(struct sock *sk, const bool direct)
{
	return is_locked_by_process(sk, direct) && !is_kernel_thread(current_task());
}

#endif
