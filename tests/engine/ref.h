#pragma once
/* A second forward pass, in double precision and as plain as can be, to hold the engine's gradients
 * against: Llama with LoRA or with any method that trains parameters of the base, norms, biases, factors,
 * soft prompts, prefixes or bottleneck adapters, one sequence at a time. Shares no code with the
 * engine. */

#include "tests/engine/fixture.h"

struct ref_model;

/* Reads weights from the fixture's files and the adapter. */
struct ref_model *ref_model_new(const struct fixture *f);
/* With the parameters that a session trains, by their names there; its method's settings are the
 * fixture's. */
struct ref_model *ref_model_of(const struct fixture *f, struct train_session *s);
void ref_model_free(struct ref_model *m);

/* The values of an adapter tensor by its key, to be changed at will; NULL where there is none. */
double *ref_model_tensor(struct ref_model *m, const char *key, size_t *ret_n);

/* Mean of -log p over the target tokens of samples [first, end). */
double ref_loss(const struct ref_model *m, const struct samples *s, uint64_t first, uint64_t end);

/* Logits after ids[n]: out[vocab_size]. */
void ref_logits(const struct ref_model *m, const int32_t *ids, int64_t n, double *out);
