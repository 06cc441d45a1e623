/* From the front: requests of clients, checked for form. */

#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/log.h"
#include "util/util.h"

static int take_body(const void *msg, struct request *r)
{
	return pack_message(msg, &r->body);
}

static int take_adapter(const Peftd__V1__AdapterRef *a, struct adapter_ref *ret, struct errmsg *err)
{
	if (!a || (!a->has_job && !a->uploaded)) {
		return 0;
	}
	if (a->has_job && a->uploaded) {
		return errmsg_set(
			err, STATUS_INVALID, "adapter: either a job's or an uploaded one, not both");
	}
	if (a->uploaded) {
		ret->from = ADAPTER_UPLOADED;
		return take_files(a->uploaded, "adapter", &ret->uploaded, err);
	}
	ret->from = ADAPTER_JOB;
	ret->job = a->job;
	ret->step = a->has_step ? a->step : 0;
	return 0;
}

static int take_member(const Peftd__V1__JobSpec *m, bool has_adapter, struct member *ret,
	struct errmsg *err)
{
	struct packed spec;
	int e = pack_message(m, &spec);
	if (e < 0) {
		return e;
	}
	e = convert_spec(spec.data, spec.len, &ret->spec, err);
	packed_deinit(&spec);
	if (e == 0 && !has_adapter && m->has_init_adapter && m->init_adapter.len > 0) {
		e = errmsg_set(
			err, STATUS_INVALID, "init_adapter: its folder must be uploaded and sent along");
	}
	return e;
}

static int take_submit(const Peftd__V1__SubmitRequest *m, struct request *r, struct errmsg *err)
{
	r->members = calloc_array(1, sizeof(*r->members));
	if (!r->members) {
		return -ENOMEM;
	}
	r->n_members = 1;
	r->hold = m->has_hold && m->hold;
	r->plan_only = m->has_plan_only && m->plan_only;
	int e = take_member(m->spec, m->init_adapter != NULL, &r->members[0], err);
	return e || !m->init_adapter ? e
								 : take_files(m->init_adapter, "init_adapter", &r->blob, err);
}

static int take_sweep(const Peftd__V1__SweepRequest *m, struct request *r, struct errmsg *err)
{
	size_t n = m->n_members;
	if (n == 0 || n > SWEEP_MAX) {
		return errmsg_set(
			err, STATUS_INVALID, "a sweep has 1 to %d jobs, not %zu", SWEEP_MAX, n);
	}
	r->members = calloc_array(n, sizeof(*r->members));
	if (!r->members) {
		return -ENOMEM;
	}
	r->sweep = true;
	r->hold = m->has_hold && m->hold;
	r->plan_only = m->has_plan_only && m->plan_only;
	for (size_t i = 0; i < n; i++) {
		struct member *to = &r->members[r->n_members++];
		const Peftd__V1__SweepMember *from = m->members[i];
		if (from->variant.len > 1024) {
			return errmsg_set(err, STATUS_INVALID, "variant: longer than 1024 bytes");
		}
		int e = proto_str(&from->variant, "variant", &to->variant, err);
		e = e ? e : take_member(from->spec, m->init_adapter != NULL, to, err);
		if (e != 0) {
			return e < 0 || !to->variant ? e : errmsg_prefix(err, e, "%s", to->variant);
		}
	}
	return m->init_adapter ? take_files(m->init_adapter, "init_adapter", &r->blob, err) : 0;
}

static int take_job_list(const Peftd__V1__JobListRequest *m, struct request *r, struct errmsg *err)
{
	r->state = m->has_state ? (int)m->state : -1;
	r->mine = m->has_mine && m->mine;
	r->of_sweep = m->sweep;
	if (r->state > JOB_CANCELLED) {
		return errmsg_set(err, STATUS_INVALID, "state: %d is none", r->state);
	}
	return 0;
}

static int take_control(
	const Peftd__V1__JobControlRequest *m, struct request *r, struct errmsg *err)
{
	r->job = m->job;
	r->action = (enum control_action)m->action;
	if ((unsigned)m->action > CONTROL_RETRY) {
		return errmsg_set(err, STATUS_INVALID, "action: %d is none", (int)m->action);
	}
	return 0;
}

static int take_watch(const Peftd__V1__WatchRequest *m, struct request *r, struct errmsg *err)
{
	r->job = m->job;
	r->after = m->after;
	r->credit = m->credit;
	r->follow = m->follow;
	if (m->metrics_only && m->logs_only) {
		return errmsg_set(err, STATUS_INVALID, "metrics_only and logs_only exclude each other");
	}
	r->kinds = m->metrics_only ? EVENT_METRICS | EVENT_EVAL
		: m->logs_only         ? EVENT_LOG | EVENT_STATE
							   : 0;
	return 0;
}

static int take_dataset_put(
	const Peftd__V1__DatasetPutRequest *m, struct request *r, struct errmsg *err)
{
	int e = proto_name(&m->name, "the dataset's name", &r->name, err);
	e = e ? e : take_files(m->blob, "blob", &r->blob, err);
	e = e ? e
		  : take_text(m->has_prompt_field, &m->prompt_field, "prompt_field", &r->prompt_field, err);
	return e ? e
			 : take_text(m->has_completion_field, &m->completion_field, "completion_field",
				   &r->completion_field, err);
}

static int take_model_add(
	const Peftd__V1__ModelAddRequest *m, struct request *r, struct errmsg *err)
{
	int e = proto_name(&m->name, "the model's name", &r->name, err);
	if (e == 0 && (m->path.len == 0 || m->path.len > 4096)) {
		e = errmsg_set(err, STATUS_INVALID, "path: %zu bytes; it has 1 to 4096", m->path.len);
	}
	return e ? e : proto_str(&m->path, "path", &r->path, err);
}

static int take_chunk(const Peftd__V1__UploadChunkRequest *m, struct request *r, struct errmsg *err)
{
	if (m->digest.len != DIGEST_SIZE) {
		return errmsg_set(
			err, STATUS_INVALID, "digest: %zu bytes, not %d", m->digest.len, DIGEST_SIZE);
	}
	memcpy(r->digest, m->digest.data, DIGEST_SIZE);
	r->offset = m->offset;
	return 0;
}

/* Texts of a request, each without NUL and well-formed. */
static int check_texts(const ProtobufCBinaryData *list, size_t n, const char *what, size_t most,
	size_t longest, struct errmsg *err)
{
	if (n > most) {
		return errmsg_set(
			err, STATUS_INVALID, "%s: %zu of them; at most %zu are allowed", what, n, most);
	}
	for (size_t i = 0; i < n; i++) {
		_cleanup_(freep) char *copy = NULL;
		if (list[i].len > longest) {
			return errmsg_set(err, STATUS_INVALID, "%s: %zu bytes, at most %zu are allowed", what,
				list[i].len, longest);
		}
		int e = proto_str(&list[i], what, &copy, err);
		if (e != 0) {
			return e;
		}
	}
	return 0;
}

static int check_stops(const ProtobufCBinaryData *list, size_t n, struct errmsg *err)
{
	for (size_t i = 0; i < n; i++) {
		if (list[i].len == 0) {
			return errmsg_set(err, STATUS_INVALID, "stop: an empty text; it would end every answer");
		}
	}
	return check_texts(list, n, "stop", STOPS_MAX, STOP_TEXT_MAX, err);
}

static int take_eval(const Peftd__V1__EvalRequest *m, struct request *r, struct errmsg *err)
{
	int e = proto_name(&m->model, "model", &r->model, err);
	e = e ? e : proto_name(&m->dataset, "dataset", &r->dataset, err);
	if (e == 0 && m->has_shots_dataset) {
		e = proto_name(&m->shots_dataset, "shots_dataset", &r->shots_dataset, err);
	}
	e = e ? e : take_adapter(m->adapter, &r->adapter, err);
	e = e ? e : check_stops(m->stop, m->n_stop, err);
	e = e ? e : check_texts(m->metrics, m->n_metrics, "metrics", 16, 64, err);
	return e ? e : take_body(m, r);
}

static int take_generate(const Peftd__V1__GenerateRequest *m, struct request *r, struct errmsg *err)
{
	size_t bytes = 0;
	for (size_t i = 0; i < m->n_prompt; i++) {
		bytes += m->prompt[i].len;
	}
	if (bytes > PROMPTS_BYTES_MAX) {
		return errmsg_set(err, STATUS_INVALID, "prompt: %zu bytes, at most 48 KiB are allowed", bytes);
	}
	if (m->n_prompt == 0) {
		return errmsg_set(err, STATUS_INVALID, "prompt: there is none; give at least one");
	}
	int e = proto_name(&m->model, "model", &r->model, err);
	e = e ? e : check_texts(m->prompt, m->n_prompt, "prompt", PROMPTS_MAX, PROMPTS_BYTES_MAX, err);
	e = e ? e : check_stops(m->stop, m->n_stop, err);
	e = e ? e : take_adapter(m->adapter, &r->adapter, err);
	return e ? e : take_body(m, r);
}

static int take_inspect(
	const Peftd__V1__DatasetInspectRequest *m, struct request *r, struct errmsg *err)
{
	int e = proto_name(&m->name, "the dataset's name", &r->name, err);
	e = e ? e : proto_name(&m->model, "model", &r->model, err);
	return e ? e : take_body(m, r);
}

static int take_fetch(const Peftd__V1__FetchRequest *m, struct request *r, struct errmsg *err)
{
	r->job = m->job;
	r->step = m->has_step ? m->step : 0;
	r->best = m->has_best && m->best;
	r->merge = m->has_merge && m->merge;
	if (r->best && r->step) {
		return errmsg_set(err, STATUS_INVALID, "step and best exclude each other");
	}
	return 0;
}

static int take_read(const Peftd__V1__ReadRequest *m, struct request *r)
{
	r->job = m->job;
	r->step = m->step;
	r->offset = m->offset;
	r->credit = m->credit;
	r->merge = m->has_merge && m->merge;
	return 0;
}

static int take_request(const Peftd__V1__Request *m, struct request *r, struct errmsg *err)
{
	switch (m->what_case) {
	case PEFTD__V1__REQUEST__WHAT_STATUS:
		r->kind = REQUEST_STATUS;
		return 0;
	case PEFTD__V1__REQUEST__WHAT_MODEL_ADD:
		r->kind = REQUEST_MODEL_ADD;
		return take_model_add(m->model_add, r, err);
	case PEFTD__V1__REQUEST__WHAT_MODEL_LIST:
		r->kind = REQUEST_MODEL_LIST;
		return 0;
	case PEFTD__V1__REQUEST__WHAT_MODEL_SHOW:
		r->kind = REQUEST_MODEL_SHOW;
		return proto_name(&m->model_show->name, "the model's name", &r->name, err);
	case PEFTD__V1__REQUEST__WHAT_MODEL_REMOVE:
		r->kind = REQUEST_MODEL_REMOVE;
		return proto_name(&m->model_remove->name, "the model's name", &r->name, err);
	case PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN:
		r->kind = REQUEST_UPLOAD_BEGIN;
		return take_files(m->upload_begin->blob, "blob", &r->blob, err);
	case PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK:
		r->kind = REQUEST_UPLOAD_CHUNK;
		return take_chunk(m->upload_chunk, r, err);
	case PEFTD__V1__REQUEST__WHAT_DATASET_PUT:
		r->kind = REQUEST_DATASET_PUT;
		return take_dataset_put(m->dataset_put, r, err);
	case PEFTD__V1__REQUEST__WHAT_DATASET_LIST:
		r->kind = REQUEST_DATASET_LIST;
		return 0;
	case PEFTD__V1__REQUEST__WHAT_DATASET_SHOW:
		r->kind = REQUEST_DATASET_SHOW;
		return proto_name(&m->dataset_show->name, "the dataset's name", &r->name, err);
	case PEFTD__V1__REQUEST__WHAT_DATASET_REMOVE:
		r->kind = REQUEST_DATASET_REMOVE;
		return proto_name(&m->dataset_remove->name, "the dataset's name", &r->name, err);
	case PEFTD__V1__REQUEST__WHAT_DATASET_INSPECT:
		r->kind = REQUEST_DATASET_INSPECT;
		return take_inspect(m->dataset_inspect, r, err);
	case PEFTD__V1__REQUEST__WHAT_SUBMIT:
		r->kind = REQUEST_SUBMIT;
		return take_submit(m->submit, r, err);
	case PEFTD__V1__REQUEST__WHAT_SWEEP:
		r->kind = REQUEST_SUBMIT;
		return take_sweep(m->sweep, r, err);
	case PEFTD__V1__REQUEST__WHAT_JOB_LIST:
		r->kind = REQUEST_JOB_LIST;
		return take_job_list(m->job_list, r, err);
	case PEFTD__V1__REQUEST__WHAT_JOB_SHOW:
		r->kind = REQUEST_JOB_SHOW;
		r->job = m->job_show->job;
		return 0;
	case PEFTD__V1__REQUEST__WHAT_JOB_CONTROL:
		r->kind = REQUEST_JOB_CONTROL;
		return take_control(m->job_control, r, err);
	case PEFTD__V1__REQUEST__WHAT_WATCH:
		r->kind = REQUEST_WATCH;
		return take_watch(m->watch, r, err);
	case PEFTD__V1__REQUEST__WHAT_FETCH:
		r->kind = REQUEST_FETCH;
		return take_fetch(m->fetch, r, err);
	case PEFTD__V1__REQUEST__WHAT_READ:
		r->kind = REQUEST_READ;
		return take_read(m->read, r);
	case PEFTD__V1__REQUEST__WHAT_EVAL:
		r->kind = REQUEST_EVAL;
		return take_eval(m->eval, r, err);
	case PEFTD__V1__REQUEST__WHAT_GENERATE:
		r->kind = REQUEST_GENERATE;
		return take_generate(m->generate, r, err);
	default: /* those that the front answers itself, and those of newer clients */
		return errmsg_set(err, STATUS_INVALID,
			"request number %d is not known to this daemon; is the client newer?",
			(int)m->what_case);
	}
}

/* 0 without a usable request id: there is nothing that an answer could go to. */
static int client_request(const Peftd__V1__ClientRequest *m, struct event *ret)
{
	struct request *r = &ret->request;
	if (m->request->id.len != REQUEST_ID_SIZE) {
		log_warning("front: session %" PRIu64 ": request id of %zu bytes, not %d; passed over",
			m->session, m->request->id.len, REQUEST_ID_SIZE);
		return 0;
	}
	*ret = (struct event){.kind = EV_REQUEST};
	r->session = m->session;
	r->uid = m->uid;
	memcpy(r->id, m->request->id.data, REQUEST_ID_SIZE);

	int e = take_request(m->request, r, &r->fault_text);
	if (e == 0 && r->kind != REQUEST_UPLOAD_CHUNK) {
		struct packed whole;
		e = pack_message(m->request, &whole);
		if (e == 0) {
			crypto_generichash(
				r->body_digest, sizeof(r->body_digest), whole.data, whole.len, NULL, 0);
			packed_deinit(&whole);
		}
	}
	if (e < 0) {
		event_deinit(ret);
		return e;
	}
	if (e > 0) {
		r->kind = REQUEST_BAD;
		r->fault = e;
	}
	return 1;
}

static int stream_event(struct event *ret, enum event_kind kind, uint64_t session,
	const ProtobufCBinaryData *id, uint32_t credit, struct errmsg *err)
{
	if (id->len != REQUEST_ID_SIZE) {
		log_warning("front: session %" PRIu64 ": stream id of %zu bytes, not %d; passed over",
			session, id->len, REQUEST_ID_SIZE);
		return 0;
	}
	*ret = (struct event){.kind = kind};
	ret->stream.session = session;
	ret->stream.credit = credit;
	memcpy(ret->stream.id, id->data, REQUEST_ID_SIZE);
	return 1;
}

static int front_message(const Peftd__V1__FrontToCore *m, struct event *ret, struct errmsg *err)
{
	switch (m->what_case) {
	case PEFTD__V1__FRONT_TO_CORE__WHAT_READY:
		*ret = (struct event){.kind = EV_FRONT_READY, .version = m->ready->version};
		return 1;
	case PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST:
		return client_request(m->request, ret);
	case PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END:
		*ret = (struct event){.kind = EV_SESSION_END};
		ret->stream.session = m->session_end->session;
		return 1;
	case PEFTD__V1__FRONT_TO_CORE__WHAT_CREDIT:
		return stream_event(
			ret, EV_STREAM_CREDIT, m->credit->session, &m->credit->stream, m->credit->credit, err);
	case PEFTD__V1__FRONT_TO_CORE__WHAT_STREAM_END:
		return stream_event(
			ret, EV_STREAM_END, m->stream_end->session, &m->stream_end->stream, 0, err);
	default:
		errmsg_set(err, STATUS_INTERNAL, "a message that says nothing");
		return -EPROTO;
	}
}

int convert_front_recv(struct link *l, struct event *ret, struct errmsg *err)
{
	_cleanup_(proto_freep) void *msg = NULL;
	const void *raw;
	size_t raw_len;
	/* A message that is passed over must not look like an empty socket. */
	for (;;) {
		int r = link_recv(l, &peftd__v1__front_to_core__descriptor, &msg, &raw, &raw_len, err);
		if (r <= 0) {
			return r;
		}
		r = front_message(msg, ret, err);
		if (r != 0) {
			if (r == 1) {
				ret->raw = raw;
				ret->raw_len = raw_len;
			}
			return r;
		}
		proto_free(msg);
		msg = NULL;
	}
}
