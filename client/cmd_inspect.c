#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { CREDIT = 16 };

/* A row as far as it has come; a long one comes in several messages. */
struct row {
	uint64_t number;
	struct buf ids, labels; /* of int32_t */
	struct buf words;       /* for people */
	struct buf fault;
	size_t trained;
	bool breaks; /* the last token ended a line */
};

static void row_deinit(struct row *r)
{
	buf_deinit(&r->ids);
	buf_deinit(&r->labels);
	buf_deinit(&r->words);
	buf_deinit(&r->fault);
}

static void row_clear(struct row *r)
{
	r->ids.len = r->labels.len = r->words.len = r->fault.len = r->trained = 0;
	r->breaks = false;
}

/* A token's text, marked when it is trained on. After a newline, shown as such, a line begins. */
static int add_word(struct ctl *ctl, struct row *row, const ProtobufCBinaryData *token,
	bool trained)
{
	const char *on = "", *off = "";
	if (trained) {
		on = ctl->term.colour ? "\033[1;32m" : "[";
		off = ctl->term.colour ? "\033[0m" : "]";
	}
	struct buf *w = &row->words;
	int r = w->len == 0 ? 0 : buf_appendf(w, "%s", row->breaks ? "\n  " : "|");
	r = r == 0 ? buf_appendf(w, "%s", on) : r;
	r = r == 0 ? term_escape(w, token->data, token->len, 0) : r;
	row->breaks = token->len > 0 && token->data[token->len - 1] == '\n';
	return r == 0 ? buf_appendf(w, "%s", off) : r;
}

static int add_part(struct ctl *ctl, struct row *row, const Peftd__V1__InspectRow *p,
	struct errmsg *err)
{
	if (p->n_label != p->n_input_id || (p->n_token > 0 && p->n_token != p->n_input_id)) {
		return errmsg_set(err, STATUS_INTERNAL,
			"the daemon sent %zu tokens and %zu labels for row %llu", p->n_input_id, p->n_label,
			(unsigned long long)p->row);
	}
	row->number = p->row;
	int r = 0;
	for (size_t i = 0; i < p->n_input_id && r == 0; i++) {
		bool trained = p->label[i] != -100;
		if (!ctl->json && p->n_token > 0) {
			r = add_word(ctl, row, &p->token[i], trained);
		}
		row->trained += trained;
	}
	if (r == 0) {
		r = buf_append(&row->ids, p->input_id, p->n_input_id * sizeof(int32_t));
	}
	if (r == 0) {
		r = buf_append(&row->labels, p->label, p->n_label * sizeof(int32_t));
	}
	/* Every part of a long row says it. */
	bool first = p->fault.len > 0 && row->fault.len == 0;
	return r == 0 && first ? buf_append(&row->fault, p->fault.data, p->fault.len) : r;
}

static void json_numbers(struct jsonw *j, const struct buf *b)
{
	jsonw_open(j, '[');
	for (size_t i = 0; i < b->len / sizeof(int32_t); i++) {
		int32_t v;
		memcpy(&v, b->data + i * sizeof(v), sizeof(v));
		jsonw_i64(j, v);
	}
	jsonw_close(j, ']');
}

static int print_row(struct ctl *ctl, struct row *row)
{
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_open(&j, '{');
		jsonw_key(&j, "row");
		jsonw_u64(&j, row->number);
		jsonw_key(&j, "input_ids");
		json_numbers(&j, &row->ids);
		jsonw_key(&j, "labels");
		json_numbers(&j, &row->labels);
		jsonw_close(&j, '}');
		return jsonw_print(&j, stdout);
	}
	if (!buf_cstr(&row->words)) {
		return -ENOMEM;
	}
	ProtobufCBinaryData fault = {row->fault.len, row->fault.data};
	_cleanup_(freep) char *fault_text = format_text(&fault);
	printf("row %llu: %zu tokens, %zu trained on%s%s\n  %s\n\n", (unsigned long long)row->number,
		row->ids.len / sizeof(int32_t), row->trained, row->fault.len > 0 ? "; " : "",
		fault_text ? fault_text : "", (char *)row->words.data);
	return 0;
}

static void print_summary(struct ctl *ctl, const Peftd__V1__InspectSummary *s)
{
	FILE *f = ctl->json ? stderr : stdout;
	if (ctl->json && ctl->quiet) {
		return;
	}
	fflush(stdout);
	fprintf(f, "%llu rows, %llu tokens, %llu trained on; the longest row has %llu tokens\n",
		(unsigned long long)s->rows, (unsigned long long)s->tokens,
		(unsigned long long)s->target_tokens, (unsigned long long)s->longest);
	fprintf(f, "%llu rows too long, %llu with nothing to train on, %llu whose prompt's tokens are "
		"no prefix\n", (unsigned long long)s->overlong, (unsigned long long)s->untrainable,
		(unsigned long long)s->misaligned);
	if (s->template_name.len > 0) {
		_cleanup_(freep) char *name = format_text(&s->template_name);
		fprintf(f, "chat template: %s\n", name ? name : "");
	}
}

static int take(struct ctl *ctl, struct row *row, const Peftd__V1__Reply *reply, struct errmsg *err)
{
	if (reply->what_case == PEFTD__V1__REPLY__WHAT_INSPECT_SUMMARY) {
		print_summary(ctl, reply->inspect_summary);
		return 0;
	}
	if (reply->what_case != PEFTD__V1__REPLY__WHAT_INSPECT_ROW) {
		return 0;
	}
	int r = add_part(ctl, row, reply->inspect_row, err);
	if (r == 0 && !reply->inspect_row->continues) {
		r = print_row(ctl, row);
		row_clear(row);
	}
	return r;
}

static int inspect(struct ctl *ctl, struct client *c, const Peftd__V1__Request *req,
	struct errmsg *err)
{
	struct call *call = NULL;
	_cleanup_(row_deinit) struct row row = {0};
	int r = client_start(c, req, NULL, 0, 0, &call, err);
	for (uint32_t taken = 1; r == 0 && !call_finished(call); taken++) {
		struct answer a = {0};
		r = client_next(c, call, -1, &a, err);
		if (r == 0) {
			r = take(ctl, &row, a.reply, err);
			answer_deinit(&a);
		}
		if (r == 0 && taken % CREDIT == 0) {
			client_credit(c, call, CREDIT);
		}
	}
	client_end(c, call);
	return r;
}

int cmd_inspect(struct ctl *ctl, int argc, char **argv)
{
	const char *model = NULL, *chat_template = NULL;
	struct opt_u64 rows = {false, 1}, max_length = {false, 1024};
	bool train_on_prompt = false;
	const struct opt opts[] = {
		{"model", 'm', OPT_TEXT, "NAME", "the model whose tokenizer and template are used", &model},
		{"rows", 'n', OPT_U64, "N", "rows to show, 0 for all (default 1)", &rows},
		{"max-length", 0, OPT_U32, "L", "tokens beyond which a row is too long (default 1024)",
			&max_length},
		{"train-on-prompt", 0, OPT_FLAG, NULL, "as train.train_on_prompt", &train_on_prompt},
		{"chat-template", 0, OPT_TEXT, "NAME", "a built-in template, in place of the model's own",
			&chat_template},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 1, 1, &operands, &status) != 0) {
		return status;
	}
	if (!model) {
		return ctl_usage(ctl, "which model's tokens? give --model NAME");
	}
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__DatasetInspectRequest d = PEFTD__V1__DATASET_INSPECT_REQUEST__INIT;
	d.name = proto_bytes(operands.items[0]);
	d.model = proto_bytes(model);
	d.has_rows = d.has_max_length = d.has_train_on_prompt = d.has_token_texts = true;
	d.rows = rows.value;
	d.max_length = (uint32_t)max_length.value;
	d.train_on_prompt = train_on_prompt;
	d.token_texts = !ctl->json;
	d.has_chat_template = chat_template != NULL;
	d.chat_template = proto_bytes(chat_template);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_DATASET_INSPECT;
	req.dataset_inspect = &d;
	struct errmsg err = {0};
	int r = inspect(ctl, c, &req, &err);
	return ctl_finish(ctl, r == 0 ? EXIT_DONE : ctl_fail(ctl, r, &err));
}
