/*
 * Checkpoints: chunks go into the store as a blob that nothing refers to yet; the last, small
 * transaction adds it to the job's record together with the event, and lets go of those that are no
 * longer kept.
 */

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

void staging_deinit(struct staging *s)
{
	store_files_deinit(&s->content);
	*s = (struct staging){0};
}

static int credit(struct core *c, struct task *t, uint32_t chunks)
{
	struct action *a = core_act(c, ACT_CHECKPOINT_CREDIT, t->child);
	if (!a) {
		return -ENOMEM;
	}
	a->task = t->spec->id;
	a->credit = chunks;
	return 0;
}

static int done(struct core *c, struct task *t, uint64_t step, int code, const char *text)
{
	struct action *a = core_act(c, ACT_CHECKPOINT_DONE, t->child);
	if (!a) {
		return -ENOMEM;
	}
	a->task = t->spec->id;
	a->done.step = step;
	a->done.code = code;
	a->done.text = text ? strdup(text) : NULL;
	return text && !a->done.text ? -ENOMEM : 0;
}

/* There is no room: the job rests with the checkpoint that it has until somebody makes some. */
static int no_room(struct core *c, struct task *t, uint64_t step, const char *why)
{
	int r = done(c, t, step, STATUS_DISK_FULL, why);
	staging_deinit(&t->staging);
	if (r == 0 && t->job->stop != STOP_CANCEL) {
		r = train_stop(c, t->job, STOP_HOLD, why, false);
	}
	return r;
}

int checkpoint_begin(struct core *c, struct task *t, struct event *ev)
{
	struct staging *s = &t->staging;
	uint64_t step = ev->checkpoint.step;
	if (t->job->rec.state == JOB_CANCELLING) {
		return done(c, t, step, STATUS_CANCELLED, "the job is being cancelled");
	}
	staging_deinit(s);
	struct errmsg err = {.text = ""};
	int r = store_room(c->store, ev->checkpoint.content.size, &err);
	if (r > 0) {
		return no_room(c, t, step, err.text);
	}
	struct store_txn *txn;
	struct store_blob blob;
	r = r ? r : core_write(c, &txn);
	r = r ? r
		  : store_fatal(store_blob_begin(txn, ev->checkpoint.content.digest,
				ev->checkpoint.content.size, (uint64_t)c->wall, &blob));
	if (r < 0) {
		return r;
	}
	if (r > 0 || blob.size != ev->checkpoint.content.size) {
		return done(c, t, step, STATUS_INVALID, "a blob of this digest has another size");
	}
	*s = (struct staging){
		.active = true,
		.step = step,
		.content = ev->checkpoint.content,
		.eval_loss = ev->checkpoint.eval_loss,
		.final = ev->checkpoint.final,
		.have = blob.received,
	};
	ev->checkpoint.content = (struct store_files){0};
	return credit(c, t, TRANSFER_WINDOW);
}

int checkpoint_chunk(struct core *c, struct task *t, struct event *ev)
{
	struct staging *s = &t->staging;
	if (!s->active) {
		return 0; /* the trainer has been told why */
	}
	if (ev->offset < s->offset) {
		return 0; /* once more */
	}
	uint64_t left = s->content.size - s->offset;
	if (ev->offset != s->offset || ev->raw_len != (left < CHUNK_SIZE ? left : CHUNK_SIZE) ||
		left == 0) {
		return STATUS_INTERNAL;
	}
	s->offset += ev->raw_len;
	if (s->offset <= s->have) {
		return credit(c, t, 1); /* here since before an interruption: same digest, same bytes */
	}
	struct bulk *b;
	int r = bulk_add(c, s->content.digest, ev->offset, ev->raw, ev->raw_len, &b);
	if (r == 0) {
		b->task = t->spec->id;
	}
	return r;
}

int checkpoint_landed(struct core *c, const struct bulk *b)
{
	struct task *t = task_find(c, b->task);
	if (!t || !t->staging.active ||
		memcmp(t->staging.content.digest, b->digest, sizeof(b->digest)) != 0) {
		return 0;
	}
	struct staging *s = &t->staging;
	if (b->code == STATUS_OK) {
		return credit(c, t, 1);
	}
	if (b->code == STATUS_DISK_FULL) {
		return no_room(c, t, s->step, b->why.text);
	}
	/* Somebody else may have sent the same bytes meanwhile: not a fault. */
	if (b->code == STATUS_CONFLICT && b->offset + b->len <= b->received) {
		return credit(c, t, 1);
	}
	int r = done(c, t, s->step, b->code, b->why.text);
	staging_deinit(s);
	return r;
}

/* ---- retention ----------------------------------------------------------------------------- */

static void checkpoint_deinit(struct store_checkpoint *k)
{
	store_files_deinit(&k->content);
}

/* Best: the smallest loss on the evaluation data. */
static void mark_best(struct store_job *rec)
{
	struct store_checkpoint *best = NULL;
	for (size_t i = 0; i < rec->n_checkpoints; i++) {
		struct store_checkpoint *k = &rec->checkpoints[i];
		k->best = false;
		if (!isnan(k->eval_loss) && (!best || k->eval_loss < best->eval_loss)) {
			best = k;
		}
	}
	if (best) {
		best->best = true;
	}
}

/* Keeps the final, the best and the last two. */
static void retain(struct store_job *rec)
{
	size_t n = 0;
	for (size_t i = 0; i < rec->n_checkpoints; i++) {
		struct store_checkpoint *k = &rec->checkpoints[i];
		if (k->final || k->best || i + 2 >= rec->n_checkpoints) {
			rec->checkpoints[n++] = *k;
		} else {
			checkpoint_deinit(k);
		}
	}
	rec->n_checkpoints = n;
}

/* Puts it in its place by step; takes its contents. */
static int insert(struct store_job *rec, struct store_checkpoint *k)
{
	struct store_checkpoint *list =
		realloc_array(rec->checkpoints, rec->n_checkpoints + 1, sizeof(*list));
	if (!list) {
		return -ENOMEM;
	}
	rec->checkpoints = list;
	size_t i = 0;
	while (i < rec->n_checkpoints && list[i].step < k->step) {
		i++;
	}
	if (i < rec->n_checkpoints && list[i].step == k->step) {
		checkpoint_deinit(&list[i]);
	} else {
		memmove(&list[i + 1], &list[i], (rec->n_checkpoints - i) * sizeof(*list));
		rec->n_checkpoints++;
	}
	list[i] = *k;
	*k = (struct store_checkpoint){0};
	return 0;
}

int checkpoint_end(struct core *c, struct task *t)
{
	struct staging *s = &t->staging;
	struct job *j = t->job;
	if (!s->active) {
		return 0;
	}
	/* Its last chunks may still be waiting. They can also end in a full disk. */
	int r = core_flush(c);
	if (r < 0 || !s->active) {
		return r;
	}
	uint64_t step = s->step;
	struct store_txn *txn;
	struct store_blob blob = {.size = 0};
	if (j->rec.state == JOB_CANCELLING) {
		staging_deinit(s);
		return done(c, t, step, STATUS_CANCELLED, "the job is being cancelled");
	}
	r = core_read(c, &txn);
	r = r ? r : store_blob_get(txn, s->content.digest, &blob);
	if (r < 0) {
		return r;
	}
	if (r > 0 || blob.size != s->content.size || blob.received != blob.size) {
		r = done(c, t, step, STATUS_INVALID, "the checkpoint ended before all of it was sent");
		staging_deinit(s);
		return r;
	}
	struct store_checkpoint k = {.step = step,
		.content = s->content,
		.eval_loss = s->eval_loss,
		.wall_ns = (uint64_t)c->wall,
		.final = s->final};
	struct job_event e = {
		.kind = EVENT_CHECKPOINT, .step = step, .size = s->content.size, .final = s->final};
	s->content = (struct store_files){0};
	staging_deinit(s);
	r = insert(&j->rec, &k);
	checkpoint_deinit(&k);
	if (r < 0) {
		return r;
	}
	mark_best(&j->rec);
	retain(&j->rec);
	j->rec.tries = 0;
	r = job_append(c, j, &e);
	return r ? r : done(c, t, step, STATUS_OK, NULL);
}
