/* Requests about datasets. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

DEFINE_CLEANUP(struct task_spec *, task_spec_unref);

static int copy_text(char **dst, const char *src)
{
	*dst = src ? strdup(src) : NULL;
	return src && !*dst ? -ENOMEM : 0;
}

static int put(struct core *c, struct request *req)
{
	int r = find_blob(c, req, "blob", &req->blob);
	if (r != 0) {
		return r;
	}
	_cleanup_(task_spec_unrefp) struct task_spec *spec = task_spec_new(TASK_DATASET_CHECK);
	if (!spec) {
		return -ENOMEM;
	}
	r = store_files_copy(&spec->dataset.content, &req->blob);
	r = r ? r : copy_text(&spec->dataset.name, req->name);
	r = r ? r : copy_text(&spec->dataset.prompt_field, req->prompt_field);
	r = r ? r : copy_text(&spec->dataset.completion_field, req->completion_field);
	struct work *w;
	return r ? r : work_add(c, req, steal_ptr(spec), false, &w);
}

static bool same_text(const char *a, const char *b)
{
	return strcmp(a ? a : "", b ? b : "") == 0;
}

int dataset_result(struct core *c, struct work *w, struct task_result *res)
{
	struct request *req = &w->req;
	_cleanup_(store_dataset_deinit) struct store_dataset old = {0};
	struct store_txn *t;
	struct packed reply;
	struct store_dataset d = {
		.name = req->name,
		.owner_uid = req->uid,
		.rows = res->rows,
		.format = res->format,
		.prompt_field = res->prompt_field ? res->prompt_field : req->prompt_field,
		.completion_field = res->completion_field ? res->completion_field : req->completion_field,
		.added_wall_ns = (uint64_t)c->wall,
		.content = req->blob,
	};
	int r = core_read(c, &t);
	r = r ? r : store_dataset_get(t, req->name, &old);
	if (r == 0) {
		if (memcmp(old.content.digest, d.content.digest, 32) != 0 ||
			!same_text(old.prompt_field, d.prompt_field) ||
			!same_text(old.completion_field, d.completion_field)) {
			return work_fail(c, w, STATUS_CONFLICT,
				"there is a dataset %s already, with other content; remove it first with "
				"`peftctl dataset rm %s`, or choose another name",
				req->name, req->name);
		}
		r = reply_dataset(&reply, req->id, &old);
		return r ? r : work_answer(c, w, &reply);
	}
	if (r != STATUS_NOT_FOUND) {
		return r;
	}
	r = core_write(c, &t);
	r = r ? r : store_fatal(store_dataset_put(t, &d));
	if (r > 0) {
		return work_fail(
			c, w, STATUS_NOT_FOUND, "blob: its content is not there any more; upload it again");
	}
	r = r ? r : reply_dataset(&reply, req->id, &d);
	return r ? r : work_answer(c, w, &reply);
}

static int show(struct core *c, const struct request *req)
{
	_cleanup_(store_dataset_deinit) struct store_dataset d = {0};
	struct store_txn *t;
	struct packed reply;
	int r = core_read(c, &t);
	r = r ? r : store_dataset_get(t, req->name, &d);
	if (r == STATUS_NOT_FOUND) {
		return answer_status(c, req->session, req->id, r,
			"there is no dataset %s; `peftctl dataset ls` lists those there are", req->name);
	}
	r = r ? r : reply_dataset(&reply, req->id, &d);
	return r ? r : answer_packed(c, req->session, &reply);
}

static int remove_dataset(struct core *c, const struct request *req)
{
	_cleanup_(store_dataset_deinit) struct store_dataset d = {0};
	struct store_txn *t;
	struct packed reply;
	int r = core_read(c, &t);
	r = r ? r : store_dataset_get(t, req->name, &d);
	if (r == STATUS_NOT_FOUND) {
		return answer_status(c, req->session, req->id, r,
			"there is no dataset %s; `peftctl dataset ls` lists those there are", req->name);
	}
	if (r < 0) {
		return r;
	}
	if (req->uid != d.owner_uid && req->uid != 0 && req->uid != c->options.daemon_uid) {
		return answer_status(c, req->session, req->id, STATUS_DENIED,
			"dataset %s belongs to user %u; only they or the administrator can remove it",
			req->name, d.owner_uid);
	}
	/* Jobs hold references of their own: those that need it keep it. */
	r = core_write(c, &t);
	r = r ? r : store_fatal(store_dataset_remove(t, req->name));
	r = r ? r : reply_status(&reply, req->id, STATUS_OK, NULL);
	return r ? r : answer_kept(c, req, &req->session, 1, &reply);
}

static int inspect(struct core *c, struct request *req)
{
	_cleanup_(store_model_deinit) struct store_model m = {0};
	_cleanup_(task_spec_unrefp) struct task_spec *spec = task_spec_new(TASK_DATASET_INSPECT);
	if (!spec) {
		return -ENOMEM;
	}
	int r = find_model(c, req, req->model, &m);
	r = r ? r : find_dataset(c, req, "name", req->name, &spec->dataset);
	if (r != 0) {
		return r;
	}
	spec->model_name = steal_ptr(m.name);
	spec->model_path = steal_ptr(m.path);
	spec->has_model_digest = true;
	memcpy(spec->model_digest, m.digest, sizeof(m.digest));
	spec->request = req->body;
	req->body = (struct packed){0};
	struct work *w;
	return work_add(c, req, steal_ptr(spec), false, &w);
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
	int r = reply_datasets(&reply, l->req->id, l->items, l->n, more);
	for (size_t i = 0; i < l->n; i++) {
		packed_deinit(&l->items[i]);
	}
	l->n = l->bytes = 0;
	return r ? r : answer_packed(l->c, l->req->session, &reply);
}

static int list_one(void *ctx, const struct store_dataset *d)
{
	struct list *l = ctx;
	struct packed item = {0};
	int r = convert_dataset(&item, d);
	if (r == 0 &&
		(l->n == ARRAY_LEN(l->items) || (l->n && l->bytes + item.len > MESSAGE_MAX * 3 / 4))) {
		r = send_list(l, true);
	}
	if (r < 0) {
		packed_deinit(&item);
		return r;
	}
	l->bytes += item.len;
	l->items[l->n++] = item;
	return 0;
}

static int list(struct core *c, const struct request *req)
{
	struct list l = {.c = c, .req = req};
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_dataset_each(t, list_one, &l);
	int k = send_list(&l, false);
	return r ? r : k;
}

int dataset_request(struct core *c, struct request *req)
{
	switch (req->kind) {
	case REQUEST_DATASET_PUT:
		return put(c, req);
	case REQUEST_DATASET_SHOW:
		return show(c, req);
	case REQUEST_DATASET_REMOVE:
		return remove_dataset(c, req);
	case REQUEST_DATASET_INSPECT:
		return inspect(c, req);
	default:
		return list(c, req);
	}
}
