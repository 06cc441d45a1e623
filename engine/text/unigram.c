/*
 * Unigram: the cut of a word into tokens whose scores sum highest.
 *
 * As Hugging Face's Unigram::encode_optimized(), in double precision and with its order of
 * comparisons, on which ties depend: from each place the tokens that start there, shortest first; a
 * character that is no token counts as unknown, ten below the lowest score; runs of unknown ones
 * are one token.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

static const double UNKNOWN_PENALTY = 10;

/* ---- all tokens that start a text -------------------------------------------------------- */

struct prefix_node {
	uint32_t first; /* its children stand together, by their byte */
	uint16_t n;
	uint8_t byte;
	int32_t token; /* -1: none ends here */
};

struct prefix_tree {
	struct prefix_node *nodes; /* nodes[0] is the root */
	size_t n, cap;
	uint32_t start[256]; /* the root's children by their byte; 0: none */
};

static const struct prefix_node *prefix_child(const struct prefix_tree *t,
	const struct prefix_node *node, uint8_t byte)
{
	const struct prefix_node *low = t->nodes + node->first;
	size_t n = node->n;
	while (n > 4) {
		size_t half = n / 2;
		low = low[half].byte <= byte ? low + half : low;
		n -= half;
	}
	for (; n > 0; n--, low++) {
		if (low->byte == byte) {
			return low;
		}
	}
	return NULL;
}

/* What a token is sorted by. */
struct sorted_token {
	const uint8_t *text;
	uint32_t len;
	int32_t id;
};

static int compare_tokens(const void *a, const void *b)
{
	const struct sorted_token *x = a, *y = b;
	int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
	return c ? c : (x->len > y->len) - (x->len < y->len);
}

static int prefix_node_new(struct prefix_tree *t, uint8_t byte)
{
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 1024;
		struct prefix_node *nodes = cap <= UINT32_MAX ?
			realloc_array(t->nodes, cap, sizeof(*nodes)) : NULL;
		if (!nodes) {
			return -ENOMEM;
		}
		t->nodes = nodes;
		t->cap = cap;
	}
	t->nodes[t->n++] = (struct prefix_node){.byte = byte, .token = -1};
	return 0;
}

/* Level by level: the nodes of a level stand for runs of the sorted tokens that begin alike. */
static int prefix_level(struct prefix_tree *t, const struct sorted_token *tokens, uint32_t *runs,
	size_t level_start, size_t level_end, size_t depth)
{
	for (size_t node = level_start; node < level_end; node++) {
		size_t at = runs[2 * node], end = runs[2 * node + 1];
		if (at < end && tokens[at].len == depth) {
			t->nodes[node].token = tokens[at++].id;
		}
		t->nodes[node].first = (uint32_t)t->n;
		while (at < end) {
			uint8_t byte = tokens[at].text[depth];
			size_t from = at;
			while (at < end && tokens[at].text[depth] == byte) {
				at++;
			}
			runs[2 * t->n] = (uint32_t)from;
			runs[2 * t->n + 1] = (uint32_t)at;
			int r = prefix_node_new(t, byte);
			if (r < 0) {
				return r;
			}
			t->nodes[node].n++;
		}
	}
	return 0;
}

static int prefix_build(struct prefix_tree *t, const struct sorted_token *tokens, size_t n,
	size_t bytes)
{
	uint32_t *runs = alloc_array(bytes + 1, 2 * sizeof(*runs)); /* no more nodes than bytes */
	int r = runs ? prefix_node_new(t, 0) : -ENOMEM;
	if (r == 0) {
		runs[0] = 0;
		runs[1] = (uint32_t)n;
	}
	for (size_t start = 0, end = 1, depth = 0; r == 0 && start < end; depth++) {
		r = prefix_level(t, tokens, runs, start, end, depth);
		start = end;
		end = t->n;
	}
	free(runs);
	for (size_t i = 0; r == 0 && i < t->nodes[0].n; i++) {
		uint32_t child = t->nodes[0].first + (uint32_t)i;
		t->start[t->nodes[child].byte] = child;
	}
	return r;
}

static void prefix_tree_free(struct prefix_tree *t)
{
	if (t) {
		free(t->nodes);
		free(t);
	}
}

/* ---- the model --------------------------------------------------------------------------- */

void unigram_deinit(struct unigram *u)
{
	free(u->scores);
	prefix_tree_free(u->tree);
}

int unigram_add_score(struct unigram *u, int32_t id, double score)
{
	if ((size_t)id >= u->cap) {
		size_t cap = u->cap ? 2 * u->cap : 1024;
		while (cap <= (size_t)id) {
			cap *= 2;
		}
		double *scores = realloc_array(u->scores, cap, sizeof(*scores));
		if (!scores) {
			return -ENOMEM;
		}
		u->scores = scores;
		u->cap = cap;
	}
	u->scores[id] = score;
	u->min_score = id == 0 || score < u->min_score ? score : u->min_score;
	return 0;
}

/* The model's own tokens: the first v->count ids. */
int unigram_finish(struct unigram *u, const struct vocab *v)
{
	struct sorted_token *tokens = alloc_array(v->count + 1, sizeof(*tokens));
	u->tree = calloc_array(1, sizeof(*u->tree));
	if (!tokens || !u->tree) {
		free(tokens);
		return -ENOMEM;
	}
	size_t n = 0, bytes = 0;
	for (size_t id = 0; id < v->count; id++) {
		const struct token *t = &v->tokens[id];
		if (t->len > 0) {
			tokens[n++] = (struct sorted_token){vocab_bytes(v, (int32_t)id), t->len, (int32_t)id};
			bytes += t->len;
		}
	}
	if (n > 0) {
		qsort(tokens, n, sizeof(*tokens), compare_tokens);
	}
	int r = prefix_build(u->tree, tokens, n, bytes);
	free(tokens);
	for (unsigned i = 0; i < 256; i++) {
		u->byte_id[i] = vocab_find_fallback(v, (uint8_t)i);
	}
	return r;
}

/* ---- one word ---------------------------------------------------------------------------- */

/* The best way to a place in the word. */
struct path_node {
	double score;
	int32_t id;
	uint32_t start; /* of the last token; NOWHERE: none leads here yet */
};

#define NOWHERE UINT32_MAX

static inline void offer(struct path_node *to, double score, int32_t id, size_t start)
{
	if (to->start == NOWHERE || score > to->score) {
		*to = (struct path_node){.score = score, .id = id, .start = (uint32_t)start};
	}
}

static int find_path(const struct unigram *u, struct path_node *path, const uint8_t *word,
	size_t len)
{
	double unknown = u->min_score - UNKNOWN_PENALTY;
	unsigned width;

	for (size_t at = 0; at < len; at += width) {
		double here = path[at].score;
		bool single = false;
		utf8_get(word + at, &width);
		const struct prefix_node *node = u->tree->start[word[at]] ?
			&u->tree->nodes[u->tree->start[word[at]]] : NULL;
		for (size_t end = at + 1; node; end++) {
			if (node->token >= 0) {
				offer(&path[end], u->scores[node->token] + here, node->token, at);
				single |= end - at == width;
			}
			node = end < len ? prefix_child(u->tree, node, word[end]) : NULL;
		}
		if (!single) {
			if (u->unk < 0 && (path[at + width].start == NOWHERE ||
					unknown + here > path[at + width].score)) {
				return -ENOKEY;
			}
			offer(&path[at + width], unknown + here, u->unk, at);
		}
	}
	return 0;
}

/* A run of unknown characters, from its end backwards like all of them here. */
static void add_unknown(struct encoder *e, size_t *n, const uint8_t *word, size_t start, size_t end)
{
	const struct unigram *u = &e->t->unigram;
	int32_t id = vocab_find(&e->t->vocab, (const char *)word + start, end - start);
	bool fallback = id < 0 && u->byte_fallback;
	for (size_t i = start; i < end && fallback; i++) {
		fallback = u->byte_id[word[i]] >= 0;
	}
	if (!fallback) {
		e->symbols[(*n)++] = (struct symbol){.id = id >= 0 ? id : u->unk,
			.len = (uint32_t)(end - start)};
		return;
	}
	for (size_t i = end; i-- > start;) {
		e->symbols[(*n)++] = (struct symbol){.id = u->byte_id[word[i]], .len = 1};
	}
}

static size_t take_path(struct encoder *e, const uint8_t *word, size_t len)
{
	const struct path_node *path = e->path;
	int32_t unk = e->t->unigram.unk;
	size_t n = 0;
	for (size_t end = len; end > 0;) {
		size_t start = path[end].start;
		if (path[end].id != unk || unk < 0) {
			e->symbols[n++] = (struct symbol){.id = path[end].id, .len = (uint32_t)(end - start)};
		} else {
			while (start > 0 && path[start].id == unk) {
				start = path[start].start;
			}
			add_unknown(e, &n, word, start, end);
		}
		end = start;
	}
	for (size_t i = 0; i < n / 2; i++) {
		struct symbol swap = e->symbols[i];
		e->symbols[i] = e->symbols[n - 1 - i];
		e->symbols[n - 1 - i] = swap;
	}
	return n;
}

int unigram_encode(struct encoder *e, const uint8_t *word, size_t len, size_t *ret_n)
{
	if (len + 1 > e->path_cap) {
		size_t cap = len < 64 ? 65 : len + len / 2;
		struct path_node *path = realloc_array(e->path, cap, sizeof(*path));
		if (!path) {
			return -ENOMEM;
		}
		e->path = path;
		e->path_cap = cap;
	}
	for (size_t i = 0; i <= len; i++) {
		e->path[i] = (struct path_node){.id = -1, .start = NOWHERE};
	}
	int r = encoder_symbols(e, len);
	r = r < 0 ? r : find_path(&e->t->unigram, e->path, word, len);
	if (r == 0) {
		*ret_n = take_path(e, word, len);
	}
	return r;
}
