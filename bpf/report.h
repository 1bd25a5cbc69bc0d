/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * How records are built and handed over: the plain one of a close, the detailed one of any change of state. What only the
 * detailed programs do is not loaded, nor its types looked up, where the plain ones are.
 *
 * The program that includes this file has said whether it hears who lets go of a socket (the constant hears_let_go), where
 * records go (new_record(), put_record(), drop_record()), and which are wanted (follows_changes(), is_wanted(),
 * fits_socket(), fits_owner()).
 */
#ifndef TCPEVENT_REPORT_H
#define TCPEVENT_REPORT_H

#include "owner.h"
#include "socket.h"
#include "tcp_event.h"

/* Of one that nobody was seen to act on, all but the user is 0. */
static __always_inline void fill_known(struct tcp_record *record, struct sock *sk, const struct owner *known,
				       const bool direct)
{
	record->birth_ns = known->birth_ns;
	record->pid = known->pid;
	record->uid = known->origin ? known->uid : FIELD(direct, sk, sk_uid.val);
	record->origin = known->origin;
	__builtin_memcpy(record->comm, known->comm, sizeof(record->comm));
}

static __always_inline void fill_owner(struct tcp_record *record, struct sock *sk, const struct owner *known,
				       int old_state, int new_state, const bool direct)
{
	bool owned = in_owner_context(sk, direct);
	int err = error_of_end(sk, old_state, direct);
	struct owner current;
	bool current_acts;

	/*
	 * The close happens in the context of the process that causes it where the socket is locked by it and bears
	 * no error (close with unread data, with SO_LINGER 0, a disconnect), or where the connection was never
	 * accepted and its listener is being closed (inet_csk_listen_stop: no struct socket, no error yet). A reader that
	 * processes its backlog is a process of the endpoint too; one that aborts it (ss -K) is not.
	 */
	if (owned)
		current_acts = !err || (!known->origin && err != ECONNABORTED);
	else
		current_acts = !err && new_state == TCP_CLOSE &&
			       (old_state == TCP_ESTABLISHED || old_state == TCP_CLOSE_WAIT) && !socket_of(sk);
	/* Of any other change than the last one the owner is known by what it did before, and just now. */
	if (current_acts && (new_state == TCP_CLOSE || !known->origin)) {
		set_actor(&current, current_task(), new_state == TCP_CLOSE ? TCP_ORIGIN_CLOSE : TCP_ORIGIN_INODE);
		if (!is_let_go_by_exec(known, &current)) {
			record->birth_ns = known->birth_ns;
			record->pid = current.pid;
			record->uid = current.uid;
			record->origin = current.origin;
			__builtin_memcpy(record->comm, current.comm, sizeof(record->comm));
			return;
		}
	}
	fill_known(record, sk, known, direct);
}

/* All but the owner; counters where a connection ends. */
static __always_inline void fill_plain(struct tcp_record *record, struct sock *sk, struct tcp_sock *tp, int old_state,
				       bool ends, const bool direct)
{
	record->time_ns = bpf_ktime_get_ns();
	record->bytes_received = ends ? FIELD(direct, tp, bytes_received) : 0;
	record->bytes_acked = ends ? FIELD(direct, tp, bytes_acked) : 0;
	record->data_segs_out = ends ? FIELD(direct, tp, data_segs_out) : 0;
	record->data_segs_in = ends ? FIELD(direct, tp, data_segs_in) : 0;
	record->family = FIELD(direct, sk, __sk_common.skc_family);
	record->local_port = local_port_of(tp, direct);
	record->remote_port = remote_port_of(sk, direct);
	record->old_state = old_state;
	read_address(record->local_addr, sk, record->family, false, direct);
	read_address(record->remote_addr, sk, record->family, true, direct);
}

/*
 * Whether a connection has ended that no process was seen to do anything with, but to take it from a listener. Who has taken it may
 * have passed it on since, as a server does that forks, and be gone.
 */
static __always_inline bool is_of_holder(const struct tcp_record *record)
{
	return hears_let_go && record->inode && record->origin != TCP_ORIGIN_CONNECT &&
	       record->origin != TCP_ORIGIN_CLOSE;
}

/* Reports a close. If it is of one that is held, gives the time of its record; else 0. */
static __always_inline __u64 report(void *ctx, struct sock *sk, const struct owner *known, int old_state,
				    const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);
	struct tcp_record *record;
	__u64 held_ns = 0;

	if (!tp)
		return 0;
	record = new_record(sizeof(*record));
	if (!record)
		return 0;
	fill_plain(record, sk, tp, old_state, true, direct);
	fill_owner(record, sk, known, old_state, TCP_CLOSE, direct);
	record->inode = 0;
	if (record->origin != TCP_ORIGIN_CONNECT && record->origin != TCP_ORIGIN_CLOSE)
		record->inode = inode_of(sk);
	if (is_of_holder(record)) {
		record->origin |= TCP_ORIGIN_HELD;
		held_ns = record->time_ns;
	}
	put_record(ctx, record, sizeof(*record));
	return held_ns;
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

/* Where a socket is, and how it has come to be. */
static __always_inline void fill_detail(struct tcp_detailed_record *record, struct sock *sk, const struct owner *known,
					int new_state, bool can_number)
{
	record->cgroup = cgroup_of(sk);
	record->established_ns = known->established_ns;
	record->cookie = cookie_of(sk, can_number);
	record->netns = netns_of(sk);
	record->new_state = new_state;
	record->direction = known->direction;
}

/* The counters that the plain record has not. */
static __always_inline void fill_counters(struct tcp_detailed_record *record, struct tcp_sock *tp, const bool direct)
{
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
}

/* Who ends a connection without an error, as bits of tcp_ending. */
static __always_inline __u8 ending_by(struct sock *sk, struct tcp_sock *tp, const struct owner *known,
				      const bool direct)
{
	bool is_locked = is_locked_by_process(sk, direct), is_held = socket_of(sk);

	/* Else the kernel does it: by a timer, or by what the peer has sent. */
	if (is_locked ? !is_held : is_held || known->origin)
		return 0;
	if (is_of_mptcp(sk))
		return 0;
	if (!is_locked)
		return TCP_ENDING_NEVER_HELD;
	/* A timer that has come while the process held the lock ends it with what an ICMP message has said. */
	if (FIELD(direct, sk, sk_err))
		return 0;
	return TCP_ENDING_BY_PROCESS | (BPF_CORE_READ_BITFIELD_PROBED(tp, repair) ? TCP_ENDING_BY_REPAIR : 0) |
	       (is_in_connect() ? TCP_ENDING_BY_CONNECT : 0);
}

/* What tells how a connection has ended, but for the counters: as much as src/ingest/ending.rs looks at. */
static __always_inline void fill_ending(struct tcp_detailed_record *record, struct sock *sk, struct tcp_sock *tp,
					const struct owner *known, const bool direct)
{
	record->flags |= TCP_FLAG_ENDING_TOLD;
	if (record->err) {
		record->user_timeout = FIELD(direct, tp, inet_conn.icsk_user_timeout);
		record->ending = FIELD(direct, tp, snd_wnd) ? 0 : TCP_ENDING_WINDOW_CLOSED;
		return;
	}
	record->ending = ending_by(sk, tp, known, direct);
	if (record->ending & TCP_ENDING_BY_PROCESS) {
		record->lingertime = FIELD(direct, sk, sk_lingertime);
		record->sock_flags = FIELD(direct, sk, __sk_common.skc_flags);
		record->copied_seq = FIELD(direct, tp, copied_seq);
		record->rcv_nxt = FIELD(direct, tp, rcv_nxt);
	}
}

/* As report(), of any change. */
static __always_inline __u64 report_detailed(void *ctx, struct sock *sk, const struct owner *known, int old_state,
					     int new_state, const bool direct, bool can_number)
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
	fill_plain(&record->plain, sk, tp, old_state, ends, direct);
	if (is_held) {
		record->plain.origin |= TCP_ORIGIN_HELD;
		held_ns = record->plain.time_ns;
	}
	fill_detail(record, sk, known, new_state, can_number);
	record->err = error_of_end(sk, old_state, direct);
	record->flags = 0;
	if (ends) {
		if (FIELD(direct, sk, __sk_common.skc_flags) & 1 << SOCK_DONE)
			record->flags |= TCP_FLAG_FIN_RECEIVED;
		if (FIELD(direct, sk, sk_shutdown) == SHUTDOWN_MASK)
			record->flags |= TCP_FLAG_BEING_CLOSED;
		socket = socket_of(sk);
		if (socket && state_of(socket) == SS_UNCONNECTED) {
			record->flags |= TCP_FLAG_WITHIN_CONNECT;
		} else if (!record->err && has_failed(known, old_state)) {
			record->err = FIELD(direct, sk, sk_err_soft);
			record->flags |= TCP_FLAG_ERROR_SOFT;
		}
		fill_counters(record, tp, direct);
		fill_ending(record, sk, tp, known, direct);
	} else {
		__builtin_memset(&record->bytes_sent, 0,
				 __builtin_offsetof(struct tcp_detailed_record, sock_flags) -
					 __builtin_offsetof(struct tcp_detailed_record, bytes_sent));
	}
	put_record(ctx, record, sizeof(*record));
	return held_ns;
}

#endif
