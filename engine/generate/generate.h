#pragma once
/* The inside of generation, for its tests. */

#include "engine/engine.h"

uint64_t generator_bytes(const struct generator *g); /* on the device */

/* Forgets what was read: as new, with the same memory. */
void generator_restart(struct generator *g);
/* Reads n tokens more; together with those before at most what was planned for. */
int generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct errmsg *err);

/* Logits of the token that comes next, [vocab_size]; valid until the next call on `g`. */
const float *generator_logits(struct generator *g);

/* Logits, before any processor, from which the last step chose the token of a place: the one of
 * out[i] is i. [vocab_size]; valid until the next call on `d`. */
const float *decoder_logits(struct decoder *d, size_t i);

/* As generator_restart() and generator_feed(), in the first lane of a decoder that nobody else uses. */
void decoder_restart(struct decoder *d);
int decoder_feed(struct decoder *d, const int32_t *ids, int64_t n, struct errmsg *err);
