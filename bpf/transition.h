/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What a change of state means, for whichever hook has seen it: who owns the endpoint from now on, and what is reported.
 * Shared by tcp_event.bpf.c and tcp_event_perf.bpf.c.
 *
 * Before it is included, each of them says what it can do (constants: can_cast and CAST, main_is_kprobe, second_look,
 * look_at_end, has_registers, hears_let_go), where it keeps owners (owner_of(), note_owner(), forget_owner(), end_owner()), and how it reports:
 */
#ifndef TCPEVENT_TRANSITION_H
#define TCPEVENT_TRANSITION_H

/* Who the current process is. */
static __always_inline void read_current(struct task_struct *task, __u32 *pid, __u32 *uid, char *comm);

/* Memory for a record, all of it to be filled; or NULL, which is counted. */
static __always_inline void *new_record(const __u64 size);
static __always_inline void put_record(void *ctx, void *record, const __u64 size);
static __always_inline void drop_record(void *record);

/* What the detailed programs report: closes, or all else. */
static __always_inline bool is_wanted(bool ends, bool has_failed);
static __always_inline bool fits_socket(struct sock *sk, struct tcp_sock *tp, const bool direct);
static __always_inline bool fits_owner(const struct tcp_record *record);

/*
 * Reads a field of a socket: directly where the verifier knows the pointer's type, else through a probe read. Not for
 * fields that are pointers, but after CAST: for each such instruction the verifier looks through the names of all the
 * kernel's types, four times (btf_nested_type_is_trusted), which took a third of the start.
 */
#define FIELD(direct, ptr, field) ((direct) ? (ptr)->field : BPF_CORE_READ(ptr, field))

static __always_inline struct task_struct *current_task(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return can_cast ? CAST(task_struct, task) : task;
}

/* A thread of the kernel's own. */
static __always_inline bool is_kernel_thread(struct task_struct *task)
{
	return (can_cast ? task->flags : BPF_CORE_READ(task, flags)) & PF_KTHREAD;
}

/* Of the current task, as it has entered the kernel; or NULL where they cannot be found. */
static __always_inline struct pt_regs *user_registers(void)
{
	struct pt_regs *registers = 0;

	/* Since Linux 5.15. */
	if (has_registers)
		return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
#if defined(__TARGET_ARCH_x86)
	/* At the end of a stack of 16 KiB (arch/x86/include/asm/page_64_types.h), and so it is where they are of user mode. */
	registers = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), stack) + (16 << 10) - 21 * sizeof(long);
	if ((BPF_CORE_READ(registers, cs) & 3) != 3)
		registers = 0;
#endif
	return registers;
}

/*
 * Whether the current process executes another program. It lets go of files as task work, on its way back to user mode
 * (do_close_on_exec(), ____fput()): it has the other program's name by then, and in_execve is no longer set; but the number of
 * the system call is what it was.
 */
static __always_inline bool is_in_exec(void)
{
	struct pt_regs *registers = user_registers();
	__s32 call;

	if (!registers)
		return false;
#if defined(__TARGET_ARCH_x86)
	call = BPF_CORE_READ(registers, orig_ax);
	/* execve and execveat: of x86-64, of its programs with short pointers, and of 32-bit ones. (Their 11 is munmap elsewhere.) */
	return call == 59 || call == 322 || call == 520 || call == 545 || call == 11 || call == 358;
#else
	call = BPF_CORE_READ(registers, syscallno);
	return call == 221 || call == 281 || call == 11 || call == 387;
#endif
}

/*
 * Whether a process other than the known owner, or the owner under another name, lets go of the socket because it executes a
 * program. That is no act: it may be a child that has just been forked, and has a copy of all that its parent has open.
 */
static __always_inline bool is_let_go_by_exec(const struct owner *known, const struct owner *current)
{
	const __u64 *name = (const __u64 *)known->comm, *other = (const __u64 *)current->comm;

	if (known->origin && known->pid == current->pid && name[0] == other[0] && name[1] == other[1])
		return false;
	return is_in_exec();
}

static __always_inline void set_actor(struct owner *owner, struct task_struct *task, __u8 origin)
{
	read_current(task, &owner->pid, &owner->uid, owner->comm);
	owner->origin = origin;
}

static __always_inline bool is_locked_by_process(struct sock *sk, const bool direct)
{
	return FIELD(direct, sk, sk_lock.owned) != 0;
}

/*
 * True where the current process is in a system call on this very socket: lock_sock() has set sk_lock.owned. Softirq
 * leaves an owned socket alone (the packet goes to its backlog), so the current task is no bystander then. A thread of the
 * kernel is: MPTCP has one end the TCP connections of what a process has closed (mptcp_worker).
 */
static __always_inline bool in_owner_context(struct sock *sk, const bool direct)
{
	return is_locked_by_process(sk, direct) && !is_kernel_thread(current_task());
}

/*
 * False where there is none. What is copied is no pointer that the verifier would follow once for each map that it may be
 * of.
 */
static __always_inline bool copy_owner(struct owner *to, const struct sock *sk)
{
	const struct owner *known = owner_of(sk);

	if (known)
		*to = *known;
	return known;
}

/* NULL where no process holds it. */
static __always_inline struct socket *socket_of(struct sock *sk)
{
	return can_cast ? CAST(sock, sk)->sk_socket : BPF_CORE_READ(sk, sk_socket);
}

/*
 * The error that ends a connection, or 0. sk_err may be what an ICMP message has left there before (IP_RECVERR, and the
 * program has not asked): none of those is one that the kernel ends connections with (icmp_err_convert, tcp_reset,
 * tcp_write_err, tcp_abort). But a time limit ends one with the last such answer (tcp_write_err: sk_err_soft): in a timer,
 * where no process holds the lock, with something that is not acknowledged.
 */
static __always_inline int error_of_end(struct sock *sk, int old_state, const bool direct)
{
	int err = FIELD(direct, sk, sk_err);

	if (!err || err == ECONNRESET || err == EPIPE || err == ETIMEDOUT || err == ECONNABORTED)
		return err;
	/* What answers an attempt ends it at once. */
	if (old_state == TCP_SYN_SENT || old_state == TCP_SYN_RECV)
		return err;
	if (old_state == TCP_LAST_ACK || old_state == TCP_CLOSING || old_state == TCP_FIN_WAIT2) {
		struct tcp_sock *tp = (struct tcp_sock *)sk;

		if (BPF_CORE_READ(tp, snd_una) == BPF_CORE_READ(tp, write_seq))
			return 0;
	}
	return err == FIELD(direct, sk, sk_err_soft) && !is_locked_by_process(sk, direct) ? err : 0;
}

static __always_inline void fill_owner(struct tcp_record *record, struct sock *sk, const struct owner *known,
				       int old_state, int new_state, const bool direct)
{
	bool owned = in_owner_context(sk, direct);
	int err = error_of_end(sk, old_state, direct);
	struct owner current;
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
	if (!current_acts && !known->origin && owned && err != ECONNABORTED)
		current_acts = true;

	/* Of any other change than the last one the owner is known by what it did before, and just now. */
	if (new_state != TCP_CLOSE && known->origin)
		current_acts = false;

	if (current_acts) {
		set_actor(&current, current_task(), new_state == TCP_CLOSE ? TCP_ORIGIN_CLOSE : TCP_ORIGIN_INODE);
		current_acts = !is_let_go_by_exec(known, &current);
	}

	record->birth_ns = known->birth_ns;
	if (current_acts) {
		record->pid = current.pid;
		record->uid = current.uid;
		record->origin = current.origin;
		__builtin_memcpy(record->comm, current.comm, sizeof(record->comm));
	} else if (known->origin) {
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

/*
 * One end's address, 16 bytes in network byte order; an IPv4 address fills the first 4. By words: the compiler would go
 * byte by byte.
 */
static __always_inline void read_address(void *to, struct sock *sk, __u16 family, const bool remote, const bool direct)
{
	struct in6_addr addr = {};
	__be32 *words = to;

	if (family == AF_INET) {
		addr.in6_u.u6_addr32[0] = remote ? FIELD(direct, sk, __sk_common.skc_daddr)
						 : FIELD(direct, sk, __sk_common.skc_rcv_saddr);
	} else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		if (direct)
			addr = remote ? sk->__sk_common.skc_v6_daddr : sk->__sk_common.skc_v6_rcv_saddr;
		else if (remote)
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_daddr);
		else
			BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_rcv_saddr);
	}
	for (int i = 0; i < 4; i++)
		words[i] = addr.in6_u.u6_addr32[i];
}

static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	/* sk_protocol was a bit field before Linux 5.6 (commit bf9765145b85). */
	return (family == AF_INET || family == AF_INET6) &&
	       BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol) == IPPROTO_TCP;
}

/* inet_sock_set_state fires for other protocols too, MPTCP's own sockets among them. tcp_set_state() is TCP's alone. */
static __always_inline bool speaks_tcp(struct sock *sk)
{
	return can_cast ? sk->sk_protocol == IPPROTO_TCP : is_tcp(sk);
}

/* As a tcp_sock, or NULL where it is none. */
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

/*
 * Whether a connection has ended that no process was seen to do anything with, but to take it from a listener. Who has taken it may
 * have passed it on since, as a server does that forks, and be gone.
 */
static __always_inline bool is_of_holder(const struct tcp_record *record)
{
	return hears_let_go && record->inode && record->origin != TCP_ORIGIN_CONNECT &&
	       record->origin != TCP_ORIGIN_CLOSE;
}

/* Reports a close. If it is of one that is held, gives the time of its record; else 0. */
static __always_inline __u64 report(void *ctx, struct sock *sk, const struct owner *known, int old_state,
				    const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);
	struct tcp_record *record;
	__u64 held_ns = 0;

	if (!tp)
		return 0;
	record = new_record(sizeof(*record));
	if (!record)
		return 0;
	fill_plain(record, sk, tp, old_state, direct);
	fill_owner(record, sk, known, old_state, TCP_CLOSE, direct);
	record->inode = 0;
	if (record->origin != TCP_ORIGIN_CONNECT && record->origin != TCP_ORIGIN_CLOSE)
		record->inode = inode_of(sk);
	if (is_of_holder(record)) {
		record->origin |= TCP_ORIGIN_HELD;
		held_ns = record->time_ns;
	}
	put_record(ctx, record, sizeof(*record));
	return held_ns;
}

#include "detailed.h"

static __always_inline bool is_of_mptcp(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp);
}

/*
 * Whether a thread of the kernel acts for a process: it ends what that has closed, or opens another connection of MPTCP
 * beside the first one. Whose that is, is known by other means.
 */
static __always_inline bool acts_for_another(struct task_struct *task, struct sock *sk, int new_state)
{
	return is_kernel_thread(task) && (new_state != TCP_SYN_SENT || is_of_mptcp(sk));
}

/*
 * A connection begins: whatever the address of its socket stood for before is over. Or a process acts on it. The plain
 * programs report no age.
 */
static __always_inline void note_change(struct sock *sk, int new_state, const bool detailed)
{
	bool is_born = new_state == TCP_SYN_SENT || new_state == TCP_ESTABLISHED;
	struct owner *known = owner_of(sk), fresh = {}, *owner = known ? known : &fresh, current;
	struct task_struct *task;
	bool is_taken;

	if (!known && !main_is_kprobe && !speaks_tcp(sk))
		return;
	/*
	 * At a listener. With a struct socket it is in a process's hands already: Fast Open, or a simultaneous open. (The
	 * plain program at the tracepoint leaves nothing of an earlier socket at the same address: see close_at_end().)
	 */
	if (new_state == TCP_ESTABLISHED && (!detailed && look_at_end ? known && !known->has_ended : !!socket_of(sk)))
		return;
	/* A process may have taken it just now, on another processor; MPTCP gives it a struct socket after that only. */
	is_taken = new_state == TCP_ESTABLISHED && owner->origin == TCP_ORIGIN_ACCEPT && !owner->birth_ns;
	if (is_born) {
		owner->birth_ns = detailed ? bpf_ktime_get_ns() : 1;
		owner->established_ns = 0;
		owner->state = 0;
		owner->has_ended = 0;
		owner->direction = new_state == TCP_SYN_SENT ? TCP_DIRECTION_CONNECTED : TCP_DIRECTION_ACCEPTED;
		if (!is_taken)
			owner->origin = TCP_ORIGIN_NONE;
	}
	if (new_state != TCP_ESTABLISHED) {
		task = current_task();
		if (!acts_for_another(task, sk, new_state)) {
			set_actor(&current, task, new_state == TCP_SYN_SENT ? TCP_ORIGIN_CONNECT : TCP_ORIGIN_CLOSE);
			if (!is_born && is_let_go_by_exec(owner, &current))
				return;
			owner->pid = current.pid;
			owner->uid = current.uid;
			owner->origin = current.origin;
			__builtin_memcpy(owner->comm, current.comm, sizeof(owner->comm));
		} else if (!is_born) {
			return;
		}
	}
	if (!known)
		note_owner(sk, &fresh, new_state == TCP_ESTABLISHED ? BPF_NOEXIST : BPF_ANY);
}

static __always_inline int transition(void *ctx, struct sock *sk, int old_state, int new_state, const bool direct,
				      const bool detailed)
{
	struct owner known = {};
	bool is_known = false;
	__u64 held_ns = 0;

	if (new_state == TCP_CLOSE) {
		/* A socket that was closed before changes nothing, and a listener is no connection. */
		if (old_state == TCP_CLOSE || (old_state == TCP_LISTEN && !detailed))
			return 0;
		is_known = copy_owner(&known, sk);
		/* Fast Open, whose handshake has not come to its end: that is what age is counted from. */
		if (old_state == TCP_SYN_RECV && is_known && !known.birth_ns)
			known.birth_ns = detailed ? bpf_ktime_get_ns() : 1;
	} else if (new_state == TCP_SYN_SENT || (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV) ||
		   ((new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) && is_locked_by_process(sk, direct))) {
		note_change(sk, new_state, detailed);
	}
	if (detailed)
		held_ns = report_change(ctx, sk, &known, old_state, new_state, direct);
	else if (new_state == TCP_CLOSE && (old_state != TCP_SYN_RECV || is_end(sk, &known, old_state)))
		held_ns = report(ctx, sk, &known, old_state, direct);
	if (is_known)
		end_owner(sk, held_ns);
	return 0;
}

#endif
