/*
 * A hostile caller of tcpevent.h: invalid arguments and invalid handles. Exits with 0 if all went well; otherwise it
 * says what went wrong.
 *
 *   api arguments      every function with every wrong argument that cannot be undefined behaviour, and with valid
 *                      ones at their limits
 *   api closes ROUNDS  threads that use a handle while another one closes it, again and again
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tcpevent.h"

static void fail(int line, const char *what)
{
	fprintf(stderr, "api: line %d: %s; tcpevent_last_error: \"%s\"\n", line, what, tcpevent_last_error());
	exit(1);
}

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			fail(__LINE__, #condition);                                                                    \
	} while (0)

/* A printable text: one line, not too long, that contains this word. */
static void check_text(int line, const char *text, const char *word)
{
	if (*text == '\0')
		fail(line, "there is no text");
	if (strlen(text) > 1500)
		fail(line, "the text is too long");
	for (const char *c = text; *c != '\0'; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			fail(line, "there is a control character in the text");
	if (strstr(text, word) == NULL) {
		fprintf(stderr, "api: \"%s\" is not in the text\n", word);
		fail(line, "the text does not name what is wrong");
	}
}

/* A call that must fail with this errno, and with a text that contains this word. */
#define REFUSED(call, errno_value, word)                                                                               \
	do {                                                                                                           \
		int result_ = (call);                                                                                  \
		if (result_ != -(errno_value)) {                                                                       \
			fprintf(stderr, "api: it returned %d\n", result_);                                             \
			fail(__LINE__, #call);                                                                         \
		}                                                                                                      \
		check_text(__LINE__, tcpevent_last_error(), word);                                                     \
	} while (0)

static uint32_t chosen_probe(void)
{
	const char *name = getenv("TCPEVENT_PROBE");

	if (name != NULL && strcmp(name, "kprobe") == 0)
		return TCPEVENT_PROBE_KPROBE;
	if (name != NULL && strcmp(name, "tp_btf") == 0)
		return TCPEVENT_PROBE_TP_BTF;
	if (name != NULL && strcmp(name, "tracepoint") == 0)
		return TCPEVENT_PROBE_TRACEPOINT;
	return TCPEVENT_PROBE_AUTO;
}

static struct tcpevent_options options(void)
{
	struct tcpevent_options all_default;

	memset(&all_default, 0, sizeof all_default);
	all_default.size = sizeof all_default;
	all_default.probe = chosen_probe();
	all_default.btf_path = getenv("TCPEVENT_TEST_BTF");
	return all_default;
}

static struct tcpevent_watch *open_one(void)
{
	struct tcpevent_options opened = options();
	struct tcpevent_watch *handle = NULL;

	CHECK(tcpevent_open(&opened, &handle) == 0);
	CHECK(handle != NULL);
	return handle;
}

static bool is_zero(const void *bytes, size_t count)
{
	const unsigned char *byte = bytes;

	while (count-- > 0)
		if (*byte++ != 0)
			return false;
	return true;
}

/* ---- tcpevent_open ------------------------------------------------------------------------------------------ */

static void take_line(void *context, int level, const char *text)
{
	CHECK(context == NULL && level >= TCPEVENT_LOG_WARN && level <= TCPEVENT_LOG_DEBUG && text != NULL);
}

static void refuse_options(void)
{
	struct tcpevent_watch *const before = (struct tcpevent_watch *)&before;
	struct tcpevent_watch *handle = before;
	struct tcpevent_options tried;

#define REFUSED_WITH(field, value, word)                                                                               \
	do {                                                                                                           \
		tried = options();                                                                                     \
		tried.field = (value);                                                                                 \
		REFUSED(tcpevent_open(&tried, &handle), EINVAL, word);                                                 \
	} while (0)

	tried = options();
	REFUSED(tcpevent_open(&tried, NULL), EINVAL, "handle");
	REFUSED(tcpevent_open(NULL, NULL), EINVAL, "handle");

	REFUSED_WITH(size, 0, "size");
	REFUSED_WITH(size, 1, "size");
	REFUSED_WITH(size, sizeof(size_t) - 1, "size");
	REFUSED_WITH(size, 4097, "size"); /* longer than any future structure: not initialised */
	REFUSED_WITH(size, (size_t)1 << 32, "size");
	REFUSED_WITH(size, SIZE_MAX, "size");

	REFUSED_WITH(events, 32, "events");
	REFUSED_WITH(events, TCPEVENT_EVENTS_CLOSES | 0x80000000u, "events");
	REFUSED_WITH(events, UINT32_MAX, "events");
	REFUSED_WITH(probe, 4, "probe");
	REFUSED_WITH(probe, UINT32_MAX, "probe");
	REFUSED_WITH(queue_slots, 1048577, "queue_slots");
	REFUSED_WITH(queue_slots, UINT32_MAX, "queue_slots");
	REFUSED_WITH(snapshot_interval_ms, 1, "snapshot_interval_ms");
	REFUSED_WITH(snapshot_interval_ms, 99, "snapshot_interval_ms");
	REFUSED_WITH(snapshot_interval_ms, 86400001, "snapshot_interval_ms");
	REFUSED_WITH(snapshot_interval_ms, UINT32_MAX, "snapshot_interval_ms");
	tried = options();
	tried.log = take_line;
	tried.log_level = -1;
	REFUSED(tcpevent_open(&tried, &handle), EINVAL, "log_level");
	tried.log_level = 4;
	REFUSED(tcpevent_open(&tried, &handle), EINVAL, "log_level");
	REFUSED_WITH(reserved, 1, "reserved");
	REFUSED_WITH(reserved, -1, "reserved");
	REFUSED_WITH(btf_path, "/no/such/file", "/no/such/file");
	REFUSED_WITH(btf_path, "/dev/zero", "btf_path");
	REFUSED_WITH(btf_path, "/proc", "btf_path");
	/* One line stays one line. */
	REFUSED_WITH(btf_path, "/no\nsuch\x1b[2J", "/no\\nsuch\\u{1b}[2J");
	/* Even with a log level but no function for its lines. */
	REFUSED_WITH(log_level, -1, "log_level");
	REFUSED_WITH(log_level, 4, "log_level");

	REFUSED_WITH(filter, "dst", "at the end");
	REFUSED_WITH(filter, "dport 443 dst", "at the end");
	REFUSED_WITH(filter, "nonsense", "word 1, \"nonsense\"");
	REFUSED_WITH(filter, "dst\t1.2.3.4\ndport\rmany", "word 4, \"many\"");
	REFUSED_WITH(filter, "dst \x01\x1b[2J", "word 2");
	REFUSED_WITH(filter, "dst \"1.2.3.4\"", "word 2");
	REFUSED_WITH(filter, "dst %s%n%s%n", "%s%n%s%n");
	REFUSED_WITH(filter, "dst \xff\xfe\xc0\xaf", "filter");
	REFUSED_WITH(filter, "\xc3", "filter");
	REFUSED_WITH(filter, "dst caf\xc3\xa9", "caf");
#undef REFUSED_WITH

	CHECK(handle == before);
}

static void refuse_long_filters(void)
{
	static const char *const patterns[] = {"x", "dst 10.0.0.1,", "dst ", "dport 1 ", ",", "\xff", "\xc3\xa9 "};
	const size_t size = 1 << 20;
	char *text = malloc(size + 1);
	struct tcpevent_options tried = options();
	struct tcpevent_watch *handle = NULL;

	CHECK(text != NULL);
	for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
		size_t length = strlen(patterns[i]);
		int result;

		for (size_t at = 0; at < size; at++)
			text[at] = patterns[i][at % length];
		text[size] = '\0';
		tried.filter = text;
		result = tcpevent_open(&tried, &handle);
		/* However often it is repeated, this is a valid filter. */
		if (result == 0) {
			CHECK(strcmp(patterns[i], "dport 1 ") == 0);
			CHECK(tcpevent_close(handle) == 0);
			continue;
		}
		CHECK(result == -EINVAL);
		check_text(__LINE__, tcpevent_last_error(), "filter");
	}
	free(text);
}

/* Programs compiled with a longer structure than the library's, or with a shorter one. */
static void open_with_other_structures(void)
{
	struct {
		struct tcpevent_options known;
		unsigned char later[64];
	} longer;
	struct {
		size_t size;
		uint32_t events;
		uint32_t later; /* must not be read */
	} shorter = {sizeof(size_t) + sizeof(uint32_t), TCPEVENT_EVENTS_STATES, UINT32_MAX};
	struct tcpevent_watch *handle = NULL;

	if (chosen_probe() == TCPEVENT_PROBE_AUTO) {
		CHECK(tcpevent_open((struct tcpevent_options *)(void *)&shorter, &handle) == 0);
		CHECK(tcpevent_close(handle) == 0);
	}

	memset(&longer, 0, sizeof longer);
	longer.known = options();
	longer.known.size = sizeof longer;
	CHECK(tcpevent_open(&longer.known, &handle) == 0);
	CHECK(tcpevent_close(handle) == 0);
	longer.later[0] = 1;
	REFUSED(tcpevent_open(&longer.known, &handle), E2BIG, "size");
	longer.later[0] = 0;
	longer.later[sizeof longer.later - 1] = 1;
	REFUSED(tcpevent_open(&longer.known, &handle), E2BIG, "size");
	/* The library must not read the next byte. */
	longer.known.size = sizeof longer - 1;
	CHECK(tcpevent_open(&longer.known, &handle) == 0);
	CHECK(tcpevent_close(handle) == 0);
}

static void open_at_the_limits(void)
{
	struct tcpevent_options tried = options();
	struct tcpevent_statistics statistics = {.size = sizeof statistics};
	struct tcpevent_watch *handle = NULL;

	if (chosen_probe() == TCPEVENT_PROBE_AUTO) {
		CHECK(tcpevent_open(NULL, &handle) == 0);
		CHECK(tcpevent_get_statistics(handle, &statistics) == 0);
		CHECK(statistics.queue_slots == 1024);
		CHECK(statistics.probe >= TCPEVENT_PROBE_KPROBE && statistics.probe <= TCPEVENT_PROBE_TRACEPOINT);
		CHECK(tcpevent_close(handle) == 0);
	}

	tried.queue_slots = 1;
	tried.snapshot_interval_ms = 100;
	tried.events = TCPEVENT_EVENTS_STATES | TCPEVENT_EVENTS_CLOSES | TCPEVENT_EVENTS_SNAPSHOTS;
	tried.filter = " \t\n ";
	CHECK(tcpevent_open(&tried, &handle) == 0);
	CHECK(tcpevent_get_statistics(handle, &statistics) == 0);
	CHECK(statistics.queue_slots == 1);
	CHECK(tcpevent_close(handle) == 0);

	tried.queue_slots = 1048576;
	tried.snapshot_interval_ms = 86400000;
	tried.log_level = TCPEVENT_LOG_DEBUG; /* without a function for its lines */
	CHECK(tcpevent_open(&tried, &handle) == 0);
	CHECK(tcpevent_get_statistics(handle, &statistics) == 0);
	CHECK(statistics.queue_slots == 1048576);
	CHECK(tcpevent_close(handle) == 0);
}

/* ---- Invalid handles ---------------------------------------------------------------------------------------- */

static void refuse_handle(struct tcpevent_watch *handle)
{
	struct tcpevent_statistics statistics;
	struct tcpevent_event event;

	memset(&statistics, 0x5a, sizeof statistics);
	memset(&event, 0x5a, sizeof event);
	statistics.size = sizeof statistics;
	REFUSED(tcpevent_read(handle, &event, sizeof event, 1, 0), EBADF, "handle");
	REFUSED(tcpevent_read(handle, &event, sizeof event, 1, -1), EBADF, "handle");
	REFUSED(tcpevent_read(handle, NULL, 0, 0, -2), EBADF, "handle");
	REFUSED(tcpevent_fd(handle), EBADF, "handle");
	REFUSED(tcpevent_get_statistics(handle, &statistics), EBADF, "handle");
	REFUSED(tcpevent_get_statistics(handle, NULL), EBADF, "handle");
	REFUSED(tcpevent_close(handle), EBADF, "handle");
	CHECK(tcpevent_wake(handle) == -EBADF); /* safe in signal handlers, so it has no text */
	CHECK(statistics.states == 0x5a5a5a5a5a5a5a5a && event.cookie == 0x5a5a5a5a5a5a5a5a);
}

static struct tcpevent_watch *at(uintptr_t number)
{
	return (struct tcpevent_watch *)number;
}

static void refuse_handles(void)
{
	struct tcpevent_watch *first = open_one(), *second;
	uintptr_t number = (uintptr_t)first;
	unsigned bit;

	/* None of these affects the open handle. */
	refuse_handle(NULL);
	refuse_handle(at(1));
	refuse_handle(at(UINTPTR_MAX));
	refuse_handle((struct tcpevent_watch *)&first);
	for (bit = 0; bit < 8 * sizeof number; bit++)
		if ((number ^ (uintptr_t)1 << bit) != 0)
			refuse_handle(at(number ^ (uintptr_t)1 << bit));
	srand(4711);
	for (int i = 0; i < 1000; i++) {
		uintptr_t random = (uintptr_t)rand() << 32 ^ (uintptr_t)rand();

		if (random != number)
			refuse_handle(at(random));
	}
	CHECK(tcpevent_fd(first) >= 0);
	CHECK(tcpevent_close(first) == 0);
	refuse_handle(first);

	/* A handle is never reused: an old one cannot reach a new watch. */
	second = open_one();
	CHECK(second != first);
	refuse_handle(first);
	CHECK(tcpevent_fd(second) >= 0);
	CHECK(tcpevent_close(second) == 0);
	refuse_handle(second);
	refuse_handle(first);
}

/* ---- tcpevent_read, tcpevent_get_statistics ----------------------------------------------------------------- */

/* A connection to itself, opened and closed: it has one endpoint, and gives one close. */
static void connect_once(void)
{
	struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct linger reset = {1, 0};
	socklen_t length = sizeof own;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(bind(fd, (struct sockaddr *)&own, length) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&own, &length) == 0);
	CHECK(connect(fd, (struct sockaddr *)&own, length) == 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
	CHECK(close(fd) == 0);
}

static void read_into_all_sizes(struct tcpevent_watch *handle)
{
	enum { FIRST = offsetof(struct tcpevent_event, accept_queue) };
	enum { LONGER = sizeof(struct tcpevent_event) + 40, COUNT = 3, SECONDS = 60 };
	static unsigned char room[(COUNT + 1) * LONGER];
	struct tcpevent_event *events = (struct tcpevent_event *)(void *)room;
	const size_t most = SIZE_MAX / sizeof *events;

	REFUSED(tcpevent_read(handle, NULL, sizeof *events, 1, 0), EINVAL, "events");
	REFUSED(tcpevent_read(handle, events, sizeof *events, 0, 0), EINVAL, "count");
	REFUSED(tcpevent_read(handle, events, 0, 1, 0), EINVAL, "event_size");
	REFUSED(tcpevent_read(handle, events, 1, 1, 0), EINVAL, "event_size");
	/* What the structure ended with first: a program of that time reads as much. */
	REFUSED(tcpevent_read(handle, events, FIRST - 1, 1, 0), EINVAL, "event_size");
	REFUSED(tcpevent_read(handle, events, SIZE_MAX, 1, 0), EINVAL, "event_size");
	REFUSED(tcpevent_read(handle, events, sizeof *events, 1, -2), EINVAL, "timeout_ms");
	REFUSED(tcpevent_read(handle, events, sizeof *events, 1, INT32_MIN), EINVAL, "timeout_ms");

	/* Nothing is queued, and nothing is written. */
	memset(room, 0xa5, sizeof room);
	CHECK(tcpevent_read(handle, events, sizeof *events, SIZE_MAX, 0) == 0);
	CHECK(tcpevent_read(handle, events, sizeof *events, most, 1) == 0);
	CHECK(events->size == 0xa5a5a5a5);

	/* Fewer than there are, into structures longer than the library's. */
	for (int i = 0; i < COUNT + 2; i++)
		connect_once();
	for (int read = 0; read < COUNT;) {
		int result = tcpevent_read(handle, (struct tcpevent_event *)(void *)(room + read * LONGER), LONGER,
					   (size_t)(COUNT - read), SECONDS * 1000);

		CHECK(result > 0 && result <= COUNT - read);
		read += result;
	}
	for (int i = 0; i < COUNT; i++) {
		const unsigned char *one = room + i * LONGER;
		struct tcpevent_event event;

		memcpy(&event, one, sizeof event);
		CHECK(event.size == sizeof event);
		CHECK(event.kind == TCPEVENT_KIND_CLOSE && event.pid == (uint32_t)getpid());
		CHECK(event.ending <= TCPEVENT_ENDING_USER_TIMEOUT && event.reserved2 == 0);
		CHECK(is_zero(one + sizeof event, LONGER - sizeof event));
	}
	CHECK(room[COUNT * LONGER] == 0xa5);

	/* Room for more events than there can be: only as much is used as there are events. */
	for (int read = 0; read < 2;) {
		int result = tcpevent_read(handle, events, sizeof *events, most, SECONDS * 1000);

		CHECK(result == 1 || result == 2);
		read += result;
	}

	/* Into a structure as it was first. */
	connect_once();
	memset(room, 0xa5, sizeof room);
	CHECK(tcpevent_read(handle, events, FIRST, 1, SECONDS * 1000) == 1);
	CHECK(events->size == FIRST && events->kind == TCPEVENT_KIND_CLOSE && events->reserved2 == 0);
	CHECK(room[FIRST] == 0xa5);
	CHECK(tcpevent_read(handle, events, sizeof *events, 1, 0) == 0);
}

static void get_statistics_of_all_sizes(struct tcpevent_watch *handle)
{
	struct {
		struct tcpevent_statistics known;
		unsigned char later[64];
		unsigned char others[8];
	} longer;

	REFUSED(tcpevent_get_statistics(handle, NULL), EINVAL, "statistics");
	/* As long as it was first. */
	for (size_t size = 0; size < offsetof(struct tcpevent_statistics, retries); size++) {
		memset(&longer, 0xa5, sizeof longer);
		longer.known.size = size;
		REFUSED(tcpevent_get_statistics(handle, &longer.known), EINVAL, "size");
		CHECK(longer.known.size == size && longer.known.probe == 0xa5a5a5a5);
	}
	longer.known.size = SIZE_MAX;
	REFUSED(tcpevent_get_statistics(handle, &longer.known), EINVAL, "size");
	longer.known.size = (size_t)1 << 32;
	REFUSED(tcpevent_get_statistics(handle, &longer.known), EINVAL, "size");

	/* An event may be read before it is counted. */
	for (int tries = 10000; tries > 0; tries--) {
		struct timespec moment = {0, 1000000};

		memset(&longer, 0xa5, sizeof longer);
		longer.known.size = sizeof longer.known + sizeof longer.later;
		CHECK(tcpevent_get_statistics(handle, &longer.known) == 0);
		if (longer.known.closes == 6)
			break;
		nanosleep(&moment, NULL);
	}
	CHECK(longer.known.size == sizeof longer.known);
	CHECK(longer.known.delivered == 6 && longer.known.closes == 6 && longer.known.queued == 0);
	CHECK(longer.known.states == 0 && longer.known.snapshots == 0 && longer.known.undecoded == 0);
	CHECK(longer.known.tracked_most > longer.known.tracked);
	CHECK(is_zero(longer.later, sizeof longer.later));
	CHECK(longer.others[0] == 0xa5);
}

/* ---- Functions without a handle ----------------------------------------------------------------------------- */

static void check_names(void)
{
	static const char *const states[] = {"ESTABLISHED", "SYN_SENT",  "SYN_RECV", "FIN_WAIT1",
					     "FIN_WAIT2",   "TIME_WAIT", "CLOSE",    "CLOSE_WAIT",
					     "LAST_ACK",    "LISTEN",    "CLOSING",  "NEW_SYN_RECV"};
	static const char *const ways[] = {"unknown", "connect", "accept", "close", "inode"};
	static const char *const endings[] = {"unknown",       "orderly",     "half closed",       "reset by peer",
					      "reset",         "unread data", "no time to linger", "disconnected",
					      "not accepted",  "aborted",     "not acknowledged",  "keepalive",
					      "closed window", "user timeout"};
	static const int others[] = {-1, 14, 15, 255, 256, INT32_MAX, INT32_MIN};
	const char *version = tcpevent_version();

	for (int i = 0; i < 12; i++)
		CHECK(strcmp(tcpevent_state_name(i + 1), states[i]) == 0);
	CHECK(strcmp(tcpevent_state_name(0), "UNKNOWN") == 0);
	for (int i = 0; i < 5; i++)
		CHECK(strcmp(tcpevent_owner_by_name(i), ways[i]) == 0);
	CHECK(strcmp(tcpevent_owner_by_name(5), "unknown") == 0);
	for (int i = TCPEVENT_ENDING_UNKNOWN; i <= TCPEVENT_ENDING_USER_TIMEOUT; i++)
		CHECK(strcmp(tcpevent_ending_name(i), endings[i]) == 0);
	CHECK(strcmp(tcpevent_state_name(13), "UNKNOWN") == 0);
	for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
		CHECK(strcmp(tcpevent_state_name(others[i]), "UNKNOWN") == 0);
		CHECK(strcmp(tcpevent_owner_by_name(others[i]), "unknown") == 0);
		CHECK(strcmp(tcpevent_ending_name(others[i]), "unknown") == 0);
	}
	CHECK(strchr(version, '.') != NULL && version == tcpevent_version());
}

static void format_addresses(void)
{
	static const uint8_t v4[16] = {192, 168, 0, 255}, v6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 1};
	static const uint8_t longest[16] = {255, 255, 255, 255, 255, 255, 255, 255,
					    255, 255, 255, 255, 255, 255, 255, 255};
	static const uint8_t mapped[16] = {[10] = 255, 255, 127, 0, 0, 1};
	char text[INET6_ADDRSTRLEN];

	CHECK(tcpevent_format_address(AF_INET, v4, text, sizeof text) == 0 && strcmp(text, "192.168.0.255") == 0);
	CHECK(tcpevent_format_address(AF_INET6, v6, text, sizeof text) == 0 && strcmp(text, "2001:db8::1") == 0);
	CHECK(tcpevent_format_address(AF_INET6, mapped, text, sizeof text) == 0 &&
	      strcmp(text, "::ffff:127.0.0.1") == 0);
	CHECK(tcpevent_format_address(AF_INET6, longest, text, sizeof text) == 0 && strlen(text) == 39);
	CHECK(tcpevent_format_address(AF_INET6, longest, text, SIZE_MAX) == 0 && strlen(text) == 39);
	CHECK(tcpevent_format_address(AF_INET, v4, text, 14) == 0 && strcmp(text, "192.168.0.255") == 0);

	memset(text, 'x', sizeof text);
	REFUSED(tcpevent_format_address(AF_INET, v4, text, 13), ENOSPC, "size");
	CHECK(text[0] == '\0' && text[13] == 'x');
	memset(text, 'x', sizeof text);
	REFUSED(tcpevent_format_address(AF_INET6, longest, text, 1), ENOSPC, "size");
	CHECK(text[0] == '\0' && text[1] == 'x');
	memset(text, 'x', sizeof text);
	REFUSED(tcpevent_format_address(AF_INET, v4, text, 0), ENOSPC, "size");
	CHECK(text[0] == 'x');
	for (int family = -1; family < 100; family++) {
		if (family == AF_INET || family == AF_INET6)
			continue;
		memset(text, 'x', sizeof text);
		REFUSED(tcpevent_format_address(family, v4, text, sizeof text), EAFNOSUPPORT, "family");
		CHECK(text[0] == '\0');
	}
	REFUSED(tcpevent_format_address(AF_INET, NULL, text, sizeof text), EINVAL, "address");
	CHECK(text[0] == '\0');
	REFUSED(tcpevent_format_address(AF_INET, v4, NULL, sizeof text), EINVAL, "text");
	REFUSED(tcpevent_format_address(AF_INET, v4, NULL, 0), EINVAL, "text");
	REFUSED(tcpevent_format_address(AF_UNSPEC, NULL, NULL, 0), EINVAL, "address");
}

/* ---- tcpevent_last_error ------------------------------------------------------------------------------------ */

static void *check_that_there_is_no_error(void *unused)
{
	CHECK(*tcpevent_last_error() == '\0');
	REFUSED(tcpevent_format_address(AF_INET, NULL, NULL, 0), EINVAL, "address");
	return unused;
}

static void each_thread_has_its_own_error(void)
{
	char before[2000];
	pthread_t thread;

	REFUSED(tcpevent_fd(NULL), EBADF, "handle");
	CHECK(strlen(tcpevent_last_error()) < sizeof before);
	strcpy(before, tcpevent_last_error());
	CHECK(pthread_create(&thread, NULL, check_that_there_is_no_error, NULL) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(strcmp(tcpevent_last_error(), before) == 0);
	/* Calls that succeed leave it alone, and so do errors without a text. */
	CHECK(tcpevent_wake(NULL) == -EBADF);
	check_names();
	CHECK(strcmp(tcpevent_last_error(), before) == 0);
}

/* ---- api closes --------------------------------------------------------------------------------------------- */

static _Atomic(struct tcpevent_watch *) current;
static atomic_ulong uses;

static void *use_until_closed(void *number)
{
	struct tcpevent_watch *handle = atomic_load(&current);
	bool waits = *(int *)number % 2 == 0;

	for (;;) {
		struct tcpevent_statistics statistics = {.size = sizeof statistics};
		struct tcpevent_event events[4];
		int result = tcpevent_read(handle, events, sizeof *events, 4, waits ? -1 : 0);

		if (result == -EBADF)
			break;
		CHECK(result >= 0 || result == -EINTR);
		atomic_fetch_add(&uses, 1);
		result = tcpevent_wake(handle);
		CHECK(result == 0 || result == -EBADF);
		result = tcpevent_fd(handle);
		CHECK(result >= 0 || result == -EBADF);
		result = tcpevent_get_statistics(handle, &statistics);
		CHECK(result == 0 || result == -EBADF);
	}
	refuse_handle(handle);
	return NULL;
}

static void close_in_use(unsigned long rounds)
{
	enum { USERS = 4 };

	for (unsigned long round = 0; round < rounds; round++) {
		struct timespec moment = {0, (long)(round % 5) * 3000000};
		pthread_t users[USERS];
		int numbers[USERS];

		atomic_store(&current, open_one());
		for (int i = 0; i < USERS; i++) {
			numbers[i] = i;
			CHECK(pthread_create(&users[i], NULL, use_until_closed, &numbers[i]) == 0);
		}
		connect_once();
		nanosleep(&moment, NULL);
		CHECK(tcpevent_close(atomic_load(&current)) == 0);
		for (int i = 0; i < USERS; i++)
			CHECK(pthread_join(users[i], NULL) == 0);
	}
	CHECK(atomic_load(&uses) > 0);
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "closes") == 0) {
		close_in_use(strtoul(argv[2], NULL, 10));
	} else if (argc == 2 && strcmp(argv[1], "arguments") == 0) {
		struct tcpevent_options own = options();
		struct tcpevent_watch *handle = NULL;
		char filter[32];

		CHECK(*tcpevent_last_error() == '\0');
		check_names();
		format_addresses();
		each_thread_has_its_own_error();
		refuse_options();
		refuse_long_filters();
		open_with_other_structures();
		open_at_the_limits();
		refuse_handles();
		/* Excludes whatever else this host does. */
		snprintf(filter, sizeof filter, "pid %d", (int)getpid());
		own.filter = filter;
		CHECK(tcpevent_open(&own, &handle) == 0);
		read_into_all_sizes(handle);
		get_statistics_of_all_sizes(handle);
		CHECK(tcpevent_close(handle) == 0);
	} else {
		return 2;
	}
	return 0;
}
