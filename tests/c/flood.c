/*
 * Connects endlessly, as user nobody, to a port without a listener.
 *
 *   flood PROCESSES SECONDS FIRST-ADDRESS ADDRESSES PORT
 *
 * Prints how many connections it began.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { NOBODY = 65534, LOOKS_AT_THE_CLOCK = 64 };

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t connect_until(double end, uint32_t first, uint32_t addresses, uint16_t port, uint32_t start)
{
	uint64_t count = 0;

	for (;; count++) {
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
		int fd;

		if (count % LOOKS_AT_THE_CLOCK == 0 && now() >= end)
			return count;
		fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		to.sin_addr.s_addr = htonl(first + (uint32_t)((start + count) % addresses));
		/* Refused before it returns. */
		if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) == 0)
			_exit(1);
		close(fd);
	}
}

int main(int argc, char **argv)
{
	int processes = argc == 6 ? atoi(argv[1]) : 0;
	double end = now() + (argc == 6 ? atof(argv[2]) : 0);
	uint64_t *counts = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t all = 0;
	struct in_addr first;

	if (processes < 1 || processes > 1024 || counts == MAP_FAILED || inet_pton(AF_INET, argv[3], &first) != 1)
		return 2;
	if (setgid(NOBODY) != 0 || setuid(NOBODY) != 0)
		return 2;
	for (int i = 0; i < processes; i++) {
		pid_t child = fork();

		if (child < 0)
			return 2;
		if (child > 0)
			continue;
		counts[i] = connect_until(end, ntohl(first.s_addr), (uint32_t)atoi(argv[4]), (uint16_t)atoi(argv[5]),
					  (uint32_t)i * 101);
		_exit(0);
	}
	for (int status; wait(&status) > 0;)
		if (status != 0)
			return 1;
	for (int i = 0; i < processes; i++)
		all += counts[i];
	printf("%llu\n", (unsigned long long)all);
	return 0;
}
