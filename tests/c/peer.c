/*
 * A server in another user's process, under a name of arbitrary bytes.
 *
 *   peer UID COMM [headless]
 *
 * UID -1: keeps its caller's users. headless: its main thread ends, and another one does the rest.
 *
 * It prints the port of 127.0.0.1 on which it listens. For each line on stdin it accepts a connection, prints
 * "accepted", and leaves the connection alone. Ends at the end of stdin.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static void *serve(void *nothing)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	char line[16];
	int listener;

	must(listener = socket(AF_INET, SOCK_STREAM, 0), "socket");
	must(bind(listener, (struct sockaddr *)&address, length), "bind");
	must(listen(listener, 8), "listen");
	must(getsockname(listener, (struct sockaddr *)&address, &length), "getsockname");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		must(accept(listener, NULL, NULL), "accept");
		puts("accepted");
		fflush(stdout);
	}
	exit(0);
	return nothing;
}

int main(int argc, char **argv)
{
	uid_t uid = argc >= 3 ? (uid_t)atoi(argv[1]) : 0;
	pthread_t thread;

	if (argc < 3)
		return 2;
	must(prctl(PR_SET_NAME, argv[2]), "PR_SET_NAME");
	must(setresuid(uid, uid, uid), "setresuid");
	if (argc == 3)
		serve(NULL);
	must(-pthread_create(&thread, NULL, serve, NULL), "pthread_create");
	pthread_exit(NULL);
}
