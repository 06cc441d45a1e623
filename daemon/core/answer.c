/* Replies, and requests that are made more than once. */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

int answer_packed(struct core *c, uint64_t session, struct packed *reply)
{
	struct action *a = core_act(c, ACT_REPLY, &c->front);
	if (!a) {
		packed_deinit(reply);
		return -ENOMEM;
	}
	a->reply.session = session;
	a->reply.packed = *reply;
	*reply = (struct packed){0};
	return 0;
}

int answer_status(
	struct core *c, uint64_t session, const uint8_t id[16], int code, const char *fmt, ...)
{
	char text[2048];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	struct packed reply;
	int r = reply_status(&reply, id, code, text);
	return r ? r : answer_packed(c, session, &reply);
}

int answer_sessions(struct core *c, const uint64_t *sessions, size_t n, struct packed *reply)
{
	int r = 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		struct packed copy = {0};
		r = packed_set(&copy, reply->data, reply->len);
		r = r ? r : answer_packed(c, sessions[i], &copy);
	}
	packed_deinit(reply);
	return r;
}

int answer_kept(struct core *c, const struct request *req, const uint64_t *sessions, size_t n,
	struct packed *reply)
{
	struct store_request record = {.uid = req->uid, .wall_ns = (uint64_t)c->wall, .reply = *reply};
	memcpy(record.id, req->id, sizeof(record.id));
	memcpy(record.body_digest, req->body_digest, sizeof(record.body_digest));
	struct store_txn *t;
	int r = core_write(c, &t);
	r = r ? r : store_fatal(store_request_put(t, &record));
	if (r != 0) {
		packed_deinit(reply);
		return r < 0 ? r : -EIO;
	}
	return answer_sessions(c, sessions, n, reply);
}

bool request_changes(const struct request *req)
{
	switch (req->kind) {
	case REQUEST_MODEL_ADD:
	case REQUEST_MODEL_REMOVE:
	case REQUEST_DATASET_PUT:
	case REQUEST_DATASET_REMOVE:
	case REQUEST_JOB_CONTROL:
		return true;
	case REQUEST_SUBMIT:
		return !req->plan_only;
	default:
		return false;
	}
}

int sessions_add(uint64_t **sessions, size_t *n, uint64_t session)
{
	for (size_t i = 0; i < *n; i++) {
		if ((*sessions)[i] == session) {
			return 0;
		}
	}
	uint64_t *grown = realloc_array(*sessions, *n + 1, sizeof(uint64_t));
	if (!grown) {
		return -ENOMEM;
	}
	grown[(*n)++] = session;
	*sessions = grown;
	return 0;
}

bool sessions_drop(uint64_t *sessions, size_t *n, uint64_t session)
{
	size_t kept = 0;
	for (size_t i = 0; i < *n; i++) {
		if (sessions[i] != session) {
			sessions[kept++] = sessions[i];
		}
	}
	*n = kept;
	return kept == 0;
}

static int other_body(struct core *c, const struct request *req)
{
	int r = answer_status(c, req->session, req->id, STATUS_CONFLICT,
		"this request id was used before, for another request; make a new id for each request");
	return r ? r : 1;
}

/* The same request is under way: its answer will go to this session, too. */
static int join(struct core *c, const struct request *req, const struct request *first,
	uint64_t **sessions, size_t *n)
{
	if (memcmp(req->body_digest, first->body_digest, sizeof(req->body_digest)) != 0) {
		return other_body(c, req);
	}
	int r = sessions_add(sessions, n, req->session);
	return r ? r : 1;
}

int answer_again(struct core *c, const struct request *req)
{
	struct work *w = work_find(c, req->uid, req->id);
	if (w) {
		return join(c, req, &w->req, &w->sessions, &w->n_sessions);
	}
	struct hold *h;
	TAILQ_FOREACH (h, &c->holds, entry) {
		if (h->req.uid == req->uid && memcmp(h->req.id, req->id, 16) == 0) {
			return join(c, req, &h->req, &h->sessions, &h->n_sessions);
		}
	}
	struct store_request before = {0};
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_request_get(t, req->uid, req->id, &before);
	if (r != 0) {
		return r == STATUS_NOT_FOUND ? 0 : store_fatal(r);
	}
	if (memcmp(req->body_digest, before.body_digest, sizeof(req->body_digest)) != 0) {
		r = other_body(c, req);
	} else {
		r = answer_packed(c, req->session, &before.reply);
		r = r ? r : 1;
	}
	store_request_deinit(&before);
	return r;
}
