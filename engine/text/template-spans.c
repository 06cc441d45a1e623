/*
 * Where the assistant's words stand in a text whose template does not mark them.
 *
 * The sure way to know what a model will have to say is to ask the template what it will be shown:
 * the conversation before a turn, with the generation prompt, is where that turn's words begin, if the
 * whole text begins with it; and the conversation up to the turn is where they end, likewise. That
 * takes in what closes the turn, and all that the template puts before the content behind the prompt.
 *
 * It does not hold for templates that write earlier turns in another way once later ones have come
 * (thoughts taken out, the system's words moved to the last question). There, a character that occurs
 * nowhere is put at the end of the content in question (or the beginning), and shows the place, provided
 * that the text is the same once it is taken out again. What closes the turn is then what follows it
 * both here and where the conversation ends with it.
 *
 * Where neither holds the template is refused: a wrong mask is worse than none.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

struct search {
	const struct chat_template *t;
	json_t *messages;
	const char *text; /* the whole, without a generation prompt */
	size_t len;
	char mark[4]; /* a character that the whole lacks */
	struct buf a, b; /* room for other texts */
	size_t before;  /* where the turn before ends */
	struct errmsg *err;
};

enum { NOWHERE = 1000 }; /* beside STATUS_* and negative errno: this way does not lead there */

static int render(struct search *s, json_t *messages, bool prompt, struct buf *out)
{
	struct errmsg ignored;
	out->len = 0;
	int r = chat_render(s->t, messages, prompt, out, &ignored);
	return r > 0 ? NOWHERE : r;
}

static bool is_prefix(const struct search *s, const struct buf *b)
{
	return b->len <= s->len && (b->len == 0 || memcmp(b->data, s->text, b->len) == 0);
}

/* A character of the private use area that the text lacks. */
static bool choose_mark(struct search *s)
{
	for (unsigned c = 0; c < 64; c++) {
		s->mark[0] = '\xEE';
		s->mark[1] = '\x80';
		s->mark[2] = (char)(0x80 + c);
		if (!memmem(s->text, s->len, s->mark, 3)) {
			return true;
		}
	}
	return false;
}

static json_t *first_messages(const struct search *s, size_t n)
{
	json_t *list = json_array();
	for (size_t i = 0; list && i < n; i++) {
		if (json_array_append(list, json_array_get(s->messages, i)) != 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

/* The length of the text of the first n messages, where the whole begins with it. */
static int prefix_length(struct search *s, size_t n, bool prompt, size_t *ret)
{
	json_t *list = first_messages(s, n);
	int r = list ? render(s, list, prompt, &s->a) : -ENOMEM;
	json_decref(list);
	if (r == 0 && !is_prefix(s, &s->a)) {
		return NOWHERE;
	}
	*ret = s->a.len;
	return r;
}

/* ---- by a mark --------------------------------------------------------------------------- */

/* The message at i with the mark at the content's end or beginning; `inside`: within the white space
 * there. */
static int marked_message(struct search *s, size_t i, bool end, bool inside, json_t **ret)
{
	const json_t *m = json_array_get(s->messages, i), *content = json_object_get(m, "content");
	const char *text = json_string_value(content);
	size_t len = json_string_length(content), at = end ? len : 0;
	if (!text) {
		return NOWHERE;
	}
	if (inside) {
		size_t start = 0, stop = len;
		trim_space(text, &start, &stop);
		at = end ? stop : start;
	}
	char *with = malloc(len + 4);
	json_t *copy = json_copy((json_t *)(uintptr_t)m);
	if (with && copy) {
		memcpy(with, text, at);
		memcpy(with + at, s->mark, 3);
		memcpy(with + at + 3, text + at, len - at);
	}
	int r = with && copy && json_object_set_new(copy, "content", json_stringn(with, len + 3)) == 0 ?
		0 : -ENOMEM;
	free(with);
	if (r != 0) {
		json_decref(copy);
		return r;
	}
	*ret = copy;
	return 0;
}

/* Where the mark stands in s->a, which without it must be text[len]. */
static int mark_place(struct search *s, const char *text, size_t len, size_t *ret)
{
	if (s->a.len != len + 3) {
		return NOWHERE;
	}
	const uint8_t *hit = memmem(s->a.data, s->a.len, s->mark, 3);
	size_t at = hit ? (size_t)(hit - s->a.data) : 0;
	if (!hit || memcmp(s->a.data, text, at) != 0 ||
		memcmp(s->a.data + at + 3, text + at, len - at) != 0) {
		return NOWHERE;
	}
	*ret = at;
	return 0;
}

/* The place of the content's end or beginning of message i in the text of the first n messages. */
static int place_by_mark(struct search *s, size_t n, size_t i, bool end, const char *text,
	size_t len, size_t *ret)
{
	int r = NOWHERE;
	for (int inside = 0; inside < 2 && r == NOWHERE; inside++) {
		json_t *list = first_messages(s, n), *m = NULL;
		r = list ? marked_message(s, i, end, inside, &m) : -ENOMEM;
		if (r == 0) {
			r = json_array_set_new(list, i, m) == 0 ? render(s, list, false, &s->a) : -ENOMEM;
		}
		r = r ? r : mark_place(s, text, len, ret);
		json_decref(list);
	}
	return r;
}

/* The same where the template changes the content itself: the text of the message that says nothing but
 * the mark begins and ends as the whole does, and what stands between is the content. */
static int place_by_replacement(struct search *s, size_t i, bool end, size_t *ret)
{
	json_t *list = json_copy(s->messages);
	json_t *m = json_copy(json_array_get(s->messages, i));
	int r = list && m ? 0 : -ENOMEM;
	if (r == 0 && !json_is_string(json_object_get(m, "content"))) {
		r = NOWHERE;
	}
	if (r == 0 && json_object_set_new(m, "content", json_stringn(s->mark, 3)) != 0) {
		r = -ENOMEM;
	}
	if (r == 0) {
		r = json_array_set(list, i, m) == 0 ? render(s, list, false, &s->a) : -ENOMEM;
	}
	json_decref(list);
	json_decref(m);
	const uint8_t *hit = r == 0 ? memmem(s->a.data, s->a.len, s->mark, 3) : NULL;
	if (!hit) {
		return r ? r : NOWHERE;
	}
	size_t before = (size_t)(hit - s->a.data), behind = s->a.len - before - 3;
	if (before > s->len || behind > s->len - before || memmem(hit + 3, behind, s->mark, 3) ||
		memcmp(s->a.data, s->text, before) != 0 ||
		memcmp(hit + 3, s->text + s->len - behind, behind) != 0) {
		return NOWHERE;
	}
	*ret = end ? s->len - behind : before;
	return 0;
}

/* ---- what closes a turn ------------------------------------------------------------------ */

/* How much of `closing`, which closes a turn where nothing follows, also closes one that `follows`
 * comes after: all of it, or all but white space at its end, or what both begin with. That must not end
 * within <…> or […], as tokens are written, nor go on behind the end-of-sequence token. */
static size_t common_closing(const struct search *s, const char *closing, size_t n,
	const char *follows, size_t len)
{
	const char *eos = json_string_value(json_object_get(s->t->vars, "eos_token"));
	size_t same = 0, start = 0, trimmed = n;
	while (same < n && same < len && closing[same] == follows[same]) {
		same++;
	}
	trim_space(closing, &start, &trimmed);
	if (same == n || (trimmed > start && same >= trimmed)) {
		return same == n ? n : trimmed;
	}
	for (size_t i = same; i > 0 && closing[i - 1] != '>' && closing[i - 1] != ']'; i--) {
		if (closing[i - 1] == '<' || closing[i - 1] == '[') {
			same = i - 1;
		}
	}
	const char *hit = eos && eos[0] ? memmem(closing, same, eos, strlen(eos)) : NULL;
	if (hit) {
		size_t end = (size_t)(hit - closing) + strlen(eos);
		while (end < same && (closing[end] == '\n' || closing[end] == ' ')) {
			end++;
		}
		same = end;
	}
	return same;
}

/* The place of the content's end in the whole text. */
static int content_end(struct search *s, size_t i, size_t *ret)
{
	int r = place_by_mark(s, json_array_size(s->messages), i, true, s->text, s->len, ret);
	return r == NOWHERE ? place_by_replacement(s, i, true, ret) : r;
}

/* What closes the turn at i, behind `end` in the whole text, by what closes it when nothing follows. */
static int closing_length(struct search *s, size_t i, size_t end, size_t *ret)
{
	size_t at;
	json_t *list = first_messages(s, i + 1);
	int r = list ? render(s, list, false, &s->b) : -ENOMEM;
	json_decref(list);
	r = r ? r : place_by_mark(s, i + 1, i, true, (const char *)s->b.data, s->b.len, &at);
	if (r != 0) {
		return r;
	}
	const char *closing = (const char *)s->b.data + at;
	*ret = common_closing(s, closing, s->b.len - at, s->text + end, s->len - end);
	return *ret > 0 || s->b.len == at ? 0 : NOWHERE;
}

/* The same for the last turn, by what closes it when a question follows; the end-of-sequence token
 * behind that is the turn's too. The whole text's end is its end where that tells nothing. */
static int last_end(struct search *s, size_t *ret)
{
	size_t n = json_array_size(s->messages), at, at_then;
	struct search then = *s;
	json_t *list = json_copy(s->messages);
	int r = content_end(s, n - 1, &at);
	if (r == 0) {
		r = list && json_array_append_new(list, json_pack("{ssss}", "role", "user", "content", "x")) ==
			0 ? render(s, list, false, &s->b) : -ENOMEM;
	}
	if (r == 0) {
		then.messages = list;
		then.text = (const char *)s->b.data;
		then.len = s->b.len;
		then.a = (struct buf){0};
		r = content_end(&then, n - 1, &at_then);
		buf_deinit(&then.a);
	}
	json_decref(list);
	*ret = s->len;
	if (r == 0) {
		size_t closing = common_closing(s, s->text + at, s->len - at, then.text + at_then,
			then.len - at_then);
		const char *eos = json_string_value(json_object_get(s->t->vars, "eos_token"));
		const char *rest = s->text + at + closing;
		size_t left = s->len - at - closing;
		bool ends = eos && strlen(eos) <= left && memcmp(rest, eos, strlen(eos)) == 0;
		*ret = closing > 0 && !ends ? at + closing : s->len;
	}
	return r == NOWHERE ? 0 : r;
}

bool chat_closes_alike(const struct chat_template *t)
{
	_cleanup_(buf_deinit) struct buf text = {0};
	struct errmsg ignored;
	struct search s = {.t = t, .err = &ignored};
	size_t end = 0;
	s.messages = json_pack("[{ssss}{ssss}]", "role", "user", "content", "x", "role", "assistant",
		"content", "y");
	bool alike = !s.messages || chat_render(t, s.messages, false, &text, &ignored) != 0;
	if (!alike) {
		s.text = text.data ? (const char *)text.data : "";
		s.len = text.len;
		alike = !choose_mark(&s) || last_end(&s, &end) != 0 || end == s.len;
	}
	json_decref(s.messages);
	buf_deinit(&s.a);
	buf_deinit(&s.b);
	return alike;
}

/* ---- a turn ------------------------------------------------------------------------------ */

static int find_end(struct search *s, size_t i, size_t *ret)
{
	size_t n;
	if (i + 1 == json_array_size(s->messages)) {
		*ret = s->len;
		return s->t->closes_alike ? 0 : last_end(s, ret);
	}
	int r = prefix_length(s, i + 1, false, ret);
	if (r != NOWHERE) {
		return r;
	}
	r = content_end(s, i, ret);
	r = r ? r : closing_length(s, i, *ret, &n);
	*ret += r == 0 ? n : 0;
	return r;
}

static int find_start(struct search *s, size_t i, size_t *ret)
{
	int r = i > 0 && s->t->writes_prompt ? prefix_length(s, i, true, ret) : NOWHERE;
	r = r != NOWHERE ? r :
		place_by_mark(s, json_array_size(s->messages), i, false, s->text, s->len, ret);
	return r == NOWHERE ? place_by_replacement(s, i, false, ret) : r;
}

static int find_turn(struct search *s, size_t i, struct span *ret)
{
	int r = find_end(s, i, &ret->end);
	bool ended = r == 0;
	r = r ? r : find_start(s, i, &ret->start);
	if (r == 0 && (ret->start > ret->end || ret->start < s->before)) {
		r = NOWHERE;
	}
	if (r == NOWHERE) {
		return errmsg_set(s->err, STATUS_INVALID, "message %zu: where the assistant's words %s in the "
			"text cannot be told with the model's chat template, which has no {%% generation %%} "
			"marks; choose a built-in one with chat_template, or a template that has them", i + 1,
			ended ? "begin" : "end");
	}
	s->before = ret->end;
	return r;
}

int chat_spans(const struct chat_template *t, json_t *messages, const struct buf *out, size_t before,
	struct span *spans, size_t max_spans, size_t *ret_n, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf plain = {0};
	struct search s = {.t = t, .messages = messages, .err = err};
	size_t n = 0;
	/* Without a generation prompt, behind which nothing was said. */
	int r = chat_render(t, messages, false, &plain, err);
	s.text = plain.data ? (const char *)plain.data : "";
	s.len = plain.len;
	if (r == 0 && (s.len > out->len - before ||
			(s.len > 0 && memcmp(s.text, out->data + before, s.len) != 0))) {
		r = errmsg_set(err, STATUS_INVALID,
			"the chat template writes the conversation in another way before a generation prompt");
	}
	if (r == 0 && !choose_mark(&s)) {
		r = errmsg_set(err, STATUS_INVALID, "the text has every character from U+E000 to U+E03F; "
			"one must be free to look for the assistant's words with");
	}
	for (size_t i = 0; i < json_array_size(messages) && r == 0; i++) {
		const json_t *role = json_object_get(json_array_get(messages, i), "role");
		struct span span;
		if (!json_is_string(role) || strcmp(json_string_value(role), "assistant") != 0) {
			continue;
		}
		r = find_turn(&s, i, &span);
		if (r == 0 && n < max_spans) {
			spans[n] = (struct span){before + span.start, before + span.end};
		}
		n += r == 0;
	}
	buf_deinit(&s.a);
	buf_deinit(&s.b);
	*ret_n = r == 0 ? n : 0;
	return r;
}

void trim_space(const char *text, size_t *start, size_t *end)
{
	const uint8_t *p = (const uint8_t *)text;
	unsigned width;
	while (*start < *end && is_strip_space(utf8_get(p + *start, &width))) {
		*start += width;
	}
	while (*end > *start) {
		size_t n = utf8_last_len(p + *start, *end - *start);
		if (!is_strip_space(utf8_get(p + *end - n, &width))) {
			break;
		}
		*end -= n;
	}
}

bool is_strip_space(uint32_t c)
{
	return unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}
