/* The list of methods, and what all of them share: names of trained tensors, loading and saving. */
#include "engine/peft/peft.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base.h"
#include "engine/peft/adapter-internal.h"
#include "engine/train/rng.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct peft *, peft_free);

const struct peft_method *const peft_methods[] = {
	&peft_full, &peft_last_k, &peft_bitfit, &peft_ln_tuning, &peft_select, &peft_lora,
	&peft_bottleneck, &peft_prompt_tuning, &peft_p_tuning, &peft_prefix_tuning, &peft_ia3, NULL,
};

const struct peft_method *peft_method_find(const char *name)
{
	for (size_t i = 0; peft_methods[i]; i++) {
		if (strcmp(peft_methods[i]->name, name) == 0) {
			return peft_methods[i];
		}
	}
	return NULL;
}

enum adapter_kind peft_kind(const struct peft_method *method, const struct method_config *m)
{
	return method->kind_of ? method->kind_of(m) : method->kind;
}

int peft_new(struct peft **ret, const struct method_config *m, const struct graph *g,
	struct errmsg *err)
{
	int r = method_config_check(m, err);
	if (r != 0) {
		return r;
	}
	const struct peft_method *method = peft_method_find(m->method);
	_cleanup_(peft_freep) struct peft *p = calloc(1, method->size);
	if (!p) {
		return -ENOMEM;
	}
	p->method = method;
	r = method_config_copy(&p->config, m);
	if (r == 0) {
		p->config.method = method->name;
		r = method->start ? method->start(p, g, err) : 0;
	}
	if (r == 0) {
		*ret = steal_ptr(p);
	}
	return r;
}

void peft_free(struct peft *p)
{
	if (!p) {
		return;
	}
	if (p->method->stop) {
		p->method->stop(p);
	}
	method_config_deinit(&p->config);
	free(p);
}

/* ---- trained parameters of the base -------------------------------------------------------- */

/* Where a parameter of the base stands: part of a slot, weight or bias. */
struct base_place {
	int slot, part;
	bool bias;
};

void peft_train_weight(struct graph *g, int slot, int part)
{
	const char *tied = g->weights[slot].stored_as;
	int other, other_part;
	if (tied && graph_find_module(g, tied, &other, &other_part) &&
		g->weights[other].parts[other_part].param != NONE) {
		graph_train_as(g, slot, part, g->weights[other].parts[other_part].param);
	} else {
		graph_train_weight(g, slot, part);
	}
}

void peft_train_slot(struct graph *g, int slot)
{
	for (int i = 0; i < g->weights[slot].n_parts; i++) {
		peft_train_weight(g, slot, i);
		if (g->weights[slot].bias) {
			graph_train_bias(g, slot, i);
		}
	}
}

/* The i-th of them; false past the end. A parameter that two slots share belongs to the first. */
static bool base_place(const struct graph *g, size_t i, struct base_place *ret)
{
	for (int s = 0; s < g->n_weights; s++) {
		const struct weight *w = &g->weights[s];
		for (int k = 0; k < w->n_parts; k++) {
			bool shared = false;
			for (int t = 0; t < s && w->stored_as && !shared; t++) {
				shared = g->weights[t].parts[0].param == w->parts[k].param;
			}
			if (w->parts[k].param != NONE && !shared && i-- == 0) {
				*ret = (struct base_place){s, k, false};
				return true;
			}
			if (w->parts[k].bias_param != NONE && i-- == 0) {
				*ret = (struct base_place){s, k, true};
				return true;
			}
		}
	}
	return false;
}

size_t peft_n_base_tensors(const struct graph *g)
{
	struct base_place at;
	size_t n = 0;
	while (base_place(g, n, &at)) {
		n++;
	}
	return n;
}

void peft_base_tensor(const struct graph *g, size_t i, struct peft_tensor *ret)
{
	struct base_place at = {0};
	base_place(g, i, &at);
	const struct weight *w = &g->weights[at.slot];
	int param = at.bias ? w->parts[at.part].bias_param : w->parts[at.part].param;
	const struct param *p = &g->params[param];
	bool vector = at.bias || w->kind == WEIGHT_VECTOR;
	*ret = (struct peft_tensor){.n_dims = vector ? 1 : 2, .offset = p->offset};
	ret->dims[0] = vector ? p->rows * p->cols : p->rows;
	ret->dims[1] = vector ? 0 : p->cols;
	snprintf(ret->name, sizeof(ret->name), "%s.%s", w->parts[at.part].module,
		at.bias ? "bias" : "weight");
}

int peft_init_base(const struct graph *g, const struct base_model *base, float *flat,
	struct errmsg *err)
{
	struct base_place at;
	for (size_t i = 0; base_place(g, i, &at); i++) {
		const struct weight *w = &g->weights[at.slot];
		int param = at.bias ? w->parts[at.part].bias_param : w->parts[at.part].param;
		const struct param *p = &g->params[param];
		if (!p->of_base) {
			continue;
		}
		const char *module = w->stored_as && !at.bias ? w->stored_as : w->parts[at.part].module;
		bool vector = at.bias || w->kind == WEIGHT_VECTOR;
		int r = base_read_stored(base, module, at.bias ? "bias" : "weight",
			vector ? p->rows * p->cols : p->rows, vector ? 1 : p->cols, flat + p->offset, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* ---- starting, loading, saving ------------------------------------------------------------- */

size_t peft_n_tensors(const struct peft *p, const struct graph *g)
{
	return p->method->n_tensors ? p->method->n_tensors(p, g) : peft_n_base_tensors(g);
}

void peft_tensor(const struct peft *p, const struct graph *g, size_t i, struct peft_tensor *ret)
{
	if (p->method->tensor) {
		p->method->tensor(p, g, i, ret);
	} else {
		peft_base_tensor(g, i, ret);
	}
}

int peft_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err)
{
	return p->method->init ? p->method->init(p, g, base, seed, flat, err) :
		peft_init_base(g, base, flat, err);
}

static int64_t elements_of(const int64_t *dims, int n_dims)
{
	int64_t n = 1;
	for (int i = 0; i < n_dims; i++) {
		n *= dims[i];
	}
	return n;
}

/* Equal, dimensions of 1 aside. */
static bool same_shape(const struct st_tensor *have, const struct peft_tensor *want)
{
	int i = 0, k = 0;
	while (i < have->n_dims || k < want->n_dims) {
		if (i < have->n_dims && have->dims[i] == 1) {
			i++;
		} else if (k < want->n_dims && want->dims[k] == 1) {
			k++;
		} else if (i < have->n_dims && k < want->n_dims && have->dims[i] == want->dims[k]) {
			i++;
			k++;
		} else {
			return false;
		}
	}
	return true;
}

static const char *shape_text(char out[96], const int64_t *dims, int n_dims)
{
	size_t len = 0;
	out[0] = '\0';
	for (int i = 0; i < n_dims && len < 90; i++) {
		int n = snprintf(out + len, 96 - len, "%s%" PRId64, i ? ", " : "", dims[i]);
		len += n > 0 ? (size_t)n : 0;
	}
	return out;
}

int peft_load_tensor(const struct adapter *a, const struct peft_tensor *want, float *flat,
	struct errmsg *err)
{
	char have_shape[96], want_shape[96];
	const struct st_tensor *t = safetensors_find(&a->tensors, want->name);
	if (!t) {
		return errmsg_set(err, STATUS_INVALID, "adapter: no tensor %s, which the job has; its "
			"settings must be those of the job", want->name);
	}
	if (!same_shape(t, want)) {
		return errmsg_set(err, STATUS_INVALID, "adapter: %s is [%s], not [%s] as the job and the "
			"base model have it", want->name, shape_text(have_shape, t->dims, t->n_dims),
			shape_text(want_shape, want->dims, want->n_dims));
	}
	if (!flat) {
		return 0;
	}
	float *out = flat + want->offset;
	int r = st_tensor_read_f32(t, out, err);
	for (int64_t i = 0; r == 0 && i < elements_of(want->dims, want->n_dims); i++) {
		if (!isfinite(out[i])) {
			return errmsg_set(err, STATUS_INVALID, "adapter: %s: value %lld is no finite number",
				want->name, (long long)i);
		}
	}
	return r;
}

int peft_load(const struct peft *p, const struct graph *g, const struct adapter *a, float *flat,
	struct errmsg *err)
{
	int r = adapter_matches(a, &p->config, err);
	if (r != 0) {
		return r;
	}
	if (p->method->load) {
		return p->method->load(p, g, a, flat, err);
	}
	size_t n = peft_n_tensors(p, g), ignored = 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		struct peft_tensor want;
		peft_tensor(p, g, i, &want);
		r = peft_load_tensor(a, &want, flat, err);
	}
	for (size_t i = 0; i < a->tensors.n_tensors && p->method->ignores; i++) {
		ignored += p->method->ignores(p, g, a->tensors.tensors[i].name);
	}
	if (r == 0 && a->tensors.n_tensors != n + ignored) {
		r = errmsg_set(err, STATUS_INVALID, "adapter: %zu tensors, but the job's settings give "
			"%zu in this base model", a->tensors.n_tensors - ignored, n);
	}
	return r;
}

int peft_can_load(const struct peft *p, const struct graph *g, const struct adapter *a,
	struct errmsg *err)
{
	return peft_load(p, g, a, NULL, err);
}

/* What a folder of this graph's parameters holds; `ret_data` is memory to free, or NULL. */
static int exported_tensors(const struct peft *p, const struct graph *g, const float *flat,
	struct peft_tensor **ret, size_t *ret_n, float **ret_data, struct errmsg *err)
{
	if (p->method->exported) {
		return p->method->exported(p, g, flat, ret, ret_n, ret_data, err);
	}
	size_t n = peft_n_tensors(p, g);
	struct peft_tensor *t = calloc_array(n ? n : 1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		peft_tensor(p, g, i, &t[i]);
	}
	*ret = t;
	*ret_n = n;
	*ret_data = NULL;
	return 0;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

/* The tensors of `t` as a folder's, without data: names are borrowed. */
static int folder_of(struct adapter *a, struct peft_tensor *t, size_t n)
{
	a->tensors.tensors = calloc_array(n ? n : 1, sizeof(*a->tensors.tensors));
	if (!a->tensors.tensors) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		struct st_tensor *out = &a->tensors.tensors[a->tensors.n_tensors++];
		*out = (struct st_tensor){.name = t[i].name, .dtype = ST_F32, .n_dims = t[i].n_dims};
		memcpy(out->dims, t[i].dims, sizeof(t[i].dims));
	}
	qsort(a->tensors.tensors, n, sizeof(*a->tensors.tensors), compare_names);
	return 0;
}

int peft_can_save(const struct peft *p, const struct graph *g, const char *base,
	struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf json = {0};
	_cleanup_(freep) struct peft_tensor *tensors = NULL;
	float *none = NULL;
	struct adapter a = {0};
	size_t n = 0;
	int r = adapter_config_write(&json, &p->config, &g->config, base, err);
	r = r ? r : adapter_config_parse(&a.config, &a.kind, (const char *)json.data, json.len,
		err);
	/* Tensors that are computed from what is trained are made by what reads them, too. */
	if (r == 0 && !p->method->exported && p->method->check_tensors) {
		r = exported_tensors(p, g, NULL, &tensors, &n, &none, err);
		r = r ? r : folder_of(&a, tensors, n);
		r = r ? r : p->method->check_tensors(&a, err);
	}
	free(a.tensors.tensors);
	method_config_deinit(&a.config);
	return r > 0 ? errmsg_prefix(err, r, "what this job would export could not be read back") : r;
}

int peft_save(const struct peft *p, const struct graph *g, const float *flat, const char *base,
	struct buf *config_json, struct buf *weights, struct errmsg *err)
{
	_cleanup_(freep) struct peft_tensor *tensors = NULL;
	_cleanup_(freep) float *data = NULL;
	size_t n = 0;
	int r = exported_tensors(p, g, flat, &tensors, &n, &data, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(freep) struct adapter_tensor *out = calloc_array(n ? n : 1, sizeof(*out));
	if (!out) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		out[i] = (struct adapter_tensor){.name = tensors[i].name, .n_dims = tensors[i].n_dims,
			.data = (data ? data : flat) + tensors[i].offset};
		memcpy(out[i].dims, tensors[i].dims, sizeof(out[i].dims));
	}
	r = adapter_config_write(config_json, &p->config, &g->config, base, err);
	r = r ? r : adapter_write_tensors(weights, out, n, err);
	return r ? r : adapter_verify(config_json->data, config_json->len, weights->data, weights->len,
		out, n, err);
}

/* ---- merging ------------------------------------------------------------------------------- */

const char *peft_unmergeable(const struct method_config *m, const struct model_config *c)
{
	const struct peft_method *method = peft_method_find(m->method);
	return method->unmergeable ? method->unmergeable(m, c) : NULL;
}

int peft_read_tensor(const struct adapter *a, const char *key, int64_t rows, int64_t cols,
	float **ret, struct errmsg *err)
{
	*ret = NULL;
	if (!safetensors_find(&a->tensors, key)) {
		return 0;
	}
	struct peft_tensor want = {.n_dims = 2, .dims = {rows, cols}};
	_cleanup_(freep) float *values = alloc_array((size_t)rows, (size_t)cols * sizeof(*values));
	if (!values) {
		return -ENOMEM;
	}
	int n = snprintf(want.name, sizeof(want.name), "%s", key);
	if (n < 0 || (size_t)n >= sizeof(want.name)) {
		return -ENAMETOOLONG;
	}
	int r = peft_load_tensor(a, &want, values, err);
	if (r == 0) {
		*ret = steal_ptr(values);
	}
	return r;
}

int peft_merge_whole(const struct adapter *a, const char *before, const char *module,
	const char *after, int64_t rows, int64_t cols, float *w, struct errmsg *err)
{
	struct peft_tensor want = {.n_dims = 2, .dims = {rows, cols}};
	int n = snprintf(want.name, sizeof(want.name), "%s%s%s", before, module, after);
	if (n < 0 || (size_t)n >= sizeof(want.name)) {
		return -ENAMETOOLONG;
	}
	return safetensors_find(&a->tensors, want.name) ? peft_load_tensor(a, &want, w, err) : 0;
}

int peft_merge_delta(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *w, struct errmsg *err)
{
	return peft_merge_whole(a, "", module, strcmp(tensor, "bias") == 0 ? ".bias" : ".weight", rows,
		cols, w, err);
}

/* ---- targets ------------------------------------------------------------------------------- */

bool peft_is_linear(const struct weight *w)
{
	return w->adaptable;
}

bool peft_is_norm(const struct weight *w)
{
	return w->kind == WEIGHT_VECTOR;
}

static const char *suffix_of(const char *module)
{
	const char *dot = strrchr(module, '.');
	return dot ? dot + 1 : module;
}

static bool has_name(const struct modules *m, const char *name)
{
	for (size_t i = 0; i < m->n; i++) {
		if (strcmp(m->names[i], name) == 0) {
			return true;
		}
	}
	return false;
}

int peft_resolve_all_linear(struct modules *targets, const struct graph *g)
{
	if (targets->is_regex || targets->n != 1 || strcmp(targets->names[0], "all-linear") != 0) {
		return 0;
	}
	modules_deinit(targets);
	return peft_add_suffixes(targets, g, peft_is_linear);
}

int peft_add_suffixes(struct modules *targets, const struct graph *g, peft_may_target *may)
{
	int r = 0;
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; may(w) && k < w->n_parts && r == 0; k++) {
			const char *suffix = suffix_of(w->parts[k].module);
			r = has_name(targets, suffix) ? 0 : modules_add(targets, suffix);
		}
	}
	return r;
}

/* Whether "a, b, c" has an entry. */
static bool lists(const char *names, const char *entry)
{
	size_t n = strlen(entry);
	for (const char *at = names; (at = strstr(at, entry)); at++) {
		if ((at == names || at[-1] == ' ') && (at[n] == '\0' || at[n] == ',')) {
			return true;
		}
	}
	return false;
}

/* The suffixes of all modules that may be targets, as "a, b, c"; and the one nearest to `name`. */
static const char *list_targets(const struct graph *g, peft_may_target *may, const char *name,
	char *out, size_t cap)
{
	const char *nearest = NULL;
	unsigned best = UINT_MAX;
	size_t len = 0;
	out[0] = '\0';
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; may(w) && k < w->n_parts; k++) {
			const char *suffix = suffix_of(w->parts[k].module);
			unsigned d = edit_distance(suffix, suffix_of(name));
			if (d < best) {
				best = d;
				nearest = suffix;
			}
			if (!lists(out, suffix) && len < cap) {
				int n = snprintf(out + len, cap - len, "%s%s", len ? ", " : "", suffix);
				len += n > 0 ? (size_t)n : 0;
			}
		}
	}
	return best <= 3 ? nearest : NULL;
}

int peft_no_match(const struct graph *g, peft_may_target *may, const char *field, const char *name,
	const char *kind, struct errmsg *err)
{
	char names[256];
	const char *nearest = list_targets(g, may, name, names, sizeof(names));
	return errmsg_set(err, STATUS_INVALID, "%s: \"%s\" matches no %s of this model%s%s%s; there "
		"are: %s", field, name, kind, nearest ? "; did you mean \"" : "",
		nearest ? nearest : "", nearest ? "\"?" : "", names);
}

static int check_target(const struct modules *one, const struct graph *g, peft_may_target *may,
	const char *field, const char *kind, struct errmsg *err)
{
	size_t matches = 0;
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; k < w->n_parts; k++) {
			if (!modules_match(one, w->parts[k].module)) {
				continue;
			}
			if (!may(w)) {
				return errmsg_set(err, STATUS_INVALID, "%s: \"%s\" selects %s, which is no %s",
					field, one->names[0], w->parts[k].module, kind);
			}
			matches++;
		}
	}
	if (matches > 0) {
		return 0;
	}
	return peft_no_match(g, may, field, one->names[0], kind, err);
}

int peft_check_targets(const struct modules *targets, const struct graph *g, peft_may_target *may,
	const char *field, const char *kind, struct errmsg *err)
{
	int r = 0;
	for (size_t i = 0; i < targets->n && r == 0; i++) {
		const struct modules one = {&targets->names[i], 1, targets->is_regex};
		r = check_target(&one, g, may, field, kind, err);
	}
	return r;
}

int peft_check_list(const struct modules *m, const char *field, struct errmsg *err)
{
	for (size_t i = 0; i < m->n; i++) {
		if (m->names[i][0] == '\0') {
			return errmsg_set(err, STATUS_INVALID, "%s: entry %zu is empty", field, i + 1);
		}
		if (m->n > 1 && strcmp(m->names[i], "all-linear") == 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: \"all-linear\" stands alone; leave out the "
				"other names", field);
		}
	}
	return m->is_regex && m->n == 1 ? regex_check(m->names[0], field, err) : 0;
}

int peft_describe_modules(struct buf *out, const char *field, const struct modules *m)
{
	int r = buf_appendf(out, " %s=", field);
	for (size_t i = 0; i < m->n && r == 0; i++) {
		r = buf_appendf(out, "%s%s", i ? "," : "", m->names[i]);
	}
	return r;
}

/* ---- random values ------------------------------------------------------------------------- */

void peft_fill_uniform(float *out, size_t n, double bound, uint64_t seed, uint64_t index)
{
	struct rng_key key = {seed, rng_stream(RNG_INIT, index, 0, 0)};
	for (size_t k = 0; k < n; k++) {
		double u = ((double)rng_bits(key, k) + 0.5) / 4294967296.0;
		out[k] = (float)((2 * u - 1) * bound);
	}
}

/* Box and Muller 1958; each element has two numbers of its own. */
void peft_fill_normal(float *out, size_t n, double mean, double std, uint64_t seed, uint64_t index)
{
	struct rng_key key = {seed, rng_stream(RNG_INIT, index, 1, 0)};
	for (size_t k = 0; k < n; k++) {
		double u = ((double)rng_bits(key, 2 * k) + 0.5) / 4294967296.0;
		double v = ((double)rng_bits(key, 2 * k + 1) + 0.5) / 4294967296.0;
		out[k] = (float)(mean + std * sqrt(-2 * log(u)) * cos(2 * M_PI * v));
	}
}
