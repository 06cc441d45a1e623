#include "proto/jobspec.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

static void *member(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	return (uint8_t *)msg + f->offset;
}

static void *quantifier(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	return (uint8_t *)msg + f->quantifier_offset;
}

static const ProtobufCFieldDescriptor *field(const ProtobufCMessage *msg, const char *name)
{
	return protobuf_c_message_descriptor_get_field_by_name(msg->descriptor, name);
}

bool jobspec_is_map(const ProtobufCFieldDescriptor *f)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;
	return f->label == PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_MESSAGE &&
		d->n_fields == 2 && strcmp(d->fields[0].name, "key") == 0 &&
		strcmp(d->fields[1].name, "value") == 0;
}

bool jobspec_is_method(const ProtobufCFieldDescriptor *f)
{
	return f->label != PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_MESSAGE &&
		strcmp(f->name, "train") != 0;
}

bool jobspec_has(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		return *(const size_t *)quantifier(msg, f) > 0;
	}
	if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
		return *(ProtobufCMessage *const *)member(msg, f) != NULL;
	}
	return f->label == PROTOBUF_C_LABEL_REQUIRED ||
		*(const protobuf_c_boolean *)quantifier(msg, f) != 0;
}

/* ---- defaults ------------------------------------------------------------------------------ */

static void set_default(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	size_t size;
	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT32:
		size = sizeof(uint32_t);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		size = sizeof(protobuf_c_boolean);
		break;
	case PROTOBUF_C_TYPE_BYTES: /* its text stays where it is: proto_free() knows it by that */
		size = sizeof(ProtobufCBinaryData);
		break;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_DOUBLE:
		size = 8;
		break;
	default:
		assert(!"a field of job.proto has a type that no default is known for");
		return;
	}
	memcpy(member(msg, f), f->default_value, size);
	*(protobuf_c_boolean *)quantifier(msg, f) = 1;
}

static void set_defaults(ProtobufCMessage *msg)
{
	for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		if (f->label == PROTOBUF_C_LABEL_OPTIONAL && f->default_value && !jobspec_has(msg, f)) {
			set_default(msg, f);
		}
	}
}

static ProtobufCMessage *section(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
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

static int set_text(ProtobufCMessage *msg, const char *name, const char *text)
{
	const ProtobufCFieldDescriptor *f = field(msg, name);
	if (jobspec_has(msg, f)) {
		return 0;
	}
	ProtobufCBinaryData b = proto_bytes_dup(text);
	if (!b.data) {
		return -ENOMEM;
	}
	*(ProtobufCBinaryData *)member(msg, f) = b;
	*(protobuf_c_boolean *)quantifier(msg, f) = 1;
	return 0;
}

static void set_bool(ProtobufCMessage *msg, const char *name, bool v)
{
	const ProtobufCFieldDescriptor *f = field(msg, name);
	if (!jobspec_has(msg, f)) {
		*(protobuf_c_boolean *)member(msg, f) = v;
		*(protobuf_c_boolean *)quantifier(msg, f) = 1;
	}
}

static void set_double(ProtobufCMessage *msg, const char *name, double v)
{
	const ProtobufCFieldDescriptor *f = field(msg, name);
	if (!jobspec_has(msg, f)) {
		*(double *)member(msg, f) = v;
		*(protobuf_c_boolean *)quantifier(msg, f) = 1;
	}
}

static int complete_lora(ProtobufCMessage *lora)
{
	const ProtobufCFieldDescriptor *f = field(lora, "target_modules");
	if (jobspec_has(lora, f)) {
		return 0;
	}
	ProtobufCBinaryData *one = malloc(sizeof(*one));
	if (!one) {
		return -ENOMEM;
	}
	*one = proto_bytes_dup("all-linear");
	if (!one->data) {
		free(one);
		return -ENOMEM;
	}
	ProtobufCBinaryData **items = member(lora, f);
	free(*items);
	*items = one;
	*(size_t *)quantifier(lora, f) = 1;
	return 0;
}

/* DoubleSeqBnConfig, SeqBnConfig and ParBnConfig of adapters/configuration/adapter_config.py. */
static const struct preset {
	const char *name;
	bool mh_adapter, output_adapter, is_parallel, original_ln_before;
	double reduction_factor, scaling;
	const char *non_linearity, *init_weights;
} presets[] = {
	{"houlsby", true, true, false, false, 16, 1, "swish", "bert"},
	{"pfeiffer", false, true, false, true, 16, 1, "relu", "bert"},
	{"parallel", false, true, true, false, 2, 4, "relu", "mam_adapter"},
};

static int complete_bottleneck(ProtobufCMessage *m, struct errmsg *err)
{
	const ProtobufCBinaryData *name = member(m, field(m, "config"));
	const struct preset *p = NULL;
	for (size_t i = 0; i < ARRAY_LEN(presets) && !p; i++) {
		p = proto_equal(name, presets[i].name) ? &presets[i] : NULL;
	}
	if (!p) {
		return errmsg_set(err, STATUS_INVALID,
			"bottleneck.config: '%.*s' is none of: houlsby, pfeiffer, parallel",
			(int)min_i64((int64_t)name->len, 64), (const char *)name->data);
	}
	set_bool(m, "mh_adapter", p->mh_adapter);
	set_bool(m, "output_adapter", p->output_adapter);
	set_bool(m, "is_parallel", p->is_parallel);
	set_bool(m, "original_ln_before", p->original_ln_before);
	set_double(m, "reduction_factor", p->reduction_factor);
	set_double(m, "scaling", p->scaling);
	int r = set_text(m, "non_linearity", p->non_linearity);
	return r ? r : set_text(m, "init_weights", p->init_weights);
}

static int complete_train(ProtobufCMessage *train, struct errmsg *err)
{
	const ProtobufCFieldDescriptor *steps = field(train, "max_steps");
	if (jobspec_has(train, steps) && *(const uint32_t *)member(train, steps) == 0) {
		return errmsg_set(err, STATUS_INVALID, "train.max_steps: 0; it must be at least 1, or be left "
			"out for train.num_train_epochs to count");
	}
	if (!jobspec_has(train, field(train, "max_steps"))) {
		set_double(train, "num_train_epochs", 1);
	}
	return 0;
}

/* ---- the method ---------------------------------------------------------------------------- */

static int unknown_method(const ProtobufCMessage *spec, const ProtobufCBinaryData *method,
	struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf known = {0};
	_cleanup_(freep) char *given = NULL;
	int r = proto_str(method, "method", &given, err);
	if (r != 0) {
		return r;
	}
	const char *nearest = NULL;
	/* A third of its letters may be wrong: beyond that it is another word. */
	unsigned best = (unsigned)(strnlen(given, 7) + 2) / 3 + 1;
	for (unsigned i = 0; i < spec->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &spec->descriptor->fields[i];
		if (!jobspec_is_method(f)) {
			continue;
		}
		unsigned distance = edit_distance(given, f->name);
		if (distance < best) {
			best = distance;
			nearest = f->name;
		}
		if (buf_appendf(&known, "%s%s", known.len > 0 ? ", " : "", f->name) < 0) {
			return -ENOMEM;
		}
	}
	if (!buf_cstr(&known)) {
		return -ENOMEM;
	}
	return errmsg_set(err, STATUS_INVALID, "method: '%.64s' is none%s%s%s; methods: %s", given,
		nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "",
		(char *)known.data);
}

/* Of the sections that are not the method's, none may say anything; empty ones go. */
static int drop_other(ProtobufCMessage *spec, const ProtobufCFieldDescriptor *other,
	const char *method, struct errmsg *err)
{
	ProtobufCMessage **sub = member(spec, other);
	for (unsigned i = 0; i < (*sub)->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &(*sub)->descriptor->fields[i];
		if (jobspec_has(*sub, f)) {
			return errmsg_set(err, STATUS_INVALID,
				"'%s.%s' is a setting of method %s, but the job's method is %s; choose the other "
				"method, or leave its settings out (%s: null)", other->name, f->name, other->name,
				method, other->name);
		}
	}
	proto_free(*sub);
	*sub = NULL;
	return 0;
}

int jobspec_complete(ProtobufCMessage *spec, struct errmsg *err)
{
	set_defaults(spec);
	const ProtobufCBinaryData *method = member(spec, field(spec, "method"));
	const ProtobufCFieldDescriptor *chosen = NULL;
	for (unsigned i = 0; i < spec->descriptor->n_fields && !chosen; i++) {
		const ProtobufCFieldDescriptor *f = &spec->descriptor->fields[i];
		chosen = jobspec_is_method(f) && proto_equal(method, f->name) ? f : NULL;
	}
	if (!chosen) {
		return unknown_method(spec, method, err);
	}
	for (unsigned i = 0; i < spec->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &spec->descriptor->fields[i];
		if (jobspec_is_method(f) && f != chosen && jobspec_has(spec, f)) {
			int r = drop_other(spec, f, chosen->name, err);
			if (r != 0) {
				return r;
			}
		}
	}
	ProtobufCMessage *settings = section(spec, chosen);
	ProtobufCMessage *train = section(spec, field(spec, "train"));
	if (!settings || !train) {
		return -ENOMEM;
	}
	set_defaults(settings);
	set_defaults(train);
	int r = complete_train(train, err);
	if (r != 0) {
		return r;
	}
	return strcmp(chosen->name, "lora") == 0 ? complete_lora(settings)
		: strcmp(chosen->name, "bottleneck") == 0 ? complete_bottleneck(settings, err) : 0;
}
