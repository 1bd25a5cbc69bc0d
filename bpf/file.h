/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Reads of a file: the socket behind it, and which files a process or an io_uring has. Part of tcp_event.bpf.c.
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

/*
 * The file that a process has under a descriptor, or NULL. `in_use`: surely it is one. A pointer among others has
 * no type of its own: it is read as that of a struct socket.
 */
static __always_inline struct file *file_at(struct task_struct *task, __s32 fd, const bool in_use)
{
	struct fdtable *fdt = can_cast ? task->files->fdt : BPF_CORE_READ(task, files, fdt);
	struct file **slots = can_cast ? fdt->fd : BPF_CORE_READ(fdt, fd);
	struct file *file = 0;

	if (fd < 0 || (!in_use && (__u32)fd >= (can_cast ? fdt->max_fds : BPF_CORE_READ(fdt, max_fds))))
		return 0;
	if (can_cast)
		return CAST(socket, (void *)(slots + fd) - bpf_core_field_offset(struct socket, file))->file;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/* The file that a ring has in one of its slots ("direct descriptors"), or NULL. */
static __always_inline struct file *file_in_ring(struct io_ring_ctx *ring, __u32 slot)
{
	struct io_rsrc_node **nodes, *node = 0;
	struct file *file;

	if (!bpf_core_field_exists(ring->file_table.data.nodes) || slot >= BPF_CORE_READ(ring, file_table.data.nr))
		return 0;
	nodes = BPF_CORE_READ(ring, file_table.data.nodes);
	bpf_probe_read_kernel(&node, sizeof(node), nodes + slot);
	if (!node)
		return 0;
	/* The lowest bits say what can be done with it (FFS_MASK). */
	file = (struct file *)(BPF_CORE_READ(node, file_ptr) & ~3UL);
	return can_cast ? CAST(file, file) : file;
}

/* Whether a file is an io_uring, by its name. */
static __always_inline bool is_ring(struct file *file)
{
	char name[8] = "";

	bpf_probe_read_kernel(name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	return *(__u64 *)name == *(const __u64 *)"[io_uring]";
}

#endif
