/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What the main program has done last on each processor. The second look comes right after it, so that it sees without a
 * look at the map that there is nothing left to do. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_DONE_H
#define TCPEVENT_DONE_H

#define MOST_CPUS 256

struct done {
	__u64 sk;
	__u64 state;
	__u64 pad[6]; /* a cache line each */
};

struct done done[MOST_CPUS];

static __always_inline void set_done(struct sock *sk, int new_state)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (cpu < MOST_CPUS) {
		done[cpu].sk = (__u64)sk;
		done[cpu].state = new_state;
	}
}

/* For once: the same socket may come to the same state again, in another life. */
static __always_inline bool is_done(struct sock *sk, int new_state)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (cpu >= MOST_CPUS || done[cpu].sk != (__u64)sk || done[cpu].state != (__u64)new_state)
		return false;
	done[cpu].sk = 0;
	return true;
}

#endif
