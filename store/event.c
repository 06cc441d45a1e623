/* Events: a log for each job, numbered without a gap. */

#include <errno.h>

#include "store/store-internal.h"

enum {
	EVENT_KEY = 16,
};

static void event_key(uint8_t out[EVENT_KEY], uint64_t job, uint64_t seq)
{
	be64_write(out, job);
	be64_write(out + 8, seq);
}

static int job_last_seq(struct store_txn *t, uint64_t job, uint64_t *ret)
{
	_cleanup_(store_job_deinit) struct store_job j = {0};
	int r = store_job_get(t, job, &j);
	if (r == 0) {
		*ret = j.last_seq;
	}
	return r;
}

/* True in *ret when `seq` comes next: after the newest event that is kept or, where none is, after
 * what the job's record says, which may have been written already. */
static int comes_next(struct store_txn *t, uint64_t job, uint64_t seq, bool *ret)
{
	uint8_t end[EVENT_KEY], last[KEY_MAX];
	size_t len;
	uint64_t last_seq;

	event_key(end, job, UINT64_MAX);
	int r = db_last_below(t, DB_EVENTS, end, sizeof(end), last, &len);
	if (r == 0 && len == EVENT_KEY && be64_read(last) == job) {
		*ret = seq == be64_read(last + 8) + 1;
		return 0;
	}
	if (r != 0 && r != STATUS_NOT_FOUND) {
		return r;
	}
	r = job_last_seq(t, job, &last_seq);
	if (r == STATUS_NOT_FOUND) {
		*ret = seq == 1;
		return 0;
	}
	*ret = r == 0 && (seq == last_seq + 1 || seq == last_seq);
	return r;
}

int store_event_append(struct store_txn *t, uint64_t job, uint64_t seq, enum store_event_kind kind,
	const void *event, size_t len)
{
	bool next;
	uint8_t key[EVENT_KEY];
	if (job == 0 || seq == 0 || seq == UINT64_MAX || len >= RECORD_MAX) {
		return -EINVAL;
	}
	int r = comes_next(t, job, seq, &next);
	if (r != 0) {
		return r;
	}
	if (!next) {
		return -EINVAL;
	}
	_cleanup_(freep) uint8_t *value = malloc(1 + len);
	if (!value) {
		return -ENOMEM;
	}
	value[0] = (uint8_t)kind;
	if (len > 0) {
		memcpy(value + 1, event, len);
	}
	event_key(key, job, seq);
	return record_put(t, DB_EVENTS, key, sizeof(key), value, 1 + len);
}

/* The first event of the job with seq >= from that is kept. */
static int first_event(struct db_iter *it, uint64_t job, struct bytes *key, struct bytes *sealed)
{
	int r = db_iter_next(it, key, sealed);
	if (r == 0 && key->len != EVENT_KEY) {
		return -EIO;
	}
	return r == 0 && be64_read(key->data) != job ? STATUS_NOT_FOUND : r;
}

/* Whether events between `after` and `first` are gone; first 0: there is none. */
static int check_range(
	struct store_txn *t, uint64_t job, uint64_t after, uint64_t first, uint64_t *ret_first)
{
	if (first == 0) {
		uint64_t last_seq;
		int r = job_last_seq(t, job, &last_seq);
		if (r == STATUS_NOT_FOUND) {
			return 0;
		}
		if (r != 0) {
			return r;
		}
		first = last_seq + 1;
	}
	if (first <= after || first == after + 1) {
		return 0;
	}
	*ret_first = first;
	return STATUS_COMPACTED;
}

int store_event_each(struct store_txn *t, uint64_t job, uint64_t after, unsigned kinds,
	unsigned max, int (*fn)(void *ctx, uint64_t seq, const void *event, size_t len), void *ctx,
	uint64_t *ret_first)
{
	_cleanup_(db_iter_deinit) struct db_iter it = {0};
	_cleanup_(buf_deinit) struct buf copy = {0};
	struct bytes key, sealed, event;
	uint8_t from[EVENT_KEY];

	if (after == UINT64_MAX) {
		return 0;
	}
	event_key(from, job, after + 1);
	int r = db_iter_init(&it, t, DB_EVENTS, from, sizeof(from));
	if (r != 0) {
		return r;
	}
	r = first_event(&it, job, &key, &sealed);
	if (r != 0 && r != STATUS_NOT_FOUND) {
		return r;
	}
	int gap = check_range(t, job, after, r == 0 ? be64_read(key.data + 8) : 0, ret_first);
	if (gap != 0) {
		return gap;
	}
	for (unsigned n = 0; r == 0 && n < max; r = first_event(&it, job, &key, &sealed)) {
		r = record_open(DB_EVENTS, key, sealed, &event);
		if (r != 0 || event.len < 1) {
			return -EIO;
		}
		if (!(event.data[0] & kinds)) {
			continue;
		}
		copy.len = 0;
		r = buf_append(&copy, event.data + 1, event.len - 1);
		if (r != 0) {
			return r;
		}
		n++;
		r = fn(ctx, be64_read(key.data + 8), copy.data, copy.len);
		if (r != 0) {
			return r;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}
