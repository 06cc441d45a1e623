#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/adapter.h"
#include "client/jsonw.h"
#include "client/prompts.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { CREDIT = 16 };

/* What has come of a prompt. */
struct text {
	struct buf all;
	uint32_t prompt_tokens, new_tokens;
	bool stopped;
};

/* A request: prompts that follow each other and have the same adapter. */
struct group {
	const struct prompts *prompts;
	size_t first, n;
	const char *adapter; /* NULL: none */
	struct text texts[PROMPTS_MAX];
	double seconds, switch_seconds;
	bool was_here;
};

struct generate_args {
	const char *model, *adapter, *dtype, *tmpl, *file;
	struct opt_u64 step, max_new_tokens, seed, top_k;
	struct opt_double temperature, top_p, penalty;
	struct texts prompts, stops;
	bool chat;
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

static bool alone(const struct group *g)
{
	return g->prompts->n == 1;
}

static int take(struct ctl *ctl, struct group *g, const Peftd__V1__GenerateReply *r)
{
	g->seconds = r->has_seconds ? r->seconds : g->seconds;
	g->switch_seconds = r->has_switch_seconds ? r->switch_seconds : g->switch_seconds;
	g->was_here = g->was_here || (r->has_adapter_was_here && r->adapter_was_here);
	size_t i = r->has_index ? r->index : 0;
	if ((!r->has_index && !alone(g)) || i >= g->n) {
		return 0;
	}
	struct text *t = &g->texts[i];
	t->prompt_tokens = r->has_prompt_tokens ? r->prompt_tokens : t->prompt_tokens;
	t->new_tokens = r->has_new_tokens ? r->new_tokens : t->new_tokens;
	t->stopped = t->stopped || (r->has_finish_reason && proto_equal(&r->finish_reason, "stop"));
	return ctl->json || !alone(g) ? buf_append(&t->all, r->text.data, r->text.len)
		: print_text(ctl, &r->text);
}

static void print_json(const struct group *g, size_t i)
{
	const struct text *t = &g->texts[i];
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	if (!alone(g)) {
		jsonw_key(&j, "index");
		jsonw_u64(&j, g->first + i);
	}
	jsonw_key(&j, "text");
	jsonw_text(&j, t->all.data, t->all.len);
	jsonw_key(&j, "prompt_tokens");
	jsonw_u64(&j, t->prompt_tokens);
	jsonw_key(&j, "new_tokens");
	jsonw_u64(&j, t->new_tokens);
	jsonw_key(&j, "finish_reason");
	jsonw_string(&j, t->stopped ? "stop" : "length");
	jsonw_key(&j, "seconds");
	jsonw_double(&j, g->seconds);
	if (g->adapter) {
		jsonw_key(&j, "adapter");
		jsonw_string(&j, g->adapter);
		jsonw_key(&j, "switch_seconds");
		jsonw_double(&j, g->switch_seconds);
		jsonw_key(&j, "adapter_was_here");
		jsonw_bool(&j, g->was_here);
	}
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static int print_end(struct ctl *ctl, const struct group *g)
{
	int r = 0;
	for (size_t i = 0; i < g->n && r == 0; i++) {
		const struct buf *text = &g->texts[i].all;
		if (ctl->json) {
			print_json(g, i);
			continue;
		}
		if (!alone(g)) {
			printf("[%zu] ", g->first + i + 1);
			r = print_text(ctl, &(ProtobufCBinaryData){text->len, text->data});
		}
		puts("");
	}
	if (g->adapter && !ctl->json) {
		ctl_note(ctl, "adapter %s %s, in place after %.1f ms", g->adapter,
			g->was_here ? "was in memory" : "was fetched", g->switch_seconds * 1e3);
	}
	fflush(stdout);
	return r;
}

static int receive(struct ctl *ctl, struct client *c, const Peftd__V1__Request *req,
	struct group *g, struct errmsg *err)
{
	struct call *call = NULL;
	int r = client_start(c, req, NULL, 0, 0, &call, err);
	for (uint32_t taken = 1; r == 0 && !call_finished(call); taken++) {
		struct answer a = {0};
		r = client_next(c, call, -1, &a, err);
		if (r == 0 && a.reply->what_case == PEFTD__V1__REPLY__WHAT_GENERATE) {
			r = take(ctl, g, a.reply->generate);
		}
		answer_deinit(&a);
		if (r == 0 && taken % CREDIT == 0) {
			client_credit(c, call, CREDIT);
		}
	}
	client_end(c, call);
	return r;
}

static int ask(struct ctl *ctl, Peftd__V1__GenerateRequest *m, struct group *g)
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
	req.generate = m;
	struct errmsg err = {0};
	int r = receive(ctl, c, &req, g, &err);
	r = r ? r : print_end(ctl, g);
	return r == 0 ? EXIT_DONE : ctl_fail(ctl, r, &err);
}

static int ask_group(struct ctl *ctl, const struct generate_args *o, struct group *g)
{
	Peftd__V1__AdapterRef ref = PEFTD__V1__ADAPTER_REF__INIT;
	Peftd__V1__GenerateRequest m = PEFTD__V1__GENERATE_REQUEST__INIT;
	ProtobufCBinaryData prompts[PROMPTS_MAX], stops[STOPS_MAX];
	_cleanup_(source_deinit) struct source folder = {0};
	for (size_t i = 0; i < g->n; i++) {
		const struct prompt *p = &g->prompts->items[g->first + i];
		prompts[i] = (ProtobufCBinaryData){p->len, (uint8_t *)p->text};
	}
	for (size_t i = 0; i < o->stops.n; i++) {
		stops[i] = proto_bytes(o->stops.items[i]);
	}
	m.model = proto_bytes(o->model);
	m.prompt = prompts;
	m.n_prompt = g->n;
	m.stop = stops;
	m.n_stop = o->stops.n;
	m.has_max_new_tokens = m.has_temperature = m.has_chat = m.has_seed = m.has_dtype = true;
	m.max_new_tokens = (uint32_t)o->max_new_tokens.value;
	m.temperature = o->temperature.value;
	m.has_top_k = o->top_k.given;
	m.top_k = (uint32_t)o->top_k.value;
	m.has_top_p = o->top_p.given;
	m.top_p = o->top_p.value;
	m.has_repetition_penalty = o->penalty.given;
	m.repetition_penalty = o->penalty.value;
	m.chat = o->chat;
	m.seed = o->seed.value;
	m.dtype = proto_bytes(o->dtype);
	m.has_chat_template = o->tmpl != NULL;
	m.chat_template = proto_bytes(o->tmpl);
	if (g->adapter) {
		int status = adapter_ref(ctl, g->adapter, &o->step, &ref, &folder);
		if (status != 0) {
			return status;
		}
		m.adapter = &ref;
	}
	return ask(ctl, &m, g);
}

static const char *adapter_of(const struct generate_args *o, const struct prompt *p)
{
	return p->bare ? NULL : p->adapter ? p->adapter : o->adapter;
}

static bool same_adapter(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : !a && !b;
}

/* All prompts, in their order: those with the same adapter together, as far as a request goes. */
static int ask_all(struct ctl *ctl, const struct generate_args *o, const struct prompts *prompts)
{
	int status = EXIT_DONE;
	for (size_t i = 0; i < prompts->n && status == EXIT_DONE;) {
		_cleanup_(freep) struct group *g = calloc(1, sizeof(*g));
		if (!g) {
			return ctl_fail(ctl, -ENOMEM, NULL);
		}
		size_t bytes = prompts->items[i].len;
		*g = (struct group){.prompts = prompts, .first = i, .n = 1,
			.adapter = adapter_of(o, &prompts->items[i])};
		while (i + g->n < prompts->n && g->n < PROMPTS_MAX) {
			const struct prompt *next = &prompts->items[i + g->n];
			bytes += next->len;
			if (bytes > PROMPTS_BYTES_MAX || !same_adapter(g->adapter, adapter_of(o, next))) {
				break;
			}
			g->n++;
		}
		status = ask_group(ctl, o, g);
		for (size_t k = 0; k < g->n; k++) {
			buf_deinit(&g->texts[k].all);
		}
		i += g->n;
	}
	return ctl_finish(ctl, status);
}

/* The prompt as given, or all of standard input. */
static int read_prompt(struct ctl *ctl, const char *operand, struct prompts *ret)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	int r = 0;
	if (strcmp(operand, "-") != 0) {
		r = buf_append(&b, operand, strlen(operand));
	} else {
		size_t n = 1;
		while (r == 0 && n > 0 && b.len <= PROMPTS_BYTES_MAX) {
			char chunk[4096];
			n = fread(chunk, 1, sizeof(chunk), stdin);
			r = buf_append(&b, chunk, n);
		}
	}
	r = r < 0 ? r : prompts_add(ret, b.data ? (const char *)b.data : "", b.len);
	return r < 0 ? ctl_fail(ctl, r, NULL) : 0;
}

static int gather(struct ctl *ctl, const struct generate_args *o, const struct texts *operands,
	struct prompts *ret)
{
	struct errmsg err = {0};
	int status = operands->n > 0 ? read_prompt(ctl, operands->items[0], ret) : 0;
	for (size_t i = 0; status == 0 && i < o->prompts.n; i++) {
		status = read_prompt(ctl, o->prompts.items[i], ret);
	}
	if (status == 0 && o->file) {
		int r = prompts_read(ret, o->file, &err);
		status = r != 0 ? ctl_fail(ctl, r, &err) : 0;
	}
	if (status != 0) {
		return status;
	}
	if (ret->n == 0) {
		return ctl_usage(ctl, "something is missing: peftctl generate --model M PROMPT (or --prompt, "
			"or --prompts FILE)");
	}
	for (size_t i = 0; i < ret->n; i++) {
		if (ret->items[i].len > PROMPTS_BYTES_MAX) {
			return ctl_usage(ctl, "the prompt is longer than %d bytes", PROMPTS_BYTES_MAX);
		}
	}
	return 0;
}

static int check(struct ctl *ctl, const struct generate_args *o)
{
	if (!o->model) {
		return ctl_usage(ctl, "which model? give --model NAME");
	}
	if (o->temperature.value < 0) {
		return ctl_usage(ctl, "--temperature %g: 0 or more", o->temperature.value);
	}
	if (o->max_new_tokens.value < 1) {
		return ctl_usage(ctl, "--max-new-tokens 0: at least 1");
	}
	if (!args_dtype(o->dtype)) {
		return ctl_usage(ctl, "--dtype %s: f32 or bf16", o->dtype);
	}
	if (o->top_p.given && !(o->top_p.value > 0 && o->top_p.value <= 1)) {
		return ctl_usage(ctl, "--top-p %g: above 0, and at most 1", o->top_p.value);
	}
	if (o->penalty.given && !(o->penalty.value > 0)) {
		return ctl_usage(ctl, "--repetition-penalty %g: above 0", o->penalty.value);
	}
	if (o->temperature.value == 0 && (o->top_k.given || o->top_p.given)) {
		return ctl_usage(ctl, "--top-k and --top-p go with a --temperature above 0; at 0 the "
			"likeliest token is taken");
	}
	if (o->stops.n > STOPS_MAX) {
		return ctl_usage(ctl, "--stop: at most %d", STOPS_MAX);
	}
	return o->step.given && !o->adapter ? ctl_usage(ctl, "--step goes with --adapter JOB") : 0;
}

static void args_deinit(struct generate_args *o)
{
	texts_deinit(&o->prompts);
	texts_deinit(&o->stops);
}

int cmd_generate(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(args_deinit) struct generate_args o = {
		.dtype = "f32", .max_new_tokens = {false, 128}, .seed = {false, 42}};
	const struct opt opts[] = {
		{"model", 'm', OPT_TEXT, "NAME", "the base model", &o.model},
		{"adapter", 'a', OPT_TEXT, "JOB|DIR", "with this adapter; JOB@N is --step N", &o.adapter},
		{"step", 0, OPT_U64, "N", "the job's checkpoint of this step (default: the last)", &o.step},
		{"prompt", 'p', OPT_TEXTS, "TEXT", "one more prompt; may be repeated", &o.prompts},
		{"prompts", 0, OPT_TEXT, "FILE", "prompts as JSON Lines: {\"prompt\": …, \"adapter\": …}",
			&o.file},
		{"max-new-tokens", 0, OPT_U32, "N", "at most this many (default 128)", &o.max_new_tokens},
		{"temperature", 0, OPT_DOUBLE, "T", "0, the default, takes the likeliest token",
			&o.temperature},
		{"top-k", 0, OPT_U32, "K", "only from the K likeliest tokens", &o.top_k},
		{"top-p", 0, OPT_DOUBLE, "P", "only from the likeliest that together reach P", &o.top_p},
		{"repetition-penalty", 0, OPT_DOUBLE, "R", "above 1: against tokens that came before",
			&o.penalty},
		{"stop", 0, OPT_TEXTS, "TEXT", "ends an answer before this text; may be repeated", &o.stops},
		{"seed", 0, OPT_U64, "N", "of the choice at other temperatures (default 42)", &o.seed},
		{"chat", 0, OPT_FLAG, NULL, "a prompt is a user's turn in the model's chat template",
			&o.chat},
		{"dtype", 0, OPT_TEXT, "TYPE", "f32 or bf16 (default f32)", &o.dtype},
		{"chat-template", 0, OPT_TEXT, "NAME", "a built-in template, in place of the model's own",
			&o.tmpl},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(prompts_deinit) struct prompts prompts = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 0, 1, &operands, &status) != 0) {
		return status;
	}
	status = check(ctl, &o);
	status = status ? status : gather(ctl, &o, &operands, &prompts);
	return status ? status : ask_all(ctl, &o, &prompts);
}
