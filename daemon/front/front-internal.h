#pragma once
/* What the files of the front share. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/front/front.h"
#include "daemon/front/session.h"
#include "link.pb-c.h"
#include "proto/proto.h"

enum {
	FRONT_ENDPOINTS_MAX = 8,
	FRONT_FRAME_MAX = 300 * 1024, /* ZMQ_MAXMSGSIZE: a chunk and some room */
	FRONT_LINK_BACKLOG = 8 << 20, /* bytes queued to the core at which clients have to wait */
	FRONT_BATCH = 128,            /* messages from one side before the other has its turn */
};

struct front {
	struct front_options options;
	struct link *link;
	void *zmq, *router, *monitor;
	struct session_table *sessions;
	size_t blocked;      /* sessions with queued replies */
	size_t queued_bytes; /* of all of them */
	char *endpoints[FRONT_ENDPOINTS_MAX]; /* as in FrontConfig */
	size_t n_endpoints;
	bool is_bound[FRONT_ENDPOINTS_MAX], bound; /* each of them; all of them */
	size_t connections; /* accepted and not closed yet */
	int64_t swept_ns;
	uint64_t dropped; /* malformed messages, for the log */
	bool shut_down;
};

/* front.c */

/* Ends a session and tells the core. 0 or -errno of the link. */
int front_end_session(struct front *f, struct session *s, const char *why);

/* inbound.c: receives and handles one message of a client. 1; 0 when there is none; -errno. */
int front_receive(struct front *f);

/* outbound.c */

/* Sends a reply to a routing id that may have no session; what cannot be sent now is dropped. */
void front_answer(struct front *f, const void *rid, const void *request_id, size_t id_len, int code,
	const char *text);

/* Hands a reply of the core to its session. 0, also when the session is gone; -errno. */
int front_reply(struct front *f, const Peftd__V1__ClientReply *reply, const void *raw,
	size_t raw_len);

/* Sends what is queued for a session, as far as its peer takes it. 0 or -errno. The session may be
 * gone afterwards. */
int front_flush_session(struct front *f, struct session *s);

/* Packs and sends or queues a reply. 0 or -errno. The session may be gone afterwards. */
int front_send(struct front *f, struct session *s, const Peftd__V1__Reply *reply, const void *raw,
	size_t raw_len);
