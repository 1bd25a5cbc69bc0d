/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Gives any pointer a type, so that what it points to is read by plain loads and not by calls of helpers. Part of
 * tcp_event.bpf.c.
 */
#ifndef TCPEVENT_CAST_H
#define TCPEVENT_CAST_H

#include "tcp_event.h"

/* Set before the programs are loaded, where the kernel has bpf_rdonly_cast() (Linux 6.2): the types' numbers are its own. */
const volatile bool can_cast = false;
const volatile __u32 type_of_sock = 0;
const volatile __u32 type_of_tcp_sock = 0;
const volatile __u32 type_of_socket = 0;
const volatile __u32 type_of_file = 0;
const volatile __u32 type_of_task_struct = 0;

/*
 * The kernel's bpf_rdonly_cast(), which costs nothing when it runs. User space makes it of this call when it loads the
 * program (src/probe/instructions.rs): to look it up by name, libbpf would read all of the kernel's types.
 */
static void *(*const rdonly_cast)(const void *ptr, __u32 type) = (void *)TCP_RDONLY_CAST;

#define CAST(name, ptr) ((struct name *)rdonly_cast(ptr, type_of_##name))

#endif
