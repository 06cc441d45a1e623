/* Requests of clients, sorted. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

static const char *trainer_state(const struct core *c)
{
	switch (c->trainer.state) {
	case CHILD_STARTING:
		return "starting";
	case CHILD_READY:
		return TAILQ_EMPTY(&c->tasks) ? "idle" : "busy";
	default:
		return "down";
	}
}

static int status_request(struct core *c, const struct request *req)
{
	struct store_space space;
	int r = store_space(c->store, &space);
	if (r < 0) {
		return r;
	}
	struct status_facts f = {
		.version = c->options.version,
		.trainer_state = trainer_state(c),
		.trainer = c->have_facts ? &c->facts : NULL,
		.stats = &c->stats,
		.memory_limit = core_memory_limit(c),
		.uptime_seconds = (uint64_t)((c->mono - c->started) / SECONDS(1)),
		.store_bytes = space.used,
		.store_free_bytes = space.fs_free,
	};
	_cleanup_(freep) uint64_t *running = calloc_array(c->n_jobs, sizeof(*running));
	if (!running) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < c->n_jobs; i++) {
		const struct job *j = c->jobs[i];
		if (j->task) {
			running[f.n_running++] = j->rec.id;
		} else {
			f.jobs_waiting += j->rec.state == JOB_PENDING;
		}
	}
	f.running = running;
	struct packed reply;
	r = reply_daemon_status(&reply, req->id, &f);
	return r ? r : answer_packed(c, req->session, &reply);
}

static int dispatch(struct core *c, struct request *req)
{
	switch (req->kind) {
	case REQUEST_STATUS:
		return status_request(c, req);
	case REQUEST_MODEL_ADD:
	case REQUEST_MODEL_LIST:
	case REQUEST_MODEL_SHOW:
	case REQUEST_MODEL_REMOVE:
		return model_request(c, req);
	case REQUEST_UPLOAD_BEGIN:
		return upload_begin(c, req);
	case REQUEST_DATASET_PUT:
	case REQUEST_DATASET_LIST:
	case REQUEST_DATASET_SHOW:
	case REQUEST_DATASET_REMOVE:
	case REQUEST_DATASET_INSPECT:
		return dataset_request(c, req);
	case REQUEST_SUBMIT:
		return submit_request(c, req);
	case REQUEST_JOB_LIST:
	case REQUEST_JOB_SHOW:
	case REQUEST_JOB_CONTROL:
		return job_request(c, req);
	case REQUEST_WATCH:
	case REQUEST_FETCH:
	case REQUEST_READ:
		return stream_request(c, req);
	case REQUEST_EVAL:
	case REQUEST_GENERATE:
		return device_request(c, req);
	case REQUEST_UPLOAD_CHUNK: /* has its own way in */
	case REQUEST_BAD:
		break;
	}
	return answer_status(c, req->session, req->id, req->fault, "%s", req->fault_text.text);
}

/* Chunks of an upload are many and change only what their digest names, so they are left out of
 * this: see upload.c. */
static bool refused_while_stopping(const struct request *req)
{
	switch (req->kind) {
	case REQUEST_UPLOAD_BEGIN:
	case REQUEST_DATASET_INSPECT:
	case REQUEST_SUBMIT:
	case REQUEST_EVAL:
	case REQUEST_GENERATE:
		return true;
	default:
		return request_changes(req);
	}
}

int request_step(struct core *c, struct request *req)
{
	int r = 0;
	if (request_changes(req)) {
		r = answer_again(c, req);
	} else {
		r = work_of_session(c, req->session, req->id) != NULL; /* it is being answered */
	}
	if (r != 0) {
		return r < 0 ? r : 0;
	}
	if (c->stopping && refused_while_stopping(req)) {
		return answer_status(
			c, req->session, req->id, STATUS_UNAVAILABLE, "the daemon is shutting down");
	}
	/* The request may be taken over by what goes on with it. */
	uint64_t session = req->session;
	uint8_t id[16];
	memcpy(id, req->id, sizeof(id));
	bool had_write = c->write != NULL;
	r = dispatch(c, req);
	if (r == -EIO && !had_write && !c->write) {
		log_error("a record in the store is damaged; `peftd --check` says more");
		r = answer_status(c, session, id, STATUS_INTERNAL,
			"a record in the store is damaged; `peftd --check` says more");
	}
	return r < 0 ? r : 0;
}

/* ---- what names stand for ------------------------------------------------------------------ */

int find_model(struct core *c, const struct request *req, const char *name, struct store_model *ret)
{
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_model_get(t, name, ret);
	if (r == STATUS_NOT_FOUND) {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"model: there is no model %s; `peftctl model ls` lists those there are", name);
		r = r ? r : 1;
	}
	return r;
}

int find_dataset(struct core *c, const struct request *req, const char *key, const char *name,
	struct store_job_data *ret)
{
	struct store_txn *t;
	struct store_dataset d = {0};
	int r = core_read(c, &t);
	r = r ? r : store_dataset_get(t, name, &d);
	if (r == STATUS_NOT_FOUND) {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"%s: there is no dataset %s; `peftctl dataset ls` lists those there are", key, name);
		return r ? r : 1;
	}
	if (r == 0) {
		*ret = (struct store_job_data){
			.content = d.content,
			.name = steal_ptr(d.name),
			.prompt_field = steal_ptr(d.prompt_field),
			.completion_field = steal_ptr(d.completion_field),
			.rows = d.rows,
		};
		d.content = (struct store_files){0};
	}
	store_dataset_deinit(&d);
	return r;
}

int find_blob(
	struct core *c, const struct request *req, const char *key, const struct store_files *f)
{
	struct store_txn *t;
	struct store_blob blob;
	int r = core_flush(c); /* its last chunks may still be waiting */
	r = r ? r : core_read(c, &t);
	r = r ? r : store_blob_get(t, f->digest, &blob);
	if (r < 0 || (r == 0 && blob.received == blob.size && blob.size == f->size)) {
		return r;
	}
	if (r == 0 && blob.size != f->size) {
		r = answer_status(c, req->session, req->id, STATUS_INVALID,
			"%s: its content has %llu bytes, not %llu", key, (unsigned long long)blob.size,
			(unsigned long long)f->size);
	} else {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"%s: its content has not been uploaded completely; upload it, then ask again", key);
	}
	return r ? r : 1;
}
