/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Attempts to connect that fail before a SYN: refused by a route, a security module or a cgroup's program, or for want of an address or
 * a port. No state changes, so they are seen where connect returns. Part of tcp_event.bpf.c, and not loaded where nobody asks for it.
 */
#ifndef TCPEVENT_UNSENT_H
#define TCPEVENT_UNSENT_H

#include "accepts.h"
#include "attempts.h"
#include "file.h"
#include "filter.h"
#include "identity.h"
#include "ring_output.h"

/* struct sockaddr_in, or the least of a struct sockaddr_in6 that the kernel takes (SIN6_LEN_RFC2133). */
struct destination {
	__u16 family;
	__be16 port;
	__be32 v4;
	__be32 v6[4];
};

enum { LENGTH_V4 = 16, LENGTH_V6 = sizeof(struct destination) };

/* With the length, where the address is the program's own and not the kernel's copy. */
#define OF_PROGRAM (1ULL << 32)

static __always_inline long read_bytes(void *to, const __u32 bytes, const void *address, __u64 length)
{
	return length & OF_PROGRAM ? bpf_probe_read_user(to, bytes, address)
				   : bpf_probe_read_kernel(to, bytes, address);
}

/* Reads what the program has asked for; without a family where it is none. */
static __always_inline void read_destination(struct destination *to, const void *address, __u64 length)
{
	__s32 bytes = length;
	long err = -1;

	/* As many as can be said beforehand: the verifier wants to know. */
	if (bytes >= LENGTH_V6)
		err = read_bytes(to, LENGTH_V6, address, length);
	else if (bytes >= LENGTH_V4)
		err = read_bytes(to, LENGTH_V4, address, length);
	if (err || (to->family != AF_INET && (to->family != AF_INET6 || bytes < LENGTH_V6)))
		to->family = 0;
}

/* Not of TCP's making, or none yet, or told elsewhere. What is beyond MAX_ERRNO's half is for the kernel itself (ERESTARTSYS). */
static __always_inline bool is_left_out(__s32 err)
{
	return err == EINTR || err == EFAULT || err == EISCONN || err == EALREADY || err == EINPROGRESS ||
	       err >= ERESTARTSYS;
}

static __always_inline bool fits(const struct tcp_detailed_record *record)
{
	const struct tcp_record *plain = &record->plain;

	if (filter.family && plain->family != filter.family)
		return false;
	if (filter.lists & TCP_LIST_LOCAL_PORTS && !has_port(0, plain->local_port))
		return false;
	if (filter.lists & TCP_LIST_REMOTE_PORTS && !has_port(1, plain->remote_port))
		return false;
	if (filter.lists & TCP_LIST_LOCAL_PREFIXES && !is_listed(&local_prefixes, plain->family, plain->local_addr))
		return false;
	if (filter.lists & TCP_LIST_REMOTE_PREFIXES && !is_listed(&remote_prefixes, plain->family, plain->remote_addr))
		return false;
	if (filter.netns && record->netns != filter.netns)
		return false;
	return (!filter.cgroup || record->cgroup == filter.cgroup) && fits_owner(plain);
}

/* The call has dissolved a socket, or has connected it; or it will be connected by what is sent first (TCP_FASTOPEN_CONNECT). */
static __noinline int connect_succeeds(struct sock *holder, __u64 inode)
{
	__u8 *attempt = attempt_of(inode);
	int state = BPF_CORE_READ(holder, __sk_common.skc_state);

	if (state == TCP_CLOSE) {
		struct sock *sk = connection_of(holder);

		if (sk && is_tcp(sk))
			set_attempt(inode, ATTEMPT_NONE);
	} else if (attempt && state != TCP_SYN_SENT) {
		*attempt = ATTEMPT_NONE;
	}
	return 0;
}

/* The ring is there for what the network does, too: who asks for one unreachable address after another gets half of it. */
static __always_inline bool has_room(void)
{
	return bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) < 1 << 19;
}

/* A call that connects a socket returns. `length`: of the address, and whose that is. */
static __noinline int connect_returns(struct socket *socket, const void *address, __u64 length, __s32 result)
{
	struct sock *holder = BPF_CORE_READ(socket, sk), *sk;
	__u64 inode = BPF_CORE_READ(socket, file, f_inode, i_ino);
	struct destination to = {};
	struct tcp_detailed_record *record;
	struct tcp_record *plain;
	__u16 family, unspecified = 1;
	__u8 *attempt;

	if (!holder || result > 0 || is_left_out(-result) || is_kernel_thread(current_task()))
		return 0;
	if (!result)
		return connect_succeeds(holder, inode);
	/* Of a socket that cannot be dissolved (connect to AF_UNSPEC) the attempt goes on. */
	if ((__s32)length >= (__s32)sizeof(unspecified) &&
	    !read_bytes(&unspecified, sizeof(unspecified), address, length) && !unspecified)
		return 0;
	sk = connection_of(holder);
	if (!sk || !is_tcp(sk))
		return 0;
	attempt = attempt_of(inode);
	if (attempt && *attempt == ATTEMPT_TOLD) {
		*attempt = ATTEMPT_NONE;
		return 0;
	}
	/* Another thread has been given the result of the attempt that this one waits for, or has given it up. */
	if (result == -ECONNABORTED || result == -ECONNRESET || result == -EPIPE)
		return 0;
	/* It has sent a SYN at some time: this may be the result of that attempt, older than the probe. */
	if (!attempt && BPF_CORE_READ((struct tcp_sock *)sk, write_seq))
		return 0;
	if (!has_room()) {
		__sync_fetch_and_add(&lost_records, 1);
		return 0;
	}

	record = new_record(sizeof(*record));
	if (!record)
		return 0;
	__builtin_memset(record, 0, sizeof(*record));
	plain = &record->plain;
	read_destination(&to, address, length);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	plain->family = to.family ? to.family : family;
	if (to.family == AF_INET)
		__builtin_memcpy(plain->remote_addr, &to.v4, sizeof(to.v4));
	else if (to.family == AF_INET6)
		__builtin_memcpy(plain->remote_addr, to.v6, sizeof(to.v6));
	if (to.family)
		plain->remote_port = __builtin_bswap16(to.port);
	if (plain->family == family)
		read_address(plain->local_addr, sk, family, false, false);
	plain->local_port = local_port_of((struct tcp_sock *)sk, false);
	plain->time_ns = bpf_ktime_get_ns();
	plain->inode = inode;
	plain->origin = TCP_ORIGIN_CONNECT;
	plain->old_state = TCP_CLOSE;
	read_current(current_task(), &plain->pid, &plain->uid, plain->comm);
	record->cgroup = cgroup_of(sk);
	record->cookie = cookie_of(sk, false);
	record->netns = netns_of(sk);
	record->err = -result;
	record->new_state = TCP_CLOSE;
	record->direction = TCP_DIRECTION_CONNECTED;
	if (fits(record))
		put_record(0, record, sizeof(*record));
	else
		drop_record(record);
	return 0;
}

/* NULL where the file is no socket. */
static __always_inline struct socket *socket_at(struct file *file)
{
	return file && socket_inode_of(file) ? BPF_CORE_READ(file, private_data) : 0;
}

/*
 * int __inet_stream_connect(struct socket *sock, struct sockaddr *uaddr, int addr_len, int flags, int is_sendmsg), with the socket
 * locked: connect, io_uring, and sending with MSG_FASTOPEN. (Some compilers put a copy of __sys_connect_file() into connect.)
 */
SEC("fexit/__inet_stream_connect")
int connect_exit(__u64 *args)
{
	return connect_returns((struct socket *)args[0], (void *)args[1], (__u32)args[2], args[5]);
}

/* int security_socket_connect(struct socket *sock, struct sockaddr *address, int addrlen), which comes before it but for MSG_FASTOPEN. */
SEC("fexit/security_socket_connect")
int connect_refused(__u64 *args)
{
	return (__s32)args[3] < 0 ? connect_returns((struct socket *)args[0], (void *)args[1], (__u32)args[2], args[3])
				  : 0;
}

/* The file of the current process at this place in its table, or NULL. */
static __always_inline struct file *file_at(__u32 fd)
{
	struct fdtable *table = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), files, fdt);
	struct file **files, *file = 0;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file;
}

/* As perf_syscall_exit() of kernel/trace/trace_syscalls.c hands it over. */
struct syscall_exit {
	__u64 registers;
	long number;
	long result;
};

/* Where the kernel has no trampolines: the system call alone, whose arguments are where the process has put them. */
SEC("tracepoint/syscalls/sys_exit_connect")
int connect_syscall_exit(struct syscall_exit *ctx)
{
	struct pt_regs *registers;
	struct socket *socket;

	if (ctx->result > 0 || is_left_out(-ctx->result))
		return 0;
	registers = user_registers();
	if (!registers)
		return 0;
	socket = socket_at(file_at(FIRST_ARGUMENT(registers)));
	if (!socket)
		return 0;
	return connect_returns(socket, (void *)SECOND_ARGUMENT(registers),
			       OF_PROGRAM | (__u32)THIRD_ARGUMENT(registers), ctx->result);
}

#endif
