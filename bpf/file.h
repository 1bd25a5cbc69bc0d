/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Reads of a file: the socket behind it, and whether it is an io_uring. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_FILE_H
#define TCPEVENT_FILE_H

#include "cast.h"

/* The inode of a file that is a socket, or NULL. */
static __always_inline struct inode *socket_inode_of(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	return inode && (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFSOCK ? inode : 0;
}

/* The protocol's socket behind a file that is a socket. Of any other file it is no socket of ours, or not to be read. */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *socket;

	if (can_cast)
		return CAST(socket, file->private_data)->sk;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* Whether a file is an io_uring, by its name. */
static __always_inline bool is_ring(struct file *file)
{
	char name[8] = "";

	bpf_probe_read_kernel(name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	return *(__u64 *)name == *(const __u64 *)"[io_uring]";
}

#endif
