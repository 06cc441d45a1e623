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
#include "proto/jobspec.h"
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

static int check_message(const ProtobufCMessage *msg, const char *in, struct errmsg *err);

/* What a list holds: texts, numbers, or the entries of a map. */
static int check_list(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f,
	const char *in, struct errmsg *err)
{
	enum { MAX_ITEMS = 1024 };
	char what[160];
	size_t n;
	const uint8_t *list;
	memcpy(&n, (const uint8_t *)msg + f->quantifier_offset, sizeof(n));
	memcpy(&list, (const uint8_t *)msg + f->offset, sizeof(list));
	snprintf(what, sizeof(what), "%s%s.", in, f->name);
	if (n > MAX_ITEMS) {
		return errmsg_set(err, STATUS_INVALID, "%s%s: %zu items, at most %d are allowed", in,
			f->name, n, MAX_ITEMS);
	}
	int r = 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
			r = check_message(((ProtobufCMessage *const *)(const void *)list)[i], what, err);
		} else if (f->type == PROTOBUF_C_TYPE_BYTES) {
			r = check_value(f, list + i * sizeof(ProtobufCBinaryData), in, err);
		}
	}
	return r;
}

/* Checks the form of what is there. */
static int check_message(const ProtobufCMessage *msg, const char *in, struct errmsg *err)
{
	char below[160];
	if (msg->n_unknown_fields > 0) {
		return errmsg_set(err, STATUS_INVALID,
			"%sfield number %u is not known to this daemon; is the client newer?", in,
			msg->unknown_fields[0].tag);
	}
	for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		const uint8_t *at = (const uint8_t *)msg + f->offset;
		int r = 0;
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			r = check_list(msg, f, in, err);
		} else if (!jobspec_has(msg, f)) {
			continue;
		} else if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
			snprintf(below, sizeof(below), "%s%s.", in, f->name);
			r = check_message(*(ProtobufCMessage *const *)(const void *)at, below, err);
		} else {
			r = check_value(f, at, in, err);
		}
		if (r != 0) {
			return r;
		}
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
		r = proto_name(&m->name, "the job's name", &s->name, err);
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

/* Digest of what the plan depends on: not the seed, which a sweep may have many of. */
static int make_key(const Peftd__V1__JobSpec *m, uint8_t ret[32])
{
	Peftd__V1__JobSpec nameless = *m;
	Peftd__V1__TrainSpec seedless = *m->train;
	nameless.has_name = nameless.has_priority = false;
	nameless.train = &seedless;
	seedless.has_seed = false;
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
	int r = check_message(&m->base, "", err);
	r = r ? r : jobspec_complete(&m->base, err);
	if (r != 0) {
		return r;
	}
	struct spec s = {0};
	r = take_names(m, &s, err);
	r = r ? r : make_key(m, s.key);
	r = r ? r : pack_message(m, &s.packed);
	if (r != 0) {
		spec_deinit(&s);
		return r;
	}
	*ret = s;
	return 0;
}
