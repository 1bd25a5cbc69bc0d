// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * The least that tells of each TCP connection's end with its owner, for what a watcher could cost at best: every fact of a
 * record is read once by plain loads, and an owner has one place, which it takes from whoever has it. Nothing is looked
 * at twice, and so this is wrong where sockets share a place, where a process is about to execute another one, where the
 * kernel's own threads or MPTCP are at work, and where a program was skipped. Linux 6.2 and later.
 *
 * MAIN says where it sees changes of state (0: tp_btf/inet_sock_set_state, 1: kprobe/tcp_set_state), and KIND what it tells of
 * (0: closes, as the classic functions need them; 1: closes, 2: all changes, as a handle needs them).
 */
#include "../../bpf/core_types.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "../../bpf/tcp_event.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __ksym;

#define AS(name, pointer) ((struct name *)bpf_rdonly_cast(pointer, bpf_core_type_id_kernel(struct name)))

enum { SLOT_BITS = 16 };

struct owner {
    __u64 sk;
    __u64 birth_ns;
    __u64 established_ns;
    __u64 comm[2];
    __u32 pid;
    __u32 uid;
    __u8 origin;
    __u8 direction;
    __u8 pad[6];
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1 << SLOT_BITS);
    __type(key, __u32);
    __type(value, struct owner);
} owners SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 24);
} records SEC(".maps");

__u64 base;

static __always_inline __u64 number_of(struct sock *sk)
{
    __u64 number = (__u64)sk;

    asm volatile("%[number] -= %[base]" : [number] "+r"(number) : [base] "r"(&base));
    return number;
}

static __always_inline struct owner *slot_of(__u64 number)
{
    __u32 index = (__u32)number * 0x9e3779b1u >> (32 - SLOT_BITS);

    return bpf_map_lookup_elem(&owners, &index);
}

static __always_inline void note_process(struct owner *owner, __u8 origin)
{
    struct task_struct *task = bpf_get_current_task_btf();

    owner->pid = task->tgid;
    owner->uid = AS(task_struct, task)->cred->uid.val;
    owner->comm[0] = *(__u64 *)task->comm;
    owner->comm[1] = *(__u64 *)(task->comm + 8);
    owner->origin = origin;
}

static __always_inline void begin(struct owner *owner, __u64 number, __u8 direction)
{
    owner->sk = number;
    owner->birth_ns = KIND ? bpf_ktime_get_ns() : 1;
    owner->direction = direction;
}

static __always_inline void tell(struct sock *sk, const struct owner *known, int old_state, int new_state)
{
    struct tcp_sock *tp = AS(tcp_sock, sk);
    struct tcp_detailed_record *record;
    struct socket *socket;

    record = bpf_ringbuf_reserve(&records, KIND ? sizeof(*record) : sizeof(record->plain), 0);
    if (!record)
        return;
    record->plain.time_ns = bpf_ktime_get_ns();
    record->plain.birth_ns = known->birth_ns;
    record->plain.pid = known->pid;
    record->plain.uid = known->uid;
    record->plain.origin = known->origin;
    ((__u64 *)record->plain.comm)[0] = known->comm[0];
    ((__u64 *)record->plain.comm)[1] = known->comm[1];
    record->plain.old_state = old_state;
    record->plain.family = sk->__sk_common.skc_family;
    record->plain.local_port = tp->inet_conn.icsk_inet.inet_sport;
    record->plain.remote_port = sk->__sk_common.skc_dport;
    *(__u32 *)record->plain.local_addr = sk->__sk_common.skc_rcv_saddr;
    *(__u32 *)record->plain.remote_addr = sk->__sk_common.skc_daddr;
    if (new_state == TCP_CLOSE) {
        record->plain.bytes_received = tp->bytes_received;
        record->plain.bytes_acked = tp->bytes_acked;
        record->plain.data_segs_out = tp->data_segs_out;
        record->plain.data_segs_in = tp->data_segs_in;
    }
    if (KIND) {
        socket = AS(sock, sk)->sk_socket;
        record->plain.inode = socket ? socket->file->f_inode->i_ino : 0;
        record->established_ns = known->established_ns;
        record->direction = known->direction;
        record->new_state = new_state;
        record->err = sk->sk_err;
        record->cookie = sk->__sk_common.skc_cookie.counter;
        record->cgroup = AS(sock, sk)->sk_cgrp_data.cgroup->kn->id;
        record->netns = AS(sock, sk)->__sk_common.skc_net.net->ns.inum;
        if (new_state == TCP_CLOSE) {
            record->flags = sk->sk_shutdown;
            record->bytes_sent = tp->bytes_sent;
            record->bytes_retrans = tp->bytes_retrans;
            record->segs_out = tp->segs_out;
            record->segs_in = tp->segs_in;
            record->total_retrans = tp->total_retrans;
            record->srtt_us = tp->srtt_us;
            record->min_rtt_us = tp->rtt_min.s[0].v;
            record->snd_una = tp->snd_una;
            record->snd_nxt = tp->snd_nxt;
            record->write_seq = tp->write_seq;
        }
    }
    /* Nobody reads it: the reader's end follows. It takes what submitting takes. */
    bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

static __always_inline int changed(struct sock *sk, int old_state, int new_state)
{
    struct owner *owner;
    __u64 number;

    if (KIND < 2 && new_state != TCP_CLOSE && new_state != TCP_SYN_SENT && new_state != TCP_FIN_WAIT1 &&
        new_state != TCP_LAST_ACK && (new_state != TCP_ESTABLISHED || (!KIND && old_state != TCP_SYN_RECV)))
        return 0;
    if (new_state == TCP_SYN_RECV)
        return 0;
    number = number_of(sk);
    owner = slot_of(number);
    if (!owner)
        return 0;
    if (new_state == TCP_SYN_SENT) {
        begin(owner, number, TCP_DIRECTION_CONNECTED);
        note_process(owner, TCP_ORIGIN_CONNECT);
    } else if (new_state == TCP_ESTABLISHED) {
        if (old_state == TCP_SYN_RECV)
            begin(owner, number, TCP_DIRECTION_ACCEPTED);
        if (KIND)
            owner->established_ns = bpf_ktime_get_ns();
    } else if ((new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) && sk->sk_lock.owned) {
        note_process(owner, TCP_ORIGIN_CLOSE);
    }
    if (KIND == 2 || new_state == TCP_CLOSE)
        tell(sk, owner, old_state, new_state);
    if (new_state == TCP_CLOSE)
        owner->sk = 0;
    return 0;
}

#if MAIN
SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state, struct sock *sk, int new_state)
{
    sk = AS(sock, sk);
    return changed(sk, sk->__sk_common.skc_state, new_state);
}
#else
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int old_state, int new_state)
{
    return changed(sk, old_state, new_state);
}
#endif

SEC("fentry/security_sock_graft")
int BPF_PROG(accepted, struct sock *sk, struct socket *parent)
{
    __u64 number = number_of(sk);
    struct owner *owner = slot_of(number);

    if (owner && owner->sk == number)
        note_process(owner, TCP_ORIGIN_ACCEPT);
    return 0;
}

/* Who lets go of a socket that others have ended. */
SEC("raw_tp/tcp_destroy_sock")
int destroyed(__u64 *args)
{
    struct sock *sk = AS(sock, (void *)args[0]);
    __u64 number = number_of(sk);
    struct owner *owner = slot_of(number);

    if (owner && owner->sk == number)
        tell(sk, owner, TCP_CLOSE, TCP_CLOSE);
    return 0;
}
