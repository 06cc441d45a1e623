#include "daemon/trainer/stream.h"

#include <string.h>

#include "util/util.h"

void stream_deinit(struct stream *s)
{
	token_stream_free(s->tokens);
	buf_deinit(&s->held);
	buf_deinit(&s->text);
}

void stream_restart(struct stream *s)
{
	token_stream_free(s->tokens);
	s->tokens = NULL;
	s->held.len = s->text.len = 0;
	s->stopped = false;
}

/* Takes the first n bytes of a buffer away. */
static void consume(struct buf *b, size_t n)
{
	if (n > 0) {
		b->len -= n;
		memmove(b->data, b->data + n, b->len);
	}
}

/* ---- stop texts ------------------------------------------------------------------------------ */

/* Where the earliest stop text begins in what is held; its length where there is none. */
static size_t find_stop(const struct stream *s)
{
	size_t first = s->held.len;
	for (size_t i = 0; i < s->n_stops; i++) {
		const uint8_t *p = memmem(s->held.data, s->held.len, s->stops[i].data, s->stops[i].len);
		if (p && (size_t)(p - s->held.data) < first) {
			first = (size_t)(p - s->held.data);
		}
	}
	return first;
}

/* How many bytes at the end could be the beginning of a stop text. */
static size_t stop_begun(const struct stream *s)
{
	size_t longest = 0;
	for (size_t i = 0; i < s->n_stops; i++) {
		size_t n = s->stops[i].len - 1 < s->held.len ? s->stops[i].len - 1 : s->held.len;
		while (n > longest && memcmp(s->held.data + s->held.len - n, s->stops[i].data, n) != 0) {
			n--;
		}
		longest = n > longest ? n : longest;
	}
	return longest;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* Lets all go that no stop text can begin with; at the end, or where one was found, all up to it. */
static int release(struct stream *s, bool end)
{
	size_t n = find_stop(s);
	s->stopped = n < s->held.len;
	if (s->stopped) {
		s->held.len = n;
	} else if (!end) {
		n -= stop_begun(s);
	}
	int r = buf_append(&s->text, s->held.data, n);
	if (r == 0) {
		consume(&s->held, n);
	}
	return r;
}

int stream_add(struct stream *s, const struct tokenizer *t, int32_t id)
{
	int r = s->tokens ? 0 : token_stream_new(&s->tokens, t, true);
	r = r ? r : token_stream_put(s->tokens, id, &s->held);
	return r != 0 || s->stopped || s->held.len == 0 ? r : release(s, false);
}

int stream_end(struct stream *s)
{
	int r = s->tokens ? token_stream_end(s->tokens, &s->held) : 0;
	return r != 0 || s->held.len == 0 ? r : release(s, true);
}
