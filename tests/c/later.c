/*
 * A program of today run with any library version: it gets what its own header promises, and nothing is written past
 * its structures. Prints what it has read of a connection of its own.
 */
#include <inttypes.h>
#include <string.h>

#include "check.h"
#include "tcpevent.h"

enum { GUARD = 64 };

static const unsigned char guard[GUARD] = {0xa5, 0x5a, 0xa5, 0x5a};

int main(void)
{
	struct tcpevent_options options = {.size = sizeof options, .events = TCPEVENT_EVENTS_STATES};
	struct {
		struct tcpevent_statistics statistics;
		unsigned char guard[GUARD];
	} counted = {.statistics = {.size = sizeof counted.statistics}};
	struct {
		struct tcpevent_event events[2];
		unsigned char guard[GUARD];
	} read;
	struct tcpevent_watch *watch;
	unsigned port, ends = 0;

	memcpy(counted.guard, guard, GUARD);
	CHECK(tcpevent_open(&options, &watch) == 0);
	port = connect_once();
	while (ends < 2) {
		int count;

		memset(&read, 0xee, sizeof read);
		memcpy(read.guard, guard, GUARD);
		count = tcpevent_read(watch, read.events, sizeof read.events[0], 2, 10000);
		CHECK(count > 0);
		CHECK(memcmp(read.guard, guard, GUARD) == 0);
		for (int i = 0; i < count; i++) {
			const struct tcpevent_event *event = &read.events[i];

			CHECK(event->size == sizeof *event);
			CHECK(event->ending <= TCPEVENT_ENDING_USER_TIMEOUT && event->reserved2 == 0);
			if (event->kind != TCPEVENT_KIND_CLOSE ||
			    (event->local_port != port && event->remote_port != port))
				continue;
			CHECK(event->pid == (uint32_t)getpid() && (event->known & TCPEVENT_KNOWN_OWNER));
			CHECK(event->new_state == 7 && event->family == AF_INET && event->bytes_received <= 1);
			ends++;
		}
	}
	CHECK(tcpevent_get_statistics(watch, &counted.statistics) == 0);
	CHECK(counted.statistics.size == sizeof counted.statistics && counted.statistics.closes >= 2);
	CHECK(memcmp(counted.guard, guard, GUARD) == 0);
	CHECK(tcpevent_close(watch) == 0);
	printf("%s\n", tcpevent_version());
	return 0;
}
