/* Requests about models. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

DEFINE_CLEANUP(struct task_spec *, task_spec_unref);

static int add(struct core *c, struct request *req)
{
	_cleanup_(task_spec_unrefp) struct task_spec *spec = task_spec_new(TASK_MODEL_INSPECT);
	if (!spec || !(spec->model_name = strdup(req->name)) ||
		!(spec->model_path = strdup(req->path))) {
		return -ENOMEM;
	}
	struct work *w;
	return work_add(c, req, steal_ptr(spec), false, &w);
}

int model_result(struct core *c, struct work *w, struct task_result *res)
{
	_cleanup_(store_model_deinit) struct store_model old = {0};
	struct store_txn *t;
	struct packed reply;
	const char *path = res->path ? res->path : w->req.path;
	int r = core_read(c, &t);
	r = r ? r : store_model_get(t, w->req.name, &old);
	if (r == 0) {
		if (memcmp(old.digest, res->digest, 32) != 0 || strcmp(old.path, path) != 0) {
			return work_fail(c, w, STATUS_CONFLICT,
				"there is a model %s already, from %s; remove it first with `peftctl model rm %s`",
				w->req.name, old.path, w->req.name);
		}
		r = reply_model(&reply, w->req.id, &old.facts);
		return r ? r : work_answer(c, w, &reply);
	}
	if (r != STATUS_NOT_FOUND) {
		return r;
	}
	r = convert_model_name(&res->packed, w->req.name, path, (uint64_t)c->wall);
	r = r ? r : core_write(c, &t);
	if (r < 0) {
		return r;
	}
	struct store_model m = {.name = w->req.name, .path = (char *)path, .facts = res->packed};
	memcpy(m.digest, res->digest, sizeof(m.digest));
	r = store_fatal(store_model_put(t, &m));
	r = r ? r : reply_model(&reply, w->req.id, &res->packed);
	return r ? r : work_answer(c, w, &reply);
}

static int show(struct core *c, const struct request *req)
{
	_cleanup_(store_model_deinit) struct store_model m = {0};
	struct packed reply;
	int r = find_model(c, req, req->name, &m);
	r = r ? r : reply_model(&reply, req->id, &m.facts);
	return r ? r : answer_packed(c, req->session, &reply);
}

static int remove_model(struct core *c, const struct request *req)
{
	_cleanup_(store_model_deinit) struct store_model m = {0};
	int r = find_model(c, req, req->name, &m);
	if (r != 0) {
		return r;
	}
	for (size_t i = 0; i < c->n_jobs; i++) {
		if (strcmp(c->jobs[i]->rec.model, req->name) == 0 &&
			!job_state_ended(c->jobs[i]->rec.state)) {
			return answer_status(c, req->session, req->id, STATUS_CONFLICT,
				"model %s is needed by job %llu, which has not ended; cancel that first", req->name,
				(unsigned long long)c->jobs[i]->rec.id);
		}
	}
	struct store_txn *t;
	struct packed reply;
	r = core_write(c, &t);
	r = r ? r : store_fatal(store_model_remove(t, req->name));
	r = r ? r : reply_status(&reply, req->id, STATUS_OK, NULL);
	return r ? r : answer_kept(c, req, &req->session, 1, &reply);
}

/* ---- list ---------------------------------------------------------------------------------- */

struct list {
	struct core *c;
	const struct request *req;
	struct packed items[64];
	size_t n, bytes;
};

static int send_list(struct list *l, bool more)
{
	struct packed reply;
	int r = reply_models(&reply, l->req->id, l->items, l->n, more);
	for (size_t i = 0; i < l->n; i++) {
		packed_deinit(&l->items[i]);
	}
	l->n = l->bytes = 0;
	return r ? r : answer_packed(l->c, l->req->session, &reply);
}

static int list_one(void *ctx, const struct store_model *m)
{
	struct list *l = ctx;
	if (l->n == ARRAY_LEN(l->items) || (l->n && l->bytes + m->facts.len > MESSAGE_MAX * 3 / 4)) {
		int r = send_list(l, true);
		if (r < 0) {
			return r;
		}
	}
	l->bytes += m->facts.len;
	l->items[l->n] = (struct packed){0};
	return packed_set(&l->items[l->n++], m->facts.data, m->facts.len);
}

static int list(struct core *c, const struct request *req)
{
	struct list l = {.c = c, .req = req};
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_model_each(t, list_one, &l);
	int k = send_list(&l, false);
	return r ? r : k;
}

int model_request(struct core *c, struct request *req)
{
	switch (req->kind) {
	case REQUEST_MODEL_ADD:
		return add(c, req);
	case REQUEST_MODEL_SHOW:
		return show(c, req);
	case REQUEST_MODEL_REMOVE:
		return remove_model(c, req);
	default:
		return list(c, req);
	}
}
