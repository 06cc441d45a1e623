/* A hub's description of a model, and the index of its shards: what passes must be names and
 * digests. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct selection *s)
{
	for (size_t i = 0; i < s->n; i++) {
		const struct hub_file *f = s->files[i];
		size_t digits = f->lfs ? 64 : 40;
		if (!name_valid(f->name, strlen(f->name)) || strlen(f->digest) != digits ||
			strspn(f->digest, "0123456789abcdef") != digits) {
			abort();
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(listing_deinit) struct listing l = {0};
	struct errmsg err;
	if (listing_parse(&l, (const char *)data, size, "fuzz", &err) != 0) {
		return 0;
	}
	if (!hf_commit_valid(l.commit)) {
		abort();
	}
	_cleanup_(selection_deinit) struct selection base = {0}, gguf = {0}, shards = {0};
	if (listing_select(&l, NULL, "fuzz", &base, &err) == 0) {
		check(&base);
	}
	if (listing_select(&l, "*", "fuzz", &gguf, &err) == 0) {
		check(&gguf);
	}
	/* The same text may have a weight_map, too. */
	if (listing_select_shards(&l, (const char *)data, size, "fuzz", &shards, &err) == 0) {
		check(&shards);
	}
	return 0;
}
