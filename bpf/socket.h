/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Reads of a socket: its lock, its error, its addresses, its number and its place.
 *
 * The program that includes this file has said whether pointers can be given a type: can_cast and CAST.
 */
#ifndef TCPEVENT_SOCKET_H
#define TCPEVENT_SOCKET_H

#include "forget.h"

/*
 * Reads a field of a socket: directly where the verifier knows the pointer's type, else through a probe read. Not for
 * fields that are pointers, but after CAST: for each such instruction the verifier looks through the names of all the
 * kernel's types, four times (btf_nested_type_is_trusted), which took a third of the start.
 */
#define FIELD(direct, ptr, field) ((direct) ? (ptr)->field : BPF_CORE_READ(ptr, field))

static __always_inline bool is_locked_by_process(struct sock *sk, const bool direct)
{
	return FIELD(direct, sk, sk_lock.owned) != 0;
}

/* NULL where no process holds it. */
static __always_inline struct socket *socket_of(struct sock *sk)
{
	return can_cast ? CAST(sock, sk)->sk_socket : BPF_CORE_READ(sk, sk_socket);
}

/* Of a socket that is not NULL. */
static __always_inline socket_state state_of(struct socket *socket)
{
	return can_cast ? socket->state : BPF_CORE_READ(socket, state);
}

/*
 * The error that ends a connection, or 0. sk_err may be what an ICMP message has left there before (IP_RECVERR, and the
 * program has not asked): none of those is one that the kernel ends connections with (icmp_err_convert, tcp_reset,
 * tcp_write_err, tcp_abort). But a time limit ends one with the last such answer (tcp_write_err: sk_err_soft): in a timer,
 * where no process holds the lock, with something that is not acknowledged.
 */
static __always_inline int find_error_of_end(struct sock *sk, int old_state, const bool direct)
{
	int err = FIELD(direct, sk, sk_err);

	if (!err || err == ECONNRESET || err == EPIPE || err == ETIMEDOUT || err == ECONNABORTED)
		return err;
	/* What answers an attempt ends it at once. */
	if (old_state == TCP_SYN_SENT || old_state == TCP_SYN_RECV)
		return err;
	if (old_state == TCP_LAST_ACK || old_state == TCP_CLOSING || old_state == TCP_FIN_WAIT2) {
		struct tcp_sock *tp = can_cast ? CAST(tcp_sock, sk) : (struct tcp_sock *)sk;

		if (FIELD(can_cast, tp, snd_una) == FIELD(can_cast, tp, write_seq))
			return 0;
	}
	return err == FIELD(direct, sk, sk_err_soft) && !is_locked_by_process(sk, direct) ? err : 0;
}

/* Errors of sockets are numbers below 134. */
static __always_inline int error_of_end(struct sock *sk, int old_state, const bool direct)
{
	return forget((__u32)find_error_of_end(sk, old_state, direct) + 1) - 1;
}

/* 0 where no process holds the socket. (A read from nowhere gives 0.) */
static __always_inline __u64 inode_of(struct sock *sk)
{
	struct socket *socket = socket_of(sk);

	if (!socket)
		return 0;
	return can_cast ? socket->file->f_inode->i_ino : BPF_CORE_READ(socket, file, f_inode, i_ino);
}

/*
 * One end's address, 16 bytes in network byte order; an IPv4 address fills the first 4. By words, through volatile ones: the
 * compiler would go byte by byte, or by way of the stack.
 */
static __always_inline void read_address(void *to, struct sock *sk, __u16 family, const bool remote, const bool direct)
{
	struct in6_addr addr = {};
	volatile __be32 *words = to;

	if (family == AF_INET) {
		words[0] = remote ? FIELD(direct, sk, __sk_common.skc_daddr)
				  : FIELD(direct, sk, __sk_common.skc_rcv_saddr);
		words[1] = 0;
		words[2] = 0;
		words[3] = 0;
		return;
	}
	if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		if (direct)
			addr = remote ? sk->__sk_common.skc_v6_daddr : sk->__sk_common.skc_v6_rcv_saddr;
		else if (remote)
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_daddr);
		else
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_rcv_saddr);
	}
	for (int i = 0; i < 4; i++)
		words[i] = addr.in6_u.u6_addr32[i];
}

static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	/* sk_protocol was a bit field before Linux 5.6 (commit bf9765145b85). */
	return (family == AF_INET || family == AF_INET6) &&
	       BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) == IPPROTO_TCP;
}

/* inet_sock_set_state fires for other protocols too, MPTCP's own sockets among them. tcp_set_state() is TCP's alone. */
static __always_inline bool speaks_tcp(struct sock *sk)
{
	return can_cast ? sk->sk_protocol == IPPROTO_TCP : is_tcp(sk);
}

/* As a tcp_sock, or NULL where it is none. */
static __always_inline struct tcp_sock *tcp_of(struct sock *sk, const bool direct)
{
	__u16 family = FIELD(direct, sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (can_cast)
		return FIELD(direct, sk, sk_protocol) == IPPROTO_TCP ? CAST(tcp_sock, sk) : 0;
	if (direct)
		return bpf_skc_to_tcp_sock(sk);
	return is_tcp(sk) ? (struct tcp_sock *)sk : 0;
}

/* Not skc_num: before the tracepoint fires, inet_put_port() has cleared that one. */
static __always_inline __u16 local_port_of(struct tcp_sock *tp, const bool direct)
{
	return __builtin_bswap16(FIELD(direct, tp, inet_conn.icsk_inet.inet_sport));
}

static __always_inline __u16 remote_port_of(struct sock *sk, const bool direct)
{
	return __builtin_bswap16(FIELD(direct, sk, __sk_common.skc_dport));
}

static __always_inline bool is_of_mptcp(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp);
}

/*
 * The TCP connection that a process holds by a socket of MPTCP: the first one, which is there from the handshake on. Of any
 * other socket, that itself.
 */
static __always_inline struct sock *connection_of(struct sock *sk)
{
	struct mptcp_sock *msk = (struct mptcp_sock *)sk;

	/* sk_protocol is no bit field where there is MPTCP. */
	if (bpf_core_field_exists(msk->first) && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP)
		sk = BPF_CORE_READ(msk, first);
	/* Of one type, for the verifier. */
	return can_cast ? CAST(sock, sk) : sk;
}

/*
 * A connection's number. The helper gives it one where it has none yet; before Linux 5.12 (commit c5dbb89fc2ac), and
 * for kprobes, there is no such helper.
 */
static __always_inline __u64 cookie_of(struct sock *sk, bool can_number)
{
	if (can_number && bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_check_mtu))
		return bpf_get_socket_cookie(sk);
	return can_cast ? CAST(sock, sk)->__sk_common.skc_cookie.counter
			: BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

/*
 * What a kernel does not have is asked for one by one, without "else": where there is something, verifiers before Linux 5.0
 * (commit 4f7b3e82589e) look at the way without it too, and refuse it for a read of what is not there.
 */
static __always_inline __u64 cgroup_of(struct sock *sk)
{
	struct sock_cgroup_data___with_flags *flagged = (void *)&sk->sk_cgrp_data;
	struct kernfs_node___with_union *older;
	struct kernfs_node *node;
	struct cgroup *cgroup;
	__u64 value = 0, id = 0;

	/* Since Linux 6.2, where it is one pointer to one kind of structure. */
	if (can_cast)
		return CAST(sock, sk)->sk_cgrp_data.cgroup->kn->id;
	if (bpf_core_field_exists(flagged->val))
		value = BPF_CORE_READ(flagged, val);
	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		value = (__u64)BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	/* The lowest bit: no cgroup but class and priority of version 1. */
	if (!value || value & 1)
		return 0;
	cgroup = (struct cgroup *)(value & ~3ULL);
	node = BPF_CORE_READ(cgroup, kn);
	older = (void *)node;
	if (bpf_core_field_exists(older->id.id))
		id = BPF_CORE_READ(older, id.id);
	if (bpf_core_field_exists(node->id))
		id = BPF_CORE_READ(node, id);
	return id;
}

static __always_inline __u32 netns_of(struct sock *sk)
{
	return can_cast ? CAST(sock, sk)->__sk_common.skc_net.net->ns.inum
			: BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

#endif
