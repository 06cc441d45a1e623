/* Adapters as PEFT keeps them: adapter_config.json beside adapter_model.safetensors
 * (peft/utils/save_and_load.py). The adapter's own name never appears in keys. */

#include "engine/peft/adapter.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/adapter-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

#define WEIGHTS "adapter_model.safetensors"
#define KEY_PREFIX "base_model.model."
#define KEY_MAX 512

int adapter_lora_key(char *out, size_t cap, const char *module, char factor)
{
	int n = snprintf(out, cap, KEY_PREFIX "%s.lora_%c.weight", module, factor);
	return n >= 0 && (size_t)n < cap ? 0 : -ENAMETOOLONG;
}

/* ---- reading ------------------------------------------------------------------------------- */

/* The module of a key of ours, into out[cap], and which factor; false for any other key. */
static bool split_key(const char *key, char *out, size_t cap, char *ret_factor)
{
	static const char *const suffixes[] = {".lora_A.weight", ".lora_B.weight"};
	size_t n = strlen(key), prefix = strlen(KEY_PREFIX), suffix = strlen(suffixes[0]);
	if (n <= prefix + suffix || n - prefix - suffix >= cap ||
			strncmp(key, KEY_PREFIX, prefix) != 0) {
		return false;
	}
	for (size_t i = 0; i < 2; i++) {
		if (strcmp(key + n - suffix, suffixes[i]) == 0) {
			memcpy(out, key + prefix, n - prefix - suffix);
			out[n - prefix - suffix] = '\0';
			*ret_factor = "AB"[i];
			return true;
		}
	}
	return false;
}

/* Why a key that is no LoRA factor is there. */
static const char *key_meaning(const char *key)
{
	static const char *const meanings[][2] = {
		{".lora_magnitude_vector", "; it belongs to DoRA, which is not supported"},
		{".lora_embedding_", "; LoRA on embeddings is not supported"},
		{".lora_B.bias", "; a bias on lora_B is not supported"},
		{".base_layer.", "; weights of the base model in an adapter are not supported"},
		{"embed_tokens.weight", "; weights of the base model in an adapter are not supported"},
		{"lm_head.weight", "; weights of the base model in an adapter are not supported"},
		{"prompt_embeddings", "; soft prompts are not supported here"},
	};
	for (size_t i = 0; i < ARRAY_LEN(meanings); i++) {
		if (strstr(key, meanings[i][0])) {
			return meanings[i][1];
		}
	}
	return "; the keys are " KEY_PREFIX "MODULE.lora_A.weight and .lora_B.weight";
}

static int check_finite(const struct st_tensor *t, struct errmsg *err)
{
	size_t n = (size_t)t->dims[0] * (size_t)t->dims[1];
	_cleanup_(freep) float *values = alloc_array(n, sizeof(*values));
	if (!values) {
		return -ENOMEM;
	}
	int r = st_tensor_read_f32(t, values, err);
	for (size_t i = 0; i < n && r == 0; i++) {
		if (!isfinite(values[i])) {
			r = errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s': value %zu is not "
				"finite", t->name, i);
		}
	}
	return r;
}

/* Entries of target_modules, sorted, each once, with whether a module was met for it. Both may be
 * many. */
struct target_index {
	struct target {
		const char *name;
		bool met;
	} *targets; /* owned */
	size_t n;
};

static void target_index_deinit(struct target_index *x)
{
	free(x->targets);
}

static int compare_targets(const void *a, const void *b)
{
	return strcmp(((const struct target *)a)->name, ((const struct target *)b)->name);
}

static int target_index_init(struct target_index *x, const struct lora_config *c)
{
	x->targets = calloc_array(c->n_target_modules, sizeof(*x->targets));
	if (!x->targets) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < c->n_target_modules; i++) {
		x->targets[x->n++].name = c->target_modules[i];
	}
	qsort(x->targets, x->n, sizeof(*x->targets), compare_targets);
	size_t kept = 0;
	for (size_t i = 0; i < x->n; i++) {
		if (kept == 0 || strcmp(x->targets[kept - 1].name, x->targets[i].name) != 0) {
			x->targets[kept++] = x->targets[i];
		}
	}
	x->n = kept;
	return 0;
}

/* Is the module selected: by its whole name or what follows one of its dots? Marks all that do. */
static bool target_index_meet(struct target_index *x, const struct lora_config *c,
	const char *module)
{
	bool found = false;
	if (c->target_modules_is_regex) {
		return lora_config_targets(c, module);
	}
	for (const char *at = module, *dot; at; at = dot ? dot + 1 : NULL) {
		struct target wanted = {.name = at};
		struct target *t = bsearch(&wanted, x->targets, x->n, sizeof(wanted), compare_targets);
		if (t) {
			t->met = found = true;
		}
		dot = strchr(at, '.');
	}
	return found;
}

static int check_tensor(const struct adapter *a, const struct st_tensor *t,
	struct target_index *targets, struct errmsg *err)
{
	char module[KEY_MAX], other_key[KEY_MAX + 64], factor;
	if (!split_key(t->name, module, sizeof(module), &factor)) {
		return errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' is left over%s", t->name,
			key_meaning(t->name));
	}
	if (!target_index_meet(targets, &a->config, module)) {
		return errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' is left over: "
			"target_modules in adapter_config.json does not select this module", t->name);
	}
	if (t->n_dims != 2 || t->dims[0] < 1 || t->dims[1] < 1 ||
			t->dims[factor == 'A' ? 0 : 1] != a->config.r) {
		return errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' must be a matrix of %s "
			"with r = %" PRId64 "; its dimensions are %d: [%" PRId64 ", %" PRId64 "]", t->name,
			factor == 'A' ? "(r, in)" : "(out, r)", a->config.r, t->n_dims,
			t->n_dims > 0 ? t->dims[0] : 0, t->n_dims > 1 ? t->dims[1] : 0);
	}
	int r = adapter_lora_key(other_key, sizeof(other_key), module, factor == 'A' ? 'B' : 'A');
	if (r < 0) {
		return r;
	}
	if (!safetensors_find(&a->tensors, other_key)) {
		return errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' is missing", other_key);
	}
	return check_finite(t, err);
}

/* Each entry of target_modules must have met a module: an adapter that lost half of its tensors
 * would otherwise load as half an adapter. */
static int check_tensors(const struct adapter *a, struct errmsg *err)
{
	_cleanup_(target_index_deinit) struct target_index targets = {0};
	int r = target_index_init(&targets, &a->config);
	for (size_t i = 0; i < a->tensors.n_tensors && r == 0; i++) {
		r = check_tensor(a, &a->tensors.tensors[i], &targets, err);
	}
	for (size_t i = 0; i < targets.n && r == 0 && !a->config.target_modules_is_regex; i++) {
		if (!targets.targets[i].met) {
			r = errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensors are missing: target_modules in "
				"adapter_config.json names '%.100s', and there are none for it",
				targets.targets[i].name);
		}
	}
	return r;
}

static int parse_into(struct adapter *a, const void *config_json, size_t config_len,
	const void *weights, size_t weights_len, struct errmsg *err)
{
	int r = lora_config_parse(&a->config, config_json, config_len, err);
	if (r != 0) {
		return r;
	}
	r = safetensors_parse(&a->tensors, weights, weights_len, WEIGHTS, err);
	if (r != 0) {
		return r;
	}
	if (a->tensors.n_tensors == 0) {
		return errmsg_set(err, STATUS_INVALID, WEIGHTS ": holds no tensors");
	}
	return check_tensors(a, err);
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
	lora_config_deinit(&a->config);
	safetensors_deinit(&a->tensors);
	*a = (struct adapter){0};
}

/* ---- writing ------------------------------------------------------------------------------- */

static int compare_out(const void *a, const void *b)
{
	return strcmp(((const struct st_out *)a)->name, ((const struct st_out *)b)->name);
}

/* One factor; `name` has KEY_MAX bytes for its key and must live as long as `out`. */
static int add_factor(struct st_out *out, char *name, const struct adapter_lora *m, char factor)
{
	*out = (struct st_out){
		.name = name,
		.dtype = ST_F32,
		.n_dims = 2,
		.dims = {factor == 'A' ? m->r : m->out, factor == 'A' ? m->in : m->r},
		.data = factor == 'A' ? m->a : m->b,
	};
	return adapter_lora_key(name, KEY_MAX, m->module, factor);
}

static int check_module(const struct lora_config *c, const struct adapter_lora *m,
	struct errmsg *err)
{
	if (!lora_config_targets(c, m->module)) {
		return errmsg_set(err, STATUS_INVALID, "module '%.200s' is not selected by target_modules; "
			"PEFT would drop its weights in silence", m->module);
	}
	if (m->r != c->r || m->in < 1 || m->out < 1) {
		return errmsg_set(err, STATUS_INVALID, "module '%.200s' has rank %" PRId64 " (%" PRId64
			" → %" PRId64 "); the adapter's r is %" PRId64, m->module, m->r, m->in, m->out, c->r);
	}
	return 0;
}

int adapter_export(struct buf *config_json, struct buf *weights, const struct lora_config *c,
	const struct adapter_lora *modules, size_t n, struct errmsg *err)
{
	static const char *const metadata[] = {"format", "pt"};
	_cleanup_(freep) struct st_out *out = calloc_array(n, 2 * sizeof(*out));
	_cleanup_(freep) char *names = calloc_array(n, 2 * KEY_MAX);
	if (!out || !names) {
		return -ENOMEM;
	}
	if (n == 0) {
		return errmsg_set(err, STATUS_INVALID, "an adapter without modules cannot be written");
	}
	for (size_t i = 0; i < n; i++) {
		int r = check_module(c, &modules[i], err);
		r = r ? r : add_factor(&out[2 * i], names + 2 * i * KEY_MAX, &modules[i], 'A');
		r = r ? r : add_factor(&out[2 * i + 1], names + (2 * i + 1) * KEY_MAX, &modules[i], 'B');
		if (r != 0) {
			return r;
		}
	}
	qsort(out, 2 * n, sizeof(*out), compare_out);
	for (size_t i = 1; i < 2 * n; i++) {
		if (strcmp(out[i - 1].name, out[i].name) == 0) {
			return errmsg_set(err, STATUS_INVALID, "tensor '%.300s' would be written twice",
				out[i].name);
		}
	}
	int r = lora_config_write(config_json, c, err);
	return r ? r : safetensors_write(weights, out, 2 * n, metadata, 1);
}

/* ---- verifying ----------------------------------------------------------------------------- */

static int verify_factor(const struct adapter *a, const struct adapter_lora *m, char factor,
	struct errmsg *err)
{
	char key[KEY_MAX];
	const float *live = factor == 'A' ? m->a : m->b;
	int64_t rows = factor == 'A' ? m->r : m->out, cols = factor == 'A' ? m->in : m->r;

	int r = adapter_lora_key(key, sizeof(key), m->module, factor);
	if (r < 0) {
		return r;
	}
	const struct st_tensor *t = safetensors_find(&a->tensors, key);
	if (!t) {
		return errmsg_set(err, STATUS_FAILED, "the exported adapter lacks tensor '%.300s'", key);
	}
	if (t->dtype != ST_F32 || t->n_dims != 2 || t->dims[0] != rows || t->dims[1] != cols) {
		return errmsg_set(err, STATUS_FAILED, "tensor '%.300s' of the exported adapter is [%" PRId64
			", %" PRId64 "] in %s; the live one is [%" PRId64 ", %" PRId64 "] in F32", key,
			t->dims[0], t->dims[1], t->dtype_name, rows, cols);
	}
	for (size_t i = 0; i < (size_t)(rows * cols); i++) {
		if (memcmp(t->data + 4 * i, &live[i], 4) != 0) {
			float exported;
			memcpy(&exported, t->data + 4 * i, 4);
			return errmsg_set(err, STATUS_FAILED, "tensor '%.300s' of the exported adapter differs "
				"from the live one at row %zu, column %zu: %.9g instead of %.9g", key,
				i / (size_t)cols, i % (size_t)cols, (double)exported, (double)live[i]);
		}
	}
	return 0;
}

int adapter_verify(const void *config_json, size_t config_len, const void *weights,
	size_t weights_len, const struct adapter_lora *modules, size_t n, struct errmsg *err)
{
	_cleanup_(adapter_deinit) struct adapter a = {0};
	int r = adapter_parse(&a, config_json, config_len, weights, weights_len, err);
	if (r > 0) {
		return errmsg_prefix(err, STATUS_FAILED, "the exported adapter cannot be read back");
	}
	for (size_t i = 0; i < n && r == 0; i++) {
		r = verify_factor(&a, &modules[i], 'A', err);
		r = r ? r : verify_factor(&a, &modules[i], 'B', err);
	}
	if (r == 0 && a.tensors.n_tensors != 2 * n) {
		r = errmsg_set(err, STATUS_FAILED, "the exported adapter holds %zu tensors; there are %zu "
			"live ones", a.tensors.n_tensors, 2 * n);
	}
	return r;
}
