/*
 * PEFT's adapter_config.json, type LORA (peft/tuners/lora/config.py, peft/config.py). Whatever its
 * writer, a file of this kind holds some forty options, nearly all at the value at which they do
 * nothing. An option that is not at that value and would change what the adapter computes is
 * refused by name: reading the rest without it would give another model in silence.
 */

#define PCRE2_CODE_UNIT_WIDTH 8

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/json.h"
#include "engine/peft/adapter-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

#define WHAT "adapter_config.json"
#define MAX_TARGETS 65536
#define MAX_RANK 65536
#define MAX_REGEX 4096
#define MAX_CONFIG ((size_t)8 << 20)

void lora_config_deinit(struct lora_config *c)
{
	for (size_t i = 0; i < c->n_target_modules; i++) {
		free(c->target_modules[i]);
	}
	free(c->target_modules);
	free(c->base_model_name_or_path);
	*c = (struct lora_config){0};
}

/* ---- which modules ------------------------------------------------------------------------- */

/* PEFT matches by Python's re.fullmatch. PCRE2 knows nearly the same language; limits bound the
 * time that a pattern from outside may take. */
static pcre2_code *compile_regex(const char *pattern, int *ret_error, size_t *ret_at)
{
	return pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
		PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_DOLLAR_ENDONLY |
			PCRE2_NEVER_BACKSLASH_C,
		ret_error, ret_at, NULL);
}

static bool regex_matches(const char *pattern, const char *module)
{
	int error;
	size_t at;
	bool found = false;
	pcre2_code *code = compile_regex(pattern, &error, &at);
	pcre2_match_data *match = code ? pcre2_match_data_create(1, NULL) : NULL;
	pcre2_match_context *limits = match ? pcre2_match_context_create(NULL) : NULL;
	if (limits) {
		pcre2_set_match_limit(limits, 10000);
		pcre2_set_depth_limit(limits, 1000);
		found = pcre2_match(code, (PCRE2_SPTR)module, strlen(module), 0, 0, match, limits) >= 0;
	}
	pcre2_match_context_free(limits);
	pcre2_match_data_free(match);
	pcre2_code_free(code);
	return found;
}

static bool target_matches(const char *target, const char *module)
{
	size_t n = strlen(module), k = strlen(target);
	if (strcmp(target, module) == 0) {
		return true;
	}
	return n > k && module[n - k - 1] == '.' && strcmp(module + n - k, target) == 0;
}

bool lora_config_targets(const struct lora_config *c, const char *module)
{
	if (c->target_modules_is_regex) {
		return c->n_target_modules == 1 && regex_matches(c->target_modules[0], module);
	}
	for (size_t i = 0; i < c->n_target_modules; i++) {
		if (target_matches(c->target_modules[i], module)) {
			return true;
		}
	}
	return false;
}

/* ---- reading ------------------------------------------------------------------------------- */

/* null, false, "", [] or {}: how options say that they are not used. */
static bool unused(const json_t *v)
{
	return !v || json_is_null(v) || json_is_false(v) ||
		(json_is_string(v) && json_string_length(v) == 0) ||
		(json_is_array(v) && json_array_size(v) == 0) ||
		(json_is_object(v) && json_object_size(v) == 0);
}

/* Options that do not change what a trained adapter computes on a Llama, whatever they hold: where
 * it came from, how it was initialised (where that left the base alone, see check_init), what other
 * options alone would use. */
static const char *const without_effect[] = {
	"auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
	"inference_mode", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
	"qalora_group_size", "revision", "runtime_config",
};

/* Read below. */
static const char *const known[] = {
	"base_model_name_or_path", "bias", "init_lora_weights", "lora_alpha", "lora_dropout",
	"peft_type", "r", "target_modules", "task_type",
};

/* Known to change results, with what to say; other names that are not known are refused too. */
static const struct {
	const char *key, *meaning;
} unsupported[] = {
	{"alora_invocation_tokens", "activated LoRA"},
	{"alpha_pattern", "a scale of its own for some modules"},
	{"arrow_config", "arrow routing"},
	{"exclude_modules", "modules taken out again"},
	{"kasa_config", "KaSA"},
	{"layer_replication", "replicated layers"},
	{"layers_pattern", "a choice of layers"},
	{"layers_to_transform", "a choice of layers"},
	{"lora_bias", "a bias on lora_B"},
	{"megatron_config", "Megatron layers"},
	{"modules_to_save", "modules trained in full"},
	{"monteclora_config", "MonteCLoRA"},
	{"rank_pattern", "a rank of its own for some modules"},
	{"target_parameters", "LoRA on bare parameters"},
	{"trainable_token_indices", "trained token embeddings"},
	{"use_bdlora", "block-diagonal LoRA"},
	{"use_dora", "DoRA"},
	{"use_qalora", "QALoRA"},
	{"use_rslora", "rank-stabilised scaling"},
	{"velora_config", "VeLoRA"},
};

static bool in_list(const char *const *list, size_t n, const char *key)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(list[i], key) == 0) {
			return true;
		}
	}
	return false;
}

static int refuse_unsupported(const json_t *o, struct errmsg *err)
{
	const char *key;
	json_t *value;
	json_object_foreach((json_t *)(uintptr_t)o, key, value) {
		if (in_list(known, ARRAY_LEN(known), key) || unused(value) ||
				in_list(without_effect, ARRAY_LEN(without_effect), key)) {
			continue;
		}
		for (size_t i = 0; i < ARRAY_LEN(unsupported); i++) {
			if (strcmp(unsupported[i].key, key) == 0) {
				return errmsg_set(err, STATUS_INVALID, WHAT ": '%s' is %s: %s is not supported",
					key, json_short(value).s, unsupported[i].meaning);
			}
		}
		return errmsg_set(err, STATUS_INVALID, WHAT ": unknown option '%.60s' is %s and may change "
			"what the adapter computes", key, json_short(value).s);
	}
	return 0;
}

/* Some initialisations take their share out of the base weights, and PEFT does that again whenever
 * it loads such an adapter; these belong to a changed base. */
static int check_init(const json_t *o, struct errmsg *err)
{
	static const char *const harmless[] = {"gaussian", "eva", "orthogonal", "mica"};
	const json_t *v = json_object_get(o, "init_lora_weights");
	if (!v || json_is_null(v) || json_is_boolean(v)) {
		return 0;
	}
	const char *s = json_string_value(v);
	if (!s || !in_list(harmless, ARRAY_LEN(harmless), s)) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'init_lora_weights' is %s, which changes "
			"the base weights; supported are true, false, \"gaussian\", \"eva\", \"orthogonal\" "
			"and \"mica\"", json_short(v).s);
	}
	return 0;
}

static int check_kind(const json_t *o, struct errmsg *err)
{
	const char *peft_type = NULL, *task_type = NULL, *bias = "none";
	int r = json_get_string(o, "peft_type", &peft_type, WHAT, err);
	r = r ? r : json_get_string(o, "task_type", &task_type, WHAT, err);
	if (r != 0) {
		return r;
	}
	if (!peft_type || strcmp(peft_type, "LORA") != 0) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'peft_type' is %s%.40s%s; only \"LORA\" is "
			"supported", peft_type ? "\"" : "", peft_type ? peft_type : "missing",
			peft_type ? "\"" : "");
	}
	if (task_type && strcmp(task_type, "CAUSAL_LM") != 0) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'task_type' is \"%.40s\"; only "
			"\"CAUSAL_LM\" is supported", task_type);
	}
	r = json_get_string(o, "bias", &bias, WHAT, err);
	if (r == 0 && strcmp(bias, "none") != 0) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'bias' is \"%.40s\"; only \"none\" is "
			"supported", bias);
	}
	return r;
}

static int parse_target_list(struct lora_config *c, const json_t *list, struct errmsg *err)
{
	size_t n = json_array_size(list);
	if (n < 1 || n > MAX_TARGETS) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'target_modules' has %zu entries; it must "
			"have 1 to %d", n, MAX_TARGETS);
	}
	c->target_modules = calloc_array(n, sizeof(*c->target_modules));
	if (!c->target_modules) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(list, i);
		if (!json_is_string(v) || json_string_length(v) == 0) {
			return errmsg_set(err, STATUS_INVALID, WHAT ": 'target_modules' holds %s; its entries "
				"must be names of modules", json_short(v).s);
		}
		c->target_modules[c->n_target_modules] = strdup(json_string_value(v));
		if (!c->target_modules[c->n_target_modules]) {
			return -ENOMEM;
		}
		c->n_target_modules++;
	}
	return 0;
}

static int parse_target_regex(struct lora_config *c, const char *pattern, struct errmsg *err)
{
	int error;
	size_t at;
	if (strcmp(pattern, "all-linear") == 0) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'target_modules' is \"all-linear\"; a saved "
			"adapter must list its modules");
	}
	if (strlen(pattern) > MAX_REGEX) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'target_modules' is a regular expression of "
			"%zu bytes; at most %d are read", strlen(pattern), MAX_REGEX);
	}
	pcre2_code *code = compile_regex(pattern, &error, &at);
	if (!code) {
		char reason[128];
		pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof(reason));
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'target_modules' is no regular expression: "
			"%s (at character %zu)", reason, at);
	}
	pcre2_code_free(code);
	c->target_modules = calloc(1, sizeof(*c->target_modules));
	if (!c->target_modules || !(c->target_modules[0] = strdup(pattern))) {
		return -ENOMEM;
	}
	c->n_target_modules = 1;
	c->target_modules_is_regex = true;
	return 0;
}

static int parse_fields(struct lora_config *c, const json_t *o, struct errmsg *err)
{
	const char *base = NULL;
	c->r = 8;
	c->lora_alpha = 8;
	int r = check_kind(o, err);
	r = r ? r : refuse_unsupported(o, err);
	r = r ? r : check_init(o, err);
	r = r ? r : json_get_int(o, "r", 1, MAX_RANK, &c->r, WHAT, err);
	r = r ? r : json_get_real(o, "lora_alpha", -1e6, 1e6, &c->lora_alpha, WHAT, err);
	r = r ? r : json_get_real(o, "lora_dropout", 0, 1, &c->lora_dropout, WHAT, err);
	r = r ? r : json_get_string(o, "base_model_name_or_path", &base, WHAT, err);
	if (r != 0) {
		return r;
	}
	if (base && !(c->base_model_name_or_path = strdup(base))) {
		return -ENOMEM;
	}
	const json_t *targets = json_object_get(o, "target_modules");
	if (json_is_array(targets)) {
		return parse_target_list(c, targets, err);
	}
	if (json_is_string(targets)) {
		return parse_target_regex(c, json_string_value(targets), err);
	}
	return errmsg_set(err, STATUS_INVALID, WHAT ": 'target_modules' is %s; it must be a list of "
		"names, or a regular expression", targets ? json_short(targets).s : "missing");
}

int lora_config_parse(struct lora_config *ret, const char *json, size_t len, struct errmsg *err)
{
	_cleanup_(lora_config_deinit) struct lora_config c = {0};
	json_auto_t *o = NULL;
	if (len > MAX_CONFIG) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": has %zu bytes; at most %zu are read", len,
			MAX_CONFIG);
	}
	int r = json_parse_object(&o, json, len, WHAT, err);
	r = r ? r : parse_fields(&c, o, err);
	if (r == 0) {
		*ret = c;
		c = (struct lora_config){0};
	}
	return r;
}

/* ---- writing ------------------------------------------------------------------------------- */

/* A JSON string as Python's json.dumps() makes it, ASCII only. */
static int append_string(struct buf *out, const char *s)
{
	json_auto_t *value = json_string(s);
	const size_t flags = JSON_ENCODE_ANY | JSON_ENSURE_ASCII;
	_cleanup_(freep) char *text = value ? json_dumps(value, flags) : NULL;
	return text ? buf_append(out, text, strlen(text)) : -ENOMEM;
}

static int append_string_or_null(struct buf *out, const char *s)
{
	return s ? append_string(out, s) : buf_append(out, "null", 4);
}

/* The fewest digits that give the number back; `whole` numbers without a point where allowed. */
static int append_number(struct buf *out, double x, bool may_be_whole)
{
	char text[40];
	for (int digits = 1; digits <= 17; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, x);
		if (strtod(text, NULL) == x) {
			break;
		}
	}
	if (x == floor(x) && fabs(x) < 1e15) {
		snprintf(text, sizeof(text), may_be_whole ? "%.0f" : "%.1f", x);
	}
	return buf_append(out, text, strlen(text));
}

static int compare_strings(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int append_targets(struct buf *out, const struct lora_config *c)
{
	if (c->target_modules_is_regex) {
		return append_string(out, c->target_modules[0]);
	}
	_cleanup_(freep) const char **sorted = alloc_array(c->n_target_modules, sizeof(*sorted));
	if (!sorted) {
		return -ENOMEM;
	}
	memcpy(sorted, c->target_modules, c->n_target_modules * sizeof(*sorted));
	qsort(sorted, c->n_target_modules, sizeof(*sorted), compare_strings);
	int r = buf_append(out, "[", 1);
	for (size_t i = 0; i < c->n_target_modules; i++) {
		if (i > 0 && strcmp(sorted[i - 1], sorted[i]) == 0) {
			continue;
		}
		r = r ? r : buf_appendf(out, "%s\n    ", i ? "," : "");
		r = r ? r : append_string(out, sorted[i]);
	}
	return r ? r : buf_appendf(out, "\n  ]");
}

int lora_config_write(struct buf *out, const struct lora_config *c, struct errmsg *err)
{
	if (c->n_target_modules == 0 || (c->target_modules_is_regex && c->n_target_modules != 1)) {
		return errmsg_set(err, STATUS_INVALID, "an adapter needs target modules to be written");
	}
	for (size_t i = 0; i < c->n_target_modules; i++) {
		if (strcmp(c->target_modules[i], "all-linear") == 0) {
			return errmsg_set(err, STATUS_INVALID, "target_modules holds \"all-linear\", which "
				"must be resolved to names before an adapter is written");
		}
	}
	if (c->r < 1 || c->r > MAX_RANK || !isfinite(c->lora_alpha) || !isfinite(c->lora_dropout)) {
		return errmsg_set(err, STATUS_INVALID, "an adapter with r = %" PRId64 ", lora_alpha = %g, "
			"lora_dropout = %g cannot be written", c->r, c->lora_alpha, c->lora_dropout);
	}
	int r = buf_appendf(out, "{\n  \"alpha_pattern\": {},\n  \"base_model_name_or_path\": ");
	r = r ? r : append_string_or_null(out, c->base_model_name_or_path);
	r = r ? r : buf_appendf(out, ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n"
		"  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n  \"lora_alpha\": ");
	r = r ? r : append_number(out, c->lora_alpha, true);
	r = r ? r : buf_appendf(out, ",\n  \"lora_dropout\": ");
	r = r ? r : append_number(out, c->lora_dropout, false);
	r = r ? r : buf_appendf(out, ",\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n"
		"  \"r\": %" PRId64 ",\n  \"rank_pattern\": {},\n  \"revision\": null,\n"
		"  \"target_modules\": ", c->r);
	r = r ? r : append_targets(out, c);
	return r ? r : buf_appendf(out, ",\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n"
		"  \"use_rslora\": false\n}");
}
