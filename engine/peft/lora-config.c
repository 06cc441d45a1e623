/*
 * LoRA's configuration and what a folder of it must hold (peft/tuners/lora/config.py, tuners_utils.py,
 * utils/save_and_load.py).
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/lora.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/util.h"

#define CONFIG "adapter_config.json"
#define WEIGHTS "adapter_model.safetensors"
#define KEY_PREFIX "base_model.model."
#define KEY_MAX 512
#define MAX_RANK 65536
#define MAX_PATTERNS 2048
#define MAX_LAYERS 65536
#define MIN_ALPHA 1e-30 /* over a rank still a float32 above 0 */
#define MAX_ALPHA 1e6

/* ---- which modules ------------------------------------------------------------------------- */

/* PEFT never targets what modules_to_save names, or what lies below it. */
static bool is_excluded(const struct lora_config *c, const char *module)
{
	for (size_t i = 0; i < c->modules_to_save.n; i++) {
		char pattern[KEY_MAX];
		int n = snprintf(pattern, sizeof(pattern), "(^|.*\\.)%s($|\\..*)",
			c->modules_to_save.names[i]);
		if (n > 0 && (size_t)n < sizeof(pattern) && regex_fullmatch(pattern, module)) {
			return true;
		}
	}
	return false;
}

/* The first number that stands between two dots, as in "model.layers.3.mlp"; -1 without one. */
static int64_t layer_of(const char *module)
{
	const char *dot = strchr(module, '.');
	while (dot) {
		char *end;
		const char *next = strchr(dot + 1, '.');
		long n = strtol(dot + 1, &end, 10);
		if (dot[1] >= '0' && dot[1] <= '9' && *end == '.' && end == next) {
			return n;
		}
		dot = next;
	}
	return -1;
}

static bool layer_chosen(const struct lora_config *c, const char *module)
{
	int64_t layer = layer_of(module);
	for (size_t i = 0; i < c->n_layers_to_transform; i++) {
		if (c->layers_to_transform[i] == layer) {
			return true;
		}
	}
	return c->n_layers_to_transform == 0;
}

bool lora_targets(const struct lora_config *c, const char *module)
{
	const struct modules *m = &c->target_modules;
	if (is_excluded(c, module) || !modules_match(m, module)) {
		return false;
	}
	for (size_t i = 0; i < m->n && !m->is_regex; i++) {
		if (strcmp(m->names[i], module) == 0) {
			return true; /* by its whole name: the choice of layers does not count */
		}
	}
	return m->is_regex || layer_chosen(c, module);
}

bool lora_saves(const struct lora_config *c, const char *module)
{
	/* A name may also be that of a module above: each prefix up to a dot is tried. PEFT's rule is the
	 * end of the name, whether or not a dot stands before it. */
	for (const char *at = strchr(module, '.');; at = strchr(at + 1, '.')) {
		size_t n = at ? (size_t)(at - module) : strlen(module);
		for (size_t i = 0; i < c->modules_to_save.n; i++) {
			size_t k = strlen(c->modules_to_save.names[i]);
			if (k <= n && strncmp(module + n - k, c->modules_to_save.names[i], k) == 0) {
				return true;
			}
		}
		if (!at) {
			return false;
		}
	}
}

int64_t lora_rank(const struct lora_config *c, const char *module)
{
	return (int64_t)patterns_value(&c->rank_pattern, module, (double)c->r);
}

double lora_scale(const struct lora_config *c, const char *module)
{
	double alpha = patterns_value(&c->alpha_pattern, module, c->lora_alpha);
	double r = (double)lora_rank(c, module);
	return alpha / (c->use_rslora ? sqrt(r) : r);
}

bool lora_decomposes(const struct lora_config *c)
{
	return c->init_lora_weights == LORA_INIT_PISSA || c->init_lora_weights == LORA_INIT_OLORA;
}

/* ---- checking ------------------------------------------------------------------------------ */

static int check_patterns(const struct lora_config *c, struct errmsg *err)
{
	const struct {
		const char *name;
		const struct patterns *p;
		bool rank;
	} maps[] = {
		{"lora.rank_pattern", &c->rank_pattern, true},
		{"lora.alpha_pattern", &c->alpha_pattern, false},
	};
	for (size_t i = 0; i < ARRAY_LEN(maps); i++) {
		for (size_t k = 0; k < maps[i].p->n; k++) {
			const struct pattern *p = &maps[i].p->items[k];
			int r = regex_check(p->key, maps[i].name, err);
			if (r != 0) {
				return r;
			}
			bool right = maps[i].rank ? p->value >= 1 && p->value <= MAX_RANK &&
				p->value == floor(p->value) : p->value >= MIN_ALPHA && p->value <= MAX_ALPHA;
			if (!right) {
				return errmsg_set(err, STATUS_INVALID, "%s: %.200s: %g; it must be a %s",
					maps[i].name, p->key, p->value,
					maps[i].rank ? "whole number from 1 to 65536" : "number from 1e-30 to 1e6");
			}
		}
	}
	return 0;
}

static int check_layers(const struct lora_config *c, struct errmsg *err)
{
	if (c->n_layers_to_transform > 0 && c->target_modules.is_regex) {
		return errmsg_set(err, STATUS_INVALID, "lora.layers_to_transform: cannot be combined with "
			"target_modules as a regular expression; put the layers into that");
	}
	for (size_t i = 0; i < c->n_layers_to_transform; i++) {
		if (c->layers_to_transform[i] < 0) {
			return errmsg_set(err, STATUS_INVALID, "lora.layers_to_transform: %lld; layers count "
				"from 0", (long long)c->layers_to_transform[i]);
		}
	}
	return 0;
}

int lora_check(const struct method_config *m, struct errmsg *err)
{
	const struct lora_config *c = &m->lora;
	if (c->r < 1 || c->r > MAX_RANK) {
		return errmsg_set(err, STATUS_INVALID, "lora.r: %lld; it must be from 1 to 65536",
			(long long)c->r);
	}
	if (!(c->lora_alpha >= MIN_ALPHA && c->lora_alpha <= MAX_ALPHA)) {
		return errmsg_set(err, STATUS_INVALID, "lora.lora_alpha: %g; it must be a number from %g to "
			"%g", c->lora_alpha, MIN_ALPHA, MAX_ALPHA);
	}
	if (!f32_probability(c->lora_dropout)) {
		return errmsg_set(err, STATUS_INVALID, "lora.lora_dropout: %.17g; it must be at least 0 and, "
			"as a float32, below 1", c->lora_dropout);
	}
	if (c->target_modules.n == 0) {
		return errmsg_set(err, STATUS_INVALID, "lora.target_modules: empty; name modules (q_proj, "
			"…) or say all-linear");
	}
	if (!(c->loraplus_lr_ratio >= 0) || !f32_finite(c->loraplus_lr_ratio)) {
		return errmsg_set(err, STATUS_INVALID, "lora.loraplus_lr_ratio: %g; it must be a number, 0 "
			"(off) or above", c->loraplus_lr_ratio);
	}
	int r = peft_check_list(&c->target_modules, "lora.target_modules", err);
	r = r ? r : peft_check_list(&c->modules_to_save, "lora.modules_to_save", err);
	r = r ? r : check_patterns(c, err);
	r = r ? r : check_layers(c, err);
	if (r == 0 && lora_decomposes(c) && c->use_dora) {
		r = errmsg_set(err, STATUS_INVALID, "lora.init_lora_weights: PiSSA and OLoRA with use_dora "
			"are not there yet");
	}
	return r;
}

int lora_matches(const struct method_config *have, const struct method_config *want,
	struct errmsg *err)
{
	const struct lora_config *a = &have->lora, *b = &want->lora;
	if (a->r != b->r || a->lora_alpha != b->lora_alpha) {
		return errmsg_set(err, STATUS_INVALID, "the adapter has r %lld and lora_alpha %g, the job "
			"%lld and %g; set lora.r: %lld, lora.lora_alpha: %g", (long long)a->r, a->lora_alpha,
			(long long)b->r, b->lora_alpha, (long long)a->r, a->lora_alpha);
	}
	if (lora_decomposes(a) != lora_decomposes(b) ||
		(lora_decomposes(a) && a->init_lora_weights != b->init_lora_weights)) {
		return errmsg_set(err, STATUS_INVALID, "the adapter and lora.init_lora_weights must both be "
			"of PiSSA, both of OLoRA, or neither: what such an adapter adds to depends on it");
	}
	if (a->use_dora != b->use_dora || a->use_rslora != b->use_rslora) {
		return errmsg_set(err, STATUS_INVALID, "the adapter has use_dora %s and use_rslora %s; set "
			"lora.use_dora and lora.use_rslora to these", a->use_dora ? "true" : "false",
			a->use_rslora ? "true" : "false");
	}
	return 0;
}

/* ---- adapter_config.json ------------------------------------------------------------------- */

/* Options that do not change what a trained adapter computes on a Llama, whatever they hold: how it
 * was initialised (where that left the base alone, see read_init), what other options alone would
 * use. */
static const char *const without_effect[] = {
	"corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "loftq_config",
	"lora_ga_config", "megatron_core", "qalora_group_size", NULL,
};

/* Read below. */
static const char *const known[] = {
	"alpha_pattern", "bias", "init_lora_weights", "layers_to_transform", "lora_alpha",
	"lora_dropout", "modules_to_save", "r", "rank_pattern", "target_modules", "use_dora",
	"use_rslora", NULL,
};

/* Known to change results, with what to say; other names that are not known are refused too. */
static const struct {
	const char *key, *meaning;
} unsupported[] = {
	{"alora_invocation_tokens", "activated LoRA"},
	{"arrow_config", "arrow routing"},
	{"exclude_modules", "modules taken out again"},
	{"kasa_config", "KaSA"},
	{"layer_replication", "replicated layers"},
	{"layers_pattern", "a name for the list of layers"},
	{"lora_bias", "a bias on lora_B"},
	{"megatron_config", "Megatron layers"},
	{"monteclora_config", "MonteCLoRA"},
	{"target_parameters", "LoRA on bare parameters"},
	{"trainable_token_indices", "trained token embeddings"},
	{"use_bdlora", "block-diagonal LoRA"},
	{"use_qalora", "QALoRA"},
	{"velora_config", "VeLoRA"},
};

static int refuse_unsupported(const json_t *o, struct errmsg *err)
{
	struct errmsg other = {0};
	int r = json_refuse_others(o, known, without_effect, &other);
	if (r == 0) {
		return 0;
	}
	for (size_t i = 0; i < ARRAY_LEN(unsupported); i++) {
		char quoted[64];
		snprintf(quoted, sizeof(quoted), "'%s'", unsupported[i].key);
		if (strstr(other.text, quoted)) {
			return errmsg_set(err, STATUS_INVALID, CONFIG ": %s is %s: %s is not supported", quoted,
				json_short(json_object_get(o, unsupported[i].key)).s, unsupported[i].meaning);
		}
	}
	return errmsg_set(err, STATUS_INVALID, "%s", other.text);
}

/* Some initialisations take their share out of the base weights, and PEFT does that again whenever
 * it loads such an adapter; these belong to a changed base. PiSSA and OLoRA can be done again here. */
static int read_init(struct lora_config *c, const json_t *o, struct errmsg *err)
{
	static const char *const harmless[] = {"gaussian", "eva", "orthogonal", "mica"};
	const json_t *v = json_object_get(o, "init_lora_weights");
	if (!v || json_is_null(v) || json_is_boolean(v)) {
		return 0;
	}
	const char *s = json_string_value(v);
	if (s && (strcmp(s, "pissa") == 0 || strcmp(s, "olora") == 0)) {
		c->init_lora_weights = s[0] == 'p' ? LORA_INIT_PISSA : LORA_INIT_OLORA;
		return 0;
	}
	for (size_t i = 0; s && i < ARRAY_LEN(harmless); i++) {
		if (strcmp(s, harmless[i]) == 0) {
			return 0;
		}
	}
	return errmsg_set(err, STATUS_INVALID, CONFIG ": 'init_lora_weights' is %s, which changes the "
		"base weights; supported are true, false, \"gaussian\", \"pissa\", \"olora\", \"eva\", "
		"\"orthogonal\" and \"mica\"", json_short(v).s);
}

static int read_bias(struct lora_config *c, const json_t *o, struct errmsg *err)
{
	static const char *const names[] = {"none", "all", "lora_only"};
	const char *bias = "none";
	int r = json_get_string(o, "bias", &bias, CONFIG, err);
	for (size_t i = 0; i < ARRAY_LEN(names) && r == 0; i++) {
		if (strcmp(bias, names[i]) == 0) {
			c->bias = (enum lora_bias)i;
			return 0;
		}
	}
	return r ? r : errmsg_set(err, STATUS_INVALID, CONFIG ": 'bias' is \"%.40s\"; there are none, "
		"all and lora_only", bias);
}

static int read_patterns(struct patterns *p, const json_t *o, const char *name, struct errmsg *err)
{
	const json_t *map = json_object_get(o, name);
	const char *key;
	json_t *value;
	if (!map || json_is_null(map)) {
		return 0;
	}
	if (!json_is_object(map) || json_object_size(map) > MAX_PATTERNS) {
		return errmsg_set(err, STATUS_INVALID, CONFIG ": '%s' is %s; it must be an object of "
			"numbers by module", name, json_short(map).s);
	}
	json_object_foreach((json_t *)(uintptr_t)map, key, value) {
		if (!json_is_number(value)) {
			return errmsg_set(err, STATUS_INVALID, CONFIG ": '%s': '%.100s' is %s, no number", name,
				key, json_short(value).s);
		}
		int r = patterns_add(p, key, json_number_value(value));
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

static int read_layers(struct lora_config *c, const json_t *o, struct errmsg *err)
{
	const json_t *v = json_object_get(o, "layers_to_transform");
	if (!v || json_is_null(v)) {
		return 0;
	}
	size_t n = json_is_array(v) ? json_array_size(v) : 1;
	if (n > MAX_LAYERS) {
		return errmsg_set(err, STATUS_INVALID, CONFIG ": 'layers_to_transform' has %zu entries", n);
	}
	c->layers_to_transform = calloc_array(n ? n : 1, sizeof(*c->layers_to_transform));
	if (!c->layers_to_transform) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		const json_t *item = json_is_array(v) ? json_array_get(v, i) : v;
		if (!json_is_integer(item)) {
			return errmsg_set(err, STATUS_INVALID, CONFIG ": 'layers_to_transform' holds %s; it "
				"must hold numbers of layers", json_short(item).s);
		}
		c->layers_to_transform[c->n_layers_to_transform++] = json_integer_value(item);
	}
	return 0;
}

int lora_config_read(struct method_config *m, const json_t *o, struct errmsg *err)
{
	struct lora_config *c = &m->lora;
	c->r = 8;
	c->lora_alpha = 8;
	int r = refuse_unsupported(o, err);
	r = r ? r : read_init(c, o, err);
	r = r ? r : json_get_int(o, "r", 1, MAX_RANK, &c->r, CONFIG, err);
	r = r ? r : json_get_real(o, "lora_alpha", -MAX_ALPHA, MAX_ALPHA, &c->lora_alpha, CONFIG, err);
	r = r ? r : json_get_real(o, "lora_dropout", 0, 1, &c->lora_dropout, CONFIG, err);
	r = r ? r : json_get_bool(o, "use_rslora", &c->use_rslora, CONFIG, err);
	r = r ? r : json_get_bool(o, "use_dora", &c->use_dora, CONFIG, err);
	r = r ? r : read_bias(c, o, err);
	r = r ? r : json_read_modules(&c->target_modules, o, "target_modules", true, err);
	r = r ? r : json_read_modules(&c->modules_to_save, o, "modules_to_save", false, err);
	r = r ? r : read_patterns(&c->rank_pattern, o, "rank_pattern", err);
	r = r ? r : read_patterns(&c->alpha_pattern, o, "alpha_pattern", err);
	r = r ? r : read_layers(c, o, err);
	if (r == 0 && c->target_modules.n == 0) {
		const json_t *v = json_object_get(o, "target_modules");
		r = errmsg_set(err, STATUS_INVALID, CONFIG ": 'target_modules' is %s; it must be a list of "
			"names, or a regular expression", v ? json_short(v).s : "missing");
	}
	r = r ? r : check_patterns(c, err);
	return r ? r : check_layers(c, err);
}

static json_t *number(double x, bool may_be_whole)
{
	bool whole = may_be_whole && x == floor(x) && fabs(x) < 1e15;
	return whole ? json_integer((json_int_t)x) : json_real(x);
}

static int write_patterns(json_t *o, const char *key, const struct patterns *p, double factor)
{
	json_auto_t *map = json_object();
	int r = map ? 0 : -1;
	for (size_t i = 0; i < p->n && r == 0; i++) {
		r = json_object_set_new(map, p->items[i].key, number(factor * p->items[i].value, true));
	}
	return r == 0 && json_object_set(o, key, map) == 0 ? 0 : -ENOMEM;
}

static int write_layers(json_t *o, const struct lora_config *c)
{
	if (c->n_layers_to_transform == 0) {
		return json_object_set_new(o, "layers_to_transform", json_null()) == 0 ? 0 : -ENOMEM;
	}
	json_auto_t *list = json_array();
	for (size_t i = 0; list && i < c->n_layers_to_transform; i++) {
		if (json_array_append_new(list, json_integer(c->layers_to_transform[i])) != 0) {
			return -ENOMEM;
		}
	}
	return list && json_object_set(o, "layers_to_transform", list) == 0 ? 0 : -ENOMEM;
}

int lora_config_write(json_t *o, const struct method_config *m, const struct model_config *model)
{
	static const char *const bias[] = {"none", "all", "lora_only"};
	const struct lora_config *c = &m->lora;
	/* [A; A₀] and [B, -B₀]: see lora_exported(). */
	double rank = lora_decomposes(c) ? 2 : 1;
	double alpha = c->use_rslora ? sqrt(rank) : rank;
	int r = 0;
	r |= json_object_set_new(o, "bias", json_string(bias[c->bias]));
	r |= json_object_set_new(o, "fan_in_fan_out", json_boolean(model && model->fan_in_fan_out));
	r |= json_object_set_new(o, "init_lora_weights", json_true());
	r |= json_object_set_new(o, "lora_alpha", number(alpha * c->lora_alpha, true));
	r |= json_object_set_new(o, "lora_dropout", json_real(c->lora_dropout));
	r |= json_object_set_new(o, "r", json_integer((json_int_t)rank * c->r));
	r |= json_object_set_new(o, "use_dora", json_boolean(c->use_dora));
	r |= json_object_set_new(o, "use_rslora", json_boolean(c->use_rslora));
	r = r ? -ENOMEM : json_write_modules(o, "target_modules", &c->target_modules);
	r = r ? r : json_write_modules(o, "modules_to_save", &c->modules_to_save);
	r = r ? r : write_patterns(o, "rank_pattern", &c->rank_pattern, rank);
	r = r ? r : write_patterns(o, "alpha_pattern", &c->alpha_pattern, alpha);
	return r ? r : write_layers(o, c);
}

/* ---- tensors of a folder ------------------------------------------------------------------- */

static const struct {
	const char *suffix;
	enum lora_tensor_kind kind;
} suffixes[] = {
	{".lora_A.weight", LORA_TENSOR_A},
	{".lora_B.weight", LORA_TENSOR_B},
	{".lora_embedding_A", LORA_TENSOR_EMBEDDING_A},
	{".lora_embedding_B", LORA_TENSOR_EMBEDDING_B},
	{".lora_magnitude_vector", LORA_TENSOR_MAGNITUDE},
	{".base_layer.bias", LORA_TENSOR_BASE_BIAS},
	{".base_layer.weight", LORA_TENSOR_BASE_WEIGHT},
	{".bias", LORA_TENSOR_BIAS},
	{".weight", LORA_TENSOR_WEIGHT},
};

int lora_key(char *out, size_t cap, const char *module, enum lora_tensor_kind kind)
{
	const char *suffix = "";
	for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
		suffix = suffixes[i].kind == kind ? suffixes[i].suffix : suffix;
	}
	int n = snprintf(out, cap, KEY_PREFIX "%s%s", module, suffix);
	return n >= 0 && (size_t)n < cap ? 0 : -ENAMETOOLONG;
}

bool lora_split_key(const char *key, char *out, size_t cap, enum lora_tensor_kind *ret)
{
	size_t n = strlen(key), prefix = strlen(KEY_PREFIX);
	for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
		size_t k = strlen(suffixes[i].suffix);
		if (n > prefix + k && n - prefix - k < cap && strncmp(key, KEY_PREFIX, prefix) == 0 &&
			strcmp(key + n - k, suffixes[i].suffix) == 0) {
			memcpy(out, key + prefix, n - prefix - k);
			out[n - prefix - k] = '\0';
			*ret = suffixes[i].kind;
			return true;
		}
	}
	return false;
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
	x->targets = calloc_array(c->target_modules.n, sizeof(*x->targets));
	if (!x->targets) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < c->target_modules.n; i++) {
		x->targets[x->n++].name = c->target_modules.names[i];
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
	if (c->target_modules.is_regex || !lora_targets(c, module)) {
		return lora_targets(c, module);
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


/* The rank as the two factors have it, where this tensor is one. */
static int check_factor(const struct adapter *a, const struct st_tensor *t, const char *module,
	enum lora_tensor_kind kind, struct errmsg *err)
{
	char other_key[KEY_MAX + 64];
	bool is_a = kind == LORA_TENSOR_A || kind == LORA_TENSOR_EMBEDDING_A;
	int64_t rank = lora_rank(&a->config.lora, module);
	if (t->n_dims != 2 || t->dims[0] < 1 || t->dims[1] < 1 || t->dims[is_a ? 0 : 1] != rank) {
		return errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' must be a matrix of %s "
			"with r = %" PRId64 "; its dimensions are %d: [%" PRId64 ", %" PRId64 "]", t->name,
			is_a ? "(r, in)" : "(out, r)", rank, t->n_dims, t->n_dims > 0 ? t->dims[0] : 0,
			t->n_dims > 1 ? t->dims[1] : 0);
	}
	static const enum lora_tensor_kind partner[] = {
		[LORA_TENSOR_A] = LORA_TENSOR_B,
		[LORA_TENSOR_B] = LORA_TENSOR_A,
		[LORA_TENSOR_EMBEDDING_A] = LORA_TENSOR_EMBEDDING_B,
		[LORA_TENSOR_EMBEDDING_B] = LORA_TENSOR_EMBEDDING_A,
	};
	int r = lora_key(other_key, sizeof(other_key), module, partner[kind]);
	if (r == 0 && !safetensors_find(&a->tensors, other_key)) {
		r = errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' is missing", other_key);
	}
	if (r == 0 && a->config.lora.use_dora && is_a && kind == LORA_TENSOR_A) {
		r = lora_key(other_key, sizeof(other_key), module, LORA_TENSOR_MAGNITUDE);
		if (r == 0 && !safetensors_find(&a->tensors, other_key)) {
			r = errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' is missing", other_key);
		}
	}
	return r;
}

static int left_over(const struct st_tensor *t, const char *why, struct errmsg *err)
{
	return errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensor '%.300s' is left over%s", t->name, why);
}

static int check_tensor(const struct adapter *a, const struct st_tensor *t,
	struct target_index *targets, struct errmsg *err)
{
	const struct lora_config *c = &a->config.lora;
	char module[KEY_MAX];
	enum lora_tensor_kind kind;
	if (strstr(t->name, ".lora_B.bias")) {
		return left_over(t, "; a bias on lora_B is not supported", err);
	}
	if (!lora_split_key(t->name, module, sizeof(module), &kind)) {
		return left_over(t, "; the keys are " KEY_PREFIX "MODULE.lora_A.weight and .lora_B.weight",
			err);
	}
	switch (kind) {
	case LORA_TENSOR_WEIGHT:
		return lora_saves(c, module) ? 0 : left_over(t, "; weights of the base model are there for "
			"modules_to_save alone", err);
	case LORA_TENSOR_BIAS:
	case LORA_TENSOR_BASE_BIAS:
		return c->bias != LORA_BIAS_NONE || lora_saves(c, module) ? 0 :
			left_over(t, "; 'bias' is none", err);
	case LORA_TENSOR_BASE_WEIGHT:
		/* PEFT puts the base's embedding beside its factors: it says nothing new. */
		return lora_targets(c, module) ? 0 : left_over(t, ": target_modules in adapter_config.json "
			"does not select this module", err);
	default:
		break;
	}
	if (!target_index_meet(targets, c, module)) {
		return left_over(t, ": target_modules in adapter_config.json does not select this module",
			err);
	}
	if (kind == LORA_TENSOR_MAGNITUDE) {
		return c->use_dora ? 0 : left_over(t, "; it belongs to DoRA, and 'use_dora' is false", err);
	}
	return check_factor(a, t, module, kind, err);
}

/* Each entry of target_modules must have met a module: an adapter that lost half of its tensors
 * would otherwise load as half an adapter. */
int lora_check_tensors(const struct adapter *a, struct errmsg *err)
{
	_cleanup_(target_index_deinit) struct target_index targets = {0};
	int r = target_index_init(&targets, &a->config.lora);
	for (size_t i = 0; i < a->tensors.n_tensors && r == 0; i++) {
		r = check_tensor(a, &a->tensors.tensors[i], &targets, err);
	}
	for (size_t i = 0; i < targets.n && r == 0 && !a->config.lora.target_modules.is_regex; i++) {
		if (!targets.targets[i].met) {
			r = errmsg_set(err, STATUS_INVALID, WEIGHTS ": tensors are missing: target_modules in "
				"adapter_config.json names '%.100s', and there are none for it",
				targets.targets[i].name);
		}
	}
	return r;
}
