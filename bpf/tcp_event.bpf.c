// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * Reports every TCP endpoint that reaches TCP_CLOSE: who owned it, its addresses and its counters. That is all that the
 * plain programs do, which have no filter. The detailed ones report every change of state, with more, of what fits the
 * filter. User space loads one kind or the other.
 *
 * Two hooks see the same transitions, and user space attaches one of them: a kprobe at the entry of
 * tcp_set_state(), or the typed tracepoint inet_sock_set_state; a second program on the tracepoint does what the first
 * has missed. Beside them, one accept hook records which process took a connection, and an iterator finds the owners
 * of endpoints that are older than the probe.
 *
 * The task on the CPU at TCP_CLOSE is often a bystander, because most endpoints close in softirq. The owner is
 * therefore noted whenever a process acts on the endpoint in its own context, and kept until the close: see owners.h.
 */
#include "core_types.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "tcp_event.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/*
 * Whether any pointer can be given a type, and the types' numbers among the kernel's: what has one is read by plain loads,
 * and not by calls of helpers. Set where the kernel has bpf_rdonly_cast() (Linux 6.2).
 */
const volatile bool can_cast = false;
const volatile __u32 type_of_sock = 0;
const volatile __u32 type_of_tcp_sock = 0;
const volatile __u32 type_of_socket = 0;
const volatile __u32 type_of_file = 0;
const volatile __u32 type_of_task_struct = 0;

/*
 * The kernel's bpf_rdonly_cast(), which costs nothing when it runs. User space makes it of this call when it loads the
 * program (src/probe/instructions.rs): to look it up by name, libbpf would read all of the kernel's types.
 */
#define RDONLY_CAST 0x7fffffff
static void *(*const rdonly_cast)(const void *ptr, __u32 type) = (void *)RDONLY_CAST;

#define CAST(name, ptr) ((struct name *)rdonly_cast(ptr, type_of_##name))

#include "owners.h"
#include "pid_namespace.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} records SEC(".maps");

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

/* Set before the programs are loaded. */
const volatile bool main_is_kprobe = false;
const volatile bool second_look = false; /* at each change of state */
const volatile bool look_at_end = false; /* where a socket fails, and where it is destroyed */
const volatile __u8 wanted = 0;
const volatile struct tcp_filter filter = {};

/* Set by user space before it sleeps, cleared by the first record after that: see wake(). */
__u32 reader_sleeps;

/* Set by user space once the owners of older endpoints are known: from then on `adopt` lists only. */
__u32 adopted;

/*
 * What the main program has done last on each processor. The second look comes right after it, so that it sees without a
 * look at the map that there is nothing left to do.
 */
#define MOST_CPUS 256

struct done {
	__u64 sk;
	__u64 state;
	__u64 pad[6]; /* a cache line each */
};

struct done done[MOST_CPUS];

/* For the statistics: what could not be kept, and what only the second look saw. */
__u64 lost_records;
__u64 recovered;

/*
 * Reads a field of a socket: directly where the verifier knows the pointer's type, else through a probe read. Not for
 * fields that are pointers, but after CAST: for each such instruction the verifier looks through the names of all the
 * kernel's types, four times (btf_nested_type_is_trusted), which took a third of the start.
 */
#define FIELD(direct, ptr, field) ((direct) ? (ptr)->field : BPF_CORE_READ(ptr, field))

/* Calls as few helpers as can be: with the usual mitigations a call costs more than all that it does. */
static __always_inline void read_current(__u32 *pid, __u32 *uid, char *comm)
{
	struct task_struct *task;

	if (can_cast) {
		task = CAST(task_struct, (void *)bpf_get_current_task());
		*uid = task->cred->uid.val;
	} else {
		*uid = bpf_get_current_uid_gid();
		/* Since Linux 5.11. */
		if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
			*pid = current_process_id();
			bpf_get_current_comm(comm, TASK_COMM_LEN);
			return;
		}
		task = bpf_get_current_task_btf();
	}
	*pid = pid_namespace ? id_in_namespace(task) : (__u32)task->tgid;
	*(__u64 *)comm = *(__u64 *)task->comm;
	*(__u64 *)(comm + 8) = *(__u64 *)(task->comm + 8);
}

static __always_inline void set_actor(struct owner *owner, __u8 origin)
{
	read_current(&owner->pid, &owner->uid, owner->comm);
	owner->origin = origin;
}

static __noinline bool is_kernel_thread(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return (can_cast ? CAST(task_struct, task)->flags : BPF_CORE_READ(task, flags)) & PF_KTHREAD;
}

/*
 * True where the current process is in a system call on this very socket: lock_sock() has set sk_lock.owned. Softirq
 * leaves an owned socket alone (the packet goes to its backlog), so the current task is no bystander then. A thread of the
 * kernel is: MPTCP has one end the TCP connections of what a process has closed (mptcp_worker).
 */
static __always_inline bool in_owner_context(struct sock *sk, const bool direct)
{
	return FIELD(direct, sk, sk_lock.owned) != 0 && !is_kernel_thread();
}

/*
 * Wakes the reader if it sleeps. Called after a record is committed: the commit is a full barrier, as is the reader's
 * between setting the flag and its last look at the ring, so either it sees the record or this sees the flag.
 */
static __always_inline void wake(void)
{
	void *nothing;

	if (!*(volatile __u32 *)&reader_sleeps)
		return;
	nothing = bpf_ringbuf_reserve(&records, 8, 0);
	/* Where it cannot be woken now, the next record tries again. */
	if (!nothing)
		return;
	*(volatile __u32 *)&reader_sleeps = 0;
	bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
}

/* NULL where no process holds it. */
static __always_inline struct socket *socket_of(struct sock *sk)
{
	return can_cast ? CAST(sock, sk)->sk_socket : BPF_CORE_READ(sk, sk_socket);
}

static __always_inline void fill_owner(struct tcp_record *record, struct sock *sk, struct owner *known, int old_state,
				       int new_state, const bool direct)
{
	bool owned = in_owner_context(sk, direct);
	int err = FIELD(direct, sk, sk_err);
	bool current_acts;

	/*
	 * The close happens in the context of the process that causes it where the socket is locked by it and bears
	 * no error (close with unread data, with SO_LINGER 0, a disconnect), or where the connection was never
	 * accepted and its listener is being closed (inet_csk_listen_stop: no struct socket, no error yet).
	 */
	current_acts = owned && !err;
	if (!owned && !err && new_state == TCP_CLOSE && (old_state == TCP_ESTABLISHED || old_state == TCP_CLOSE_WAIT))
		current_acts = !socket_of(sk);
	/* A reader that processes its backlog is a process of the endpoint too; one that aborts it (ss -K) is not. */
	if (!current_acts && !(known && known->origin) && owned && err != ECONNABORTED)
		current_acts = true;

	/* Of any other change than the last one the owner is known by what it did before, and just now. */
	if (new_state != TCP_CLOSE && known && known->origin)
		current_acts = false;

	record->birth_ns = known ? known->birth_ns : 0;
	if (current_acts) {
		read_current(&record->pid, &record->uid, record->comm);
		record->origin = new_state == TCP_CLOSE ? TCP_ORIGIN_CLOSE : TCP_ORIGIN_INODE;
	} else if (known && known->origin) {
		record->pid = known->pid;
		record->uid = known->uid;
		record->origin = known->origin;
		__builtin_memcpy(record->comm, known->comm, sizeof(record->comm));
	} else {
		record->pid = 0;
		record->uid = FIELD(direct, sk, sk_uid.val);
		record->origin = TCP_ORIGIN_NONE;
		__builtin_memset(record->comm, 0, sizeof(record->comm));
	}
}

/* 0 where no process holds the socket. (A read from nowhere gives 0.) */
static __always_inline __u64 inode_of(struct sock *sk)
{
	struct socket *socket = socket_of(sk);

	if (!socket)
		return 0;
	return can_cast ? socket->file->f_inode->i_ino : BPF_CORE_READ(socket, file, f_inode, i_ino);
}

/* One end's address, 16 bytes in network byte order; an IPv4 address fills the first 4. */
static __always_inline void read_address(__u8 *to, struct sock *sk, __u16 family, const bool remote, const bool direct)
{
	struct in6_addr addr;

	__builtin_memset(to, 0, 16);
	if (family == AF_INET) {
		*(__be32 *)to = remote ? FIELD(direct, sk, __sk_common.skc_daddr)
				       : FIELD(direct, sk, __sk_common.skc_rcv_saddr);
	} else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		if (direct)
			addr = remote ? sk->__sk_common.skc_v6_daddr : sk->__sk_common.skc_v6_rcv_saddr;
		else if (remote)
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_daddr);
		else
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_rcv_saddr);
		__builtin_memcpy(to, &addr, sizeof(addr));
	}
}

static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	/* sk_protocol was a bit field before Linux 5.6 (commit bf9765145b85). */
	return (family == AF_INET || family == AF_INET6) &&
	       BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) == IPPROTO_TCP;
}

/* As a tcp_sock, or NULL where it is none: inet_sock_set_state fires for other protocols too, MPTCP's own sockets among them. */
static __always_inline struct tcp_sock *tcp_of(struct sock *sk, const bool direct)
{
	__u16 family = FIELD(direct, sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (can_cast)
		return FIELD(direct, sk, sk_protocol) == IPPROTO_TCP ? CAST(tcp_sock, sk) : 0;
	if (direct)
		return bpf_skc_to_tcp_sock(sk);
	return is_tcp(sk) ? (struct tcp_sock *)sk : 0;
}

/* Not skc_num: before the tracepoint fires, inet_put_port() has cleared that one. */
static __always_inline __u16 local_port_of(struct tcp_sock *tp, const bool direct)
{
	return __builtin_bswap16(FIELD(direct, tp, inet_conn.icsk_inet.inet_sport));
}

static __always_inline __u16 remote_port_of(struct sock *sk, const bool direct)
{
	return __builtin_bswap16(FIELD(direct, sk, __sk_common.skc_dport));
}

/* All but the owner. */
static __always_inline void fill_plain(struct tcp_record *record, struct sock *sk, struct tcp_sock *tp, int old_state,
				       const bool direct)
{
	record->time_ns = bpf_ktime_get_ns();
	record->bytes_received = FIELD(direct, tp, bytes_received);
	record->bytes_acked = FIELD(direct, tp, bytes_acked);
	record->data_segs_out = FIELD(direct, tp, data_segs_out);
	record->data_segs_in = FIELD(direct, tp, data_segs_in);
	record->family = FIELD(direct, sk, __sk_common.skc_family);
	record->local_port = local_port_of(tp, direct);
	record->remote_port = remote_port_of(sk, direct);
	record->old_state = old_state;
	read_address(record->local_addr, sk, record->family, false, direct);
	read_address(record->remote_addr, sk, record->family, true, direct);
}

static __always_inline void report(struct sock *sk, struct owner *known, int old_state, const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);
	struct tcp_record *record;

	if (!tp)
		return;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&lost_records, 1);
		return;
	}
	fill_plain(record, sk, tp, old_state, direct);
	fill_owner(record, sk, known, old_state, TCP_CLOSE, direct);
	record->inode = record->origin == TCP_ORIGIN_NONE ? inode_of(sk) : 0;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	wake();
}

#include "detailed.h"

static __always_inline void set_done(struct sock *sk, int new_state)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (cpu < MOST_CPUS) {
		done[cpu].sk = (__u64)sk;
		done[cpu].state = new_state;
	}
}

/* For once: the same socket may come to the same state again, in another life. */
static __always_inline bool is_done(struct sock *sk, int new_state)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (cpu >= MOST_CPUS || done[cpu].sk != (__u64)sk || done[cpu].state != (__u64)new_state)
		return false;
	done[cpu].sk = 0;
	return true;
}

/* One that MPTCP opens beside the first one: it is of whoever holds that, and not of the thread that does it. */
static __noinline bool is_joined_by_kernel(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && is_kernel_thread() &&
	       BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp);
}

/*
 * A connection begins: whatever the address of its socket stood for before is over. Or a process acts on it. The plain
 * programs report no age.
 */
static __always_inline void note_change(struct sock *sk, int new_state, const bool detailed)
{
	bool is_born = new_state == TCP_SYN_SENT || new_state == TCP_ESTABLISHED;
	struct owner *known = owner_of(sk), fresh = {}, *owner = known ? known : &fresh;

	/*
	 * At a listener. With a struct socket it is in a process's hands already: Fast Open, or a simultaneous open. (The
	 * plain program at the tracepoint leaves nothing of an earlier socket at the same address: see left_over().)
	 */
	if (new_state == TCP_ESTABLISHED && (!detailed && look_at_end ? !!known : !!socket_of(sk)))
		return;
	if (is_born) {
		owner->birth_ns = detailed ? bpf_ktime_get_ns() : 1;
		owner->established_ns = 0;
		owner->state = 0;
		owner->direction = new_state == TCP_SYN_SENT ? TCP_DIRECTION_CONNECTED : TCP_DIRECTION_ACCEPTED;
		owner->origin = TCP_ORIGIN_NONE;
	}
	if (new_state != TCP_ESTABLISHED && !(new_state == TCP_SYN_SENT && is_joined_by_kernel(sk)))
		set_actor(owner, new_state == TCP_SYN_SENT ? TCP_ORIGIN_CONNECT : TCP_ORIGIN_CLOSE);
	if (!known)
		note_owner(sk, &fresh, new_state == TCP_ESTABLISHED ? BPF_NOEXIST : BPF_ANY);
}

static __always_inline int transition(struct sock *sk, int old_state, int new_state, const bool direct,
				      const bool detailed)
{
	struct owner *known = 0;

	if (new_state == TCP_CLOSE) {
		/* A socket that was closed before changes nothing, and a listener is no connection. */
		if (old_state == TCP_CLOSE || (old_state == TCP_LISTEN && !detailed))
			return 0;
		known = owner_of(sk);
	} else if (new_state == TCP_SYN_SENT || (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV) ||
		   ((new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) && in_owner_context(sk, direct))) {
		note_change(sk, new_state, detailed);
	}
	if (detailed)
		report_change(sk, known, old_state, new_state, direct);
	/* A handshake that was aborted before it was complete is no connection yet. */
	else if (new_state == TCP_CLOSE && old_state != TCP_SYN_RECV)
		report(sk, known, old_state, direct);
	if (new_state == TCP_CLOSE && known)
		forget_owner(sk);
	return 0;
}

/* Called from two programs: a copy in each would make the object half as large again. */
static __noinline int transition_detailed(struct sock *sk, int old_state, int new_state)
{
	return transition(sk, old_state, new_state, true, true);
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry, struct sock *sk, int state)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (can_cast)
		transition(CAST(sock, sk), old_state, state, true, false);
	else
		transition(sk, old_state, state, false, false);
	set_done(sk, state);
	return 0;
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry_detailed, struct sock *sk, int state)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	transition(sk, old_state, state, false, true);
	if (!is_left_to_second_look(old_state, state))
		set_done(sk, state);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_tracepoint, struct sock *sk, int old_state, int new_state)
{
	transition(sk, old_state, new_state, true, false);
	if (second_look)
		set_done(sk, new_state);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_tracepoint_detailed, struct sock *sk, int old_state, int new_state)
{
	transition_detailed(sk, old_state, new_state);
	set_done(sk, new_state);
	return 0;
}

/*
 * A second look. The kernel skips a program that it is running already on the same CPU, and a kprobe for more reasons
 * than that (kprobes.nmissed). What the first look has left undone is seen by the owner's entry, and done here.
 *
 * The plain program at the tracepoint is skipped in softirq only, over one that a process runs, and a close is all that it
 * can miss: that is seen where the kernel tells of the error that ended the connection, and where it destroys the socket.
 */
static __always_inline int left_over(struct sock *sk)
{
	struct owner *known;

	if (sk->__sk_common.skc_state != TCP_CLOSE)
		return 0;
	known = owner_of(sk);
	if (!known)
		return 0;
	__sync_fetch_and_add(&recovered, 1);
	report(sk, known, TCP_CLOSE, true);
	forget_owner(sk);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(close_at_destroy, struct sock *sk)
{
	return left_over(sk);
}

/* Of a socket that a process holds: it may be long until that is destroyed. */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(close_at_error, struct sock *sk)
{
	return left_over(sk);
}

/* The others look again at each change, after the main program. */
static __always_inline bool is_undone(struct sock *sk, int old_state, int new_state, const bool detailed)
{
	/* In the context of a process, where a tracepoint's program does not run already. */
	bool by_process = new_state == TCP_SYN_SENT || new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK;
	bool born_passive = new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV;
	struct owner *known;
	__u8 origin;

	/* The kernel calls no tcp_set_state() for it. */
	if (new_state == TCP_LISTEN)
		return detailed && main_is_kprobe;
	if (old_state == new_state || is_done(sk, new_state))
		return false;
	/* Other changes are nothing to the plain programs: they save the look. */
	if (!detailed && new_state != TCP_CLOSE && !born_passive && !(by_process && main_is_kprobe))
		return false;
	known = owner_of(sk);
	if (new_state == TCP_CLOSE) {
		/* The entry goes with the close. */
		if (!known)
			return false;
		__sync_fetch_and_add(&recovered, 1);
		return true;
	}
	if (born_passive && !known)
		return true;
	if (by_process && main_is_kprobe) {
		origin = new_state == TCP_SYN_SENT ? TCP_ORIGIN_CONNECT : TCP_ORIGIN_CLOSE;
		if (!known || known->origin != origin || known->pid != current_process_id())
			return true;
	}
	return detailed && known && is_unreported(known, old_state, new_state);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again, struct sock *sk, int old_state, int new_state)
{
	return is_undone(sk, old_state, new_state, false) ? transition(sk, old_state, new_state, true, false) : 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again_detailed, struct sock *sk, int old_state, int new_state)
{
	return is_undone(sk, old_state, new_state, true) ? transition_detailed(sk, old_state, new_state) : 0;
}

/* It may have closed meanwhile, before the entry was there to be deleted. */
static __always_inline void forget_if_closed(struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		forget_owner(sk);
}

/*
 * The TCP connection that a process holds by a socket of MPTCP: the first one, which is there from the handshake on. Of any
 * other socket, that itself.
 */
static __noinline struct sock *connection_of(struct sock *sk)
{
	struct mptcp_sock *msk = (struct mptcp_sock *)sk;

	/* sk_protocol is no bit field where there is MPTCP. */
	if (!bpf_core_field_exists(msk->first) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_MPTCP)
		return sk;
	return BPF_CORE_READ(msk, first);
}

/*
 * The current process has taken a connection that is not known from a listener: it is older than the probe, or was missed;
 * or it is MPTCP's.
 */
static __always_inline void accepted_unknown(struct sock *taken)
{
	struct owner owner = {.direction = TCP_DIRECTION_ACCEPTED}, *known;
	struct sock *sk = connection_of(taken);

	/* Reset while it waited to be accepted: its close is reported, nothing will take the entry away again. */
	if (!sk || !is_tcp(sk) || BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		return;
	known = sk == taken ? 0 : owner_of(sk);
	if (known) {
		set_actor(known, TCP_ORIGIN_ACCEPT);
		return;
	}
	set_actor(&owner, TCP_ORIGIN_ACCEPT);
	note_owner(sk, &owner, BPF_ANY);
	forget_if_closed(sk);
}

/*
 * inet_accept() calls it for the new socket, in the context of the process. Not a kretprobe on inet_csk_accept(): one
 * is taken for as long as a process waits there, and the kernel has few of them (kretprobe.maxactive) for all the
 * servers of a host.
 */
SEC("kprobe/security_sock_graft")
int BPF_KPROBE(accept_graft, struct sock *sk)
{
	struct owner *known;

	if (!sk)
		return 0;
	known = owner_of(sk);
	/* What is known need not be looked at: it is a TCP socket, and not closed. */
	if (known)
		set_actor(known, TCP_ORIGIN_ACCEPT);
	else
		accepted_unknown(sk);
	return 0;
}

/* The inode of a file that is a socket, or NULL. */
static __always_inline struct inode *socket_inode_of(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	return inode && (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFSOCK ? inode : 0;
}

/* The protocol's socket behind a file that is a socket. Of any other file it is no socket of ours, or not to be read. */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *socket;

	if (can_cast)
		return CAST(socket, CAST(file, file)->private_data)->sk;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* The file that the current process has under a descriptor, or NULL. `in_use`: surely it is one. */
static __always_inline struct file *file_at(__s32 fd, const bool in_use)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *fdt = can_cast ? CAST(task_struct, task)->files->fdt : BPF_CORE_READ(task, files, fdt);
	struct file **slots = can_cast ? fdt->fd : BPF_CORE_READ(fdt, fd);
	struct file *file = 0;

	if (fd < 0 || (!in_use && (__u32)fd >= (can_cast ? fdt->max_fds : BPF_CORE_READ(fdt, max_fds))))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/* accept() and accept4() alike, for kernels that refuse the kprobe. */
SEC("tracepoint/syscalls/sys_exit_accept4")
int accept_syscall(struct sys_exit_context *ctx)
{
	struct file *file = ctx->ret < 0 ? 0 : file_at(ctx->ret, true);
	struct owner *known;
	struct sock *sk;

	if (!file)
		return 0;
	sk = sock_of(file);
	known = owner_of(sk);
	if (known)
		set_actor(known, TCP_ORIGIN_ACCEPT);
	else if (socket_inode_of(file) && sk)
		accepted_unknown(sk);
	return 0;
}

/*
 * accept through io_uring, likewise. A result that is the number of an open descriptor with an endpoint that nobody
 * has claimed is either just that accept or a coincidence; the descriptor is this process's in both cases.
 */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(accept_io_uring, void *ring, void *request, struct io_uring_cqe *cqe)
{
	struct file *file = file_at(cqe->res, false);
	struct owner *known;
	struct sock *sk;

	if (!file || !socket_inode_of(file))
		return 0;
	sk = sock_of(file);
	if (!sk)
		return 0;
	known = owner_of(connection_of(sk));
	if (known && known->origin == TCP_ORIGIN_NONE)
		set_actor(known, TCP_ORIGIN_ACCEPT);
	return 0;
}

/*
 * Lists who holds which socket open. In its first run, endpoints that nobody was seen to act on, as those that are older
 * than the probe, get their holder for an owner, until somebody does.
 */
SEC("iter/task_file")
int adopt(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner owner = {}, *known;
	struct tcp_holder holder = {};
	struct inode *inode;
	struct sock *sk;
	int state;

	if (!task || !file)
		return 0;
	inode = socket_inode_of(file);
	if (!inode)
		return 0;
	holder.inode = BPF_CORE_READ(inode, i_ino);
	holder.pid = pid_namespace ? id_in_namespace(task) : (__u32)task->tgid;
	if (holder.pid)
		bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	if (*(volatile __u32 *)&adopted)
		return 0;
	sk = sock_of(file);
	if (sk)
		sk = connection_of(sk);
	if (!sk || !is_tcp(sk))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_LISTEN || state == TCP_CLOSE)
		return 0;
	owner.pid = holder.pid;
	owner.uid = BPF_CORE_READ(task, cred, uid.val);
	owner.origin = TCP_ORIGIN_INODE;
	BPF_CORE_READ_STR_INTO(&owner.comm, task, group_leader, comm);
	known = owner_of(sk);
	if (known && known->origin != TCP_ORIGIN_NONE)
		return 0;
	if (known)
		owner.birth_ns = known->birth_ns;
	note_owner(sk, &owner, BPF_ANY);
	forget_if_closed(sk);
	return 0;
}
