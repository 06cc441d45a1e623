#include "client/evaluation.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "client/adapter.h"
#include "util/cleanup.h"
#include "util/util.h"

struct evaluation evaluation_init(void)
{
	return (struct evaluation){.dtype = "f32", .max_length = {false, 1024}, .seed = {false, 42},
		.max_new_tokens = {false, 256}};
}

void evaluation_deinit(struct evaluation *e)
{
	texts_deinit(&e->metrics);
	texts_deinit(&e->stops);
}

int evaluation_check(struct ctl *ctl, const struct evaluation *o)
{
	if (!o->model || !o->dataset) {
		return ctl_usage(ctl, "eval needs --model NAME and --dataset NAME");
	}
	if (o->max_length.value < 1) {
		return ctl_usage(ctl, "--max-length 0: at least 1");
	}
	if (!args_dtype(o->dtype)) {
		return ctl_usage(ctl, "--dtype %s: f32 or bf16", o->dtype);
	}
	if (o->step.given && !o->adapter) {
		return ctl_usage(ctl, "--step goes with --adapter JOB");
	}
	if (o->shots_dataset && o->shots.value == 0) {
		return ctl_usage(ctl, "--shots-dataset goes with --shots K");
	}
	if (o->metrics.n == 0 && (o->stops.n > 0 || o->max_new_tokens.given)) {
		return ctl_usage(ctl, "--stop and --max-new-tokens go with --metric exact_match, last_number "
			"or rouge");
	}
	return o->stops.n > STOPS_MAX || o->metrics.n > 16 ? ctl_usage(ctl, "--stop: at most %d",
		STOPS_MAX) : 0;
}

int evaluation_ask(struct ctl *ctl, const struct evaluation *o, Peftd__V1__Reply **ret)
{
	_cleanup_(source_deinit) struct source folder = {0};
	ProtobufCBinaryData wanted[16], stops[STOPS_MAX];
	Peftd__V1__AdapterRef ref = PEFTD__V1__ADAPTER_REF__INIT;
	Peftd__V1__EvalRequest e = PEFTD__V1__EVAL_REQUEST__INIT;
	for (size_t i = 0; i < o->metrics.n; i++) {
		wanted[i] = proto_bytes(o->metrics.items[i]);
	}
	for (size_t i = 0; i < o->stops.n; i++) {
		stops[i] = proto_bytes(o->stops.items[i]);
	}
	e.model = proto_bytes(o->model);
	e.dataset = proto_bytes(o->dataset);
	e.has_max_length = e.has_dtype = e.has_train_on_prompt = true;
	e.max_length = (uint32_t)o->max_length.value;
	e.dtype = proto_bytes(o->dtype);
	e.train_on_prompt = o->train_on_prompt;
	e.has_chat_template = o->chat_template != NULL;
	e.chat_template = proto_bytes(o->chat_template);
	e.has_shots = o->shots.given;
	e.shots = (uint32_t)o->shots.value;
	e.has_shots_dataset = o->shots_dataset != NULL;
	e.shots_dataset = proto_bytes(o->shots_dataset);
	e.has_seed = e.has_limit = e.has_max_new_tokens = true;
	e.seed = o->seed.value;
	e.limit = o->limit.value;
	e.max_new_tokens = (uint32_t)o->max_new_tokens.value;
	e.metrics = wanted;
	e.n_metrics = o->metrics.n;
	e.stop = stops;
	e.n_stop = o->stops.n;
	if (o->adapter) {
		int refused = adapter_ref(ctl, o->adapter, &o->step, &ref, &folder);
		if (refused != 0) {
			return refused;
		}
		e.adapter = &ref;
	}
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_EVAL;
	req.eval = &e;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = ctl_call(ctl, &req, -1, &reply);
	status = status ? status : ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_EVAL);
	if (status == 0) {
		*ret = steal_ptr(reply);
	}
	return status;
}

/* What was asked for of the answers. */
static const struct metric {
	const char *name, *title;
	size_t has, at;
} metrics[EVALUATION_METRICS] = {
#define METRIC(name, title) {#name, title, offsetof(Peftd__V1__EvalReply, has_##name), \
	offsetof(Peftd__V1__EvalReply, name)}
	METRIC(exact_match, "exact match"),
	METRIC(last_number, "last number"),
	METRIC(rouge1, "ROUGE-1"),
	METRIC(rouge2, "ROUGE-2"),
	METRIC(rouge_l, "ROUGE-L"),
#undef METRIC
};

const char *evaluation_title(size_t i)
{
	return metrics[i].title;
}

double evaluation_metric(const Peftd__V1__EvalReply *r, size_t i)
{
	double v;
	memcpy(&v, (const char *)r + metrics[i].at, sizeof(v));
	return *(const protobuf_c_boolean *)((const char *)r + metrics[i].has) ? v : NAN;
}

void evaluation_json(struct jsonw *j, const Peftd__V1__EvalReply *e)
{
	jsonw_key(j, "loss");
	jsonw_double(j, e->has_loss ? e->loss : NAN);
	jsonw_key(j, "tokens");
	jsonw_u64(j, e->tokens);
	jsonw_key(j, "perplexity");
	jsonw_double(j, e->has_perplexity ? e->perplexity : NAN);
	if (e->has_shots && e->shots > 0) {
		jsonw_key(j, "shots");
		jsonw_u64(j, e->shots);
	}
	for (size_t i = 0; i < ARRAY_LEN(metrics); i++) {
		double v = evaluation_metric(e, i);
		if (!isnan(v)) {
			jsonw_key(j, metrics[i].name);
			jsonw_double(j, v);
		}
	}
	if (e->has_answers) {
		jsonw_key(j, "answers");
		jsonw_u64(j, e->answers);
		jsonw_key(j, "new_tokens");
		jsonw_u64(j, e->new_tokens);
	}
}
