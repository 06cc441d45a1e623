#include "daemon/front/endpoint.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "util/cleanup.h"

static const char ipc_prefix[] = "ipc://";

static const char *ipc_path(const char *endpoint)
{
	size_t n = sizeof(ipc_prefix) - 1;
	return strncmp(endpoint, ipc_prefix, n) == 0 ? endpoint + n : NULL;
}

int endpoint_check(const char *endpoint, struct errmsg *err)
{
	const char *path = ipc_path(endpoint);
	if (strncmp(endpoint, "tcp://", 6) == 0) {
		return errmsg_set(err, STATUS_INVALID,
			"endpoint %s: tcp needs CURVE, which this version does not have; use ipc", endpoint);
	}
	if (!path) {
		return errmsg_set(err, STATUS_INVALID,
			"endpoint %s: not an ipc address; write ipc:///absolute/path", endpoint);
	}
	if (path[0] != '/') {
		/* Abstract sockets ("@name") have no permissions, relative paths no fixed meaning. */
		return errmsg_set(err, STATUS_INVALID,
			"endpoint %s: an ipc endpoint is the absolute path of a socket file: "
			"ipc:///absolute/path", endpoint);
	}
	struct sockaddr_un a;
	if (strlen(path) >= sizeof(a.sun_path)) {
		return errmsg_set(err, STATUS_INVALID,
			"endpoint %s: the path of a socket has at most %zu bytes, this one has %zu", endpoint,
			sizeof(a.sun_path) - 1, strlen(path));
	}
	return 0;
}

/* 0 when nothing is at `path` or only a socket that nobody serves any more. */
static int check_free(const char *path, struct errmsg *err)
{
	struct stat st;
	if (lstat(path, &st) < 0) {
		return errno == ENOENT ? 0 : errmsg_set(err, STATUS_FAILED, "%s: %s", path,
			strerror(errno));
	}
	if (!S_ISSOCK(st.st_mode)) {
		return errmsg_set(err, STATUS_CONFLICT,
			"%s exists and is no socket; remove it or choose another endpoint", path);
	}
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		return -errno;
	}
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	memcpy(a.sun_path, path, strlen(path) + 1);
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0 || errno == EAGAIN) {
		return errmsg_set(err, STATUS_CONFLICT,
			"%s: somebody answers there already; stop that daemon or choose another endpoint",
			path);
	}
	if (errno != ECONNREFUSED && errno != ENOENT) {
		return errmsg_set(err, STATUS_FAILED, "%s: %s", path, strerror(errno));
	}
	return 0;
}

int endpoint_bind(void *zmq_socket, const char *endpoint, mode_t mode, struct errmsg *err)
{
	int r = check_free(ipc_path(endpoint), err);
	if (r != 0) {
		return r;
	}
	mode_t old = umask(~mode & 0777);
	r = zmq_bind(zmq_socket, endpoint);
	int error = errno;
	umask(old);
	if (r < 0) {
		return errmsg_set(err, STATUS_FAILED, "cannot bind %s: %s%s", endpoint,
			zmq_strerror(error), error == ENOENT ? "; its directory must exist" : "");
	}
	return 0;
}

void endpoint_remove(const char *endpoint)
{
	struct errmsg err;
	/* A daemon that has taken the path over meanwhile keeps its socket. */
	if (check_free(ipc_path(endpoint), &err) == 0) {
		unlink(ipc_path(endpoint));
	}
}

uint32_t endpoint_peer_uid(const char *peer_address)
{
	if (!peer_address) {
		return UINT32_MAX;
	}
	/* Read from the end: what stands before the three numbers is of no known form. */
	const char *at = peer_address + strlen(peer_address);
	for (int colons = 0; colons < 3;) {
		if (at == peer_address) {
			return UINT32_MAX;
		}
		colons += *--at == ':';
	}
	char *end;
	errno = 0;
	unsigned long uid = strtoul(at + 1, &end, 10);
	bool digits = at[1] >= '0' && at[1] <= '9';
	return errno == 0 && digits && *end == ':' && uid < UINT32_MAX ? (uint32_t)uid : UINT32_MAX;
}
