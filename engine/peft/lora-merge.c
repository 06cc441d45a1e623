/*
 * LoRA put into the weights it was trained beside: W + s·B·A (tuners/lora/layer.py,
 * get_delta_weight()), with DoRA each row of that brought to its magnitude (tuners/lora/dora.py).
 * Sums run in double, so that what is lost is the last rounding to float.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/lora.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

const char *lora_unmergeable(const struct method_config *m, const struct model_config *c)
{
	static const char *const ends[] = {"model.embed_tokens", "lm_head"};
	if (c->fan_in_fan_out) {
		return "this model keeps its matrices transposed (Conv1D), which merging does not do yet";
	}
	for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
		bool changed = lora_targets(&m->lora, ends[i]) || lora_saves(&m->lora, ends[i]);
		if (changed && c->tie_word_embeddings) {
			return "this model's embeddings and head are one matrix (tie_word_embeddings), of "
				"which one place is changed and the other not; leave model.embed_tokens and "
				"lm_head out of target_modules and modules_to_save, or train on a "
				"copy of the model that is untied";
		}
	}
	return NULL;
}

/* The factors of a module in one form: row i of W changes by sum over k of left(i, k) · right(k,
 * :). */
struct factors {
	float *left, *right; /* owned */
	int64_t r;
	bool embedding; /* left is (r, rows), right (cols, r): an embedding's A and B */
};

static void factors_deinit(struct factors *f)
{
	free(f->left);
	free(f->right);
}

static int read_factor(const struct adapter *a, const char *module, enum lora_tensor_kind kind,
	int64_t rows, int64_t cols, float **ret, struct errmsg *err)
{
	char key[TENSOR_NAME_MAX];
	int r = lora_key(key, sizeof(key), module, kind);
	return r ? r : peft_read_tensor(a, key, rows, cols, ret, err);
}

/* f->left stays NULL where the module has none. */
static int read_factors(const struct adapter *a, const char *module, int64_t rows, int64_t cols,
	struct factors *f, struct errmsg *err)
{
	f->r = lora_rank(&a->config.lora, module);
	int r = read_factor(a, module, LORA_TENSOR_B, rows, f->r, &f->left, err);
	if (r == 0 && f->left) {
		return read_factor(a, module, LORA_TENSOR_A, f->r, cols, &f->right, err);
	}
	r = r ? r : read_factor(a, module, LORA_TENSOR_EMBEDDING_A, f->r, rows, &f->left, err);
	r = r ? r : read_factor(a, module, LORA_TENSOR_EMBEDDING_B, cols, f->r, &f->right, err);
	f->embedding = true;
	return r;
}

/* row[cols] += s · (row i of the product). */
static void add_row(const struct factors *f, double scale, int64_t i, int64_t rows, int64_t cols,
	double *row)
{
	for (int64_t k = 0; k < f->r; k++) {
		double left = scale * (double)f->left[f->embedding ? k * rows + i : i * f->r + k];
		const float *right = f->right + (f->embedding ? k : k * cols);
		if (f->embedding) {
			for (int64_t j = 0; j < cols; j++) {
				row[j] += left * (double)right[j * f->r];
			}
		} else {
			for (int64_t j = 0; j < cols; j++) {
				row[j] += left * (double)right[j];
			}
		}
	}
}

static int add_product(const struct factors *f, double scale, const float *magnitude, int64_t rows,
	int64_t cols, float *w, const char *module, struct errmsg *err)
{
	_cleanup_(freep) double *row = alloc_array((size_t)cols, sizeof(*row));
	if (!row) {
		return -ENOMEM;
	}
	for (int64_t i = 0; i < rows; i++) {
		double squares = 0, by = 1;
		for (int64_t j = 0; j < cols; j++) {
			row[j] = (double)w[i * cols + j];
		}
		add_row(f, scale, i, rows, cols, row);
		for (int64_t j = 0; j < cols && magnitude; j++) {
			squares += row[j] * row[j];
		}
		if (magnitude) {
			by = (double)magnitude[i] / sqrt(squares);
		}
		for (int64_t j = 0; j < cols; j++) {
			w[i * cols + j] = (float)(by * row[j]);
		}
		if (!isfinite(by)) {
			return errmsg_set(err, STATUS_FAILED, "%s: row %lld is zero, so that DoRA's magnitude "
				"has no direction", module, (long long)i);
		}
	}
	return 0;
}

static int merge_whole(const struct adapter *a, const char *module, enum lora_tensor_kind kind,
	int64_t rows, int64_t cols, float *w, struct errmsg *err)
{
	char key[TENSOR_NAME_MAX];
	int r = lora_key(key, sizeof(key), module, kind);
	return r ? r : peft_merge_whole(a, "", key, "", rows, cols, w, err);
}

int lora_merge(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *w, struct errmsg *err)
{
	int r;
	if (strcmp(tensor, "bias") == 0) {
		r = merge_whole(a, module, LORA_TENSOR_BIAS, rows, cols, w, err);
		return r ? r : merge_whole(a, module, LORA_TENSOR_BASE_BIAS, rows, cols, w, err);
	}
	_cleanup_(factors_deinit) struct factors f = {0};
	_cleanup_(freep) float *magnitude = NULL;
	r = merge_whole(a, module, LORA_TENSOR_WEIGHT, rows, cols, w, err);
	r = r ? r : read_factors(a, module, rows, cols, &f, err);
	if (r != 0 || !f.left) {
		return r;
	}
	if (!f.right) {
		return errmsg_set(err, STATUS_INVALID, "adapter: %s has one of LoRA's two factors", module);
	}
	r = read_factor(a, module, LORA_TENSOR_MAGNITUDE, rows, 1, &magnitude, err);
	return r ? r : add_product(&f, lora_scale(&a->config.lora, module), magnitude, rows, cols, w,
		module, err);
}
