/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Which process takes a connection, as the results of system calls and of io_uring's requests tell, where the kernel refuses
 * the kprobe of accepts.h. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_ACCEPT_CALLS_H
#define TCPEVENT_ACCEPT_CALLS_H

#include "accepts.h"
#include "file.h"

/* accept() and accept4() alike, for kernels that refuse the kprobe. */
SEC("tracepoint/syscalls/sys_exit_accept4")
int accept_syscall(struct sys_exit_context *ctx)
{
	struct task_struct *task;
	struct owner *known;
	struct file *file;
	struct sock *sk;

	if (ctx->ret < 0)
		return 0;
	task = current_task();
	file = file_at(task, ctx->ret, true);
	if (!file)
		return 0;
	sk = sock_of(file);
	known = owner_of(sk);
	if (known)
		set_actor(known, task, TCP_ORIGIN_ACCEPT);
	else if (socket_inode_of(file) && sk)
		accepted_unknown(sk);
	return 0;
}

/* The current process takes a connection that nobody has claimed, where the file is one. */
static __noinline void claim(struct file *file)
{
	struct owner *known;
	struct sock *sk;

	if (!file || !socket_inode_of(file))
		return;
	sk = sock_of(file);
	if (!sk)
		return;
	known = owner_of(connection_of(sk));
	if (known && known->origin == TCP_ORIGIN_NONE)
		set_actor(known, current_task(), TCP_ORIGIN_ACCEPT);
}

/* include/uapi/linux/io_uring.h */
#define IORING_OP_ACCEPT 13

/*
 * accept through io_uring, likewise. A result that is the number of an open descriptor with an endpoint that nobody
 * has claimed is either just that accept or a coincidence; the descriptor is this process's in both cases. So it is with one
 * of the ring's slots. Of a request that names a slot, the result does not.
 */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(accept_io_uring, struct io_ring_ctx *ring, struct io_kiocb *request, struct io_uring_cqe *cqe)
{
	struct io_accept *accept = (struct io_accept *)request;
	__s32 result = cqe->res;

	if (result < 0)
		return 0;
	claim(file_at(current_task(), result, false));
	claim(file_in_ring(ring, result));
	if (bpf_core_field_exists(accept->file_slot) && BPF_CORE_READ(request, opcode) == IORING_OP_ACCEPT)
		claim(file_in_ring(ring, BPF_CORE_READ(accept, file_slot) - 1));
	return 0;
}

#endif
