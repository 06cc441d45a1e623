/* Rows as questions: examples before them, and the answers that they should get. */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

/* Where a row lies, and its rank in a draw. */
struct place {
	const char *line;
	size_t len, at; /* of the line; where in it the row begins */
	uint64_t row, rank;
};

struct table {
	struct place *at;
	uint64_t n, cap;
	enum row_format format;
};

static void table_deinit(struct table *t)
{
	free(t->at);
}

DEFINE_CLEANUP(struct questions *, questions_free);

void questions_free(struct questions *q)
{
	if (q) {
		for (uint64_t i = 0; i < q->n; i++) {
			free(q->at[i].prompt);
			free(q->at[i].reference);
		}
		free(q->at);
		buf_deinit(&q->rows);
		free(q);
	}
}

/* ---- finding the rows ------------------------------------------------------------------------ */

/* The finalizer of SplitMix64 (Steele et al. 2014). */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static int add_place(struct table *t, struct place p)
{
	if (t->n == t->cap) {
		uint64_t cap = t->cap ? 2 * t->cap : 256;
		struct place *at = realloc_array(t->at, cap, sizeof(*at));
		if (!at) {
			return -ENOMEM;
		}
		t->at = at;
		t->cap = cap;
	}
	t->at[t->n++] = p;
	return 0;
}

static int bad_row(struct errmsg *err, const char *what, uint64_t row, const struct errmsg *fault)
{
	return errmsg_set(err, STATUS_INVALID, "%s: row %llu: %.900s", what, (unsigned long long)row,
		fault->text);
}

/* Reads every row once. */
static int find_rows(struct table *t, const char *data, size_t len, const struct rows_spec *spec,
	uint64_t salt, const char *what, struct errmsg *err)
{
	while (len > 0) {
		const char *end = memchr(data, '\n', len);
		size_t n = end ? (size_t)(end - data) : len;
		struct row_reader reader = {.line = data, .len = n};
		for (;;) {
			struct place p = {data, n, reader.at, t->n, mix(salt ^ mix(t->n))};
			struct errmsg fault;
			struct row row;
			int r = row_next(&reader, spec, &row, &fault);
			if (r == -EBADMSG) {
				return bad_row(err, what, t->n, &fault);
			}
			if (r <= 0) {
				if (r < 0) {
					return r;
				}
				break;
			}
			t->format = row.format;
			row_deinit(&row);
			r = add_place(t, p);
			if (r < 0) {
				return r;
			}
		}
		n += end ? 1 : 0;
		data += n;
		len -= n;
	}
	return t->n > 0 ? 0 : errmsg_set(err, STATUS_INVALID, "%s: there are no rows", what);
}

static int by_rank(const void *a, const void *b)
{
	const struct place *x = a, *y = b;
	int r = (x->rank > y->rank) - (x->rank < y->rank);
	return r ? r : (x->row > y->row) - (x->row < y->row);
}

static int by_row(const void *a, const void *b)
{
	const struct place *x = a, *y = b;
	return (x->row > y->row) - (x->row < y->row);
}

static int read_place(const struct place *p, const struct rows_spec *spec, struct row *ret)
{
	struct row_reader reader = {.line = p->line, .len = p->len, .at = p->at};
	struct errmsg fault;
	int r = row_next(&reader, spec, ret, &fault);
	return r == 1 ? 0 : r < 0 && r != -EBADMSG ? r : -EINVAL; /* it was read before */
}

/* ---- putting questions together -------------------------------------------------------------- */

struct maker {
	const struct question_options *o;
	struct questions *q;
	struct row *examples; /* shots + 1 of them where they are of the dataset itself */
	uint64_t *example_rows;
	uint64_t n_examples;
	bool same; /* examples are rows of the dataset */
};

/* Is example i before the row? The last is a spare one for the others. */
static bool used(const struct maker *m, uint64_t i, uint64_t row)
{
	bool spare = m->same && i == m->o->shots, needs_spare = false;
	if (m->same && m->example_rows[i] == row) {
		return false;
	}
	for (uint64_t k = 0; spare && k < m->o->shots; k++) {
		needs_spare |= m->example_rows[k] == row;
	}
	return !spare || needs_spare;
}

static int append_line(struct questions *q, json_t *o)
{
	char *line = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	int r = line ? buf_append(&q->rows, line, strlen(line)) : -ENOMEM;
	free(line);
	return r < 0 ? r : buf_append(&q->rows, "\n", 1);
}

static int set_reference(struct question *ret, const char *text, size_t len)
{
	ret->reference = strndup(text, len); /* rows hold no NUL */
	ret->reference_len = len;
	return ret->reference ? 0 : -ENOMEM;
}

static int ask_pair(struct maker *m, const struct row *row, struct question *ret)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	int r = 0;
	for (uint64_t i = 0; i < m->n_examples && r == 0; i++) {
		const struct row *e = &m->examples[i];
		if (used(m, i, ret->row)) {
			r = buf_append(&b, e->prompt, e->prompt_len);
			r = r < 0 ? r : buf_append(&b, e->completion, e->completion_len);
			r = r < 0 ? r : buf_append(&b, EXAMPLE_END, strlen(EXAMPLE_END));
		}
	}
	r = r < 0 ? r : buf_append(&b, row->prompt, row->prompt_len);
	r = r < 0 ? r : set_reference(ret, row->completion, row->completion_len);
	r = r < 0 ? r : append_line(m->q, json_pack("{s:s%, s:s%}", "prompt", b.data ? (char *)b.data : "",
		b.len, "completion", row->completion, row->completion_len));
	if (r == 0) {
		ret->prompt_len = b.len;
		ret->prompt = buf_steal(&b, NULL);
		r = ret->prompt ? 0 : -ENOMEM;
	}
	return r;
}

static bool is_role(const struct row *row, size_t i, const char *role)
{
	return strcmp(row_message(row->messages, i).role, role) == 0;
}

/* The row's system turn, turns of the examples, turns of the row; *ret_first: of the last. */
static json_t *gather_messages(const struct maker *m, const struct row *row, uint64_t number,
	size_t *ret_first)
{
	json_t *all = json_array();
	bool system = is_role(row, 0, "system");
	int r = all && system ? json_array_append(all, json_array_get(row->messages, 0)) : 0;
	for (uint64_t i = 0; i < m->n_examples; i++) {
		const struct row *e = &m->examples[i];
		for (size_t k = 0; used(m, i, number) && k < json_array_size(e->messages); k++) {
			r |= is_role(e, k, "system") ? 0 : json_array_append(all, json_array_get(e->messages, k));
		}
	}
	*ret_first = json_array_size(all);
	for (size_t k = system; k < json_array_size(row->messages); k++) {
		r |= json_array_append(all, json_array_get(row->messages, k));
	}
	if (!all || r != 0) {
		json_decref(all);
		return NULL;
	}
	return all;
}

/* Renders the turns before the last of the assistant. */
static int render_prompt(const struct maker *m, json_t *all, struct question *ret,
	struct errmsg *err)
{
	size_t last = json_array_size(all), n_spans;
	while (last > 0 && strcmp(row_message(all, last - 1).role, "assistant") != 0) {
		last--;
	}
	if (last < 2) {
		return 0; /* there is no answer, or nothing that asks for it */
	}
	last--;
	struct message answer = row_message(all, last);
	_cleanup_(freep) struct message *messages = calloc_array(last, sizeof(*messages));
	_cleanup_(buf_deinit) struct buf text = {0};
	if (!messages) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < last; i++) {
		messages[i] = row_message(all, i);
	}
	int r = chat_template_render(m->o->chat_template, messages, last, true, &text, NULL, 0, &n_spans,
		err);
	r = r ? r : set_reference(ret, answer.content, answer.content_len);
	if (r == 0) {
		ret->prompt_len = text.len;
		ret->prompt = buf_steal(&text, NULL);
		r = ret->prompt ? 0 : -ENOMEM;
	}
	return r;
}

static int ask_messages(struct maker *m, const struct row *row, struct question *ret,
	struct errmsg *err)
{
	if (!m->o->chat_template) {
		return errmsg_set(err, STATUS_INVALID, "the rows are conversations, for which the model has "
			"no chat template that is known; choose one with chat_template");
	}
	size_t first;
	json_t *all = gather_messages(m, row, ret->row, &first);
	if (!all) {
		return -ENOMEM;
	}
	int r = render_prompt(m, all, ret, err);
	json_t *line = json_pack("{s:O, s:I}", "messages", all, QUESTION_EXAMPLES, (json_int_t)first);
	json_decref(all);
	if (r != 0) {
		json_decref(line);
		return r;
	}
	return append_line(m->q, line);
}

static int ask(struct maker *m, const struct place *p, struct question *ret, struct errmsg *err)
{
	struct row row;
	int r = read_place(p, &m->o->rows, &row);
	if (r != 0) {
		return r;
	}
	ret->row = p->row;
	switch (row.format) {
	case ROWS_MESSAGES:
		r = ask_messages(m, &row, ret, err);
		break;
	case ROWS_PROMPT_COMPLETION:
		r = ask_pair(m, &row, ret);
		break;
	case ROWS_TEXT:
		r = append_line(m->q, json_pack("{s:s%}", "text", row.completion, row.completion_len));
		break;
	}
	row_deinit(&row);
	return r;
}

/* ---- drawing --------------------------------------------------------------------------------- */

static int draw_examples(struct maker *m, struct table *t, const struct rows_spec *spec,
	struct errmsg *err)
{
	uint64_t need = m->o->shots + m->same;
	if (m->o->shots == 0) {
		return 0;
	}
	if (t->format == ROWS_TEXT) {
		return errmsg_set(err, STATUS_INVALID, "shots: rows of text have no questions; examples need "
			"prompt and completion, or messages");
	}
	if (t->format != m->q->format) {
		return errmsg_set(err, STATUS_INVALID, "shots_dataset: its rows are %s, but those of the "
			"dataset are %s; both must be alike", row_format_name(t->format),
			row_format_name(m->q->format));
	}
	if (t->n < need) {
		return errmsg_set(err, STATUS_INVALID, "shots: %llu examples take %llu rows, but there are "
			"%llu", (unsigned long long)m->o->shots, (unsigned long long)need,
			(unsigned long long)t->n);
	}
	qsort(t->at, t->n, sizeof(*t->at), by_rank);
	m->examples = calloc_array(need, sizeof(*m->examples));
	m->example_rows = calloc_array(need, sizeof(*m->example_rows));
	int r = m->examples && m->example_rows ? 0 : -ENOMEM;
	for (uint64_t i = 0; i < need && r == 0; i++) {
		r = read_place(&t->at[i], spec, &m->examples[i]);
		m->example_rows[i] = t->at[i].row;
		m->n_examples += r == 0;
	}
	return r;
}

static int ask_all(struct maker *m, struct table *t, struct errmsg *err)
{
	uint64_t n = m->o->limit > 0 && m->o->limit < t->n ? m->o->limit : t->n;
	if (n < t->n) {
		qsort(t->at, t->n, sizeof(*t->at), by_rank);
		qsort(t->at, n, sizeof(*t->at), by_row);
	}
	m->q->at = calloc_array(n, sizeof(*m->q->at));
	int r = m->q->at ? 0 : -ENOMEM;
	for (uint64_t i = 0; i < n && r == 0; i++) {
		m->q->n = i + 1;
		r = ask(m, &t->at[i], &m->q->at[i], err);
	}
	return r;
}

/* Different draws for what is asked and for the examples. */
enum { SALT_ROWS = 1, SALT_EXAMPLES = 2 };

static int make(struct maker *m, const char *data, size_t len, const char *examples,
	size_t examples_len, struct errmsg *err)
{
	_cleanup_(table_deinit) struct table rows = {0}, others = {0};
	const struct question_options *o = m->o;
	int r = find_rows(&rows, data, len, &o->rows, mix(o->seed) ^ SALT_ROWS, "dataset", err);
	m->q->format = rows.format;
	if (r == 0 && o->shots > 0) {
		const struct rows_spec *spec = m->same ? &o->rows : &o->example_rows;
		r = find_rows(&others, m->same ? data : examples, m->same ? len : examples_len, spec,
			mix(o->seed) ^ SALT_EXAMPLES, m->same ? "dataset" : "shots_dataset", err);
		r = r ? r : draw_examples(m, &others, spec, err);
	}
	return r ? r : ask_all(m, &rows, err);
}

int questions_new(struct questions **ret, const char *data, size_t len, const char *examples,
	size_t examples_len, const struct question_options *o, struct errmsg *err)
{
	_cleanup_(questions_freep) struct questions *q = calloc(1, sizeof(*q));
	if (!q) {
		return -ENOMEM;
	}
	struct maker m = {.o = o, .q = q, .same = !examples};
	int r = make(&m, data, len, examples, examples_len, err);
	for (uint64_t i = 0; i < m.n_examples; i++) {
		row_deinit(&m.examples[i]);
	}
	free(m.examples);
	free(m.example_rows);
	if (r == 0) {
		*ret = steal_ptr(q);
	}
	return r;
}
