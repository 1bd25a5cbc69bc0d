// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * A program that does nothing: what it costs is its hook's. With RECORDS, at the typed tracepoint of changes of state, it hands
 * over an empty record of each close, with the time: no less can be done by whoever tells of closes. benches/host/cost.py names the
 * section.
 */
#define IN(name) __attribute__((section(name), used))

char LICENSE[] IN("license") = "Dual MIT/GPL";

#ifdef RECORDS

/* include/uapi/linux/bpf.h, include/net/tcp_states.h, and the size of struct tcp_record */
enum { BPF_MAP_TYPE_RINGBUF = 27, BPF_RB_NO_WAKEUP = 1, TCP_CLOSE = 7, RECORD = 112 };

static unsigned long long (*const ktime_get_ns)(void) = (void *)5;
static void *(*const ringbuf_reserve)(void *ring, unsigned long long size, unsigned long long flags) = (void *)131;
static void (*const ringbuf_discard)(void *record, unsigned long long flags) = (void *)133;

struct {
    int (*type)[BPF_MAP_TYPE_RINGBUF];
    int (*max_entries)[1 << 20];
} records IN(".maps");

IN(SECTION) int empty(unsigned long long *arguments)
{
    unsigned long long *record;

    if ((int)arguments[2] != TCP_CLOSE)
        return 0;
    record = ringbuf_reserve(&records, RECORD, 0);
    if (!record)
        return 0;
    *record = ktime_get_ns();
    /* Nobody reads it: the reader's end follows. It takes what submitting takes. */
    ringbuf_discard(record, BPF_RB_NO_WAKEUP);
    return 0;
}

#else

IN(SECTION) int empty(void *context)
{
    return 0;
}

#endif
