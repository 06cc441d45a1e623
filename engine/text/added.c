/* Added tokens in a text: leftmost, and of those that start together the longest. */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

void trie_deinit(struct trie *t)
{
	free(t->nodes);
}

static int trie_node_new(struct trie *t, uint8_t byte, uint32_t *ret)
{
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 64;
		struct trie_node *nodes = realloc_array(t->nodes, cap, sizeof(*nodes));
		if (!nodes || cap > UINT32_MAX) {
			return -ENOMEM;
		}
		t->nodes = nodes;
		t->cap = cap;
	}
	t->nodes[t->n] = (struct trie_node){.token = -1, .byte = byte};
	*ret = (uint32_t)t->n++;
	return 0;
}

static uint32_t trie_child(const struct trie *t, uint32_t node, uint8_t byte)
{
	if (node == 0) {
		return t->first[byte];
	}
	uint32_t child = t->nodes[node].child;
	while (child && t->nodes[child].byte != byte) {
		child = t->nodes[child].sibling;
	}
	return child;
}

int trie_add(struct trie *t, const uint8_t *text, size_t len, int32_t token)
{
	uint32_t node = 0, next;
	int r = 0;
	if (t->n == 0) {
		r = trie_node_new(t, 0, &next); /* the root */
	}
	for (size_t i = 0; i < len && r == 0; i++, node = next) {
		next = trie_child(t, node, text[i]);
		if (next) {
			continue;
		}
		r = trie_node_new(t, text[i], &next);
		if (r < 0) {
			return r;
		}
		if (node == 0) {
			t->first[text[i]] = next;
		} else {
			t->nodes[next].sibling = t->nodes[node].child;
			t->nodes[node].child = next;
		}
	}
	if (r < 0) {
		return r;
	}
	if (t->nodes[node].token >= 0) {
		return -EEXIST;
	}
	t->nodes[node].token = token;
	return 0;
}

/* Length of the longest token at p, 0 if there is none. */
static size_t trie_match(const struct trie *t, const uint8_t *p, size_t len, int32_t *ret_token)
{
	size_t best = 0;
	uint32_t node = 0;
	for (size_t i = 0; i < len; i++) {
		node = trie_child(t, node, p[i]);
		if (!node) {
			break;
		}
		if (t->nodes[node].token >= 0) {
			best = i + 1;
			*ret_token = t->nodes[node].token;
		}
	}
	return best;
}

static bool word_before(const uint8_t *text, size_t at)
{
	unsigned n;
	return at > 0 && unicode_is_word(utf8_get(text + at - utf8_last_len(text, at), &n));
}

static bool word_after(const uint8_t *text, size_t at, size_t len)
{
	unsigned n;
	return at < len && unicode_is_word(utf8_get(text + at, &n));
}

bool added_next(const struct trie *t, const struct added_token *added, struct added_iter *it,
	const uint8_t *text, size_t len, struct added_match *ret)
{
	while (t->n > 0 && it->at < len) {
		int32_t index;
		size_t n = t->first[text[it->at]] ? trie_match(t, text + it->at, len - it->at, &index) : 0;
		if (n == 0) {
			it->at++;
			continue;
		}
		const struct added_token *token = &added[index];
		size_t start = it->at, end = start + n;
		unsigned width;
		it->at = end;
		if (token->single_word && (word_before(text, start) || word_after(text, end, len))) {
			continue;
		}
		while (token->lstrip && start > it->done) {
			size_t last = utf8_last_len(text, start);
			if (!unicode_is_space(utf8_get(text + start - last, &width))) {
				break;
			}
			start -= last;
		}
		while (token->rstrip && end < len && unicode_is_space(utf8_get(text + end, &width))) {
			end += width;
		}
		*ret = (struct added_match){.start = start, .end = end, .token = token};
		return true;
	}
	return false;
}
