#pragma once
/*
 * Inside engine/text/: the parts of a tokenizer and the scratch it works in.
 *
 * A text passes these stations, as in Hugging Face tokenizers:
 *
 *   added tokens found in the raw text          added.c
 *   → normalizer, on what lies between           normalize.c
 *   → added tokens found in the normalized text  added.c
 *   → pre-tokenizer: cuts pieces into words      pretokenize.c (patterns.c, regex.c)
 *   → model: words into ids                      words.c (bpe.c, unigram.c)
 *   → post-processor: ids before and after       encode.c
 *
 * and ids the other way through decode.c.
 *
 * Of byte-level models, words are runs of raw bytes here; the printable stand-ins for bytes that the
 * ecosystem's files use ("Ġ" for a space) exist only while a vocabulary is read (vocab.c).
 */

#include <jansson.h>

#include "engine/model/model.h"
#include "engine/text/jinja/jinja.h"
#include "engine/text/text.h"
#include "engine/text/unicode.h"

/* ---- vocab.c: tokens by id and by text --------------------------------------------------- */

enum {
	TOKEN_PRESENT = 1, /* the id is in use */
	TOKEN_RAW = 2,     /* text, not byte-level: its bytes are not reachable by merging bytes */
	TOKEN_ADDED = 4,
	TOKEN_SPECIAL = 8,

	MAX_VOCAB = 1 << 22,
	MAX_TOKEN_BYTES = 1 << 16,
	MAX_ADDED = 1 << 18,
};

struct token {
	uint32_t offset, len; /* in vocab.bytes */
	uint8_t flags;
};

/* Two tables of names: byte-level tokens by the bytes they stand for, others by their text. */
struct vocab {
	bool text; /* set before the first token: no token is byte-level */
	struct buf bytes;
	struct token *tokens; /* size */
	size_t size, cap;     /* size: largest id + 1 */
	size_t count;         /* tokens of the model, added ones apart */
	uint32_t *slots;      /* id + 1, open addressing; 0: empty */
	size_t n_slots, used;
	uint8_t hash_key[16];
};

void vocab_init(struct vocab *v);
void vocab_deinit(struct vocab *v);

/* The bytes that a byte-level token's text stands for, appended to `out`: true; false, and nothing
 * appended, when a character of it stands for no byte. */
int byte_level_decode(const char *text, size_t len, struct buf *out, bool *ret_is_bytes);

/* The character, as a code point, that stands for a byte. */
uint32_t byte_level_char(uint8_t byte);

/* Adds the model's token `text` with this id. -EEXIST: id or text is taken. */
int vocab_add(struct vocab *v, const char *text, size_t len, int32_t id);
/* Adds a token that is text as it stands, reachable by id alone (added tokens). */
int vocab_add_raw(struct vocab *v, const char *text, size_t len, int32_t id, uint8_t flags);
/* The model's token with this text; -1: none. */
int32_t vocab_find(const struct vocab *v, const char *text, size_t len);
/* The byte-level token for these bytes; -1: none. */
int32_t vocab_find_bytes(const struct vocab *v, const void *bytes, size_t len);
/* The token of a text that stands for one byte, "<0x0A>"; -1: none. */
int32_t vocab_find_fallback(const struct vocab *v, uint8_t byte);

static inline const uint8_t *vocab_bytes(const struct vocab *v, int32_t id)
{
	return v->bytes.data + v->tokens[id].offset;
}

/* Tokens of one character by their code point, in pages. */
struct char_ids {
	uint16_t page[UNICODE_POINTS >> 8]; /* into pages; 0: a page without tokens */
	int32_t (*pages)[256];              /* owned; -1: none */
	size_t n_pages;
};

int char_ids_new(struct char_ids **ret, const struct vocab *v);
void char_ids_free(struct char_ids *c);

static inline int32_t char_id(const struct char_ids *chars, uint32_t c)
{
	return chars->pages[chars->page[c >> 8]][c & 0xFF];
}

/* ---- bpe.c ------------------------------------------------------------------------------- */

struct merge_slot {
	uint64_t pair; /* left << 32 | right; MERGE_EMPTY: none */
	uint32_t rank;
};

struct bpe {
	int32_t byte_id[256];   /* byte-level: the byte's token; text: its fallback; -1: none */
	struct char_ids *chars; /* text */
	/* Text: pairs of neighbouring characters that stand in some merged token, as bits by a hash of
	 * them. Between others no merge can reach across, and a word may be cut. NULL: never. */
	uint64_t *joined;
	bool byte_fallback;
	struct merge_slot *slots;
	size_t n_slots;
	uint32_t *result; /* [n_merges]: the id that a merge makes */
	uint64_t *pairs;  /* [n_merges] */
	size_t n_merges, cap;
	int32_t unk; /* -1: unknown bytes are dropped */
	bool fuse_unk, ignore_merges;
};

enum {
	JOINED_BITS = 1 << 20,
};

static inline uint32_t joined_bit(uint32_t a, uint32_t b)
{
	return (a * 0x9E3779B1u ^ b * 0x85EBCA6Bu) >> 12;
}

void bpe_deinit(struct bpe *b);
/* Merges come in order of rank. */
int bpe_add_merge(struct bpe *b, int32_t left, int32_t right, int32_t result);
/* Builds the tables once all merges and the vocabulary are known. */
int bpe_finish(struct bpe *b, const struct vocab *v);

/* ---- unigram.c --------------------------------------------------------------------------- */

enum {
	MAX_PIECE_BYTES = 1024, /* of a Unigram's token: encoding takes that many steps a byte */
};

struct unigram {
	double *scores; /* [vocab.size] */
	size_t cap;
	double min_score;
	int32_t unk; /* -1: none */
	bool byte_fallback;
	int32_t byte_id[256];
	struct prefix_tree *tree;
};

void unigram_deinit(struct unigram *u);
int unigram_add_score(struct unigram *u, int32_t id, double score);
int unigram_finish(struct unigram *u, const struct vocab *v);

/* ---- regex.c: Oniguruma patterns on PCRE2 ------------------------------------------------ */

struct regex;
struct regex_scratch;

/* Compiles a pattern as Hugging Face tokenizers would understand it. STATUS_INVALID when it uses
 * something that is not known to mean the same in PCRE2; err names it. */
int regex_new(struct regex **ret, const char *pattern, size_t len, struct errmsg *err);
/* The same for what a file gives as a pattern: a regular expression, or a text to be found as it
 * is. */
int regex_new_pattern(struct regex **ret, const char *text, size_t len, bool literal,
	struct errmsg *err);
void regex_free(struct regex *r);
/* The pattern as it was given. */
const char *regex_source(const struct regex *r, size_t *ret_len);

/* One thread's working memory, for any regex. */
struct regex_scratch *regex_scratch_new(void);
void regex_scratch_free(struct regex_scratch *s);

/* A run over all matches in text[len], as onig's find_iter. */
struct regex_iter {
	size_t at, last_end;
	bool any;
};
/* 1 and the match, 0 at the end, -errno. */
int regex_next(const struct regex *r, struct regex_scratch *scratch, struct regex_iter *it,
	const uint8_t *text, size_t len, size_t *ret_start, size_t *ret_end);

/* ---- normalize.c ------------------------------------------------------------------------- */

enum normalizer_kind {
	NORMALIZE_NFC,
	NORMALIZE_NFD,
	NORMALIZE_NFKC,
	NORMALIZE_NFKD,
	NORMALIZE_LOWERCASE,
	NORMALIZE_REPLACE,
	NORMALIZE_PREPEND,
	NORMALIZE_STRIP,
	NORMALIZE_STRIP_ACCENTS,
	NORMALIZE_CHARSMAP,
};

struct normalizer {
	enum normalizer_kind kind;
	struct regex *pattern; /* replace */
	char *literal;         /* replace: what to look for, where the pattern is a text */
	size_t literal_len;
	char *content;         /* replace, prepend */
	size_t content_len;
	bool left, right; /* strip */
	struct charsmap *charsmap;
};

/* A text and, for each of its bytes, where in the original text it comes from. */
struct aligned {
	struct buf text;
	bool unplaced; /* nobody asks where bytes come from: `origin` is not kept */
	uint32_t *origin;
	size_t cap;
};

int aligned_put(struct aligned *a, const void *bytes, size_t len, uint32_t origin);
/* Bytes that come from [origin, origin + len). */
int aligned_put_run(struct aligned *a, const void *bytes, size_t len, uint32_t origin);
/* in[start … end) as it is. */
int aligned_put_same(struct aligned *out, const struct aligned *in, size_t start, size_t end);

enum {
	MAX_NORMALIZERS = 64,
};

void normalizer_deinit(struct normalizer *n);
void aligned_deinit(struct aligned *a);
/* out = normalizer(in); `out` is emptied first. `classes`: unicode_classes_new(). */
int normalizer_run(const struct normalizer *n, const uint8_t *classes,
	struct regex_scratch *scratch, const struct aligned *in, struct aligned *out);

/* ---- charsmap.c: SentencePiece's compiled rules ------------------------------------------ */

/* STATUS_INVALID: no such thing. */
int charsmap_new(struct charsmap **ret, const uint8_t *data, size_t len, struct errmsg *err);
void charsmap_free(struct charsmap *m);
/* The bytes it was made of. */
const uint8_t *charsmap_source(const struct charsmap *m, size_t *ret_len);
int charsmap_run(const struct charsmap *m, const struct aligned *in, struct aligned *out);

/* ---- added.c ----------------------------------------------------------------------------- */

struct added_token {
	char *content; /* owned */
	size_t len;
	char *decoded; /* owned; what it is for decoders, where not the content: normalized */
	size_t decoded_len;
	int32_t id;
	bool single_word, lstrip, rstrip, normalized, special;
};

struct trie_node {
	uint32_t child, sibling; /* 0: none */
	int32_t token;           /* index into added; -1: none ends here */
	uint8_t byte;
};

struct trie {
	struct trie_node *nodes; /* nodes[0] is the root */
	size_t n, cap;
	uint32_t first[256]; /* the root's children */
};

void trie_deinit(struct trie *t);
/* -EEXIST: there is a token of this text. */
int trie_add(struct trie *t, const uint8_t *text, size_t len, int32_t token);

/* The added tokens in a text, one after the other, as added_vocabulary.rs finds them. */
struct added_iter {
	size_t at;   /* where to look on */
	size_t done; /* what lies before is handed out */
};
struct added_match {
	size_t start, end; /* of the token, with the spaces it swallows */
	const struct added_token *token;
};
bool added_next(const struct trie *t, const struct added_token *added, struct added_iter *it,
	const uint8_t *text, size_t len, struct added_match *ret);

/* ---- pretokenize.c ----------------------------------------------------------------------- */

enum pattern_kind {
	PATTERN_GPT2,   /* these three by hand: nearly all models use them, and they are the hot loop */
	PATTERN_LLAMA3,
	PATTERN_QWEN2,
	PATTERN_NUMERIC, /* each numeric character */
	PATTERN_REGEX,
	PATTERN_NONE, /* ByteLevel without its regex: the piece is a word */
	PATTERN_METASPACE,   /* changes the text first */
	PATTERN_SPACE,       /* each white space */
	PATTERN_PUNCTUATION, /* each punctuation character */
	PATTERN_WORDS,       /* runs of word characters, and of what is neither that nor space */
};

enum split_behavior {
	SPLIT_ISOLATED,
	SPLIT_REMOVED,
	SPLIT_MERGED_WITH_PREVIOUS,
	SPLIT_MERGED_WITH_NEXT,
	SPLIT_CONTIGUOUS,
};

struct split_step {
	enum pattern_kind kind;
	enum split_behavior behavior;
	bool invert;
	bool add_prefix_space; /* before splitting; of ByteLevel alone */
	struct regex *regex;
	/* Metaspace: spaces become this character; where a piece that does not start with it gets one;
	 * and whether to split before each. */
	char replacement[5];
	uint8_t replacement_len;
	enum prepend_scheme {
		PREPEND_NEVER,
		PREPEND_FIRST, /* the text's first piece alone */
		PREPEND_ALWAYS,
	} prepend;
	bool split;
};

enum {
	MAX_STEPS = 16,
};

extern const char pattern_gpt2[], pattern_llama3[], pattern_qwen2[];

/* One of the three that are matched by hand: the end of the word that starts at text[at]. */
size_t pattern_end(enum pattern_kind kind, const uint8_t *classes, const uint8_t *text, size_t len,
	size_t at);
/* A piece's next character of a class from `at` on: its start and length; false: none. */
bool pattern_next_class(const uint8_t *classes, uint8_t class, const uint8_t *text, size_t len,
	size_t at, size_t *ret_start, unsigned *ret_len);

/* A pattern written in a tokenizer.json. */
int split_step_pattern(struct split_step *s, const char *pattern, size_t len, bool literal,
	struct errmsg *err);

/* ---- decode.c ---------------------------------------------------------------------------- */

enum decode_kind {
	DECODE_JOIN, /* no decoder: tokens with spaces between them */
	DECODE_BYTE_LEVEL,
	DECODE_METASPACE,
	DECODE_REPLACE,
	DECODE_BYTE_FALLBACK,
	DECODE_STRIP,
	DECODE_FUSE,
};

struct decode_step {
	enum decode_kind kind;
	bool fused;            /* what comes in is parts of one token */
	bool first_loses;      /* metaspace: the first token's replacements go */
	struct regex *regex;   /* replace */
	char *text;            /* owned; replace: literal; metaspace, strip: the character */
	size_t text_len;
	char *content;         /* owned; replace */
	size_t content_len;
	size_t start;          /* strip: how many at most */
};

void decode_step_deinit(struct decode_step *s);

/* ---- the tokenizer ----------------------------------------------------------------------- */

enum model_kind {
	MODEL_BYTE_BPE, /* over bytes */
	MODEL_TEXT_BPE, /* over characters, with bytes to fall back to or not */
	MODEL_UNIGRAM,
};

struct tokenizer {
	enum model_kind model; /* vocab.text is set for all but the first */
	struct vocab vocab;
	struct bpe bpe;
	struct unigram unigram;
	struct decode_step decode_steps[MAX_STEPS];
	size_t n_decode_steps;
	bool needs_origin; /* a Metaspace asks whether a piece is the text's first */
	struct normalizer *normalizers;
	size_t n_normalizers;
	struct split_step steps[MAX_STEPS];
	size_t n_steps; /* of byte-level models, the last one is ByteLevel's */
	struct added_token *added;
	size_t n_added, added_cap;
	size_t n_new; /* added ones that the model's vocabulary has not */
	struct trie raw_trie, normalized_trie;
	struct ids before, after; /* what the post-processor adds */
	int32_t bos, eos;
	uint8_t *classes; /* unicode_classes_new() */
	uint8_t digest[32];
};

/* An empty one, to be filled by a reader and completed by tokenizer_finish(). */
struct tokenizer *tokenizer_alloc(void);
/* An added token, content copied; one whose id is -1 takes the model's token of that text, or the
 * next free id, as Hugging Face gives it. STATUS_INVALID: there is one like it, its id is not what
 * Hugging Face would give, or it is too long. */
int tokenizer_add_token(struct tokenizer *t, const struct added_token *token, const char *what,
	struct errmsg *err);
/* A step or normalizer, handed over whatever the result. -E2BIG: too many. */
int tokenizer_add_step(struct tokenizer *t, struct split_step *step);
int tokenizer_add_normalizer(struct tokenizer *t, struct normalizer *n);
int tokenizer_add_decode_step(struct tokenizer *t, struct decode_step *step);
/* The next merge, of tokens that the vocabulary holds. `rank` is its number, for faults. */
int tokenizer_add_merge(struct tokenizer *t, const char *left, size_t left_len, const char *right,
	size_t right_len, size_t rank, const char *what, struct errmsg *err);
/* The same from "left right". */
int tokenizer_add_merge_line(struct tokenizer *t, const char *line, size_t len, size_t rank,
	const char *what, struct errmsg *err);
/* Sets the digest; again after bos or eos has changed. */
void tokenizer_hash(struct tokenizer *t);
int tokenizer_finish(struct tokenizer *t, const char *what, struct errmsg *err);
int tokenizer_from_gguf(struct tokenizer **ret, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err);

/* Kinds of tokens in a GGUF. */
enum {
	GGUF_NORMAL = 1,
	GGUF_UNKNOWN = 2,
	GGUF_CONTROL = 3,
	GGUF_USER_DEFINED = 4,
	GGUF_UNUSED = 5,
};

/* What the one word "pre" of a GGUF stands for. */
struct gguf_pre {
	const char *name;
	enum pattern_kind pattern;
	bool digits;        /* each digit by itself, before the pattern */
	bool nfc;
	bool ignore_merges; /* a word that is a token is that token */
	bool add_bos;       /* whatever the file says: older ones do not say */
};
/* STATUS_INVALID names those that are known. */
int gguf_pre_find(const struct gguf_pre **ret, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err);
/* With tokenizer_config.json beside it (may be NULL), which names BOS and EOS. */
int tokenizer_from_json(struct tokenizer **ret, const char *json, size_t len, const char *config,
	size_t config_len, const char *what, struct errmsg *err);
/* NULL: no added token has this id. */
const struct added_token *tokenizer_added(const struct tokenizer *t, int32_t id);
bool tokenizer_is_special(const struct tokenizer *t, const char *text, size_t len);
/* The text of a token as it would stand in a text. */
const char *tokenizer_text(const struct tokenizer *t, int32_t id, size_t *ret_len);

/* ---- encode.c: one thread's scratch ------------------------------------------------------ */

struct token_place {
	uint32_t start, end; /* bytes of the original text */
};

struct places {
	struct token_place *data; /* owned */
	size_t len, cap;
};
int places_append(struct places *p, struct token_place place);

struct symbol {
	int32_t id; /* -1: merged into the one before */
	int32_t prev, next;
	uint32_t len;
};

struct word_slot;

struct encoder {
	const struct tokenizer *t;
	struct regex_scratch *regex;
	struct word_slot *cache; /* NULL: none */
	struct symbol *symbols;
	size_t symbols_cap;
	uint64_t *heap;
	size_t heap_len, heap_cap;
	struct path_node *path; /* unigram */
	size_t path_cap;
	struct aligned aligned[2];
	struct buf prefixed;
	struct aligned *spaced; /* [n_steps], where a Metaspace writes its text */
	/* where the ids go during a call */
	struct ids *out;
	struct places *places; /* NULL: nobody asks */
};

/* `texts`: many texts will follow, so that a cache of words is worth its memory. */
int encoder_init(struct encoder *e, const struct tokenizer *t, bool many);
void encoder_deinit(struct encoder *e);
/* As tokenizer_encode(); places, where not NULL, gets where each id's bytes lie in the text (ids
 * that the post-processor adds lie at an end and are empty). */
int encoder_run(struct encoder *e, const char *text, size_t len, bool add_special, struct ids *out,
	struct places *places, struct errmsg *err);

/* A piece of (normalized) text: where bytes of it lie in the original. */
struct piece {
	const uint8_t *text;
	size_t len;
	const uint32_t *origin; /* NULL: base + i */
	size_t base;
	size_t inserted; /* leading bytes that are in no original */
};
/* Cuts the piece and encodes its words. */
int pretokenize(struct encoder *e, const struct piece *p);
/* Encodes one word: text[start … end) of the piece. */
int encode_word(struct encoder *e, const struct piece *p, size_t start, size_t end);
int word_cache_new(struct word_slot **ret);
/* Room for n symbols. */
int encoder_symbols(struct encoder *e, size_t n);
/* A word into e->symbols; those whose id is -1 are none. */
int bpe_encode(struct encoder *e, const uint8_t *word, size_t len, size_t *ret_n);
/* -ENOKEY: a character is unknown, and there is no token for such. */
int unigram_encode(struct encoder *e, const uint8_t *word, size_t len, size_t *ret_n);

/* ---- chat templates, rows ---------------------------------------------------------------- */

struct chat_template {
	const char *name;
	struct jinja *jinja;
	json_t *vars;        /* what every render is given: special tokens */
	bool has_tool_calls; /* it mentions them */
	bool writes_prompt;  /* add_generation_prompt makes a difference */
	bool closes_alike;   /* a last turn ends as one that a question follows */
	uint8_t digest[32];
};

struct builtin_template {
	const char *name, *source;
};
const struct builtin_template *builtin_template(size_t i); /* NULL behind the last */

/* Appends the text of messages (an array). STATUS_INVALID; -ENOMEM. */
int chat_render(const struct chat_template *t, json_t *messages, bool prompt, struct buf *out,
	struct errmsg *err);

/* The assistant's turns in the text that begins at out->data + before, which messages gave. */
int chat_spans(const struct chat_template *t, json_t *messages, const struct buf *out, size_t before,
	struct span *spans, size_t max_spans, size_t *ret_n, struct errmsg *err);

/* Whether a conversation's last turn is closed by no more than an earlier one. */
bool chat_closes_alike(const struct chat_template *t);

/* What Python's str.strip() takes off, and the stretch of text[start … end) that it leaves. */
bool is_strip_space(uint32_t c);
void trim_space(const char *text, size_t *start, size_t *end);

/* A key of rows that questions.c makes; datasets of users may have it, and it says nothing then. */
#define QUESTION_EXAMPLES "examples"

/* One line of a dataset, checked. The strings belong to `root`. */
struct row {
	json_t *root; /* owned */
	enum row_format format;
	const char *prompt, *completion; /* prompt-completion; text: in `completion` */
	size_t prompt_len, completion_len;
	json_t *messages; /* messages: an array, checked */
	bool reals;       /* a whole number did not fit 64 bits: all were read as reals */
	uint64_t examples; /* of messages: so many of the first come from other rows (questions.c) */
};

void row_deinit(struct row *r);

/* Where a row reader stands in a line: several objects may follow one another where a file without
 * a final newline was joined with the next. */
struct row_reader {
	const char *line;
	size_t len, at;
};

/* Reads the next row of a line: 1 with *ret, 0 at the line's end. -EBADMSG: the row is bad, and
 * `fault` says what is wrong and what would be right. -ENOMEM. */
int row_next(struct row_reader *r, const struct rows_spec *spec, struct row *ret,
	struct errmsg *fault);

/* The message at `i` of a checked array. */
struct message row_message(const json_t *messages, size_t i);
