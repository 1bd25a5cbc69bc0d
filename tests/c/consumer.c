/*
 * A consumer controlled by a test: it executes the commands on stdin, and prints their results on stdout.
 *
 *   start            AddProbe; then "started MILLISECONDS" once getStatus() is 1
 *   add              AddProbe only
 *   setup            setupBPF in a thread; "setup STATUS" when it has returned
 *   consume THREADS  that many threads print the events they dequeue from now on
 *   take COUNT       dequeues COUNT events on the main thread, prints them, then "taken COUNT"
 *   status           "status N"
 *   cleanup          cleanup(); "cleaned"
 *   memory           "memory KIB" (resident, of this process)
 *   array [TEXT]     printCharArray
 *   exit STATUS      exit(3)
 *
 * An event is a line of 13 columns: "event", the thread, EventTime and the other eleven fields in the order of
 * struct tcp_event_t. Ends at the end of stdin.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "event.h"

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static void nap(long ns)
{
	struct timespec ts = {0, ns};

	nanosleep(&ts, NULL);
}

/* Control characters would break the line. */
static const char *clean(char *text)
{
	char *c;

	for (c = text; *c; c++)
		if ((unsigned char)*c < 32)
			*c = '?';
	return text;
}

static void print_event(int thread, struct tcp_event_t *e)
{
	printf("event\t%d\t%" PRIu64 "\t%" PRIu32 "\t%" PRIu32 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu32 "\t%" PRIu32
	       "\t%u\t%u\t%u\t%s\t%s\t%s\n",
	       thread, e->EventTime, e->pid, e->UserId, e->rx_b, e->tx_b, e->tcpi_segs_out, e->tcpi_segs_in, e->family,
	       e->SPT, e->DPT, clean(e->task), e->SADDR, e->DADDR);
}

static void *consume(void *arg)
{
	int thread = (int)(intptr_t)arg;

	for (;;) {
		struct tcp_event_t e = DequeuePerfEvent();

		print_event(thread, &e);
		fflush(stdout);
	}
	return NULL;
}

static void *setup(void *arg)
{
	(void)arg;
	printf("setup %d\n", setupBPF(NULL));
	fflush(stdout);
	return NULL;
}

static long resident_kib(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	long kib = -1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %ld", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib;
}

static void start(void)
{
	double began = now_ms();

	AddProbe(NULL);
	while (!getStatus())
		nap(200000);
	printf("started %.1f\n", now_ms() - began);
}

int main(void)
{
	char line[4096];

	/* Otherwise khugepaged may turn the few pages in use into a huge page at any time, and "memory" grows by 2
	 * MiB. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	while (fgets(line, sizeof(line), stdin)) {
		char *word = strtok(line, " \n");
		char *arg = strtok(NULL, "\n");
		int n = arg ? atoi(arg) : 0;
		pthread_t thread;
		int i;

		if (!word)
			continue;
		if (!strcmp(word, "start")) {
			start();
		} else if (!strcmp(word, "add")) {
			AddProbe(NULL);
		} else if (!strcmp(word, "setup")) {
			pthread_create(&thread, NULL, setup, NULL);
			pthread_detach(thread);
		} else if (!strcmp(word, "consume")) {
			for (i = 0; i < n; i++) {
				pthread_create(&thread, NULL, consume, (void *)(intptr_t)i);
				pthread_detach(thread);
			}
		} else if (!strcmp(word, "take")) {
			for (i = 0; i < n; i++) {
				struct tcp_event_t e = DequeuePerfEvent();

				print_event(0, &e);
			}
			printf("taken %d\n", n);
		} else if (!strcmp(word, "status")) {
			printf("status %u\n", getStatus());
		} else if (!strcmp(word, "cleanup")) {
			cleanup();
			puts("cleaned");
		} else if (!strcmp(word, "memory")) {
			printf("memory %ld\n", resident_kib());
		} else if (!strcmp(word, "array")) {
			printCharArray(arg);
		} else if (!strcmp(word, "exit")) {
			exit(n);
		} else {
			printf("unknown %s\n", word);
		}
		fflush(stdout);
	}
	return 0;
}
