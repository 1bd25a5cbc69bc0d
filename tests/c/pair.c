/*
 * Both ends of one connection, at fixed ports of 127.0.0.1.
 *
 *   pair CLIENT_PORT SERVER_PORT UP DOWN
 *
 * It connects, sends UP bytes from the client and DOWN bytes from the server, and prints "open". Commands on stdin,
 * each answered by "closed": "in-order": the client closes, then the server; "reset": the server resets, and the client
 * keeps its end.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static void transfer(int from, int to, long bytes)
{
	char buffer[4096] = "";

	while (bytes > 0) {
		long count = bytes < (long)sizeof(buffer) ? bytes : (long)sizeof(buffer), unread;

		must(count = send(from, buffer, (size_t)count, 0), "send");
		for (unread = count; unread > 0; unread -= count)
			must(count = recv(to, buffer, (size_t)unread, 0), "recv"), bytes -= count;
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in client_address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in server_address = client_address;
	struct linger hard = {.l_onoff = 1};
	int listener, client, server, yes = 1;
	char line[16];

	if (argc != 5)
		return 2;
	client_address.sin_port = htons((uint16_t)atoi(argv[1]));
	server_address.sin_port = htons((uint16_t)atoi(argv[2]));
	must(listener = socket(AF_INET, SOCK_STREAM, 0), "socket");
	must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)), "SO_REUSEADDR");
	must(bind(listener, (struct sockaddr *)&server_address, sizeof(server_address)), "bind");
	must(listen(listener, 8), "listen");
	must(client = socket(AF_INET, SOCK_STREAM, 0), "socket");
	must(setsockopt(client, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)), "SO_REUSEADDR");
	must(bind(client, (struct sockaddr *)&client_address, sizeof(client_address)), "bind");
	must(connect(client, (struct sockaddr *)&server_address, sizeof(server_address)), "connect");
	must(server = accept(listener, NULL, NULL), "accept");
	must(close(listener), "close");
	transfer(client, server, atol(argv[3]));
	transfer(server, client, atol(argv[4]));
	puts("open");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "in-order\n")) {
			must(shutdown(client, SHUT_WR), "shutdown");
			must(recv(server, line, 1, 0), "recv");
			must(close(server), "close");
			must(recv(client, line, 1, 0), "recv");
			must(close(client), "close");
		} else if (!strcmp(line, "reset\n")) {
			must(setsockopt(server, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)), "SO_LINGER");
			must(close(server), "close");
			recv(client, line, 1, 0);
		} else {
			return 2;
		}
		puts("closed");
		fflush(stdout);
	}
	return 0;
}
