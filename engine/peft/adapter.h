#pragma once
/*
 * Trained parameters as folders of two files, a configuration and tensors, in memory: adapters that
 * Hugging Face PEFT or AdapterHub's `adapters` read and write, and deltas, which are peftd's own
 * (trained parameters of the base by their Hugging Face names) where neither has the method.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model/safetensors.h"
#include "engine/peft/config.h"
#include "util/buf.h"
#include "util/errmsg.h"

enum adapter_kind {
	ADAPTER_PEFT,  /* adapter_config.json, adapter_model.safetensors */
	ADAPTER_HUB,   /* adapter_config.json, adapter.safetensors */
	ADAPTER_DELTA, /* delta_config.json, delta.safetensors */
	ADAPTER_KINDS,
};

/* The names of a folder's two files. */
struct adapter_files {
	const char *config, *weights;
};
struct adapter_files adapter_files(enum adapter_kind kind);
/* The kind of the folder that a configuration belongs to, by a look at its keys. */
enum adapter_kind adapter_kind_of_config(const void *config_json, size_t len);

/* A folder's contents. */
struct adapter {
	enum adapter_kind kind;
	struct method_config config; /* owned */
	struct safetensors tensors;  /* into the bytes it was parsed from */
};

/* From the bytes of both files; which kind they are is told by the configuration. `weights` is
 * borrowed and must outlive the adapter. Refused by name: types and options that the engine does not
 * have where they change results, tensors missing for a target or left over. */
int adapter_parse(struct adapter *ret, const void *config_json, size_t config_len,
	const void *weights, size_t weights_len, struct errmsg *err);
void adapter_deinit(struct adapter *a);

/* Can a job of method `m` start from it? STATUS_INVALID says which setting to change. What only the
 * model tells (shapes, which modules) is left to train_session_new(). */
int adapter_matches(const struct adapter *a, const struct method_config *m, struct errmsg *err);

/* The same for a job that trains on from it: where what is trained computes what a folder holds (the
 * encoder of a soft prompt), no folder is enough. STATUS_INVALID says what would be. */
int adapter_can_start(const struct adapter *a, const struct method_config *m, struct errmsg *err);

/* A tensor for export: f32, host memory. */
struct adapter_tensor {
	const char *name;
	int n_dims;
	int64_t dims[4];
	const float *data;
};

/* Writes the file of weights: f32, sorted by name. */
int adapter_write_tensors(struct buf *out, const struct adapter_tensor *tensors, size_t n,
	struct errmsg *err);

/* Parses what was exported and compares every tensor with the live one, bit by bit.
 * STATUS_FAILED names the first difference. */
int adapter_verify(const void *config_json, size_t config_len, const void *weights,
	size_t weights_len, const struct adapter_tensor *tensors, size_t n, struct errmsg *err);
