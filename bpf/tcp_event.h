/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What the programs and the library share. build.rs makes Rust of it (shared.bpf.c): what is here is defined nowhere else.
 *
 * First, the records that the programs write and src/ingest/record.rs reads: the plain one, for each endpoint that reached
 * TCP_CLOSE; or the detailed one, for each change of state, and for each SYN that is sent again: that is one from TCP_SYN_SENT to
 * the same. Natural alignment without holes, host byte order but for the addresses.
 */
#ifndef TCPEVENT_RECORD_H
#define TCPEVENT_RECORD_H

/* How the owner of an endpoint was found. */
enum tcp_origin {
	/* No process was seen to act on the endpoint: its inode, if any, is for user space to look up. */
	TCP_ORIGIN_NONE = 0,
	TCP_ORIGIN_CONNECT = 1,
	TCP_ORIGIN_ACCEPT = 2,
	/* shutdown, close or the exit of the process */
	TCP_ORIGIN_CLOSE = 3,
	/* held open by this process when the probe was attached */
	TCP_ORIGIN_INODE = 4,
	/*
	 * Added to one of the others, of a close that no process has caused: the connection belongs to the process that still
	 * holds its socket, which need not be the known one. A tcp_let_go follows once that has let go of it.
	 */
	TCP_ORIGIN_HELD = 0x80,
};

/* For `uid`. */
enum tcp_user {
	TCP_NO_USER = ~0U, /* none is known (kernel: INVALID_UID) */
};

struct tcp_record {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 birth_ns; /* likewise; 0: born before the probe was attached */
	__u64 bytes_received;
	__u64 bytes_acked;
	__u64 inode; /* of the socket; 0 once no process holds it */
	__u32 data_segs_out;
	__u32 data_segs_in;
	__u32 pid;
	__u32 uid; /* of the owner, else of the socket; or TCP_NO_USER */
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u8 origin;
	__u8 old_state;
	__u8 local_addr[16]; /* IPv4: the first four */
	__u8 remote_addr[16];
	char comm[16];
};

/* Who opened the connection. */
enum tcp_direction {
	TCP_DIRECTION_UNKNOWN = 0,
	TCP_DIRECTION_CONNECTED = 1,
	TCP_DIRECTION_ACCEPTED = 2,
};

/* What the detailed record's flags say. */
enum tcp_flag {
	/* The peer's FIN was received in order, and is in bytes_received. */
	TCP_FLAG_FIN_RECEIVED = 1,
	/* The process is closing the socket. */
	TCP_FLAG_BEING_CLOSED = 2,
	/* It happens within connect() itself, before the first segment is out. */
	TCP_FLAG_WITHIN_CONNECT = 4,
	/* `err` says 0 for want of knowledge. */
	TCP_FLAG_ERROR_UNKNOWN = 8,
	/* `err` is what the network has answered so far (sock.sk_err_soft); it has not ended the attempt. */
	TCP_FLAG_ERROR_SOFT = 16,
	/*
	 * What tells how the connection has ended is filled: ending; where err is not 0, user_timeout; by TCP_ENDING_BY_PROCESS
	 * lingertime, sock_flags, copied_seq and rcv_nxt. Else they are anything.
	 */
	TCP_FLAG_ENDING_TOLD = 32,
};

/* What there is to a connection's end. All but the last: without an error, and not of MPTCP, which ends its connections by itself. */
enum tcp_ending {
	/* A process does it, in a call on the socket that it holds (sk_lock.owned, sk_socket). */
	TCP_ENDING_BY_PROCESS = 1,
	/* And has taken the connection away from the kernel (TCP_REPAIR). */
	TCP_ENDING_BY_REPAIR = 2,
	/* No process ever had it, and none does it. */
	TCP_ENDING_NEVER_HELD = 4,
	/* The process has dissolved it, by connect to AF_UNSPEC. */
	TCP_ENDING_BY_CONNECT = 8,
	/* With an error: the peer can receive nothing (tcp_sock.snd_wnd is 0). */
	TCP_ENDING_WINDOW_CLOSED = 16,
};

/* The counters of the first part, and those of this one from bytes_sent on, are 0 where a state changes and nothing ends. */
struct tcp_detailed_record {
	struct tcp_record plain;
	__u64 established_ns; /* CLOCK_MONOTONIC; 0: not, or before the probe was attached */
	__u64 cookie;
	__u64 cgroup;
	__u32 netns;
	__s32 err; /* what ended it: sock.sk_err, where that is the reason */
	__u8 new_state;
	__u8 direction;
	__u8 flags;
	__u8 ending; /* bits of tcp_ending */
	__u32 lingertime; /* sock.sk_lingertime */
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 segs_out;
	__u32 segs_in;
	__u32 total_retrans;
	__u32 srtt_us; /* times 8, as the kernel has it */
	__u32 min_rtt_us; /* ~0: never measured */
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 sock_flags; /* sock.sk_flags */
	__u32 user_timeout; /* inet_connection_sock.icsk_user_timeout */
	__u32 copied_seq;
	__u32 rcv_nxt;
};

/* Who has let go of the socket of a close that had TCP_ORIGIN_HELD. It is told from the other records by its size. */
struct tcp_let_go {
	__u64 close_ns; /* time_ns of that close */
	char comm[16];
	__u32 pid;
	__u32 uid;
	__u8 by_process; /* 0: a thread of the kernel, or a process that has executed a program: that is no act */
	__u8 reserved[7];
};

/* What the iterator writes of each socket that a process holds open, and of each io_uring, for src/sockets/holders.rs. */
struct tcp_holder {
	__u64 inode; /* 0: an io_uring, which may hold some */
	__u32 pid;
	__u32 fd;
};

/* Which events are wanted, as bits of `wanted`. */
enum tcp_wanted {
	TCP_WANTED_STATES = 1,
	TCP_WANTED_CLOSES = 2,
	TCP_WANTED_RETRIES = 4,
	TCP_WANTED_UNSENT = 8,
};

/* Which ways to connect the programs hear of, for TCP_WANTED_UNSENT. */
enum tcp_heard {
	TCP_HEARD_NONE = 0,
	TCP_HEARD_SYSCALL = 1, /* connect alone */
	TCP_HEARD_ALL = 2,
};

/* What an event must fit; 0 (but for uid) means that all do. Lists are in maps, of which these bits say that they count. */
enum tcp_list {
	TCP_LIST_LOCAL_PORTS = 1,
	TCP_LIST_REMOTE_PORTS = 2,
	TCP_LIST_LOCAL_PREFIXES = 4,
	TCP_LIST_REMOTE_PREFIXES = 8,
};

struct tcp_filter {
	__u64 cgroup;
	__u32 netns;
	__u32 pid;
	__u32 uid;
	__u16 family;
	__u8 lists;
	__u8 by_uid;
	__u8 failed_only;
	__u8 reserved[7];
};

/* A set of ports, as bits: that of port p is bit p % 8 of byte p / 8. */
struct tcp_port_set {
	__u8 bits[8192];
};

/* A key of the maps of prefixes: an IPv4 address is in its ::ffff: form, 96 bits longer. */
struct tcp_prefix {
	__u32 length;
	__u8 addr[16];
};

/* How many endpoints can have an owner at the same time. */
enum tcp_capacity {
	/* Of the table of owners.h: bits of a set's number, and places of a set. */
	TCP_SET_BITS = 16,
	TCP_SET_PLACES = 4,
	/* Of the map for those that the table has no place for. */
	TCP_MORE_OWNERS = 16384,
	/* Of the map where there is no table. */
	TCP_MOST_OWNERS = 131072,
};

/* Keys of the map of perf_output.h that counts what is lost. */
enum tcp_lost {
	/* Records for which there was no buffer on this processor. */
	TCP_LOST_RECORDS = 0,
	TCP_LOST_OWNERS = 1,
	/* Records that found the buffer full, as far as the kernel tells the program (before Linux 5.0 it does not). */
	TCP_LOST_FULL = 2,
};

/* Functions that the library puts in the place of a call, by its number: see cast.h. */
enum tcp_placeholder {
	TCP_RDONLY_CAST = 0x7fffffff,
};

#endif
