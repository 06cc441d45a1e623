/* Putting a tokenizer together from what its readers found. */

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

struct tokenizer *tokenizer_alloc(void)
{
	struct tokenizer *t = calloc_array(1, sizeof(*t));
	if (t) {
		vocab_init(&t->vocab);
		t->bpe.unk = t->unigram.unk = t->bos = t->eos = -1;
	}
	return t;
}

void tokenizer_free(struct tokenizer *t)
{
	if (!t) {
		return;
	}
	vocab_deinit(&t->vocab);
	bpe_deinit(&t->bpe);
	unigram_deinit(&t->unigram);
	for (size_t i = 0; i < t->n_normalizers; i++) {
		normalizer_deinit(&t->normalizers[i]);
	}
	free(t->normalizers);
	for (size_t i = 0; i < t->n_steps; i++) {
		regex_free(t->steps[i].regex);
	}
	for (size_t i = 0; i < t->n_decode_steps; i++) {
		decode_step_deinit(&t->decode_steps[i]);
	}
	for (size_t i = 0; i < t->n_added; i++) {
		free(t->added[i].content);
		free(t->added[i].decoded);
	}
	free(t->added);
	trie_deinit(&t->raw_trie);
	trie_deinit(&t->normalized_trie);
	ids_deinit(&t->before);
	ids_deinit(&t->after);
	free(t->classes);
	free(t);
}

/* ---- parts ------------------------------------------------------------------------------- */

int tokenizer_add_step(struct tokenizer *t, struct split_step *step)
{
	if (t->n_steps == MAX_STEPS) {
		regex_free(step->regex);
		return -E2BIG;
	}
	t->steps[t->n_steps++] = *step;
	t->needs_origin |= step->kind == PATTERN_METASPACE && step->prepend == PREPEND_FIRST;
	return 0;
}

int tokenizer_add_decode_step(struct tokenizer *t, struct decode_step *step)
{
	if (t->n_decode_steps == MAX_STEPS) {
		decode_step_deinit(step);
		return -E2BIG;
	}
	t->decode_steps[t->n_decode_steps++] = *step;
	return 0;
}

int tokenizer_add_normalizer(struct tokenizer *t, struct normalizer *n)
{
	int r = -E2BIG;
	if (t->n_normalizers < MAX_NORMALIZERS) {
		struct normalizer *p = realloc_array(t->normalizers, t->n_normalizers + 1, sizeof(*p));
		r = p ? 0 : -ENOMEM;
		t->normalizers = p ? p : t->normalizers;
	}
	if (r < 0) {
		normalizer_deinit(n);
		return r;
	}
	t->normalizers[t->n_normalizers++] = *n;
	return 0;
}

const struct added_token *tokenizer_added(const struct tokenizer *t, int32_t id)
{
	if (id < 0 || (size_t)id >= t->vocab.size || !(t->vocab.tokens[id].flags & TOKEN_ADDED)) {
		return NULL;
	}
	size_t low = 0, high = t->n_added;
	while (low < high) { /* sorted by id once the tokenizer is finished */
		size_t middle = low + (high - low) / 2;
		if (t->added[middle].id < id) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	return low < t->n_added && t->added[low].id == id ? &t->added[low] : NULL;
}

bool tokenizer_is_special(const struct tokenizer *t, const char *text, size_t len)
{
	for (size_t i = 0; i < t->n_added; i++) {
		const struct added_token *a = &t->added[i];
		if (a->special && a->len == len && memcmp(a->content, text, len) == 0) {
			return true;
		}
	}
	return false;
}

static int append_added(struct tokenizer *t, const struct added_token *token)
{
	if (t->n_added == t->added_cap) {
		size_t cap = t->added_cap ? 2 * t->added_cap : 32;
		struct added_token *added = realloc_array(t->added, cap, sizeof(*added));
		if (!added) {
			return -ENOMEM;
		}
		t->added = added;
		t->added_cap = cap;
	}
	struct added_token *copy = &t->added[t->n_added];
	*copy = *token;
	copy->decoded = NULL;
	copy->content = malloc(token->len + 1);
	if (!copy->content) {
		return -ENOMEM;
	}
	memcpy(copy->content, token->content, token->len);
	copy->content[token->len] = '\0';
	t->n_added++;
	return 0;
}

int tokenizer_add_token(struct tokenizer *t, const struct added_token *token, const char *what,
	struct errmsg *err)
{
	struct vocab *v = &t->vocab;
	struct added_token a = *token;
	uint8_t flags = (uint8_t)(TOKEN_ADDED | (a.special ? TOKEN_SPECIAL : 0));

	if (t->n_added >= MAX_ADDED) {
		return errmsg_set(err, STATUS_INVALID, "%s: more than %d added tokens", what, MAX_ADDED);
	}
	if (a.len == 0 || a.len > MAX_TOKEN_BYTES) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: an added token has %zu bytes; supported are 1 to %d", what, a.len,
			MAX_TOKEN_BYTES);
	}
	int32_t known = vocab_find(v, a.content, a.len);
	/* Hugging Face numbers new tokens on from the count of the model's own. */
	int32_t expected = known >= 0 ? known : (int32_t)(v->count + t->n_new);
	if (a.id < 0) {
		a.id = expected;
	}
	if (a.id != expected) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: the added token %.*s says id %d; by the vocabulary it is %d", what,
			(int)min_i64((int64_t)a.len, 100), a.content, a.id, expected);
	}
	if ((size_t)a.id < v->size && v->tokens[a.id].flags & TOKEN_ADDED) {
		return errmsg_set(err, STATUS_INVALID, "%s: the added token %.*s is listed twice", what,
			(int)min_i64((int64_t)a.len, 100), a.content);
	}
	int r = 0;
	if (known < 0) {
		r = vocab_add_raw(v, a.content, a.len, a.id, flags);
		if (r == -EEXIST || r == -ERANGE) {
			return errmsg_set(err, STATUS_INVALID,
				"%s: the added token %.*s has id %d, which is taken or too large", what,
				(int)min_i64((int64_t)a.len, 100), a.content, a.id);
		}
		t->n_new += r == 0;
	} else {
		v->tokens[known].flags |= flags;
	}
	return r < 0 ? r : append_added(t, &a);
}

int tokenizer_add_merge(struct tokenizer *t, const char *left, size_t left_len, const char *right,
	size_t right_len, size_t rank, const char *what, struct errmsg *err)
{
	int32_t a = vocab_find(&t->vocab, left, left_len);
	int32_t b = vocab_find(&t->vocab, right, right_len);
	char *joined = malloc(left_len + right_len + 1);
	if (!joined) {
		return -ENOMEM;
	}
	memcpy(joined, left, left_len);
	memcpy(joined + left_len, right, right_len);
	int32_t result = vocab_find(&t->vocab, joined, left_len + right_len);
	free(joined);
	if (a < 0 || b < 0 || result < 0) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: merge %zu (%.*s %.*s) is of tokens, or makes one, that the vocabulary lacks", what,
			rank, (int)min_i64((int64_t)left_len, 100), left,
			(int)min_i64((int64_t)right_len, 100), right);
	}
	return bpe_add_merge(&t->bpe, a, b, result);
}

int tokenizer_add_merge_line(struct tokenizer *t, const char *line, size_t len, size_t rank,
	const char *what, struct errmsg *err)
{
	const char *space = memchr(line, ' ', len);
	size_t left = space ? (size_t)(space - line) : 0;
	if (!space || memchr(space + 1, ' ', len - left - 1) || !utf8_valid(line, len, NULL)) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: merge %zu is not two tokens with one space between them", what, rank);
	}
	return tokenizer_add_merge(t, line, left, space + 1, len - left - 1, rank, what, err);
}

/* ---- finishing --------------------------------------------------------------------------- */

static int compare_added(const void *a, const void *b)
{
	const struct added_token *x = a, *y = b;
	return (x->id > y->id) - (x->id < y->id);
}

/* The content as the normalizers leave it. */
static int normalized_content(const struct tokenizer *t, const struct added_token *token,
	struct aligned *in, struct aligned *out, struct aligned **ret)
{
	struct regex_scratch *scratch = regex_scratch_new();
	uint32_t *origin = calloc_array(token->len, sizeof(*origin));
	int r = scratch && origin ? 0 : -ENOMEM;
	if (r == 0) {
		free(in->origin);
		in->origin = steal_ptr(origin);
		in->cap = token->len;
		in->text.len = 0;
		r = buf_append(&in->text, token->content, token->len);
	}
	for (size_t i = 0; i < t->n_normalizers && r == 0; i++) {
		r = normalizer_run(&t->normalizers[i], t->classes, scratch, in, out);
		struct aligned *swap = in;
		in = out;
		out = swap;
	}
	regex_scratch_free(scratch);
	free(origin);
	*ret = in;
	return r;
}

/* Decoders get the normalized text, if it is another one. */
static int keep_decoded(struct added_token *token, const struct buf *text)
{
	if (text->len == token->len && memcmp(text->data, token->content, token->len) == 0) {
		return 0;
	}
	token->decoded = malloc(text->len + 1);
	if (!token->decoded) {
		return -ENOMEM;
	}
	memcpy(token->decoded, text->data, text->len);
	token->decoded_len = text->len;
	return 0;
}

static int add_to_trie(struct tokenizer *t, size_t i, const char *what, struct errmsg *err)
{
	struct added_token *token = &t->added[i];
	struct aligned work[2] = {0}, *content;
	int r;

	if (!token->normalized || t->n_normalizers == 0) {
		r = trie_add(token->normalized ? &t->normalized_trie : &t->raw_trie,
			(const uint8_t *)token->content, token->len, (int32_t)i);
	} else {
		r = normalized_content(t, token, &work[0], &work[1], &content);
		if (r == 0 && content->text.len == 0) {
			r = errmsg_set(err, STATUS_INVALID,
				"%s: the normalizer leaves nothing of the added token %.100s", what,
				token->content);
		} else if (r == 0) {
			r = trie_add(&t->normalized_trie, content->text.data, content->text.len, (int32_t)i);
			r = r == 0 ? keep_decoded(token, &content->text) : r;
		}
	}
	if (r == -EOVERFLOW) {
		r = errmsg_set(err, STATUS_INVALID,
			"%s: the normalizers make more than 2 GiB of the added token %.100s", what,
			token->content);
	}
	if (r == -EEXIST) {
		r = errmsg_set(err, STATUS_INVALID,
			"%s: the added token %.100s is equal to another one, or becomes it when normalized",
			what, token->content);
	}
	aligned_deinit(&work[0]);
	aligned_deinit(&work[1]);
	return r;
}

static void hash_number(crypto_generichash_state *h, int64_t n)
{
	uint8_t bytes[8];
	le64_write(bytes, (uint64_t)n);
	crypto_generichash_update(h, bytes, sizeof(bytes));
}

static void hash_text(crypto_generichash_state *h, const void *text, size_t len)
{
	hash_number(h, (int64_t)len);
	crypto_generichash_update(h, text ? text : "", len);
}

static void hash_regex(crypto_generichash_state *h, const struct regex *r)
{
	size_t len = 0;
	const char *source = r ? regex_source(r, &len) : NULL;
	hash_text(h, source, len);
}

static void hash_parts(crypto_generichash_state *h, const struct tokenizer *t)
{
	hash_number(h, (int64_t)t->n_normalizers);
	for (size_t i = 0; i < t->n_normalizers; i++) {
		const struct normalizer *n = &t->normalizers[i];
		hash_number(h, n->kind << 2 | n->left << 1 | n->right);
		hash_regex(h, n->pattern);
		hash_text(h, n->content, n->content_len);
		if (n->charsmap) {
			size_t len;
			const uint8_t *source = charsmap_source(n->charsmap, &len);
			hash_text(h, source, len);
		}
	}
	hash_number(h, (int64_t)t->n_steps);
	for (size_t i = 0; i < t->n_steps; i++) {
		const struct split_step *s = &t->steps[i];
		hash_number(h, s->kind << 8 | s->behavior << 2 | s->invert << 1 | s->add_prefix_space);
		hash_regex(h, s->regex);
		if (s->kind == PATTERN_METASPACE) {
			hash_text(h, s->replacement, s->replacement_len);
			hash_number(h, s->prepend << 1 | s->split);
		}
	}
}

/* Of kinds of model that came after the first. */
static void hash_model(crypto_generichash_state *h, const struct tokenizer *t)
{
	if (t->model == MODEL_BYTE_BPE) {
		return;
	}
	hash_number(h, t->model);
	hash_number(h, t->bpe.byte_fallback << 1 | t->unigram.byte_fallback);
	hash_number(h, t->unigram.unk);
	for (size_t i = 0; t->model == MODEL_UNIGRAM && i < t->vocab.count; i++) {
		int64_t bits;
		memcpy(&bits, &t->unigram.scores[i], sizeof(bits));
		hash_number(h, bits);
	}
}

/* Over what was understood and not over a file, so that the same tokenizer from a GGUF and from a
 * folder has one digest. Raise the version when ids may change. */
void tokenizer_hash(struct tokenizer *t)
{
	static const char version[] = "peftd tokenizer 1";
	const struct vocab *v = &t->vocab;
	crypto_generichash_state h;

	crypto_generichash_init(&h, NULL, 0, sizeof(t->digest));
	hash_text(&h, version, strlen(version));
	hash_parts(&h, t);
	hash_model(&h, t);
	for (size_t i = 0; i < v->size; i++) {
		hash_number(&h, v->tokens[i].flags);
		hash_text(&h, v->bytes.data + v->tokens[i].offset, v->tokens[i].len);
	}
	hash_number(&h, (int64_t)t->bpe.n_merges);
	for (size_t i = 0; i < t->bpe.n_merges; i++) {
		hash_number(&h, (int64_t)t->bpe.pairs[i]);
		hash_number(&h, t->bpe.result[i]);
	}
	hash_number(&h, t->bpe.unk);
	hash_number(&h, t->bpe.fuse_unk << 1 | t->bpe.ignore_merges);
	for (size_t i = 0; i < t->n_added; i++) {
		const struct added_token *a = &t->added[i];
		hash_number(&h, a->id);
		hash_text(&h, a->content, a->len);
		hash_number(&h, a->single_word << 4 | a->lstrip << 3 | a->rstrip << 2 | a->normalized << 1 |
			a->special);
	}
	for (size_t i = 0; i < t->before.len; i++) {
		hash_number(&h, t->before.data[i]);
	}
	hash_number(&h, -1);
	for (size_t i = 0; i < t->after.len; i++) {
		hash_number(&h, t->after.data[i]);
	}
	hash_number(&h, t->bos);
	hash_number(&h, t->eos);
	crypto_generichash_final(&h, t->digest, sizeof(t->digest));
}

int tokenizer_finish(struct tokenizer *t, const char *what, struct errmsg *err)
{
	int r = t->model == MODEL_UNIGRAM ? unigram_finish(&t->unigram, &t->vocab) :
		bpe_finish(&t->bpe, &t->vocab);
	t->classes = unicode_classes_new();
	if (r < 0 || !t->classes) {
		return -ENOMEM;
	}
	if (t->n_added > 0) {
		qsort(t->added, t->n_added, sizeof(*t->added), compare_added);
	}
	for (size_t i = 0; i < t->n_added && r == 0; i++) {
		r = add_to_trie(t, i, what, err);
	}
	if (r != 0) {
		return r;
	}
	if (t->eos >= 0 && !tokenizer_text(t, t->eos, &(size_t){0})) {
		return errmsg_set(
			err, STATUS_INVALID, "%s: the end-of-sequence token, %d, is no token", what, t->eos);
	}
	tokenizer_hash(t);
	return 0;
}

/* ---- questions --------------------------------------------------------------------------- */

const char *tokenizer_text(const struct tokenizer *t, int32_t id, size_t *ret_len)
{
	const struct vocab *v = &t->vocab;
	if (id < 0 || (size_t)id >= v->size || !(v->tokens[id].flags & TOKEN_PRESENT)) {
		return NULL;
	}
	const struct added_token *a = tokenizer_added(t, id);
	*ret_len = a ? a->len : v->tokens[id].len;
	return a ? a->content : (const char *)vocab_bytes(v, id);
}

int64_t tokenizer_vocab_size(const struct tokenizer *t)
{
	return (int64_t)t->vocab.size;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
	return t->eos;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
	return t->bos;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token)
{
	size_t len = strlen(token);
	if (!utf8_valid(token, len, NULL)) {
		return -1;
	}
	for (size_t i = 0; i < t->n_added; i++) {
		if (t->added[i].len == len && memcmp(t->added[i].content, token, len) == 0) {
			return t->added[i].id;
		}
	}
	return vocab_find(&t->vocab, token, len);
}

void tokenizer_digest(const struct tokenizer *t, uint8_t ret[32])
{
	memcpy(ret, t->digest, 32);
}

int tokenizer_new_json(struct tokenizer **ret, const char *json, size_t len, const char *what,
	struct errmsg *err)
{
	return tokenizer_from_json(ret, json, len, NULL, 0, what, err);
}

int tokenizer_new(struct tokenizer **ret, const struct model_files *files, struct errmsg *err)
{
	const struct gguf_tokenizer *gguf = model_files_gguf_tokenizer(files);
	const char *path = model_files_path(files);
	struct tokenizer *t = NULL;
	int r;

	if (gguf) {
		r = tokenizer_from_gguf(&t, gguf, path, err);
	} else {
		size_t len, config_len = 0;
		const char *json = model_files_text(files, "tokenizer.json", &len);
		const char *config = model_files_text(files, "tokenizer_config.json", &config_len);
		if (!json) {
			return errmsg_set(err, STATUS_INVALID, "%s: there is no tokenizer.json; save the "
				"tokenizer with save_pretrained() of a fast tokenizer", path);
		}
		r = tokenizer_from_json(&t, json, len, config, config_len, "tokenizer.json", err);
		if (r > 0) {
			return errmsg_prefix(err, r, "%s", path);
		}
	}
	if (r != 0) {
		return r;
	}
	const struct model_config *c = model_files_config(files);
	size_t text_len;
	if (t->eos < 0 && tokenizer_text(t, c->eos_token_id, &text_len)) {
		t->eos = c->eos_token_id;
	}
	if (t->bos < 0 && tokenizer_text(t, c->bos_token_id, &text_len)) {
		t->bos = c->bos_token_id;
	}
	tokenizer_hash(t);
	*ret = t;
	return 0;
}
