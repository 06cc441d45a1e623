#pragma once
/* The inside of a generator, for its tests. */

#include "engine/engine.h"

/* Logits of the token that comes next, [vocab_size]; valid until the next call on `g`. */
const float *generator_logits(struct generator *g);
