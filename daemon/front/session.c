#include "daemon/front/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/util.h"

enum { BUCKETS = 16384 };

struct session_table {
	struct session *by_rid[BUCKETS], *by_number[BUCKETS];
	struct session *first;
	uint64_t last_number;
	size_t count;
};

int session_table_new(struct session_table **ret)
{
	struct session_table *t = calloc(1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	*ret = t;
	return 0;
}

void session_table_free(struct session_table *t)
{
	if (!t) {
		return;
	}
	while (t->first) {
		session_remove(t, t->first);
	}
	free(t);
}

size_t session_count(const struct session_table *t)
{
	return t->count;
}

/* libzmq counts its routing ids up from a random start, so their low bits spread by themselves. */
static size_t rid_bucket(const uint8_t *rid)
{
	return ((size_t)rid[3] << 8 | rid[4]) % BUCKETS;
}

struct session *session_by_rid(const struct session_table *t, const void *rid)
{
	struct session *s = t->by_rid[rid_bucket(rid)];
	while (s && memcmp(s->rid, rid, SESSION_ROUTING_ID_SIZE) != 0) {
		s = s->next_by_rid;
	}
	return s;
}

struct session *session_by_number(const struct session_table *t, uint64_t number)
{
	struct session *s = t->by_number[number % BUCKETS];
	while (s && s->number != number) {
		s = s->next_by_number;
	}
	return s;
}

struct session *session_next(const struct session_table *t, const struct session *s)
{
	return s ? s->next : t->first;
}

static size_t count_uid(const struct session_table *t, uint32_t uid)
{
	size_t n = 0;
	for (struct session *s = t->first; s; s = s->next) {
		n += s->uid == uid;
	}
	return n;
}

int session_add(struct session_table *t, const void *rid, uint32_t uid, int64_t now_ns,
	struct session **ret, struct errmsg *err)
{
	if (t->count >= SESSION_MAX) {
		return errmsg_set(err, STATUS_UNAVAILABLE,
			"the daemon serves %d connections already, its limit; try again later", SESSION_MAX);
	}
	if (t->count >= SESSION_MAX_PER_UID && count_uid(t, uid) >= SESSION_MAX_PER_UID) {
		return errmsg_set(err, STATUS_UNAVAILABLE,
			"user %u has %d connections already, the limit for one user; try again later",
			uid, SESSION_MAX_PER_UID);
	}
	struct session *s = calloc(1, sizeof(*s));
	if (!s) {
		return -ENOMEM;
	}
	memcpy(s->rid, rid, SESSION_ROUTING_ID_SIZE);
	s->uid = uid;
	s->seen_ns = now_ns;
	s->number = ++t->last_number;
	s->queue_tail = &s->queue;

	struct session **bucket = &t->by_rid[rid_bucket(s->rid)];
	s->next_by_rid = *bucket;
	*bucket = s;
	bucket = &t->by_number[s->number % BUCKETS];
	s->next_by_number = *bucket;
	*bucket = s;
	s->next = t->first;
	if (t->first) {
		t->first->prev = s;
	}
	t->first = s;
	t->count++;
	*ret = s;
	return 0;
}

void session_remove(struct session_table *t, struct session *s)
{
	struct session **at = &t->by_rid[rid_bucket(s->rid)];
	while (*at != s) {
		at = &(*at)->next_by_rid;
	}
	*at = s->next_by_rid;
	at = &t->by_number[s->number % BUCKETS];
	while (*at != s) {
		at = &(*at)->next_by_number;
	}
	*at = s->next_by_number;
	if (s->prev) {
		s->prev->next = s->next;
	} else {
		t->first = s->next;
	}
	if (s->next) {
		s->next->prev = s->prev;
	}
	t->count--;
	while (s->queue) {
		session_dequeue(s);
	}
	free(s->outstanding);
	free(s);
}

static size_t find_outstanding(const struct session *s, const void *request_id)
{
	size_t i = 0;
	while (i < s->n_outstanding && memcmp(s->outstanding[i], request_id, REQUEST_ID_SIZE) != 0) {
		i++;
	}
	return i;
}

bool session_waits_for(const struct session *s, const void *request_id)
{
	return find_outstanding(s, request_id) < s->n_outstanding;
}

int session_note(struct session *s, const void *request_id, struct errmsg *err)
{
	if (s->n_outstanding >= SESSION_OUTSTANDING_MAX) {
		return errmsg_set(err, STATUS_UNAVAILABLE,
			"%d requests of this connection are unanswered already; wait for some of them",
			SESSION_OUTSTANDING_MAX);
	}
	if (s->n_outstanding == s->cap_outstanding) {
		size_t cap = s->cap_outstanding ? 2 * s->cap_outstanding : 2;
		void *grown = realloc_array(s->outstanding, cap, REQUEST_ID_SIZE);
		if (!grown) {
			return -ENOMEM;
		}
		s->outstanding = grown;
		s->cap_outstanding = cap;
	}
	memcpy(s->outstanding[s->n_outstanding++], request_id, REQUEST_ID_SIZE);
	return 0;
}

bool session_forget(struct session *s, const void *request_id)
{
	size_t i = find_outstanding(s, request_id);
	if (i == s->n_outstanding) {
		return false;
	}
	s->n_outstanding--;
	memmove(s->outstanding[i], s->outstanding[s->n_outstanding], REQUEST_ID_SIZE);
	return true;
}

int session_queue(struct session *s, const void *data, size_t len, const void *raw, size_t raw_len)
{
	if (s->queued >= SESSION_QUEUE_MAX ||
		s->queued_bytes + len + raw_len > SESSION_QUEUE_BYTES_MAX) {
		return STATUS_QUOTA;
	}
	struct reply *r = malloc(sizeof(*r) + len + raw_len);
	if (!r) {
		return -ENOMEM;
	}
	r->next = NULL;
	r->len = len;
	r->raw_len = raw_len;
	memcpy(r->data, data, len);
	if (raw_len > 0) {
		memcpy(r->data + len, raw, raw_len);
	}
	*s->queue_tail = r;
	s->queue_tail = &r->next;
	s->queued++;
	s->queued_bytes += len + raw_len;
	return 0;
}

void session_dequeue(struct session *s)
{
	struct reply *r = s->queue;
	s->queue = r->next;
	s->queued--;
	s->queued_bytes -= r->len + r->raw_len;
	if (!s->queue) {
		s->queue_tail = &s->queue;
	}
	free(r);
}
