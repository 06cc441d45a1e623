/*
 * Job specs, by reflection: a setting that is added to job.proto is completed, checked for form and
 * made part of the spec's key here without a line of code. What its values mean is checked by the
 * planner, which is the engine's.
 */

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/util.h"

enum { SPEC_MAX = 16 * 1024 };

static int check_value(
	const ProtobufCFieldDescriptor *f, const uint8_t *at, const char *in, struct errmsg *err)
{
	char what[160];
	snprintf(what, sizeof(what), "%s%s", in, f->name);
	if (f->type == PROTOBUF_C_TYPE_DOUBLE) {
		double v;
		memcpy(&v, at, sizeof(v));
		if (!isfinite(v)) {
			return errmsg_set(err, STATUS_INVALID, "%s: not a finite number", what);
		}
	} else if (f->type == PROTOBUF_C_TYPE_BYTES) {
		ProtobufCBinaryData b;
		_cleanup_(freep) char *text = NULL;
		memcpy(&b, at, sizeof(b));
		if (b.len > 4096) {
			return errmsg_set(err, STATUS_INVALID, "%s: longer than 4096 bytes", what);
		}
		return proto_str(&b, what, &text, err);
	}
	return 0;
}

/* Sets every optional field that has a default, and checks the form of those that are there. */
static int complete(ProtobufCMessage *msg, const char *in, struct errmsg *err)
{
	if (msg->n_unknown_fields > 0) {
		return errmsg_set(err, STATUS_INVALID,
			"%sfield number %u is not known to this daemon; is the client newer?", in,
			msg->unknown_fields[0].tag);
	}
	for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		uint8_t *at = (uint8_t *)msg + f->offset;
		int r = 0;
		if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
			continue;
		}
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			size_t n;
			ProtobufCBinaryData *list;
			memcpy(&n, (uint8_t *)msg + f->quantifier_offset, sizeof(n));
			memcpy(&list, at, sizeof(list));
			for (size_t k = 0; f->type == PROTOBUF_C_TYPE_BYTES && k < n && r == 0; k++) {
				r = check_value(f, (const uint8_t *)&list[k], in, err);
			}
		} else {
			protobuf_c_boolean *has = (void *)((uint8_t *)msg + f->quantifier_offset);
			if (!*has && f->default_value) {
				*has = true; /* the value itself was put there when the message was unpacked */
			}
			r = *has ? check_value(f, at, in, err) : 0;
		}
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int add_messages(Peftd__V1__JobSpec *spec)
{
	/* malloc's, as all of an unpacked message: proto_free() takes them along. */
	if (!spec->lora && proto_equal(&spec->method, "lora")) {
		spec->lora = malloc(sizeof(*spec->lora));
		if (!spec->lora) {
			return -ENOMEM;
		}
		peftd__v1__lora_spec__init(spec->lora);
	}
	if (!spec->train) {
		spec->train = malloc(sizeof(*spec->train));
		if (!spec->train) {
			return -ENOMEM;
		}
		peftd__v1__train_spec__init(spec->train);
	}
	if (!spec->train->has_max_steps && !spec->train->has_num_train_epochs) {
		set_value(spec->train, num_train_epochs, 1);
	}
	if (spec->lora && spec->lora->n_target_modules == 0) {
		ProtobufCBinaryData *all = malloc(sizeof(*all));
		if (!all) {
			return -ENOMEM;
		}
		*all = proto_bytes_dup("all-linear");
		if (!all->data) {
			free(all);
			return -ENOMEM;
		}
		spec->lora->n_target_modules = 1;
		spec->lora->target_modules = all;
	}
	return 0;
}

static int take_names(const Peftd__V1__JobSpec *m, struct spec *s, struct errmsg *err)
{
	if (!m->has_model || m->model.len == 0) {
		return errmsg_set(err, STATUS_INVALID, "model: missing; it names the model to tune");
	}
	if (!m->has_dataset || m->dataset.len == 0) {
		return errmsg_set(
			err, STATUS_INVALID, "dataset: missing; it names the dataset to train on");
	}
	int r = proto_name(&m->model, "model", &s->model, err);
	r = r ? r : proto_name(&m->dataset, "dataset", &s->dataset, err);
	if (r == 0 && m->has_name && m->name.len > 0) {
		r = proto_name(&m->name, "name", &s->name, err);
	}
	if (r == 0 && m->has_eval_dataset && m->eval_dataset.len > 0) {
		r = proto_name(&m->eval_dataset, "eval_dataset", &s->eval_dataset, err);
	}
	if (r != 0) {
		return r;
	}
	static const char *const priorities[] = {"low", "normal", "high"};
	for (int i = 0; i < 3; i++) {
		if (proto_equal(&m->priority, priorities[i])) {
			s->priority = i - 1;
			return 0;
		}
	}
	return errmsg_set(err, STATUS_INVALID, "priority: %.*s; it is low, normal or high",
		(int)m->priority.len, (const char *)m->priority.data);
}

/* Digest of what the plan depends on. */
static int make_key(const Peftd__V1__JobSpec *m, uint8_t ret[32])
{
	Peftd__V1__JobSpec nameless = *m;
	nameless.has_name = nameless.has_priority = false;
	struct packed p;
	int r = pack_message(&nameless, &p);
	if (r == 0) {
		crypto_generichash(ret, 32, p.data, p.len, NULL, 0);
		packed_deinit(&p);
	}
	return r;
}

int convert_spec(const void *data, size_t len, struct spec *ret, struct errmsg *err)
{
	_cleanup_(proto_freep) void *msg =
		proto_unpack(&peftd__v1__job_spec__descriptor, data, len, SPEC_MAX, err);
	if (!msg) {
		return STATUS_INVALID;
	}
	Peftd__V1__JobSpec *m = msg;
	int r = complete(&m->base, "", err);
	r = r ? r : add_messages(m);
	r = r || !m->lora ? r : complete(&m->lora->base, "lora.", err);
	r = r ? r : complete(&m->train->base, "train.", err);
	if (r != 0) {
		return r;
	}
	struct spec s = {0};
	r = take_names(m, &s, err);
	r = r ? r : make_key(m, s.key);
	r = r ? r : pack_message(m, &s.packed);
	if (r != 0) {
		struct request holder = {.spec = s};
		request_deinit(&holder);
		return r;
	}
	*ret = s;
	return 0;
}
