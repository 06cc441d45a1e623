#pragma once
/* A hub, a store that it redirects to, and an empty cache: what the tests of pulling share. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/hub/hub.h"
#include "tests/support/hub.h"

enum { WEIGHTS = 300000, MIB = 1 << 20 };

static const char commit[] = "0123456789abcdef0123456789abcdef01234567";

struct world {
	char dir[32]; /* the cache */
	struct hub hub, store;
	struct hub_config config;
	uint8_t *weights; /* 4 MiB */
	bool mounted;     /* something is, at dir */
	/* What was told: */
	char notes[4096];
	size_t n_files;
};

/* cmocka's; *state is a world. */
int hub_world_setup(void **state);
int hub_world_teardown(void **state);

/* Files of org/tiny: a small one, one in LFS, and a whole model with things that no base needs. */
void add(struct world *w, const char *name, const char *text);
void add_weights(struct world *w, const char *name, size_t size);
void add_model(struct world *w);

int pull(struct world *w, const char *text, const char *include, struct hub_pulled *ret,
	struct errmsg *err);
void expect_pulled(struct world *w, const char *text, const char *include);
/* Also that nothing secret is in the words. */
void expect_refused(struct world *w, const char *text, const char *include, int code,
	const char *words);

/* Paths, into out[512], which they return. */
char *in_cache(const struct world *w, char *out, const char *path);
char *blob(const struct world *w, char *out, const char *name, const char *suffix);

const char *digest_of(const struct world *w, const char *name);
bool exists(const char *path);
int64_t size_at(const char *path);
void put_file(const char *path, const void *data, size_t size);
void check_file(const char *path, const void *data, size_t size);

/* The model's weights are complete and right, and no part of them is left. */
void check_weights(const struct world *w);

/* Makes what an interrupted pull of the weights leaves. */
void leave_part(struct world *w, const void *data, size_t size);
