#pragma once
/*
 * A client's connection to peftd: requests, replies and streams over one ZeroMQ DEALER.
 *
 * A call is one request and what comes back for it. Calls that may be sent again (CLIENT_RESEND)
 * are, with the same request id, whenever the connection was lost and found again, so that a daemon
 * that restarts goes unnoticed. Other calls end with CLIENT_LOST, and their owner opens them again
 * from where it was.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/proto.h"
#include "rpc.pb-c.h"
#include "util/errmsg.h"

enum {
	/* Beyond the codes of enum status: the connection went, and the call with it. */
	CLIENT_LOST = 100,

	CLIENT_CONNECT_MS = 3000,  /* without an answer to Hello: no daemon */
	CLIENT_LOST_MS = 60000,    /* the same, once there was one: it may be restarting */
	CLIENT_QUICK_MS = 15000,   /* for replies that need no work */
	CLIENT_BUSY_MS = 10000,    /* UNAVAILABLE is tried again this long */
};

enum {
	CLIENT_RESEND = 1, /* flag of client_start() */
};

struct client;
struct call;

/* What came back: free with answer_deinit(). */
struct answer {
	Peftd__V1__Reply *reply;
	uint8_t *raw;
	size_t raw_len;
};

void answer_deinit(struct answer *a);

/* Where peftctl looks when nobody tells it: PEFTD_ENDPOINT, a socket in $XDG_RUNTIME_DIR, the
 * service's. Allocated; NULL without memory. */
char *client_default_endpoint(void);

/* Nothing is connected before the first call. -ENOMEM. */
int client_new(struct client **ret, const char *endpoint, int connect_timeout_ms);
void client_free(struct client *c);

/* A request's id, made once and kept for as long as the request may be sent again. */
void client_make_id(uint8_t id[REQUEST_ID_SIZE]);

/* Connects, where that is needed, and sends. `req->id` must be set. `raw` goes behind the request
 * and cannot be combined with CLIENT_RESEND. 0; STATUS_UNAVAILABLE when no daemon answers;
 * STATUS_VERSION; -errno. */
int client_start(struct client *c, const Peftd__V1__Request *req, const void *raw, size_t raw_len,
	unsigned flags, struct call **ret, struct errmsg *err);

/*
 * Waits for the next reply of a call, at most timeout_ms (-1: for ever), renewing the lease
 * meanwhile. 0 with an OK reply; -ETIMEDOUT; CLIENT_LOST; the reply's own status, with its message,
 * when that is not OK; STATUS_UNAVAILABLE when a lost daemon does not come back.
 */
int client_next(struct client *c, struct call *call, int timeout_ms, struct answer *ret,
	struct errmsg *err);

/* True after the last reply was taken. */
bool call_finished(const struct call *call);

/* Ends a call, at the daemon too where it still runs, and frees it. NULL is fine. */
void client_end(struct client *c, struct call *call);

/* Gives credit to a running stream. */
void client_credit(struct client *c, const struct call *call, uint32_t credit);

/* Forgets the connection; the next call makes a new one. */
void client_drop(struct client *c);

/*
 * One request and its reply, sent again as often as needed; makes the id where `req->id` is unset.
 * `timeout_ms` bounds the wait for the reply once connected; -1: none. 0 and *ret (free with
 * proto_free()); the reply's status; STATUS_UNAVAILABLE; -errno.
 */
int client_call(struct client *c, Peftd__V1__Request *req, int timeout_ms, Peftd__V1__Reply **ret,
	struct errmsg *err);

/* Waits before trying again something that was UNAVAILABLE or lost. */
void client_pause(int ms);
