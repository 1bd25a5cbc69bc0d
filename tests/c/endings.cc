/*
 * A host that calls the library while threads and the process end, and whose threads end within its calls. Exits with 0
 * if all went well; otherwise it says what did not. The library itself must log nothing.
 *
 *   endings exit               after main: from atexit, a static object's destructor and a destructor of the program's
 *   endings thread             from the destructor of a thread-local object, and of a key (pthread_key_create)
 *   endings cancel CALL KIND   pthread_cancel, deferred or async, of a thread in a call
 *   endings leave CALL         pthread_exit in a signal handler, over a call
 *   endings jump               siglongjmp out of a signal handler, over a read
 */
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "check.h"
#include "tcpevent.h"

static struct tcpevent_watch *opened;

static struct tcpevent_watch *open_with(const char *filter, uint32_t events)
{
	struct tcpevent_options options = {};
	struct tcpevent_watch *handle;

	options.size = sizeof(options);
	options.events = events;
	options.filter = filter;
	CHECK(tcpevent_open(&options, &handle) == 0);
	return handle;
}

static void read_one(struct tcpevent_watch *handle)
{
	unsigned port = connect_once();
	struct tcpevent_event event;

	do
		CHECK(tcpevent_read(handle, &event, sizeof(event), 1, 1000 * patience_s()) == 1);
	while (event.local_port != port || event.pid != (unsigned)getpid());
}

static void *end_setup(void *unused)
{
	wait_for_status(1);
	cleanup();
	return unused;
}

/* Every function. A classic probe and `opened` exist already, and are ended. */
static void call_all(void)
{
	struct tcpevent_statistics statistics = {};
	struct tcpevent_event event;
	const unsigned char address[4] = {127, 0, 0, 1};
	struct tcpevent_watch *handle;
	pthread_t thread;
	char text[64];

	CHECK(getStatus() == 1);
	see_one();
	cleanup();
	CHECK(getStatus() == 0);
	start();
	cleanup();
	CHECK(!pthread_create(&thread, NULL, end_setup, NULL));
	CHECK(setupBPF(NULL) == 0);
	CHECK(!pthread_join(thread, NULL));
	printCharArray(NULL);

	CHECK(tcpevent_fd(opened) >= 0);
	read_one(opened);
	CHECK(tcpevent_wake(opened) == 0);
	while (tcpevent_read(opened, &event, sizeof(event), 1, 0) >= 0)
		;
	statistics.size = sizeof(statistics);
	CHECK(tcpevent_get_statistics(opened, &statistics) == 0 && statistics.closes > 0);
	statistics.size = sizeof(statistics);
	CHECK(tcpevent_classic_statistics(&statistics) == 0 && statistics.delivered > 0);
	CHECK(tcpevent_close(opened) == 0);
	CHECK(tcpevent_close(opened) == -EBADF);
	CHECK(strstr(tcpevent_last_error(), "not open"));
	handle = open_with(NULL, 0);
	read_one(handle);
	CHECK(tcpevent_close(handle) == 0);
	CHECK(!strcmp(tcpevent_state_name(1), "ESTABLISHED") && tcpevent_version()[0] && tcpevent_owner_by_name(1)[0]);
	CHECK(!strcmp(tcpevent_ending_name(1), "orderly"));
	CHECK(tcpevent_format_address(AF_INET, address, text, sizeof(text)) == 0 && !strcmp(text, "127.0.0.1"));
}

static void begin(void)
{
	start();
	opened = open_with(NULL, 0);
}

/* ---- exit ---- */

static int ends;

static void at_exit(void)
{
	if (ends++)
		begin();
	call_all();
}

struct At_end {
	bool armed = false;

	~At_end()
	{
		if (!armed)
			return;
		begin();
		call_all();
		printf("destructor\n");
	}
};

static At_end static_object;

__attribute__((destructor)) static void at_unload(void)
{
	if (!static_object.armed)
		return;
	begin();
	call_all();
	puts("unloaded");
	fflush(stdout);
}

/* ---- thread ---- */

static void at_thread_end(void *unused)
{
	(void)unused;
	begin();
	call_all();
}

struct At_thread_end {
	bool armed = false;

	~At_thread_end()
	{
		if (armed)
			at_thread_end(NULL);
	}
};

static thread_local At_thread_end thread_object;

static void *end_thread(void *keys)
{
	CHECK(!pthread_setspecific(((pthread_key_t *)keys)[0], "before"));
	thread_object.armed = true;
	/* From here on the library keeps data for this thread. */
	CHECK(tcpevent_close(NULL) == -EBADF);
	CHECK(!pthread_setspecific(((pthread_key_t *)keys)[1], "after"));
	return NULL;
}

static void thread_ends(void)
{
	pthread_key_t keys[2];
	pthread_t thread;

	CHECK(!pthread_key_create(&keys[0], at_thread_end));
	CHECK(tcpevent_close(NULL) == -EBADF);
	CHECK(!pthread_key_create(&keys[1], at_thread_end));
	CHECK(!pthread_create(&thread, NULL, end_thread, keys));
	CHECK(!pthread_join(thread, NULL));
}

/* ---- cancel, leave ---- */

static const char *call;
static bool asynchronous;
static volatile sig_atomic_t cycles;
static sem_t in_call;

static void *stay_in_call(void *unused)
{
	struct tcpevent_event event;
	struct tcpevent_watch *handle;
	int before;

	if (asynchronous)
		CHECK(!pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &before));
	sem_post(&in_call);
	for (;;) {
		if (!strcmp(call, "dequeue")) {
			DequeuePerfEvent();
		} else if (!strcmp(call, "read")) {
			CHECK(tcpevent_read(opened, &event, sizeof(event), 1, -1) >= 0);
		} else if (!strcmp(call, "setup")) {
			setupBPF(NULL);
		} else if (!strcmp(call, "open")) {
			CHECK(tcpevent_open(NULL, &handle) == 0);
			CHECK(tcpevent_close(handle) == 0);
		} else if (!strcmp(call, "add")) {
			AddProbe(NULL);
			cleanup();
		} else {
			CHECK(!"a call");
		}
		cycles++;
		if (!asynchronous)
			pthread_testcancel();
	}
	return unused;
}

/* Nothing is left over: everything that was in use can be used again, and ended. */
static void all_is_well(void)
{
	struct tcpevent_statistics statistics = {};
	time_t until = time(NULL) + patience_s();

	cleanup();
	/* A probe that was about to start ends first. */
	wait_for_status(0);
	if (opened) {
		statistics.size = sizeof(statistics);
		CHECK(tcpevent_get_statistics(opened, &statistics) == 0);
		CHECK(tcpevent_close(opened) == 0);
		CHECK(time(NULL) <= until);
	}
	begin();
	call_all();
}

static void leave(int number)
{
	(void)number;
	pthread_exit(PTHREAD_CANCELED);
}

static void end_in_call(bool by_cancel)
{
	struct timespec until;
	struct sigaction action;
	pthread_t thread;
	void *result;
	int round, rounds = strcmp(call, "open") && strcmp(call, "add") ? 5 : 20;

	memset(&action, 0, sizeof(action));
	action.sa_handler = leave;
	CHECK(!sigaction(SIGUSR1, &action, NULL));
	/* No event ever comes. */
	if (!strcmp(call, "read"))
		opened = open_with("dport 1", 0);
	for (round = 0; round < rounds; round++) {
		CHECK(!pthread_create(&thread, NULL, stay_in_call, NULL));
		RETRY(sem_wait(&in_call));
		/* In some rounds, before it waits. */
		nap(round % 2 ? 20000 + 7919 * round % 30000 : round * 50);
		/* A signal handler may end a thread only in a wait: see signal-safety(7). */
		if (!by_cancel)
			nap(300000);
		CHECK(!(by_cancel ? pthread_cancel(thread) : pthread_kill(thread, SIGUSR1)));
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += patience_s();
		CHECK(!pthread_timedjoin_np(thread, &result, &until));
		/* glibc before 2.37 drops the result if the cancellation was held off. */
		CHECK(result == PTHREAD_CANCELED || (asynchronous && !result));
		/* It may have ended right after AddProbe. */
		if (!strcmp(call, "add"))
			cleanup();
	}
	all_is_well();
}

/* ---- jump ---- */

static sigjmp_buf before_call;

static void jump(int number)
{
	(void)number;
	siglongjmp(before_call, 1);
}

static void jump_out(void)
{
	volatile int jumps = 0;
	struct tcpevent_event event;
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_handler = jump;
	CHECK(!sigaction(SIGALRM, &action, NULL));
	opened = open_with("dport 1", 0);
	while (jumps < 3) {
		if (sigsetjmp(before_call, 1)) {
			jumps++;
		} else {
			alarm(1);
			tcpevent_read(opened, &event, sizeof(event), 1, -1);
			CHECK(!"it has returned");
		}
	}
	all_is_well();
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	CHECK(!sem_init(&in_call, 0, 0));
	if (!strcmp(mode, "exit")) {
		/* The second one runs first. */
		CHECK(!atexit(at_exit) && !atexit(at_exit));
		static_object.armed = true;
		begin();
	} else if (!strcmp(mode, "thread")) {
		thread_ends();
	} else if (!strcmp(mode, "cancel") && argc == 4) {
		call = argv[2];
		asynchronous = !strcmp(argv[3], "async");
		end_in_call(true);
	} else if (!strcmp(mode, "leave") && argc == 3) {
		call = argv[2];
		end_in_call(false);
	} else if (!strcmp(mode, "jump")) {
		jump_out();
	} else {
		return 2;
	}
	return 0;
}
