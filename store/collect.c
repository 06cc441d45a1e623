/*
 * Retention and garbage, in slices.
 *
 * DB_DUE has an entry for everything that can grow too old, ordered by kind and time: nothing else
 * is looked at. A slice is one transaction that deletes at most so many keys; what is half deleted
 * can already not be found (a blob), or says so (the events of a job).
 */

#include <errno.h>

#include "store/store-internal.h"
#include "util/log.h"

static const uint64_t day_ns = UINT64_C(86400) * 1000000000;

struct slice {
	struct store_txn *txn;
	uint64_t now;
	unsigned left; /* keys that may still be deleted */
	bool full;     /* something was left for the next slice */
};

static bool take(struct slice *c, unsigned keys)
{
	if (c->left < keys) {
		c->full = true;
		return false;
	}
	c->left -= keys;
	return true;
}

/* The oldest entry of a kind, when it is at least `age` old; its id to id[id_len]. */
static int due_first(struct slice *c, enum due_kind kind, uint64_t age, uint8_t *id, size_t id_len,
	uint64_t *ret_wall_ns)
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, value;
	uint8_t from = (uint8_t)kind;
	int r = db_iter_init(&it, c->txn, DB_DUE, &from, 1);
	if (r == 0) {
		r = db_iter_next(&it, &key, &value);
	}
	if (r != 0) {
		return r;
	}
	if (key.data[0] != from) {
		return STATUS_NOT_FOUND;
	}
	if (key.len != 9 + id_len) {
		return -EIO;
	}
	uint64_t wall_ns = be64_read(key.data + 1);
	if (c->now < age || wall_ns > c->now - age) {
		return STATUS_NOT_FOUND;
	}
	memcpy(id, key.data + 9, id_len);
	*ret_wall_ns = wall_ns;
	return 0;
}

/* Deletes the entries of a database whose keys begin with `prefix`, and those of `also` under the
 * same keys (DB_N: none). STATUS_NOT_FOUND when none is left, 0 when the slice is full. */
static int delete_prefix(struct slice *c, enum store_db db, enum store_db also, uint64_t prefix)
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, value;
	uint8_t from[8];
	be64_write(from, prefix);

	int r = db_iter_init(&it, c->txn, db, from, sizeof(from));
	while (r == 0 && (r = db_iter_next(&it, &key, &value)) == 0) {
		if (key.len < 8 || be64_read(key.data) != prefix) {
			return STATUS_NOT_FOUND;
		}
		if (!take(c, also == DB_N ? 1 : 2)) {
			return 0;
		}
		r = db_del(c->txn, db, key.data, key.len);
		if (r == 0 && also != DB_N) {
			r = db_del(c->txn, also, key.data, key.len);
		}
		if (r == STATUS_NOT_FOUND) {
			return -EIO;
		}
	}
	return r;
}

static int collect_trash(struct slice *c)
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, value;
	int r = db_iter_init(&it, c->txn, DB_TRASH, NULL, 0);
	while (r == 0 && !c->full && (r = db_iter_next(&it, &key, &value)) == 0) {
		if (key.len != 8) {
			return -EIO;
		}
		r = delete_prefix(c, DB_CHUNKS, DB_DIGESTS, be64_read(key.data));
		if (r == STATUS_NOT_FOUND) {
			r = take(c, 1) ? db_del(c->txn, DB_TRASH, key.data, key.len) : 0;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

static int collect_requests(struct slice *c)
{
	uint8_t id[4 + REQUEST_ID_SIZE];
	uint64_t wall_ns;
	int r = 0;
	while (r == 0 && !c->full &&
		(r = due_first(c, DUE_REQUEST, day_ns, id, sizeof(id), &wall_ns)) == 0) {
		if (!take(c, 2)) {
			return 0;
		}
		r = request_remove(c->txn, be32_read(id), id + 4);
		if (r == 0) {
			r = due_del(c->txn, DUE_REQUEST, wall_ns, id, sizeof(id));
		}
		if (r == STATUS_NOT_FOUND) {
			return -EIO;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

static int collect_blobs(struct slice *c)
{
	uint8_t digest[DIGEST_SIZE];
	uint64_t wall_ns;
	int r = 0;
	while (r == 0 && !c->full &&
		(r = due_first(c, DUE_BLOB, day_ns, digest, sizeof(digest), &wall_ns)) == 0) {
		struct blob_record b;
		if (!take(c, 3)) {
			return 0;
		}
		r = blob_load(c->txn, digest, &b);
		if (r == 0 && b.references > 0) {
			return -EIO;
		}
		r = r == 0 ? blob_drop(c->txn, &b) : r;
		if (r == STATUS_NOT_FOUND) {
			return -EIO;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

static int collect_events(struct slice *c)
{
	uint8_t id[8];
	uint64_t wall_ns;
	int r = 0;
	while (r == 0 && !c->full &&
		(r = due_first(c, DUE_JOB_EVENTS, 7 * day_ns, id, sizeof(id), &wall_ns)) == 0) {
		r = delete_prefix(c, DB_EVENTS, DB_N, be64_read(id));
		if (r == STATUS_NOT_FOUND) {
			r = take(c, 1) ? due_del(c->txn, DUE_JOB_EVENTS, wall_ns, id, sizeof(id)) : 0;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

static int collect_jobs(struct slice *c)
{
	uint8_t id[8];
	uint64_t wall_ns;
	int r = 0;
	while (r == 0 && !c->full &&
		(r = due_first(c, DUE_JOB, 30 * day_ns, id, sizeof(id), &wall_ns)) == 0) {
		_cleanup_(store_job_deinit) struct store_job j = {0};
		r = store_job_get(c->txn, be64_read(id), &j);
		if (r == STATUS_NOT_FOUND) {
			return -EIO;
		}
		/* Its events went weeks ago, unless nothing was collected for as long. */
		r = r == 0 ? delete_prefix(c, DB_EVENTS, DB_N, be64_read(id)) : r;
		if (r == STATUS_NOT_FOUND) {
			r = take(c, 3) ? job_remove(c->txn, &j) : 0;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

int store_collect(struct store *s, uint64_t now_wall_ns, unsigned max_keys, bool *ret_more)
{
	static int (*const steps[])(struct slice *) = {
		/* Jobs before the blobs that only they hold, blobs before their chunks. */
		collect_requests,
		collect_events,
		collect_jobs,
		collect_blobs,
		collect_trash,
	};
	int dead = 0;
	int r = store_errno(mdb_reader_check(s->env, &dead));
	if (r != 0) {
		return r < 0 ? r : -EIO;
	}
	if (dead > 0) {
		log_debug("%s: freed %d reader slots of dead processes", s->dir, dead);
	}

	struct slice c = {.now = now_wall_ns, .left = max_keys < 16 ? 16 : max_keys};
	r = store_begin(s, true, &c.txn);
	for (size_t i = 0; r == 0 && !c.full && i < ARRAY_LEN(steps); i++) {
		r = steps[i](&c);
	}
	if (r != 0) {
		store_abort(c.txn);
		return r;
	}
	if (c.txn->puts + c.txn->deletes == 0) {
		store_abort(c.txn);
	} else if ((r = store_commit(c.txn)) != 0) {
		return r;
	}
	*ret_more = c.full;
	return 0;
}
