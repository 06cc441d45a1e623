#include "client/spec.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/jobspec.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

/* Words that a field takes. The daemon has the last word; known here, they are refused with the
 * line they stand on. */
static const struct {
	const char *message, *field;
	const char *words[7]; /* "pissa_niter_#": with a number in the place of # */
} choices[] = {
	{"JobSpec", "priority", {"low", "normal", "high"}},
	{"TrainSpec", "overlong", {"drop", "truncate", "raise"}},
	{"TrainSpec", "lr_scheduler_type", {"constant", "linear", "cosine"}},
	{"TrainSpec", "dtype", {"bf16", "f32"}},
	{"TrainSpec", "data_order", {"shuffled", "sequential"}},
	{"LoraSpec", "bias", {"none", "all", "lora_only"}},
	{"LoraSpec", "init_lora_weights",
		{"true", "false", "gaussian", "pissa", "pissa_niter_#", "olora"}},
	{"BottleneckSpec", "config", {"houlsby", "pfeiffer", "parallel"}},
	{"BottleneckSpec", "init_weights", {"bert", "mam_adapter"}},
	{"PromptTuningSpec", "prompt_tuning_init", {"RANDOM", "TEXT", "SAMPLE_VOCAB"}},
	{"PTuningSpec", "encoder_reparameterization_type", {"MLP", "LSTM"}},
};

DEFINE_CLEANUP(ProtobufCMessage *, proto_free);

/* ---- scalars ----------------------------------------------------------------------------- */

static bool one_of(const char *text, const char *const *words, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(text, words[i]) == 0) {
			return true;
		}
	}
	return false;
}

static int bool_of(const char *s)
{
	static const char *const yes[] = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On",
		"ON"};
	static const char *const no[] = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off",
		"OFF"};
	return one_of(s, yes, ARRAY_LEN(yes)) ? 1 : one_of(s, no, ARRAY_LEN(no)) ? 0 : -1;
}

static const char *skip_digits(const char *s)
{
	while (*s >= '0' && *s <= '9') {
		s++;
	}
	return s;
}

/* [-+]?digits, or with a fraction and an exponent. */
static enum spec_form number_form(const char *s)
{
	s += *s == '-' || *s == '+';
	const char *whole = s;
	s = skip_digits(s);
	size_t digits = (size_t)(s - whole);
	if (digits > 0 && *s == '\0') {
		return SPEC_INT;
	}
	if (*s == '.') {
		const char *fraction = ++s;
		s = skip_digits(s);
		digits += (size_t)(s - fraction);
	}
	if (digits == 0) {
		return SPEC_TEXT;
	}
	if (*s == 'e' || *s == 'E') {
		s++;
		s += *s == '-' || *s == '+';
		const char *exponent = s;
		s = skip_digits(s);
		if (s == exponent) {
			return SPEC_TEXT;
		}
	}
	return *s == '\0' ? SPEC_FLOAT : SPEC_TEXT;
}

enum spec_form spec_form(const char *text)
{
	static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
	static const char *const specials[] = {".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF"};
	if (one_of(text, nulls, ARRAY_LEN(nulls))) {
		return SPEC_NULL;
	}
	if (bool_of(text) >= 0) {
		return SPEC_BOOL;
	}
	const char *unsigned_text = text + (*text == '-' || *text == '+');
	if (one_of(unsigned_text, specials, ARRAY_LEN(specials))) {
		return SPEC_SPECIAL_FLOAT;
	}
	return number_form(text);
}

static int set_unsigned(void *p, const ProtobufCFieldDescriptor *f, const char *text,
	enum spec_form form, const char *path, struct errmsg *err)
{
	uint64_t max = f->type == PROTOBUF_C_TYPE_UINT32 ? UINT32_MAX : UINT64_MAX;
	if (form == SPEC_ANY) {
		form = spec_form(text);
	}
	if (form != SPEC_INT) {
		return errmsg_set(err, STATUS_INVALID, "'%s' must be a whole number, not %s%s", path,
			form == SPEC_TEXT ? "the text " : "", text[0] ? text : "''");
	}
	const char *digits = text + (*text == '+' || *text == '-');
	if (*text == '-' && strspn(digits, "0") != strlen(digits)) {
		return errmsg_set(err, STATUS_INVALID, "'%s' must be 0 or more, not %s", path, text);
	}
	if (digits[0] == '0' && digits[1] != '\0') {
		/* Octal to YAML 1.1, decimal to most people. */
		return errmsg_set(err, STATUS_INVALID, "'%s' is written %s; leave out the leading zero",
			path, text);
	}
	errno = 0;
	unsigned long long v = strtoull(digits, NULL, 10);
	if (errno != 0 || v > max) {
		return errmsg_set(err, STATUS_INVALID, "'%s' must be at most %llu, not %s", path,
			(unsigned long long)max, text);
	}
	if (f->type == PROTOBUF_C_TYPE_UINT32) {
		*(uint32_t *)p = (uint32_t)v;
	} else {
		*(uint64_t *)p = v;
	}
	return 0;
}

static int set_double(void *p, const char *text, enum spec_form form, const char *path,
	struct errmsg *err)
{
	if (form == SPEC_ANY) {
		form = spec_form(text);
	}
	if (form != SPEC_INT && form != SPEC_FLOAT && form != SPEC_SPECIAL_FLOAT) {
		return errmsg_set(err, STATUS_INVALID, "'%s' must be a number, not %s%s", path,
			form == SPEC_TEXT ? "the text " : "", text[0] ? text : "''");
	}
	double v = form == SPEC_SPECIAL_FLOAT ? INFINITY : strtod(text, NULL);
	if (!isfinite(v)) {
		return errmsg_set(err, STATUS_INVALID, "'%s' must be a finite number, not %s", path, text);
	}
	*(double *)p = v;
	return 0;
}

static int set_bool(void *p, const char *text, enum spec_form form, const char *path,
	struct errmsg *err)
{
	if ((form != SPEC_BOOL && form != SPEC_ANY) || bool_of(text) < 0) {
		return errmsg_set(err, STATUS_INVALID, "'%s' must be true or false, not %s", path,
			text[0] ? text : "''");
	}
	*(protobuf_c_boolean *)p = bool_of(text);
	return 0;
}

static bool is_choice(const char *text, const char *word)
{
	size_t n = strcspn(word, "#");
	if (word[n] == '\0') {
		return strcmp(text, word) == 0;
	}
	return strncmp(text, word, n) == 0 && text[n] >= '1' && *skip_digits(text + n) == '\0';
}

static const char *const *words_of(const ProtobufCMessageDescriptor *d,
	const ProtobufCFieldDescriptor *f)
{
	for (size_t i = 0; i < ARRAY_LEN(choices); i++) {
		if (strcmp(choices[i].message, d->short_name) == 0 &&
			strcmp(choices[i].field, f->name) == 0) {
			return choices[i].words;
		}
	}
	return NULL;
}

static int check_choice(const char *const *words, const char *text, const char *path,
	struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf list = {0};
	for (size_t k = 0; words[k]; k++) {
		size_t n = strcspn(words[k], "#");
		if (is_choice(text, words[k])) {
			return 0;
		}
		if (buf_appendf(&list, "%s%.*s%s", k > 0 ? ", " : "", (int)n, words[k],
				words[k][n] ? "N" : "") < 0) {
			return -ENOMEM;
		}
	}
	return !buf_cstr(&list) ? -ENOMEM : errmsg_set(err, STATUS_INVALID,
		"'%s' is '%s', which is none of: %s", path, text, (char *)list.data);
}

static int set_bytes(ProtobufCBinaryData *p, const char *text, enum spec_form form,
	const char *path, struct errmsg *err)
{
	if (form != SPEC_TEXT && form != SPEC_ANY) {
		return errmsg_set(err, STATUS_INVALID,
			"'%s' must be text, not %s; if it is meant as text, put it in quotes", path, text);
	}
	char *copy = strdup(text);
	if (!copy) {
		return -ENOMEM;
	}
	*p = (ProtobufCBinaryData){strlen(copy), (uint8_t *)copy};
	return 0;
}

/* A text, one of the field's words if it has such. Where true and false are among them, as for
 * init_lora_weights, YAML's way of writing them will do. */
static int set_text(ProtobufCBinaryData *p, const ProtobufCMessageDescriptor *d,
	const ProtobufCFieldDescriptor *f, const char *text, enum spec_form form, const char *path,
	struct errmsg *err)
{
	const char *const *words = words_of(d, f);
	if (words && (form == SPEC_BOOL || form == SPEC_ANY) && bool_of(text) >= 0 &&
		is_choice("true", words[0])) {
		text = bool_of(text) ? "true" : "false";
		form = SPEC_TEXT;
	}
	int r = words ? check_choice(words, text, path, err) : 0;
	return r ? r : set_bytes(p, text, form, path, err);
}

/* ---- fields ------------------------------------------------------------------------------ */

Peftd__V1__JobSpec *spec_new(void)
{
	Peftd__V1__JobSpec *spec = malloc(sizeof(*spec));
	if (spec) {
		peftd__v1__job_spec__init(spec);
	}
	return spec;
}

const ProtobufCFieldDescriptor *spec_field(const ProtobufCMessageDescriptor *d, const char *name)
{
	return protobuf_c_message_descriptor_get_field_by_name(d, name);
}

static void *member(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	return (uint8_t *)msg + f->offset;
}

static void *quantifier(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	return (uint8_t *)msg + f->quantifier_offset;
}

static void free_bytes(ProtobufCBinaryData *b, const ProtobufCFieldDescriptor *f)
{
	const ProtobufCBinaryData *fallback = f->default_value;
	if (!fallback || b->data != fallback->data) {
		free(b->data);
	}
	*b = (ProtobufCBinaryData){0};
}

static void clear_list(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	size_t *n = quantifier(msg, f);
	void **list = member(msg, f);
	for (size_t i = 0; i < *n; i++) {
		if (f->type == PROTOBUF_C_TYPE_BYTES) {
			free(((ProtobufCBinaryData *)*list)[i].data);
		} else if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
			proto_free(((ProtobufCMessage **)*list)[i]);
		}
	}
	free(*list);
	*list = NULL;
	*n = 0;
}

void spec_clear(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		clear_list(msg, f);
	} else if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
		ProtobufCMessage **sub = member(msg, f);
		proto_free(*sub);
		*sub = NULL;
	} else {
		if (f->type == PROTOBUF_C_TYPE_BYTES) {
			free_bytes(member(msg, f), f);
		}
		*(protobuf_c_boolean *)quantifier(msg, f) = 0;
	}
}

ProtobufCMessage *spec_section(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	ProtobufCMessage **sub = member(msg, f);
	if (!*sub) {
		const ProtobufCMessageDescriptor *d = f->descriptor;
		*sub = malloc(d->sizeof_message);
		if (*sub) {
			protobuf_c_message_init(d, *sub);
		}
	}
	return *sub;
}

/* Room for one more item of a list, whose place it returns; NULL without memory. */
static void *grow(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, size_t size)
{
	size_t *n = quantifier(msg, f);
	void **list = member(msg, f);
	uint8_t *grown = realloc_array(*list, *n + 1, size);
	if (grown) {
		*list = grown;
	}
	return grown ? grown + *n * size : NULL;
}

static int append(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *text,
	enum spec_form form, const char *path, struct errmsg *err)
{
	size_t *n = quantifier(msg, f);
	int r;
	if (f->type == PROTOBUF_C_TYPE_UINT32) {
		uint32_t v;
		r = set_unsigned(&v, f, text, form, path, err);
		uint32_t *at = r == 0 ? grow(msg, f, sizeof(v)) : NULL;
		if (at) {
			*at = v;
			(*n)++;
		}
		return r == 0 && !at ? -ENOMEM : r;
	}
	ProtobufCBinaryData item;
	r = set_text(&item, msg->descriptor, f, text, form, path, err);
	if (r != 0) {
		return r;
	}
	ProtobufCBinaryData *at = grow(msg, f, sizeof(item));
	if (!at) {
		free(item.data);
		return -ENOMEM;
	}
	*at = item;
	(*n)++;
	return 0;
}

int spec_map_add(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *key,
	const char *text, enum spec_form form, const char *path, struct errmsg *err)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;
	const ProtobufCFieldDescriptor *value = spec_field(d, "value");
	ProtobufCMessage ***list = member(msg, f);
	size_t *n = quantifier(msg, f);
	if (key[0] == '\0') {
		return errmsg_set(err, STATUS_INVALID, "'%s' has an empty key", path);
	}
	for (size_t i = 0; i < *n; i++) {
		if (proto_equal(member((*list)[i], spec_field(d, "key")), key)) {
			return errmsg_set(err, STATUS_INVALID, "'%s' has '%.64s' twice", path, key);
		}
	}
	_cleanup_(proto_freep) ProtobufCMessage *entry = malloc(d->sizeof_message);
	_cleanup_(buf_deinit) struct buf full = {0};
	if (!entry || buf_appendf(&full, "%s.%s", path, key) < 0 || !buf_cstr(&full)) {
		free(steal_ptr(entry));
		return -ENOMEM;
	}
	protobuf_c_message_init(d, entry);
	int r = set_bytes(member(entry, spec_field(d, "key")), key, SPEC_TEXT, path, err);
	if (r == 0 && value->type == PROTOBUF_C_TYPE_DOUBLE) {
		r = set_double(member(entry, value), text, form, (char *)full.data, err);
	} else if (r == 0) {
		r = set_unsigned(member(entry, value), value, text, form, (char *)full.data, err);
	}
	ProtobufCMessage **at = r == 0 ? grow(msg, f, sizeof(*at)) : NULL;
	if (!at) {
		return r != 0 ? r : -ENOMEM;
	}
	*at = steal_ptr(entry);
	(*n)++;
	return 0;
}

/* A word where a mapping belongs. */
static int not_settings(const ProtobufCFieldDescriptor *f, const char *path, struct errmsg *err)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;
	if (d->n_fields == 0) {
		return errmsg_set(err, STATUS_INVALID, "'%s' has no settings; leave it out", path);
	}
	if (jobspec_is_map(f)) {
		return errmsg_set(err, STATUS_INVALID, "'%s' is a mapping, as in {q_proj: 8}", path);
	}
	return errmsg_set(err, STATUS_INVALID, "'%s' holds settings of its own, as in %s: {%s: …}",
		path, path, d->fields[0].name);
}

int spec_set(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *text,
	enum spec_form form, const char *path, struct errmsg *err)
{
	if (form == SPEC_NULL || (form == SPEC_ANY && spec_form(text) == SPEC_NULL)) {
		spec_clear(msg, f);
		return 0;
	}
	int r;
	ProtobufCBinaryData bytes;
	if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
		return not_settings(f, path, err);
	}
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		return append(msg, f, text, form, path, err);
	}
	switch (f->type) {
	case PROTOBUF_C_TYPE_BYTES:
		r = set_text(&bytes, msg->descriptor, f, text, form, path, err);
		if (r == 0) {
			free_bytes(member(msg, f), f);
			*(ProtobufCBinaryData *)member(msg, f) = bytes;
		}
		break;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_UINT64:
		r = set_unsigned(member(msg, f), f, text, form, path, err);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		r = set_double(member(msg, f), text, form, path, err);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		r = set_bool(member(msg, f), text, form, path, err);
		break;
	default:
		assert(!"a field of job.proto has a type that no job file can give");
		return -EINVAL;
	}
	if (r == 0) {
		*(protobuf_c_boolean *)quantifier(msg, f) = 1;
	}
	return r;
}

/* ---- keys -------------------------------------------------------------------------------- */

/* Where else the key would be known: "train." for max_steps at the top, "" for model in a
 * section. */
static const char *other_section(const ProtobufCMessageDescriptor *d, const char *key,
	struct buf *path)
{
	const ProtobufCMessageDescriptor *root = &peftd__v1__job_spec__descriptor;
	if (d != root && spec_field(root, key)) {
		return key;
	}
	for (unsigned i = 0; i < root->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &root->fields[i];
		if (f->type == PROTOBUF_C_TYPE_MESSAGE && f->descriptor != d &&
			spec_field(f->descriptor, key) && buf_appendf(path, "%s.%s", f->name, key) == 0) {
			return buf_cstr(path);
		}
	}
	return NULL;
}

static const char *nearest_key(const ProtobufCMessageDescriptor *d, const char *key)
{
	const char *nearest = NULL;
	unsigned best = strlen(key) < 5 ? 2 : 4;
	for (unsigned i = 0; i < d->n_fields; i++) {
		unsigned distance = edit_distance(key, d->fields[i].name);
		if (distance < best) {
			best = distance;
			nearest = d->fields[i].name;
		}
	}
	return nearest;
}

int spec_unknown_key(const ProtobufCMessageDescriptor *d, const char *path, const char *key,
	struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf known = {0}, elsewhere = {0};
	for (unsigned i = 0; i < d->n_fields; i++) {
		if (buf_appendf(&known, "%s%s", i > 0 ? ", " : "", d->fields[i].name) < 0) {
			return -ENOMEM;
		}
	}
	const char *meant = other_section(d, key, &elsewhere);
	if (!meant) {
		meant = nearest_key(d, key);
	}
	if (!buf_cstr(&known)) {
		return -ENOMEM;
	}
	return errmsg_set(err, STATUS_INVALID, "unknown key '%s%.64s'%s%s%s known keys: %s", path, key,
		meant ? "; did you mean '" : ";", meant ? meant : "", meant ? "'?" : "",
		(char *)known.data);
}

/* ---- the command line -------------------------------------------------------------------- */

static char *trim(char *s)
{
	s += strspn(s, " \t");
	size_t n = strlen(s);
	while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t')) {
		s[--n] = '\0';
	}
	return s;
}

int spec_check_empty(const char *path, struct errmsg *err)
{
	return strcmp(path, "lora.target_modules") != 0 ? 0
		: errmsg_set(err, STATUS_INVALID, "'%s' is an empty list, which would train nothing; name "
			"modules, or leave it out for all linear layers", path);
}

static int assign_list(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, char *text,
	const char *path, struct errmsg *err)
{
	text = trim(text);
	size_t n = strlen(text);
	spec_clear(msg, f);
	if (n >= 2 && text[0] == '[' && text[n - 1] == ']') {
		text[n - 1] = '\0';
		text = trim(text + 1);
	} else if (spec_form(text) == SPEC_NULL) {
		return 0;
	}
	if (*text == '\0') {
		return spec_check_empty(path, err);
	}
	char *save = NULL;
	for (char *item = strtok_r(text, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
		item = trim(item);
		if (*item == '\0') {
			return errmsg_set(err, STATUS_INVALID, "'%s' has an empty item", path);
		}
		int r = spec_set(msg, f, item, SPEC_ANY, path, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* "{q_proj: 8, v_proj: 4}"; the colon before an item's number is its last. */
static int assign_map(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, char *text,
	const char *path, struct errmsg *err)
{
	text = trim(text);
	size_t n = strlen(text);
	spec_clear(msg, f);
	if (spec_form(text) == SPEC_NULL) {
		return 0;
	}
	if (n < 2 || text[0] != '{' || text[n - 1] != '}') {
		return not_settings(f, path, err);
	}
	text[n - 1] = '\0';
	text = trim(text + 1);
	char *save = NULL;
	for (char *item = strtok_r(text, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
		char *colon = strrchr(item, ':');
		if (!colon) {
			return not_settings(f, path, err);
		}
		*colon = '\0';
		int r = spec_map_add(msg, f, trim(item), trim(colon + 1), SPEC_ANY, path, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* "rank_pattern.KEY=8": all that follows the map's name is the key, dots and all. */
static int assign_entry(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *key,
	const char *value, const char *path, struct errmsg *err)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;
	ProtobufCMessage **list = *(ProtobufCMessage ***)member(msg, f);
	size_t *n = quantifier(msg, f);
	for (size_t i = 0; i < *n; i++) {
		if (proto_equal(member(list[i], spec_field(d, "key")), key)) {
			proto_free(list[i]);
			memmove(&list[i], &list[i + 1], (--*n - i) * sizeof(*list));
			break;
		}
	}
	return spec_form(value) == SPEC_NULL ? 0
		: spec_map_add(msg, f, key, value, SPEC_ANY, path, err);
}

/* Nothing behind the equals sign: more likely an empty variable of a script than the default. Of a
 * text that may be missing it says that it is. */
static int check_given(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
	const char *path, const char *value, struct errmsg *err)
{
	bool optional_text = f->type == PROTOBUF_C_TYPE_BYTES && f->label == PROTOBUF_C_LABEL_OPTIONAL &&
		!f->default_value && !words_of(d, f);
	return optional_text || value[strspn(value, " \t")] != '\0' ? 0
		: errmsg_set(err, STATUS_INVALID, "'%s' has an empty value; null stands for the default",
			path);
}

int spec_assign(Peftd__V1__JobSpec *spec, const char *assignment, struct errmsg *err)
{
	const char *equals = strchr(assignment, '=');
	if (!equals || equals == assignment) {
		return errmsg_set(err, STATUS_INVALID,
			"'%.64s' is no KEY=VALUE, as in train.learning_rate=1e-4", assignment);
	}
	_cleanup_(freep) char *path = strndup(assignment, (size_t)(equals - assignment));
	_cleanup_(freep) char *value = strdup(equals + 1);
	if (!path || !value) {
		return -ENOMEM;
	}
	ProtobufCMessage *msg = &spec->base;
	const ProtobufCFieldDescriptor *f;
	char *key = path;
	for (;;) {
		char *dot = strchr(key, '.');
		if (dot) {
			*dot = '\0';
		}
		f = spec_field(msg->descriptor, key);
		if (!f) {
			_cleanup_(freep) char *before = strndup(assignment, (size_t)(key - path));
			return before ? spec_unknown_key(msg->descriptor, before, key, err) : -ENOMEM;
		}
		if (!dot) {
			break;
		}
		if (f->type != PROTOBUF_C_TYPE_MESSAGE) {
			return errmsg_set(err, STATUS_INVALID, "'%s' has no settings below it", path);
		}
		if (jobspec_is_map(f)) {
			return assign_entry(msg, f, dot + 1, value, path, err);
		}
		*dot = '.';
		key = dot + 1;
		msg = spec_section(msg, f);
		if (!msg) {
			return -ENOMEM;
		}
	}
	int r = check_given(msg->descriptor, f, path, value, err);
	return r ? r : jobspec_is_map(f) ? assign_map(msg, f, value, path, err)
		: f->label == PROTOBUF_C_LABEL_REPEATED ? assign_list(msg, f, value, path, err)
		: spec_set(msg, f, value, SPEC_ANY, path, err);
}
