/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * The kernel types that the probe reads, each with just the fields used. libbpf relocates every access to the
 * running kernel's own layout (CO-RE), so neither order nor offset here means anything.
 */
#ifndef TCPEVENT_CORE_TYPES_H
#define TCPEVENT_CORE_TYPES_H

#include "base_types.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si, dx, cx, r8, r9, ax, orig_ax, ip, cs, sp, bp;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
};
struct pt_regs {
	struct user_pt_regs user_regs;
	__u64 orig_x0;
	__s32 syscallno;
};
#else
#error "bpf/core_types.h knows pt_regs of x86-64 and arm64 only: add this architecture's"
#endif

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	possible_net_t skc_net;
	atomic64_t skc_cookie;
};

typedef struct {
	int owned;
} socket_lock_t;

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file;

struct kernfs_node {
	__u64 id;
};

/* Before Linux 5.5 (commit 67c0496e87d1). */
union kernfs_node_id {
	__u64 id;
};

struct kernfs_node___with_union {
	union kernfs_node_id id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Before Linux 5.15 (commit 8520e224f547): a pointer with flags in its lowest bits. */
struct sock_cgroup_data___with_flags {
	__u64 val;
};

struct socket {
	socket_state state;
	struct file *file;
	struct sock *sk;
};

typedef struct {
	unsigned int val;
} kuid_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct socket *sk_socket;
	int sk_err;
	int sk_err_soft;
	__u16 sk_protocol;
	__u8 sk_shutdown;
	unsigned long sk_lingertime;
	kuid_t sk_uid;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	__be16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	__u32 icsk_user_timeout;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u8 is_mptcp : 1; /* where the kernel has MPTCP */
	__u8 repair : 1;
	__u32 snd_wnd;
	__u64 bytes_received;
	__u64 bytes_acked;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 segs_in;
	__u32 segs_out;
	__u32 data_segs_in;
	__u32 data_segs_out;
	__u32 total_retrans;
	__u32 srtt_us;
	struct minmax rtt_min;
	__u32 copied_seq;
	__u32 rcv_nxt;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
};

/* net/mptcp/protocol.h, where the kernel has MPTCP */
struct mptcp_sock {
	struct sock *first;
};

/* include/uapi/linux/bpf.h, of which some values tell what the kernel can do */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
	BPF_FUNC_check_mtu = 163,
	BPF_FUNC_task_pt_regs = 175,
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
};

struct cred {
	kuid_t uid;
};

struct pid_namespace {
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	unsigned int flags;
	struct files_struct *files;
	void *stack;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	int tgid;
	const struct cred *cred;
	char comm[TASK_COMM_LEN];
};

struct pid_link {
	struct pid *pid;
};

/* Before Linux 4.19. */
struct task_struct___with_links {
	struct pid_link pids[1];
};

#pragma clang attribute pop

/*
 * What the kernel hands to programs as context, and to user space as data, has a fixed layout. (It is also faster to
 * load: libbpf searches all of the kernel's types for each one that needs relocation.)
 */

struct seq_file;

/* include/linux/bpf.h */
struct bpf_iter_meta {
	struct seq_file *seq;
};

/* kernel/bpf/task_iter.c */
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd __attribute__((aligned(8)));
	struct file *file;
};

#endif
