/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Which process holds which socket, by an iterator over all open files. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_HOLDERS_H
#define TCPEVENT_HOLDERS_H

#include "accepts.h"
#include "file.h"
#include "identity.h"

/* Set by user space once the owners of older endpoints are known: from then on `adopt` lists only. */
__u32 adopted;

/*
 * Lists who holds which socket open, and the rings that may hold some. In its first run, endpoints that nobody was seen to act
 * on, such as those that are older than the probe, get their holder for an owner, until somebody does.
 */
SEC("iter/task_file")
int adopt(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner owner = {}, *known;
	struct tcp_holder holder = {};
	struct inode *inode;
	struct where at;
	struct sock *sk;
	int state;

	if (!task || !file)
		return 0;
	inode = socket_inode_of(file);
	if (inode)
		holder.inode = BPF_CORE_READ(inode, i_ino);
	else if (is_ring(file))
		holder.fd = ctx->fd;
	else
		return 0;
	holder.pid = pid_namespace ? id_in_namespace(task) : (__u32)task->tgid;
	if (holder.pid)
		bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	if (!inode || *(volatile __u32 *)&adopted)
		return 0;
	sk = sock_of(file);
	if (sk)
		sk = connection_of(sk);
	if (!sk || !is_tcp(sk))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_LISTEN || state == TCP_CLOSE)
		return 0;
	owner.pid = holder.pid;
	owner.uid = BPF_CORE_READ(task, cred, uid.val);
	owner.origin = TCP_ORIGIN_INODE;
	BPF_CORE_READ_STR_INTO(&owner.comm, task, group_leader, comm);
	at = where_is(sk);
	known = owner_at(at);
	if (!known) {
		note_at(at, &owner, BPF_ANY);
		forget_if_closed(sk);
	} else if (known->origin == TCP_ORIGIN_NONE) {
		known->pid = owner.pid;
		known->uid = owner.uid;
		__builtin_memcpy(known->comm, owner.comm, sizeof(owner.comm));
		known->origin = TCP_ORIGIN_INODE;
	}
	return 0;
}

#endif
