/*
 * A consumer written like those of the reference library: event.h after the usual system headers, no feature macros,
 * symbols from dlopen called through pointers without prototypes, a program text for AddProbe, a busy wait, printf
 * formats of plain int and long, and a SIGINT handler that calls cleanup() and exit().
 *
 *   cc -std=gnu11 -I include reference_style.c -ldl
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "event.h"

static const char *text =
	"#include <uapi/linux/ptrace.h>\n"
	"#include <net/sock.h>\n"
	"#include <bcc/proto.h>\n"
	"BPF_PERF_OUTPUT(tcpEvents);\n"
	"int kprobe__tcp_set_state(struct pt_regs *ctx, struct sock *sk, int state)\n"
	"{\n"
	"    u16 port = sk->__sk_common.skc_num;\n"
	"    if (state == TCP_CLOSE)\n"
	"        tcpEvents.perf_submit(ctx, &port, sizeof(port));\n"
	"    return 0;\n"
	"}\n";

static void (*stop)();

static void on_interrupt(int number)
{
	stop();
	printf("interrupted by signal %d\n", number);
	exit(number);
}

static void *find(void *handle, const char *name)
{
	void *symbol;
	char *error;

	dlerror();
	symbol = dlsym(handle, name);
	error = dlerror();
	if (error) {
		fprintf(stderr, "%s\n", error);
		exit(EXIT_FAILURE);
	}
	return symbol;
}

static void show(struct tcp_event_t *event)
{
	printf("at %ld pid %d uid %d %s ", event->EventTime, event->pid, event->UserId, event->task);
	printf("from %s %d to %s %d family %d ", event->SADDR, event->SPT, event->DADDR, event->DPT, event->family);
	printf("rx %ld tx %ld out %d in %d\n", event->rx_b, event->tx_b, event->tcpi_segs_out, event->tcpi_segs_in);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	void *handle = dlopen(argc > 1 ? argv[1] : "/opt/RealTimeKql/lib/libtcpEvent.so", RTLD_LAZY);
	void (*add)();
	unsigned (*status)();
	struct tcp_event_t (*dequeue)();
	struct tcp_event_t event;

	if (!handle) {
		fprintf(stderr, "%s\n", dlerror());
		exit(EXIT_FAILURE);
	}
	add = find(handle, "AddProbe");
	status = find(handle, "getStatus");
	dequeue = find(handle, "DequeuePerfEvent");
	stop = find(handle, "cleanup");

	signal(SIGINT, on_interrupt);
	add(text);
	while (!status())
		;
	printf("watching as %d, %d\n", getpid(), TCP_ESTABLISHED);
	fflush(stdout);
	for (;;) {
		event = dequeue();
		show(&event);
	}
}
