#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/adapter.h"
#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	CREDIT = 16,
	PROMPT_MAX = 48 * 1024,
};

/* What has come, for --json, which prints it at the end. */
struct text {
	struct buf all;
	Peftd__V1__GenerateReply last; /* its numbers alone */
	bool stopped;
};

static int print_text(struct ctl *ctl, const ProtobufCBinaryData *t)
{
	if (t->len == 0) {
		return 0;
	}
	if (!ctl->term.out_tty) {
		fwrite(t->data, 1, t->len, stdout);
	} else {
		_cleanup_(buf_deinit) struct buf b = {0};
		int r = term_escape(&b, t->data, t->len, TERM_KEEP_LAYOUT);
		if (r < 0) {
			return r;
		}
		fwrite(b.data, 1, b.len, stdout);
	}
	fflush(stdout);
	return 0;
}

static int take(struct ctl *ctl, struct text *t, const Peftd__V1__GenerateReply *g)
{
	if (g->has_prompt_tokens) {
		t->last.prompt_tokens = g->prompt_tokens;
	}
	if (g->has_new_tokens) {
		t->last.new_tokens = g->new_tokens;
	}
	if (g->has_seconds) {
		t->last.seconds = g->seconds;
	}
	t->stopped = t->stopped || (g->has_finish_reason && proto_equal(&g->finish_reason, "stop"));
	return ctl->json ? buf_append(&t->all, g->text.data, g->text.len) : print_text(ctl, &g->text);
}

static void print_end(struct ctl *ctl, const struct text *t)
{
	if (!ctl->json) {
		puts("");
		return;
	}
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	jsonw_key(&j, "text");
	jsonw_text(&j, t->all.data, t->all.len);
	jsonw_key(&j, "prompt_tokens");
	jsonw_u64(&j, t->last.prompt_tokens);
	jsonw_key(&j, "new_tokens");
	jsonw_u64(&j, t->last.new_tokens);
	jsonw_key(&j, "finish_reason");
	jsonw_string(&j, t->stopped ? "stop" : "length");
	jsonw_key(&j, "seconds");
	jsonw_double(&j, t->last.seconds);
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static int generate(struct ctl *ctl, struct client *c, const Peftd__V1__Request *req,
	struct text *t, struct errmsg *err)
{
	struct call *call = NULL;
	int r = client_start(c, req, NULL, 0, 0, &call, err);
	for (uint32_t taken = 1; r == 0 && !call_finished(call); taken++) {
		struct answer a = {0};
		r = client_next(c, call, -1, &a, err);
		if (r == 0 && a.reply->what_case == PEFTD__V1__REPLY__WHAT_GENERATE) {
			r = take(ctl, t, a.reply->generate);
		}
		answer_deinit(&a);
		if (r == 0 && taken % CREDIT == 0) {
			client_credit(c, call, CREDIT);
		}
	}
	client_end(c, call);
	return r;
}

static int ask(struct ctl *ctl, Peftd__V1__GenerateRequest *g)
{
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_GENERATE;
	req.generate = g;
	struct errmsg err = {0};
	struct text t = {.last = PEFTD__V1__GENERATE_REPLY__INIT};
	int r = generate(ctl, c, &req, &t, &err);
	if (r == 0) {
		print_end(ctl, &t);
	}
	buf_deinit(&t.all);
	return ctl_finish(ctl, r == 0 ? EXIT_DONE : ctl_fail(ctl, r, &err));
}

/* The prompt as given, or all of standard input. */
static int read_prompt(struct ctl *ctl, const char *operand, struct buf *ret)
{
	int r = 0;
	if (strcmp(operand, "-") != 0) {
		r = buf_append(ret, operand, strlen(operand));
	} else {
		size_t n = 1;
		while (r == 0 && n > 0 && ret->len <= PROMPT_MAX) {
			char chunk[4096];
			n = fread(chunk, 1, sizeof(chunk), stdin);
			r = buf_append(ret, chunk, n);
		}
	}
	if (r < 0) {
		return ctl_fail(ctl, r, NULL);
	}
	if (ret->len > PROMPT_MAX) {
		return ctl_usage(ctl, "the prompt is longer than %d bytes", PROMPT_MAX);
	}
	return 0;
}

int cmd_generate(struct ctl *ctl, int argc, char **argv)
{
	const char *model = NULL, *adapter = NULL, *dtype = "f32", *tmpl = NULL;
	struct opt_u64 step = {0}, max_new_tokens = {false, 128}, seed = {false, 42};
	struct opt_double temperature = {0};
	bool chat = false;
	const struct opt opts[] = {
		{"model", 'm', OPT_TEXT, "NAME", "the base model", &model},
		{"adapter", 'a', OPT_TEXT, "JOB|DIR", "with this adapter", &adapter},
		{"step", 0, OPT_U64, "N", "the job's checkpoint of this step (default: the last)", &step},
		{"max-new-tokens", 0, OPT_U32, "N", "at most this many (default 128)", &max_new_tokens},
		{"temperature", 0, OPT_DOUBLE, "T", "0, the default, takes the likeliest token",
			&temperature},
		{"seed", 0, OPT_U64, "N", "of the choice at other temperatures (default 42)", &seed},
		{"chat", 0, OPT_FLAG, NULL, "the prompt is a user's turn in the model's chat template",
			&chat},
		{"dtype", 0, OPT_TEXT, "TYPE", "f32 or bf16 (default f32)", &dtype},
		{"chat-template", 0, OPT_TEXT, "NAME", "a built-in template, in place of the model's own",
			&tmpl},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(source_deinit) struct source folder = {0};
	_cleanup_(buf_deinit) struct buf prompt = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 1, 1, &operands, &status) != 0) {
		return status;
	}
	if (!model) {
		return ctl_usage(ctl, "which model? give --model NAME");
	}
	if (temperature.value < 0) {
		return ctl_usage(ctl, "--temperature %g: 0 or more", temperature.value);
	}
	if (max_new_tokens.value < 1) {
		return ctl_usage(ctl, "--max-new-tokens 0: at least 1");
	}
	if (!args_dtype(dtype)) {
		return ctl_usage(ctl, "--dtype %s: f32 or bf16", dtype);
	}
	if (step.given && !adapter) {
		return ctl_usage(ctl, "--step goes with --adapter JOB");
	}
	status = read_prompt(ctl, operands.items[0], &prompt);
	if (status != 0) {
		return status;
	}
	Peftd__V1__AdapterRef ref = PEFTD__V1__ADAPTER_REF__INIT;
	Peftd__V1__GenerateRequest g = PEFTD__V1__GENERATE_REQUEST__INIT;
	g.model = proto_bytes(model);
	g.prompt = (ProtobufCBinaryData){prompt.len, prompt.data};
	g.has_max_new_tokens = g.has_temperature = g.has_chat = g.has_seed = g.has_dtype = true;
	g.max_new_tokens = (uint32_t)max_new_tokens.value;
	g.temperature = temperature.value;
	g.chat = chat;
	g.seed = seed.value;
	g.dtype = proto_bytes(dtype);
	g.has_chat_template = tmpl != NULL;
	g.chat_template = proto_bytes(tmpl);
	if (adapter) {
		status = adapter_ref(ctl, adapter, &step, &ref, &folder);
		g.adapter = &ref;
	}
	return status == 0 ? ask(ctl, &g) : status;
}
