/* Evaluation and generation. */

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/dataset.h"
#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"
#include "util/util.h"

/* ---- evaluation ------------------------------------------------------------------------------ */

/* An evaluation can be cancelled, and answers a shutdown, after this many tokens. */
enum { EVAL_SLICE_TOKENS = 16384 };

/* Evaluates part after part; the mean over all targets is that of one evaluation. */
static int eval_samples(struct compute *c, struct task *task, struct base_model *base,
	const struct adapter *adapter, const struct samples *s, struct eval_metrics *ret,
	struct errmsg *err)
{
	double sum = 0;
	struct eval_metrics total = {0};
	int64_t start_ns = clock_monotonic_ns();
	for (uint64_t first = 0; first < s->n;) {
		int r = task_interrupted(c->trainer, task);
		if (r != 0) {
			return errmsg_set(err, r, "stopped");
		}
		uint64_t end = first + 1;
		while (end < s->n && s->start[end + 1] - s->start[first] <= EVAL_SLICE_TOKENS) {
			end++;
		}
		struct samples part = *s;
		part.n = end - first;
		part.start += first;
		part.row += first;
		part.fault += first;
		struct eval_metrics m;
		r = engine_eval(base, adapter, &part, &m, err);
		if (r != 0) {
			return r;
		}
		sum += m.loss * (double)m.target_tokens;
		total.target_tokens += m.target_tokens;
		total.rows += m.rows;
		first = end;
	}
	total.loss = sum / (double)total.target_tokens;
	total.seconds = (double)(clock_monotonic_ns() - start_ns) * 1e-9;
	*ret = total;
	return 0;
}

static int eval_with(struct compute *c, struct task *task, struct model *model,
	const struct samples *s, struct errmsg *err)
{
	struct adapter adapter;
	bool has_adapter = task->adapter != NO_INPUT;
	int r = has_adapter ? task_adapter(c->trainer, task, task->adapter, &adapter, err) : 0;
	if (r != 0) {
		return r;
	}
	struct base_model *base = NULL;
	r = models_acquire(c->models, model, c->backend, task->eval.dtype, false, 0, &base, err);
	if (r == 0) {
		struct eval_info info = {.overlong = s->overlong};
		r = eval_samples(c, task, base, has_adapter ? &adapter : NULL, s, &info.metrics, err);
		if (r == 0) {
			emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.eval = &info});
		}
		models_release(c->models, base);
	}
	if (has_adapter) {
		adapter_deinit(&adapter);
	}
	return r;
}

int task_eval(struct compute *c, struct task *task, struct errmsg *err)
{
	if (task->eval.max_length < 1) {
		return errmsg_set(err, STATUS_INVALID, "max_length: must be at least 1");
	}
	if (!task->dataset.present) {
		return errmsg_set(err, STATUS_INVALID, "eval needs a dataset");
	}
	struct model *model;
	int r = models_open(c->models, task->model_name, task->model_path,
		task->has_model_digest ? task->model_digest : NULL, &model, err);
	if (r != 0) {
		return r;
	}
	struct dataset_options o = {
		.max_length = task->eval.max_length,
		.overlong = OVERLONG_DROP,
		.train_on_prompt = task->eval.train_on_prompt,
		.chat_template = task->eval.chat_template,
	};
	const struct samples *s = NULL;
	r = dataset_samples(c, task, &task->dataset, model, &o, &s, NULL, err);
	if (r == 0) {
		r = eval_with(c, task, model, s, err);
		dataset_release(c->samples, s);
	}
	models_close(c->models, model);
	return r;
}

/* ---- generation ------------------------------------------------------------------------------ */

static int append_eos_json(const struct model_files *files, struct ids *stop)
{
	size_t len;
	const char *text = model_files_text(files, "generation_config.json", &len);
	json_t *root = text ? json_loadb(text, len, 0, NULL) : NULL;
	json_t *eos = json_object_get(root, "eos_token_id");
	int r = 0;
	size_t n = json_is_array(eos) ? json_array_size(eos) : json_is_integer(eos) ? 1 : 0;
	for (size_t i = 0; r == 0 && i < n; i++) {
		json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
		json_int_t n_id = json_is_integer(v) ? json_integer_value(v) : -1;
		if (n_id >= 0 && n_id <= INT32_MAX) {
			int32_t id = (int32_t)n_id;
			r = ids_append(stop, &id, 1);
		}
	}
	json_decref(root);
	return r;
}

/* What ends an answer: the end-of-sequence token as tokenizer, config.json and
 * generation_config.json name it, and the tokens that end a turn of the usual templates. */
static int stop_ids(const struct model_files *files, const struct tokenizer *t, bool chat,
	struct ids *stop)
{
	static const char *const turn_ends[] = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"};
	int32_t ids[2 + ARRAY_LEN(turn_ends)] = {
		tokenizer_eos(t),
		model_files_config(files)->eos_token_id,
	};
	size_t n = 2;
	for (size_t i = 0; chat && i < ARRAY_LEN(turn_ends); i++) {
		ids[n++] = tokenizer_id(t, turn_ends[i]);
	}
	int r = append_eos_json(files, stop);
	for (size_t i = 0; r == 0 && i < n; i++) {
		if (ids[i] >= 0) {
			r = ids_append(stop, &ids[i], 1);
		}
	}
	return r;
}

static int encode_prompt(struct task *task, struct model *model, const struct tokenizer *t,
	struct ids *ids, struct errmsg *err)
{
	if (!task->generate.chat) {
		return tokenizer_encode(t, task->generate.prompt, task->generate.prompt_len, true, ids,
			err);
	}
	const struct chat_template *tmpl;
	int r = model_template(model, task->generate.chat_template, &tmpl, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(buf_deinit) struct buf text = {0};
	struct message m = {"user", task->generate.prompt, 4, task->generate.prompt_len};
	size_t n_spans;
	r = chat_template_render(tmpl, &m, 1, true, &text, NULL, 0, &n_spans, err);
	if (r != 0) {
		return r;
	}
	return tokenizer_encode(t, (const char *)text.data, text.len, false, ids, err);
}

/* Bytes of tokens on their way to whole characters. */
struct stream {
	struct buf bytes; /* not sent yet */
	struct buf text;  /* whole characters, not sent yet */
	uint64_t prompt_tokens, new_tokens;
};

/* The length of a character that begins at p and goes on after the n bytes there are; 0 when these
 * bytes cannot begin one. */
static bool may_continue(const uint8_t *p, size_t n)
{
	size_t need = p[0] >= 0xc2 && p[0] <= 0xdf ? 2
				  : (p[0] & 0xf0) == 0xe0      ? 3
				  : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4
												: 0;
	if (n >= need) {
		return false;
	}
	/* Any continuation makes n bytes well-formed or not; try the smallest and the largest. */
	for (int fill = 0x80; fill <= 0xbf; fill += 0x3f) {
		uint8_t c[4] = {0};
		memcpy(c, p, n);
		memset(c + n, fill, need - n);
		if (utf8_valid(c, need, NULL)) {
			return true;
		}
	}
	return false;
}

/* Moves whole characters on; bytes that can be none become U+FFFD. */
static int stream_settle(struct stream *s, bool end)
{
	for (;;) {
		size_t bad = s->bytes.len;
		bool valid = utf8_valid(s->bytes.data, s->bytes.len, &bad);
		size_t whole = valid ? s->bytes.len : bad;
		int r = buf_append(&s->text, s->bytes.data, whole);
		if (r < 0) {
			return r;
		}
		s->bytes.len -= whole;
		memmove(s->bytes.data, s->bytes.data + whole, s->bytes.len);
		if (valid || (!end && may_continue(s->bytes.data, s->bytes.len))) {
			return 0;
		}
		r = buf_append(&s->text, "\xef\xbf\xbd", 3);
		if (r < 0) {
			return r;
		}
		s->bytes.len--;
		memmove(s->bytes.data, s->bytes.data + 1, s->bytes.len);
	}
}

enum { TEXT_PIECE_MAX = 16 * 1024 };

/* Sends what there is, when the reader has room for it; at the end in any case, for that much fits
 * into a few messages. A slow reader gets longer pieces and holds nothing up. */
static void stream_send(struct trainer *t, struct task *task, struct stream *s, bool end)
{
	size_t sent = 0;
	while (sent < s->text.len) {
		pthread_mutex_lock(&t->lock);
		bool room = task->output_credit > 0;
		task->output_credit -= room;
		pthread_mutex_unlock(&t->lock);
		if (!room && !end) {
			break;
		}
		size_t n = s->text.len - sent;
		if (n > TEXT_PIECE_MAX) {
			n = TEXT_PIECE_MAX;
			while ((s->text.data[sent + n] & 0xc0) == 0x80) {
				n--;
			}
		}
		struct generate_info g = {
			.text = (const char *)s->text.data + sent,
			.text_len = n,
			.prompt_tokens = s->prompt_tokens,
			.new_tokens = s->new_tokens,
		};
		emit_generate(t, task, &g);
		sent += n;
	}
	s->text.len -= sent;
	memmove(s->text.data, s->text.data + sent, s->text.len);
}

static int generate_text(struct compute *c, struct task *task, const struct tokenizer *t,
	struct generator *g, struct stream *s, bool *ret_stopped, struct errmsg *err)
{
	for (;;) {
		int r = task_interrupted(c->trainer, task);
		if (r != 0) {
			return errmsg_set(err, r, "stopped");
		}
		int32_t id;
		bool stopped = false;
		r = generator_next(g, &id, &stopped, err);
		if (r < 0 || r > 1) {
			return r;
		}
		if (r == 1) {
			s->new_tokens++;
			r = tokenizer_decode(t, id, true, &s->bytes);
			if (r == 0) {
				r = stream_settle(s, false);
			}
			if (r != 0) {
				return r;
			}
			stream_send(c->trainer, task, s, false);
			continue;
		}
		*ret_stopped = stopped;
		r = stream_settle(s, true);
		stream_send(c->trainer, task, s, true);
		return r;
	}
}

static int generate_with(struct compute *c, struct task *task, const struct tokenizer *t,
	struct base_model *base, const struct adapter *adapter, const struct ids *prompt,
	const struct ids *stop, struct errmsg *err)
{
	int64_t start_ns = clock_monotonic_ns();
	struct generate_options o = {
		.max_new_tokens = task->generate.max_new_tokens,
		.temperature = task->generate.temperature,
		.seed = task->generate.seed,
		.stop_ids = stop->data,
		.n_stop_ids = stop->len,
	};
	struct generator *g = NULL;
	int r = generator_new(&g, base, adapter, prompt->data, prompt->len, &o, err);
	if (r != 0) {
		return r;
	}
	struct stream s = {.prompt_tokens = prompt->len};
	bool stopped = false;
	r = generate_text(c, task, t, g, &s, &stopped, err);
	if (r == 0) {
		struct generate_info info = {
			.prompt_tokens = prompt->len,
			.new_tokens = s.new_tokens,
			.finish_reason = stopped ? "stop" : "length",
			.seconds = (double)(clock_monotonic_ns() - start_ns) * 1e-9,
		};
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.generate = &info});
	}
	generator_free(g);
	buf_deinit(&s.bytes);
	buf_deinit(&s.text);
	return r;
}

static int check_generate(const struct task *task, const struct model_files *files, size_t n_prompt,
	struct errmsg *err)
{
	int64_t max = model_files_config(files)->max_position_embeddings;
	if (n_prompt == 0) {
		return errmsg_set(err, STATUS_INVALID, "prompt: has no token; give some text");
	}
	if (task->generate.max_new_tokens < 1) {
		return errmsg_set(err, STATUS_INVALID, "max_new_tokens: must be at least 1");
	}
	if (!isfinite(task->generate.temperature) || task->generate.temperature < 0) {
		return errmsg_set(err, STATUS_INVALID, "temperature: %g; it must be 0 (greedy) or more",
			task->generate.temperature);
	}
	if ((int64_t)n_prompt >= max) {
		return errmsg_set(err, STATUS_INVALID, "the prompt has %zu tokens and the model %" PRId64
			" positions, so that none is left for an answer; shorten the prompt", n_prompt, max);
	}
	if ((int64_t)n_prompt + task->generate.max_new_tokens > max) {
		return errmsg_set(err, STATUS_INVALID,
			"the prompt's %zu tokens and %" PRId64 " new ones are more than the model's %" PRId64
			" positions; at most %" PRId64 " new ones are possible",
			n_prompt, task->generate.max_new_tokens, max, max - (int64_t)n_prompt);
	}
	return 0;
}

static int generate_on(struct compute *c, struct task *task, struct model *model,
	struct ids *prompt, struct ids *stop, struct errmsg *err)
{
	const struct model_files *files = model_files_of(model);
	const struct tokenizer *t;
	int r = model_tokenizer(model, &t, err);
	if (r == 0) {
		r = encode_prompt(task, model, t, prompt, err);
	}
	if (r == 0) {
		r = check_generate(task, files, prompt->len, err);
	}
	if (r == 0) {
		r = stop_ids(files, t, task->generate.chat, stop);
	}
	if (r != 0) {
		return r;
	}
	struct adapter adapter;
	bool has_adapter = task->adapter != NO_INPUT;
	r = has_adapter ? task_adapter(c->trainer, task, task->adapter, &adapter, err) : 0;
	if (r != 0) {
		return r;
	}
	struct base_model *base = NULL;
	r = models_acquire(c->models, model, c->backend, task->generate.dtype, false, 0, &base, err);
	if (r == 0) {
		r = generate_with(c, task, t, base, has_adapter ? &adapter : NULL, prompt, stop, err);
		models_release(c->models, base);
	}
	if (has_adapter) {
		adapter_deinit(&adapter);
	}
	return r;
}

int task_generate(struct compute *c, struct task *task, struct errmsg *err)
{
	struct model *model;
	int r = models_open(c->models, task->model_name, task->model_path,
		task->has_model_digest ? task->model_digest : NULL, &model, err);
	if (r != 0) {
		return r;
	}
	struct ids prompt = {0}, stop = {0};
	r = generate_on(c, task, model, &prompt, &stop, err);
	ids_deinit(&prompt);
	ids_deinit(&stop);
	models_close(c->models, model);
	return r;
}
