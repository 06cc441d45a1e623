#pragma once
/* From text to what is trained on: tokenizers, chat templates, rows, samples. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/buf.h"
#include "util/errmsg.h"

struct model_files;

/* ---- tokenizers -------------------------------------------------------------------------- */

/* Immutable once made, safe to use from several threads. */
struct tokenizer;

/* From tokenizer.json or GGUF metadata. An unsupported kind is refused by name. */
int tokenizer_new(struct tokenizer **ret, const struct model_files *files, struct errmsg *err);
/* The tokenizer of a GGUF as the text of a tokenizer.json, and what tokenizer_config.json says
 * beside it (special tokens, chat template). STATUS_INVALID for one that tokenizer_new() refuses.
 */
int tokenizer_write(struct buf *ret_json, struct buf *ret_config, const struct model_files *files,
	struct errmsg *err);
/* From the text of a tokenizer.json alone (NUL-terminated). */
int tokenizer_new_json(struct tokenizer **ret, const char *json, size_t len, const char *what,
	struct errmsg *err);
void tokenizer_free(struct tokenizer *t);

int64_t tokenizer_vocab_size(const struct tokenizer *t); /* ids are below this */
int32_t tokenizer_eos(const struct tokenizer *t); /* -1: none */
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_id(const struct tokenizer *t, const char *token); /* -1: no such token */

/* BLAKE2b-256 of all that decides its ids. */
void tokenizer_digest(const struct tokenizer *t, uint8_t ret[32]);

struct ids {
	int32_t *data; /* owned */
	size_t len, cap;
};
void ids_deinit(struct ids *ids);
int ids_append(struct ids *ids, const int32_t *data, size_t n);

/* Appends the ids of text[len], equal to Hugging Face tokenizers' encode(). Added and special
 * tokens in the text are recognised, and bytes that the vocabulary lacks become the unknown token
 * or, where there is none, nothing, as there. add_special: what the post-processor adds (BOS, …).
 * STATUS_INVALID with the byte's position when the text is no UTF-8; -ENOMEM. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool add_special,
	struct ids *out, struct errmsg *err);

/* Appends the bytes that one token stands for wherever it may stand, perhaps half a character, for
 * people to look at. skip_special: nothing for special tokens. */
int tokenizer_decode(const struct tokenizer *t, int32_t id, bool skip_special, struct buf *out);

/* Ids into text as they come: what is put out, from first to last, is what Hugging Face tokenizers'
 * decode() makes of all of them, in whole characters; bytes that are none become U+FFFD as there.
 * An id without a token is nothing. What later ids may change is held back, until the end at most.
 * One thread; the tokenizer must outlive it. 0 or -ENOMEM. */
struct token_stream;
int token_stream_new(struct token_stream **ret, const struct tokenizer *t, bool skip_special);
void token_stream_free(struct token_stream *s);
int token_stream_put(struct token_stream *s, int32_t id, struct buf *out);
int token_stream_end(struct token_stream *s, struct buf *out);

/* ---- chat templates ---------------------------------------------------------------------- */

struct json_t;

struct message {
	const char *role, *content; /* lengths, for the content may hold anything but NUL */
	size_t role_len, content_len;
	const struct json_t *fields; /* all that the message has, role and content too, which are then not
	                              * read from above; NULL: nothing else */
};

/* Immutable once made, safe to render from several threads. */
struct chat_template;

/* A built-in one by `name` ("chatml", "smollm2", …), or, where name is NULL, the model's own: the
 * Jinja of model_files_chat_template(), with the special tokens that the model names. `files` may be
 * NULL beside a name. STATUS_INVALID: there is none, and the message lists the names; or the template
 * uses what is not supported, and the message has line and construct. */
int chat_template_new(struct chat_template **ret, const struct model_files *files, const char *name,
	struct errmsg *err);
/* From Jinja alone; `tokens` is a JSON object of special tokens ({"bos_token": "<s>"}), or NULL. */
int chat_template_new_source(struct chat_template **ret, const char *jinja, const char *tokens,
	struct errmsg *err);
void chat_template_free(struct chat_template *t);
const char *chat_template_name(const struct chat_template *t); /* a built-in's, or "own"; static */

/* BLAKE2b-256 of all that decides what it renders, the conversation apart. */
void chat_template_digest(const struct chat_template *t, uint8_t ret[32]);

/* The date that strftime_now tells every template: 2024-07-26, the day that Llama 3's templates fall
 * back to. The clock's would train another text after a restart at midnight. */
enum { CHAT_TEMPLATE_NOW = 1721952000 };

/* A span [start, end) of the rendered text that the assistant said, with what ends its turn. A token of
 * which a byte lies in a span is trained on. */
struct span {
	size_t start, end;
};

/* Appends the text as transformers' apply_chat_template renders it (tools and documents: none). The
 * assistant's turns go to spans[max_spans], unless that is NULL; *ret_n_spans is how many there are,
 * which may be more than there was room for. They are what {% generation %} marks, or, in a template
 * without it, what is found by rendering the conversation up to each turn (template-spans.c).
 * STATUS_INVALID, `out` as before: the template refuses the conversation, or the spans cannot be told. */
int chat_template_render(const struct chat_template *t, const struct message *messages, size_t n,
	bool add_generation_prompt, struct buf *out, struct span *spans, size_t max_spans,
	size_t *ret_n_spans, struct errmsg *err);

/* ---- datasets ---------------------------------------------------------------------------- */

enum row_format {
	ROWS_PROMPT_COMPLETION,
	ROWS_MESSAGES,
	ROWS_TEXT,
};

/* How rows are read. Field names NULL: told apart by their keys. */
struct rows_spec {
	const char *prompt_field, *completion_field;
};

/* One of the files that make up a dataset, for faults. */
struct rows_file {
	const char *name;
	size_t size;
};

struct rows_check {
	uint64_t rows;
	enum row_format format;
	uint64_t faults;
};

/* Reads all rows of a JSONL dataset and writes the first ten faults, one a line as
 * `file:line: what; what would be right`, into `faults`. Empty lines at the end are no rows.
 * STATUS_INVALID when there are faults or no rows at all; err then holds a summary. */
int rows_check(const char *data, size_t len, const struct rows_file *files, size_t n_files,
	const struct rows_spec *spec, struct rows_check *ret, struct buf *faults, struct errmsg *err);

/* The format of the first row, the others unread. STATUS_INVALID as rows_check(). */
int rows_format(const char *data, size_t len, const struct rows_spec *spec, enum row_format *ret,
	struct errmsg *err);

const char *row_format_name(enum row_format f); /* "prompt-completion", "messages", "text" */

enum overlong {
	OVERLONG_DROP,
	OVERLONG_TRUNCATE,
	OVERLONG_RAISE,
};

struct sample_options {
	struct rows_spec rows;
	int64_t max_length; /* 0: no limit */
	enum overlong overlong;
	bool train_on_prompt;
	const struct chat_template *chat_template; /* NULL: messages are refused */
	bool keep_all; /* for inspection: keep dropped rows, marked by `fault` */
	const struct rows_file *files; /* of the rows, for faults; none: they are numbered */
	size_t n_files;
	bool encoder_decoder; /* prompts go to the encoder, completions to the decoder */
	bool examples; /* the rows are struct questions' own: turns of examples are not trained on */
};

enum row_fault {
	ROW_OK,
	ROW_OVERLONG,    /* more than max_length tokens: dropped, or cut */
	ROW_UNTRAINABLE, /* no label: dropped */
	ROW_MISALIGNED,  /* the prompt's own tokens are no prefix of the row's; kept */
};

/* A tokenized dataset: sample i has ids[start[i] … start[i+1]). labels[j] is ids[j] where it is
 * trained on, -100 elsewhere; the shift by one is made when a batch is built. */
struct samples {
	uint64_t n;
	int64_t *start;    /* n + 1 */
	int32_t *ids, *labels;
	int64_t *source_len; /* n: how many of a sample's ids are the encoder's, which come first; NULL: the
	                      * model has no encoder */
	uint64_t *row;     /* n: the row's number in the dataset, from 0 */
	uint8_t *fault;    /* n: enum row_fault */
	uint64_t rows, overlong, untrainable, misaligned; /* counts over all rows */
	int64_t longest;   /* tokens, of all rows before cutting; of an encoder-decoder's, the longer side */
	int64_t longest_kept;
	uint64_t target_tokens; /* labels of samples to train on, a sample's first token apart: nothing
	                         * stands before it to predict it from */
};

/* Tokenizes as TRL's supervised fine-tuning does: prompt and completion are
 * joined as they are and the end-of-sequence token follows, unless the row ends with it; the mask
 * covers the encoded prompt's length. Messages: the chat template, labels on the assistant's turns.
 * Text: all of it and the end-of-sequence token. For an encoder-decoder prompt and completion are
 * encoded each by itself, with what the tokenizer adds, and max_length is for either. Several objects
 * on a line are several rows: that is how files without a final newline lie when they are joined.
 * `threads` share the work; the result does not depend on their number. OVERLONG_RAISE:
 * STATUS_INVALID naming the row. STATUS_INVALID also when no row is left to train on. */
int samples_new(struct samples **ret, const char *data, size_t len, const struct tokenizer *t,
	const struct sample_options *o, unsigned threads, struct errmsg *err);
void samples_free(struct samples *s);

/* ---- questions --------------------------------------------------------------------------- */

/* What comes after each example of rows that are text; so an answer ends there. */
#define EXAMPLE_END "\n\n"

/* A row to be answered: its prompt with examples before it, as the tokenizer is to have it, and what
 * the row says the answer is. NULL where there is none: text, a conversation that no assistant ends. */
struct question {
	uint64_t row;
	char *prompt, *reference;
	size_t prompt_len, reference_len;
};

struct questions {
	struct question *at;
	uint64_t n;
	enum row_format format;
	/* The same rows with their examples, in the order of `at`: a dataset for samples_new(), with
	 * no field names and with sample_options.examples. */
	struct buf rows;
};

struct question_options {
	struct rows_spec rows, example_rows;
	const struct chat_template *chat_template; /* NULL: messages are refused */
	uint64_t shots; /* examples before each */
	uint64_t seed;
	uint64_t limit; /* so many rows, drawn by the seed, in the order of the dataset; 0: all */
};

/*
 * Examples are drawn once, by the seed, and are the same for all rows; `examples` NULL: from the dataset
 * itself, where the one that is the row at hand makes way for another. Prompt and completion: prompt,
 * completion and EXAMPLE_END of each example, then the prompt. Messages: turns of the examples but for
 * system turns, after the row's own system turn. STATUS_INVALID: text rows with shots, formats that
 * differ, fewer examples than shots, a faulty row.
 */
int questions_new(struct questions **ret, const char *data, size_t len, const char *examples,
	size_t examples_len, const struct question_options *o, struct errmsg *err);
void questions_free(struct questions *q);
