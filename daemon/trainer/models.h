#pragma once
/* Models that are open, and base models resident on the device. Compute thread only. */

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "util/errmsg.h"

struct trainer;
struct models;

/* An open model: its files, tokenizer and digest are read once and kept until the files change. */
struct model;

int models_new(struct models **ret, struct trainer *t, uint64_t memory_total);
void models_free(struct models *m);

/* Opens a model, or finds it open and unchanged. `digest` (32 bytes, may be NULL): what it must be;
 * STATUS_INVALID when it differs. Give it back with models_close(). */
int models_open(struct models *m, const char *name, const char *path, const uint8_t *digest,
	struct model **ret, struct errmsg *err);
void models_close(struct models *m, struct model *model);

const struct model_files *model_files_of(const struct model *model);
int model_tokenizer(struct model *model, const struct tokenizer **ret, struct errmsg *err);
int model_digest(struct model *model, uint8_t ret[32], struct errmsg *err);

/* The built-in chat template named by `name`, or the model's own where name is NULL; borrowed from the
 * model. STATUS_INVALID. */
int model_template(struct model *model, const char *name, const struct chat_template **ret,
	struct errmsg *err);

/* What adapter_config.json calls the base: the Hugging Face name where the path shows one, or the
 * name it was registered by. Borrowed from the model. */
const char *model_public_name(const struct model *model);

/* The weights on the device, loaded or found; `extra` bytes will be needed besides. Models that
 * nobody uses make room. STATUS_WONT_FIT. Give it back with models_release(). */
int models_acquire(struct models *m, struct model *model, struct backend *b, enum dtype dtype,
	bool train, uint64_t extra, struct base_model **ret, struct errmsg *err);
void models_release(struct models *m, struct base_model *base);

/* Counts memory other than that of models (arenas) as in use. */
void models_use_memory(struct models *m, int64_t change);
/* Makes room for it first. STATUS_WONT_FIT; give it back with models_use_memory(). */
int models_take_memory(struct models *m, uint64_t bytes, struct errmsg *err);
/* What else can be given back where memory is short, before models: `give` frees some of what was
 * counted by models_use_memory() and says whether there was any. */
void models_on_shortage(struct models *m, bool (*give)(void *arg), void *arg);
