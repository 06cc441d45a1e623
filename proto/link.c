#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/proto.h"
#include "util/cleanup.h"
#include "util/util.h"

struct frame {
	struct frame *next;
	size_t len;
	uint8_t data[];
};

struct link {
	int fd;
	struct frame *head, **tail;
	size_t queued, queued_bytes;
	uint8_t *in; /* LINK_FRAME_MAX bytes */
};

int link_pair(int fds[2])
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0 ? -errno : 0;
}

int link_new(struct link **ret, int fd)
{
	/* The kernel doubles the value and caps it at wmem_max (212,992 by default): 425,984, which
	 * holds a frame. It must be checked, for a frame above it would fail with EMSGSIZE. */
	int size = 4 * LINK_FRAME_MAX, got = 0;
	socklen_t len = sizeof(got);
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) < 0 ||
		getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &got, &len) < 0) {
		return -errno;
	}
	if (got < LINK_FRAME_MAX + 64) {
		return -EMSGSIZE;
	}
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		return -errno;
	}

	struct link *l = calloc(1, sizeof(*l));
	if (!l) {
		return -ENOMEM;
	}
	l->in = malloc(LINK_FRAME_MAX);
	if (!l->in) {
		free(l);
		return -ENOMEM;
	}
	l->fd = fd;
	l->tail = &l->head;
	*ret = l;
	return 0;
}

void link_free(struct link *l)
{
	if (!l) {
		return;
	}
	while (l->head) {
		struct frame *next = l->head->next;
		free(l->head);
		l->head = next;
	}
	close(l->fd);
	free(l->in);
	free(l);
}

int link_fd(const struct link *l)
{
	return l->fd;
}

size_t link_queued(const struct link *l)
{
	return l->queued;
}

size_t link_queued_bytes(const struct link *l)
{
	return l->queued_bytes;
}

int link_flush(struct link *l)
{
	while (l->head) {
		struct frame *f = l->head;
		if (send(l->fd, f->data, f->len, MSG_NOSIGNAL) < 0) {
			if (errno == EINTR) {
				continue;
			}
			return errno == EAGAIN || errno == ENOBUFS ? 0 : -errno;
		}
		l->head = f->next;
		l->queued--;
		l->queued_bytes -= f->len;
		if (!l->head) {
			l->tail = &l->head;
		}
		free(f);
	}
	return 0;
}

int link_send(struct link *l, const void *msg, const void *raw, size_t raw_len)
{
	size_t msg_len = protobuf_c_message_get_packed_size(msg);
	size_t len;
	if (!add_size(msg_len, raw_len, &len) || !add_size(len, 4, &len) || len > LINK_FRAME_MAX) {
		return -EMSGSIZE;
	}
	struct frame *f = malloc(sizeof(*f) + len);
	if (!f) {
		return -ENOMEM;
	}
	f->next = NULL;
	f->len = len;
	le32_write(f->data, (uint32_t)msg_len);
	protobuf_c_message_pack(msg, f->data + 4);
	if (raw_len > 0) {
		memcpy(f->data + 4 + msg_len, raw, raw_len);
	}
	*l->tail = f;
	l->tail = &f->next;
	l->queued++;
	l->queued_bytes += len;
	return link_flush(l);
}

int link_recv(struct link *l, const ProtobufCMessageDescriptor *desc, void **ret_msg,
	const void **ret_raw, size_t *ret_raw_len, struct errmsg *err)
{
	ssize_t n;
	do {
		n = recv(l->fd, l->in, LINK_FRAME_MAX, MSG_TRUNC);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		return errno == EAGAIN ? 0 : -errno;
	}
	if (n == 0) {
		return -ECONNRESET;
	}
	uint32_t msg_len = n >= 4 ? le32_read(l->in) : 0;
	if (n < 4 || n > LINK_FRAME_MAX || msg_len > (size_t)n - 4) {
		errmsg_set(err, STATUS_INTERNAL, "link: malformed frame of %zd bytes", n);
		return -EPROTO;
	}
	void *msg = proto_unpack(desc, l->in + 4, msg_len, LINK_FRAME_MAX, err);
	if (!msg) {
		return -EPROTO;
	}
	*ret_msg = msg;
	*ret_raw = l->in + 4 + msg_len;
	*ret_raw_len = (size_t)n - 4 - msg_len;
	return 1;
}

int link_recv_wait(struct link *l, int timeout_ms, const ProtobufCMessageDescriptor *desc,
	void **ret_msg, const void **ret_raw, size_t *ret_raw_len, struct errmsg *err)
{
	int64_t deadline = clock_monotonic_ns() + (int64_t)timeout_ms * 1000000;
	for (;;) {
		int r = link_flush(l);
		if (r < 0) {
			return r;
		}
		r = link_recv(l, desc, ret_msg, ret_raw, ret_raw_len, err);
		if (r != 0) {
			return r;
		}
		int wait = -1;
		if (timeout_ms >= 0) {
			int64_t left = deadline - clock_monotonic_ns();
			if (left <= 0) {
				return -ETIMEDOUT;
			}
			wait = (int)((left + 999999) / 1000000);
		}
		struct pollfd p = {l->fd, (short)(POLLIN | (l->head ? POLLOUT : 0)), 0};
		if (poll(&p, 1, wait) < 0 && errno != EINTR) {
			return -errno;
		}
	}
}
