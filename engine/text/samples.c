/*
 * Datasets into tokens and labels.
 *
 * Threads take contiguous stretches of lines; their results are joined in order, so that nothing
 * depends on how many there are.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	NOT_TRAINED = -100,
	MAX_THREADS = 256,
};

/* One thread's share. */
struct share {
	const struct tokenizer *t;
	const struct sample_options *o;
	const char *data;
	size_t len;

	struct encoder encoder;
	struct buf text;
	struct span *spans;
	struct message *messages;
	size_t messages_cap, spans_cap;
	struct ids ids, labels, prompt; /* of the row at hand */
	size_t source_len;              /* of its ids, those of the encoder */
	struct places places;

	struct ids all_ids, all_labels;
	uint64_t *rows;  /* of the kept samples, counted from the share's start */
	int64_t *lens, *source_lens;
	uint8_t *faults;
	size_t n, cap;
	uint64_t seen, overlong, untrainable, misaligned, target_tokens;
	int64_t longest, longest_kept;

	int result; /* 0, STATUS_INVALID, -errno */
	struct errmsg err;
};

static void share_deinit(struct share *s)
{
	encoder_deinit(&s->encoder);
	buf_deinit(&s->text);
	free(s->spans);
	free(s->messages);
	ids_deinit(&s->ids);
	ids_deinit(&s->labels);
	ids_deinit(&s->prompt);
	free(s->places.data);
	ids_deinit(&s->all_ids);
	ids_deinit(&s->all_labels);
	free(s->rows);
	free(s->lens);
	free(s->source_lens);
	free(s->faults);
}

/* ---- one row ----------------------------------------------------------------------------- */

static bool ends_with(const char *text, size_t len, const char *end, size_t end_len)
{
	return len >= end_len && memcmp(text + len - end_len, end, end_len) == 0;
}

/* s->text = prompt + completion + the end-of-sequence token, unless the completion ends with it. */
static int join_text(struct share *s, const struct row *row)
{
	size_t len;
	const char *eos = tokenizer_text(s->t, s->t->eos, &len);
	if (!eos) {
		return errmsg_set(&s->err, STATUS_INVALID,
			"the tokenizer names no end-of-sequence token, which "
			"must end each row; set eos_token in tokenizer_config.json");
	}
	s->text.len = 0;
	int r = buf_append(&s->text, row->prompt, row->prompt_len);
	r = r < 0 ? r : buf_append(&s->text, row->completion, row->completion_len);
	if (r == 0 && !ends_with(row->completion, row->completion_len, eos, len)) {
		r = buf_append(&s->text, eos, len);
	}
	return r;
}

/* Labels are the ids but for the first `masked`. */
static int label_all_but(struct share *s, size_t masked)
{
	int r = ids_append(&s->labels, s->ids.data, s->ids.len);
	for (size_t i = 0; i < masked && i < s->labels.len && r == 0; i++) {
		s->labels.data[i] = NOT_TRAINED;
	}
	return r;
}

static int encode_pair(struct share *s, const struct row *row, enum row_fault *ret_fault)
{
	size_t masked = 0;
	int r = join_text(s, row);
	if (r == 0) {
		r = encoder_run(&s->encoder, (const char *)s->text.data, s->text.len, true, &s->ids, NULL,
			&s->err);
	}
	if (r == 0 && row->format == ROWS_PROMPT_COMPLETION && !s->o->train_on_prompt) {
		s->prompt.len = 0;
		r = encoder_run(&s->encoder, row->prompt, row->prompt_len, true, &s->prompt, NULL, &s->err);
		masked = s->prompt.len;
		if (r == 0 && (masked > s->ids.len || (masked > 0 && memcmp(s->ids.data, s->prompt.data,
				masked * sizeof(*s->ids.data)) != 0))) {
			*ret_fault = ROW_MISALIGNED;
		}
	}
	return r != 0 ? r : label_all_but(s, masked);
}

/* Both sides of an encoder-decoder's row, each as the tokenizer has it with its special tokens; the
 * decoder's ends with the end-of-sequence token in any case. */
static int encode_sides(struct share *s, const struct row *row)
{
	if (row->format != ROWS_PROMPT_COMPLETION) {
		return errmsg_set(&s->err, STATUS_INVALID, "the model is an encoder-decoder, whose rows are "
			"pairs of prompt and completion; these are %s", row_format_name(row->format));
	}
	if (s->o->train_on_prompt) {
		return errmsg_set(&s->err, STATUS_INVALID, "train_on_prompt: the model is an "
			"encoder-decoder, which reads the prompt and predicts the completion alone");
	}
	int32_t eos = s->t->eos;
	if (eos < 0) {
		return errmsg_set(&s->err, STATUS_INVALID, "the tokenizer names no end-of-sequence token, "
			"which must end each row; set eos_token in tokenizer_config.json");
	}
	int r = encoder_run(&s->encoder, row->prompt, row->prompt_len, true, &s->ids, NULL, &s->err);
	s->source_len = s->ids.len;
	if (r == 0 && s->source_len == 0) {
		return errmsg_set(&s->err, STATUS_INVALID, "the prompt is empty: the encoder has nothing to "
			"read");
	}
	s->prompt.len = 0;
	r = r != 0 ? r : encoder_run(&s->encoder, row->completion, row->completion_len, true,
		&s->prompt, NULL, &s->err);
	if (r == 0 && (s->prompt.len == 0 || s->prompt.data[s->prompt.len - 1] != eos)) {
		r = ids_append(&s->prompt, &eos, 1);
	}
	r = r != 0 ? r : ids_append(&s->ids, s->prompt.data, s->prompt.len);
	return r != 0 ? r : label_all_but(s, s->source_len);
}

static int room_for_messages(struct share *s, size_t n)
{
	if (n > s->messages_cap) {
		struct message *messages = realloc_array(s->messages, n, sizeof(*messages));
		s->messages = messages ? messages : s->messages;
		if (!messages) {
			return -ENOMEM;
		}
		s->messages_cap = n;
	}
	return 0;
}

static int room_for_spans(struct share *s, size_t n)
{
	if (n > s->spans_cap) {
		struct span *spans = realloc_array(s->spans, n, sizeof(*spans));
		if (!spans) {
			return -ENOMEM;
		}
		s->spans = spans;
		s->spans_cap = n;
	}
	return 0;
}

/* The text of s->messages[n] and, where labels depend on it, what the assistant says in it. */
static int render_messages(struct share *s, size_t n, size_t *ret_n_spans)
{
	*ret_n_spans = 0;
	if (s->o->train_on_prompt) {
		return chat_template_render(s->o->chat_template, s->messages, n, false, &s->text, NULL, 0,
			NULL, &s->err);
	}
	int r = room_for_spans(s, n);
	r = r ? r : chat_template_render(s->o->chat_template, s->messages, n, false, &s->text, s->spans,
		s->spans_cap, ret_n_spans, &s->err);
	if (r == 0 && *ret_n_spans > s->spans_cap) { /* several to a message */
		r = room_for_spans(s, *ret_n_spans);
		s->text.len = 0;
		r = r ? r : chat_template_render(s->o->chat_template, s->messages, n, false, &s->text,
			s->spans, s->spans_cap, ret_n_spans, &s->err);
	}
	return r;
}

/* A token is trained on when a byte of it lies in a span, as transformers maps characters to
 * tokens. */
static int label_spans(struct share *s, size_t first_span, size_t n_spans)
{
	int r = label_all_but(s, s->o->train_on_prompt ? 0 : s->ids.len);
	if (r < 0 || s->o->train_on_prompt) {
		return r;
	}
	for (size_t i = 0, k = first_span; i < s->ids.len && k < n_spans; i++) {
		const struct token_place *p = &s->places.data[i];
		while (k < n_spans && p->start >= s->spans[k].end) {
			k++;
		}
		if (k < n_spans && p->end > s->spans[k].start) {
			s->labels.data[i] = s->ids.data[i];
		}
	}
	return 0;
}

static int encode_messages(struct share *s, const struct row *row)
{
	size_t n = json_array_size(row->messages), n_spans, first_span = 0;
	if (!s->o->chat_template) {
		return errmsg_set(&s->err, STATUS_INVALID,
			"the rows are conversations, for which the model has "
			"no chat template that is known; choose one with chat_template");
	}
	int r = room_for_messages(s, n);
	if (r < 0) {
		return r;
	}
	for (size_t i = 0; i < n; i++) {
		s->messages[i] = row_message(row->messages, i);
		first_span += s->o->examples && i < row->examples &&
			strcmp(s->messages[i].role, "assistant") == 0;
	}
	s->text.len = 0;
	s->places.len = 0;
	r = render_messages(s, n, &n_spans);
	/* No special tokens by the tokenizer: the template writes them itself. */
	if (r == 0) {
		r = encoder_run(&s->encoder, (const char *)s->text.data, s->text.len, false, &s->ids,
			&s->places, &s->err);
	}
	return r != 0 ? r : label_spans(s, first_span, n_spans);
}

/* ---- keeping and dropping ---------------------------------------------------------------- */

/* Labels that a loss can be taken at: nothing stands before the first token to predict it from. */
static uint64_t count_targets(const struct ids *labels)
{
	uint64_t n = 0;
	for (size_t i = 1; i < labels->len; i++) {
		n += labels->data[i] != NOT_TRAINED;
	}
	return n;
}

static int keep(struct share *s, enum row_fault fault)
{
	if (s->n == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 256;
		uint64_t *rows = realloc_array(s->rows, cap, sizeof(*rows));
		s->rows = rows ? rows : s->rows;
		int64_t *lens = realloc_array(s->lens, cap, sizeof(*lens));
		s->lens = lens ? lens : s->lens;
		int64_t *source_lens = realloc_array(s->source_lens, cap, sizeof(*source_lens));
		s->source_lens = source_lens ? source_lens : s->source_lens;
		uint8_t *faults = realloc_array(s->faults, cap, sizeof(*faults));
		s->faults = faults ? faults : s->faults;
		if (!rows || !lens || !source_lens || !faults) {
			return -ENOMEM;
		}
		s->cap = cap;
	}
	s->rows[s->n] = s->seen;
	s->lens[s->n] = (int64_t)s->ids.len;
	s->source_lens[s->n] = (int64_t)s->source_len;
	s->faults[s->n] = (uint8_t)fault;
	s->n++;
	int r = ids_append(&s->all_ids, s->ids.data, s->ids.len);
	return r < 0 ? r : ids_append(&s->all_labels, s->labels.data, s->labels.len);
}

/* Tokens of the row at hand, or of its longer side. */
static int64_t row_length(const struct share *s)
{
	return max_i64((int64_t)s->source_len, (int64_t)(s->ids.len - s->source_len));
}

/* To max tokens, either side of an encoder-decoder's row by itself and but for its last token, which ends
 * it. */
static void cut_row(struct share *s, size_t max)
{
	size_t n = s->source_len, len = s->ids.len;
	if (!s->o->encoder_decoder) {
		s->ids.len = s->labels.len = max;
		return;
	}
	size_t source = n > max ? max : n, target = len - n > max ? max : len - n;
	int32_t source_end = s->ids.data[n - 1], target_end = s->ids.data[len - 1];
	memmove(s->ids.data + source, s->ids.data + n, target * sizeof(*s->ids.data));
	memmove(s->labels.data + source, s->labels.data + n, target * sizeof(*s->labels.data));
	s->ids.len = s->labels.len = source + target;
	s->ids.data[source - 1] = source_end;
	s->ids.data[s->ids.len - 1] = s->labels.data[s->labels.len - 1] = target_end;
	s->source_len = source;
}

/* What becomes of the row in s->ids and s->labels. */
static int settle(struct share *s, enum row_fault fault)
{
	int64_t len = row_length(s), max = s->o->max_length;
	bool dropped = false;

	s->longest = max_i64(s->longest, len);
	s->misaligned += fault == ROW_MISALIGNED;
	if (max > 0 && len > max) {
		s->overlong++;
		fault = ROW_OVERLONG;
		if (s->o->overlong == OVERLONG_RAISE) {
			return errmsg_set(&s->err, STATUS_INVALID,
				"it has %lld tokens, more than max_length %lld; "
				"shorten it, raise max_length, or set overlong to drop or truncate",
				(long long)len, (long long)max);
		}
		dropped = s->o->overlong == OVERLONG_DROP;
		if (!dropped) {
			cut_row(s, (size_t)max);
		}
	}
	uint64_t targets = count_targets(&s->labels);
	if (!dropped && targets == 0) {
		s->untrainable++;
		fault = ROW_UNTRAINABLE;
		dropped = true;
	}
	if (!dropped) {
		s->target_tokens += targets;
		s->longest_kept = max_i64(s->longest_kept, row_length(s));
	}
	return dropped && !s->o->keep_all ? 0 : keep(s, fault);
}

static int take_row(struct share *s, const struct row *row)
{
	enum row_fault fault = ROW_OK;
	int r;
	s->ids.len = s->labels.len = s->source_len = 0;
	if (s->o->encoder_decoder) {
		r = encode_sides(s, row);
	} else {
		r = row->format == ROWS_MESSAGES ? encode_messages(s, row) : encode_pair(s, row, &fault);
	}
	return r != 0 ? r : settle(s, fault);
}

static int take_line(struct share *s, const char *line, size_t len)
{
	struct row_reader reader = {.line = line, .len = len};
	struct row row;
	int r;
	while ((r = row_next(&reader, &s->o->rows, &row, &s->err)) > 0) {
		r = take_row(s, &row);
		row_deinit(&row);
		if (r != 0) {
			return r;
		}
		s->seen++;
	}
	return r == -EBADMSG ? STATUS_INVALID : r;
}

static void *share_run(void *arg)
{
	struct share *s = arg;
	const char *data = s->data;
	size_t len = s->len;
	s->result = encoder_init(&s->encoder, s->t, true);
	while (len > 0 && s->result == 0) {
		const char *end = memchr(data, '\n', len);
		size_t n = end ? (size_t)(end - data) : len;
		s->result = take_line(s, data, n);
		n += end ? 1 : 0;
		data += n;
		len -= n;
	}
	return NULL;
}

/* ---- the whole --------------------------------------------------------------------------- */

/* Cuts the data at line ends into `n` shares of about the same size. */
static void cut(struct share *shares, unsigned n, const char *data, size_t len,
	const struct tokenizer *t, const struct sample_options *o)
{
	size_t at = 0;
	for (unsigned i = 0; i < n; i++) {
		size_t end = i + 1 == n ? len : (size_t)((double)len * (i + 1) / n);
		const char *newline = end > at && end < len ? memchr(data + end, '\n', len - end) : NULL;
		end = end < at ? at : end > at && end < len ?
			newline ? (size_t)(newline - data) + 1 : len : end;
		shares[i] = (struct share){.t = t, .o = o, .data = data + at, .len = end - at};
		at = end;
	}
}

static void run_all(struct share *shares, unsigned n)
{
	pthread_t threads[MAX_THREADS];
	bool started[MAX_THREADS] = {false};
	for (unsigned i = 1; i < n; i++) {
		started[i] = pthread_create(&threads[i], NULL, share_run, &shares[i]) == 0;
	}
	share_run(&shares[0]);
	for (unsigned i = 1; i < n; i++) {
		if (started[i]) {
			pthread_join(threads[i], NULL);
		} else {
			share_run(&shares[i]); /* no thread to be had: the same work here */
		}
	}
}

/* Bytes at the beginning that a blank line may have. */
static size_t strspn_blank(const char *s, size_t n)
{
	size_t i = 0;
	while (i < n && (s[i] == ' ' || s[i] == '\t' || s[i] == '\r')) {
		i++;
	}
	return i;
}

/* Where row `row` (from 0) stands: a file that was checked has one on every line, and empty lines
 * only at its end. False when it is in none of them. */
static bool find_place(const struct sample_options *o, const char *data, size_t len, uint64_t row,
	const char **ret_file, uint64_t *ret_line)
{
	for (size_t i = 0; i < o->n_files && o->files[i].size <= len; i++) {
		const char *at = data, *end = data + o->files[i].size;
		uint64_t line = 0;
		while (at < end) {
			const char *newline = memchr(at, '\n', (size_t)(end - at));
			const char *next = newline ? newline + 1 : end;
			size_t n = (size_t)((newline ? newline : end) - at);
			line++;
			if (strspn_blank(at, n) < n && row-- == 0) {
				*ret_file = o->files[i].name;
				*ret_line = line;
				return true;
			}
			at = next;
		}
		data = end;
		len -= o->files[i].size;
	}
	return false;
}

/* The first fault in the order of rows, whichever thread met it when. */
static int first_fault(const struct share *shares, unsigned n, const char *data, size_t len,
	const struct sample_options *o, struct errmsg *err)
{
	const char *file;
	uint64_t line;
	uint64_t row = 0;
	for (unsigned i = 0; i < n; i++) {
		row += shares[i].seen;
		if (shares[i].result > 0 && find_place(o, data, len, row, &file, &line)) {
			return errmsg_set(err, shares[i].result, "%s:%llu: %s", file, (unsigned long long)line,
				shares[i].err.text);
		}
		if (shares[i].result > 0) {
			return errmsg_set(err, shares[i].result, "row %llu (counted from 0): %s",
				(unsigned long long)row, shares[i].err.text);
		}
		if (shares[i].result < 0) {
			return shares[i].result;
		}
	}
	return 0;
}

static void add_counts(struct samples *ret, const struct share *s)
{
	ret->n += s->n;
	ret->rows += s->seen;
	ret->overlong += s->overlong;
	ret->untrainable += s->untrainable;
	ret->misaligned += s->misaligned;
	ret->target_tokens += s->target_tokens;
	ret->longest = max_i64(ret->longest, s->longest);
	ret->longest_kept = max_i64(ret->longest_kept, s->longest_kept);
}

static int join(struct samples *ret, const struct share *shares, unsigned n, bool sides)
{
	size_t tokens = 0, at = 0, sample = 0;
	uint64_t row = 0;
	for (unsigned i = 0; i < n; i++) {
		add_counts(ret, &shares[i]);
		tokens += shares[i].all_ids.len;
	}
	ret->start = alloc_array(ret->n + 1, sizeof(*ret->start));
	ret->ids = alloc_array(tokens, sizeof(*ret->ids));
	ret->labels = alloc_array(tokens, sizeof(*ret->labels));
	ret->row = alloc_array(ret->n, sizeof(*ret->row));
	ret->fault = alloc_array(ret->n, sizeof(*ret->fault));
	ret->source_len = sides ? alloc_array(ret->n, sizeof(*ret->source_len)) : NULL;
	if ((sides && !ret->source_len) || !ret->start || !ret->ids || !ret->labels || !ret->row || !ret->fault) {
		return -ENOMEM;
	}
	ret->start[0] = 0;
	for (unsigned i = 0; i < n; i++) {
		const struct share *s = &shares[i];
		if (s->all_ids.len > 0) {
			memcpy(ret->ids + at, s->all_ids.data, s->all_ids.len * sizeof(*ret->ids));
			memcpy(ret->labels + at, s->all_labels.data, s->all_labels.len * sizeof(*ret->labels));
		}
		at += s->all_ids.len;
		for (size_t k = 0; k < s->n; k++, sample++) {
			ret->start[sample + 1] = ret->start[sample] + s->lens[k];
			if (sides) {
				ret->source_len[sample] = s->source_lens[k];
			}
			ret->row[sample] = row + s->rows[k];
			ret->fault[sample] = s->faults[k];
		}
		row += s->seen;
	}
	return 0;
}

static int nothing_left(const struct samples *s, const struct sample_options *o, struct errmsg *err)
{
	if (s->rows == 0) {
		return errmsg_set(err, STATUS_INVALID, "there are no rows");
	}
	return errmsg_set(err, STATUS_INVALID,
		"no row is left to train on: of %llu, %llu have more than "
		"max_length %lld tokens and %llu leave nothing to train on; the longest has %lld tokens",
		(unsigned long long)s->rows, (unsigned long long)s->overlong, (long long)o->max_length,
		(unsigned long long)s->untrainable, (long long)s->longest);
}

int samples_new(struct samples **ret, const char *data, size_t len, const struct tokenizer *t,
	const struct sample_options *o, unsigned threads, struct errmsg *err)
{
	unsigned n = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
	struct share *shares = calloc_array(n, sizeof(*shares));
	struct samples *s = calloc_array(1, sizeof(*s));
	int r = shares && s ? 0 : -ENOMEM;
	if (r == 0) {
		cut(shares, n, data, len, t, o);
		run_all(shares, n);
		r = first_fault(shares, n, data, len, o, err);
		r = r != 0 ? r : join(s, shares, n, o->encoder_decoder);
	}
	if (r == 0 && s->n == 0) {
		r = nothing_left(s, o, err);
	}
	for (unsigned i = 0; i < n && shares; i++) {
		share_deinit(&shares[i]);
	}
	free(shares);
	if (r != 0) {
		samples_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

void samples_free(struct samples *s)
{
	if (s) {
		free(s->start);
		free(s->ids);
		free(s->labels);
		free(s->source_len);
		free(s->row);
		free(s->fault);
		free(s);
	}
}
