/*
 * The configuration of an adapter's folder. PEFT's (peft/config.py) holds some forty options,
 * nearly all at the value at which they do nothing. An option that is not at that value and would
 * change what the adapter computes is refused by name: reading the rest without it would give
 * another model in silence.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/adapter-internal.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/util.h"

#define WHAT "adapter_config.json"
#define DELTA_FORMAT "peftd-delta"
#define MAX_TARGETS 65536
#define MAX_CONFIG ((size_t)8 << 20)

enum { DELTA_VERSION = 1 };

/* ---- fields -------------------------------------------------------------------------------- */

/* null, false, "", [] or {}: how options say that they are not used. */
static bool unused(const json_t *v)
{
	return !v || json_is_null(v) || json_is_false(v) ||
		(json_is_string(v) && json_string_length(v) == 0) ||
		(json_is_array(v) && json_array_size(v) == 0) ||
		(json_is_object(v) && json_object_size(v) == 0);
}

static bool in_list(const char *const *list, const char *key)
{
	for (size_t i = 0; list && list[i]; i++) {
		if (strcmp(list[i], key) == 0) {
			return true;
		}
	}
	return false;
}

int json_refuse_others(const json_t *o, const char *const *known, const char *const *harmless,
	struct errmsg *err)
{
	/* Of every PEFT configuration: where it came from. */
	static const char *const always[] = {"auto_mapping", "base_model_name_or_path",
		"inference_mode", "peft_type", "peft_version", "revision", "runtime_config", "task_type",
		NULL};
	const char *key;
	json_t *value;
	json_object_foreach((json_t *)(uintptr_t)o, key, value) {
		if (in_list(known, key) || in_list(harmless, key) || in_list(always, key) ||
				unused(value)) {
			continue;
		}
		return errmsg_set(err, STATUS_INVALID, WHAT ": unknown option '%.60s' is %s and may change "
			"what the adapter computes", key, json_short(value).s);
	}
	return 0;
}

static int read_list(struct modules *ret, const json_t *list, const char *key, struct errmsg *err)
{
	size_t n = json_array_size(list);
	if (n < 1 || n > MAX_TARGETS) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": '%s' has %zu entries; it must have 1 to %d",
			key, n, MAX_TARGETS);
	}
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(list, i);
		if (!json_is_string(v) || json_string_length(v) == 0) {
			return errmsg_set(err, STATUS_INVALID, WHAT ": '%s' holds %s; its entries must be "
				"names of modules", key, json_short(v).s);
		}
		int r = modules_add(ret, json_string_value(v));
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

int json_read_modules(struct modules *ret, const json_t *o, const char *key, bool regex_allowed,
	struct errmsg *err)
{
	const json_t *v = json_object_get(o, key);
	const char *s = json_string_value(v);
	if (!v || json_is_null(v)) {
		return 0;
	}
	if (json_is_array(v)) {
		return read_list(ret, v, key, err);
	}
	if (!s || !regex_allowed) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": '%s' is %s; it must be a list of names%s",
			key, json_short(v).s, regex_allowed ? ", or a regular expression" : "");
	}
	if (strcmp(s, "all-linear") == 0) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": '%s' is \"all-linear\"; a saved adapter "
			"must list its modules", key);
	}
	char what[80];
	snprintf(what, sizeof(what), WHAT ": '%s'", key);
	int r = regex_check(s, what, err);
	r = r ? r : modules_add(ret, s);
	ret->is_regex = r == 0;
	return r;
}

static int compare_strings(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int json_write_modules(json_t *o, const char *key, const struct modules *m)
{
	if (m->n == 0) {
		return json_object_set_new(o, key, json_null()) == 0 ? 0 : -ENOMEM;
	}
	if (m->is_regex) {
		return json_object_set_new(o, key, json_string(m->names[0])) == 0 ? 0 : -ENOMEM;
	}
	_cleanup_(freep) const char **sorted = alloc_array(m->n, sizeof(*sorted));
	json_auto_t *list = json_array();
	if (!sorted || !list) {
		return -ENOMEM;
	}
	memcpy(sorted, m->names, m->n * sizeof(*sorted));
	qsort(sorted, m->n, sizeof(*sorted), compare_strings);
	for (size_t i = 0; i < m->n; i++) {
		if (i > 0 && strcmp(sorted[i - 1], sorted[i]) == 0) {
			continue;
		}
		if (json_array_append_new(list, json_string(sorted[i])) != 0) {
			return -ENOMEM;
		}
	}
	return json_object_set(o, key, list) == 0 ? 0 : -ENOMEM;
}

/* ---- text ---------------------------------------------------------------------------------- */

/* A JSON string as Python's json.dumps() makes it, ASCII only. */
static int append_string(struct buf *out, const char *s)
{
	json_auto_t *value = json_string(s);
	const size_t flags = JSON_ENCODE_ANY | JSON_ENSURE_ASCII;
	_cleanup_(freep) char *text = value ? json_dumps(value, flags) : NULL;
	return text ? buf_append(out, text, strlen(text)) : -ENOMEM;
}

/* The fewest digits that give the number back, told from an integer by a point. */
static int append_real(struct buf *out, double x)
{
	char text[40];
	for (int digits = 1; digits <= 17; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, x);
		if (strtod(text, NULL) == x) {
			break;
		}
	}
	if (x == floor(x) && fabs(x) < 1e15) {
		snprintf(text, sizeof(text), "%.1f", x);
	}
	return buf_append(out, text, strlen(text));
}

static int append_value(struct buf *out, const json_t *v, int depth);

static int append_newline(struct buf *out, int depth)
{
	return buf_appendf(out, "\n%*s", 2 * depth, "");
}

static int append_array(struct buf *out, const json_t *v, int depth)
{
	size_t n = json_array_size(v);
	int r = buf_append(out, "[", 1);
	for (size_t i = 0; i < n && r == 0; i++) {
		r = i > 0 ? buf_append(out, ",", 1) : 0;
		r = r ? r : append_newline(out, depth + 1);
		r = r ? r : append_value(out, json_array_get(v, i), depth + 1);
	}
	r = r || n == 0 ? r : append_newline(out, depth);
	return r ? r : buf_append(out, "]", 1);
}

static int append_object(struct buf *out, const json_t *v, int depth)
{
	size_t n = json_object_size(v), k = 0;
	_cleanup_(freep) const char **keys = alloc_array(n + 1, sizeof(*keys));
	const char *key;
	json_t *value;
	if (!keys) {
		return -ENOMEM;
	}
	json_object_foreach((json_t *)(uintptr_t)v, key, value) {
		keys[k++] = key;
	}
	qsort(keys, n, sizeof(*keys), compare_strings);
	int r = buf_append(out, "{", 1);
	for (size_t i = 0; i < n && r == 0; i++) {
		r = i > 0 ? buf_append(out, ",", 1) : 0;
		r = r ? r : append_newline(out, depth + 1);
		r = r ? r : append_string(out, keys[i]);
		r = r ? r : buf_append(out, ": ", 2);
		r = r ? r : append_value(out, json_object_get(v, keys[i]), depth + 1);
	}
	r = r || n == 0 ? r : append_newline(out, depth);
	return r ? r : buf_append(out, "}", 1);
}

/* As Python's json.dumps(indent=2, sort_keys=True). */
static int append_value(struct buf *out, const json_t *v, int depth)
{
	switch (json_typeof(v)) {
	case JSON_OBJECT:
		return append_object(out, v, depth);
	case JSON_ARRAY:
		return append_array(out, v, depth);
	case JSON_STRING:
		return append_string(out, json_string_value(v));
	case JSON_INTEGER:
		return buf_appendf(out, "%lld", (long long)json_integer_value(v));
	case JSON_REAL:
		return append_real(out, json_real_value(v));
	case JSON_TRUE:
		return buf_append(out, "true", 4);
	case JSON_FALSE:
		return buf_append(out, "false", 5);
	case JSON_NULL:
		break;
	}
	return buf_append(out, "null", 4);
}

/* ---- reading ------------------------------------------------------------------------------- */

static const struct peft_method *method_of_type(const char *peft_type)
{
	for (size_t i = 0; peft_methods[i]; i++) {
		if (peft_methods[i]->peft_type && strcmp(peft_methods[i]->peft_type, peft_type) == 0) {
			return peft_methods[i];
		}
	}
	return NULL;
}

static int refuse_type(const char *peft_type, struct errmsg *err)
{
	char types[256];
	size_t len = 0;
	types[0] = '\0';
	for (size_t i = 0; peft_methods[i] && len < sizeof(types); i++) {
		if (peft_methods[i]->peft_type) {
			int n = snprintf(types + len, sizeof(types) - len, "%s%s", len ? ", " : "",
				peft_methods[i]->peft_type);
			len += n > 0 ? (size_t)n : 0;
		}
	}
	return errmsg_set(err, STATUS_INVALID, WHAT ": 'peft_type' is %s%.40s%s; there are: %s",
		peft_type ? "\"" : "", peft_type ? peft_type : "missing", peft_type ? "\"" : "", types);
}

static int find_peft(const struct peft_method **ret, const json_t *o, enum task_type *ret_task,
	struct errmsg *err)
{
	const char *peft_type = NULL, *task_type = NULL;
	int r = json_get_string(o, "peft_type", &peft_type, WHAT, err);
	r = r ? r : json_get_string(o, "task_type", &task_type, WHAT, err);
	if (r != 0) {
		return r;
	}
	*ret = peft_type ? method_of_type(peft_type) : NULL;
	if (!*ret) {
		return refuse_type(peft_type, err);
	}
	*ret_task = !task_type ? TASK_UNKNOWN
		: strcmp(task_type, "CAUSAL_LM") == 0 ? TASK_CAUSAL_LM : TASK_SEQ_2_SEQ_LM;
	if (*ret_task == TASK_SEQ_2_SEQ_LM && strcmp(task_type, "SEQ_2_SEQ_LM") != 0) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": 'task_type' is \"%.40s\"; only "
			"\"CAUSAL_LM\" and \"SEQ_2_SEQ_LM\" are supported", task_type);
	}
	return 0;
}

static int find_delta(const struct peft_method **ret, const json_t *o, struct errmsg *err)
{
	const char *format = NULL, *name = NULL;
	int64_t version = 0;
	int r = json_get_string(o, "format", &format, "delta_config.json", err);
	r = r ? r : json_get_int(o, "version", 1, INT32_MAX, &version, "delta_config.json", err);
	r = r ? r : json_get_string(o, "method", &name, "delta_config.json", err);
	if (r != 0) {
		return r;
	}
	if (!format || strcmp(format, DELTA_FORMAT) != 0) {
		return errmsg_set(err, STATUS_INVALID, "delta_config.json: 'format' must be \""
			DELTA_FORMAT "\"");
	}
	if (version != DELTA_VERSION) {
		return errmsg_set(err, STATUS_VERSION, "delta_config.json: 'version' is %lld; this build "
			"reads version %d", (long long)version, DELTA_VERSION);
	}
	*ret = name ? peft_method_find(name) : NULL;
	if (!*ret || (*ret)->kind == ADAPTER_HUB) {
		return errmsg_set(err, STATUS_INVALID, "delta_config.json: 'method' is \"%.40s\", which "
			"has no deltas", name ? name : "");
	}
	return 0;
}

static int find_hub(const struct peft_method **ret, struct errmsg *err)
{
	for (size_t i = 0; peft_methods[i]; i++) {
		if (peft_methods[i]->kind == ADAPTER_HUB) {
			*ret = peft_methods[i];
			return 0;
		}
	}
	return errmsg_set(err, STATUS_INVALID, WHAT ": this is an adapter of AdapterHub; there is no "
		"method for these here");
}

static enum adapter_kind kind_of_object(const json_t *o)
{
	if (!json_object_get(o, "peft_type") && json_object_get(o, "format")) {
		return ADAPTER_DELTA;
	}
	bool hub = !json_object_get(o, "peft_type") && json_is_object(json_object_get(o, "config"));
	return hub ? ADAPTER_HUB : ADAPTER_PEFT;
}

enum adapter_kind adapter_kind_of_config(const void *config_json, size_t len)
{
	json_auto_t *o = len <= MAX_CONFIG ? json_loadb(config_json, len, 0, NULL) : NULL;
	return o ? kind_of_object(o) : ADAPTER_PEFT;
}

int adapter_config_parse(struct method_config *ret, enum adapter_kind *ret_kind, const char *json,
	size_t len, struct errmsg *err)
{
	_cleanup_(method_config_deinit) struct method_config c = {0};
	const struct peft_method *method = NULL;
	const char *base = NULL;
	json_auto_t *o = NULL;
	if (len > MAX_CONFIG) {
		return errmsg_set(err, STATUS_INVALID, WHAT ": has %zu bytes; at most %zu are read", len,
			MAX_CONFIG);
	}
	int r = json_parse_object(&o, json, len, WHAT, err);
	if (r != 0) {
		return r;
	}
	enum adapter_kind kind = kind_of_object(o);
	r = kind == ADAPTER_DELTA ? find_delta(&method, o, err) :
		kind == ADAPTER_HUB ? find_hub(&method, err) : find_peft(&method, o, &c.task_type, err);
	r = r ? r : json_get_string(o, "base_model_name_or_path", &base, WHAT, err);
	if (r != 0) {
		return r;
	}
	c.method = method->name;
	if (base && !(c.base_model_name_or_path = strdup(base))) {
		return -ENOMEM;
	}
	r = method->config_read(&c, o, err);
	if (r == 0) {
		*ret = c;
		*ret_kind = kind;
		c = (struct method_config){0};
	}
	return r;
}

/* ---- writing ------------------------------------------------------------------------------- */

static json_t *string_or_null(const char *s)
{
	return s ? json_string(s) : json_null();
}

/* The fields that all of a kind have. */
static int set_common(json_t *o, const struct peft_method *method, const char *base,
	enum adapter_kind kind, bool encoder_decoder)
{
	int r = 0;
	switch (kind) {
	case ADAPTER_PEFT:
		r |= json_object_set_new(o, "base_model_name_or_path", string_or_null(base));
		r |= json_object_set_new(o, "inference_mode", json_true());
		r |= json_object_set_new(o, "peft_type", json_string(method->peft_type));
		r |= json_object_set_new(o, "revision", json_null());
		r |= json_object_set_new(o, "task_type",
			json_string(encoder_decoder ? "SEQ_2_SEQ_LM" : "CAUSAL_LM"));
		break;
	case ADAPTER_DELTA:
		r |= json_object_set_new(o, "base_model_name_or_path", string_or_null(base));
		r |= json_object_set_new(o, "format", json_string(DELTA_FORMAT));
		r |= json_object_set_new(o, "method", json_string(method->name));
		r |= json_object_set_new(o, "version", json_integer(DELTA_VERSION));
		break;
	default:
		break;
	}
	return r == 0 ? 0 : -ENOMEM;
}

int adapter_config_write(struct buf *out, const struct method_config *m,
	const struct model_config *c, const char *base, struct errmsg *err)
{
	const struct peft_method *method = peft_method_find(m->method);
	json_auto_t *o = json_object();
	if (!o) {
		return -ENOMEM;
	}
	int r = method_config_check(m, err);
	if (r == 0) {
		base = m->base_model_name_or_path ? m->base_model_name_or_path : base;
		r = set_common(o, method, base, peft_kind(method, m), c && c->is_encoder_decoder);
	}
	r = r ? r : method->config_write(o, m, c);
	return r ? r : append_value(out, o, 0);
}
