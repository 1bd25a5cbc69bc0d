/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Which events the detailed programs report. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_FILTER_H
#define TCPEVENT_FILTER_H

#include "socket.h"
#include "tcp_event.h"

/* Set before the programs are loaded. */
const volatile __u8 wanted = 0;
const volatile struct tcp_filter filter = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct tcp_port_set);
} port_sets SEC(".maps");

/* As many entries as the filter has prefixes: user space knows. The value: whether it is for IPv4 too. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tcp_prefix);
	__type(value, __u8);
} local_prefixes SEC(".maps"), remote_prefixes SEC(".maps");

/*
 * Whether each change is looked at, to be told of, or, with a kprobe, to give the socket its number: else closes are all, and
 * what they tell.
 */
static __always_inline bool follows_changes(void)
{
	return main_is_kprobe || wanted & TCP_WANTED_STATES;
}

static __always_inline bool is_wanted(bool ends, bool has_failed)
{
	return wanted & (ends ? TCP_WANTED_CLOSES : TCP_WANTED_STATES) && (!filter.failed_only || has_failed);
}

/* Whether a port is in a list: 0 for that of local ports, 1 for remote ones. */
static __always_inline bool has_port(__u32 list, __u16 port)
{
	struct tcp_port_set *set = bpf_map_lookup_elem(&port_sets, &list);

	return set && set->bits[port >> 3] & 1 << (port & 7);
}

/* Whether an address is in a list of prefixes. ::/0 and the like are not meant for IPv4. */
static __always_inline bool is_listed(void *list, __u16 family, const __u8 *addr)
{
	struct tcp_prefix prefix = {.length = 128};
	__u8 *for_ipv4;

	if (family == AF_INET) {
		prefix.addr[10] = 0xff;
		prefix.addr[11] = 0xff;
		__builtin_memcpy(&prefix.addr[12], addr, 4);
	} else {
		__builtin_memcpy(prefix.addr, addr, 16);
	}
	for_ipv4 = bpf_map_lookup_elem(list, &prefix);
	return for_ipv4 && (family != AF_INET || *for_ipv4);
}

static __always_inline bool has_prefix(void *list, struct sock *sk, __u16 family, const bool remote, const bool direct)
{
	__u8 addr[16] __attribute__((aligned(4)));

	read_address(addr, sk, family, remote, direct);
	return is_listed(list, family, addr);
}

/* Whether the socket fits what the filter says of addresses, ports and places. */
static __always_inline bool fits_socket(struct sock *sk, struct tcp_sock *tp, const bool direct)
{
	__u16 family = FIELD(direct, sk, __sk_common.skc_family);

	if (filter.family && family != filter.family)
		return false;
	if (filter.lists & TCP_LIST_LOCAL_PORTS && !has_port(0, local_port_of(tp, direct)))
		return false;
	if (filter.lists & TCP_LIST_REMOTE_PORTS && !has_port(1, remote_port_of(sk, direct)))
		return false;
	if (filter.lists & TCP_LIST_LOCAL_PREFIXES && !has_prefix(&local_prefixes, sk, family, false, direct))
		return false;
	if (filter.lists & TCP_LIST_REMOTE_PREFIXES && !has_prefix(&remote_prefixes, sk, family, true, direct))
		return false;
	if (filter.netns && netns_of(sk) != filter.netns)
		return false;
	return !filter.cgroup || cgroup_of(sk) == filter.cgroup;
}

/* Where the kernel knows no owner, but the inode, user space finds one, and looks again whether it fits. */
static __always_inline bool fits_owner(const struct tcp_record *record)
{
	if (record->origin == TCP_ORIGIN_NONE && record->inode)
		return true;
	return (!filter.pid || record->pid == filter.pid) && (!filter.by_uid || record->uid == filter.uid);
}

#endif
