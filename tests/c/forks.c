/*
 * A host that forks while eight threads are in calls of the library: each child uses the whole API, and exits. Exits
 * with 0 if all went well; otherwise it says what did not.
 *
 *   forks COUNT    so many children, one after the other
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>

#include "check.h"
#include "event.h"
#include "tcpevent.h"

static struct tcpevent_watch *shared;
static atomic_ulong calls;

static void *dequeue(void *unused)
{
	for (;; atomic_fetch_add(&calls, 1))
		DequeuePerfEvent();
	return unused;
}

static void *read_shared(void *unused)
{
	struct tcpevent_event events[16];

	for (;; atomic_fetch_add(&calls, 1))
		CHECK(tcpevent_read(shared, events, sizeof(*events), 16, -1) >= 0);
	return unused;
}

static void *open_and_close(void *unused)
{
	struct tcpevent_options options = {.size = sizeof(options),
					   .events = TCPEVENT_EVENTS_STATES | TCPEVENT_EVENTS_SNAPSHOTS};
	struct tcpevent_watch *handle;

	for (;; atomic_fetch_add(&calls, 1)) {
		CHECK(tcpevent_open(&options, &handle) == 0);
		CHECK(tcpevent_close(handle) == 0);
	}
	return unused;
}

static void *start_and_stop(void *unused)
{
	for (;; atomic_fetch_add(&calls, 1)) {
		AddProbe(NULL);
		while (!getStatus())
			nap(500);
		cleanup();
	}
	return unused;
}

static void *ask(void *unused)
{
	struct tcpevent_statistics statistics;
	char text[64];

	for (;; atomic_fetch_add(&calls, 1)) {
		statistics.size = sizeof(statistics);
		CHECK(tcpevent_get_statistics(shared, &statistics) == 0);
		statistics.size = sizeof(statistics);
		CHECK(tcpevent_classic_statistics(&statistics) == 0);
		CHECK(tcpevent_format_address(0, (const unsigned char *)text, text, sizeof(text)) == -EAFNOSUPPORT);
		CHECK(tcpevent_last_error()[0]);
		nap(1000);
	}
	return unused;
}

static void *connect_for_ever(void *unused)
{
	for (;;) {
		connect_once();
		nap(500);
	}
	return unused;
}

static void use_all(void)
{
	struct tcpevent_options options = {.size = sizeof(options),
					   .events = TCPEVENT_EVENTS_STATES | TCPEVENT_EVENTS_CLOSES};
	struct tcpevent_statistics statistics = {.size = sizeof(statistics)};
	struct tcpevent_event event;
	struct tcp_event_t close;
	struct tcpevent_watch *handle;
	char filter[32];
	unsigned port;

	/* The queue must hold all events until they are read. */
	snprintf(filter, sizeof(filter), "pid %d", getpid());
	options.filter = filter;
	CHECK(tcpevent_close(shared) == -EBADF);
	CHECK(getStatus() == 0);
	CHECK(tcpevent_classic_statistics(&statistics) == 0 && statistics.delivered == 0);
	CHECK(tcpevent_open(&options, &handle) == 0);
	AddProbe(NULL);
	while (!getStatus())
		nap(500);
	port = connect_once();
	do
		close = DequeuePerfEvent();
	while (close.SPT != port || close.pid != (unsigned)getpid());
	do
		CHECK(tcpevent_read(handle, &event, sizeof(event), 1, -1) == 1);
	while (event.kind != TCPEVENT_KIND_CLOSE || event.local_port != port || event.pid != (unsigned)getpid());
	statistics.size = sizeof(statistics);
	CHECK(tcpevent_get_statistics(handle, &statistics) == 0 && statistics.delivered > 0);
	CHECK(tcpevent_close(handle) == 0);
	CHECK(tcpevent_close(handle) == -EBADF && strstr(tcpevent_last_error(), "not open"));
	cleanup();
}

int main(int argc, char **argv)
{
	static void *(*const bodies[])(void *) = {dequeue,        dequeue,        dequeue, read_shared,     read_shared,
						  open_and_close, start_and_stop, ask,     connect_for_ever};
	struct tcpevent_options options = {.size = sizeof(options), .queue_slots = 64};
	unsigned long forks, count = argc == 2 ? strtoul(argv[1], NULL, 10) : 0;
	pthread_t thread;
	unsigned i;

	if (!count)
		return 2;
	CHECK(tcpevent_open(&options, &shared) == 0);
	for (i = 0; i < sizeof(bodies) / sizeof(*bodies); i++)
		CHECK(!pthread_create(&thread, NULL, bodies[i], NULL));
	srand(4711);
	for (forks = 0; forks < count; forks++) {
		int status;
		pid_t child;

		/* At an arbitrary point of the other threads' calls. */
		nap(rand() % 3000);
		child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			/* Ends it if it hangs. */
			alarm(6 * patience_s());
			use_all();
			exit(7);
		}
		RETRY(waitpid(child, &status, 0));
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) {
			fprintf(stderr, "child %lu: status %#x\n", forks, status);
			_exit(1);
		}
	}
	printf("%lu children, %lu calls beside them\n", forks, atomic_load(&calls));
	fflush(stdout);
	/* The other threads are still in calls. */
	_exit(0);
}
