/*
 * Interposes on the library's calls for sock_diag, to imitate other kernels. PICKY says how, with any of these words:
 *
 *   one-family   no listing of both families at once
 *   no-ipv4, no-ipv6
 *                without this family
 *   no-module    no sock_diag for TCP at all
 *   no-socket    not even the netlink family
 *   short-info   Linux 4.9's tcp_info, which ends after delivery_rate (168 bytes)
 *
 * A refused request is passed to the kernel for a family without sock_diag, so that the error is the kernel's own. Each
 * request writes a byte to the file PICKY_COUNT.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OLD_INFO = 168, FILLER = 200 };

static int is(const char *word)
{
	const char *words = getenv("PICKY");

	return words && strstr(words, word) != NULL;
}

static void count(void)
{
	const char *path = getenv("PICKY_COUNT");
	int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;

	if (fd < 0)
		return;
	if (write(fd, "x", 1) != 1)
		abort();
	close(fd);
}

static int is_netlink(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);

	return !getsockname(fd, (struct sockaddr *)&address, &length) && address.ss_family == AF_NETLINK;
}

int socket(int family, int type, int protocol)
{
	int (*real)(int, int, int);

	*(void **)&real = dlsym(RTLD_NEXT, "socket");
	if (family == AF_NETLINK && is("no-socket")) {
		count();
		errno = EPROTONOSUPPORT;
		return -1;
	}
	return real(family, type, protocol);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags)
{
	ssize_t (*real)(int, const void *, size_t, int);
	const struct nlmsghdr *header = bytes;
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 request;
	} other = {.request = {.sdiag_family = AF_APPLETALK}};
	unsigned char family;

	*(void **)&real = dlsym(RTLD_NEXT, "send");
	if (length < sizeof(*header) + sizeof(struct inet_diag_req_v2) || !is_netlink(fd))
		return real(fd, bytes, length, flags);
	count();
	family = *(const unsigned char *)NLMSG_DATA(header);
	if (header->nlmsg_type == TCPDIAG_GETSOCK ? !is("one-family") && !is("no-module")
						  : !is("no-module") && !(is("no-ipv4") && family == AF_INET) &&
							    !(is("no-ipv6") && family == AF_INET6))
		return real(fd, bytes, length, flags);
	other.header = *header;
	other.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
	other.header.nlmsg_len = sizeof(other);
	return real(fd, &other, sizeof(other), flags) < 0 ? -1 : (ssize_t)length;
}

/* What follows the 168 bytes becomes an attribute of an unknown type. */
static void shorten(struct nlmsghdr *message)
{
	struct inet_diag_msg *socket = NLMSG_DATA(message);
	struct rtattr *attribute = (struct rtattr *)(socket + 1);
	int left = (int)message->nlmsg_len - (int)NLMSG_LENGTH(sizeof(*socket));

	for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
		struct rtattr *rest = (struct rtattr *)((char *)attribute + RTA_LENGTH(OLD_INFO));

		if (attribute->rta_type != INET_DIAG_INFO || attribute->rta_len <= RTA_LENGTH(OLD_INFO))
			continue;
		rest->rta_type = FILLER;
		rest->rta_len = attribute->rta_len - RTA_LENGTH(OLD_INFO);
		attribute->rta_len = RTA_LENGTH(OLD_INFO);
		return;
	}
}

ssize_t recvfrom(int fd, void *bytes, size_t length, int flags, __SOCKADDR_ARG from, socklen_t *from_length)
{
	ssize_t (*real)(int, void *, size_t, int, __SOCKADDR_ARG, socklen_t *), received;
	struct nlmsghdr *message = bytes;
	int left;

	*(void **)&real = dlsym(RTLD_NEXT, "recvfrom");
	received = real(fd, bytes, length, flags, from, from_length);
	if (received < 0 || (size_t)received > length || !is("short-info") || !is_netlink(fd))
		return received;
	for (left = (int)received; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left))
		if (message->nlmsg_type == SOCK_DIAG_BY_FAMILY || message->nlmsg_type == TCPDIAG_GETSOCK)
			shorten(message);
	return received;
}
