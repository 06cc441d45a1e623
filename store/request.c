/* Answered requests: what makes a request sent twice one request. */

#include <errno.h>

#include "store/store-internal.h"

enum {
	REQUEST_KEY = 4 + REQUEST_ID_SIZE,
};

static void request_key(uint8_t out[REQUEST_KEY], uint32_t uid, const uint8_t id[REQUEST_ID_SIZE])
{
	be32_write(out, uid);
	memcpy(out + 4, id, REQUEST_ID_SIZE);
}

int store_request_put(struct store_txn *t, const struct store_request *r)
{
	_cleanup_(packed_deinit) struct packed p = {0};
	_cleanup_(store_request_deinit) struct store_request old = {0};
	uint8_t key[REQUEST_KEY];

	request_key(key, r->uid, r->id);
	int code = request_pack(r, &p);
	if (code != 0) {
		return code;
	}
	code = store_request_get(t, r->uid, r->id, &old);
	if (code == 0) {
		code = due_del(t, DUE_REQUEST, old.wall_ns, key, sizeof(key));
	} else if (code == STATUS_NOT_FOUND) {
		code = 0;
	}
	if (code == 0) {
		code = due_put(t, DUE_REQUEST, r->wall_ns, key, sizeof(key));
	}
	return code == 0 ? record_put(t, DB_REQUESTS, key, sizeof(key), p.data, p.len) : code;
}

int store_request_get(
	struct store_txn *t, uint32_t uid, const uint8_t id[REQUEST_ID_SIZE], struct store_request *ret)
{
	struct bytes b;
	uint8_t key[REQUEST_KEY];
	request_key(key, uid, id);
	int r = record_get(t, DB_REQUESTS, key, sizeof(key), &b);
	return r == 0 ? request_unpack(b, ret) : r;
}

int request_remove(struct store_txn *t, uint32_t uid, const uint8_t id[REQUEST_ID_SIZE])
{
	uint8_t key[REQUEST_KEY];
	request_key(key, uid, id);
	return db_del(t, DB_REQUESTS, key, sizeof(key));
}
