/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * The kernel's plain types, and those of its constants that the programs use. None of them changes.
 */
#ifndef TCPEVENT_BASE_TYPES_H
#define TCPEVENT_BASE_TYPES_H

/* Tells libbpf's headers that the types below are there. */
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;

enum { false = 0, true = 1 };

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_F_USER_STACK = 256,
	BPF_F_MMAPABLE = 1024,
};

#define BPF_F_CURRENT_CPU 0xffffffffULL

enum {
	BPF_RB_AVAIL_DATA = 0, /* of bpf_ringbuf_query() */
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};

/* include/linux/socket.h, include/uapi/linux/in.h */
enum {
	AF_INET = 2,
	AF_INET6 = 10,
	IPPROTO_TCP = 6,
	IPPROTO_MPTCP = 262,
};

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
};

/* include/uapi/linux/stat.h */
enum {
	S_IFMT = 0170000,
	S_IFSOCK = 0140000,
};

/* include/uapi/asm-generic/errno-base.h, include/uapi/asm-generic/errno.h */
#define EINTR 4
#define EFAULT 14
#define EEXIST 17
#define ENOSPC 28
#define EPIPE 32
#define ECONNABORTED 103
#define ETIMEDOUT 110
#define ECONNRESET 104
#define EISCONN 106
#define ECONNREFUSED 111
#define EALREADY 114
#define EINPROGRESS 115
/* include/linux/errno.h: the first of those that no program is told */
#define ERESTARTSYS 512

/* include/net/sock.h: a bit of sock.sk_flags (skc_flags), set once the peer's FIN was received in order */
#define SOCK_DONE 1

/* include/net/sock.h: a value of sock.sk_shutdown, set by close before it changes the state */
#define SHUTDOWN_MASK 3

/* include/uapi/linux/net.h */
typedef enum {
	SS_UNCONNECTED = 1,
	SS_CONNECTED = 3,
	SS_DISCONNECTING = 4,
} socket_state;

#define TASK_COMM_LEN 16

/* include/linux/sched.h: a bit of task_struct.flags */
#define PF_KTHREAD 0x200000

#endif
