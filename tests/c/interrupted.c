/*
 * What consumers of this library do on SIGINT: the handler calls cleanup() on the very thread that waits in
 * DequeuePerfEvent(), then exit(). The program has no other thread that could do it.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "event.h"

static void interrupted(int number)
{
	cleanup();
	printf("handler\nstatus %u\n", getStatus());
	exit(number);
}

int main(void)
{
	struct timespec nap = {0, 1000000};

	signal(SIGINT, interrupted);
	AddProbe(NULL);
	while (!getStatus())
		nanosleep(&nap, NULL);
	puts("ready");
	fflush(stdout);
	for (;;)
		DequeuePerfEvent();
}
