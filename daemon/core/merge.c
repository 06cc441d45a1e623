/*
 * Merged models. None is stored: the trainer says what one will hold, and an inspecting child
 * makes its bytes while they are read (daemon/trainer/merge.c). A reader that was cut off asks for
 * the rest.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

DEFINE_CLEANUP(struct task_spec *, task_spec_unref);

/* The name of the folder that is suggested, as the request's. */
static int name_folder(struct request *req, const struct store_job *rec)
{
	char number[32];
	snprintf(number, sizeof(number), "job-%llu", (unsigned long long)rec->id);
	free(req->name);
	if (asprintf(&req->name, "%.110s-merged", rec->name ? rec->name : number) < 0) {
		req->name = NULL;
		return -ENOMEM;
	}
	return 0;
}

static int fill_spec(struct task_spec *s, const struct store_job *rec,
	const struct store_checkpoint *k)
{
	s->model_name = strdup(rec->model);
	s->model_path = strdup(rec->model_path);
	s->has_model_digest = true;
	memcpy(s->model_digest, rec->model_digest, sizeof(s->model_digest));
	s->job = rec->id;
	s->step = k->step;
	int r = s->model_name && s->model_path ? 0 : -ENOMEM;
	r = r ? r : store_files_copy(&s->adapter, &k->content);
	if (r == 0 && s->kind == TASK_MERGE) {
		r = store_job_data_copy(&s->dataset, &rec->dataset);
		r = r ? r : packed_set(&s->spec, rec->spec.data, rec->spec.len);
	}
	return r;
}

int merge_request(struct core *c, struct request *req, const struct store_job *rec,
	const struct store_checkpoint *k)
{
	bool read = req->kind == REQUEST_READ;
	_cleanup_(task_spec_unrefp) struct task_spec *s =
		task_spec_new(read ? TASK_MERGE_READ : TASK_MERGE);
	int r = s ? fill_spec(s, rec, k) : -ENOMEM;
	r = r ? r : name_folder(req, rec);
	if (r < 0) {
		return r;
	}
	uint32_t credit = req->credit;
	s->offset = req->offset;
	struct work *w;
	r = work_add(c, req, steal_ptr(s), !read, &w);
	if (r == 0 && read) {
		w->outputs_allowed = credit;
	}
	return r;
}

int merge_output(struct core *c, struct work *w, struct event *ev)
{
	if (ev->raw_len == 0 || ev->raw_len > CHUNK_SIZE || w->outputs > w->outputs_allowed) {
		return STATUS_INTERNAL;
	}
	for (size_t i = 0; i < w->n_sessions; i++) {
		struct packed reply;
		int r = reply_read(&reply, w->req.id, ev->output.offset, true);
		struct action *a = r == 0 ? core_act(c, ACT_REPLY, &c->front) : NULL;
		if (!a) {
			packed_deinit(&reply);
			return r ? r : -ENOMEM;
		}
		a->reply.session = w->sessions[i];
		a->reply.packed = reply;
		a->raw = malloc(ev->raw_len);
		if (!a->raw) {
			return -ENOMEM;
		}
		memcpy(a->raw, ev->raw, ev->raw_len);
		a->raw_len = ev->raw_len;
	}
	return 0;
}
