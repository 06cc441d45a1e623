/* Jobs that have not ended, their states and their events. */

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

#define BIT(s) (1u << (s))

/* From a state to others, as ARCHITECTURE.md draws them; and where a job is found with its result
 * or without its trainer. */
static const unsigned legal[] = {
	[JOB_PENDING] = BIT(JOB_HELD) | BIT(JOB_STARTING) | BIT(JOB_CANCELLED),
	[JOB_HELD] = BIT(JOB_PENDING) | BIT(JOB_CANCELLED),
	[JOB_STARTING] = BIT(JOB_RUNNING) | BIT(JOB_PREEMPTING) | BIT(JOB_CANCELLING) |
		BIT(JOB_PENDING) | BIT(JOB_FAILED) | BIT(JOB_SUCCEEDED),
	[JOB_RUNNING] = BIT(JOB_SUCCEEDED) | BIT(JOB_FAILED) | BIT(JOB_PREEMPTING) |
		BIT(JOB_CANCELLING) | BIT(JOB_PENDING),
	[JOB_PREEMPTING] =
		BIT(JOB_PENDING) | BIT(JOB_CANCELLING) | BIT(JOB_SUCCEEDED) | BIT(JOB_FAILED),
	[JOB_CANCELLING] = BIT(JOB_CANCELLED),
	[JOB_SUCCEEDED] = 0,
	[JOB_FAILED] = BIT(JOB_PENDING),
	[JOB_CANCELLED] = BIT(JOB_PENDING),
};

bool job_state_ended(enum job_state s)
{
	return s == JOB_SUCCEEDED || s == JOB_FAILED || s == JOB_CANCELLED;
}

const char *job_state_name(enum job_state s)
{
	static const char *const names[] = {"PENDING", "HELD", "STARTING", "RUNNING", "PREEMPTING",
		"CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED"};
	return (unsigned)s < ARRAY_LEN(names) ? names[s] : "unknown";
}

void job_free(struct job *j)
{
	if (j) {
		store_job_deinit(&j->rec);
		free(j->stop_reason);
		free(j);
	}
}

/* Index of the first job whose id is not below `id`. */
static size_t lower_bound(const struct core *c, uint64_t id)
{
	size_t lo = 0, hi = c->n_jobs;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (c->jobs[mid]->rec.id < id) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	return lo;
}

struct job *job_find(struct core *c, uint64_t id)
{
	size_t i = lower_bound(c, id);
	return i < c->n_jobs && c->jobs[i]->rec.id == id ? c->jobs[i] : NULL;
}

int job_add(struct core *c, struct store_job *rec, struct job **ret)
{
	if (c->n_jobs == c->cap_jobs) {
		size_t cap = c->cap_jobs ? 2 * c->cap_jobs : 64;
		struct job **jobs = realloc_array(c->jobs, cap, sizeof(struct job *));
		if (!jobs) {
			return -ENOMEM;
		}
		c->jobs = jobs;
		c->cap_jobs = cap;
	}
	struct job *j = calloc(1, sizeof(*j));
	if (!j) {
		return -ENOMEM;
	}
	j->rec = *rec;
	*rec = (struct store_job){0};
	size_t i = lower_bound(c, j->rec.id);
	memmove(&c->jobs[i + 1], &c->jobs[i], (c->n_jobs - i) * sizeof(struct job *));
	c->jobs[i] = j;
	c->n_jobs++;
	*ret = j;
	return 0;
}

void job_touch(struct core *c, struct job *j)
{
	c->n_dirty += !j->dirty;
	j->dirty = true;
}

int jobs_flush(struct core *c)
{
	for (size_t i = 0; c->n_dirty > 0 && i < c->n_jobs; i++) {
		struct job *j = c->jobs[i];
		if (!j->dirty) {
			continue;
		}
		struct store_txn *t;
		int r = core_write(c, &t);
		r = r ? r : store_fatal(store_job_put(t, &j->rec));
		if (r != 0) {
			return r < 0 ? r : -EIO;
		}
		j->dirty = false;
		c->n_dirty--;
	}
	return 0;
}

void jobs_forget(struct core *c)
{
	if (!c->ended_jobs) {
		return;
	}
	c->ended_jobs = false;
	size_t n = 0;
	for (size_t i = 0; i < c->n_jobs; i++) {
		if (job_state_ended(c->jobs[i]->rec.state)) {
			job_free(c->jobs[i]);
		} else {
			c->jobs[n++] = c->jobs[i];
		}
	}
	c->n_jobs = n;
}

int job_append(struct core *c, struct job *j, const struct job_event *e)
{
	struct packed packed;
	struct store_txn *t;
	uint64_t seq = j->rec.last_seq + 1;
	int r = core_write(c, &t);
	r = r ? r : convert_event(&packed, e, seq, (uint64_t)c->wall);
	if (r < 0) {
		return r;
	}
	r = store_fatal(store_event_append(t, j->rec.id, seq, e->kind, packed.data, packed.len));
	packed_deinit(&packed);
	if (r != 0) {
		return r < 0 ? r : -EIO;
	}
	j->rec.last_seq = seq;
	job_touch(c, j);
	streams_wake(c, j->rec.id);
	return 0;
}

int job_set_state(struct core *c, struct job *j, enum job_state state, const char *reason)
{
	assert(legal[j->rec.state] & BIT(state));
	char *copy = reason ? clean_text(reason, strlen(reason)) : NULL;
	if (reason && !copy) {
		return -ENOMEM;
	}
	log_info("job %llu: %s → %s%s%s", (unsigned long long)j->rec.id, job_state_name(j->rec.state),
		job_state_name(state), reason ? ": " : "", reason ? reason : "");
	free(j->rec.reason);
	j->rec.reason = copy;
	j->rec.state = state;
	if (job_state_ended(state)) {
		j->rec.ended_wall_ns = (uint64_t)c->wall;
		c->ended_jobs = true;
		int failed = outcome_finish(c, j);
		if (failed < 0) {
			return failed;
		}
	}
	int r = job_append(c, j,
		&(struct job_event){
			.kind = EVENT_STATE, .state = state, .text = copy, .attempt = j->rec.attempt});
	return r ? r : holds_settle(c, j);
}

const struct store_checkpoint *job_checkpoint(const struct store_job *rec, uint64_t step, bool best)
{
	for (size_t i = rec->n_checkpoints; i-- > 0;) {
		const struct store_checkpoint *k = &rec->checkpoints[i];
		if (best ? k->best : step == 0 || k->step == step) {
			return k;
		}
	}
	return NULL;
}

bool job_has_final(const struct store_job *rec)
{
	for (size_t i = 0; i < rec->n_checkpoints; i++) {
		if (rec->checkpoints[i].final) {
			return true;
		}
	}
	return false;
}

int job_lookup(struct core *c, uint64_t id, const struct store_job **ret, struct store_job *own)
{
	struct job *j = job_find(c, id);
	if (j) {
		*ret = &j->rec;
		return 0;
	}
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_job_get(t, id, own);
	if (r == 0) {
		*ret = own;
	}
	return r;
}

/* ---- after a restart ----------------------------------------------------------------------- */

struct recovery {
	uint64_t *ids;
	size_t n, cap;
};

static int note_live(void *ctx, const struct store_job *rec)
{
	struct recovery *v = ctx;
	if (job_state_ended(rec->state)) {
		return 0;
	}
	if (v->n == v->cap) {
		size_t cap = v->cap ? 2 * v->cap : 64;
		uint64_t *ids = realloc_array(v->ids, cap, sizeof(*ids));
		if (!ids) {
			return -ENOMEM;
		}
		v->ids = ids;
		v->cap = cap;
	}
	v->ids[v->n++] = rec->id;
	return 0;
}

static int recover_job(struct core *c, struct job *j)
{
	static const char why[] = "the daemon was started again";
	switch (j->rec.state) {
	case JOB_STARTING:
	case JOB_RUNNING:
	case JOB_PREEMPTING:
		if (job_has_final(&j->rec)) {
			return job_set_state(c, j, JOB_SUCCEEDED, NULL);
		}
		return job_set_state(c, j, JOB_PENDING, why);
	case JOB_CANCELLING:
		return job_set_state(c, j, JOB_CANCELLED, NULL);
	default:
		return 0;
	}
}

int jobs_recover(struct core *c, struct errmsg *err)
{
	struct recovery v = {0};
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_job_each(t, note_live, &v);
	for (size_t i = 0; i < v.n && r == 0; i++) {
		struct store_job rec = {0};
		struct job *j;
		r = core_read(c, &t);
		r = r ? r : store_job_get(t, v.ids[i], &rec);
		r = r ? r : job_add(c, &rec, &j);
		store_job_deinit(&rec);
		r = r ? r : recover_job(c, j);
	}
	free(v.ids);
	if (r == -EIO) {
		errmsg_set(err, STATUS_INVALID,
			"a job's record is damaged; `peftd --check` says more, and nothing was changed");
		return STATUS_INVALID;
	}
	return r;
}
