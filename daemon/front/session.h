#pragma once
/* Client sessions: which routing id is which session, what it is waiting for, and the replies that
 * its socket does not take yet. Nothing here is durable. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/proto.h"

enum {
	SESSION_ROUTING_ID_SIZE = 5,  /* libzmq's own: a zero byte and a counter */
	SESSION_MAX = 16384,          /* in all */
	SESSION_MAX_PER_UID = 12288,  /* so that one user leaves room for others */
	SESSION_OUTSTANDING_MAX = 64, /* unanswered requests, running streams included */
	SESSION_QUEUE_MAX = 256,      /* replies waiting for a peer that does not read */
	SESSION_QUEUE_BYTES_MAX = 4 << 20,
	SESSION_LEASE_S = 20,
};

struct reply {
	struct reply *next;
	size_t len, raw_len;
	uint8_t data[]; /* len bytes of the packed Reply, then raw_len raw ones */
};

struct session {
	struct session *next_by_rid, *next_by_number;
	struct session *prev, *next; /* of all sessions */
	uint64_t number;
	uint32_t uid;
	uint8_t rid[SESSION_ROUTING_ID_SIZE];
	int64_t seen_ns; /* monotonic; the last message of the peer */
	size_t n_outstanding, cap_outstanding;
	uint8_t (*outstanding)[REQUEST_ID_SIZE];
	struct reply *queue, **queue_tail;
	size_t queued, queued_bytes;
};

struct session_table;

int session_table_new(struct session_table **ret);
void session_table_free(struct session_table *t);

size_t session_count(const struct session_table *t);

struct session *session_by_rid(const struct session_table *t, const void *rid);
struct session *session_by_number(const struct session_table *t, uint64_t number);

/* The session after `s`, or the first when `s` is NULL; NULL at the end. Ask for the next one
 * before removing one. */
struct session *session_next(const struct session_table *t, const struct session *s);

/* A new session with a number never used before. STATUS_UNAVAILABLE when there are too many;
 * -ENOMEM. */
int session_add(struct session_table *t, const void *rid, uint32_t uid, int64_t now_ns,
	struct session **ret, struct errmsg *err);

/* Removes and frees. */
void session_remove(struct session_table *t, struct session *s);

bool session_waits_for(const struct session *s, const void *request_id);

/* Notes a request as unanswered. STATUS_UNAVAILABLE when there are too many; -ENOMEM. */
int session_note(struct session *s, const void *request_id, struct errmsg *err);

/* Forgets it; false when it was not noted. */
bool session_forget(struct session *s, const void *request_id);

/* Queues a packed reply behind those queued already. STATUS_QUOTA when the session's queue is full;
 * -ENOMEM. */
int session_queue(struct session *s, const void *data, size_t len, const void *raw, size_t raw_len);

/* Drops the first queued reply. */
void session_dequeue(struct session *s);
