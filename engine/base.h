#pragma once
/* The resident weights of a base model, by the slots of the graphs that run on it. */

#include "engine/graph.h"

struct base_model;

struct backend *base_model_backend(const struct base_model *m);
const struct model_config *base_model_config(const struct base_model *m);
const struct model_files *base_model_files(const struct base_model *m);
const char *base_model_path(const struct base_model *m);
enum dtype base_model_dtype(const struct base_model *m);
bool base_model_trains(const struct base_model *m); /* has the copies for backward passes */

/* Of a WEIGHT_LINEAR slot; the bias is NULL where there is none. */
const struct packed_weight *base_packed(const struct base_model *m, int slot);
const float *base_bias(const struct base_model *m, int slot);
/* Of a WEIGHT_VECTOR or WEIGHT_TABLE slot; the former's bias, in the activation's dtype, or NULL. */
struct mat base_mat(const struct base_model *m, int slot);
const void *base_vector_bias(const struct base_model *m, int slot);

/* Do the graph's slots equal those the weights were loaded for? */
bool base_model_matches(const struct base_model *m, const struct graph *g);

/* Values of a module's "weight" or "bias": f32, host memory, out[rows·cols]; a linear layer's as
 * [out, in], however it is stored. STATUS_INVALID where there is no such tensor of this shape. */
int base_read(const struct base_model *m, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *out, struct errmsg *err);
/* The same as the files have it. */
int base_read_stored(const struct base_model *m, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *out, struct errmsg *err);
