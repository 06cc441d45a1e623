#include "client/spec.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

/* Words that a field takes. The daemon has the last word; known here, they are refused with the
 * line they stand on. */
static const struct {
	const char *message, *field;
	const char *words[4];
} choices[] = {
	{"JobSpec", "priority", {"low", "normal", "high"}},
	{"TrainSpec", "overlong", {"drop", "truncate", "raise"}},
	{"TrainSpec", "lr_scheduler_type", {"constant", "linear", "cosine"}},
	{"TrainSpec", "dtype", {"bf16", "f32"}},
	{"TrainSpec", "data_order", {"shuffled", "sequential"}},
};

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

static int check_choice(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
	const char *text, const char *path, struct errmsg *err)
{
	for (size_t i = 0; i < ARRAY_LEN(choices); i++) {
		if (strcmp(choices[i].message, d->short_name) != 0 ||
			strcmp(choices[i].field, f->name) != 0) {
			continue;
		}
		_cleanup_(buf_deinit) struct buf list = {0};
		for (size_t k = 0; k < ARRAY_LEN(choices[i].words) && choices[i].words[k]; k++) {
			if (strcmp(text, choices[i].words[k]) == 0) {
				return 0;
			}
			if (buf_appendf(&list, "%s%s", k > 0 ? ", " : "", choices[i].words[k]) < 0) {
				return -ENOMEM;
			}
		}
		return !buf_cstr(&list) ? -ENOMEM : errmsg_set(err, STATUS_INVALID,
			"'%s' is '%s', which is none of: %s", path, text, (char *)list.data);
	}
	return 0;
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

void spec_clear(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		size_t *n = quantifier(msg, f);
		ProtobufCBinaryData **items = member(msg, f);
		for (size_t i = 0; i < *n; i++) {
			free((*items)[i].data);
		}
		free(*items);
		*items = NULL;
		*n = 0;
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

static int append(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *text,
	enum spec_form form, const char *path, struct errmsg *err)
{
	size_t *n = quantifier(msg, f);
	ProtobufCBinaryData **items = member(msg, f), *grown, item;
	int r = set_bytes(&item, text, form, path, err);
	if (r != 0) {
		return r;
	}
	grown = realloc_array(*items, *n + 1, sizeof(*grown));
	if (!grown) {
		free(item.data);
		return -ENOMEM;
	}
	grown[(*n)++] = item;
	*items = grown;
	return 0;
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
	switch (f->type) {
	case PROTOBUF_C_TYPE_MESSAGE:
		return errmsg_set(err, STATUS_INVALID, "'%s' holds settings of its own, as in %s: {%s: …}",
			path, path, ((const ProtobufCMessageDescriptor *)f->descriptor)->fields[0].name);
	case PROTOBUF_C_TYPE_BYTES:
		r = check_choice(msg->descriptor, f, text, path, err);
		if (r != 0 || f->label == PROTOBUF_C_LABEL_REPEATED) {
			return r != 0 ? r : append(msg, f, text, form, path, err);
		}
		r = set_bytes(&bytes, text, form, path, err);
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
		return 0;
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
		*dot = '.';
		key = dot + 1;
		msg = spec_section(msg, f);
		if (!msg) {
			return -ENOMEM;
		}
	}
	return f->label == PROTOBUF_C_LABEL_REPEATED ? assign_list(msg, f, value, path, err)
		: spec_set(msg, f, value, SPEC_ANY, path, err);
}

/* ---- defaults ---------------------------------------------------------------------------- */

static int fill_field(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	protobuf_c_boolean *has = quantifier(msg, f);
	if (*has || !f->default_value) {
		return 0;
	}
	if (f->type == PROTOBUF_C_TYPE_BYTES) {
		const ProtobufCBinaryData *fallback = f->default_value;
		char *copy = strndup((const char *)fallback->data, fallback->len);
		if (!copy) {
			return -ENOMEM;
		}
		free_bytes(member(msg, f), f);
		*(ProtobufCBinaryData *)member(msg, f) =
			(ProtobufCBinaryData){fallback->len, (uint8_t *)copy};
	} else {
		size_t size = f->type == PROTOBUF_C_TYPE_UINT32 ? 4 : f->type == PROTOBUF_C_TYPE_BOOL ?
			sizeof(protobuf_c_boolean) : 8;
		memcpy(member(msg, f), f->default_value, size);
	}
	*has = 1;
	return 0;
}

static int fill_message(ProtobufCMessage *msg)
{
	for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		bool scalar = f->label != PROTOBUF_C_LABEL_REPEATED && f->type != PROTOBUF_C_TYPE_MESSAGE;
		int r = scalar ? fill_field(msg, f) : 0;
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

int spec_fill_defaults(Peftd__V1__JobSpec *spec)
{
	int r = fill_message(&spec->base);
	for (unsigned i = 0; i < spec->base.descriptor->n_fields && r == 0; i++) {
		const ProtobufCFieldDescriptor *f = &spec->base.descriptor->fields[i];
		if (f->type != PROTOBUF_C_TYPE_MESSAGE) {
			continue;
		}
		/* Of the sections that belong to one method each, only the method's own. */
		ProtobufCMessage **sub = member(&spec->base, f);
		bool wanted = *sub || strcmp(f->name, "train") == 0 || proto_equal(&spec->method, f->name);
		if (wanted) {
			ProtobufCMessage *section = spec_section(&spec->base, f);
			r = section ? fill_message(section) : -ENOMEM;
		}
	}
	if (r < 0) {
		return r;
	}
	/* Two defaults that job.proto can only tell in words. */
	Peftd__V1__TrainSpec *train = spec->train;
	if (!train->has_max_steps && !train->has_num_train_epochs) {
		train->has_num_train_epochs = true;
		train->num_train_epochs = 1;
	}
	if (spec->lora && spec->lora->n_target_modules == 0) {
		r = append(&spec->lora->base, spec_field(spec->lora->base.descriptor, "target_modules"),
			"all-linear", SPEC_TEXT, "lora.target_modules", NULL);
	}
	return r;
}
