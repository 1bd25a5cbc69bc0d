/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What user space tells tcp_event_tracepoint.bpf.c.
 */
#ifndef TCPEVENT_TRACEPOINT_H
#define TCPEVENT_TRACEPOINT_H

/* Where the tracepoints have their fields, in bytes from the start of the record; and which events are wanted. */
struct tcp_tracepoint {
	__u16 sk;
	__u16 old_state;
	__u16 new_state;
	__u16 local_port;
	__u16 remote_port;
	__u16 local_v4;
	__u16 remote_v4;
	__u16 local_v6;
	__u16 remote_v6;
	__u16 family; /* 0: not there */
	__u16 protocol;
	__u16 reset_sk; /* of tcp_receive_reset */
	__u16 destroyed_sk; /* of tcp_destroy_sock; 0: that is not heard of */
	__u8 protocol_size; /* 0: not there */
	__u8 wanted; /* enum tcp_wanted */
	__u8 detailed;
	__u8 reserved[3];
	/* Where process IDs are told of, by its file; 0: in the initial PID namespace. */
	__u64 pid_namespace_device;
	__u64 pid_namespace;
};

#endif
