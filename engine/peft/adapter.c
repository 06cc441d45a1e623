/* Folders of trained parameters: reading with every check, writing, verifying
 * (peft/utils/save_and_load.py). The adapter's own name never appears in PEFT's keys. */

#include "engine/peft/adapter.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/adapter-internal.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

struct adapter_files adapter_files(enum adapter_kind kind)
{
	static const struct adapter_files files[ADAPTER_KINDS] = {
		[ADAPTER_PEFT] = {"adapter_config.json", "adapter_model.safetensors"},
		[ADAPTER_HUB] = {"adapter_config.json", "adapter.safetensors"},
		[ADAPTER_DELTA] = {"delta_config.json", "delta.safetensors"},
	};
	return files[kind];
}

/* ---- reading ------------------------------------------------------------------------------- */

static int check_finite(const struct st_tensor *t, const char *what, struct errmsg *err)
{
	size_t n = 1;
	for (int i = 0; i < t->n_dims; i++) {
		if (t->dims[i] < 1) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%.300s' is empty", what, t->name);
		}
		n *= (size_t)t->dims[i]; /* checked by safetensors_parse() */
	}
	_cleanup_(freep) float *values = alloc_array(n, sizeof(*values));
	if (!values) {
		return -ENOMEM;
	}
	int r = st_tensor_read_f32(t, values, err);
	for (size_t i = 0; i < n && r == 0; i++) {
		if (!isfinite(values[i])) {
			r = errmsg_set(err, STATUS_INVALID, "%s: tensor '%.300s': value %zu is not finite",
				what, t->name, i);
		}
	}
	return r;
}

static int parse_into(struct adapter *a, const void *config_json, size_t config_len,
	const void *weights, size_t weights_len, struct errmsg *err)
{
	int r = adapter_config_parse(&a->config, &a->kind, config_json, config_len, err);
	if (r != 0) {
		return r;
	}
	const char *what = adapter_files(a->kind).weights;
	r = safetensors_parse(&a->tensors, weights, weights_len, what, err);
	if (r != 0) {
		return r;
	}
	if (a->tensors.n_tensors == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: holds no tensors", what);
	}
	const struct peft_method *method = peft_method_find(a->config.method);
	r = method->check_tensors ? method->check_tensors(a, err) : 0;
	for (size_t i = 0; i < a->tensors.n_tensors && r == 0; i++) {
		r = check_finite(&a->tensors.tensors[i], what, err);
	}
	return r;
}

int adapter_parse(struct adapter *ret, const void *config_json, size_t config_len,
	const void *weights, size_t weights_len, struct errmsg *err)
{
	struct adapter a = {0};
	int r = parse_into(&a, config_json, config_len, weights, weights_len, err);
	if (r != 0) {
		adapter_deinit(&a);
		return r;
	}
	*ret = a;
	return 0;
}

void adapter_deinit(struct adapter *a)
{
	method_config_deinit(&a->config);
	safetensors_deinit(&a->tensors);
	*a = (struct adapter){0};
}

int adapter_matches(const struct adapter *a, const struct method_config *m, struct errmsg *err)
{
	if (strcmp(a->config.method, m->method) != 0) {
		return errmsg_set(err, STATUS_INVALID, "the adapter is of method %s, the job of method "
			"%s; set method: %s", a->config.method, m->method, a->config.method);
	}
	const struct peft_method *method = peft_method_find(m->method);
	return method && method->matches ? method->matches(&a->config, m, err) : 0;
}

int adapter_can_start(const struct adapter *a, const struct method_config *m, struct errmsg *err)
{
	int r = adapter_matches(a, m, err);
	const struct peft_method *method = r == 0 ? peft_method_find(m->method) : NULL;
	return method && method->can_start ? method->can_start(m, err) : r;
}

/* ---- writing ------------------------------------------------------------------------------- */

static int compare_out(const void *a, const void *b)
{
	return strcmp(((const struct st_out *)a)->name, ((const struct st_out *)b)->name);
}

int adapter_write_tensors(struct buf *out, const struct adapter_tensor *tensors, size_t n,
	struct errmsg *err)
{
	static const char *const metadata[] = {"format", "pt"};
	_cleanup_(freep) struct st_out *sorted = calloc_array(n, sizeof(*sorted));
	if (n == 0) {
		return errmsg_set(err, STATUS_INVALID, "an adapter without tensors cannot be written");
	}
	if (!sorted) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		sorted[i] = (struct st_out){.name = tensors[i].name, .dtype = ST_F32,
			.n_dims = tensors[i].n_dims, .data = tensors[i].data};
		memcpy(sorted[i].dims, tensors[i].dims, sizeof(tensors[i].dims));
	}
	qsort(sorted, n, sizeof(*sorted), compare_out);
	for (size_t i = 1; i < n; i++) {
		if (strcmp(sorted[i - 1].name, sorted[i].name) == 0) {
			return errmsg_set(err, STATUS_INVALID, "tensor '%.300s' would be written twice",
				sorted[i].name);
		}
	}
	return safetensors_write(out, sorted, n, metadata, 1);
}

/* ---- verifying ----------------------------------------------------------------------------- */

static int verify_tensor(const struct adapter *a, const struct adapter_tensor *live,
	struct errmsg *err)
{
	const struct st_tensor *t = safetensors_find(&a->tensors, live->name);
	if (!t) {
		return errmsg_set(err, STATUS_FAILED, "the exported adapter lacks tensor '%.300s'",
			live->name);
	}
	size_t n = 1;
	bool same = t->dtype == ST_F32 && t->n_dims == live->n_dims;
	for (int i = 0; same && i < live->n_dims; i++) {
		same = t->dims[i] == live->dims[i];
		n *= (size_t)live->dims[i];
	}
	if (!same) {
		return errmsg_set(err, STATUS_FAILED, "tensor '%.300s' of the exported adapter is of other "
			"shape or dtype than the live one", live->name);
	}
	size_t cols = (size_t)live->dims[live->n_dims - 1];
	for (size_t i = 0; i < n; i++) {
		if (memcmp(t->data + 4 * i, &live->data[i], 4) != 0) {
			float exported;
			memcpy(&exported, t->data + 4 * i, 4);
			return errmsg_set(err, STATUS_FAILED, "tensor '%.300s' of the exported adapter differs "
				"from the live one at row %zu, column %zu: %.9g instead of %.9g", live->name,
				i / cols, i % cols, (double)exported, (double)live->data[i]);
		}
	}
	return 0;
}

int adapter_verify(const void *config_json, size_t config_len, const void *weights,
	size_t weights_len, const struct adapter_tensor *tensors, size_t n, struct errmsg *err)
{
	_cleanup_(adapter_deinit) struct adapter a = {0};
	int r = adapter_parse(&a, config_json, config_len, weights, weights_len, err);
	if (r > 0) {
		return errmsg_prefix(err, STATUS_FAILED, "the exported adapter cannot be read back");
	}
	for (size_t i = 0; i < n && r == 0; i++) {
		r = verify_tensor(&a, &tensors[i], err);
	}
	if (r == 0 && a.tensors.n_tensors != n) {
		r = errmsg_set(err, STATUS_FAILED, "the exported adapter holds %zu tensors; there are %zu "
			"live ones", a.tensors.n_tensors, n);
	}
	return r;
}
