/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Attempts to connect that nobody answers: the kernel sends the SYN again, most often from a timer (tcp_retransmit_skb(), where the
 * counters have counted it already). Part of tcp_event.bpf.c, and not loaded where nobody asks for it.
 */
#ifndef TCPEVENT_RETRIES_H
#define TCPEVENT_RETRIES_H

#include "filter.h"
#include "report.h"
#include "ring_output.h"
#include "transition.h"

/* Whether the tracepoint is passed where nothing was sent too, and says so (Linux 6.17, commit ad892e912b84). */
const volatile bool retransmit_tells_error = false;

/* Its parameters, where there are as many. */
enum { RETRANSMIT_SOCK, RETRANSMIT_SKB, RETRANSMIT_ERROR };

SEC("tp_btf/tcp_retransmit_skb")
int syn_again(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[RETRANSMIT_SOCK];
	struct tcp_detailed_record *record;
	struct owner known = {};
	struct tcp_sock *tp;

	if (sk->__sk_common.skc_state != TCP_SYN_SENT)
		return 0;
	/* A segment that a queue of this host has dropped (NET_XMIT_DROP) is tried again soon; one that cannot leave it is not sent. */
	if (retransmit_tells_error && (int)ctx[RETRANSMIT_ERROR])
		return 0;
	tp = tcp_of(sk, true);
	if (!tp || !fits_socket(sk, tp, true))
		return 0;
	copy_owner(&known, where_is(sk));
	record = new_record(sizeof(*record));
	if (!record)
		return 0;
	record->plain.inode = inode_of(sk);
	fill_known(&record->plain, sk, &known, true);
	if (!fits_owner(&record->plain)) {
		drop_record(record);
		return 0;
	}
	fill_plain(&record->plain, sk, tp, TCP_SYN_SENT, true, true);
	fill_detail(record, sk, &known, TCP_SYN_SENT, true);
	fill_counters(record, tp, true);
	/* What the network has answered so far. */
	record->err = sk->sk_err_soft;
	record->flags = TCP_FLAG_ERROR_SOFT;
	put_record(ctx, record, sizeof(*record));
	return 0;
}

#endif
