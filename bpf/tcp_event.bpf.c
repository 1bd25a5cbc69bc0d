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

/* Set before the programs are loaded. */
const volatile bool main_is_kprobe = false;
const volatile bool second_look = false; /* at each change of state */
const volatile bool look_at_end = false; /* where a socket fails, and where it is destroyed */

/* Whether another process may be given the CPU while a tracepoint's program runs, and have that skipped (Linux 7.0). */
const volatile bool is_preemptible = false;

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

#define has_registers bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs)

/* Where it does not, user space looks who holds a socket. */
#define hears_let_go true

#include "transition.h"

/*
 * Who the current process is. Calls as few helpers as can be: with the usual mitigations a call costs more than all that it
 * does.
 */
static __always_inline void read_current(struct task_struct *task, __u32 *pid, __u32 *uid, char *comm)
{
	if (can_cast) {
		*uid = task->cred->uid.val;
	} else {
		/* Since Linux 5.11. */
		if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
			read_current_by_helpers(pid, uid, comm);
			*pid = current_process_id();
			return;
		}
		*uid = bpf_get_current_uid_gid();
		task = bpf_get_current_task_btf();
	}
	*pid = pid_namespace ? id_in_namespace(task) : (__u32)task->tgid;
	*(__u64 *)comm = *(__u64 *)task->comm;
	*(__u64 *)(comm + 8) = *(__u64 *)(task->comm + 8);
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

static __always_inline void *new_record(const __u64 size)
{
	void *record = bpf_ringbuf_reserve(&records, size, 0);

	if (!record)
		__sync_fetch_and_add(&lost_records, 1);
	return record;
}

static __always_inline void put_record(void *ctx, void *record, const __u64 size)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	wake();
}

static __always_inline void drop_record(void *record)
{
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

#include "filter.h"

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

/* Called from two programs: a copy in each would make the object half as large again. */
static __noinline int transition_detailed(struct sock *sk, int old_state, int new_state)
{
	return transition(0, sk, old_state, new_state, true, true);
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry, struct sock *sk, int state)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (can_cast)
		transition(ctx, CAST(sock, sk), old_state, state, true, false);
	else
		transition(ctx, sk, old_state, state, false, false);
	set_done(sk, state);
	return 0;
}

SEC("kprobe/tcp_set_state")
int BPF_KPROBE(set_state_entry_detailed, struct sock *sk, int state)
{
	int old_state = BPF_CORE_READ(sk, __sk_common.skc_state);

	transition(ctx, sk, old_state, state, false, true);
	if (!is_left_to_second_look(old_state, state))
		set_done(sk, state);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_tracepoint, struct sock *sk, int old_state, int new_state)
{
	transition(ctx, sk, old_state, new_state, true, false);
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
 * A process lets go of a socket whose connection has been ended by others (tcp_close(), inet_csk_destroy_sock()). Where there is
 * no room for the record, user space looks for itself who holds it.
 */
static __always_inline void report_let_go(struct sock *sk, __u64 close_ns)
{
	struct tcp_let_go *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (record) {
		__builtin_memset(record, 0, sizeof(*record));
		record->close_ns = close_ns;
		if (in_owner_context(sk, false) && !is_in_exec()) {
			read_current(current_task(), &record->pid, &record->uid, record->comm);
			record->by_process = 1;
		}
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
		wake();
	}
	forget_owner(sk);
}

/*
 * A second look. The kernel skips a program that it is running already on the same CPU, and a kprobe for more reasons
 * than that (kprobes.nmissed). What the first look has left undone is seen by the owner's entry, and done here.
 *
 * Where it is not preemptible, the plain program at the tracepoint is skipped in softirq only, over one that a process runs,
 * and a close is all that it can miss: that is seen where the kernel destroys the socket (tcp_destroy_sock), and where it
 * tells of the error that ended the connection (inet_sk_error_report), as it may be long until a process lets go of the
 * socket. One program for both, to be verified once. It reports so rarely that helpers may read what it does. Other programs take
 * it for who lets go of a socket.
 */
SEC("raw_tp")
int close_at_end(__u64 *args)
{
	struct sock *sk = (struct sock *)args[0];
	struct owner known;
	__u8 state;

	state = can_cast ? CAST(sock, sk)->__sk_common.skc_state : BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state != TCP_CLOSE || !copy_owner(&known, sk))
		return 0;
	if (known.has_ended) {
		/* As long as the kernel still tells of an error, the socket is held. */
		if (!socket_of(sk))
			report_let_go(sk, known.birth_ns);
		return 0;
	}
	if (!look_at_end)
		return 0;
	__sync_fetch_and_add(&recovered, 1);
	end_owner(sk, report(0, sk, &known, TCP_CLOSE, false));
	return 0;
}

/* Whether the second look sees a change that was not reported, by fault or on purpose. */
static __always_inline bool is_unreported(const struct owner *known, int old_state, int new_state)
{
	if (known->state == new_state)
		return false;
	if (!is_left_to_second_look(old_state, new_state))
		__sync_fetch_and_add(&recovered, 1);
	return true;
}

/* The others look again at each change, after the main program. */
static __always_inline bool is_undone(struct sock *sk, int old_state, int new_state, const bool detailed)
{
	/* In the context of a process, where a tracepoint's program does not run already unless it was preempted. */
	bool by_process = (main_is_kprobe || is_preemptible) &&
			  (new_state == TCP_SYN_SENT || new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK);
	bool born_passive = new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV;
	struct owner *known;
	__u8 origin;

	/* The kernel calls no tcp_set_state() for it. */
	if (new_state == TCP_LISTEN)
		return detailed && main_is_kprobe;
	if (old_state == new_state || is_done(sk, new_state))
		return false;
	/* Other changes are nothing to the plain programs: they save the look. */
	if (!detailed && new_state != TCP_CLOSE && !born_passive && !by_process)
		return false;
	known = owner_of(sk);
	if (new_state == TCP_CLOSE) {
		/* The entry goes with the close, or says that it was reported. */
		if (!known || known->has_ended)
			return false;
		__sync_fetch_and_add(&recovered, 1);
		return true;
	}
	if (!known)
		return (born_passive || by_process) && speaks_tcp(sk);
	/* What is reported twice is wrong; what is noted twice is not. */
	if (detailed)
		return is_unreported(known, old_state, new_state);
	origin = new_state == TCP_SYN_SENT ? TCP_ORIGIN_CONNECT : TCP_ORIGIN_CLOSE;
	return by_process && (known->origin != origin || known->pid != current_process_id());
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again, struct sock *sk, int old_state, int new_state)
{
	return is_undone(sk, old_state, new_state, false) ? transition(ctx, sk, old_state, new_state, true, false) : 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again_detailed, struct sock *sk, int old_state, int new_state)
{
	return is_undone(sk, old_state, new_state, true) ? transition_detailed(sk, old_state, new_state) : 0;
}

#include "accepts.h"

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
		return CAST(socket, file->private_data)->sk;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/*
 * The file that a process has under a descriptor, or NULL. `in_use`: surely it is one. A pointer among others has
 * no type of its own: it is read as that of a struct socket.
 */
static __always_inline struct file *file_at(struct task_struct *task, __s32 fd, const bool in_use)
{
	struct fdtable *fdt = can_cast ? task->files->fdt : BPF_CORE_READ(task, files, fdt);
	struct file **slots = can_cast ? fdt->fd : BPF_CORE_READ(fdt, fd);
	struct file *file = 0;

	if (fd < 0 || (!in_use && (__u32)fd >= (can_cast ? fdt->max_fds : BPF_CORE_READ(fdt, max_fds))))
		return 0;
	if (can_cast)
		return CAST(socket, (void *)(slots + fd) - bpf_core_field_offset(struct socket, file))->file;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/* accept() and accept4() alike, for kernels that refuse the kprobe. */
SEC("tracepoint/syscalls/sys_exit_accept4")
int accept_syscall(struct sys_exit_context *ctx)
{
	struct task_struct *task;
	struct owner *known;
	struct file *file;
	struct sock *sk;

	if (ctx->ret < 0)
		return 0;
	task = current_task();
	file = file_at(task, ctx->ret, true);
	if (!file)
		return 0;
	sk = sock_of(file);
	known = owner_of(sk);
	if (known)
		set_actor(known, task, TCP_ORIGIN_ACCEPT);
	else if (socket_inode_of(file) && sk)
		accepted_unknown(sk);
	return 0;
}

/* The file that a ring has in one of its slots ("direct descriptors"), or NULL. */
static __always_inline struct file *file_in_ring(struct io_ring_ctx *ring, __u32 slot)
{
	struct io_rsrc_node **nodes, *node = 0;
	struct file *file;

	if (!bpf_core_field_exists(ring->file_table.data.nodes) || slot >= BPF_CORE_READ(ring, file_table.data.nr))
		return 0;
	nodes = BPF_CORE_READ(ring, file_table.data.nodes);
	bpf_probe_read_kernel(&node, sizeof(node), nodes + slot);
	if (!node)
		return 0;
	/* The lowest bits say what can be done with it (FFS_MASK). */
	file = (struct file *)(BPF_CORE_READ(node, file_ptr) & ~3UL);
	return can_cast ? CAST(file, file) : file;
}

/* The current process takes a connection that nobody has claimed, where the file is one. */
static __noinline void claim(struct file *file)
{
	struct owner *known;
	struct sock *sk;

	if (!file || !socket_inode_of(file))
		return;
	sk = sock_of(file);
	if (!sk)
		return;
	known = owner_of(connection_of(sk));
	if (known && known->origin == TCP_ORIGIN_NONE)
		set_actor(known, current_task(), TCP_ORIGIN_ACCEPT);
}

/* include/uapi/linux/io_uring.h */
#define IORING_OP_ACCEPT 13

/*
 * accept through io_uring, likewise. A result that is the number of an open descriptor with an endpoint that nobody
 * has claimed is either just that accept or a coincidence; the descriptor is this process's in both cases. So it is with one
 * of the ring's slots. Of a request that names a slot, the result does not.
 */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(accept_io_uring, struct io_ring_ctx *ring, struct io_kiocb *request, struct io_uring_cqe *cqe)
{
	struct io_accept *accept = (struct io_accept *)request;
	__s32 result = cqe->res;

	if (result < 0)
		return 0;
	claim(file_at(current_task(), result, false));
	claim(file_in_ring(ring, result));
	if (bpf_core_field_exists(accept->file_slot) && BPF_CORE_READ(request, opcode) == IORING_OP_ACCEPT)
		claim(file_in_ring(ring, BPF_CORE_READ(accept, file_slot) - 1));
	return 0;
}

/* Whether a file is an io_uring, by its name. */
static __always_inline bool is_ring(struct file *file)
{
	char name[8] = "";

	bpf_probe_read_kernel(name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	return *(__u64 *)name == *(const __u64 *)"[io_uring]";
}

/*
 * Lists who holds which socket open, and the rings that may hold some. In its first run, endpoints that nobody was seen to act on, as those that are older
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
	if (inode)
		holder.inode = BPF_CORE_READ(inode, i_ino);
	else if (is_ring(file))
		holder.fd = ctx->fd;
	else
		return 0;
	holder.pid = pid_namespace ? id_in_namespace(task) : (__u32)task->tgid;
	if (holder.pid)
		bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	if (!inode || *(volatile __u32 *)&adopted)
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
	if (!known) {
		note_owner(sk, &owner, BPF_ANY);
		forget_if_closed(sk);
	} else if (known->origin == TCP_ORIGIN_NONE) {
		known->pid = owner.pid;
		known->uid = owner.uid;
		__builtin_memcpy(known->comm, owner.comm, sizeof(owner.comm));
		known->origin = TCP_ORIGIN_INODE;
	}
	return 0;
}
