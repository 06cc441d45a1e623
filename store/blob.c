/*
 * Blobs: content in chunks, named by its digest.
 *
 * A blob has a record under its digest and a number of its own, under which its chunks and their
 * digests are kept; numbers are never used again. So a blob is dropped by one small change, the
 * removal of its record, and its chunks go in slices later (collect.c), while the same content may
 * already be coming in again under another number.
 *
 * While content comes in, a running digest of it is kept in memory, so that the last chunk of
 * gigabytes costs no more than any other. It is not stored: the state of libsodium's BLAKE2b is no
 * format, and another version may lay it out differently. After a restart it is computed again from
 * what is here: some with every chunk that comes in, by store_blob_prepare(), or all that is
 * missing with the last chunk.
 */

#include <errno.h>
#include <inttypes.h>

#include "store/store-internal.h"

enum {
	CHUNK_KEY = 12,
	CATCH_UP = 8 * 1024 * 1024, /* bytes digested again with a chunk: about 10 ms */
};

static void chunk_key(uint8_t out[CHUNK_KEY], uint64_t number, uint64_t index)
{
	be64_write(out, number);
	be32_write(out + 8, (uint32_t)index);
}

int blob_load(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], struct blob_record *ret)
{
	struct bytes b;
	struct blob_record rec;
	int r = record_get(t, DB_BLOBS, digest, DIGEST_SIZE, &b);
	if (r == 0) {
		r = blob_unpack(b, &rec);
	}
	if (r == 0) {
		*ret = rec;
	}
	return r;
}

/* Writes a record and keeps DB_DUE in step with it; old NULL: a new blob. */
static int blob_save(
	struct store_txn *t, const struct blob_record *old, const struct blob_record *b)
{
	_cleanup_(packed_deinit) struct packed p = {0};
	int r = 0;
	bool was_due = old && old->references == 0, is_due = b->references == 0;
	bool moved = was_due && is_due && old->touched_wall_ns != b->touched_wall_ns;

	if (was_due && (!is_due || moved)) {
		r = due_del(t, DUE_BLOB, old->touched_wall_ns, b->digest, DIGEST_SIZE);
	}
	if (r == 0 && is_due && (!was_due || moved)) {
		r = due_put(t, DUE_BLOB, b->touched_wall_ns, b->digest, DIGEST_SIZE);
	}
	if (r == 0) {
		r = blob_pack(b, &p);
	}
	return r == 0 ? record_put(t, DB_BLOBS, b->digest, DIGEST_SIZE, p.data, p.len) : r;
}

static struct upload *upload_find(struct store *s, uint64_t number)
{
	for (int i = 0; i < UPLOADS_MAX; i++) {
		if (s->uploads[i].number == number) {
			return &s->uploads[i];
		}
	}
	return NULL;
}

static int blob_new(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], uint64_t size,
	uint64_t now_wall_ns, struct blob_record *ret)
{
	struct meta_record meta;
	int r = meta_load(t, &meta);
	if (r != 0) {
		return r == STATUS_NOT_FOUND ? -EIO : r;
	}
	struct blob_record b = {
		.size = size, .number = meta.next_blob++, .touched_wall_ns = now_wall_ns};
	memcpy(b.digest, digest, DIGEST_SIZE);
	/* The number may have been handed out before, in a transaction that was given up. */
	struct upload *u = upload_find(t->store, b.number);
	if (u) {
		*u = (struct upload){0};
	}
	r = meta_save(t, &meta);
	if (r == 0) {
		r = blob_save(t, NULL, &b);
	}
	if (r == 0) {
		*ret = b;
	}
	return r;
}

int blob_drop(struct store_txn *t, const struct blob_record *b)
{
	uint8_t key[8];
	int r = db_del(t, DB_BLOBS, b->digest, DIGEST_SIZE);
	if (r == 0 && b->references == 0) {
		r = due_del(t, DUE_BLOB, b->touched_wall_ns, b->digest, DIGEST_SIZE);
	}
	if (r == 0 && b->received > 0) {
		be64_write(key, b->number);
		r = db_put(t, DB_TRASH, key, sizeof(key), NULL, 0);
	}
	return r == STATUS_NOT_FOUND ? -EIO : r;
}

int blob_count(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], int64_t add)
{
	struct blob_record old;
	int r = blob_load(t, digest, &old);
	if (r != 0) {
		return r;
	}
	if (old.received < old.size) {
		return STATUS_NOT_FOUND;
	}
	int64_t references = (int64_t)old.references + add;
	if (references < 0 || references > UINT32_MAX) {
		return -EINVAL;
	}
	struct blob_record b = old;
	b.references = (uint32_t)references;
	return blob_save(t, &old, &b);
}

/* ---- chunks -------------------------------------------------------------------------------- */

int chunk_get(struct store_txn *t, uint64_t number, uint32_t index, size_t len, struct bytes *ret)
{
	uint8_t key[CHUNK_KEY], digest[DIGEST_SIZE];
	struct bytes chunk, want;
	chunk_key(key, number, index);

	int r = db_get(t, DB_CHUNKS, key, sizeof(key), &chunk);
	if (r == 0) {
		r = db_get(t, DB_DIGESTS, key, sizeof(key), &want);
	}
	if (r != 0) {
		return r == STATUS_NOT_FOUND ? -EIO : r;
	}
	if (chunk.len != len || want.len != DIGEST_SIZE) {
		return -EIO;
	}
	crypto_generichash(digest, DIGEST_SIZE, chunk.data, chunk.len, NULL, 0);
	if (memcmp(digest, want.data, DIGEST_SIZE) != 0) {
		return -EIO;
	}
	*ret = chunk;
	return 0;
}

static int chunk_put(
	struct store_txn *t, uint64_t number, uint32_t index, const void *data, size_t len)
{
	uint8_t key[CHUNK_KEY], digest[DIGEST_SIZE];
	chunk_key(key, number, index);
	crypto_generichash(digest, DIGEST_SIZE, data, len, NULL, 0);
	int r = db_put(t, DB_CHUNKS, key, sizeof(key), data, len);
	return r == 0 ? db_put(t, DB_DIGESTS, key, sizeof(key), digest, DIGEST_SIZE) : r;
}

/* ---- the running digests ------------------------------------------------------------------- */

static void running_begin(struct running_digest *d)
{
	crypto_generichash_init(&d->state, NULL, 0, DIGEST_SIZE);
	d->hashed = 0;
}

/* The slot of a blob, or the one unused for longest: more uploads at once than slots work, too, but
 * digest twice. */
static struct upload *upload_of(struct store *s, uint64_t number)
{
	struct upload *u = upload_find(s, number);
	if (!u) {
		u = &s->uploads[0];
		for (int i = 1; i < UPLOADS_MAX; i++) {
			if (s->uploads[i].used_at < u->used_at) {
				u = &s->uploads[i];
			}
		}
		u->number = number;
		u->doomed = false;
		running_begin(&u->durable);
		u->working = u->durable;
	}
	u->used_at = ++s->uploads_clock;
	return u;
}

void uploads_settle(struct store *s, bool committed)
{
	for (int i = 0; i < UPLOADS_MAX; i++) {
		struct upload *u = &s->uploads[i];
		if (u->number == 0 || u->working.hashed == u->durable.hashed) {
			continue;
		}
		if (committed) {
			u->durable = u->working;
		} else {
			u->working = u->durable;
		}
	}
}

/* Digests what is here of the blob up to `until`, but at most `max` bytes more (whole chunks). */
static int running_advance(struct store_txn *t, const struct blob_record *b,
	struct running_digest *d, uint64_t until, uint64_t max)
{
	uint64_t done = 0;
	while (d->hashed < until && done < max) {
		struct bytes chunk;
		size_t len = chunk_len(b->size, d->hashed);
		int r = chunk_get(t, b->number, (uint32_t)(d->hashed / CHUNK_SIZE), len, &chunk);
		if (r != 0) {
			return r;
		}
		crypto_generichash_update(&d->state, chunk.data, chunk.len);
		d->hashed += len;
		done += len;
	}
	return 0;
}

int store_blob_prepare(
	struct store *s, const uint8_t digest[DIGEST_SIZE], uint64_t max_bytes, bool *ret_more)
{
	struct store_txn *t;
	struct blob_record b;
	bool more = false;
	int r = store_begin(s, false, &t);
	if (r != 0) {
		return r;
	}
	r = blob_load(t, digest, &b);
	if (r == 0 && b.received < b.size) {
		struct upload *u = upload_of(s, b.number);
		r = running_advance(t, &b, &u->working, b.received, max_bytes);
		more = r == 0 && u->working.hashed < b.received;
		if (!s->writing) { /* all that was read is committed */
			u->durable = u->working;
		}
	}
	store_abort(t);
	if (r == 0) {
		*ret_more = more;
	}
	return r;
}

/* ---- public -------------------------------------------------------------------------------- */

static void tell(const struct blob_record *b, struct store_blob *ret)
{
	*ret = (struct store_blob){
		.size = b->size,
		.received = b->received,
		.references = b->references,
	};
	memcpy(ret->digest, b->digest, DIGEST_SIZE);
}

int store_blob_get(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], struct store_blob *ret)
{
	struct blob_record b;
	int r = blob_load(t, digest, &b);
	if (r == 0) {
		tell(&b, ret);
	}
	return r;
}

static bool is_digest_of_nothing(const uint8_t digest[DIGEST_SIZE])
{
	uint8_t empty[DIGEST_SIZE];
	crypto_generichash(empty, DIGEST_SIZE, (const uint8_t *)"", 0, NULL, 0);
	return memcmp(empty, digest, DIGEST_SIZE) == 0;
}

int store_blob_begin(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], uint64_t size,
	uint64_t now_wall_ns, struct store_blob *ret)
{
	struct blob_record old, b;
	if ((size == 0) != is_digest_of_nothing(digest)) {
		return STATUS_INVALID;
	}
	if (size >= t->store->map_size) {
		return STATUS_DISK_FULL;
	}
	int r = blob_load(t, digest, &old);
	if (r == 0) {
		struct upload *u = upload_find(t->store, old.number);
		bool complete = old.received == old.size;
		if (complete && old.size != size) {
			return STATUS_CONFLICT;
		}
		/* What an earlier attempt got wrong, or announced with another size, is begun anew. */
		if (!complete && (old.size != size || (u && u->doomed))) {
			r = blob_drop(t, &old);
			if (r == 0) {
				r = STATUS_NOT_FOUND;
			}
		}
	}
	if (r == STATUS_NOT_FOUND) {
		r = blob_new(t, digest, size, now_wall_ns, &b);
	} else if (r == 0) {
		b = old;
		b.touched_wall_ns = now_wall_ns;
		r = blob_save(t, &old, &b);
	}
	if (r == 0) {
		tell(&b, ret);
	}
	return r;
}

static int check_chunk(const struct blob_record *b, uint64_t offset, size_t len, struct errmsg *err)
{
	size_t want = chunk_len(b->size, offset);
	if (len != want) {
		return errmsg_set(err, STATUS_INVALID,
			"chunk at offset %" PRIu64 ": %zu bytes came, %zu are due", offset, len, want);
	}
	return 0;
}

/* The whole is here: compare its digest. */
static int complete(struct store_txn *t, struct upload *u, const struct blob_record *old,
	const struct blob_record *b, struct errmsg *err)
{
	uint8_t digest[DIGEST_SIZE];
	crypto_generichash_state state = u->working.state;
	crypto_generichash_final(&state, digest, DIGEST_SIZE);
	if (memcmp(digest, b->digest, DIGEST_SIZE) == 0) {
		return blob_save(t, old, b);
	}
	u->doomed = true;
	int r = blob_drop(t, b);
	if (r != 0) {
		return r;
	}
	char want[2 * DIGEST_SIZE + 1], got[2 * DIGEST_SIZE + 1];
	hex_encode(want, b->digest, DIGEST_SIZE);
	hex_encode(got, digest, DIGEST_SIZE);
	return errmsg_set(err, STATUS_INVALID,
		"upload %s: the content that came has the digest %s; it was "
		"dropped, send it again",
		want, got);
}

int store_blob_append(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], uint64_t offset,
	const void *data, size_t len, struct store_blob *ret, struct errmsg *err)
{
	struct blob_record old;
	int r = blob_load(t, digest, &old);
	if (r == STATUS_NOT_FOUND) {
		return errmsg_set(err, r, "no upload with this digest was begun");
	}
	if (r != 0) {
		return r;
	}
	tell(&old, ret);
	if (offset != old.received || old.received == old.size) {
		return errmsg_set(err, STATUS_CONFLICT,
			"a chunk came at offset %" PRIu64 ", %" PRIu64 " is due", offset, old.received);
	}
	r = check_chunk(&old, offset, len, err);
	if (r != 0) {
		return r;
	}
	if (t->chunk_bytes + len > TXN_CHUNKS_MAX) {
		return -E2BIG;
	}
	t->chunk_bytes += len;

	struct blob_record b = old;
	b.received += len;
	bool last = b.received == b.size;
	struct upload *u = upload_of(t->store, b.number);
	r = running_advance(t, &old, &u->working, offset, last ? UINT64_MAX : CATCH_UP);
	if (r == 0) {
		r = chunk_put(t, b.number, (uint32_t)(offset / CHUNK_SIZE), data, len);
	}
	if (r != 0) {
		return r;
	}
	if (u->working.hashed == offset) {
		crypto_generichash_update(&u->working.state, data, len);
		u->working.hashed += len;
	}
	r = last ? complete(t, u, &old, &b, err) : blob_save(t, &old, &b);
	if (r == 0) {
		tell(&b, ret);
	}
	return r;
}

int store_blob_read(
	struct store_txn *t, const uint8_t digest[DIGEST_SIZE], uint64_t offset, void *out, size_t len)
{
	struct blob_record b;
	uint8_t *at = out;
	int r = blob_load(t, digest, &b);
	if (r != 0) {
		return r;
	}
	if (b.received < b.size) {
		return STATUS_NOT_FOUND;
	}
	if (offset > b.size || len > b.size - offset) {
		return -EINVAL;
	}
	while (len > 0) {
		struct bytes chunk;
		uint64_t index = offset / CHUNK_SIZE;
		size_t skip = (size_t)(offset % CHUNK_SIZE);
		r = chunk_get(t, b.number, (uint32_t)index, chunk_len(b.size, index * CHUNK_SIZE), &chunk);
		if (r != 0) {
			return r;
		}
		size_t n = chunk.len - skip < len ? chunk.len - skip : len;
		memcpy(at, chunk.data + skip, n);
		at += n;
		offset += n;
		len -= n;
	}
	return 0;
}

int store_blob_ref(struct store_txn *t, const uint8_t digest[DIGEST_SIZE])
{
	return blob_count(t, digest, 1);
}

int store_blob_unref(struct store_txn *t, const uint8_t digest[DIGEST_SIZE])
{
	return blob_count(t, digest, -1);
}
