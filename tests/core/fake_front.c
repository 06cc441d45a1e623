/* Stands in for peftd-front: clients connect to a SOCK_SEQPACKET socket at the endpoint's path and
 * speak Request and Reply in the link's framing; no ZeroMQ. Everybody is user 1000.
 * FAKE_FRONT_EXIT=N: ends at once with that status. */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "link.pb-c.h"
#include "proto/proto.h"

enum { CLIENTS = 16 };

struct front {
	struct link *core;
	int listener;
	struct link *clients[CLIENTS];
	uint64_t sessions[CLIENTS], next;
	bool stop;
};

static int start_listening(const Peftd__V1__FrontConfig *config)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const ProtobufCBinaryData *e = &config->endpoints[0];
	if (e->len < 7 || e->len - 6 >= sizeof(a.sun_path)) {
		return -1;
	}
	memcpy(a.sun_path, e->data + 6, e->len - 6);
	unlink(a.sun_path);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 16) < 0) {
		fprintf(stderr, "fake front: %s: %s\n", a.sun_path, strerror(errno));
		return -1;
	}
	return fd;
}

static bool hear_core(struct front *f)
{
	for (;;) {
		void *msg;
		const void *raw;
		size_t len;
		struct errmsg err;
		int r = link_recv(f->core, &peftd__v1__core_to_front__descriptor, &msg, &raw, &len, &err);
		if (r <= 0) {
			return r == 0;
		}
		Peftd__V1__CoreToFront *m = msg;
		if (m->what_case == PEFTD__V1__CORE_TO_FRONT__WHAT_CONFIG) {
			f->listener = start_listening(m->config);
			if (f->listener < 0) {
				exit(2);
			}
			Peftd__V1__FrontToCore hello = PEFTD__V1__FRONT_TO_CORE__INIT;
			Peftd__V1__FrontReady ready = PEFTD__V1__FRONT_READY__INIT;
			ready.version = LINK_VERSION;
			hello.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_READY;
			hello.ready = &ready;
			link_send(f->core, &hello, NULL, 0);
		} else if (m->what_case == PEFTD__V1__CORE_TO_FRONT__WHAT_SHUTDOWN) {
			f->stop = true;
		} else {
			for (int i = 0; i < CLIENTS; i++) {
				if (f->clients[i] && f->sessions[i] == m->reply->session) {
					link_send(f->clients[i], m->reply->reply, raw, len);
				}
			}
		}
		proto_free(msg);
	}
}

static void hear_client(struct front *f, int i)
{
	for (;;) {
		void *msg;
		const void *raw;
		size_t len;
		struct errmsg err;
		Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
		int r = link_recv(f->clients[i], &peftd__v1__request__descriptor, &msg, &raw, &len, &err);
		if (r == 0) {
			return;
		}
		if (r < 0) {
			Peftd__V1__SessionEnd end = PEFTD__V1__SESSION_END__INIT;
			end.session = f->sessions[i];
			m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END;
			m.session_end = &end;
			link_send(f->core, &m, NULL, 0);
			link_free(f->clients[i]);
			f->clients[i] = NULL;
			return;
		}
		Peftd__V1__ClientRequest request = PEFTD__V1__CLIENT_REQUEST__INIT;
		request.session = f->sessions[i];
		request.uid = 1000;
		request.request = msg;
		m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST;
		m.request = &request;
		link_send(f->core, &m, raw, len);
		proto_free(msg);
	}
}

static void take_client(struct front *f)
{
	int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
	for (int i = 0; fd >= 0 && i < CLIENTS; i++) {
		if (!f->clients[i]) {
			if (link_new(&f->clients[i], fd) < 0) {
				close(fd);
			}
			f->sessions[i] = ++f->next;
			return;
		}
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct front f = {.listener = -1};
	int fd = -1;
	for (int i = 1; i + 1 < argc; i++) {
		if (strcmp(argv[i], "--link-fd") == 0) {
			fd = (int)strtol(argv[i + 1], NULL, 10);
		}
	}
	if (getenv("FAKE_FRONT_EXIT")) {
		return (int)strtol(getenv("FAKE_FRONT_EXIT"), NULL, 10);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (link_new(&f.core, fd) < 0) {
		return 1;
	}
	while (!f.stop) {
		struct pollfd p[CLIENTS + 2];
		p[0] = (struct pollfd){fd, (short)(POLLIN | (link_queued(f.core) ? POLLOUT : 0)), 0};
		p[1] = (struct pollfd){f.listener, POLLIN, 0};
		for (int i = 0; i < CLIENTS; i++) {
			p[i + 2] = (struct pollfd){f.clients[i] ? link_fd(f.clients[i]) : -1, POLLIN, 0};
			if (f.clients[i] && link_queued(f.clients[i])) {
				p[i + 2].events |= POLLOUT;
			}
		}
		if (poll(p, CLIENTS + 2, -1) < 0 && errno != EINTR) {
			return 1;
		}
		link_flush(f.core);
		if (!hear_core(&f)) {
			return 0;
		}
		if (p[1].revents & POLLIN) {
			take_client(&f);
		}
		for (int i = 0; i < CLIENTS; i++) {
			if (f.clients[i] && p[i + 2].revents) {
				link_flush(f.clients[i]);
				hear_client(&f, i);
			}
		}
	}
	return 0;
}
