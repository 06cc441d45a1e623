#include <math.h>
#include <stdio.h>

#include "client/adapter.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

static void print_eval(struct ctl *ctl, const Peftd__V1__EvalReply *e)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_open(&j, '{');
		jsonw_key(&j, "loss");
		jsonw_double(&j, e->has_loss ? e->loss : NAN);
		jsonw_key(&j, "tokens");
		jsonw_u64(&j, e->tokens);
		jsonw_key(&j, "perplexity");
		jsonw_double(&j, e->has_perplexity ? e->perplexity : NAN);
		jsonw_close(&j, '}');
		jsonw_print(&j, stdout);
	} else {
		printf("loss        %s\nperplexity  %s\ntokens      %llu, of %llu rows\n",
			format_figure(a, e->loss, 6), format_figure(b, e->perplexity, 6),
			(unsigned long long)e->tokens, (unsigned long long)e->rows);
		if (e->has_seconds) {
			printf("time        %s\n", format_duration(a, e->seconds));
		}
	}
	if (e->rows_overlong > 0) {
		ctl_note(ctl, "note: %llu rows are longer than --max-length and were left out",
			(unsigned long long)e->rows_overlong);
	}
}

static int ask(struct ctl *ctl, Peftd__V1__EvalRequest *e)
{
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_EVAL;
	req.eval = e;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = ctl_call(ctl, &req, -1, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_EVAL);
	}
	if (status == 0) {
		print_eval(ctl, reply->eval);
		status = ctl_finish(ctl, EXIT_DONE);
	}
	return status;
}

int cmd_eval(struct ctl *ctl, int argc, char **argv)
{
	const char *model = NULL, *dataset = NULL, *adapter = NULL, *dtype = "f32", *tmpl = NULL;
	struct opt_u64 step = {0}, max_length = {false, 1024};
	bool train_on_prompt = false;
	const struct opt opts[] = {
		{"model", 'm', OPT_TEXT, "NAME", "the base model", &model},
		{"dataset", 'd', OPT_TEXT, "NAME", "the dataset", &dataset},
		{"adapter", 'a', OPT_TEXT, "JOB|DIR", "with this adapter", &adapter},
		{"step", 0, OPT_U64, "N", "the job's checkpoint of this step (default: the last)", &step},
		{"max-length", 0, OPT_U32, "L", "longer rows are left out (default 1024)", &max_length},
		{"dtype", 0, OPT_TEXT, "TYPE", "f32 or bf16 (default f32)", &dtype},
		{"train-on-prompt", 0, OPT_FLAG, NULL, "count the prompts' tokens, too", &train_on_prompt},
		{"chat-template", 0, OPT_TEXT, "NAME", "a built-in template, in place of the model's own",
			&tmpl},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(source_deinit) struct source folder = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 0, 0, &operands, &status) != 0) {
		return status;
	}
	if (!model || !dataset) {
		return ctl_usage(ctl, "eval needs --model NAME and --dataset NAME");
	}
	if (max_length.value < 1) {
		return ctl_usage(ctl, "--max-length 0: at least 1");
	}
	if (!args_dtype(dtype)) {
		return ctl_usage(ctl, "--dtype %s: f32 or bf16", dtype);
	}
	if (step.given && !adapter) {
		return ctl_usage(ctl, "--step goes with --adapter JOB");
	}
	Peftd__V1__AdapterRef ref = PEFTD__V1__ADAPTER_REF__INIT;
	Peftd__V1__EvalRequest e = PEFTD__V1__EVAL_REQUEST__INIT;
	e.model = proto_bytes(model);
	e.dataset = proto_bytes(dataset);
	e.has_max_length = e.has_dtype = e.has_train_on_prompt = true;
	e.max_length = (uint32_t)max_length.value;
	e.dtype = proto_bytes(dtype);
	e.train_on_prompt = train_on_prompt;
	e.has_chat_template = tmpl != NULL;
	e.chat_template = proto_bytes(tmpl);
	if (adapter) {
		status = adapter_ref(ctl, adapter, &step, &ref, &folder);
		e.adapter = &ref;
	}
	return status == 0 ? ask(ctl, &e) : status;
}
