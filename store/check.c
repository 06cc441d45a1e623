/*
 * The whole store, verified: pages, seals, digests, references, and that what is kept twice agrees.
 * Nothing is changed. One long read transaction, so this is for a store at rest.
 */

#include <errno.h>
#include <inttypes.h>

#include "store/store-internal.h"

struct seen_blob {
	struct blob_record record;
	uint64_t expected; /* references found in jobs and datasets */
};

struct seen_job {
	uint64_t id, last_seq, ended_wall_ns;
	bool ended;
	uint64_t first_event, last_event; /* 0: none */
};

struct check {
	struct store_txn *txn;
	struct buf *report;
	uint64_t faults;
	struct meta_record meta;
	struct seen_blob *blobs; /* by digest */
	size_t n_blobs;
	struct seen_job *jobs; /* by id */
	size_t n_jobs;
	uint64_t *numbers; /* of blobs and trash, ascending: whose chunks may be there */
	size_t n_numbers;
};

/* Adds a line; 0 or -ENOMEM, so that `return fault(…)` goes on checking. */
#define fault(c, ...) fault_line((c), buf_appendf((c)->report, __VA_ARGS__))

static int fault_line(struct check *c, int r)
{
	c->faults++;
	return r == 0 ? buf_appendf(c->report, "\n") : r;
}

struct hex {
	char text[2 * DIGEST_SIZE + 1];
};

static struct hex hex_of(const void *data, size_t len)
{
	struct hex h;
	hex_encode(h.text, data, len < DIGEST_SIZE ? len : DIGEST_SIZE);
	return h;
}

/* Room for one more in an array that is doubled when its length is a power of two. */
static int grow(void **array, size_t n, size_t size)
{
	if (n != 0 && (n & (n - 1)) != 0) {
		return 0;
	}
	void *p = realloc_array(*array, n ? 2 * n : 1, size);
	if (!p) {
		return -ENOMEM;
	}
	*array = p;
	return 0;
}

/* fn for each entry of a database; `content` is the opened record, or the raw value where the
 * database has no seals. */
static int each(struct check *c, enum store_db db, bool sealed,
	int (*fn)(struct check *c, struct bytes key, struct bytes content))
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, value;
	int r = db_iter_init(&it, c->txn, db, NULL, 0);
	while (r == 0 && (r = db_iter_next(&it, &key, &value)) == 0) {
		if (sealed && record_open(db, key, value, &value) != 0) {
			r = fault(c, "%s: the record of key %s does not match its digest", store_db_name(db),
				hex_of(key.data, key.len).text);
			continue;
		}
		r = fn(c, key, value);
	}
	if (r == -EIO) {
		return fault(c, "%s: cannot be read further than key %s", store_db_name(db),
			hex_of(it.key, it.key_len).text);
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

/* ---- blobs --------------------------------------------------------------------------------- */

static int collect_blob(struct check *c, struct bytes key, struct bytes content)
{
	struct blob_record b;
	if (key.len != DIGEST_SIZE || blob_unpack(content, &b) != 0 ||
		memcmp(b.digest, key.data, DIGEST_SIZE) != 0) {
		return fault(c, "blob %s: its record cannot be read", hex_of(key.data, key.len).text);
	}
	int r = grow((void **)&c->blobs, c->n_blobs, sizeof(*c->blobs));
	if (r == 0) {
		r = grow((void **)&c->numbers, c->n_numbers, sizeof(*c->numbers));
	}
	if (r == 0) {
		c->blobs[c->n_blobs++] = (struct seen_blob){.record = b};
		c->numbers[c->n_numbers++] = b.number;
	}
	return r;
}

static int compare_blob(const void *key, const void *element)
{
	return memcmp(key, ((const struct seen_blob *)element)->record.digest, DIGEST_SIZE);
}

static struct seen_blob *find_blob(struct check *c, const uint8_t digest[DIGEST_SIZE])
{
	if (c->n_blobs == 0) {
		return NULL;
	}
	return bsearch(digest, c->blobs, c->n_blobs, sizeof(*c->blobs), compare_blob);
}

static int check_content(struct check *c, const struct blob_record *b, const char *name)
{
	crypto_generichash_state whole;
	uint8_t digest[DIGEST_SIZE];
	crypto_generichash_init(&whole, NULL, 0, DIGEST_SIZE);

	for (uint64_t at = 0; at < b->received;) {
		struct bytes chunk;
		size_t len = chunk_len(b->size, at);
		int r = chunk_get(c->txn, b->number, (uint32_t)(at / CHUNK_SIZE), len, &chunk);
		if (r == -EIO) {
			return fault(c,
				"blob %s: the chunk at offset %" PRIu64 " is missing or does not match its "
				"digest",
				name, at);
		}
		if (r != 0) {
			return r;
		}
		crypto_generichash_update(&whole, chunk.data, chunk.len);
		at += len;
	}
	crypto_generichash_final(&whole, digest, DIGEST_SIZE);
	if (b->received == b->size && memcmp(digest, b->digest, DIGEST_SIZE) != 0) {
		return fault(
			c, "blob %s: its content has the digest %s", name, hex_of(digest, DIGEST_SIZE).text);
	}
	return 0;
}

static int check_blob(struct check *c, const struct seen_blob *s)
{
	const struct blob_record *b = &s->record;
	struct hex name = hex_of(b->digest, DIGEST_SIZE);
	int r = 0;

	if (b->number == 0 || b->number >= c->meta.next_blob) {
		return fault(c, "blob %s: its number %" PRIu64 " was never given", name.text, b->number);
	}
	if (b->received < b->size && b->received % CHUNK_SIZE != 0) {
		return fault(
			c, "blob %s: %" PRIu64 " bytes received are no whole chunks", name.text, b->received);
	}
	if (b->references != s->expected) {
		r = fault(c, "blob %s: counts %" PRIu32 " references, and has %" PRIu64, name.text,
			b->references, s->expected);
	}
	return r == 0 ? check_content(c, b, name.text) : r;
}

/* What a record refers to must be there. */
struct refer {
	struct check *check;
	const char *who; /* "job 7", "dataset train" */
};

static int refer(void *ctx, const struct store_files *f)
{
	struct refer *r = ctx;
	struct hex name = hex_of(f->digest, DIGEST_SIZE);
	struct seen_blob *b = find_blob(r->check, f->digest);
	if (!b) {
		return fault(r->check, "%s: refers to blob %s, which is not there", r->who, name.text);
	}
	b->expected++;
	if (b->record.received != b->record.size || b->record.size != f->size) {
		return fault(r->check, "%s: blob %s has %" PRIu64 " bytes of %" PRIu64, r->who, name.text,
			b->record.received, f->size);
	}
	return 0;
}

static int collect_trash(struct check *c, struct bytes key, struct bytes content)
{
	if (key.len != 8 || content.len != 0 || be64_read(key.data) >= c->meta.next_blob) {
		return fault(c, "trash: a damaged entry %s", hex_of(key.data, key.len).text);
	}
	int r = grow((void **)&c->numbers, c->n_numbers, sizeof(*c->numbers));
	if (r == 0) {
		c->numbers[c->n_numbers++] = be64_read(key.data);
	}
	return r;
}

static int compare_numbers(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static int check_numbers(struct check *c)
{
	int r = 0;
	if (c->n_numbers > 1) {
		qsort(c->numbers, c->n_numbers, sizeof(*c->numbers), compare_numbers);
	}
	for (size_t i = 1; i < c->n_numbers && r == 0; i++) {
		if (c->numbers[i] == c->numbers[i - 1]) {
			r = fault(c, "blob number %" PRIu64 " is used twice", c->numbers[i]);
		}
	}
	return r;
}

static int check_chunk_key(struct check *c, struct bytes key, struct bytes content)
{
	uint64_t number = key.len == 12 ? be64_read(key.data) : 0;
	if (c->n_numbers == 0 ||
		!bsearch(&number, c->numbers, c->n_numbers, sizeof(*c->numbers), compare_numbers)) {
		return fault(c, "a chunk %s belongs to no blob", hex_of(key.data, key.len).text);
	}
	return 0;
}

/* ---- jobs and events ----------------------------------------------------------------------- */

static int check_job(struct check *c, struct bytes key, struct bytes content)
{
	_cleanup_(store_job_deinit) struct store_job j = {0};
	if (key.len != 8 || job_unpack(content, &j) != 0 || j.id != be64_read(key.data)) {
		return fault(c, "job %s: its record cannot be read", hex_of(key.data, key.len).text);
	}
	char who[32];
	snprintf(who, sizeof(who), "job %" PRIu64, j.id);
	int r = grow((void **)&c->jobs, c->n_jobs, sizeof(*c->jobs));
	if (r != 0) {
		return r;
	}
	c->jobs[c->n_jobs++] = (struct seen_job){
		.id = j.id,
		.last_seq = j.last_seq,
		.ended_wall_ns = j.ended_wall_ns,
		.ended = job_ended(&j),
	};
	if (j.id == 0 || j.id >= c->meta.next_job) {
		r = fault(c, "%s: its id was never given", who);
	}
	const char *what = job_fault(&j);
	if (r == 0 && what) {
		r = fault(c, "%s: %s", who, what);
	}
	struct refer ctx = {c, who};
	return r == 0 ? job_each_blob(&j, refer, &ctx) : r;
}

static int compare_job(const void *key, const void *element)
{
	const uint64_t *id = key;
	const struct seen_job *j = element;
	return *id < j->id ? -1 : *id > j->id;
}

static struct seen_job *find_job(struct check *c, uint64_t id)
{
	return c->n_jobs == 0 ? NULL : bsearch(&id, c->jobs, c->n_jobs, sizeof(*c->jobs), compare_job);
}

static int check_event(struct check *c, struct bytes key, struct bytes content)
{
	if (key.len != 16 || content.len < 1) {
		return fault(c, "events: a damaged entry %s", hex_of(key.data, key.len).text);
	}
	uint64_t id = be64_read(key.data), seq = be64_read(key.data + 8);
	struct seen_job *j = find_job(c, id);
	if (!j) {
		return fault(c, "event %" PRIu64 " of job %" PRIu64 ": there is no such job", seq, id);
	}
	uint64_t before = j->last_event;
	j->first_event = before ? j->first_event : seq;
	j->last_event = seq;
	if (before && seq != before + 1) {
		return fault(c, "job %" PRIu64 ": events %" PRIu64 " to %" PRIu64 " are missing", id,
			before + 1, seq - 1);
	}
	const char *what =
		event_fault((struct bytes){content.data + 1, content.len - 1}, seq, content.data[0]);
	return what ? fault(c, "event %" PRIu64 " of job %" PRIu64 ": %s", seq, id, what) : 0;
}

/* The oldest events may be gone by retention, the newest never before all others. */
static int check_log(struct check *c, const struct seen_job *j)
{
	if (j->last_event ? j->last_event != j->last_seq : j->last_seq != 0 && !j->ended) {
		return fault(c, "job %" PRIu64 ": its newest event is %" PRIu64 ", and should be %" PRIu64,
			j->id, j->last_event, j->last_seq);
	}
	return 0;
}

/* ---- models, datasets, requests ------------------------------------------------------------ */

static bool is_key(struct bytes key, const char *name)
{
	return key.len == strlen(name) && memcmp(key.data, name, key.len) == 0;
}

static int check_model(struct check *c, struct bytes key, struct bytes content)
{
	_cleanup_(store_model_deinit) struct store_model m = {0};
	if (model_unpack(content, &m) != 0 || !is_key(key, m.name)) {
		return fault(c, "model %.*s: its record cannot be read", (int)key.len, key.data);
	}
	const char *what = model_fault(&m);
	return what ? fault(c, "model %s: %s", m.name, what) : 0;
}

static int check_dataset(struct check *c, struct bytes key, struct bytes content)
{
	_cleanup_(store_dataset_deinit) struct store_dataset d = {0};
	if (dataset_unpack(content, &d) != 0 || !is_key(key, d.name)) {
		return fault(c, "dataset %.*s: its record cannot be read", (int)key.len, key.data);
	}
	char who[160];
	snprintf(who, sizeof(who), "dataset %s", d.name);
	struct refer ctx = {c, who};
	return refer(&ctx, &d.content);
}

static int check_request(struct check *c, struct bytes key, struct bytes content)
{
	_cleanup_(store_request_deinit) struct store_request r = {0};
	if (key.len != 4 + REQUEST_ID_SIZE || request_unpack(content, &r) != 0 ||
		be32_read(key.data) != r.uid || memcmp(key.data + 4, r.id, sizeof(r.id)) != 0) {
		return fault(c, "request %s: its record cannot be read", hex_of(key.data, key.len).text);
	}
	const char *what = request_fault(&r);
	uint8_t due[KEY_MAX];
	struct bytes none;
	int len = due_key(due, DUE_REQUEST, r.wall_ns, key.data, key.len);
	int found = db_get(c->txn, DB_DUE, due, (size_t)len, &none);
	if (found != 0) {
		what = "it would never be collected";
	}
	return what ? fault(c, "request %s: %s", hex_of(key.data, key.len).text, what) : 0;
}

/* ---- what is due --------------------------------------------------------------------------- */

static bool request_is_of(struct check *c, uint64_t wall_ns, struct bytes id)
{
	_cleanup_(store_request_deinit) struct store_request r = {0};
	struct bytes b;
	return record_get(c->txn, DB_REQUESTS, id.data, id.len, &b) == 0 &&
		request_unpack(b, &r) == 0 && r.wall_ns == wall_ns;
}

static bool due_is_right(struct check *c, uint8_t kind, uint64_t wall_ns, struct bytes id)
{
	const struct seen_blob *b;
	const struct seen_job *j;

	switch (kind) {
	case DUE_BLOB:
		b = id.len == DIGEST_SIZE ? find_blob(c, id.data) : NULL;
		return b && b->record.references == 0 && b->record.touched_wall_ns == wall_ns;
	case DUE_JOB:
	case DUE_JOB_EVENTS:
		j = id.len == 8 ? find_job(c, be64_read(id.data)) : NULL;
		return j && j->ended && j->ended_wall_ns == wall_ns;
	case DUE_REQUEST:
		return request_is_of(c, wall_ns, id);
	default:
		return false;
	}
}

static int check_due(struct check *c, struct bytes key, struct bytes content)
{
	if (key.len < 9 || content.len != 0 ||
		!due_is_right(
			c, key.data[0], be64_read(key.data + 1), (struct bytes){key.data + 9, key.len - 9})) {
		return fault(c, "due: the entry %s is about nothing", hex_of(key.data, key.len).text);
	}
	return 0;
}

/* The other way round, for what was collected into arrays. */
static int is_due(struct check *c, enum due_kind kind, uint64_t wall_ns, const void *id,
	size_t id_len, const char *who)
{
	uint8_t key[KEY_MAX];
	struct bytes none;
	int len = due_key(key, kind, wall_ns, id, id_len);
	if (db_get(c->txn, DB_DUE, key, (size_t)len, &none) == 0) {
		return 0;
	}
	return fault(c, "%s: it would never be collected", who);
}

static int check_all_due(struct check *c)
{
	int r = 0;
	for (size_t i = 0; i < c->n_blobs && r == 0; i++) {
		const struct blob_record *b = &c->blobs[i].record;
		if (b->references == 0) {
			r = is_due(c, DUE_BLOB, b->touched_wall_ns, b->digest, DIGEST_SIZE,
				hex_of(b->digest, DIGEST_SIZE).text);
		}
	}
	for (size_t i = 0; i < c->n_jobs && r == 0; i++) {
		const struct seen_job *j = &c->jobs[i];
		char who[32];
		uint8_t id[8];
		be64_write(id, j->id);
		snprintf(who, sizeof(who), "job %" PRIu64, j->id);
		if (j->ended && j->ended_wall_ns != 0) {
			r = is_due(c, DUE_JOB, j->ended_wall_ns, id, sizeof(id), who);
			if (r == 0 && j->last_event) {
				r = is_due(c, DUE_JOB_EVENTS, j->ended_wall_ns, id, sizeof(id), who);
			}
		}
	}
	return r;
}

/* ---- all of it ----------------------------------------------------------------------------- */

static int check_records(struct check *c)
{
	int r = meta_load(c->txn, &c->meta);
	if (r == STATUS_NOT_FOUND || r == -EIO) {
		return fault(c, "the meta record cannot be read");
	}
	static const struct {
		enum store_db db;
		bool sealed;
		int (*fn)(struct check *, struct bytes, struct bytes);
	} steps[] = {
		{DB_BLOBS, true, collect_blob}, /* first: the others refer to them */
		{DB_TRASH, false, collect_trash},
		{DB_JOBS, true, check_job}, /* before events and what is due */
		{DB_DATASETS, true, check_dataset},
		{DB_MODELS, true, check_model},
		{DB_EVENTS, true, check_event},
		{DB_REQUESTS, true, check_request},
		{DB_DUE, false, check_due},
	};
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(steps); i++) {
		r = each(c, steps[i].db, steps[i].sealed, steps[i].fn);
	}
	for (size_t i = 0; r == 0 && i < c->n_jobs; i++) {
		r = check_log(c, &c->jobs[i]);
	}
	for (size_t i = 0; r == 0 && i < c->n_blobs; i++) {
		r = check_blob(c, &c->blobs[i]);
	}
	r = r == 0 ? check_all_due(c) : r;
	r = r == 0 ? check_numbers(c) : r;
	r = r == 0 ? each(c, DB_CHUNKS, false, check_chunk_key) : r;
	return r == 0 ? each(c, DB_DIGESTS, false, check_chunk_key) : r;
}

int store_check(struct store *s, struct buf *report, uint64_t *ret_faults)
{
	struct check c = {.report = report};
	struct errmsg err = {0};

	/* Pages first: LMDB would follow a damaged one anywhere. */
	int r = pages_walk(s->data_fd, true, &err);
	if (r > 0) {
		r = fault(&c, "%s: %s", s->dir, err.text);
		if (r == 0) {
			*ret_faults = c.faults;
		}
		return r;
	}
	if (r == 0) {
		r = store_begin(s, false, &c.txn);
	}
	if (r != 0) {
		return r;
	}
	r = check_records(&c);
	store_abort(c.txn);
	free(c.blobs);
	free(c.jobs);
	free(c.numbers);
	if (r == 0) {
		*ret_faults = c.faults;
	}
	return r;
}
