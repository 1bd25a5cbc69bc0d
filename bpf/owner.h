/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Who owns an endpoint, and what else is kept of it while it lives.
 */
#ifndef TCPEVENT_OWNER_H
#define TCPEVENT_OWNER_H

struct owner {
	__u64 birth_ns; /* once it has ended: when its close was reported */
	__u64 established_ns; /* this, state and direction: for the detailed programs */
	__u32 pid;
	__u32 uid;
	char comm[TASK_COMM_LEN];
	__u8 origin;
	__u8 state; /* the last one that was reported */
	__u8 direction;
	__u8 has_ended; /* nothing is left to report but who lets go of the socket */
	__u8 pad[4];
};

/* The current process, by helpers that every kernel has. */
static __always_inline void read_current_by_helpers(__u32 *pid, __u32 *uid, char *comm)
{
	*pid = bpf_get_current_pid_tgid() >> 32;
	*uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(comm, TASK_COMM_LEN);
}

#endif
