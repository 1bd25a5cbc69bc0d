/*
 * What hosts do to the library: signals, dlclose, fork, closed descriptors, a second libbpf. It makes its own traffic,
 * and exits with 0 if all went well; otherwise it says what did not.
 *
 *   host storm COUNT     cleanup() from a signal handler on the thread that dequeues, COUNT times, with restarts,
 *                        while a timer interrupts every thread each millisecond
 *   host reload PATH     dlopen, use, dlclose with and without cleanup, again
 *   host fork            children that use the library, leave it alone, outlive the parent's probe
 *   host closed          no stdin, stdout, stderr
 *   host libbpf PATH     another libbpf is in the process, with a print callback of its own
 */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"

struct library {
	void (*add_probe)(const char *);
	unsigned (*get_status)(void);
	struct tcp_event_t (*dequeue)(void);
	void (*clean_up)(void);
};

/* ---- storm ---- */

static atomic_ulong handled, dequeued;
static pthread_t dequeuer;

static void clean_up_in_handler(int number)
{
	(void)number;
	cleanup();
	atomic_fetch_add(&handled, 1);
}

static void do_nothing(int number)
{
	(void)number;
}

static void *dequeue_for_ever(void *unused)
{
	for (;;) {
		struct tcp_event_t event = DequeuePerfEvent();

		CHECK(event.EventTime != 0 && (event.family == AF_INET || event.family == AF_INET6));
		atomic_fetch_add(&dequeued, 1);
	}
	return unused;
}

static void *connect_for_ever(void *unused)
{
	for (;;) {
		connect_once();
		nap(1000);
	}
	return unused;
}

static void storm(unsigned long count)
{
	struct sigaction action;
	struct itimerval each_ms = {{0, 1000}, {0, 1000}};
	pthread_t thread;
	unsigned long i;

	memset(&action, 0, sizeof(action));
	action.sa_handler = do_nothing; /* and no SA_RESTART: system calls fail with EINTR */
	CHECK(!sigaction(SIGALRM, &action, NULL));
	action.sa_handler = clean_up_in_handler;
	CHECK(!sigaction(SIGUSR1, &action, NULL));
	CHECK(!pthread_create(&dequeuer, NULL, dequeue_for_ever, NULL));
	CHECK(!pthread_create(&thread, NULL, connect_for_ever, NULL));
	CHECK(!setitimer(ITIMER_REAL, &each_ms, NULL));
	srand(4711);
	for (i = 0; i < count; i++) {
		time_t until = time(NULL) + patience_s();

		AddProbe(NULL);
		/* In half of the rounds during the start, in the others at work. */
		if (i % 2)
			while (!getStatus()) {
				CHECK(time(NULL) < until);
				nap(500);
			}
		nap(rand() % (i % 2 ? 5000 : 30000));
		CHECK(!pthread_kill(dequeuer, SIGUSR1));
		while (atomic_load(&handled) <= i) {
			CHECK(time(NULL) < until);
			nap(100);
		}
		CHECK(getStatus() == 0);
	}
	CHECK(atomic_load(&dequeued) > count / 4);
	printf("%lu times cleaned up in the handler, %lu events\n", count, atomic_load(&dequeued));
	exit(0);
}

/* ---- reload ---- */

static void load(const char *path, struct library *library, void **handle)
{
	*handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	CHECK(*handle);
	*(void **)&library->add_probe = dlsym(*handle, "AddProbe");
	*(void **)&library->get_status = dlsym(*handle, "getStatus");
	*(void **)&library->dequeue = dlsym(*handle, "DequeuePerfEvent");
	*(void **)&library->clean_up = dlsym(*handle, "cleanup");
	CHECK(library->add_probe && library->get_status && library->dequeue && library->clean_up);
}

static void start_loaded(const struct library *library)
{
	time_t until = time(NULL) + patience_s();

	library->add_probe(NULL);
	while (!library->get_status()) {
		CHECK(time(NULL) < until);
		nap(500);
	}
}

static void *see_one_in_thread(void *library)
{
	see_one_by(((const struct library *)library)->dequeue);
	return NULL;
}

static void reload(const char *path)
{
	struct library library;
	pthread_t thread;
	void *handle;
	int i;

	for (i = 0; i < 6; i++) {
		load(path, &library, &handle);
		start_loaded(&library);
		see_one_by(library.dequeue);
		/* A thread that used the library ends after the dlclose: its thread-locals still exist. */
		CHECK(!pthread_create(&thread, NULL, see_one_in_thread, &library));
		CHECK(!pthread_join(thread, NULL));
		if (i % 2 == 0) {
			library.clean_up();
			CHECK(!dlclose(handle));
			nap(50000);
		} else {
			CHECK(!dlclose(handle));
			/* It keeps running: the next dlopen finds it so. */
			load(path, &library, &handle);
			CHECK(library.get_status() == 1);
			library.clean_up();
			CHECK(!dlclose(handle));
		}
	}
}

/* ---- fork ---- */

static int has_link(void)
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;
	char target[256];
	int found = 0;

	CHECK(folder);
	while ((entry = readdir(folder))) {
		ssize_t length = readlinkat(dirfd(folder), entry->d_name, target, sizeof(target) - 1);

		if (length > 0) {
			target[length] = 0;
			found |= !!strstr(target, "bpf_link") || !!strstr(target, "bpf-link");
		}
	}
	closedir(folder);
	return found;
}

static void wait_for(pid_t child, int expected)
{
	time_t until = time(NULL) + 3 * patience_s();
	int status;

	while (waitpid(child, &status, WNOHANG) == 0) {
		CHECK(time(NULL) < until);
		nap(1000);
	}
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == expected);
}

static void forking(void)
{
	pthread_t thread;
	pid_t child;
	int order[2];

	start();
	see_one();
	CHECK(has_link());

	/* A child that only exits. */
	child = fork();
	if (child == 0)
		exit(3);
	wait_for(child, 3);

	/* A child that calls every function. */
	child = fork();
	if (child == 0) {
		CHECK(!has_link());
		CHECK(getStatus() == 0);
		cleanup();
		CHECK(getStatus() == 0);
		printCharArray(NULL);
		CHECK(!pthread_create(&thread, NULL, dequeue_for_ever, NULL));
		nap(100000);
		/* The waiting DequeuePerfEvent of the thread delays nothing. */
		exit(4);
	}
	wait_for(child, 4);

	/* A child with a probe of its own. */
	child = fork();
	if (child == 0) {
		start();
		see_one();
		cleanup();
		exit(5);
	}
	wait_for(child, 5);

	/* None of them has affected the parent. */
	CHECK(getStatus() == 1);
	see_one();

	/* A child that outlives the parent's probe does not keep it attached. */
	CHECK(!pipe(order));
	child = fork();
	if (child == 0) {
		char byte;

		close(order[1]);
		CHECK(read(order[0], &byte, 1) == 0);
		CHECK(!has_link());
		exit(6);
	}
	cleanup();
	close(order[1]);
	wait_for(child, 6);
	start();
	see_one();
}

/* ---- closed ---- */

static void closed_streams(void)
{
	int fd;

	for (fd = 0; fd <= 2; fd++)
		close(fd);
	start();
	for (fd = 0; fd <= 2; fd++)
		CHECK(fcntl(fd, F_GETFD) == -1);
	see_one();
	/* A message, with no stderr to take it. */
	AddProbe("not a program");
	/* A descriptor of the host that happens to be its stderr gets those messages and nothing else. */
	see_one();
	for (fd = 0; fd <= 2; fd++)
		CHECK(fcntl(fd, F_GETFD) == -1);
	cleanup();
}

/* ---- libbpf ---- */

static int printed;

static int print(int level, const char *format, va_list arguments)
{
	(void)level;
	(void)format;
	(void)arguments;
	return printed++;
}

static void beside_another_libbpf(const char *path)
{
	typedef int (*print_fn)(int, const char *, va_list);
	print_fn (*set_print)(print_fn);
	void *libbpf = dlopen("libbpf.so.1", RTLD_NOW | RTLD_GLOBAL), *handle;
	struct library library;

	CHECK(libbpf);
	*(void **)&set_print = dlsym(libbpf, "libbpf_set_print");
	CHECK(set_print);
	set_print(print);
	load(path, &library, &handle);
	start_loaded(&library);
	see_one_by(library.dequeue);
	library.clean_up();
	/* The other libbpf's callback is still set, and was not called for this library's messages. */
	CHECK(set_print(print) == print);
	CHECK(printed == 0);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "storm") && argc == 3)
		storm(strtoul(argv[2], NULL, 10));
	else if (!strcmp(mode, "reload") && argc == 3)
		reload(argv[2]);
	else if (!strcmp(mode, "fork"))
		forking();
	else if (!strcmp(mode, "closed"))
		closed_streams();
	else if (!strcmp(mode, "libbpf") && argc == 3)
		beside_another_libbpf(argv[2]);
	else
		return 2;
	return 0;
}
