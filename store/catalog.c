/* Models and datasets, by name. */

#include <errno.h>

#include "store/store-internal.h"

static bool is_name(const char *name)
{
	return name && name_valid(name, strlen(name));
}

/* ---- models -------------------------------------------------------------------------------- */

int store_model_put(struct store_txn *t, const struct store_model *m)
{
	_cleanup_(packed_deinit) struct packed p = {0};
	if (!is_name(m->name)) {
		return STATUS_INVALID;
	}
	int r = model_pack(m, &p);
	return r == 0 ? record_put(t, DB_MODELS, m->name, strlen(m->name), p.data, p.len) : r;
}

int store_model_get(struct store_txn *t, const char *name, struct store_model *ret)
{
	struct bytes b;
	if (!is_name(name)) {
		return STATUS_NOT_FOUND;
	}
	int r = record_get(t, DB_MODELS, name, strlen(name), &b);
	return r == 0 ? model_unpack(b, ret) : r;
}

int store_model_remove(struct store_txn *t, const char *name)
{
	return is_name(name) ? db_del(t, DB_MODELS, name, strlen(name)) : STATUS_NOT_FOUND;
}

int store_model_each(
	struct store_txn *t, int (*fn)(void *ctx, const struct store_model *m), void *ctx)
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, sealed, b;
	int r = db_iter_init(&it, t, DB_MODELS, NULL, 0);
	while (r == 0 && (r = db_iter_next(&it, &key, &sealed)) == 0) {
		_cleanup_(store_model_deinit) struct store_model m = {0};
		r = record_open(DB_MODELS, key, sealed, &b);
		if (r == 0) {
			r = model_unpack(b, &m);
		}
		if (r != 0) {
			return r;
		}
		r = fn(ctx, &m);
		if (r != 0) {
			return r;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}

/* ---- datasets ------------------------------------------------------------------------------ */

int store_dataset_put(struct store_txn *t, const struct store_dataset *d)
{
	_cleanup_(packed_deinit) struct packed p = {0};
	_cleanup_(store_dataset_deinit) struct store_dataset old = {0};
	if (!is_name(d->name)) {
		return STATUS_INVALID;
	}
	int r = dataset_pack(d, &p);
	if (r != 0) {
		return r;
	}
	r = store_dataset_get(t, d->name, &old);
	if (r != 0 && r != STATUS_NOT_FOUND) {
		return r;
	}
	/* The new reference first: it may be the same blob. */
	bool is_new = r == STATUS_NOT_FOUND;
	r = blob_count(t, d->content.digest, 1);
	if (r == 0 && !is_new) {
		r = blob_count(t, old.content.digest, -1);
	}
	return r == 0 ? record_put(t, DB_DATASETS, d->name, strlen(d->name), p.data, p.len) : r;
}

int store_dataset_get(struct store_txn *t, const char *name, struct store_dataset *ret)
{
	struct bytes b;
	if (!is_name(name)) {
		return STATUS_NOT_FOUND;
	}
	int r = record_get(t, DB_DATASETS, name, strlen(name), &b);
	return r == 0 ? dataset_unpack(b, ret) : r;
}

int store_dataset_remove(struct store_txn *t, const char *name)
{
	_cleanup_(store_dataset_deinit) struct store_dataset old = {0};
	int r = store_dataset_get(t, name, &old);
	if (r != 0) {
		return r;
	}
	r = blob_count(t, old.content.digest, -1);
	if (r == 0) {
		r = db_del(t, DB_DATASETS, name, strlen(name));
	}
	return r == STATUS_NOT_FOUND ? -EIO : r;
}

int store_dataset_each(
	struct store_txn *t, int (*fn)(void *ctx, const struct store_dataset *d), void *ctx)
{
	_cleanup_(db_iter_deinit) struct db_iter it;
	struct bytes key, sealed, b;
	int r = db_iter_init(&it, t, DB_DATASETS, NULL, 0);
	while (r == 0 && (r = db_iter_next(&it, &key, &sealed)) == 0) {
		_cleanup_(store_dataset_deinit) struct store_dataset d = {0};
		r = record_open(DB_DATASETS, key, sealed, &b);
		if (r == 0) {
			r = dataset_unpack(b, &d);
		}
		if (r != 0) {
			return r;
		}
		r = fn(ctx, &d);
		if (r != 0) {
			return r;
		}
	}
	return r == STATUS_NOT_FOUND ? 0 : r;
}
