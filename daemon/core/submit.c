/*
 * Submit and plan. What is asked for is looked up at once; an inspect child computes the plan; then
 * the job is admitted, with its first event and the request's answer in one transaction, or
 * refused.
 *
 * Plans are remembered by the digests of all they depend on: submitting what was planned just
 * before, or the same job with another name, asks no child.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

enum { JOB_ROOM = 1024 * 1024 }; /* bytes of records and events that a new job may take at first */

static int copy_text(char **dst, const char *src)
{
	*dst = src ? strdup(src) : NULL;
	return src && !*dst ? -ENOMEM : 0;
}

/* ---- remembered plans ---------------------------------------------------------------------- */

static void cached_deinit(struct cached_plan *p)
{
	packed_deinit(&p->plan);
	free(p->reason);
	*p = (struct cached_plan){0};
}

void plan_cache_deinit(struct core *c)
{
	for (int i = 0; i < PLAN_CACHE; i++) {
		cached_deinit(&c->plans[i]);
	}
}

static struct cached_plan *recall(struct core *c, const uint8_t key[32])
{
	for (int i = 0; i < PLAN_CACHE; i++) {
		struct cached_plan *p = &c->plans[i];
		if (p->used && memcmp(p->key, key, sizeof(p->key)) == 0) {
			p->used = ++c->plan_uses;
			return p;
		}
	}
	return NULL;
}

static int remember(
	struct core *c, const uint8_t key[32], const struct task_result *res, struct cached_plan **ret)
{
	struct cached_plan *p = &c->plans[0];
	for (int i = 1; i < PLAN_CACHE; i++) {
		if (c->plans[i].used < p->used) {
			p = &c->plans[i];
		}
	}
	cached_deinit(p);
	int r = packed_set(&p->plan, res->packed.data, res->packed.len);
	r = r ? r : copy_text(&p->reason, res->reason);
	if (r < 0) {
		cached_deinit(p);
		return r;
	}
	memcpy(p->key, key, sizeof(p->key));
	p->total = res->total;
	p->overhead = res->overhead;
	p->steps = res->steps;
	p->used = ++c->plan_uses;
	*ret = p;
	return 0;
}

static void hash_text(crypto_generichash_state *s, const char *text)
{
	/* With its NUL, so that neighbours cannot be confused. */
	const char *t = text ? text : "";
	crypto_generichash_update(s, (const uint8_t *)t, strlen(t) + 1);
}

static void hash_data(crypto_generichash_state *s, const struct store_job_data *d)
{
	crypto_generichash_update(s, d->content.digest, sizeof(d->content.digest));
	hash_text(s, d->prompt_field);
	hash_text(s, d->completion_field);
}

static void make_plan_key(
	const struct core *c, const struct spec *spec, const struct store_job *draft, uint8_t ret[32])
{
	crypto_generichash_state s;
	crypto_generichash_init(&s, NULL, 0, 32);
	crypto_generichash_update(&s, spec->key, sizeof(spec->key));
	crypto_generichash_update(&s, draft->model_digest, sizeof(draft->model_digest));
	hash_text(&s, draft->model_path);
	hash_data(&s, &draft->dataset);
	hash_data(&s, &draft->eval_dataset);
	crypto_generichash_update(&s, draft->init_adapter.digest, sizeof(draft->init_adapter.digest));
	/* The device; a trainer that was not there yet makes another plan. */
	struct {
		uint64_t limit, threads;
		double f32, bf16;
	} device = {core_memory_limit(c), c->facts.threads, c->facts.gflops_f32, c->facts.gflops_bf16};
	crypto_generichash_update(&s, (const uint8_t *)&device, sizeof(device));
	crypto_generichash_final(&s, ret, 32);
}

/* ---- admission ----------------------------------------------------------------------------- */

static double gib(uint64_t bytes)
{
	return (double)bytes / (1024.0 * 1024 * 1024);
}

/* Does it fit at all? STATUS_WONT_FIT with what would fit. */
static int check_fit(const struct core *c, const struct cached_plan *p, struct errmsg *err)
{
	uint64_t need, limit = core_memory_limit(c);
	if (!__builtin_add_overflow(p->total, p->overhead, &need) && need <= limit) {
		return 0;
	}
	return errmsg_set(err, STATUS_WONT_FIT,
		"the job needs %.2f GiB of memory (%.2f GiB of them for the process itself and a checkpoint), %.2f GiB may "
		"be used here%s%s",
		gib(p->total) + gib(p->overhead), gib(p->overhead), gib(limit), p->reason ? ": " : "",
		p->reason ? p->reason : "; a smaller max_length, batch_size or r needs less");
}

static int reply_plan(
	struct core *c, const struct request *req, const struct cached_plan *p, struct packed *ret)
{
	struct errmsg why = {.text = ""};
	struct packed plan = {0};
	const char *decision = "admit";
	if (check_fit(c, p, &why) != 0) {
		decision = "refuse";
	} else if (sched_busy(c)) {
		decision = "queue";
		errmsg_set(&why, 0, "other jobs run or wait on this device");
	}
	int r = packed_set(&plan, p->plan.data, p->plan.len);
	r = r ? r : convert_plan_decide(&plan, decision, why.text);
	r = r ? r : reply_submit(ret, req->id, 0, &plan, -1);
	packed_deinit(&plan);
	return r;
}

/* All that the job refers to is still there: between the request and its plan others go on. */
static int check_still_there(struct core *c, const struct store_job *draft, struct errmsg *err)
{
	_cleanup_(store_model_deinit) struct store_model m = {0};
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_model_get(t, draft->model, &m);
	if (r == STATUS_NOT_FOUND ||
		(r == 0 && memcmp(m.digest, draft->model_digest, sizeof(m.digest)) != 0)) {
		return errmsg_set(err, STATUS_CONFLICT,
			"model %s was removed or changed while the job was being planned", draft->model);
	}
	const struct store_files *const all[] = {
		&draft->dataset.content, &draft->eval_dataset.content, &draft->init_adapter};
	for (size_t i = 0; i < ARRAY_LEN(all) && r == 0; i++) {
		struct store_blob blob;
		if (all[i]->size == 0) {
			continue;
		}
		r = store_blob_get(t, all[i]->digest, &blob);
		if (r == STATUS_NOT_FOUND || (r == 0 && blob.received != blob.size)) {
			return errmsg_set(err, STATUS_CONFLICT,
				"what the job is trained on was removed while it was being planned");
		}
	}
	return r;
}

/* Writes the job; takes the draft's contents. */
static int write_job(struct core *c, const struct request *req, struct store_job *draft,
	const struct cached_plan *p, struct packed *ret_reply)
{
	struct store_txn *t;
	int r = core_write(c, &t);
	r = r ? r : store_fatal(store_job_next_id(t, &draft->id));
	r = r ? r : packed_set(&draft->plan, p->plan.data, p->plan.len);
	r = r ? r : convert_plan_decide(&draft->plan, sched_busy(c) ? "queue" : "admit", NULL);
	if (r < 0) {
		return r;
	}
	draft->state = req->hold ? JOB_HELD : JOB_PENDING;
	draft->planned_bytes = p->total + p->overhead;
	draft->steps = p->steps;
	draft->submitted_wall_ns = (uint64_t)c->wall;
	if (req->hold) {
		r = copy_text(&draft->reason, "submitted with --hold");
	}
	struct job *j;
	r = r ? r : job_add(c, draft, &j);
	r = r ? r
		  : job_append(c, j,
				&(struct job_event){
					.kind = EVENT_STATE, .state = j->rec.state, .text = j->rec.reason});
	return r ? r : reply_submit(ret_reply, req->id, j->rec.id, &j->rec.plan, (int)j->rec.state);
}

/* 0 with a reply; a status with err. */
static int decide(struct core *c, const struct request *req, struct store_job *draft,
	const struct cached_plan *p, struct packed *ret_reply, struct errmsg *err)
{
	if (req->plan_only) {
		return reply_plan(c, req, p, ret_reply);
	}
	int r = check_fit(c, p, err);
	r = r ? r : store_room(c->store, JOB_ROOM, err);
	r = r ? r : check_still_there(c, draft, err);
	return r ? r : write_job(c, req, draft, p, ret_reply);
}

/* ---- the request --------------------------------------------------------------------------- */

/* Looks up all that the spec names; 1: answered. Takes the spec's packed form and the blob. */
static int fill_draft(struct core *c, struct request *req, struct store_job *draft)
{
	struct store_model m = {0};
	const struct spec *spec = &req->spec;
	int r = find_model(c, req, spec->model, &m);
	if (r != 0) {
		return r;
	}
	draft->model = m.name;
	draft->model_path = m.path;
	memcpy(draft->model_digest, m.digest, sizeof(m.digest));
	packed_deinit(&m.facts);
	r = find_dataset(c, req, "dataset", spec->dataset, &draft->dataset);
	if (r == 0 && spec->eval_dataset) {
		r = find_dataset(c, req, "eval_dataset", spec->eval_dataset, &draft->eval_dataset);
	}
	if (r == 0 && req->blob.size > 0) {
		r = find_blob(c, req, "init_adapter", &req->blob);
		r = r ? r : store_files_copy(&draft->init_adapter, &req->blob);
	}
	r = r ? r : copy_text(&draft->name, spec->name);
	r = r ? r : packed_set(&draft->spec, spec->packed.data, spec->packed.len);
	memcpy(draft->request_id, req->id, sizeof(draft->request_id));
	draft->owner_uid = req->uid;
	draft->priority = spec->priority;
	return r;
}

static int build_task(const struct core *c, const struct store_job *draft, struct task_spec **ret)
{
	struct task_spec *s = task_spec_new(TASK_PLAN);
	if (!s) {
		return -ENOMEM;
	}
	int r = copy_text(&s->model_name, draft->model);
	r = r ? r : copy_text(&s->model_path, draft->model_path);
	s->has_model_digest = true;
	memcpy(s->model_digest, draft->model_digest, sizeof(s->model_digest));
	r = r ? r : store_job_data_copy(&s->dataset, &draft->dataset);
	r = r ? r : store_job_data_copy(&s->eval_dataset, &draft->eval_dataset);
	r = r ? r : store_files_copy(&s->adapter, &draft->init_adapter);
	r = r ? r : packed_set(&s->spec, draft->spec.data, draft->spec.len);
	s->gflops_f32 = c->facts.gflops_f32;
	s->gflops_bf16 = c->facts.gflops_bf16;
	s->threads = c->facts.threads;
	s->memory_limit = core_memory_limit(c);
	if (r < 0) {
		task_spec_unref(s);
		return r;
	}
	*ret = s;
	return 0;
}

static int answer_now(
	struct core *c, struct request *req, struct store_job *draft, const struct cached_plan *p)
{
	struct packed reply;
	struct errmsg err;
	int r = decide(c, req, draft, p, &reply, &err);
	if (r != 0) {
		return r < 0 ? r : answer_status(c, req->session, req->id, r, "%s", err.text);
	}
	return req->plan_only ? answer_packed(c, req->session, &reply)
						  : answer_kept(c, req, &req->session, 1, &reply);
}

int submit_request(struct core *c, struct request *req)
{
	struct store_job draft = {.last_loss = 0};
	uint8_t key[32];
	int r = fill_draft(c, req, &draft);
	if (r == 0) {
		make_plan_key(c, &req->spec, &draft, key);
		const struct cached_plan *p = recall(c, key);
		struct task_spec *task;
		struct work *w;
		if (p) {
			r = answer_now(c, req, &draft, p);
		} else if ((r = build_task(c, &draft, &task)) == 0 &&
			(r = work_add(c, req, task, false, &w)) == 0) {
			w->draft = draft;
			memcpy(w->plan_key, key, sizeof(key));
			return 0;
		}
	}
	store_job_deinit(&draft);
	return r;
}

int submit_result(struct core *c, struct work *w, struct task_result *res)
{
	struct cached_plan *p;
	struct packed reply;
	struct errmsg err;
	int r = remember(c, w->plan_key, res, &p);
	r = r ? r : decide(c, &w->req, &w->draft, p, &reply, &err);
	if (r != 0) {
		return r < 0 ? r : work_fail(c, w, r, "%s", err.text);
	}
	return work_answer(c, w, &reply);
}
