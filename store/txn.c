/* Transactions, and access to the databases with keys, seals and errno. */

#include <errno.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include "store/store-internal.h"
#include "util/log.h"

int store_errno(int mdb_code)
{
	switch (mdb_code) {
	case MDB_SUCCESS:
		return 0;
	case MDB_NOTFOUND:
		return STATUS_NOT_FOUND;
	case MDB_MAP_FULL:
		return STATUS_DISK_FULL;
	case MDB_TXN_FULL:
		return -E2BIG;
	case MDB_READERS_FULL:
		return -EAGAIN;
	case MDB_BAD_TXN:
	case MDB_BAD_DBI:
	case MDB_BAD_RSLOT:
	case MDB_BAD_VALSIZE:
		return -EINVAL;
	default:
		return mdb_code > 0 ? -mdb_code : -EIO; /* corrupted, panic, a page not found */
	}
}

int store_begin(struct store *s, bool write, struct store_txn **ret)
{
	if (s->failed) {
		return -EIO;
	}
	if (write && s->writing) {
		return -EDEADLK; /* LMDB would wait for itself */
	}
	struct store_txn *t = calloc(1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	int r = store_errno(mdb_txn_begin(s->env, NULL, write ? 0 : MDB_RDONLY, &t->txn));
	if (r != 0) {
		free(t);
		return r > 0 ? -EIO : r;
	}
	t->store = s;
	t->write = write;
	s->writing |= write;
	*ret = t;
	return 0;
}

void store_abort(struct store_txn *t)
{
	if (!t) {
		return;
	}
	mdb_txn_abort(t->txn);
	if (t->write) {
		t->store->writing = false;
		uploads_settle(t->store, false);
	}
	free(t);
}

/* A full disk shows as EIO in the middle of a commit, when the outcome is unknown. So a commit that
 * could meet one is not tried: true when the file system has too little for all that the
 * transaction may write, pages of the paths down the trees included, were none of it reused. */
static bool disk_is_full(const struct store_txn *t)
{
	struct statvfs fs;
	if (fstatvfs(t->store->data_fd, &fs) < 0) {
		return false;
	}
	const uint64_t page = 4096;
	uint64_t need = t->put_bytes + (8 + t->puts + t->deletes / 4) * page;
	return (uint64_t)fs.f_bavail * fs.f_frsize < need;
}

int store_commit(struct store_txn *t)
{
	struct store *s = t->store;
	int r = t->failed;

	if (r == 0 && t->puts + t->deletes > 0 && disk_is_full(t)) {
		r = STATUS_DISK_FULL;
	}
	if (!t->write || r != 0) {
		store_abort(t);
		return r;
	}

	int code = mdb_txn_commit(t->txn); /* frees it in any case */
	s->writing = false;
	uploads_settle(s, code == 0);
	free(t);
	if (code == 0) {
		return 0;
	}
	if (code == MDB_MAP_FULL) {
		return STATUS_DISK_FULL; /* found while pages are handed out, before any is written */
	}
	s->failed = true;
	r = store_errno(code);

	struct statvfs fs;
	unsigned long long left = 0;
	if (fstatvfs(s->data_fd, &fs) == 0) {
		left = (unsigned long long)fs.f_bavail * fs.f_frsize;
	}
	log_error("%s: a commit failed (%s) with %llu bytes free on the file system; whether it took "
			  "effect is unknown until the store is opened again",
		s->dir, mdb_strerror(code), left);
	return r < 0 ? r : -EIO;
}

/* Errors that leave nothing to commit. */
static int note(struct store_txn *t, int r)
{
	if (t->failed == 0 && r != 0 && r != STATUS_NOT_FOUND) {
		t->failed = r;
	}
	return r;
}

int db_get(
	struct store_txn *t, enum store_db db, const void *key, size_t key_len, struct bytes *ret)
{
	MDB_val k = {key_len, (void *)key}, v;
	int r = store_errno(mdb_get(t->txn, t->store->dbi[db], &k, &v));
	if (r == 0) {
		*ret = (struct bytes){v.mv_data, v.mv_size};
	}
	return note(t, r);
}

int db_put(struct store_txn *t, enum store_db db, const void *key, size_t key_len, const void *data,
	size_t len)
{
	if (!t->write) {
		return -EACCES;
	}
	MDB_val k = {key_len, (void *)key}, v = {len, (void *)data};
	t->puts++;
	t->put_bytes += len;
	return note(t, store_errno(mdb_put(t->txn, t->store->dbi[db], &k, &v, 0)));
}

int db_del(struct store_txn *t, enum store_db db, const void *key, size_t key_len)
{
	if (!t->write) {
		return -EACCES;
	}
	MDB_val k = {key_len, (void *)key};
	t->deletes++;
	return note(t, store_errno(mdb_del(t->txn, t->store->dbi[db], &k, NULL)));
}

/* The name rather than the number: the order of enum store_db is not on disk. */
static void seal(uint8_t out[SEAL_SIZE], enum store_db db, struct bytes key, struct bytes content)
{
	crypto_generichash_state h;
	uint8_t key_len[4];
	const char *name = store_db_name(db);

	be32_write(key_len, (uint32_t)key.len);
	crypto_generichash_init(&h, NULL, 0, SEAL_SIZE);
	crypto_generichash_update(&h, (const uint8_t *)name, strlen(name) + 1);
	crypto_generichash_update(&h, key_len, sizeof(key_len));
	crypto_generichash_update(&h, key.data, key.len);
	crypto_generichash_update(&h, content.data, content.len);
	crypto_generichash_final(&h, out, SEAL_SIZE);
}

int record_open(enum store_db db, struct bytes key, struct bytes sealed, struct bytes *ret)
{
	uint8_t want[SEAL_SIZE];
	if (sealed.len < SEAL_SIZE) {
		return -EIO;
	}
	struct bytes content = {sealed.data + SEAL_SIZE, sealed.len - SEAL_SIZE};
	seal(want, db, key, content);
	if (memcmp(want, sealed.data, SEAL_SIZE) != 0) {
		return -EIO;
	}
	*ret = content;
	return 0;
}

int record_get(
	struct store_txn *t, enum store_db db, const void *key, size_t key_len, struct bytes *ret)
{
	struct bytes sealed;
	int r = db_get(t, db, key, key_len, &sealed);
	return r != 0 ? r : record_open(db, (struct bytes){key, key_len}, sealed, ret);
}

int record_put(struct store_txn *t, enum store_db db, const void *key, size_t key_len,
	const void *data, size_t len)
{
	_cleanup_(freep) uint8_t *sealed = malloc(SEAL_SIZE + len);
	if (!sealed) {
		return -ENOMEM;
	}
	if (len > 0) {
		memcpy(sealed + SEAL_SIZE, data, len);
	}
	seal(sealed, db, (struct bytes){key, key_len}, (struct bytes){sealed + SEAL_SIZE, len});
	return db_put(t, db, key, key_len, sealed, SEAL_SIZE + len);
}

int db_iter_init(
	struct db_iter *it, struct store_txn *t, enum store_db db, const void *from, size_t from_len)
{
	*it = (struct db_iter){.txn = t, .db = db, .key_len = from_len};
	if (from_len > KEY_MAX) {
		return -EINVAL;
	}
	if (from_len > 0) {
		memcpy(it->key, from, from_len);
	}
	return note(t, store_errno(mdb_cursor_open(t->txn, t->store->dbi[db], &it->cursor)));
}

void db_iter_deinit(struct db_iter *it)
{
	if (it->cursor) {
		mdb_cursor_close(it->cursor);
	}
	it->cursor = NULL;
}

int db_iter_next(struct db_iter *it, struct bytes *ret_key, struct bytes *ret_value)
{
	MDB_val k = {it->key_len, it->key}, v;
	int code;

	/* In a write transaction the entry that the cursor stands on may be gone, or the page under it
	 * another: look its key up again. */
	if (it->begun && !it->txn->write) {
		code = mdb_cursor_get(it->cursor, &k, &v, MDB_NEXT);
	} else {
		code = mdb_cursor_get(it->cursor, &k, &v, it->key_len > 0 ? MDB_SET_RANGE : MDB_FIRST);
		if (code == 0 && it->begun && k.mv_size == it->key_len &&
			memcmp(k.mv_data, it->key, it->key_len) == 0) {
			code = mdb_cursor_get(it->cursor, &k, &v, MDB_NEXT);
		}
	}
	if (code != 0) {
		return note(it->txn, store_errno(code));
	}
	if (k.mv_size > KEY_MAX) {
		return -EIO;
	}
	memcpy(it->key, k.mv_data, k.mv_size);
	it->key_len = k.mv_size;
	it->begun = true;
	*ret_key = (struct bytes){it->key, it->key_len};
	*ret_value = (struct bytes){v.mv_data, v.mv_size};
	return 0;
}

int db_last_below(struct store_txn *t, enum store_db db, const void *key, size_t key_len,
	uint8_t *out, size_t *ret_len)
{
	struct db_iter it;
	int r = db_iter_init(&it, t, db, NULL, 0);
	if (r != 0) {
		return r;
	}
	MDB_val k = {key_len, (void *)key}, v;
	int code = mdb_cursor_get(it.cursor, &k, &v, MDB_SET_RANGE);
	if (code == 0 || code == MDB_NOTFOUND) {
		code = mdb_cursor_get(it.cursor, &k, &v, code == 0 ? MDB_PREV : MDB_LAST);
	}
	if (code == 0 && k.mv_size <= KEY_MAX) {
		memcpy(out, k.mv_data, k.mv_size);
		*ret_len = k.mv_size;
	}
	r = note(t, store_errno(code));
	db_iter_deinit(&it);
	return r;
}
