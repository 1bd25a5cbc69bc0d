/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Which process takes a connection, where the kernel has trampolines: they cost a third of a kprobe, and need no perf event.
 * Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_ACCEPT_ENTRY_H
#define TCPEVENT_ACCEPT_ENTRY_H

#include "accepts.h"

SEC("fentry/security_sock_graft")
int BPF_PROG(accept_entry, struct sock *sk, struct socket *parent)
{
	return accepted(sk);
}

#endif
