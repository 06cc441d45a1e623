#pragma once
/* The inside of a generator, for its tests. */

#include "engine/engine.h"

uint64_t generator_bytes(const struct generator *g); /* on the device */

/* Forgets what was read: as new, with the same memory. */
void generator_restart(struct generator *g);
/* Reads n tokens more; together with those before at most what was planned for. */
int generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct errmsg *err);

/* Logits of the token that comes next, [vocab_size]; valid until the next call on `g`. */
const float *generator_logits(struct generator *g);
