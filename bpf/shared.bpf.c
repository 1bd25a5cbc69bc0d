// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * No program: what programs and library share, for build.rs to make Rust of (shared.rs). It is compiled for its type
 * information only, and nothing of it is in the library. The programs' own objects describe their maps and variables, and
 * libbpf-cargo makes Rust of those; but not a constant, nor a type that is merely reserved in a ring.
 */
#include "base_types.h"
#include "tcp_event.h"
#include "tcp_event_tracepoint.h"

/* The compiler describes the types of variables, with all that these are made of. */
union {
	struct tcp_detailed_record detailed_record;
	struct tcp_let_go let_go;
	struct tcp_holder holder;
	struct tcp_prefix prefix;
	struct tcp_tracepoint tracepoint;
	enum tcp_origin origin;
	enum tcp_direction direction;
	enum tcp_flag flag;
	enum tcp_ending ending;
	enum tcp_wanted wanted;
	enum tcp_heard heard;
	enum tcp_list list;
	enum tcp_user user;
	enum tcp_capacity capacity;
	enum tcp_lost lost;
	enum tcp_placeholder placeholder;
} shared;
