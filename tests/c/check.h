/*
 * Common to the test programs that are hosts of the library: checks, waits, and a connection.
 */
#ifndef TCPEVENT_TEST_CHECK_H
#define TCPEVENT_TEST_CHECK_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "event.h"

/* With stderr closed, only the exit status tells: the line of the failure. */
#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s: line %d: %s: errno %d\n", __FILE__, __LINE__, #condition, errno);         \
			_exit(__LINE__ % 250 + 1);                                                                     \
		}                                                                                                      \
	} while (0)

/* Repeats calls that signals interrupt. */
#define RETRY(call)                                                                                                    \
	do {                                                                                                           \
		errno = 0;                                                                                             \
		call;                                                                                                  \
	} while (errno == EINTR)

static inline void nap(long us)
{
	struct timespec left = {us / 1000000, us % 1000000 * 1000};

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

static inline int patience_s(void)
{
	const char *slowness = getenv("TCPEVENT_TEST_SLOWNESS");

	return 10 * (slowness ? atoi(slowness) : 1);
}

/* Opens one connection, which the client resets. Returns the client's port. */
static inline unsigned connect_once(void)
{
	struct sockaddr_in to, from;
	struct linger linger = {1, 0};
	socklen_t length = sizeof(to);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), client, server = -1;

	to.sin_family = AF_INET;
	to.sin_port = 0;
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(!bind(listener, (struct sockaddr *)&to, length));
	CHECK(!listen(listener, 1));
	CHECK(!getsockname(listener, (struct sockaddr *)&to, &length));
	client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(client, (struct sockaddr *)&to, length) && errno != EISCONN)
		CHECK(errno == EINTR || errno == EALREADY);
	RETRY(server = accept(listener, NULL, NULL));
	CHECK(server >= 0);
	CHECK(!getsockname(client, (struct sockaddr *)&from, &length));
	CHECK(!setsockopt(client, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	close(client);
	close(server);
	close(listener);
	return ntohs(from.sin_port);
}

static inline void wait_for_status(unsigned expected)
{
	time_t until = time(NULL) + patience_s();

	while (getStatus() != expected) {
		CHECK(time(NULL) < until);
		nap(500);
	}
}

static inline void start(void)
{
	AddProbe(NULL);
	wait_for_status(1);
}

/* A new connection must arrive, taken by this function. */
static inline void see_one_by(struct tcp_event_t (*dequeue)(void))
{
	unsigned port = connect_once();
	struct tcp_event_t event;

	do
		event = dequeue();
	while (event.SPT != port || event.pid != (unsigned)getpid());
}

static inline void see_one(void)
{
	see_one_by(DequeuePerfEvent);
}

#endif
