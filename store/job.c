/* Jobs, the references they hold, and what retention looks at. */

#include <errno.h>

#include "store/store-internal.h"

/* ---- what is due --------------------------------------------------------------------------- */

int due_key(
	uint8_t out[KEY_MAX], enum due_kind kind, uint64_t wall_ns, const void *id, size_t id_len)
{
	out[0] = (uint8_t)kind;
	be64_write(out + 1, wall_ns);
	memcpy(out + 9, id, id_len);
	return (int)(9 + id_len);
}

int due_put(
	struct store_txn *t, enum due_kind kind, uint64_t wall_ns, const void *id, size_t id_len)
{
	uint8_t key[KEY_MAX];
	int len = due_key(key, kind, wall_ns, id, id_len);
	return db_put(t, DB_DUE, key, (size_t)len, NULL, 0);
}

int due_del(
	struct store_txn *t, enum due_kind kind, uint64_t wall_ns, const void *id, size_t id_len)
{
	uint8_t key[KEY_MAX];
	int len = due_key(key, kind, wall_ns, id, id_len);
	int r = db_del(t, DB_DUE, key, (size_t)len);
	return r == STATUS_NOT_FOUND ? -EIO : r;
}

/* ---- references ---------------------------------------------------------------------------- */

int job_each_blob(
	const struct store_job *j, int (*fn)(void *ctx, const struct store_files *f), void *ctx)
{
	int r = fn(ctx, &j->dataset.content);
	if (r == 0 && j->eval_dataset.name) {
		r = fn(ctx, &j->eval_dataset.content);
	}
	if (r == 0 && j->init_adapter.n > 0) {
		r = fn(ctx, &j->init_adapter);
	}
	for (size_t i = 0; r == 0 && i < j->n_checkpoints; i++) {
		r = fn(ctx, &j->checkpoints[i].content);
	}
	return r;
}

struct change {
	uint8_t digest[DIGEST_SIZE];
	int64_t add;
};

struct changes {
	struct change *at;
	size_t n;
	int64_t sign;
};

static int note_change(void *ctx, const struct store_files *f)
{
	struct changes *c = ctx;
	memcpy(c->at[c->n].digest, f->digest, DIGEST_SIZE);
	c->at[c->n].add = c->sign;
	c->n++;
	return 0;
}

static int compare_changes(const void *a, const void *b)
{
	const struct change *x = a, *y = b;
	return memcmp(x->digest, y->digest, DIGEST_SIZE);
}

/* Makes the difference between what `old` and what `j` refer to; either may be NULL. */
static int adjust_references(
	struct store_txn *t, const struct store_job *old, const struct store_job *j)
{
	size_t most = (old ? old->n_checkpoints + 3 : 0) + (j ? j->n_checkpoints + 3 : 0);
	_cleanup_(freep) struct change *changes = calloc_array(most, sizeof(*changes));
	struct changes c = {.at = changes};
	if (!changes) {
		return -ENOMEM;
	}
	if (old) {
		c.sign = -1;
		job_each_blob(old, note_change, &c);
	}
	if (j) {
		c.sign = 1;
		job_each_blob(j, note_change, &c);
	}
	qsort(changes, c.n, sizeof(*changes), compare_changes);
	for (size_t i = 0; i < c.n;) {
		int64_t add = 0;
		size_t first = i;
		for (; i < c.n && compare_changes(&changes[first], &changes[i]) == 0; i++) {
			add += changes[i].add;
		}
		int r = add != 0 ? blob_count(t, changes[first].digest, add) : 0;
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* ---- jobs ---------------------------------------------------------------------------------- */

bool job_ended(const struct store_job *j)
{
	return j->state == JOB_SUCCEEDED || j->state == JOB_FAILED || j->state == JOB_CANCELLED;
}

static bool job_is_due(const struct store_job *j)
{
	/* One without the time of its end is kept rather than taken for very old. */
	return job_ended(j) && j->ended_wall_ns != 0;
}

static int forget_due(struct store_txn *t, const struct store_job *old, const uint8_t id[8])
{
	if (!job_is_due(old)) {
		return 0;
	}
	/* That of the events goes when they do. */
	uint8_t key[KEY_MAX];
	int len = due_key(key, DUE_JOB_EVENTS, old->ended_wall_ns, id, 8);
	int r = db_del(t, DB_DUE, key, (size_t)len);
	return r == 0 || r == STATUS_NOT_FOUND ? due_del(t, DUE_JOB, old->ended_wall_ns, id, 8) : r;
}

int store_job_put(struct store_txn *t, const struct store_job *j)
{
	_cleanup_(store_job_deinit) struct store_job old = {0};
	_cleanup_(packed_deinit) struct packed p = {0};
	uint8_t id[8];

	if (j->id == 0) {
		return -EINVAL;
	}
	int r = job_pack(j, &p);
	if (r != 0) {
		return r;
	}
	be64_write(id, j->id);
	r = store_job_get(t, j->id, &old);
	if (r != 0 && r != STATUS_NOT_FOUND) {
		return r;
	}
	bool is_new = r == STATUS_NOT_FOUND;
	r = adjust_references(t, is_new ? NULL : &old, j);
	if (r == 0 && !is_new) {
		r = forget_due(t, &old, id);
	}
	if (r == 0 && job_is_due(j)) {
		r = due_put(t, DUE_JOB, j->ended_wall_ns, id, sizeof(id));
		if (r == 0) {
			r = due_put(t, DUE_JOB_EVENTS, j->ended_wall_ns, id, sizeof(id));
		}
	}
	return r == 0 ? record_put(t, DB_JOBS, id, sizeof(id), p.data, p.len) : r;
}

int job_remove(struct store_txn *t, const struct store_job *j)
{
	uint8_t id[8];
	be64_write(id, j->id);
	int r = adjust_references(t, j, NULL);
	if (r == 0) {
		r = forget_due(t, j, id);
	}
	if (r == 0) {
		r = db_del(t, DB_JOBS, id, sizeof(id));
	}
	return r == STATUS_NOT_FOUND ? -EIO : r;
}

int store_job_get(struct store_txn *t, uint64_t id, struct store_job *ret)
{
	uint8_t key[8];
	struct bytes b;
	be64_write(key, id);
	int r = record_get(t, DB_JOBS, key, sizeof(key), &b);
	return r == 0 ? job_unpack(b, ret) : r;
}

int store_job_each(struct store_txn *t, int (*fn)(void *ctx, const struct store_job *j), void *ctx)
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, sealed, b;
	int r = db_iter_init(&it, t, DB_JOBS, NULL, 0);
	while (r == 0 && (r = db_iter_next(&it, &key, &sealed)) == 0) {
		_cleanup_(store_job_deinit) struct store_job j = {0};
		r = record_open(DB_JOBS, key, sealed, &b);
		if (r == 0) {
			r = job_unpack(b, &j);
		}
		if (r != 0) {
			return r;
		}
		r = fn(ctx, &j);
		if (r != 0) {
			return r;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}
