/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * How records reach user space through a ring buffer, and how its reader is woken. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_RING_OUTPUT_H
#define TCPEVENT_RING_OUTPUT_H

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} records SEC(".maps");

/* Set by user space before it sleeps, cleared by the first record after that: see wake(). */
__u32 reader_sleeps;

/* For the statistics. */
__u64 lost_records;

/*
 * Wakes the reader if it sleeps. Called after a record is committed: the commit is a full barrier, as is the reader's
 * between setting the flag and its last look at the ring, so either it sees the record or this sees the flag.
 */
static __always_inline void wake(void)
{
	void *nothing;

	if (!*(volatile __u32 *)&reader_sleeps)
		return;
	nothing = bpf_ringbuf_reserve(&records, 8, 0);
	/* Where it cannot be woken now, the next record tries again. */
	if (!nothing)
		return;
	*(volatile __u32 *)&reader_sleeps = 0;
	bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
}

static __always_inline void *new_record(const __u64 size)
{
	void *record = bpf_ringbuf_reserve(&records, size, 0);

	if (!record)
		__sync_fetch_and_add(&lost_records, 1);
	return record;
}

static __always_inline void put_record(void *ctx, void *record, const __u64 size)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	wake();
}

static __always_inline void drop_record(void *record)
{
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

#endif
