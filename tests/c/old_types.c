/*
 * Types of Linux 4.15 that the probe reads and that have changed since, in their old form. Compiled for its type
 * information alone.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

struct in6_addr {
	union {
		u8 u6_addr8[16];
		u16 u6_addr16[8];
		u32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	void *stashed;
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	long counter;
} atomic64_t;

struct sock_common {
	union {
		u64 skc_addrpair;
		struct {
			u32 skc_daddr;
			u32 skc_rcv_saddr;
		};
	};
	union {
		u32 skc_portpair;
		struct {
			u16 skc_dport;
			u16 skc_num;
		};
	};
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	union {
		unsigned long skc_flags;
	};
};

typedef struct {
	int owned;
} socket_lock_t;

/* Before Linux 5.5: a union instead of a number. */
union kernfs_node_id {
	struct {
		u32 ino;
		u32 generation;
	};
	u64 id;
};

struct kernfs_node {
	union kernfs_node_id id;
};

struct cgroup {
	struct kernfs_node *kn;
};

/* Before Linux 5.15. */
struct sock_cgroup_data {
	union {
		struct {
			u8 is_data;
			u8 padding;
			u16 prioidx;
			u32 classid;
		};
		u64 val;
	};
};

typedef struct {
	unsigned int val;
} kuid_t;

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct sock;

typedef enum {
	SS_FREE = 0,
	SS_UNCONNECTED,
} socket_state;

struct socket {
	socket_state state;
	struct file *file;
	struct sock *sk;
};

/* Before Linux 5.6 some were bit fields. */
struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	unsigned int sk_padding : 1, sk_kern_sock : 1, sk_no_check_tx : 1, sk_no_check_rx : 1, sk_userlocks : 4,
		sk_protocol : 8, sk_type : 16;
	int sk_err;
	int sk_err_soft;
	kuid_t sk_uid;
	u8 sk_shutdown;
	unsigned long sk_lingertime;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
	u16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	u32 icsk_user_timeout;
};

struct minmax_sample {
	u32 t;
	u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

/* Before Linux 4.19: without bytes_sent and bytes_retrans. */
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u64 bytes_received;
	u32 segs_in;
	u32 data_segs_in;
	u32 rcv_nxt;
	u32 copied_seq;
	u32 snd_nxt;
	u32 segs_out;
	u32 data_segs_out;
	u64 bytes_acked;
	u32 snd_una;
	u32 srtt_us;
	struct minmax rtt_min;
	u32 write_seq;
	u32 total_retrans;
	u32 snd_wnd;
	u8 thin_lto : 1, unused : 1, repair : 1;
};

struct task_struct {
	long state;
	void *stack;
	int usage;
	unsigned int flags;
};

/* By value: for types behind pointers the compiler emits no information. */
struct {
	struct pt_regs pt_regs;
	struct tcp_sock tcp_sock;
	struct socket socket;
	struct file file;
	struct inode inode;
	struct cgroup cgroup;
	struct kernfs_node kernfs_node;
	struct net net;
	struct task_struct task_struct;
} types;
