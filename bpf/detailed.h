/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What the detailed programs do beyond the plain ones: every change of state, and more of it. Part of transition.h. None
 * of it is loaded, nor its types looked up, where the plain programs are.
 */
#ifndef TCPEVENT_DETAILED_H
#define TCPEVENT_DETAILED_H

/*
 * A connection's number. The helper gives it one where it has none yet; before Linux 5.12 (commit c5dbb89fc2ac), and
 * for kprobes, there is no such helper.
 */
static __always_inline __u64 cookie_of(struct sock *sk, const bool direct)
{
	if (direct && bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_check_mtu))
		return bpf_get_socket_cookie(sk);
	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
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
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/*
 * Whether a change to TCP_CLOSE is the end of a connection, or of an attempt at one. A handshake that was aborted before it was
 * complete is none yet, unless a process has it in its hands: it has connected (two SYNs crossed), or has accepted it (Fast
 * Open).
 */
static __always_inline bool is_end(struct sock *sk, const struct owner *known, int old_state)
{
	if (old_state == TCP_SYN_RECV)
		return known->origin != TCP_ORIGIN_NONE || socket_of(sk);
	return old_state != TCP_LISTEN;
}

static __always_inline bool has_failed(const struct owner *known, int old_state)
{
	/* From SYN_RECV: a simultaneous open. */
	return old_state == TCP_SYN_SENT ||
	       (old_state == TCP_SYN_RECV && known->direction == TCP_DIRECTION_CONNECTED && !known->established_ns);
}

/* As report(), of any change. */
static __always_inline __u64 report_detailed(void *ctx, struct sock *sk, const struct owner *known, int old_state,
					     int new_state, const bool direct)
{
	bool ends = new_state == TCP_CLOSE && is_end(sk, known, old_state), is_held;
	struct tcp_detailed_record *record;
	struct socket *socket;
	struct tcp_sock *tp;
	__u64 held_ns = 0;

	if (!is_wanted(ends, ends && has_failed(known, old_state)))
		return 0;
	tp = tcp_of(sk, direct);
	if (!tp || !fits_socket(sk, tp, direct))
		return 0;
	record = new_record(sizeof(*record));
	if (!record)
		return 0;
	fill_owner(&record->plain, sk, known, old_state, new_state, direct);
	record->plain.inode = inode_of(sk);
	is_held = ends && is_of_holder(&record->plain);
	/* User space looks again whether that one's owner fits. */
	if (!is_held && !fits_owner(&record->plain)) {
		drop_record(record);
		return 0;
	}
	fill_plain(&record->plain, sk, tp, old_state, direct);
	if (is_held) {
		record->plain.origin |= TCP_ORIGIN_HELD;
		held_ns = record->plain.time_ns;
	}
	record->cgroup = cgroup_of(sk);
	record->established_ns = known->established_ns;
	record->cookie = cookie_of(sk, direct);
	record->netns = netns_of(sk);
	record->err = error_of_end(sk, old_state, direct);
	record->new_state = new_state;
	record->direction = known->direction;
	record->flags = 0;
	__builtin_memset(record->reserved, 0, sizeof(record->reserved));
	if (ends) {
		if (FIELD(direct, sk, __sk_common.skc_flags) & 1 << SOCK_DONE)
			record->flags |= TCP_FLAG_FIN_RECEIVED;
		if (FIELD(direct, sk, sk_shutdown) == SHUTDOWN_MASK)
			record->flags |= TCP_FLAG_BEING_CLOSED;
		socket = BPF_CORE_READ(sk, sk_socket);
		if (socket && BPF_CORE_READ(socket, state) == SS_UNCONNECTED) {
			record->flags |= TCP_FLAG_WITHIN_CONNECT;
		} else if (!record->err && has_failed(known, old_state)) {
			record->err = FIELD(direct, sk, sk_err_soft);
			record->flags |= TCP_FLAG_ERROR_SOFT;
		}
		/* Since Linux 4.19 (commit ba113c3aa79a, fb31c9b9f6c8). */
		record->bytes_sent = bpf_core_field_exists(tp->bytes_sent) ? FIELD(direct, tp, bytes_sent) : 0;
		record->bytes_retrans = bpf_core_field_exists(tp->bytes_retrans) ? FIELD(direct, tp, bytes_retrans) : 0;
		record->segs_out = FIELD(direct, tp, segs_out);
		record->segs_in = FIELD(direct, tp, segs_in);
		record->total_retrans = FIELD(direct, tp, total_retrans);
		record->srtt_us = FIELD(direct, tp, srtt_us);
		record->min_rtt_us = FIELD(direct, tp, rtt_min.s[0].v);
		record->snd_una = FIELD(direct, tp, snd_una);
		record->snd_nxt = FIELD(direct, tp, snd_nxt);
		record->write_seq = FIELD(direct, tp, write_seq);
	} else {
		record->plain.bytes_received = 0;
		record->plain.bytes_acked = 0;
		record->plain.data_segs_out = 0;
		record->plain.data_segs_in = 0;
		__builtin_memset(&record->bytes_sent, 0,
				 sizeof(*record) - __builtin_offsetof(struct tcp_detailed_record, bytes_sent));
	}
	put_record(ctx, record, sizeof(*record));
	return held_ns;
}

/*
 * With a kprobe, the first change of a connection's state is left to the second look, whose program can have the kernel
 * give the socket its number.
 */
static __always_inline bool is_left_to_second_look(int old_state, int new_state)
{
	return main_is_kprobe && second_look &&
	       (new_state == TCP_SYN_SENT || (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV));
}

/* Any change of state. `known` is the owner of an endpoint that goes to TCP_CLOSE; of any other it is filled here. */
static __always_inline __u64 report_change(void *ctx, struct sock *sk, struct owner *known, int old_state,
					   int new_state, const bool direct)
{
	struct owner *entry;

	/* A connection that begins at a listener: it has no addresses yet, and may never be one. */
	if (old_state == new_state || (new_state == TCP_SYN_RECV && old_state == TCP_LISTEN))
		return 0;
	if (new_state != TCP_CLOSE) {
		entry = owner_of(sk);
		if (entry && new_state == TCP_ESTABLISHED) {
			entry->established_ns = bpf_ktime_get_ns();
			/* Accepted before its handshake was over: Fast Open. */
			if (!entry->birth_ns)
				entry->birth_ns = entry->established_ns;
		}
		if (is_left_to_second_look(old_state, new_state)) {
			if (entry && !direct)
				return 0;
			if (direct)
				cookie_of(sk, direct);
		}
		if (entry) {
			entry->state = new_state;
			*known = *entry;
		}
	}
	return report_detailed(ctx, sk, known, old_state, new_state, direct);
}

#endif
