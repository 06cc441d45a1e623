/* Whole answers, and the numbers in them. */
#include <string.h>

#include "engine/judge/judge.h"

struct text {
	const char *s;
	size_t len;
};

static bool is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static struct text strip(struct text t)
{
	while (t.len > 0 && is_space(t.s[0])) {
		t.s++;
		t.len--;
	}
	while (t.len > 0 && is_space(t.s[t.len - 1])) {
		t.len--;
	}
	return t;
}

bool judge_exact(const char *reference, size_t reference_len, const char *answer, size_t answer_len)
{
	struct text a = strip((struct text){reference, reference_len});
	struct text b = strip((struct text){answer, answer_len});
	return a.len == b.len && memcmp(a.s, b.s, a.len) == 0;
}

/* ---- numbers --------------------------------------------------------------------------------- */

struct number {
	bool negative;
	struct text whole;    /* digits and separators */
	struct text fraction; /* digits */
};

static size_t digits(const char *s, size_t len)
{
	size_t n = 0;
	while (n < len && is_digit(s[n])) {
		n++;
	}
	return n;
}

/* A comma and just three digits. */
static bool is_group(const char *s, size_t len)
{
	return len >= 4 && s[0] == ',' && digits(s + 1, len - 1) == 3;
}

/* The number whose first digit is at `at`; *ret_end: after it. */
static struct number read_number(struct text t, size_t at, size_t *ret_end)
{
	struct number n = {.whole.s = t.s + at};
	size_t sign = at, end = at + digits(t.s + at, t.len - at);
	if (sign > 0 && t.s[sign - 1] == '$') {
		sign--;
	}
	n.negative = sign > 0 && t.s[sign - 1] == '-' && (sign < 2 || !is_word(t.s[sign - 2]));
	if (end - at <= 3) {
		while (is_group(t.s + end, t.len - end)) {
			end += 4;
		}
	}
	n.whole.len = end - at;
	if (end + 1 < t.len && t.s[end] == '.' && is_digit(t.s[end + 1])) {
		n.fraction = (struct text){t.s + end + 1, digits(t.s + end + 1, t.len - end - 1)};
		end += 1 + n.fraction.len;
	}
	while (n.whole.len > 0 && (n.whole.s[0] == '0' || n.whole.s[0] == ',')) {
		n.whole.s++;
		n.whole.len--;
	}
	while (n.fraction.len > 0 && n.fraction.s[n.fraction.len - 1] == '0') {
		n.fraction.len--;
	}
	*ret_end = end;
	return n;
}

/* Where the text after the last "####" begins; 0 where there is none. */
static size_t after_marks(struct text t)
{
	for (size_t i = t.len; i >= 4; i--) {
		if (memcmp(t.s + i - 4, "####", 4) == 0) {
			return i;
		}
	}
	return 0;
}

static bool find_number(struct text t, struct number *ret)
{
	size_t start = after_marks(t);
	bool found = false;
	for (size_t i = start; i < t.len && !(found && start > 0);) {
		if (is_digit(t.s[i])) {
			*ret = read_number(t, i, &i);
			found = true;
		} else {
			i++;
		}
	}
	return found;
}

static bool same_digits(struct text a, struct text b)
{
	size_t i = 0, k = 0;
	for (;;) {
		i += i < a.len && a.s[i] == ',';
		k += k < b.len && b.s[k] == ',';
		if (i == a.len || k == b.len) {
			return i == a.len && k == b.len;
		}
		if (a.s[i++] != b.s[k++]) {
			return false;
		}
	}
}

static bool is_zero(const struct number *n)
{
	return n->whole.len == 0 && n->fraction.len == 0;
}

bool judge_last_number(const char *reference, size_t reference_len, const char *answer,
	size_t answer_len)
{
	struct number a, b;
	return find_number((struct text){reference, reference_len}, &a) &&
		find_number((struct text){answer, answer_len}, &b) && same_digits(a.whole, b.whole) &&
		same_digits(a.fraction, b.fraction) &&
		(a.negative == b.negative || (is_zero(&a) && is_zero(&b)));
}
