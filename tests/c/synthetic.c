/*
 * Has a program that calls tcpevent_open read its records from the socket SYNTHETIC, with a library that was built with the
 * feature of that name (src/ingest/synthetic.rs).
 */
#include "tcpevent.h"

#include <dlfcn.h>
#include <stdlib.h>

int tcpevent_open(const struct tcpevent_options *options, struct tcpevent_watch **handle)
{
	int (*real)(const struct tcpevent_options *, struct tcpevent_watch **);
	struct tcpevent_options synthetic = *options;

	*(void **)&real = dlsym(RTLD_NEXT, "tcpevent_open");
	synthetic.btf_path = getenv("SYNTHETIC");
	return real(&synthetic, handle);
}
