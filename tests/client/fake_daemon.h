#pragma once
/* A daemon played in a thread: speaks rpc.proto on an ipc socket, answers what it is told to. */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/proto.h"
#include "rpc.pb-c.h"

struct fake;

/* One request, in the daemon's thread. Hello is answered without asking. */
typedef void (*fake_handler)(struct fake *f, const Peftd__V1__Request *req, const void *raw,
	size_t raw_len);

struct fake {
	char dir[64], path[96], endpoint[128];
	fake_handler handle;
	void *data;             /* the handler's */
	uint32_t protocol;      /* that it speaks; another one in Hello is refused */
	/* Of the daemon's thread: */
	void *zmq, *router;
	char rid[16];           /* of the request being handled */
	size_t rid_len;
	bool forget;            /* answer leases as the front does when it knows no such session */
	bool restart;           /* set by a handler: all connections break, the socket comes back */
	unsigned restart_ms;    /* after this long */
	unsigned hellos, requests, leases, credits, ends;
	/* Of both: */
	pthread_t thread;
	int stop[2];            /* a pipe */
};

/* Makes the folder; starts nothing. */
void fake_init(struct fake *f, fake_handler handle, void *data);
void fake_start(struct fake *f);
void fake_stop(struct fake *f);
void fake_deinit(struct fake *f); /* stops, removes the folder */

/* Sends a reply to the request being handled; its id and status are filled in where they are
 * not. */
void fake_reply(struct fake *f, const Peftd__V1__Request *req, Peftd__V1__Reply *reply,
	const void *raw, size_t raw_len);
void fake_fail(struct fake *f, const Peftd__V1__Request *req, int code, const char *text);
