/* Generation: the prompts of a request through one decoder, their answers as they come. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/infer.h"
#include "daemon/trainer/stream.h"
#include "util/util.h"

enum { TEXT_PIECE_MAX = 16 * 1024 };

struct answer {
	struct ids prompt;
	struct stream stream;
	uint64_t new_tokens;
};

struct generation {
	struct inference inference;
	struct generate_options options;
	struct answer *answers;
	size_t n, begun, done;
	bool any_length; /* an answer ended by its length */
	int64_t start_ns;
};

static void generate_end(struct compute *c, struct task *task)
{
	struct generation *g = task->work;
	if (!g) {
		return;
	}
	task->work = NULL;
	inference_close(c, &g->inference);
	for (size_t i = 0; i < g->n; i++) {
		ids_deinit(&g->answers[i].prompt);
		stream_deinit(&g->answers[i].stream);
	}
	free(g->answers);
	free(g);
}

/* ---- beginning ------------------------------------------------------------------------------- */

static int encode_prompt(const struct generation *g, const struct task *task,
	const struct text *prompt, struct ids *ids, struct errmsg *err)
{
	const struct tokenizer *t = g->inference.tokenizer;
	if (!task->generate.chat) {
		return tokenizer_encode(t, prompt->data, prompt->len, true, ids, err);
	}
	const struct chat_template *tmpl;
	int r = model_template(g->inference.model, task->generate.chat_template, &tmpl, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(buf_deinit) struct buf text = {0};
	struct message m = {"user", prompt->data, 4, prompt->len};
	size_t n_spans;
	r = chat_template_render(tmpl, &m, 1, true, &text, NULL, 0, &n_spans, err);
	return r ? r : tokenizer_encode(t, (const char *)text.data, text.len, false, ids, err);
}

/* Names the prompt, where there are several. */
static int of_prompt(int r, const struct generation *g, size_t i, struct errmsg *err)
{
	return r > 0 && g->n > 1 ? errmsg_prefix(err, r, "prompt %zu of %zu", i + 1, g->n) : r;
}

static int encode_prompts(struct generation *g, const struct task *task, size_t *ret_longest,
	struct errmsg *err)
{
	*ret_longest = 0;
	for (size_t i = 0; i < g->n; i++) {
		struct answer *a = &g->answers[i];
		a->stream.stops = task->stops;
		a->stream.n_stops = task->n_stops;
		int r = encode_prompt(g, task, &task->generate.prompts[i], &a->prompt, err);
		if (r == 0) {
			r = inference_check_length(&g->inference, a->prompt.len, task->generate.max_new_tokens,
				err);
		}
		if (r != 0) {
			return of_prompt(r, g, i, err);
		}
		*ret_longest = a->prompt.len > *ret_longest ? a->prompt.len : *ret_longest;
	}
	return 0;
}

static int generate_begin(struct compute *c, struct task *task, struct errmsg *err)
{
	struct generation *g = task->work = calloc(1, sizeof(*g));
	if (!g) {
		return -ENOMEM;
	}
	g->start_ns = clock_monotonic_ns();
	g->answers = calloc_array(task->generate.n_prompts + 1, sizeof(*g->answers));
	if (!g->answers) {
		return -ENOMEM;
	}
	g->n = task->generate.n_prompts;
	g->options = (struct generate_options){
		.max_new_tokens = task->generate.max_new_tokens,
		.temperature = task->generate.temperature,
		.top_k = task->generate.top_k,
		.top_p = task->generate.top_p,
		.repetition_penalty = task->generate.repetition_penalty,
		.seed = task->generate.seed,
	};
	int r = generate_options_check(&g->options, err);
	r = r ? r : inference_open(c, task, task->generate.dtype, &g->inference, err);
	r = r ? r : inference_stop_ids(&g->inference, task->generate.chat, err);
	size_t longest;
	r = r ? r : encode_prompts(g, task, &longest, err);
	g->options.stop_ids = g->inference.stop_ids.data;
	g->options.n_stop_ids = g->inference.stop_ids.len;
	return r ? r : inference_decoder(c, &g->inference, longest, g->options.max_new_tokens, g->n, err);
}

/* ---- answering ------------------------------------------------------------------------------- */

/* Sends what there is, when the reader has room for it; at the end in any case, for that much fits
 * into a few messages. A slow reader gets longer pieces and holds nothing up. */
static void send_text(struct trainer *t, struct task *task, struct answer *a, size_t index, bool end)
{
	struct buf *text = &a->stream.text;
	size_t sent = 0;
	while (sent < text->len) {
		pthread_mutex_lock(&t->lock);
		bool room = task->output_credit > 0;
		task->output_credit -= room;
		pthread_mutex_unlock(&t->lock);
		if (!room && !end) {
			break;
		}
		size_t n = text->len - sent;
		if (n > TEXT_PIECE_MAX) {
			n = TEXT_PIECE_MAX;
			while ((text->data[sent + n] & 0xc0) == 0x80) {
				n--;
			}
		}
		emit_generate(t, task, &(struct generate_info){
			.text = (const char *)text->data + sent,
			.text_len = n,
			.index = (int64_t)index,
			.prompt_tokens = a->prompt.len,
			.new_tokens = a->new_tokens,
		});
		sent += n;
	}
	if (sent > 0) {
		text->len -= sent;
		memmove(text->data, text->data + sent, text->len);
	}
}

static int end_answer(struct compute *c, struct task *task, struct generation *g, size_t index,
	bool stopped)
{
	struct answer *a = &g->answers[index];
	int r = stopped && a->stream.stopped ? 0 : stream_end(&a->stream);
	if (r != 0) {
		return r;
	}
	stopped |= a->stream.stopped;
	send_text(c->trainer, task, a, index, true);
	emit_generate(c->trainer, task, &(struct generate_info){
		.index = (int64_t)index,
		.prompt_tokens = a->prompt.len,
		.new_tokens = a->new_tokens,
		.finish_reason = stopped ? "stop" : "length",
	});
	g->any_length |= !stopped;
	g->done++;
	return 0;
}

static int take(struct compute *c, struct task *task, struct generation *g, const struct decoded *e)
{
	struct answer *a = &g->answers[e->tag];
	if (e->id >= 0) {
		a->new_tokens++;
		int r = stream_add(&a->stream, g->inference.tokenizer, e->id);
		if (r != 0) {
			return r;
		}
	}
	if (a->stream.stopped && !e->ended) {
		decoder_end(g->inference.decoder, e->tag);
	}
	if (a->stream.stopped || e->ended) {
		return end_answer(c, task, g, e->tag, a->stream.stopped || e->stopped);
	}
	send_text(c->trainer, task, a, e->tag, false);
	return 0;
}

static void emit_end(struct compute *c, struct task *task, const struct generation *g)
{
	struct generate_info info = {
		.index = -1,
		.finish_reason = g->any_length ? "length" : "stop",
		.seconds = (double)(clock_monotonic_ns() - g->start_ns) * 1e-9,
		.switch_seconds = g->inference.switch_seconds,
		.adapter_was_here = g->inference.adapter_was_here,
	};
	for (size_t i = 0; i < g->n; i++) {
		info.prompt_tokens += g->answers[i].prompt.len;
		info.new_tokens += g->answers[i].new_tokens;
	}
	emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.generate = &info});
}

static int generate_step(struct compute *c, struct task *task, bool *ret_done, struct errmsg *err)
{
	struct generation *g = task->work;
	struct decoder *d = g->inference.decoder;
	struct decoded out[DECODE_LANES];
	size_t n = 0;
	int r = 0;
	while (r == 0 && g->begun < g->n && decoder_has_room(d)) {
		const struct ids *prompt = &g->answers[g->begun].prompt;
		r = decoder_add(d, g->begun, prompt->data, prompt->len, &g->options, err);
		r = of_prompt(r, g, g->begun, err);
		g->begun++;
	}
	r = r ? r : decoder_step(d, out, &n, err);
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = take(c, task, g, &out[i]);
	}
	if (r == 0 && g->done == g->n) {
		emit_end(c, task, g);
		*ret_done = true;
	}
	return r;
}

const struct quick_task quick_generate = {generate_begin, generate_step, generate_end};
