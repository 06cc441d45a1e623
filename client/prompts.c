#include "client/prompts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/util.h"

enum { LINE_MAX_BYTES = 1 << 20 };

void prompts_deinit(struct prompts *p)
{
	for (size_t i = 0; i < p->n; i++) {
		free(p->items[i].text);
		free(p->items[i].adapter);
	}
	free(p->items);
	*p = (struct prompts){0};
}

static int add_empty(struct prompts *p)
{
	if (p->n == p->cap) {
		size_t cap = p->cap ? 2 * p->cap : 16;
		struct prompt *items = realloc_array(p->items, cap, sizeof(*items));
		if (!items) {
			return -ENOMEM;
		}
		p->items = items;
		p->cap = cap;
	}
	p->items[p->n++] = (struct prompt){0};
	return 0;
}

int prompts_add(struct prompts *p, const char *text, size_t len)
{
	char *copy = malloc(len + 1);
	if (!copy || add_empty(p) < 0) {
		free(copy);
		return -ENOMEM;
	}
	memcpy(copy, text, len);
	copy[len] = '\0';
	p->items[p->n - 1].text = copy;
	p->items[p->n - 1].len = len;
	return 0;
}

/* ---- a line of JSON -------------------------------------------------------------------------- */

struct reader {
	const char *at, *end;
	const char *fault; /* what should have been there */
};

static void skip_space(struct reader *r)
{
	while (r->at < r->end && memchr(" \t\r\n", *r->at, 4)) {
		r->at++;
	}
}

static bool take(struct reader *r, const char *text)
{
	size_t n = strlen(text);
	skip_space(r);
	if ((size_t)(r->end - r->at) < n || memcmp(r->at, text, n) != 0) {
		return false;
	}
	r->at += n;
	return true;
}

static int expected(struct reader *r, const char *what)
{
	r->fault = what;
	return STATUS_INVALID;
}

/* Four hexadecimal digits; -1: there are none. */
static int32_t hex4(struct reader *r)
{
	int32_t v = 0;
	for (int i = 0; i < 4; i++) {
		char c = r->at < r->end ? *r->at++ : 'x';
		int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 :
			c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
		if (d < 0) {
			return -1;
		}
		v = v * 16 + d;
	}
	return v;
}

static int append_utf8(struct buf *out, uint32_t c)
{
	char s[4];
	size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
	static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
	for (size_t i = n; i-- > 1; c >>= 6) {
		s[i] = (char)(0x80 | (c & 0x3f));
	}
	s[0] = (char)(lead[n] | c);
	return buf_append(out, s, n);
}

static int take_unicode(struct reader *r, struct buf *out)
{
	int32_t c = hex4(r);
	if (c >= 0xd800 && c < 0xdc00) {
		bool pair = r->end - r->at >= 2 && r->at[0] == '\\' && r->at[1] == 'u';
		r->at += pair ? 2 : 0;
		int32_t low = pair ? hex4(r) : -1;
		c = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00) : -1;
	}
	if (c <= 0 || (c >= 0xdc00 && c < 0xe000)) {
		return expected(r, "a character behind \\u, and not NUL");
	}
	return append_utf8(out, (uint32_t)c);
}

static int take_escape(struct reader *r, struct buf *out)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	char c = r->at < r->end ? *r->at++ : '\0';
	const char *p = c ? strchr(from, c) : NULL;
	if (c == 'u') {
		return take_unicode(r, out);
	}
	return p ? buf_append(out, &to[p - from], 1) : expected(r, "an escape that JSON has");
}

/* A string, appended to `out`. */
static int take_string(struct reader *r, struct buf *out)
{
	if (!take(r, "\"")) {
		return expected(r, "a string");
	}
	int e = 0;
	while (e == 0) {
		if (r->at == r->end || (uint8_t)*r->at < ' ') {
			return expected(r, "the end of the string");
		}
		char c = *r->at++;
		if (c == '"') {
			return 0;
		}
		e = c == '\\' ? take_escape(r, out) : buf_append(out, &c, 1);
	}
	return e;
}

static int take_member(struct reader *r, struct prompt *row)
{
	_cleanup_(buf_deinit) struct buf key = {0}, value = {0};
	int e = take_string(r, &key);
	if (e == 0 && !take(r, ":")) {
		e = expected(r, "a colon");
	}
	if (e != 0) {
		return e;
	}
	bool prompt = key.len == 6 && memcmp(key.data, "prompt", 6) == 0;
	bool adapter = key.len == 7 && memcmp(key.data, "adapter", 7) == 0;
	if (!prompt && !adapter) {
		return expected(r, "`prompt` or `adapter`, and no other key");
	}
	if (adapter && take(r, "null")) {
		row->bare = true;
		return 0;
	}
	e = take_string(r, &value);
	if (e != 0) {
		return e;
	}
	size_t len = value.len;
	char *text = buf_steal(&value, NULL), **to = prompt ? &row->text : &row->adapter;
	if (!text) {
		return -ENOMEM;
	}
	free(*to);
	*to = text;
	row->len = prompt ? len : row->len;
	return 0;
}

static int take_row(struct reader *r, struct prompt *row)
{
	int e = 0;
	skip_space(r);
	if (r->at < r->end && *r->at == '"') {
		_cleanup_(buf_deinit) struct buf text = {0};
		e = take_string(r, &text);
		row->len = text.len;
		row->text = e == 0 ? buf_steal(&text, NULL) : NULL;
		return e ? e : row->text ? 0 : -ENOMEM;
	}
	if (!take(r, "{")) {
		return expected(r, "an object or a string");
	}
	do {
		e = take_member(r, row);
	} while (e == 0 && take(r, ","));
	if (e == 0 && !take(r, "}")) {
		e = expected(r, "a comma or the end of the object");
	}
	return e == 0 && !row->text ? expected(r, "a `prompt`") : e;
}

static int read_line(struct prompts *p, const char *line, size_t len, const char *path, size_t number,
	struct errmsg *err)
{
	struct reader r = {.at = line, .end = line + len};
	skip_space(&r);
	if (r.at == r.end) {
		return 0;
	}
	if (!utf8_valid(line, len, NULL)) {
		return errmsg_set(err, STATUS_INVALID, "%s:%zu: not UTF-8", path, number);
	}
	int e = add_empty(p);
	e = e ? e : take_row(&r, &p->items[p->n - 1]);
	skip_space(&r);
	if (e == 0 && r.at != r.end) {
		e = expected(&r, "the end of the line");
	}
	return e > 0 ? errmsg_set(err, STATUS_INVALID, "%s:%zu: byte %zu: there should be %s", path,
		number, (size_t)(r.at - line) + 1, r.fault) : e;
}

int prompts_read(struct prompts *p, const char *path, struct errmsg *err)
{
	bool standard = strcmp(path, "-") == 0;
	_cleanup_(fclosep) FILE *own = standard ? NULL : fopen(path, "re");
	_cleanup_(freep) char *line = NULL;
	FILE *f = standard ? stdin : own;
	size_t cap = 0;
	if (!f) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: %s", path, strerror(errno));
	}
	ssize_t n;
	for (size_t number = 1; (n = getline(&line, &cap, f)) >= 0; number++) {
		if (n > LINE_MAX_BYTES) {
			return errmsg_set(err, STATUS_INVALID, "%s:%zu: longer than %d bytes", path, number,
				LINE_MAX_BYTES);
		}
		int r = read_line(p, line, (size_t)n, path, number, err);
		if (r != 0) {
			return r;
		}
	}
	return ferror(f) ? -EIO : p->n > 0 ? 0 :
		errmsg_set(err, STATUS_INVALID, "%s: there is no prompt in it", path);
}
