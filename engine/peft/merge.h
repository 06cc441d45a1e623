#pragma once
/* A base model with a folder of trained parameters put into its weights. */

#include "engine/model/model.h"
#include "engine/peft/adapter.h"

/* The base's files as a merged model's: every tensor is read from the base in f32 and gets what the
 * folder holds for it; nothing is kept but the tensor being read. Both are borrowed. STATUS_INVALID
 * says why what the folder holds has no place in the base's weights. */
int merged_files_open(struct model_files **ret, const struct model_files *base,
	const struct adapter *a, struct errmsg *err);

/* The merged model as a folder to be read (model_folder_new()): with the base's tokenizer files,
 * or, of a GGUF, those that say the same; and `note` (JSON, may be NULL) as peftd_merge.json.
 * `merged` is what merged_files_open() gave. STATUS_INVALID. */
int merged_folder_new(struct model_folder **ret, const struct model_files *merged, const char *note,
	uint64_t shard_bytes, struct errmsg *err);

/* Bytes that reading a tensor takes at most, the tensor itself included. */
uint64_t merged_files_workspace(const struct model_files *m, const struct adapter *a);
