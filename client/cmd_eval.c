#include <math.h>
#include <stdio.h>

#include "client/evaluation.h"
#include "client/format.h"
#include "util/cleanup.h"
#include "util/util.h"

static void print_metrics(const Peftd__V1__EvalReply *e)
{
	char a[FORMAT_SIZE];
	if (e->has_shots && e->shots > 0) {
		printf("shots       %u\n", (unsigned)e->shots);
	}
	for (size_t i = 0; i < EVALUATION_METRICS; i++) {
		double v = evaluation_metric(e, i);
		if (!isnan(v)) {
			printf("%-11s %s\n", evaluation_title(i), format_figure(a, v, 4));
		}
	}
	if (e->has_answers) {
		printf("answers     %llu, of %llu tokens\n", (unsigned long long)e->answers,
			(unsigned long long)e->new_tokens);
	}
}

static void print_eval(struct ctl *ctl, const Peftd__V1__EvalReply *e)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_open(&j, '{');
		evaluation_json(&j, e);
		jsonw_close(&j, '}');
		jsonw_print(&j, stdout);
	} else {
		printf("loss        %s\nperplexity  %s\ntokens      %llu, of %llu rows\n",
			format_figure(a, e->loss, 6), format_figure(b, e->perplexity, 6),
			(unsigned long long)e->tokens, (unsigned long long)e->rows);
		print_metrics(e);
		if (e->has_seconds) {
			printf("time        %s\n", format_duration(a, e->seconds));
		}
	}
	if (e->rows_overlong > 0) {
		ctl_note(ctl, "note: %llu rows are longer than --max-length and were left out",
			(unsigned long long)e->rows_overlong);
	}
}

int cmd_eval(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(evaluation_deinit) struct evaluation o = evaluation_init();
	const struct opt opts[] = {
		{"model", 'm', OPT_TEXT, "NAME", "the base model", &o.model},
		{"dataset", 'd', OPT_TEXT, "NAME", "the dataset", &o.dataset},
		{"adapter", 'a', OPT_TEXT, "JOB|DIR", "with this adapter; JOB@N is --step N", &o.adapter},
		{"step", 0, OPT_U64, "N", "the job's checkpoint of this step (default: the last)", &o.step},
		{"shots", 0, OPT_U32, "K", "put K examples before each row", &o.shots},
		{"shots-dataset", 0, OPT_TEXT, "NAME", "draw them from here (default: the dataset itself)",
			&o.shots_dataset},
		{"metric", 0, OPT_TEXTS, "M", "beside the loss: exact_match, last_number or rouge, of greedy "
			"answers; may be repeated", &o.metrics},
		{"max-new-tokens", 0, OPT_U32, "N", "of an answer (default 256)", &o.max_new_tokens},
		{"stop", 0, OPT_TEXTS, "TEXT", "ends an answer before this text; may be repeated", &o.stops},
		{"limit", 0, OPT_U64, "N", "only so many rows, drawn by the seed (default: all)", &o.limit},
		{"seed", 0, OPT_U64, "N", "of the draws of rows and examples (default 42)", &o.seed},
		{"max-length", 0, OPT_U32, "L", "longer rows are left out (default 1024)", &o.max_length},
		{"dtype", 0, OPT_TEXT, "TYPE", "f32 or bf16 (default f32)", &o.dtype},
		{"train-on-prompt", 0, OPT_FLAG, NULL, "count the prompts' tokens, too", &o.train_on_prompt},
		{"chat-template", 0, OPT_TEXT, "NAME", "a built-in template, where the model's is unknown",
			&o.chat_template},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 0, 0, &operands, &status) != 0) {
		return status;
	}
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = evaluation_check(ctl, &o);
	status = status ? status : evaluation_ask(ctl, &o, &reply);
	if (status == 0) {
		print_eval(ctl, reply->eval);
		status = ctl_finish(ctl, EXIT_DONE);
	}
	return status;
}
