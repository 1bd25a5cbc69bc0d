/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * The record that the probe writes and src/decode.rs reads: one for each endpoint that reached TCP_CLOSE. Natural
 * alignment without holes, host byte order but for the addresses.
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
	__u32 uid;
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u8 origin;
	__u8 old_state;
	__u8 local_addr[16]; /* IPv4: the first four */
	__u8 remote_addr[16];
	char comm[16];
};

#endif
