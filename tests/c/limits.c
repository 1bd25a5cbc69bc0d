/*
 * A host short of some resource. Exits with 0 if all went well; otherwise it says what did not.
 *
 *   limits memory SLOTS    tcpevent_open of so many slots, with ever more address space: -ENOMEM, -EAGAIN or a handle
 *   limits queue           AddProbe in as much address space as a probe needs, with TCPEVENT_QUEUE as it is set
 *   limits stack BYTES     every function on a thread with such a stack
 *   limits sweeps          snapshots, with no memory for those of many sockets
 *   limits closed WHAT     close_range(3, ~0) after AddProbe or tcpevent_open, and files of its own in their place
 */
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"
#include "tcpevent.h"

static long taken_bytes(void)
{
	long pages = 0;
	FILE *statm = fopen("/proc/self/statm", "r");

	CHECK(statm && fscanf(statm, "%ld", &pages) == 1);
	fclose(statm);
	return pages * sysconf(_SC_PAGESIZE);
}

static void limit(int resource, long bytes)
{
	struct rlimit limit = {(rlim_t)bytes, (rlim_t)bytes};

	CHECK(!setrlimit(resource, &limit));
}

static void memory(unsigned slots)
{
	/* Bytes of a queued event: include/tcpevent.h says some 280. The rest is for threads, types and maps. */
	const long step = (280L * slots + (64L << 20)) / 32;
	int refused = 0, opened = 0;
	long more;

	for (more = step; more <= 48 * step && !opened; more += step) {
		int status;
		pid_t child = fork();

		CHECK(child >= 0);
		if (child == 0) {
			struct tcpevent_options options = {.size = sizeof(options), .queue_slots = slots};
			struct tcpevent_watch *handle;
			int result;

			limit(RLIMIT_AS, taken_bytes() + more);
			result = tcpevent_open(&options, &handle);
			if (result == -ENOMEM)
				CHECK(strstr(tcpevent_last_error(), "memory"));
			else if (result == 0)
				CHECK(tcpevent_close(handle) == 0);
			else
				CHECK(result == -EAGAIN);
			exit(-result);
		}
		CHECK(waitpid(child, &status, 0) == child);
		if (!WIFEXITED(status)) {
			fprintf(stderr, "with %ld bytes more: status %#x\n", more, status);
			_exit(1);
		}
		refused += WEXITSTATUS(status) == ENOMEM;
		opened += WEXITSTATUS(status) == 0;
	}
	/* Too little at first, and enough in the end. */
	CHECK(refused >= 4 && opened == 1);
}

static void queue(void)
{
	struct tcpevent_statistics statistics = {.size = sizeof(statistics)};

	limit(RLIMIT_AS, taken_bytes() + (80L << 20));
	start();
	see_one();
	CHECK(tcpevent_classic_statistics(&statistics) == 0);
	printf("%u slots\n", statistics.queue_slots);
}

/* ---- sweeps ---- */

/* A snapshot takes some 280 bytes: so many do not fit into the memory left below. */
#define SOCKETS 12000
#define LEFT (1L << 20)

static char last_line[512];

static void take_line(void *context, int level, const char *text)
{
	(void)context;
	(void)level;
	if (strstr(text, "snapshots"))
		snprintf(last_line, sizeof(last_line), "%s", text);
}

/* VmData: what RLIMIT_DATA limits. */
static long data_bytes(void)
{
	char line[128];
	long kib = -1;
	FILE *status = fopen("/proc/self/status", "r");

	CHECK(status);
	while (kib < 0 && fgets(line, sizeof(line), status))
		sscanf(line, "VmData: %ld kB", &kib);
	fclose(status);
	CHECK(kib > 0);
	return kib * 1024;
}

static uint64_t sweeps_of(struct tcpevent_watch *handle)
{
	struct tcpevent_statistics statistics = {.size = sizeof(statistics)};

	CHECK(tcpevent_get_statistics(handle, &statistics) == 0);
	return statistics.sweeps;
}

static void await_sweeps(struct tcpevent_watch *handle, uint64_t count)
{
	time_t until = time(NULL) + 3 * patience_s();

	for (count += sweeps_of(handle); sweeps_of(handle) < count; nap(10000))
		CHECK(time(NULL) < until);
}

static void sweeps(void)
{
	struct tcpevent_options options = {.size = sizeof(options),
					   .events = TCPEVENT_EVENTS_SNAPSHOTS,
					   .queue_slots = 16,
					   .snapshot_interval_ms = 100,
					   .log = take_line};
	struct rlimit files = {SOCKETS + 100, SOCKETS + 100}, before, little;
	struct sockaddr_in6 any = {.sin6_family = AF_INET6};
	static int sockets[SOCKETS];
	struct tcpevent_watch *handle;
	int i;

	CHECK(!setrlimit(RLIMIT_NOFILE, &files));
	CHECK(tcpevent_open(&options, &handle) == 0);
	await_sweeps(handle, 2);
	CHECK(!last_line[0]);
	CHECK(!getrlimit(RLIMIT_DATA, &before));
	little = before;
	little.rlim_cur = (rlim_t)(data_bytes() + LEFT);
	CHECK(!setrlimit(RLIMIT_DATA, &little));
	/* IPv6 is swept last, and waits until then. */
	for (i = 0; i < SOCKETS; i++) {
		sockets[i] = socket(AF_INET6, SOCK_STREAM, 0);
		CHECK(sockets[i] >= 0);
		CHECK(!bind(sockets[i], (struct sockaddr *)&any, sizeof(any)) && !listen(sockets[i], 1));
	}
	await_sweeps(handle, 1);
	for (i = 0; !last_line[0]; i++) {
		CHECK(i < 100 * 3 * patience_s());
		nap(10000);
	}
	printf("%s\n", last_line);
	/* It goes on once there is enough memory. */
	for (i = 0; i < SOCKETS; i++)
		close(sockets[i]);
	CHECK(!setrlimit(RLIMIT_DATA, &before));
	await_sweeps(handle, 2);
	CHECK(tcpevent_close(handle) == 0);
}

static void *end_setup(void *unused)
{
	wait_for_status(1);
	cleanup();
	return unused;
}

static sem_t cleaned_up;

static void *call_all(void *unused)
{
	struct tcpevent_options options = {.size = sizeof(options),
					   .events = TCPEVENT_EVENTS_CLOSES | TCPEVENT_EVENTS_SNAPSHOTS,
					   .filter = "dst 127.0.0.0/8 family inet"};
	struct tcpevent_statistics statistics = {.size = sizeof(statistics)};
	struct tcpevent_event event;
	struct tcpevent_watch *handle;
	char text[64];

	start();
	see_one();
	cleanup();
	sem_post(&cleaned_up);
	CHECK(setupBPF("not a program") == 0);
	printCharArray("text");
	CHECK(tcpevent_open(&options, &handle) == 0);
	connect_once();
	CHECK(tcpevent_fd(handle) >= 0);
	CHECK(tcpevent_read(handle, &event, sizeof(event), 1, -1) == 1);
	CHECK(tcpevent_wake(handle) == 0);
	CHECK(tcpevent_get_statistics(handle, &statistics) == 0);
	CHECK(tcpevent_classic_statistics(&statistics) == 0);
	CHECK(tcpevent_format_address(AF_INET, event.local_addr, text, sizeof(text)) == 0);
	CHECK(tcpevent_close(handle) == 0);
	options.filter = "dst no.address";
	CHECK(tcpevent_open(&options, &handle) == -EINVAL && tcpevent_last_error()[0]);
	CHECK(tcpevent_version()[0] && tcpevent_state_name(1)[0] && tcpevent_owner_by_name(1)[0]);
	CHECK(tcpevent_ending_name(1)[0]);
	return unused;
}

static void stack(size_t bytes)
{
	pthread_attr_t attributes;
	pthread_t thread, other;

	CHECK(!sem_init(&cleaned_up, 0, 0));
	CHECK(!pthread_attr_init(&attributes));
	CHECK(!pthread_attr_setstacksize(&attributes, bytes));
	CHECK(!pthread_create(&thread, &attributes, call_all, NULL));
	/* The first cleanup is in call_all: this one ends setupBPF. */
	CHECK(!sem_wait(&cleaned_up));
	CHECK(!pthread_create(&other, NULL, end_setup, NULL));
	CHECK(!pthread_join(thread, NULL) && !pthread_join(other, NULL));
}

/* Files of the host, of kinds that could be taken for the library's, under the same numbers. */
#define OWN_FILES 80

static int own_files[OWN_FILES];
static struct stat own_status[OWN_FILES];

static int open_one(int number)
{
	char name[] = "/tmp/tcpevent-limits.XXXXXX";
	int fd;

	switch (number % 5) {
	case 0:
		fd = mkstemp(name);
		CHECK(!unlink(name));
		return fd;
	case 1:
		return eventfd(0, EFD_NONBLOCK);
	case 2:
		return epoll_create1(0);
	case 3:
		return socket(AF_INET, SOCK_STREAM, 0);
	default:
		return open("/dev/null", O_RDWR);
	}
}

static void take_all_descriptors(void)
{
	int i;

	CHECK(!syscall(SYS_close_range, 3, ~0U, 0));
	for (i = 0; i < OWN_FILES; i++) {
		own_files[i] = open_one(i);
		CHECK(own_files[i] >= 0 && !fstat(own_files[i], &own_status[i]));
	}
}

/* All are still there, and nothing was written to them. */
static void own_files_are_untouched(void)
{
	uint64_t count;
	int i;

	for (i = 0; i < OWN_FILES; i++) {
		struct stat status;

		CHECK(!fstat(own_files[i], &status));
		CHECK(status.st_ino == own_status[i].st_ino && status.st_dev == own_status[i].st_dev);
		CHECK(status.st_size == own_status[i].st_size);
		if (i % 5 == 1)
			CHECK(read(own_files[i], &count, sizeof(count)) == -1 && errno == EAGAIN);
	}
}

static void closed(const char *what)
{
	struct tcpevent_options options = {.size = sizeof(options),
					   .events = TCPEVENT_EVENTS_STATES | TCPEVENT_EVENTS_SNAPSHOTS,
					   .snapshot_interval_ms = 100};
	struct tcpevent_event events[64];
	struct tcpevent_watch *handle = NULL;
	int result, status;
	time_t until;
	pid_t child;

	if (!strcmp(what, "handle")) {
		CHECK(tcpevent_open(&options, &handle) == 0);
	} else {
		start();
		see_one();
	}
	/* Sweeps are running. */
	nap(250000);
	take_all_descriptors();
	connect_once();
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		own_files_are_untouched();
		exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	nap(250000);
	until = time(NULL) + patience_s();
	if (handle) {
		/* Earlier events are still there; then it reports what happened, and waits for nothing. */
		do
			result = tcpevent_read(handle, events, sizeof(*events), 64, 100);
		while (result > 0);
		CHECK(result == -EIO && strstr(tcpevent_last_error(), "the host has closed descriptors"));
		CHECK(tcpevent_wake(handle) == 0);
		CHECK(tcpevent_close(handle) == 0);
	} else {
		cleanup();
		CHECK(getStatus() == 0);
	}
	CHECK(time(NULL) <= until);
	nap(250000);
	own_files_are_untouched();
	/* It can be used again. */
	start();
	see_one();
	cleanup();
	CHECK(tcpevent_open(&options, &handle) == 0);
	connect_once();
	CHECK(tcpevent_read(handle, events, sizeof(*events), 1, -1) == 1);
	CHECK(tcpevent_close(handle) == 0);
	nap(250000);
	own_files_are_untouched();
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "memory") && argc == 3)
		memory((unsigned)strtoul(argv[2], NULL, 10));
	else if (!strcmp(mode, "queue"))
		queue();
	else if (!strcmp(mode, "sweeps"))
		sweeps();
	else if (!strcmp(mode, "stack") && argc == 3)
		stack(strtoul(argv[2], NULL, 10));
	else if (!strcmp(mode, "closed") && argc == 3)
		closed(argv[2]);
	else
		return 2;
	return 0;
}
