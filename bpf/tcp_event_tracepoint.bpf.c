// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * What tcp_event.bpf.c does, as far as a kernel can do it that has no type information, ring buffer or global variables:
 * Linux 4.15 to 5.7. It sees the changes of state through the plain tracepoint sock:inet_sock_set_state (before Linux
 * 4.16: tcp:tcp_set_state), and of a socket no more than what that tells. Where in its record each field is, user space
 * has read from tracefs. What cannot be had is 0 in the records; the counters are added in user space.
 */
#include "base_types.h"

#include <bpf/bpf_helpers.h>

#include "perf_output.h"
#include "tcp_event.h"
#include "tcp_event_tracepoint.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* As in tcp_event.bpf.c, and when the connection came to this state. */
struct endpoint {
	__u64 birth_ns;
	__u64 established_ns;
	__u64 changed_ns;
	__u32 pid;
	__u32 uid;
	char comm[TASK_COMM_LEN];
	__u8 origin;
	__u8 state;
	__u8 direction;
	__u8 has_ended; /* it is kept for who lets go of its socket, and `changed_ns` is when its close was reported */
	__u32 initial_pid; /* as the initial PID namespace has it */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TCP_MOST_OWNERS);
	__type(key, __u64);
	__type(value, struct endpoint);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_tracepoint);
} layout SEC(".maps");

/* What has just happened on a processor. */
struct just {
	__u64 reset_sk; /* the socket that has received a reset: its change to TCP_CLOSE comes next */
	__u64 waiting_sk; /* the last change was this socket's, to TCP_FIN_WAIT2 */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct just);
} just SEC(".maps");

/*
 * A connection whose process still waits for the peer's FIN is closed by that, some time after it began to wait. One
 * whose process is gone does not wait: the kernel ends it with the segment that has acknowledged its own FIN, so that
 * there is no other change in between on that processor.
 */
#define SAME_SEGMENT_NS 100000

/*
 * Where in user mode a process begins that has just executed a program. As long as it is still there, it has not done anything:
 * it is on its way out of execve(), when the files are closed that the program is not to inherit (do_close_on_exec(), ____fput()).
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} beginnings SEC(".maps");

/* A segment is not sent again sooner than this, by default; nor is it given up (TCP_RTO_MIN). */
#define RTO_MIN_NS 200000000

/* An attempt that ends sooner than this may have ended within connect() itself: a clock tick, at most. */
#define CONNECT_NS 10000000

#define READ(to, ctx, offset) bpf_probe_read(&(to), sizeof(to), (char *)(ctx) + (offset))

/* A change of state, as the tracepoint tells it. */
struct change {
	__u64 sk;
	__u64 now;
	int old_state;
	int new_state;
	bool by_reset;
	bool same_segment; /* as the change before, to TCP_FIN_WAIT2 */
};

/* include/uapi/linux/bpf.h */
struct bpf_pidns_info {
	__u32 pid;
	__u32 tgid;
};

/*
 * The ID of the current process in the consumer's PID namespace. The helper tells it of processes in just that one; user space
 * takes its call away where the kernel has none (before Linux 5.7).
 */
static __always_inline __u32 current_process_id(const struct tcp_tracepoint *at)
{
	struct bpf_pidns_info ids = {};

	if (!at->pid_namespace)
		return bpf_get_current_pid_tgid() >> 32;
	if (bpf_get_ns_current_pid_tgid(at->pid_namespace_device, at->pid_namespace, &ids, sizeof(ids)))
		return 0;
	return ids.tgid;
}

static __always_inline void set_actor(const struct tcp_tracepoint *at, struct endpoint *owner, __u8 origin)
{
	owner->pid = current_process_id(at);
	owner->initial_pid = bpf_get_current_pid_tgid() >> 32;
	owner->uid = bpf_get_current_uid_gid();
	owner->origin = origin;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
}

static __always_inline void insert(__u64 sk, const struct endpoint *owner)
{
	if (bpf_map_update_elem(&owners, &sk, owner, BPF_ANY))
		count_lost(TCP_LOST_OWNERS);
}

/* A connection begins. Whatever the address of the socket stood for before is over. */
static __always_inline void born(const struct tcp_tracepoint *at, const struct change *change, __u8 origin)
{
	struct endpoint owner = {.state = change->new_state};

	owner.direction = origin == TCP_ORIGIN_CONNECT ? TCP_DIRECTION_CONNECTED : TCP_DIRECTION_ACCEPTED;
	/* In its handshake it is no connection yet. */
	if (change->new_state != TCP_SYN_RECV)
		owner.birth_ns = change->now;
	if (origin != TCP_ORIGIN_NONE)
		set_actor(at, &owner, origin);
	insert(change->sk, &owner);
}

/* Where the current process is in user mode; 0 where it is not known, as before Linux 4.18. */
static __always_inline __u64 user_address(void *ctx)
{
	__u64 address = 0;

	return bpf_get_stack(ctx, &address, sizeof(address), BPF_F_USER_STACK) == sizeof(address) ? address : 0;
}

/*
 * A thread of the kernel that does other people's work, as to end the TCP connections of MPTCP. A process may have such a name,
 * but is somewhere in user mode. (Where that is not known, the name must do.)
 */
static __always_inline bool is_worker(void *ctx)
{
	char comm[TASK_COMM_LEN] = "";

	bpf_get_current_comm(comm, sizeof(comm));
	return *(__u64 *)comm == *(const __u64 *)"kworker/" && !user_address(ctx);
}

/*
 * Whether the current process executes another program. That it lets go of a socket then is no act: it may be a child that has
 * just been forked, and has a copy of all that its parent has open.
 */
static __always_inline bool is_in_exec(void *ctx)
{
	__u32 process = bpf_get_current_pid_tgid() >> 32;
	__u64 *beginning = bpf_map_lookup_elem(&beginnings, &process);

	return beginning && *beginning && *beginning == user_address(ctx);
}

/* The program is there, and none of its instructions has run. */
SEC("tracepoint/sched/sched_process_exec")
int note_exec(void *ctx)
{
	__u32 process = bpf_get_current_pid_tgid() >> 32;
	__u64 address = user_address(ctx);

	bpf_map_update_elem(&beginnings, &process, &address, BPF_ANY);
	return 0;
}

/* The current process acts on the endpoint. */
static __always_inline void acted(void *ctx, const struct tcp_tracepoint *at, const struct change *change,
				  struct endpoint *known)
{
	if (is_worker(ctx) || is_in_exec(ctx))
		return;
	if (known) {
		set_actor(at, known, TCP_ORIGIN_CLOSE);
	} else {
		struct endpoint owner = {.state = change->new_state};

		set_actor(at, &owner, TCP_ORIGIN_CLOSE);
		insert(change->sk, &owner);
	}
}

/* Whether a change to TCP_CLOSE is the end of a connection, or of an attempt at one. */
static __always_inline bool is_end(const struct endpoint *known, int old_state)
{
	/* A handshake that was aborted is none, unless a process has it in its hands: two SYNs crossed, or Fast Open. */
	if (old_state == TCP_SYN_RECV)
		return known && known->origin != TCP_ORIGIN_NONE;
	return old_state != TCP_LISTEN;
}

static __always_inline void fill_owner(struct tcp_record *record, const struct tcp_tracepoint *at,
				       const struct endpoint *known, const struct change *change)
{
	/* Only the process itself makes a socket listen, or a listening one end. */
	bool current_acts = change->new_state == TCP_LISTEN || change->old_state == TCP_LISTEN;

	record->birth_ns = known ? known->birth_ns : 0;
	if (current_acts) {
		record->pid = current_process_id(at);
		record->uid = bpf_get_current_uid_gid();
		record->origin = change->new_state == TCP_CLOSE ? TCP_ORIGIN_CLOSE : TCP_ORIGIN_INODE;
		bpf_get_current_comm(record->comm, sizeof(record->comm));
	} else if (known && known->origin) {
		record->pid = known->pid;
		record->uid = known->uid;
		record->origin = known->origin;
		__builtin_memcpy(record->comm, known->comm, sizeof(record->comm));
	} else {
		/* The socket's own cannot be read. */
		record->uid = TCP_NO_USER;
	}
}

/*
 * Whether a connection has ended that no process was seen to do anything with, but to take it. It is held, then, or was just let
 * go of, and belongs to who lets go of it. (One that has no process any more has sent its FIN.)
 */
static __always_inline bool is_of_holder(const struct tcp_tracepoint *at, const struct endpoint *known,
					 const struct change *change)
{
	return at->destroyed_sk && change->new_state == TCP_CLOSE &&
	       (change->old_state == TCP_ESTABLISHED || change->old_state == TCP_CLOSE_WAIT) &&
	       (!known || (known->origin != TCP_ORIGIN_CONNECT && known->origin != TCP_ORIGIN_CLOSE));
}

static __always_inline bool is_mapped(const __u8 *addr)
{
	const __u32 *words = (const __u32 *)addr;

	return !words[0] && !words[1] && words[2] == __builtin_bswap32(0xffff);
}

static __always_inline void fill_plain(struct tcp_record *record, void *ctx, const struct tcp_tracepoint *at,
				       const struct change *change)
{
	record->time_ns = change->now;
	record->old_state = change->old_state;
	READ(record->local_port, ctx, at->local_port);
	READ(record->remote_port, ctx, at->remote_port);
	READ(record->local_addr, ctx, at->local_v6);
	READ(record->remote_addr, ctx, at->remote_v6);
	if (at->family)
		READ(record->family, ctx, at->family);
	else
		/* The other end of a connection from an IPv4 address to an IPv6 socket cannot be told from its peer. */
		record->family = is_mapped(record->local_addr) && is_mapped(record->remote_addr) ? AF_INET : AF_INET6;
	if (record->family == AF_INET) {
		__builtin_memset(record->local_addr, 0, 16);
		__builtin_memset(record->remote_addr, 0, 16);
		bpf_probe_read(record->local_addr, 4, (char *)ctx + at->local_v4);
		bpf_probe_read(record->remote_addr, 4, (char *)ctx + at->remote_v4);
	}
}

/* What the change and its circumstances tell of the error and the peer's FIN, which the tracepoint does not. */
static __always_inline void fill_end(struct tcp_detailed_record *record, const struct endpoint *known,
				     const struct change *change)
{
	__u32 current_pid = bpf_get_current_pid_tgid() >> 32;
	bool by_reset = change->by_reset;
	bool by_owner = known && known->initial_pid == current_pid;

	switch (change->old_state) {
	case TCP_SYN_SENT:
	case TCP_SYN_RECV:
		if (by_reset)
			record->err = change->old_state == TCP_SYN_SENT ? ECONNREFUSED : ECONNRESET;
		else
			/*
			 * By the network; by the program, to which the network may have answered before; or within connect()
			 * itself, for want of a local port, even where the program has chosen one: others have it.
			 */
			record->flags |= TCP_FLAG_ERROR_UNKNOWN;
		if (!by_reset && record->plain.local_port && by_owner && change->now - known->birth_ns > CONNECT_NS)
			record->flags |= TCP_FLAG_BEING_CLOSED;
		break;
	case TCP_CLOSE_WAIT:
		record->err = by_reset ? EPIPE : 0;
		record->flags |= TCP_FLAG_FIN_RECEIVED;
		if (!by_reset && !by_owner)
			record->flags |= TCP_FLAG_ERROR_UNKNOWN;
		break;
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		record->err = by_reset ? ECONNRESET : 0;
		record->flags |= TCP_FLAG_FIN_RECEIVED;
		/* The FIN may be acknowledged as late as that; but then a timer may have ended it as well. */
		if (!by_reset &&
		    !(known && known->state == change->old_state && change->now - known->changed_ns < RTO_MIN_NS))
			record->flags |= TCP_FLAG_ERROR_UNKNOWN;
		break;
	case TCP_FIN_WAIT2:
		record->err = by_reset ? ECONNRESET : 0;
		/* Or by a process that has not waited for it after all: that cannot be told. */
		if (!by_reset && known && known->state == TCP_FIN_WAIT2 &&
		    !(change->same_segment && change->now - known->changed_ns < SAME_SEGMENT_NS))
			record->flags |= TCP_FLAG_FIN_RECEIVED;
		break;
	default:
		/* Not in order. Its own program, or a time limit, or root: in another's context it was not the program. */
		record->err = by_reset ? ECONNRESET : 0;
		if (!by_reset && !by_owner)
			record->flags |= TCP_FLAG_ERROR_UNKNOWN;
	}
}

static __always_inline void report(void *ctx, const struct tcp_tracepoint *at, const struct change *change,
				   const struct endpoint *known, bool is_held)
{
	struct tcp_detailed_record record = {};
	bool ends = change->new_state == TCP_CLOSE && is_end(known, change->old_state);

	if (!(at->wanted & (ends ? TCP_WANTED_CLOSES : TCP_WANTED_STATES)))
		return;
	/* The plain records are of ends. */
	if (!at->detailed && !ends)
		return;
	fill_plain(&record.plain, ctx, at, change);
	fill_owner(&record.plain, at, known, change);
	if (is_held)
		record.plain.origin |= TCP_ORIGIN_HELD;
	/* Fast Open, whose handshake has not come to its end: that is what age is counted from. */
	if (ends && change->old_state == TCP_SYN_RECV && !record.plain.birth_ns)
		record.plain.birth_ns = change->now;
	if (!at->detailed) {
		put(ctx, &record.plain, sizeof(record.plain));
		return;
	}
	record.new_state = change->new_state;
	if (known) {
		record.established_ns = known->established_ns;
		record.direction = known->direction;
	}
	if (ends)
		fill_end(&record, known, change);
	put(ctx, &record, sizeof(record));
}

/* Keeps of an endpoint when its close was reported, for who lets go of its socket. */
static __always_inline void await_let_go(const struct change *change)
{
	struct endpoint ended = {.changed_ns = change->now, .state = TCP_CLOSE, .has_ended = 1};

	/* Where there is no room, the close has its owner as it was known. */
	bpf_map_update_elem(&owners, &change->sk, &ended, BPF_ANY);
}

/* sock:inet_sock_set_state fires for other protocols too. */
static __always_inline bool is_tcp(void *ctx, const struct tcp_tracepoint *at)
{
	__u16 protocol = IPPROTO_TCP;
	__u8 short_protocol;

	if (at->protocol_size == 2) {
		READ(protocol, ctx, at->protocol);
	} else if (at->protocol_size == 1) {
		READ(short_protocol, ctx, at->protocol);
		protocol = short_protocol;
	}
	return protocol == IPPROTO_TCP;
}

SEC("tracepoint/sock/inet_sock_set_state")
int set_state(void *ctx)
{
	__u32 zero = 0;
	struct tcp_tracepoint *at = bpf_map_lookup_elem(&layout, &zero);
	struct just *before = bpf_map_lookup_elem(&just, &zero);
	struct change change = {};
	struct endpoint *known;
	bool is_held;

	if (!at || !before || !is_tcp(ctx, at))
		return 0;
	READ(change.sk, ctx, at->sk);
	READ(change.old_state, ctx, at->old_state);
	READ(change.new_state, ctx, at->new_state);
	if (change.old_state == change.new_state)
		return 0;
	change.now = bpf_ktime_get_ns();
	change.by_reset = before->reset_sk == change.sk;
	change.same_segment = before->waiting_sk == change.sk;
	before->reset_sk = 0;
	before->waiting_sk = change.new_state == TCP_FIN_WAIT2 ? change.sk : 0;
	known = bpf_map_lookup_elem(&owners, &change.sk);
	switch (change.new_state) {
	case TCP_SYN_SENT:
		born(at, &change, TCP_ORIGIN_CONNECT);
		break;
	case TCP_SYN_RECV:
		/* A connection that begins at a listener: it has no addresses yet, and may never be one. */
		if (change.old_state == TCP_LISTEN) {
			born(at, &change, TCP_ORIGIN_NONE);
			return 0;
		}
		break;
	case TCP_ESTABLISHED:
		/* Before Linux 4.16 the change before this one is not seen. */
		if (change.old_state == TCP_SYN_RECV && !(known && known->state == TCP_SYN_RECV))
			born(at, &change, TCP_ORIGIN_NONE);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		acted(ctx, at, &change, known);
		break;
	}
	if (change.new_state != TCP_CLOSE) {
		known = bpf_map_lookup_elem(&owners, &change.sk);
		if (known) {
			if (change.new_state == TCP_ESTABLISHED) {
				known->established_ns = change.now;
				if (!known->birth_ns)
					known->birth_ns = change.now;
			}
			known->state = change.new_state;
			known->changed_ns = change.now;
		}
	}
	is_held = is_of_holder(at, known, &change);
	report(ctx, at, &change, known, is_held);
	if (is_held)
		await_let_go(&change);
	else if (change.new_state == TCP_CLOSE && known)
		bpf_map_delete_elem(&owners, &change.sk);
	return 0;
}

/* The kernel destroys a socket. If its connection was ended by others before, that is because a process lets go of it. */
SEC("tracepoint/tcp/tcp_destroy_sock")
int let_go(void *ctx)
{
	__u32 zero = 0;
	struct tcp_tracepoint *at = bpf_map_lookup_elem(&layout, &zero);
	struct tcp_let_go record = {};
	struct endpoint *known;
	__u64 sk;

	if (!at)
		return 0;
	READ(sk, ctx, at->destroyed_sk);
	known = bpf_map_lookup_elem(&owners, &sk);
	if (!known || !known->has_ended)
		return 0;
	record.close_ns = known->changed_ns;
	if (!is_worker(ctx) && !is_in_exec(ctx)) {
		record.pid = current_process_id(at);
		record.uid = bpf_get_current_uid_gid();
		record.by_process = 1;
		bpf_get_current_comm(record.comm, sizeof(record.comm));
	}
	bpf_map_delete_elem(&owners, &sk);
	/* Without it, the close has its owner as it was known. */
	bpf_perf_event_output(ctx, &records, BPF_F_CURRENT_CPU, &record, sizeof(record));
	return 0;
}

/* The kernel is about to end a connection that its peer has reset. */
SEC("tracepoint/tcp/tcp_receive_reset")
int receive_reset(void *ctx)
{
	__u32 zero = 0;
	struct tcp_tracepoint *at = bpf_map_lookup_elem(&layout, &zero);
	struct just *now = bpf_map_lookup_elem(&just, &zero);

	if (at && now)
		bpf_probe_read(&now->reset_sk, sizeof(now->reset_sk), (char *)ctx + at->reset_sk);
	return 0;
}

/* Where the first argument of a function is in struct pt_regs. */
#if defined(__TARGET_ARCH_x86)
#define FIRST_ARGUMENT 14 /* di */
#elif defined(__TARGET_ARCH_arm64)
#define FIRST_ARGUMENT 0 /* regs[0] */
#else
#error "this architecture's struct pt_regs is not known: add where it has the first argument"
#endif

/* inet_accept() calls it for the new socket, in the context of the process; so do other protocols, for theirs. */
SEC("kprobe/security_sock_graft")
int accept_graft(__u64 *registers)
{
	__u32 zero = 0;
	struct tcp_tracepoint *at = bpf_map_lookup_elem(&layout, &zero);
	__u64 sk = registers[FIRST_ARGUMENT];
	struct endpoint *known = bpf_map_lookup_elem(&owners, &sk);

	if (at && known)
		set_actor(at, known, TCP_ORIGIN_ACCEPT);
	return 0;
}
