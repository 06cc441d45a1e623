/* Requests that take the device: evaluation and generation. They run between a training's steps. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

DEFINE_CLEANUP(struct task_spec *, task_spec_unref);

/* A checkpoint of a job; 1: answered. */
static int find_job_adapter(
	struct core *c, const struct request *req, const struct store_model *m, struct store_files *ret)
{
	_cleanup_(store_job_deinit) struct store_job own = {0};
	const struct store_job *rec;
	uint64_t id = req->adapter.job;
	int r = job_lookup(c, id, &rec, &own);
	if (r == STATUS_NOT_FOUND) {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"adapter: there is no job %llu; `peftctl list` lists those there are",
			(unsigned long long)id);
		return r ? r : 1;
	}
	if (r < 0) {
		return r;
	}
	if (memcmp(rec->model_digest, m->digest, sizeof(m->digest)) != 0) {
		r = answer_status(c, req->session, req->id, STATUS_INVALID,
			"adapter: job %llu tunes model %s, which is not the %s of this request",
			(unsigned long long)id, rec->model, m->name);
		return r ? r : 1;
	}
	const struct store_checkpoint *k = job_checkpoint(rec, req->adapter.step, false);
	if (!k) {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"adapter: job %llu has no such checkpoint (it is %s; `peftctl show %llu` lists them)",
			(unsigned long long)id, job_state_name(rec->state), (unsigned long long)id);
		return r ? r : 1;
	}
	return store_files_copy(ret, &k->content);
}

int device_request(struct core *c, struct request *req)
{
	_cleanup_(store_model_deinit) struct store_model m = {0};
	bool eval = req->kind == REQUEST_EVAL;
	_cleanup_(task_spec_unrefp) struct task_spec *spec =
		task_spec_new(eval ? TASK_EVAL : TASK_GENERATE);
	if (!spec) {
		return -ENOMEM;
	}
	int r = find_model(c, req, req->model, &m);
	if (r == 0 && eval) {
		r = find_dataset(c, req, "dataset", req->dataset, &spec->dataset);
	}
	if (r == 0 && req->shots_dataset) {
		r = find_dataset(c, req, "shots_dataset", req->shots_dataset, &spec->eval_dataset);
	}
	if (r == 0 && req->adapter.from == ADAPTER_JOB) {
		r = find_job_adapter(c, req, &m, &spec->adapter);
	} else if (r == 0 && req->adapter.from == ADAPTER_UPLOADED) {
		r = find_blob(c, req, "adapter", &req->adapter.uploaded);
		r = r ? r : store_files_copy(&spec->adapter, &req->adapter.uploaded);
	}
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
	return work_add(c, req, steal_ptr(spec), true, &w);
}
