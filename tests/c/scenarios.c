/*
 * Connections between its own processes, each with an owner that is hard to determine.
 *
 *   scenarios NAME COUNT
 *
 * For each endpoint it prints "truth LOCAL-PORT REMOTE-PORT PID UID COMM": the last process that acts on it in its own
 * context (connect, accept, shutdown, close, exit). That process prints the line itself, before its last act.
 *
 * Environment: SERVER_ADDR, where the server listens (127.0.0.1); SERVER_NS and CLIENT_NS, network namespaces by name;
 * BLACKHOLE_ADDR, an address that never answers; PROTOCOL, "mptcp" for MPTCP connections.
 *
 * Prints "unsupported" if the kernel cannot do a scenario.
 *
 * The scenarios "adopted-client" and "adopted-server" print "ready" once all connections are open, "waiting-server"
 * once all servers wait for one, and go on after a line on stdin.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CLIENT_UID = 1002, SERVER_UID = 1001 };

/* A worker has the user of the server that forked it. */
#define SAME_UID ((uid_t)-1)

static void die(const char *what)
{
	fprintf(stderr, "scenarios: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static int must(long result, const char *what)
{
	if (result < 0)
		die(what);
	return (int)result;
}

#define MUST(call) must((call), #call)

/* Between the two processes of a connection: one byte says "now". */
static void say(int sync)
{
	if (write(sync, "x", 1) != 1)
		die("say");
}

static void hear(int sync)
{
	char byte;

	if (read(sync, &byte, 1) < 0)
		die("hear");
}

static void become(const char *name, uid_t uid, const char *namespace)
{
	char path[256];

	if (namespace && *namespace) {
		int ns;

		snprintf(path, sizeof(path), "/run/netns/%s", namespace);
		ns = MUST(open(path, O_RDONLY | O_CLOEXEC));
		MUST(setns(ns, CLONE_NEWNET));
		close(ns);
	}
	MUST(prctl(PR_SET_NAME, name));
	MUST(setresuid(uid, uid, uid));
}

static void tell_truth(unsigned local, unsigned remote)
{
	char comm[17] = "", line[128];
	int length;

	prctl(PR_GET_NAME, comm);
	length = snprintf(line, sizeof(line), "truth %u %u %d %d %s\n", local, remote, getpid(), geteuid(), comm);
	if (write(STDOUT_FILENO, line, length) != length)
		die("tell_truth");
}

static unsigned port_of(int (*get)(int, struct sockaddr *, socklen_t *), int fd)
{
	struct sockaddr_in6 address;
	socklen_t length = sizeof(address);

	MUST(get(fd, (struct sockaddr *)&address, &length));
	return ntohs(address.sin6_port); /* at the same offset in both families */
}

static void own(int fd)
{
	tell_truth(port_of(getsockname, fd), port_of(getpeername, fd));
}

static socklen_t make_address(struct sockaddr_storage *to, const char *text, unsigned port)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1)
		die(text);
	return sizeof(*v6);
}

static const char *setting(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value && *value ? value : otherwise;
}

static const char *server_address(void)
{
	return setting("SERVER_ADDR", "127.0.0.1");
}

static void give_up_unsupported(void)
{
	puts("unsupported");
	fflush(stdout);
	_exit(0);
}

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int make_socket(int family)
{
	int is_mptcp = !strcmp(setting("PROTOCOL", ""), "mptcp");
	int fd = socket(family, SOCK_STREAM, is_mptcp ? IPPROTO_MPTCP : 0);

	if (fd < 0 && is_mptcp)
		give_up_unsupported();
	return MUST(fd);
}

/* linux/tcp.h: since Linux 6.7 */
#ifndef TCP_IS_MPTCP
#define TCP_IS_MPTCP 43
#endif

/* MPTCP fallen back to TCP would test nothing. */
static void check_protocol(int fd)
{
	int is_mptcp = 1;
	socklen_t length = sizeof(is_mptcp);

	if (!strcmp(setting("PROTOCOL", ""), "mptcp") &&
	    !getsockopt(fd, IPPROTO_TCP, TCP_IS_MPTCP, &is_mptcp, &length) && !is_mptcp)
		die("it has fallen back to TCP");
}

static int bind_server(unsigned port, int option, int value)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(&address, server_address(), port);
	int fd = make_socket(address.ss_family);

	if (option)
		MUST(setsockopt(fd, SOL_SOCKET, option, &value, sizeof(value)));
	MUST(bind(fd, (struct sockaddr *)&address, length));
	return fd;
}

static void tell_port(int sync, int fd)
{
	unsigned port = port_of(getsockname, fd);

	if (write(sync, &port, sizeof(port)) != sizeof(port))
		die("tell_port");
}

/* Listens, and sends the client the address. */
static int listen_for(int sync)
{
	int fd = bind_server(0, 0, 0);

	MUST(listen(fd, 8));
	tell_port(sync, fd);
	return fd;
}

static int take(int listener)
{
	return MUST(accept(listener, NULL, NULL));
}

static unsigned hear_port(int sync)
{
	unsigned port;

	if (read(sync, &port, sizeof(port)) != sizeof(port))
		die("hear_port");
	return port;
}

static int dial_port(unsigned port)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(&address, server_address(), port);
	int fd = make_socket(address.ss_family);

	MUST(connect(fd, (struct sockaddr *)&address, length));
	check_protocol(fd);
	return fd;
}

static int dial(int sync)
{
	return dial_port(hear_port(sync));
}

static void reset(int fd)
{
	struct linger linger = {1, 0};

	MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	close(fd);
}

static void read_to_end(int fd)
{
	char buffer[256];

	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
}

static void put(int fd, const char *text)
{
	if (write(fd, text, strlen(text)) < 0)
		die("put");
}

/* The passive end of an orderly close. */
static void close_after_peer(int fd)
{
	read_to_end(fd);
	close(fd);
}

/* Bodies that many scenarios share. Each runs in a process of its own and gets the sync socket. */

static void client_closes_after_peer(int sync)
{
	int fd = dial(sync);

	own(fd);
	close_after_peer(fd);
}

static void server_closes_after_peer(int sync)
{
	int fd = take(listen_for(sync));

	own(fd);
	close_after_peer(fd);
}

static void client_closes(int sync)
{
	int fd = dial(sync);

	put(fd, "request");
	own(fd);
	close(fd);
}

static void server_closes(int sync)
{
	int fd = take(listen_for(sync));

	put(fd, "reply");
	own(fd);
	close(fd);
}

/* Connects, and then does nothing: what happens to the endpoint comes from the other side. */
static void client_idles(int sync)
{
	int fd = dial(sync);

	own(fd);
	say(sync);
	hear(sync);
}

static void server_idles(int sync)
{
	int fd = take(listen_for(sync));

	own(fd);
	say(sync);
	hear(sync);
}

static void client_resets_port(int sync, unsigned port)
{
	int fd = dial_port(port);

	own(fd);
	hear(sync);
	reset(fd);
	say(sync);
}

static void client_resets(int sync)
{
	client_resets_port(sync, hear_port(sync));
}

/* The other side holds its end for some time. */
static void client_resets_slowly(int sync)
{
	int fd = dial(sync);

	own(fd);
	hear(sync);
	reset(fd);
	usleep(50000);
	say(sync);
}

static void server_resets(int sync)
{
	int fd = take(listen_for(sync));

	own(fd);
	hear(sync);
	reset(fd);
	say(sync);
}

static void client_is_killed(int sync)
{
	own(dial(sync));
	kill(getpid(), SIGKILL);
}

static void server_is_killed(int sync)
{
	own(take(listen_for(sync)));
	kill(getpid(), SIGKILL);
}

/* Forked before there is a connection. */
static void prefork_server(int sync)
{
	int listener = listen_for(sync);

	if (MUST(fork()) == 0) {
		int fd;

		become("t-worker", SAME_UID, NULL);
		fd = take(listener);
		own(fd);
		close(fd);
		_exit(0);
	}
	wait(NULL);
}

static void forking_server(int sync)
{
	int fd = take(listen_for(sync));

	if (MUST(fork()) == 0) {
		become("t-child", SAME_UID, NULL);
		put(fd, "reply");
		own(fd);
		/* The parent's copy must be gone before this one, as in such servers. */
		hear(sync);
		close(fd);
		_exit(0);
	}
	close(fd);
	say(sync);
	wait(NULL);
}

static void client_of_forking_server(int sync)
{
	int fd = dial(sync);

	own(fd);
	hear(sync);
	say(sync);
	close_after_peer(fd);
}

static void send_descriptor(int channel, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec byte = {"x", 1};
	struct msghdr message = {
		.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *header;

	memset(&control, 0, sizeof(control));
	header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	MUST(sendmsg(channel, &message, 0));
}

static int receive_descriptor(int channel)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char byte;
	struct iovec place = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &place, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int fd;

	MUST(recvmsg(channel, &message, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

static void passing_server(int sync)
{
	int channel[2], fd;

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel));
	if (MUST(fork()) == 0) {
		become("t-receiver", SAME_UID, NULL);
		fd = receive_descriptor(channel[1]);
		put(fd, "reply");
		own(fd);
		hear(channel[1]);
		close(fd);
		_exit(0);
	}
	fd = take(listen_for(sync));
	send_descriptor(channel[0], fd);
	close(fd);
	say(channel[0]);
	wait(NULL);
}

/* Holds a connection that its peer resets, and lets go of it once it sees the reset, or not. */
static void hold(int fd, int sync, int lets_go)
{
	own(fd);
	say(sync);
	if (lets_go)
		close_after_peer(fd);
	hear(sync);
}

/* The child never touches it before the reset, but is the one that holds it then. */
static void fork_and_hold(int sync, int lets_go)
{
	int fd = take(listen_for(sync)), closed[2];

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, closed));
	if (MUST(fork()) == 0) {
		become("t-child", SAME_UID, NULL);
		hear(closed[1]);
		hold(fd, sync, lets_go);
		_exit(0);
	}
	close(fd);
	say(closed[0]);
	wait(NULL);
}

static void forked_child_holds(int sync)
{
	fork_and_hold(sync, 0);
}

static void forked_child_lets_go(int sync)
{
	fork_and_hold(sync, 1);
}

/* The process that accepted it is gone when it is reset. */
static void pass_and_exit(int sync, int lets_go)
{
	int channel[2], fd;
	pid_t accepter;

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel));
	accepter = MUST(fork());
	if (accepter == 0) {
		become("t-accepter", SAME_UID, NULL);
		fd = take(listen_for(sync));
		send_descriptor(channel[0], fd);
		_exit(0);
	}
	fd = receive_descriptor(channel[1]);
	waitpid(accepter, NULL, 0);
	hold(fd, sync, lets_go);
}

static void receiver_holds(int sync)
{
	pass_and_exit(sync, 0);
}

static void receiver_lets_go(int sync)
{
	pass_and_exit(sync, 1);
}

/* The child has a copy, and so has the process that accepted it: that one is the owner. */
static void accepter_holds(int sync)
{
	int fd = take(listen_for(sync));
	pid_t child = MUST(fork());

	if (child == 0) {
		become("t-child", SAME_UID, NULL);
		pause();
	}
	own(fd);
	say(sync);
	hear(sync);
	/* The last copy. */
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void half_closing_server(int sync)
{
	int fd = take(listen_for(sync));

	put(fd, "reply");
	own(fd);
	MUST(shutdown(fd, SHUT_WR));
	close_after_peer(fd);
}

static void client_writes_after_eof(int sync)
{
	int fd = dial(sync);

	read_to_end(fd);
	put(fd, "late");
	own(fd);
	close(fd);
}

static int bind_client(int family, struct sockaddr_storage *address, const char *text)
{
	int fd = MUST(socket(family, SOCK_STREAM, 0));
	socklen_t length = make_address(address, text, 0);

	MUST(bind(fd, (struct sockaddr *)address, length));
	return fd;
}

static void client_is_refused(int sync)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(&address, server_address(), hear_port(sync));
	int fd = bind_client(address.ss_family, &(struct sockaddr_storage){0},
			     setting("CLIENT_ADDR", server_address()));

	tell_truth(port_of(getsockname, fd), ntohs(((struct sockaddr_in6 *)&address)->sin6_port));
	if (connect(fd, (struct sockaddr *)&address, length) == 0 || errno != ECONNREFUSED)
		die("a refusal was expected");
}

static void server_is_not_there(int sync)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(&address, server_address(), 0);
	int fd = MUST(socket(address.ss_family, SOCK_STREAM, 0));
	unsigned port;

	/* Bound, but not listening: this reserves the port. */
	MUST(bind(fd, (struct sockaddr *)&address, length));
	port = port_of(getsockname, fd);
	if (write(sync, &port, sizeof(port)) != sizeof(port))
		die("server_is_not_there");
	hear(sync);
}

static void client_times_out(int sync)
{
	struct sockaddr_storage address, local;
	socklen_t length = make_address(&address, setting("BLACKHOLE_ADDR", "192.0.2.1"), 9);
	int fd = MUST(socket(address.ss_family, SOCK_STREAM, 0));
	int one_retry = 1;
	unsigned patience_ms = 300;

	(void)sync;
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &one_retry, sizeof(one_retry)));
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof(patience_ms)));
	length = make_address(&local, setting("CLIENT_ADDR", "0.0.0.0"), 0);
	MUST(bind(fd, (struct sockaddr *)&local, length));
	tell_truth(port_of(getsockname, fd), 9);
	length = make_address(&address, setting("BLACKHOLE_ADDR", "192.0.2.1"), 9);
	if (connect(fd, (struct sockaddr *)&address, length) == 0 || errno != ETIMEDOUT)
		die("a time-out was expected");
}

static void nobody(int sync)
{
	(void)sync;
}

static void client_is_never_accepted(int sync)
{
	int fd = dial(sync);
	unsigned port = port_of(getsockname, fd);

	own(fd);
	if (write(sync, &port, sizeof(port)) != sizeof(port))
		die("client_is_never_accepted");
	read_to_end(fd);
	hear(sync);
}

static void server_never_accepts(int sync)
{
	int listener = listen_for(sync);
	unsigned port = hear_port(sync);

	tell_truth(port_of(getsockname, listener), port);
	close(listener);
	say(sync);
}

static void *dial_in_thread(void *sync)
{
	int *fd = malloc(sizeof(*fd));

	prctl(PR_SET_NAME, "t-thread");
	*fd = dial(*(int *)sync);
	own(*fd);
	return fd;
}

static void thread_connects(int sync)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, dial_in_thread, &sync) || pthread_join(thread, NULL))
		die("thread");
	say(sync);
	hear(sync);
}

static void client_exits(int sync)
{
	int fd = dial(sync);

	put(fd, "request");
	own(fd);
}

/* Waits until the client's process is gone, and its end of the sync socket with it. */
static void server_closes_late(int sync)
{
	int fd = take(listen_for(sync));
	char byte;

	own(fd);
	while (read(sync, &byte, 1) > 0)
		;
	usleep(20000);
	close(fd);
}

/* The connecting process is gone; a child of it has the socket, and never touches it. */
static void client_leaves_a_child(int sync)
{
	int fd = dial(sync);

	own(fd);
	if (MUST(fork()) == 0) {
		prctl(PR_SET_NAME, "t-heir");
		usleep(5000);
		say(sync);
		hear(sync);
		_exit(0);
	}
}

/*
 * A child that was just forked executes another program, which closes its copy of the socket, and so the socket: it has
 * never touched that.
 */
static void leave_to_exec(int fd, int linger)
{
	struct linger none = {1, 0};
	int closed[2];
	pid_t child;

	MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
	if (linger)
		MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none)));
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, closed));
	own(fd);
	child = MUST(fork());
	if (child == 0) {
		hear(closed[1]);
		execl("/bin/true", "true", (char *)NULL);
		die("execl");
	}
	close(fd);
	say(closed[0]);
	waitpid(child, NULL, 0);
}

static void client_closes_beside_exec(int sync)
{
	leave_to_exec(dial(sync), 0);
}

static void client_resets_beside_exec(int sync)
{
	int fd = dial(sync);

	hear(sync);
	leave_to_exec(fd, 1);
	say(sync);
}

static void server_closes_beside_exec(int sync)
{
	leave_to_exec(take(listen_for(sync)), 0);
}

static void *start_programs(void *stop)
{
	extern char **environ;
	char *argv[] = {"true", NULL};
	pid_t child;

	while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED))
		if (!posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ))
			waitpid(child, NULL, 0);
	return NULL;
}

/* Other threads keep starting programs, each of which has a copy of it for a moment. */
static void close_beside_programs(int fd)
{
	pthread_t threads[2];
	int stop = 0, i;

	MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
	own(fd);
	for (i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, start_programs, &stop))
			die("thread");
	usleep(3000);
	close(fd);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

static void client_closes_beside_programs(int sync)
{
	close_beside_programs(dial(sync));
}

static void server_closes_beside_programs(int sync)
{
	close_beside_programs(take(listen_for(sync)));
}

/* A later name of the process must not be reported as the owner's. */
static void client_executes(int sync)
{
	int fd = dial(sync);

	MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
	own(fd);
	execl("/bin/true", "true", (char *)NULL);
	die("execl");
}

static void client_does_not_block(int sync)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(&address, server_address(), hear_port(sync));
	int fd = MUST(socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0));
	struct pollfd ready = {fd, POLLOUT, 0};

	if (connect(fd, (struct sockaddr *)&address, length) < 0 && errno != EINPROGRESS)
		die("connect");
	MUST(poll(&ready, 1, -1));
	own(fd);
	say(sync);
	hear(sync);
}

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

/* accept through io_uring: one entry, and a wait for its completion. */
static int take_by(const struct io_uring_sqe *how, int listener, int slots)
{
	struct io_uring_params params;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	int ring, none[2] = {-1, -1};
	char *rings;

	memset(&params, 0, sizeof(params));
	ring = (int)syscall(__NR_io_uring_setup, 4, &params);
	if (ring < 0)
		give_up_unsupported();
	if (slots && syscall(__NR_io_uring_register, ring, IORING_REGISTER_FILES, none, slots) < 0)
		give_up_unsupported();
	rings = mmap(NULL,
		     larger(params.sq_off.array + params.sq_entries * sizeof(unsigned),
			    params.cq_off.cqes + params.cq_entries * sizeof(*cqes)),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	sqes = mmap(NULL, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
		    IORING_OFF_SQES);
	if (rings == MAP_FAILED || sqes == MAP_FAILED || !(params.features & IORING_FEAT_SINGLE_MMAP))
		die("io_uring");
	sqes[0] = *how;
	sqes[0].opcode = IORING_OP_ACCEPT;
	sqes[0].fd = listener;
	((unsigned *)(rings + params.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	MUST(syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	cqes = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
	/* Not every kernel has direct descriptors, or accepts more than one. */
	if (cqes[0].res == -EINVAL && (how->ioprio || slots))
		give_up_unsupported();
	if (cqes[0].res < 0) {
		errno = -cqes[0].res;
		die("accept by io_uring");
	}
	return cqes[0].res;
}

static int take_by_io_uring(int listener, unsigned flags)
{
	struct io_uring_sqe how = {.flags = flags};

	return take_by(&how, listener, 0);
}

/* include/uapi/linux/io_uring.h: since Linux 5.19 */
#define ACCEPT_MULTISHOT 1
#define ANY_SLOT (~0U)

static void io_uring_accepts_many(int sync)
{
	struct io_uring_sqe how = {.ioprio = ACCEPT_MULTISHOT};
	int fd = take_by(&how, listen_for(sync), 0);

	own(fd);
	say(sync);
	hear(sync);
}

/* The process has no descriptor of it: it is in a slot of the ring. */
static void take_into_slot(int sync, unsigned ioprio, unsigned slot)
{
	struct sockaddr_in6 peer;
	socklen_t length = sizeof(peer);
	struct io_uring_sqe how = {.ioprio = ioprio, .splice_fd_in = (int)slot};
	int listener = listen_for(sync);

	how.addr = (unsigned long)&peer;
	how.addr2 = (unsigned long)&length;
	take_by(&how, listener, 2);
	tell_truth(port_of(getsockname, listener), ntohs(peer.sin6_port));
}

static void io_uring_slot_idles(int sync)
{
	take_into_slot(sync, 0, 2);
	say(sync);
	hear(sync);
}

static void io_uring_any_slot_idles(int sync)
{
	take_into_slot(sync, ACCEPT_MULTISHOT, ANY_SLOT);
	say(sync);
	hear(sync);
}

static void io_uring_slot_exits(int sync)
{
	take_into_slot(sync, 0, 2);
}

static void io_uring_slot_is_killed(int sync)
{
	take_into_slot(sync, 0, 2);
	kill(getpid(), SIGKILL);
}

static void io_uring_server_idles(int sync)
{
	int fd = take_by_io_uring(listen_for(sync), 0);

	own(fd);
	say(sync);
	hear(sync);
}

/* By a worker: since Linux 5.12 (and 5.10.162) a thread of the process, with a name of its own. */
static void io_uring_worker_accepts(int sync)
{
	struct pollfd listener = {.fd = listen_for(sync), .events = POLLIN};
	struct dirent *task;
	DIR *tasks;
	int fd;

	/* A worker that finds no connection leaves the accept to the thread that has asked for it. */
	MUST(poll(&listener, 1, -1));
	fd = take_by_io_uring(listener.fd, IOSQE_ASYNC);
	tasks = opendir("/proc/self/task");
	if (!tasks)
		die("/proc/self/task");
	while ((task = readdir(tasks))) {
		char path[300], comm[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", task->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(comm, sizeof(comm), file) && !strncmp(comm, "iou-wrk-", 8)) {
			comm[strcspn(comm, "\n")] = 0;
			become(comm, SAME_UID, NULL);
		}
		fclose(file);
	}
	closedir(tasks);
	own(fd);
	say(sync);
	hear(sync);
}

/* By the system call of 32-bit programs. Its arguments must be below 4 GiB. */
static int take_as_32_bit(int listener)
{
#ifdef __x86_64__
	enum { ACCEPT4 = 364 }; /* arch/x86/entry/syscalls/syscall_32.tbl */
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(ACCEPT4), "b"(listener), "c"(0), "d"(0), "S"(0)
			 : "memory", "r8", "r9", "r10", "r11");
	if (result == -ENOSYS)
		give_up_unsupported();
	if (result < 0) {
		errno = -result;
		die("accept4 of 32 bits");
	}
	return result;
#else
	give_up_unsupported();
	return listener;
#endif
}

static void server_of_32_bit_idles(int sync)
{
	int fd = take_as_32_bit(listen_for(sync));

	own(fd);
	say(sync);
	hear(sync);
}

/* A process, despite its name. */
static void named_as_a_worker_closes(int sync)
{
	become("kworker/0:1", SAME_UID, NULL);
	server_closes(sync);
}

enum { REUSERS = 3 };

/* Several processes listen on one port, each with its own socket; the kernel chooses one for the connection. */
static void reusing_server(int sync)
{
	int first = bind_server(0, SO_REUSEPORT, 1), ready[2], i;
	unsigned port = port_of(getsockname, first);
	pid_t workers[REUSERS], served;

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ready));
	for (i = 0; i < REUSERS; i++) {
		workers[i] = MUST(fork());
		if (workers[i] == 0) {
			int listener = bind_server(port, SO_REUSEPORT, 1), fd;
			char name[16];

			close(first);
			snprintf(name, sizeof(name), "t-reuser-%d", i);
			become(name, SAME_UID, NULL);
			MUST(listen(listener, 8));
			say(ready[1]);
			fd = take(listener);
			own(fd);
			say(sync);
			hear(sync);
			_exit(0);
		}
	}
	for (i = 0; i < REUSERS; i++)
		hear(ready[0]);
	tell_port(sync, first);
	close(first);
	served = MUST(wait(NULL));
	for (i = 0; i < REUSERS; i++)
		if (workers[i] != served) {
			kill(workers[i], SIGKILL);
			waitpid(workers[i], NULL, 0);
		}
}

static int listen_fast_open(int sync)
{
	int fd = bind_server(0, 0, 0), queue = 8;

	if (setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof(queue)) < 0)
		give_up_unsupported();
	MUST(listen(fd, 8));
	tell_port(sync, fd);
	return fd;
}

/* The first connection of a client to a host gets it a cookie; later ones send their data with the SYN. */
static int dial_fast_open(int sync)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(&address, server_address(), hear_port(sync));
	int fd = make_socket(address.ss_family), yes = 1;
	struct tcp_info info;
	char byte;

	if (setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &yes, sizeof(yes)) < 0)
		give_up_unsupported();
	MUST(connect(fd, (struct sockaddr *)&address, length));
	put(fd, "early");
	if (read(fd, &byte, 1) != 1)
		die("no reply");
	length = sizeof(info);
	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
	if (info.tcpi_options & TCPI_OPT_SYN_DATA)
		put(STDERR_FILENO, "f");
	return fd;
}

static int take_fast_open(int sync)
{
	int fd = take(listen_fast_open(sync));
	char buffer[8];

	if (read(fd, buffer, sizeof(buffer)) != 5)
		die("what the client has said");
	put(fd, "r");
	return fd;
}

static void fast_open_client_closes(int sync)
{
	int fd = dial_fast_open(sync);

	own(fd);
	close(fd);
}

static void fast_open_client_resets(int sync)
{
	int fd = dial_fast_open(sync);

	own(fd);
	hear(sync);
	reset(fd);
	say(sync);
}

static void fast_open_server_closes(int sync)
{
	int fd = take_fast_open(sync);

	own(fd);
	close_after_peer(fd);
}

static void fast_open_server_idles(int sync)
{
	int fd = take_fast_open(sync);

	own(fd);
	say(sync);
	hear(sync);
}

/* The main process closes it as the signal to go on. */
static int go_on[2];

/* Both ends are ready; the reset comes when the whole program may go on. */
static void reset_later(int fd, int sync)
{
	char byte;

	own(fd);
	hear(sync);
	put(STDERR_FILENO, "r");
	if (read(go_on[0], &byte, 1) != 0)
		die("go_on");
	reset(fd);
	say(sync);
}

static void client_resets_later(int sync)
{
	reset_later(dial(sync), sync);
}

/* The server has been waiting since before that. */
static void client_comes_later(int sync)
{
	unsigned port = hear_port(sync);
	char byte;

	put(STDERR_FILENO, "r");
	if (read(go_on[0], &byte, 1) != 0)
		die("go_on");
	client_resets_port(sync, port);
}

static void server_resets_later(int sync)
{
	reset_later(take(listen_for(sync)), sync);
}

static const struct scenario {
	const char *name;
	void (*server)(int sync);
	void (*client)(int sync);
	int at_once; /* all connections open at the same time */
} scenarios[] = {
	{"client-first", server_closes_after_peer, client_closes, 0},
	{"server-first", server_closes, client_closes_after_peer, 0},
	{"client-resets", server_idles, client_resets, 0},
	{"server-resets", server_resets, client_idles, 0},
	{"client-killed", server_closes_after_peer, client_is_killed, 0},
	{"server-killed", server_is_killed, client_closes_after_peer, 0},
	{"prefork", prefork_server, client_closes_after_peer, 0},
	{"forked-child-serves", forking_server, client_of_forking_server, 0},
	{"passed-descriptor", passing_server, client_closes_after_peer, 0},
	{"forked-child-holds", forked_child_holds, client_resets_slowly, 0},
	{"forked-child-lets-go", forked_child_lets_go, client_resets, 0},
	{"receiver-holds", receiver_holds, client_resets_slowly, 0},
	{"receiver-lets-go", receiver_lets_go, client_resets, 0},
	{"accepter-holds", accepter_holds, client_resets_slowly, 0},
	{"server-half-closes", half_closing_server, client_writes_after_eof, 0},
	{"refused", server_is_not_there, client_is_refused, 0},
	{"timed-out", nobody, client_times_out, 1},
	{"never-accepted", server_never_accepts, client_is_never_accepted, 0},
	{"thread-connects", server_resets, thread_connects, 0},
	{"client-exits", server_closes_late, client_exits, 0},
	{"client-leaves-a-child", server_resets, client_leaves_a_child, 0},
	{"client-exec", server_closes_after_peer, client_closes_beside_exec, 0},
	{"client-exec-resets", server_idles, client_resets_beside_exec, 0},
	{"server-exec", server_closes_beside_exec, client_closes_after_peer, 0},
	{"client-programs", server_closes_after_peer, client_closes_beside_programs, 0},
	{"server-programs", server_closes_beside_programs, client_closes_after_peer, 0},
	{"client-executes", server_closes_after_peer, client_executes, 0},
	{"non-blocking", server_resets, client_does_not_block, 0},
	{"io-uring", io_uring_server_idles, client_resets, 0},
	{"io-uring-worker", io_uring_worker_accepts, client_resets, 0},
	{"accept-of-32-bit", server_of_32_bit_idles, client_resets, 0},
	{"named-as-a-worker", named_as_a_worker_closes, client_closes_after_peer, 0},
	{"io-uring-multishot", io_uring_accepts_many, client_resets, 0},
	{"io-uring-slot", io_uring_slot_idles, client_resets, 0},
	{"io-uring-slot-holds", io_uring_slot_idles, client_resets_slowly, 0},
	{"io-uring-any-slot", io_uring_any_slot_idles, client_resets_slowly, 0},
	{"io-uring-slot-exits", io_uring_slot_exits, client_closes_after_peer, 0},
	{"io-uring-slot-killed", io_uring_slot_is_killed, client_closes_after_peer, 0},
	{"reuse-port", reusing_server, client_resets, 0},
	{"fast-open", fast_open_server_closes, fast_open_client_closes, 0},
	{"fast-open-reset", fast_open_server_idles, fast_open_client_resets, 0},
	{"waiting-server", server_idles, client_comes_later, 1},
	{"adopted-server", server_idles, client_resets_later, 1},
	{"adopted-client", server_resets_later, client_idles, 1},
};

static pid_t start(const char *name, uid_t uid, const char *namespace, void (*body)(int), int sync, int other)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		close(other);
		close(go_on[1]);
		become(name, uid, namespace);
		body(sync);
		_exit(0);
	}
	return child;
}

static int failed(pid_t child)
{
	int status;

	MUST(waitpid(child, &status, 0));
	return WIFEXITED(status) && WEXITSTATUS(status) != 0;
}

/* Waits for as many marks as there are connections. */
static void await_ready(int marks, int count)
{
	char byte;

	while (count-- > 0)
		if (read(marks, &byte, 1) != 1)
			die("await_ready");
	puts("ready");
	fflush(stdout);
	if (getchar() == EOF)
		exit(1);
}

static int run(const struct scenario *scenario, int count)
{
	pid_t *children = calloc(2 * count, sizeof(*children));
	int later = !strncmp(scenario->name, "adopted-", 8) || !strcmp(scenario->name, "waiting-server");
	int marks[2], failures = 0, i, n = 0;

	MUST(pipe(go_on));
	MUST(pipe(marks));
	for (i = 0; i < count; i++) {
		int sync[2];

		MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sync));
		if (later)
			MUST(dup2(marks[1], STDERR_FILENO));
		children[n++] = start("t-server", SERVER_UID, getenv("SERVER_NS"), scenario->server, sync[0], sync[1]);
		children[n++] = start("t-client", CLIENT_UID, getenv("CLIENT_NS"), scenario->client, sync[1], sync[0]);
		close(sync[0]);
		close(sync[1]);
		if (!scenario->at_once)
			while (n > 0)
				failures += failed(children[--n]);
	}
	if (later)
		await_ready(marks[0], count);
	close(go_on[1]);
	while (n > 0)
		failures += failed(children[--n]);
	free(children);
	return failures;
}

int main(int argc, char **argv)
{
	size_t i;

	signal(SIGPIPE, SIG_IGN);
	for (i = 0; argc == 3 && i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		if (!strcmp(argv[1], scenarios[i].name))
			return run(&scenarios[i], atoi(argv[2])) ? 1 : 0;
	fprintf(stderr, "usage: scenarios NAME COUNT\n");
	for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		fprintf(stderr, "  %s\n", scenarios[i].name);
	return 2;
}
