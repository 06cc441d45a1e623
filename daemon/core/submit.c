/*
 * Submit and plan. What is asked for is looked up at once; an inspect child computes the plan; then
 * the job is admitted, with its first event and the request's answer in one transaction, or
 * refused. Of a sweep one job after the other is planned, and then all of them are admitted in that
 * one transaction, or none.
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

static int remember(struct core *c, const uint8_t key[32], const struct task_result *res)
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
		"the job needs %.2f GiB of memory (%.2f GiB of them for the process itself and a checkpoint), "
		"%.2f GiB may be used here%s%s",
		gib(p->total) + gib(p->overhead), gib(p->overhead), gib(limit), p->reason ? ": " : "",
		p->reason ? p->reason : "; a smaller max_length, batch_size or r needs less");
}

/* The plan as the client gets it: with what would become of the job. */
static int decided_plan(const struct core *c, const struct cached_plan *p, struct packed *ret)
{
	struct errmsg why = {.text = ""};
	const char *decision = "admit";
	if (check_fit(c, p, &why) != 0) {
		decision = "refuse";
	} else if (sched_busy(c)) {
		decision = "queue";
		errmsg_set(&why, 0, "other jobs run or wait on this device");
	}
	int r = packed_set(ret, p->plan.data, p->plan.len);
	return r ? r : convert_plan_decide(ret, decision, why.text);
}

static void plans_free(struct packed *plans, size_t n)
{
	for (size_t i = 0; plans && i < n; i++) {
		packed_deinit(&plans[i]);
	}
	free(plans);
}

static int reply_plans(
	struct core *c, const struct request *req, const struct drafts *d, struct packed *ret)
{
	struct packed *plans = calloc_array(d->n, sizeof(*plans));
	int r = plans ? 0 : -ENOMEM;
	for (size_t i = 0; i < d->n && r == 0; i++) {
		r = decided_plan(c, &d->at[i].plan, &plans[i]);
	}
	if (r == 0) {
		r = req->sweep ? reply_sweep(ret, req->id, 0, plans, d->n, -1)
					   : reply_submit(ret, req->id, 0, &plans[0], -1);
	}
	plans_free(plans, d->n);
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

/* Writes a job; takes the draft's contents. */
static int write_job(
	struct core *c, const struct request *req, struct draft *d, struct job **ret_job)
{
	struct store_job *draft = &d->job;
	int r = packed_set(&draft->plan, d->plan.plan.data, d->plan.plan.len);
	r = r ? r : convert_plan_decide(&draft->plan, sched_busy(c) ? "queue" : "admit", NULL);
	if (r < 0) {
		return r;
	}
	draft->state = req->hold ? JOB_HELD : JOB_PENDING;
	draft->planned_bytes = d->plan.total + d->plan.overhead;
	draft->steps = d->plan.steps;
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
	if (r == 0) {
		*ret_job = j;
	}
	return r;
}

/* The jobs of a sweep get ids that follow each other: nobody else draws one in between. */
static int write_jobs(
	struct core *c, const struct request *req, struct drafts *d, struct packed *ret_reply)
{
	struct store_txn *t;
	struct job *j = NULL;
	uint64_t first = 0;
	struct packed *plans = calloc_array(d->n, sizeof(*plans));
	int r = plans ? core_write(c, &t) : -ENOMEM;
	for (size_t i = 0; i < d->n && r == 0; i++) {
		struct store_job *draft = &d->at[i].job;
		r = store_fatal(store_job_next_id(t, &draft->id));
		first = first ? first : draft->id;
		if (req->sweep) {
			draft->sweep = first;
			draft->sweep_size = (uint32_t)d->n;
		}
		r = r ? r : write_job(c, req, &d->at[i], &j);
		r = r ? r : packed_set(&plans[i], j->rec.plan.data, j->rec.plan.len);
	}
	if (r == 0) {
		r = req->sweep ? reply_sweep(ret_reply, req->id, first, plans, d->n, (int)j->rec.state)
					   : reply_submit(ret_reply, req->id, first, &plans[0], (int)j->rec.state);
	}
	plans_free(plans, d->n);
	return r;
}

/* 0 with a reply; a status with err. */
static int decide(struct core *c, const struct request *req, struct drafts *d,
	struct packed *ret_reply, struct errmsg *err)
{
	if (req->plan_only) {
		return reply_plans(c, req, d, ret_reply);
	}
	int r = 0;
	for (size_t i = 0; i < d->n && r == 0; i++) {
		r = check_fit(c, &d->at[i].plan, err);
		r = r ? r : check_still_there(c, &d->at[i].job, err);
		if (r > 0 && req->sweep) {
			r = errmsg_prefix(err, r, "%s", d->at[i].job.variant);
		}
	}
	r = r ? r : store_room(c->store, d->n * JOB_ROOM, err);
	return r ? r : write_jobs(c, req, d, ret_reply);
}

/* ---- the request --------------------------------------------------------------------------- */

/* Looks up all that the spec names; 1: answered. */
static int fill_draft(
	struct core *c, struct request *req, const struct member *m, struct store_job *draft)
{
	struct store_model model = {0};
	const struct spec *spec = &m->spec;
	int r = find_model(c, req, spec->model, &model);
	if (r != 0) {
		return r;
	}
	draft->model = model.name;
	draft->model_path = model.path;
	memcpy(draft->model_digest, model.digest, sizeof(model.digest));
	packed_deinit(&model.facts);
	r = find_dataset(c, req, "dataset", spec->dataset, &draft->dataset);
	if (r == 0 && spec->eval_dataset) {
		r = find_dataset(c, req, "eval_dataset", spec->eval_dataset, &draft->eval_dataset);
	}
	if (r == 0 && req->blob.size > 0) {
		r = find_blob(c, req, "init_adapter", &req->blob);
		r = r ? r : store_files_copy(&draft->init_adapter, &req->blob);
	}
	r = r ? r : copy_text(&draft->name, spec->name);
	r = r ? r : copy_text(&draft->variant, m->variant);
	r = r ? r : packed_set(&draft->spec, spec->packed.data, spec->packed.len);
	memcpy(draft->request_id, req->id, sizeof(draft->request_id));
	draft->owner_uid = req->uid;
	draft->priority = spec->priority;
	return r;
}

static int fill_drafts(struct core *c, struct request *req, struct drafts *d)
{
	d->at = calloc_array(req->n_members, sizeof(*d->at));
	int r = d->at ? 0 : -ENOMEM;
	for (size_t i = 0; i < req->n_members && r == 0; i++) {
		struct draft *to = &d->at[d->n++];
		r = fill_draft(c, req, &req->members[i], &to->job);
		if (r == 0) {
			make_plan_key(c, &req->members[i].spec, &to->job, to->key);
		}
	}
	return r;
}

void drafts_deinit(struct drafts *d)
{
	for (size_t i = 0; i < d->n; i++) {
		store_job_deinit(&d->at[i].job);
		cached_deinit(&d->at[i].plan);
	}
	free(d->at);
	*d = (struct drafts){0};
}

const char *submit_variant(const struct work *w)
{
	const struct drafts *d = &w->drafts;
	return w->req.sweep && d->planned < d->n ? d->at[d->planned].job.variant : NULL;
}

/* Takes the plans that are remembered already, as far as they follow each other. */
static int take_plans(struct core *c, struct drafts *d)
{
	while (d->planned < d->n) {
		struct draft *to = &d->at[d->planned];
		const struct cached_plan *p = recall(c, to->key);
		if (!p) {
			return 0;
		}
		to->plan = (struct cached_plan){
			.total = p->total, .overhead = p->overhead, .steps = p->steps, .used = 1};
		int r = packed_set(&to->plan.plan, p->plan.data, p->plan.len);
		r = r ? r : copy_text(&to->plan.reason, p->reason);
		if (r < 0) {
			return r;
		}
		d->planned++;
	}
	return 0;
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

static int answer_now(struct core *c, struct request *req, struct drafts *d)
{
	struct packed reply;
	struct errmsg err;
	int r = decide(c, req, d, &reply, &err);
	if (r != 0) {
		return r < 0 ? r : answer_status(c, req->session, req->id, r, "%s", err.text);
	}
	return req->plan_only ? answer_packed(c, req->session, &reply)
						  : answer_kept(c, req, &req->session, 1, &reply);
}

int submit_request(struct core *c, struct request *req)
{
	struct drafts d = {0};
	struct task_spec *task;
	struct work *w;
	int r = fill_drafts(c, req, &d);
	r = r ? r : take_plans(c, &d);
	if (r == 0 && d.planned == d.n) {
		r = answer_now(c, req, &d);
	} else if (r == 0 && (r = build_task(c, &d.at[d.planned].job, &task)) == 0 &&
		(r = work_add(c, req, task, false, &w)) == 0) {
		w->drafts = d;
		return 0;
	}
	drafts_deinit(&d);
	return r;
}

/* The next plan takes another child: this one has been dismissed. */
static int plan_next(struct core *c, struct work *w)
{
	struct task_spec *task;
	int r = build_task(c, &w->drafts.at[w->drafts.planned].job, &task);
	if (r == 0) {
		task_spec_unref(w->spec);
		w->spec = task;
		w->deaths = 0;
	}
	return r;
}

int submit_result(struct core *c, struct work *w, struct task_result *res)
{
	struct drafts *d = &w->drafts;
	struct packed reply;
	struct errmsg err;
	int r = remember(c, d->at[d->planned].key, res);
	r = r ? r : take_plans(c, d);
	if (r == 0 && d->planned < d->n) {
		return plan_next(c, w);
	}
	r = r ? r : decide(c, &w->req, d, &reply, &err);
	if (r != 0) {
		return r < 0 ? r : work_fail(c, w, r, "%s", err.text);
	}
	return work_answer(c, w, &reply);
}
