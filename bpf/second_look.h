/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * The second look. The kernel skips a program that it is running already on the same CPU, and a kprobe for more reasons
 * than that (kprobes.nmissed). What the first look has left undone is seen by the owner's entry, and done here. Part of
 * tcp_event.bpf.c.
 */
#ifndef TCPEVENT_SECOND_LOOK_H
#define TCPEVENT_SECOND_LOOK_H

#include "done.h"
#include "ring_output.h"
#include "transition.h"

/* Whether another process may be given the CPU while a tracepoint's program runs, and have that skipped (Linux 7.0). */
const volatile bool is_preemptible = false;

/* For the statistics: changes that only the second look saw. */
__u64 recovered;

/*
 * A process lets go of a socket whose connection has been ended by others (tcp_close(), inet_csk_destroy_sock()). Where there is
 * no room for the record, user space looks for itself who holds it.
 */
static __always_inline void report_let_go(struct sock *sk, struct where at, __u64 close_ns)
{
	struct tcp_let_go *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (record) {
		__builtin_memset(record, 0, sizeof(*record));
		record->close_ns = close_ns;
		if (in_owner_context(sk, false) && !is_in_exec()) {
			read_current(current_task(), &record->pid, &record->uid, record->comm);
			record->by_process = 1;
		}
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
		wake();
	}
	forget_at(at);
}

/*
 * The state that an endpoint was in before its last change, which the main program has missed: from the last one that was noted, and
 * what is known of the peer's and its own end since. (A connection that goes to TIME_WAIT comes from FIN_WAIT2, or from CLOSING.)
 * What a thread of the kernel ends is not noted: of MPTCP's connections it may be the one before.
 */
static __always_inline int state_before_end(struct sock *sk, const struct owner *known)
{
	struct tcp_sock *tp = CAST(tcp_sock, sk);
	int state = known->state;

	/* Where this was missed too: nobody's SYN is acknowledged but that of a connection. */
	if (!state || (state == TCP_SYN_SENT && tp->bytes_acked))
		state = TCP_ESTABLISHED;
	if (state == TCP_ESTABLISHED && CAST(sock, sk)->__sk_common.skc_flags & 1 << SOCK_DONE)
		return TCP_CLOSE_WAIT;
	return state == TCP_FIN_WAIT1 && tp->snd_una == tp->write_seq ? TCP_FIN_WAIT2 : state;
}

/*
 * Where it is not preemptible, the program at the tracepoint is skipped in softirq only, over one that a process runs, and a close
 * is all that it can miss of what those who want closes are told: that is seen where the kernel destroys the socket
 * (tcp_destroy_sock), and where it tells of the error that ended the connection (inet_sk_error_report), as it may be long until a
 * process lets go of the socket. One program for both, to be verified once. It reports so rarely that helpers may read what it does.
 * Other programs take it for who lets go of a socket.
 */
SEC("raw_tp")
int close_at_end(__u64 *args)
{
	struct sock *sk = (struct sock *)args[0];
	struct where at;
	struct owner known;
	__u8 state;

	state = can_cast ? CAST(sock, sk)->__sk_common.skc_state : BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state != TCP_CLOSE)
		return 0;
	at = where_is(sk);
	if (!copy_owner(&known, at))
		return 0;
	if (known.has_ended) {
		/* As long as the kernel still tells of an error, the socket is held. */
		if (!socket_of(sk))
			report_let_go(sk, at, known.birth_ns);
		return 0;
	}
	if (!look_at_end)
		return 0;
	__sync_fetch_and_add(&recovered, 1);
	if (!look_at_end_detailed)
		end_at(at, report(0, sk, &known, TCP_CLOSE, false));
	else if (can_cast)
		transition_detailed(CAST(sock, sk), state_before_end(sk, &known), TCP_CLOSE, false);
	return 0;
}

/* Whether the second look sees a change that was not reported, by fault or on purpose. */
static __always_inline bool is_unreported(const struct owner *known, int old_state, int new_state)
{
	if (known->state == new_state)
		return false;
	if (!is_left_to_second_look(old_state, new_state))
		__sync_fetch_and_add(&recovered, 1);
	return true;
}

/* The others look again at each change, after the main program; most often that has done what there was to do. */
static __always_inline bool is_undone(struct sock *sk, int old_state, int new_state, const bool detailed)
{
	/* In the context of a process, where a tracepoint's program does not run already unless it was preempted. */
	bool by_process = (main_is_kprobe || is_preemptible) &&
			  (new_state == TCP_SYN_SENT || new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK);
	bool born_passive = new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV;
	struct owner *known;
	__u8 origin;

	/* The kernel calls no tcp_set_state() for it. */
	if (new_state == TCP_LISTEN)
		return detailed && main_is_kprobe;
	/* Other changes are nothing to programs that tell of closes only: they save the look. */
	if (!(detailed && follows_changes()) && new_state != TCP_CLOSE && !born_passive && !by_process)
		return false;
	if (old_state == new_state)
		return false;
	known = owner_at(where_is(sk));
	if (new_state == TCP_CLOSE) {
		/* The entry goes with the close, or says that it was reported. */
		if (!known || known->has_ended)
			return false;
		__sync_fetch_and_add(&recovered, 1);
		return true;
	}
	if (!known)
		return (born_passive || by_process) && speaks_tcp(sk);
	/* What is reported twice is wrong; what is noted twice is not. */
	if (detailed && follows_changes())
		return is_unreported(known, old_state, new_state);
	origin = new_state == TCP_SYN_SENT ? TCP_ORIGIN_CONNECT : TCP_ORIGIN_CLOSE;
	return by_process && (known->origin != origin || known->pid != current_process_id());
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again, struct sock *sk, int old_state, int new_state)
{
	if (is_done(sk, new_state) || !is_undone(sk, old_state, new_state, false))
		return 0;
	return transition(ctx, sk, old_state, new_state, true, false, true);
}

/* Apart, so that what comes before needs few registers. */
static __noinline int look_again_detailed(struct sock *sk, int old_state, int new_state)
{
	if (!is_undone(sk, old_state, new_state, true))
		return 0;
	return transition_detailed(sk, old_state, new_state, true);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again_detailed, struct sock *sk, int old_state, int new_state)
{
	return is_done(sk, new_state) ? 0 : look_again_detailed(sk, old_state, new_state);
}

#endif
