/* The meta record: the version of the layout, and the counters. */

#include <errno.h>

#include "store/store-internal.h"

static const char meta_key[] = "meta";

int meta_load(struct store_txn *t, struct meta_record *ret)
{
	struct bytes b;
	int r = record_get(t, DB_META, meta_key, sizeof(meta_key) - 1, &b);
	return r != 0 ? r : meta_unpack(b, ret);
}

int meta_save(struct store_txn *t, const struct meta_record *m)
{
	_cleanup_(packed_deinit) struct packed p = {0};
	int r = meta_pack(m, &p);
	return r != 0 ? r : record_put(t, DB_META, meta_key, sizeof(meta_key) - 1, p.data, p.len);
}

int store_job_next_id(struct store_txn *t, uint64_t *ret)
{
	struct meta_record m;
	int r = meta_load(t, &m);
	if (r != 0) {
		return r == STATUS_NOT_FOUND ? -EIO : r;
	}
	uint64_t id = m.next_job++;
	r = meta_save(t, &m);
	if (r == 0) {
		*ret = id;
	}
	return r;
}
