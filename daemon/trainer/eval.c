/* Evaluation: the loss over a dataset, slice by slice; then answers to its rows, and how good they are. */

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/dataset.h"
#include "daemon/trainer/infer.h"
#include "daemon/trainer/stream.h"
#include "engine/judge/judge.h"
#include "util/util.h"

/* A piece of the loss's work: about this many tokens. */
enum { SLICE_TOKENS = 2048 };

/* A row that is answered in a lane of the decoder. */
struct asked {
	bool busy;
	uint64_t question;
	struct stream stream;
};

struct evaluation {
	struct inference inference;
	struct questions *questions; /* NULL: rows as they are, and no answers */
	const struct samples *cached; /* from the cache, or */
	struct samples *own;
	uint64_t next_sample, next_question;
	double loss_sum;
	struct ids *prompts; /* by question; empty: not answered */
	struct text *stops;  /* the task's, and EXAMPLE_END; borrowed texts */
	size_t n_stops;
	struct generate_options options;
	struct asked asked[DECODE_LANES];
	struct eval_info info;
	int64_t start_ns;
};

static bool wants_answers(const struct task *task)
{
	return task->eval.exact_match || task->eval.last_number || task->eval.rouge;
}

static void eval_end(struct compute *c, struct task *task)
{
	struct evaluation *e = task->work;
	if (!e) {
		return;
	}
	task->work = NULL;
	inference_close(c, &e->inference);
	dataset_release(c->samples, e->cached);
	samples_free(e->own);
	for (uint64_t i = 0; e->prompts && i < e->questions->n; i++) {
		ids_deinit(&e->prompts[i]);
	}
	free(e->prompts);
	questions_free(e->questions);
	for (int i = 0; i < DECODE_LANES; i++) {
		stream_deinit(&e->asked[i].stream);
	}
	free(e->stops);
	free(e);
}

/* ---- beginning ------------------------------------------------------------------------------- */

static int read_samples(struct compute *c, struct task *task, struct evaluation *e,
	struct errmsg *err)
{
	struct dataset_options o = {
		.max_length = task->eval.max_length,
		.overlong = OVERLONG_DROP,
		.train_on_prompt = task->eval.train_on_prompt,
		.chat_template = task->eval.chat_template,
	};
	return dataset_samples(c, task, &task->dataset, e->inference.model, &o, &e->cached, NULL, err);
}

/* The template that rows of messages need; NULL, and no complaint yet, where there is none. */
static int find_template(const struct evaluation *e, const struct task *task,
	const struct chat_template **ret, struct errmsg *err)
{
	*ret = NULL;
	int r = model_template(e->inference.model, task->eval.chat_template, ret, err);
	return r > 0 && !task->eval.chat_template ? 0 : r;
}

static int read_questions(struct compute *c, struct task *task, struct evaluation *e,
	struct errmsg *err)
{
	const uint8_t *data, *examples = NULL;
	size_t len, examples_len = 0;
	const struct task_dataset *d = &task->dataset, *x = &task->eval_dataset;
	struct question_options o = {
		.rows = {d->prompt_field, d->completion_field},
		.example_rows = {x->prompt_field, x->completion_field},
		.shots = task->eval.shots,
		.seed = task->eval.seed,
		.limit = task->eval.limit,
	};
	int r = find_template(e, task, &o.chat_template, err);
	r = r ? r : task_input(c->trainer, task, (int)d->input, &data, &len, err);
	if (r == 0 && x->present && o.shots > 0) {
		r = task_input(c->trainer, task, (int)x->input, &examples, &examples_len, err);
	}
	r = r ? r : questions_new(&e->questions, (const char *)data, len, (const char *)examples,
		examples_len, &o, err);
	struct sample_options so = {
		.max_length = task->eval.max_length,
		.overlong = OVERLONG_DROP,
		.train_on_prompt = task->eval.train_on_prompt,
		.chat_template = o.chat_template,
		.examples = true,
	};
	r = r ? r : samples_new(&e->own, (const char *)e->questions->rows.data, e->questions->rows.len,
		e->inference.tokenizer, &so, c->threads, err);
	return r > 0 ? errmsg_prefix(err, r, "dataset '%s'", d->name ? d->name : "?") : r;
}

static int set_stops(struct task *task, struct evaluation *e)
{
	e->stops = calloc_array(task->n_stops + 1, sizeof(*e->stops));
	if (!e->stops) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < task->n_stops; i++) {
		e->stops[e->n_stops++] = task->stops[i];
	}
	if (task->eval.shots > 0 && e->questions->format == ROWS_PROMPT_COMPLETION) {
		e->stops[e->n_stops++] = (struct text){(char *)EXAMPLE_END, strlen(EXAMPLE_END)};
	}
	return 0;
}

/* Rows whose prompt is too long for an answer are left out, as those are that are too long for a loss. */
static int encode_questions(struct task *task, struct evaluation *e, size_t *ret_longest,
	struct errmsg *err)
{
	bool chat = e->questions->format == ROWS_MESSAGES;
	size_t n = 0;
	e->prompts = calloc_array(e->questions->n + 1, sizeof(*e->prompts));
	*ret_longest = 0;
	int r = e->prompts ? 0 : -ENOMEM;
	for (uint64_t i = 0; r == 0 && i < e->questions->n; i++) {
		const struct question *q = &e->questions->at[i];
		struct ids *ids = &e->prompts[i];
		if (!q->reference) {
			continue;
		}
		r = tokenizer_encode(e->inference.tokenizer, q->prompt, q->prompt_len, !chat, ids, err);
		if ((int64_t)ids->len > task->eval.max_length ||
			inference_check_length(&e->inference, ids->len, e->options.max_new_tokens, NULL) != 0) {
			ids->len = 0;
		}
		n += ids->len > 0;
		*ret_longest = ids->len > *ret_longest ? ids->len : *ret_longest;
	}
	return r != 0 || n > 0 ? r : errmsg_set(err, STATUS_INVALID, "metrics: no row of the dataset has a "
		"question and an answer of at most %" PRId64 " tokens with %" PRId64 " new ones",
		task->eval.max_length, e->options.max_new_tokens);
}

static int prepare_answers(struct compute *c, struct task *task, struct evaluation *e,
	struct errmsg *err)
{
	e->options.max_new_tokens = task->eval.max_new_tokens;
	int r = generate_options_check(&e->options, err);
	r = r ? r : inference_stop_ids(&e->inference, e->questions->format == ROWS_MESSAGES, err);
	e->options.stop_ids = e->inference.stop_ids.data;
	e->options.n_stop_ids = e->inference.stop_ids.len;
	r = r ? r : set_stops(task, e);
	size_t longest;
	r = r ? r : encode_questions(task, e, &longest, err);
	return r ? r : inference_decoder(c, &e->inference, longest, e->options.max_new_tokens,
		DECODE_LANES, err);
}

static int eval_begin(struct compute *c, struct task *task, struct errmsg *err)
{
	if (task->eval.max_length < 1) {
		return errmsg_set(err, STATUS_INVALID, "max_length: must be at least 1");
	}
	if (!task->dataset.present) {
		return errmsg_set(err, STATUS_INVALID, "eval needs a dataset");
	}
	struct evaluation *e = task->work = calloc(1, sizeof(*e));
	if (!e) {
		return -ENOMEM;
	}
	e->start_ns = clock_monotonic_ns();
	e->info = (struct eval_info){.shots = task->eval.shots, .exact_match = NAN, .last_number = NAN,
		.rouge1 = NAN, .rouge2 = NAN, .rouge_l = NAN};
	int r = inference_open(c, task, task->eval.dtype, &e->inference, err);
	bool plain = task->eval.shots == 0 && task->eval.limit == 0 && !wants_answers(task);
	r = r ? r : plain ? read_samples(c, task, e, err) : read_questions(c, task, e, err);
	if (r == 0 && wants_answers(task)) {
		r = prepare_answers(c, task, e, err);
	}
	if (r == 0) {
		e->info.overlong = (e->cached ? e->cached : e->own)->overlong;
		e->info.exact_match = task->eval.exact_match ? 0 : NAN;
		e->info.last_number = task->eval.last_number ? 0 : NAN;
		e->info.rouge1 = e->info.rouge2 = e->info.rouge_l = task->eval.rouge ? 0 : NAN;
	}
	return r;
}

/* ---- the loss -------------------------------------------------------------------------------- */

/* The next slice; the mean over all targets is that of one evaluation. */
static int loss_slice(struct evaluation *e, const struct samples *s, struct errmsg *err)
{
	uint64_t first = e->next_sample, end = first + 1;
	while (end < s->n && s->start[end + 1] - s->start[first] <= SLICE_TOKENS) {
		end++;
	}
	struct samples part = *s;
	part.n = end - first;
	part.start += first;
	part.row += first;
	part.source_len = s->source_len ? s->source_len + first : NULL;
	part.fault += first;
	struct eval_metrics m;
	int r = engine_eval(e->inference.base, e->inference.adapter, &part, &m, err);
	if (r == 0) {
		e->loss_sum += m.loss * (double)m.target_tokens;
		e->info.metrics.target_tokens += m.target_tokens;
		e->info.metrics.rows += m.rows;
		e->next_sample = end;
	}
	return r;
}

/* ---- answers --------------------------------------------------------------------------------- */

static int judge(struct evaluation *e, struct asked *a)
{
	const struct question *q = &e->questions->at[a->question];
	const char *text = a->stream.text.data ? (const char *)a->stream.text.data : "";
	size_t len = a->stream.text.len;
	struct rouge rouge = {0};
	if (!isnan(e->info.rouge1)) {
		int r = judge_rouge(q->reference, q->reference_len, text, len, &rouge);
		if (r != 0) {
			return r;
		}
	}
	/* Sums, until the end; those not asked for stay NaN. */
	e->info.exact_match += judge_exact(q->reference, q->reference_len, text, len);
	e->info.last_number += judge_last_number(q->reference, q->reference_len, text, len);
	e->info.rouge1 += rouge.rouge1;
	e->info.rouge2 += rouge.rouge2;
	e->info.rouge_l += rouge.rouge_l;
	e->info.answers++;
	return 0;
}

static int ask_more(struct evaluation *e, struct errmsg *err)
{
	struct decoder *d = e->inference.decoder;
	for (int i = 0; i < DECODE_LANES && decoder_has_room(d); i++) {
		struct asked *a = &e->asked[i];
		while (e->next_question < e->questions->n && e->prompts[e->next_question].len == 0) {
			e->next_question++;
		}
		if (a->busy || e->next_question == e->questions->n) {
			continue;
		}
		const struct ids *prompt = &e->prompts[e->next_question];
		int r = decoder_add(d, (uint64_t)i, prompt->data, prompt->len, &e->options, err);
		if (r != 0) {
			return r;
		}
		a->busy = true;
		a->question = e->next_question++;
		stream_restart(&a->stream);
		a->stream.stops = e->stops;
		a->stream.n_stops = e->n_stops;
	}
	return 0;
}

static int take(struct evaluation *e, const struct decoded *d)
{
	struct asked *a = &e->asked[d->tag];
	int r = 0;
	if (d->id >= 0) {
		e->info.new_tokens++;
		r = stream_add(&a->stream, e->inference.tokenizer, d->id);
	}
	if (r == 0 && a->stream.stopped && !d->ended) {
		decoder_end(e->inference.decoder, d->tag);
	}
	if (r != 0 || (!a->stream.stopped && !d->ended)) {
		return r;
	}
	a->busy = false;
	r = a->stream.stopped ? 0 : stream_end(&a->stream);
	return r ? r : judge(e, a);
}

/* The next piece; *ret_done: all are answered. */
static int answer_some(struct evaluation *e, bool *ret_done, struct errmsg *err)
{
	struct decoded out[DECODE_LANES];
	size_t n;
	int r = ask_more(e, err);
	r = r ? r : decoder_step(e->inference.decoder, out, &n, err);
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = take(e, &out[i]);
	}
	*ret_done = r == 0 && decoder_idle(e->inference.decoder) && e->next_question == e->questions->n;
	return r;
}

static void emit_end(struct compute *c, struct task *task, struct evaluation *e)
{
	struct eval_info *i = &e->info;
	double answers = i->answers > 0 ? (double)i->answers : 1;
	i->metrics.loss = e->loss_sum / (double)i->metrics.target_tokens;
	i->metrics.seconds = (double)(clock_monotonic_ns() - e->start_ns) * 1e-9;
	i->exact_match /= answers;
	i->last_number /= answers;
	i->rouge1 /= answers;
	i->rouge2 /= answers;
	i->rouge_l /= answers;
	emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.eval = i});
}

static int eval_step(struct compute *c, struct task *task, bool *ret_done, struct errmsg *err)
{
	struct evaluation *e = task->work;
	const struct samples *s = e->cached ? e->cached : e->own;
	bool answered = true;
	int r = 0;
	if (e->next_sample < s->n) {
		r = loss_slice(e, s, err);
		answered = !e->inference.decoder;
	} else if (e->inference.decoder) {
		r = answer_some(e, &answered, err);
	}
	if (r == 0 && answered && e->next_sample == s->n) {
		emit_end(c, task, e);
		*ret_done = true;
	}
	return r;
}

const struct quick_task quick_eval = {eval_begin, eval_step, eval_end};
