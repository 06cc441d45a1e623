/* Requests about jobs: list, show, cancel, hold, release, retry. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

static int not_found(struct core *c, const struct request *req)
{
	return answer_status(c, req->session, req->id, STATUS_NOT_FOUND, 
		"there is no job %llu; `peftctl list` lists those there are",
		(unsigned long long)req->job);
}

/* ---- list and show ------------------------------------------------------------------------- */

enum { LIST_MAX = 100 }; /* jobs a reply */

struct list {
	struct core *c;
	const struct request *req;
	struct packed items[LIST_MAX];
	size_t n, bytes;
};

static int send_list(struct list *l, bool more)
{
	struct packed reply;
	int r = reply_jobs(&reply, l->req->id, l->items, l->n, more);
	for (size_t i = 0; i < l->n; i++) {
		packed_deinit(&l->items[i]);
	}
	l->n = l->bytes = 0;
	return r ? r : answer_packed(l->c, l->req->session, &reply);
}

static int list_one(void *ctx, const struct store_job *rec)
{
	struct list *l = ctx;
	const struct request *req = l->req;
	if ((req->state >= 0 && (int)rec->state != req->state) ||
		(req->mine && rec->owner_uid != req->uid)) {
		return 0;
	}
	struct packed item = {0};
	const struct job *j = rec->state == JOB_PENDING ? job_find(l->c, rec->id) : NULL;
	int r = convert_job(&item, rec, j ? j->position : 0, true);
	if (r == 0 && (l->n == LIST_MAX || (l->n && l->bytes + item.len > MESSAGE_MAX * 3 / 4))) {
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

/* The jobs of a sweep: those whose ids follow the first one's. Some may be past their time. */
static int list_sweep(struct list *l)
{
	uint64_t first = l->req->of_sweep, end = first + SWEEP_MAX, id = first;
	bool found = false;
	for (; id < end; id++) {
		_cleanup_(store_job_deinit) struct store_job own = {0};
		const struct store_job *rec;
		int r = job_lookup(l->c, id, &rec, &own);
		if (r < 0) {
			return r;
		}
		if (r == STATUS_NOT_FOUND) {
			continue;
		}
		if (rec->sweep != first) {
			break;
		}
		found = true;
		r = list_one(l, rec);
		if (r < 0) {
			return r;
		}
	}
	return found ? 0 : STATUS_NOT_FOUND;
}

static int list(struct core *c, const struct request *req)
{
	struct list l = {.c = c, .req = req};
	struct store_txn *t;
	int r = sched_number(c);
	if (r == 0 && req->of_sweep) {
		r = list_sweep(&l);
		if (r == STATUS_NOT_FOUND) {
			return answer_status(c, req->session, req->id, r, 
				"there is no sweep s%llu; `peftctl list` shows those of its jobs",
				(unsigned long long)req->of_sweep);
		}
	} else if (r == 0) {
		r = core_read(c, &t);
		r = r ? r : store_job_each(t, list_one, &l);
	}
	int k = send_list(&l, false);
	return r ? r : k;
}

static int show(struct core *c, const struct request *req)
{
	_cleanup_(store_job_deinit) struct store_job own = {0};
	const struct store_job *rec;
	int r = job_lookup(c, req->job, &rec, &own);
	if (r == STATUS_NOT_FOUND) {
		return not_found(c, req);
	}
	struct packed reply;
	const struct job *j = job_find(c, req->job);
	r = r ? r : reply_job(&reply, req->id, rec, j ? sched_position(c, j) : 0);
	return r ? r : answer_packed(c, req->session, &reply);
}

/* ---- control ------------------------------------------------------------------------------- */

static int answer_job(struct core *c, const struct request *req, const uint64_t *sessions, size_t n,
	const struct job *j)
{
	struct packed reply;
	int r = reply_job(&reply, req->id, &j->rec, sched_position(c, j));
	return r ? r : answer_kept(c, req, sessions, n, &reply);
}

static int refuse(struct core *c, const struct request *req, enum job_state state)
{
	static const char *const verbs[] = {"cancelled", "held", "released", "tried again"};
	static const char *const rights[] = {
		"a job that has not ended can be",
		"a job that waits or runs can be",
		"a job that is HELD can be",
		"a job that has FAILED or was CANCELLED can be",
	};
	return answer_status(c, req->session, req->id, STATUS_CONFLICT,
		"job %llu is %s and cannot be %s; %s", (unsigned long long)req->job, job_state_name(state),
		verbs[req->action], rights[req->action]);
}

static bool on_trainer(const struct job *j)
{
	return j->task != NULL;
}

static int cancel(struct core *c, const struct request *req, struct job *j)
{
	int r = 0;
	if (on_trainer(j) && j->rec.state != JOB_CANCELLING) {
		r = train_stop(c, j, STOP_CANCEL, NULL, false);
	} else if (!on_trainer(j)) {
		r = job_set_state(c, j, JOB_CANCELLED, NULL);
	}
	return r ? r : answer_job(c, req, &req->session, 1, j);
}

/* The answer comes when the checkpoint has been written: until then a restart could forget it. */
static int hold_running(struct core *c, struct request *req, struct job *j)
{
	struct hold *h = calloc(1, sizeof(*h));
	if (!h || sessions_add(&h->sessions, &h->n_sessions, req->session) < 0) {
		free(h);
		return -ENOMEM;
	}
	h->req = *req;
	*req = (struct request){0};
	TAILQ_INSERT_TAIL(&c->holds, h, entry);
	return j->rec.state == JOB_PREEMPTING ? 0
										  : train_stop(c, j, STOP_HOLD, "held on request", true);
}

static int hold(struct core *c, struct request *req, struct job *j)
{
	int r = 0;
	switch (j->rec.state) {
	case JOB_PENDING:
		r = job_set_state(c, j, JOB_HELD, "held on request");
		break;
	case JOB_HELD:
		break;
	case JOB_STARTING:
	case JOB_RUNNING:
	case JOB_PREEMPTING:
		return hold_running(c, req, j);
	default:
		return refuse(c, req, j->rec.state);
	}
	return r ? r : answer_job(c, req, &req->session, 1, j);
}

static int release(struct core *c, const struct request *req, struct job *j)
{
	if (j->rec.state != JOB_HELD) {
		return refuse(c, req, j->rec.state);
	}
	j->not_before_ns = 0;
	int r = job_set_state(c, j, JOB_PENDING, NULL);
	return r ? r : answer_job(c, req, &req->session, 1, j);
}

static int retry(struct core *c, const struct request *req, struct store_job *rec)
{
	if (rec->state != JOB_FAILED && rec->state != JOB_CANCELLED) {
		return refuse(c, req, rec->state);
	}
	_cleanup_(store_model_deinit) struct store_model m = {0};
	int r = find_model(c, req, rec->model, &m);
	if (r != 0) {
		return r;
	}
	if (memcmp(m.digest, rec->model_digest, sizeof(m.digest)) != 0) {
		return answer_status(c, req->session, req->id, STATUS_CONFLICT,
			"model %s is another one now than when job %llu was submitted; submit it anew",
			rec->model, (unsigned long long)req->job);
	}
	struct job *j;
	rec->tries = 0;
	rec->ended_wall_ns = 0;
	r = job_add(c, rec, &j);
	r = r ? r : job_set_state(c, j, JOB_PENDING, "tried again on request");
	return r ? r : answer_job(c, req, &req->session, 1, j);
}

static int control_ended(struct core *c, const struct request *req, struct store_job *rec)
{
	if (req->action == CONTROL_RETRY) {
		return retry(c, req, rec);
	}
	return refuse(c, req, rec->state);
}

static int control_live(struct core *c, struct request *req, struct job *j)
{
	switch (req->action) {
	case CONTROL_CANCEL:
		return cancel(c, req, j);
	case CONTROL_HOLD:
		return hold(c, req, j);
	case CONTROL_RELEASE:
		return release(c, req, j);
	default:
		return refuse(c, req, j->rec.state);
	}
}

static int control(struct core *c, struct request *req)
{
	_cleanup_(store_job_deinit) struct store_job own = {0};
	const struct store_job *rec;
	int r = job_lookup(c, req->job, &rec, &own);
	if (r == STATUS_NOT_FOUND) {
		return not_found(c, req);
	}
	if (r < 0) {
		return r;
	}
	if (req->uid != rec->owner_uid && req->uid != 0 && req->uid != c->options.daemon_uid) {
		return answer_status(c, req->session, req->id, STATUS_DENIED,
			"job %llu belongs to user %u; only they or the administrator can do that",
			(unsigned long long)req->job, rec->owner_uid);
	}
	struct job *j = job_find(c, req->job);
	if (j && job_state_ended(j->rec.state)) {
		/* It has ended in this very turn; what the store then has is taken up again. */
		r = core_flush(c);
		r = r ? r : job_lookup(c, req->job, &rec, &own);
		j = NULL;
	}
	if (r != 0) {
		return r < 0 ? r : not_found(c, req);
	}
	return j ? control_live(c, req, j) : control_ended(c, req, &own);
}

int job_request(struct core *c, struct request *req)
{
	switch (req->kind) {
	case REQUEST_JOB_LIST:
		return list(c, req);
	case REQUEST_JOB_SHOW:
		return show(c, req);
	default:
		return control(c, req);
	}
}

/* ---- those who wait for a hold ------------------------------------------------------------- */

void hold_free(struct hold *h)
{
	request_deinit(&h->req);
	free(h->sessions);
	free(h);
}

static int answer_hold(struct core *c, struct hold *h, const struct job *j)
{
	if (j->rec.state == JOB_HELD) {
		return answer_job(c, &h->req, h->sessions, h->n_sessions, j);
	}
	struct packed reply;
	char text[128];
	snprintf(text, sizeof(text), "job %llu could not be held any more: it is %s",
		(unsigned long long)j->rec.id, job_state_name(j->rec.state));
	int r = reply_status(&reply, h->req.id, STATUS_CONFLICT, text);
	return r ? r : answer_sessions(c, h->sessions, h->n_sessions, &reply);
}

int holds_settle(struct core *c, const struct job *j)
{
	enum job_state s = j->rec.state;
	if (s != JOB_HELD && s != JOB_CANCELLING && !job_state_ended(s)) {
		return 0;
	}
	struct hold *h, *next;
	for (h = TAILQ_FIRST(&c->holds); h; h = next) {
		next = TAILQ_NEXT(h, entry);
		if (h->req.job != j->rec.id) {
			continue;
		}
		int r = answer_hold(c, h, j);
		TAILQ_REMOVE(&c->holds, h, entry);
		hold_free(h);
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

int holds_shutdown(struct core *c)
{
	struct hold *h;
	while ((h = TAILQ_FIRST(&c->holds))) {
		struct packed reply;
		int r = reply_status(
			&reply, h->req.id, STATUS_UNAVAILABLE, "the daemon is shutting down; try again");
		r = r ? r : answer_sessions(c, h->sessions, h->n_sessions, &reply);
		TAILQ_REMOVE(&c->holds, h, entry);
		hold_free(h);
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

void holds_session_end(struct core *c, uint64_t session, bool all)
{
	struct hold *h;
	TAILQ_FOREACH (h, &c->holds, entry) {
		if (all) {
			h->n_sessions = 0;
		} else {
			sessions_drop(h->sessions, &h->n_sessions, session);
		}
	}
}
