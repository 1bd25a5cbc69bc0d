/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * How records reach user space, and what of them is lost is counted, where the kernel has neither ring buffer (Linux 5.8)
 * nor global variables (5.2). Part of tcp_event_perf.bpf.c and tcp_event_tracepoint.bpf.c.
 */
#ifndef TCPEVENT_PERF_OUTPUT_H
#define TCPEVENT_PERF_OUTPUT_H

#include "tcp_event.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} records SEC(".maps");

/* What could not be kept: see enum tcp_lost. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_LOST_FULL + 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline void count_lost(__u32 kind)
{
	__u64 *count = bpf_map_lookup_elem(&lost, &kind);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void put(void *ctx, void *record, __u64 size)
{
	long result = bpf_perf_event_output(ctx, &records, BPF_F_CURRENT_CPU, record, size);

	if (result)
		count_lost(result == -ENOSPC ? TCP_LOST_FULL : TCP_LOST_RECORDS);
}

/*
 * A processor is being switched on or off, as by a suspend: the kernel takes its perf event away for good, and user space must
 * open another. That is told by a record that is shorter than any other, of which it does not matter whether it arrives: one of
 * those that come of the processor that does the switching will.
 */
SEC("tracepoint/cpuhp/cpuhp_exit")
int processors_change(void *ctx)
{
	__u64 notice = 0;

	bpf_perf_event_output(ctx, &records, BPF_F_CURRENT_CPU, &notice, sizeof(notice));
	return 0;
}

#endif
