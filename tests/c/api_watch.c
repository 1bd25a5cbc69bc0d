/*
 * A consumer of tcpevent.h controlled by a test: it executes the commands on stdin, and prints their results on stdout.
 * H is a number that the test gives to a handle.
 *
 *   open H [NAME=VALUE]...  events, probe, queue, interval, log (numbers), btf (a path), and at the end of the line
 *                           filter=TEXT; "opened H", or "refused ERRNO TEXT"
 *   close H                 "closed RESULT"
 *   read H COUNT MS         one tcpevent_read: a line for each event, then "read RESULT MICROSECONDS"
 *   begin H COUNT MS        "begun"; the same in a thread of its own
 *   follow H THREADS        "following"; that many threads read until a read fails, then print "ended RESULT"
 *   poll H MS               "polled RESULT EVENTS": of tcpevent_fd
 *   wake H                  "woken RESULT"
 *   handler H               the handler of SIGUSR1 wakes this handle; "handling H"
 *   statistics H            "statistics NAME=VALUE..."
 *   fork                    "forked PID": a child that finds all handles closed, and has opened one of its own
 *   release                 ends that child; "released STATUS"
 *   become UID              another user for good, without capabilities; "became UID"
 *   enter PATH              this network namespace for the main thread; "entered"
 *   threads                 "threads NUMBER...": events read by each thread of "follow" that read any
 *   version                 "version TEXT"
 *
 * An event is a line of tab-separated columns: "event", H, the thread, then all fields in the order of struct
 * tcpevent_event; states by name, bytes (reserved2, addresses, comm) in hexadecimal. A line of the library's log is "log
 * LEVEL TEXT". TCPEVENT_PROBE sets the default of `probe`, and TCPEVENT_TEST_BTF that of `btf`: the library itself does
 * not read the environment. SIGUSR2 and SIGHUP have handlers that do nothing; SIGHUP's is installed with SA_RESTART.
 * Ends at the end of stdin.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tcpevent.h"

enum { MOST_HANDLES = 80, BATCH = 256 };

static struct tcpevent_watch *handles[MOST_HANDLES];
static struct tcpevent_watch *volatile handled; /* woken by the handler of SIGUSR1 */

static void fail(const char *what)
{
	fprintf(stderr, "api_watch: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* The next word of the line; never NULL. */
static const char *word(char **rest)
{
	const char *found = strtok_r(NULL, " ", rest);

	return found != NULL ? found : "";
}

static int handle_number(char **rest)
{
	int number = atoi(word(rest));

	if (number < 0 || number >= MOST_HANDLES) {
		fprintf(stderr, "api_watch: handle %d: there are 0 to %d\n", number, MOST_HANDLES - 1);
		exit(1);
	}
	return number;
}

/* ---- Events ------------------------------------------------------------------------------------------------- */

static void put_bytes(FILE *out, const void *bytes, size_t count)
{
	const unsigned char *byte = bytes;

	fputc('\t', out);
	while (count-- > 0)
		fprintf(out, "%02x", *byte++);
}

static void print_event(int number, int thread, const struct tcpevent_event *e)
{
	flockfile(stdout);
	printf("event\t%d\t%d\t%s\t%s\t%s", number, thread, tcpevent_state_name(e->old_state),
	       tcpevent_state_name(e->new_state), tcpevent_owner_by_name(e->owner_by));
	put_bytes(stdout, e, sizeof *e);
	putchar('\n');
	funlockfile(stdout);
}

struct reading {
	int number;
	int thread;
	size_t count;
	int timeout_ms;
};

/* One tcpevent_read. */
static int read_once(const struct reading *reading)
{
	struct tcpevent_event *events = calloc(reading->count, sizeof *events);
	int result;

	if (events == NULL)
		fail("calloc");
	result = tcpevent_read(handles[reading->number], events, sizeof *events, reading->count, reading->timeout_ms);
	for (int i = 0; i < result; i++)
		print_event(reading->number, reading->thread, &events[i]);
	free(events);
	return result;
}

static void read_and_tell(const struct reading *reading)
{
	uint64_t began = now_us();
	int result = read_once(reading);

	printf("read %d %" PRIu64 "\n", result, now_us() - began);
	fflush(stdout);
}

static void *begin(void *argument)
{
	read_and_tell(argument);
	free(argument);
	return NULL;
}

static atomic_ulong taken[256];

static void *follow(void *argument)
{
	struct reading *reading = argument;
	int result;

	while ((result = read_once(reading)) >= 0) {
		atomic_fetch_add(&taken[reading->thread % 256], (unsigned long)result);
		fflush(stdout);
	}
	printf("ended %d\n", result);
	fflush(stdout);
	free(reading);
	return NULL;
}

static void in_thread(void *(*run)(void *), struct reading reading)
{
	struct reading *copy = malloc(sizeof *copy);
	pthread_t thread;

	if (copy == NULL)
		fail("malloc");
	*copy = reading;
	errno = pthread_create(&thread, NULL, run, copy);
	if (errno != 0)
		fail("pthread_create");
	pthread_detach(thread);
}

/* ---- Handles ------------------------------------------------------------------------------------------------ */

static void print_log(void *context, int level, const char *text)
{
	(void)context;
	flockfile(stdout);
	printf("log %d %s\n", level, text);
	fflush(stdout);
	funlockfile(stdout);
}

static uint32_t default_probe(void)
{
	const char *name = getenv("TCPEVENT_PROBE");

	if (name == NULL || *name == '\0' || strcmp(name, "auto") == 0)
		return TCPEVENT_PROBE_AUTO;
	if (strcmp(name, "kprobe") == 0)
		return TCPEVENT_PROBE_KPROBE;
	if (strcmp(name, "tp_btf") == 0)
		return TCPEVENT_PROBE_TP_BTF;
	if (strcmp(name, "tracepoint") == 0)
		return TCPEVENT_PROBE_TRACEPOINT;
	fprintf(stderr, "api_watch: TCPEVENT_PROBE=%s: it takes auto, kprobe, tp_btf or tracepoint\n", name);
	exit(1);
}

static uint32_t number_of(const char *value)
{
	return (uint32_t)strtoul(value, NULL, 10);
}

static void open_handle(char **rest)
{
	struct tcpevent_options options;
	int number = handle_number(rest);
	char *filter = strstr(*rest, "filter=");
	const char *option;
	int result;

	memset(&options, 0, sizeof options);
	options.size = sizeof options;
	options.probe = default_probe();
	options.btf_path = getenv("TCPEVENT_TEST_BTF");
	if (filter != NULL) {
		*filter = '\0';
		options.filter = filter + strlen("filter=");
	}
	while (*(option = word(rest)) != '\0') {
		const char *sign = strchr(option, '=');
		const char *value = sign != NULL ? sign + 1 : "";

		if (strncmp(option, "events=", 7) == 0) {
			options.events = number_of(value);
		} else if (strncmp(option, "probe=", 6) == 0) {
			options.probe = number_of(value);
		} else if (strncmp(option, "queue=", 6) == 0) {
			options.queue_slots = number_of(value);
		} else if (strncmp(option, "interval=", 9) == 0) {
			options.snapshot_interval_ms = number_of(value);
		} else if (strncmp(option, "log=", 4) == 0) {
			options.log = print_log;
			options.log_level = (int)number_of(value);
		} else if (strncmp(option, "btf=", 4) == 0) {
			options.btf_path = value;
		} else {
			fprintf(stderr, "api_watch: open: no such option: %s\n", option);
			exit(1);
		}
	}
	result = tcpevent_open(&options, &handles[number]);
	if (result == 0)
		printf("opened %d\n", number);
	else
		printf("refused %d %s\n", -result, tcpevent_last_error());
}

static void print_statistics(int number)
{
	struct tcpevent_statistics s = {.size = sizeof s};
	int result = tcpevent_get_statistics(handles[number], &s);

	printf("statistics result=%d size=%zu probe=%" PRIu32 " queue_slots=%" PRIu32, result, s.size, s.probe,
	       s.queue_slots);
#define PUT(field) printf(" " #field "=%" PRIu64, s.field)
	PUT(queued);
	PUT(delivered);
	PUT(states);
	PUT(closes);
	PUT(snapshots);
	PUT(sweeps);
	PUT(shed_states);
	PUT(shed_closes);
	PUT(shed_snapshots);
	PUT(lost_records);
	PUT(lost_owners);
	PUT(skipped_runs);
	PUT(recovered);
	PUT(undecoded);
	PUT(unowned);
	PUT(tracked);
	PUT(tracked_most);
	PUT(retries);
	PUT(shed_retries);
	PUT(unsent);
	PUT(shed_unsent);
#undef PUT
	putchar('\n');
}

static void poll_descriptor(int number, int timeout_ms)
{
	struct pollfd polled = {.fd = tcpevent_fd(handles[number]), .events = POLLIN};
	int result;

	if (polled.fd < 0)
		printf("polled %d 0\n", polled.fd);
	else if ((result = poll(&polled, 1, timeout_ms)) < 0)
		printf("polled %d 0\n", -errno);
	else
		printf("polled %d %d\n", result, polled.revents);
}

static void count_threads(void)
{
	size_t i;

	printf("threads");
	for (i = 0; i < sizeof taken / sizeof taken[0]; i++)
		if (atomic_load(&taken[i]) > 0)
			printf(" %lu", atomic_load(&taken[i]));
	putchar('\n');
}

/* ---- What hosts do ------------------------------------------------------------------------------------------ */

static void wake_in_handler(int signal_number)
{
	int before = errno;

	(void)signal_number;
	errno = 4711;
	if (tcpevent_wake(handled) != 0 || errno != 4711)
		_exit(71);
	errno = before;
}

static void do_nothing(int signal_number)
{
	(void)signal_number;
}

static void install(int signal_number, void (*handler)(int), int flags)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_handler = handler;
	action.sa_flags = flags;
	if (sigaction(signal_number, &action, NULL) != 0)
		fail("sigaction");
}

/* Every function must report the parent's handle as closed. */
static int is_closed(struct tcpevent_watch *handle)
{
	struct tcpevent_statistics statistics = {.size = sizeof statistics};
	struct tcpevent_event event;

	return tcpevent_read(handle, &event, sizeof event, 1, 0) == -EBADF && *tcpevent_last_error() != '\0' &&
	       tcpevent_fd(handle) == -EBADF && tcpevent_wake(handle) == -EBADF &&
	       tcpevent_get_statistics(handle, &statistics) == -EBADF && tcpevent_close(handle) == -EBADF;
}

static pid_t child;
static int release[2];

static void fork_child(void)
{
	int ready[2];
	char byte;

	if (pipe(release) != 0 || pipe(ready) != 0)
		fail("pipe");
	fflush(stdout);
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		struct tcpevent_options options = {.size = sizeof options, .probe = default_probe()};
		struct tcpevent_watch *own = NULL;

		close(release[1]);
		for (int i = 0; i < MOST_HANDLES; i++)
			if (handles[i] != NULL && !is_closed(handles[i]))
				_exit(72);
		if (tcpevent_open(&options, &own) != 0 || tcpevent_fd(own) < 0)
			_exit(73);
		for (int i = 0; i < MOST_HANDLES; i++)
			if (handles[i] != NULL && !is_closed(handles[i]))
				_exit(74);
		if (tcpevent_close(own) != 0)
			_exit(75);
		close(ready[1]);
		_exit(read(release[0], &byte, 1) == 0 ? 0 : 76);
	}
	close(release[0]);
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 0)
		fail("the child");
	close(ready[0]);
	printf("forked %d\n", (int)child);
}

static void release_child(void)
{
	int status;

	close(release[1]);
	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	printf("released %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

static void become(unsigned uid)
{
	if (setgroups(0, NULL) != 0 || setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0)
		fail("become");
	printf("became %u\n", uid);
}

static void enter(const char *path)
{
	int namespace = open(path, O_RDONLY | O_CLOEXEC);

	if (namespace < 0 || setns(namespace, CLONE_NEWNET) != 0)
		fail(path);
	close(namespace);
	puts("entered");
}

/* ---- Commands ----------------------------------------------------------------------------------------------- */

static struct reading parse_reading(char **rest, int thread)
{
	struct reading reading = {.number = handle_number(rest), .thread = thread};

	reading.count = strtoul(word(rest), NULL, 10);
	reading.timeout_ms = atoi(word(rest));
	return reading;
}

static void obey(const char *command, char **rest)
{
	static int threads;

	if (strcmp(command, "open") == 0) {
		open_handle(rest);
	} else if (strcmp(command, "close") == 0) {
		printf("closed %d\n", tcpevent_close(handles[handle_number(rest)]));
	} else if (strcmp(command, "read") == 0) {
		struct reading reading = parse_reading(rest, 0);

		read_and_tell(&reading);
	} else if (strcmp(command, "begin") == 0) {
		in_thread(begin, parse_reading(rest, ++threads));
		puts("begun");
	} else if (strcmp(command, "follow") == 0) {
		int number = handle_number(rest);

		for (int i = atoi(word(rest)); i > 0; i--)
			in_thread(follow, (struct reading){number, ++threads, BATCH, -1});
		puts("following");
	} else if (strcmp(command, "poll") == 0) {
		int number = handle_number(rest);

		poll_descriptor(number, atoi(word(rest)));
	} else if (strcmp(command, "wake") == 0) {
		printf("woken %d\n", tcpevent_wake(handles[handle_number(rest)]));
	} else if (strcmp(command, "handler") == 0) {
		int number = handle_number(rest);

		handled = handles[number];
		printf("handling %d\n", number);
	} else if (strcmp(command, "statistics") == 0) {
		print_statistics(handle_number(rest));
	} else if (strcmp(command, "fork") == 0) {
		fork_child();
	} else if (strcmp(command, "release") == 0) {
		release_child();
	} else if (strcmp(command, "become") == 0) {
		become((unsigned)strtoul(word(rest), NULL, 10));
	} else if (strcmp(command, "enter") == 0) {
		enter(word(rest));
	} else if (strcmp(command, "threads") == 0) {
		count_threads();
	} else if (strcmp(command, "version") == 0) {
		printf("version %s\n", tcpevent_version());
	} else {
		fprintf(stderr, "api_watch: no such command: %s\n", command);
		exit(1);
	}
	fflush(stdout);
}

/* The next line of stdin, even if signal handlers run meanwhile. */
static bool next_line(char *line, int size)
{
	while (fgets(line, size, stdin) == NULL) {
		if (!ferror(stdin) || errno != EINTR)
			return false;
		clearerr(stdin);
	}
	return true;
}

int main(void)
{
	static char line[65536];

	install(SIGUSR1, wake_in_handler, 0);
	install(SIGUSR2, do_nothing, 0);
	install(SIGHUP, do_nothing, SA_RESTART);
	while (next_line(line, sizeof line)) {
		char *rest;
		const char *command;

		line[strcspn(line, "\n")] = '\0';
		command = strtok_r(line, " ", &rest);
		if (command != NULL)
			obey(command, &rest);
	}
	return 0;
}
