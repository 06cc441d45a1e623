/* Values as text: str(), repr() and json.dumps(), byte for byte as Python writes them. */

#include <utf8proc.h>

#include "engine/text/jinja/jinja-internal.h"
#include "engine/text/unicode.h"

int j_put_float(struct j_run *run, struct j_out *out, double f)
{
	char text[64], digits[32] = "";
	int n = 0, exponent;
	if (!isfinite(f)) {
		return j_puts(run, out, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
	}
	/* The fewest digits that read back as the same. */
	for (int precision = 0; precision < 17; precision++) {
		snprintf(text, sizeof(text), "%.*e", precision, f);
		if (strtod(text, NULL) == f) {
			break;
		}
	}
	char *e = strchr(text, 'e');
	exponent = (int)strtol(e + 1, NULL, 10);
	for (const char *p = text; p < e; p++) {
		if (*p >= '0' && *p <= '9') {
			digits[n++] = *p;
		}
	}
	const char *sign = signbit(f) ? "-" : "";
	if (exponent < -4 || exponent >= 16) {
		snprintf(text, sizeof(text), "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "",
			digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
	} else if (exponent < 0) {
		snprintf(text, sizeof(text), "%s0.%.*s%s", sign, -exponent - 1, "0000", digits);
	} else if (exponent + 1 >= n) {
		snprintf(text, sizeof(text), "%s%s%.*s.0", sign, digits, exponent + 1 - n,
			"0000000000000000");
	} else {
		snprintf(text, sizeof(text), "%s%.*s.%s", sign, exponent + 1, digits,
			digits + exponent + 1);
	}
	return j_puts(run, out, text);
}

static int put_int(struct j_run *run, struct j_out *out, int64_t i)
{
	char text[32];
	snprintf(text, sizeof(text), "%lld", (long long)i);
	return j_puts(run, out, text);
}

/* What repr() shows as it is: all but separators, other than the space, and what has no shape. */
static bool is_printable(uint32_t c)
{
	if (c < 0x7F) {
		return c >= ' ';
	}
	switch (utf8proc_category((utf8proc_int32_t)c)) {
	case UTF8PROC_CATEGORY_CN:
	case UTF8PROC_CATEGORY_CC:
	case UTF8PROC_CATEGORY_CF:
	case UTF8PROC_CATEGORY_CS:
	case UTF8PROC_CATEGORY_CO:
	case UTF8PROC_CATEGORY_ZS:
	case UTF8PROC_CATEGORY_ZL:
	case UTF8PROC_CATEGORY_ZP:
		return false;
	default:
		return true;
	}
}

static int put_quoted(struct j_run *run, struct j_out *out, const struct j_str *s)
{
	bool single = memchr(s->p, '\'', s->len), twofold = memchr(s->p, '"', s->len);
	char quote = single && !twofold ? '"' : '\'', text[16];
	unsigned width;
	int r = j_put(run, out, &quote, 1);
	for (size_t at = 0; at < s->len && r == 0; at += width) {
		uint32_t c = utf8_get((const uint8_t *)s->p + at, &width);
		if (c == (uint32_t)quote || c == '\\') {
			snprintf(text, sizeof(text), "\\%c", (char)c);
		} else if (c == '\n' || c == '\r' || c == '\t') {
			snprintf(text, sizeof(text), "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
		} else if (is_printable(c)) {
			r = j_put(run, out, s->p + at, width);
			continue;
		} else {
			snprintf(text, sizeof(text), c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" :
				"\\U%08x", c);
		}
		r = j_puts(run, out, text);
	}
	return r ? r : j_put(run, out, &quote, 1);
}

static int put_seq(struct j_run *run, struct j_out *out, const struct j_seq *seq, const char *open,
	const char *close, unsigned depth)
{
	int r = j_puts(run, out, open);
	for (size_t i = 0; i < seq->n && r == 0; i++) {
		r = i > 0 ? j_puts(run, out, ", ") : 0;
		r = r ? r : j_put_repr(run, out, seq->items[i], depth + 1);
	}
	return r ? r : j_puts(run, out, close);
}

static int put_dict(struct j_run *run, struct j_out *out, const struct j_dict *d, unsigned depth)
{
	int r = j_puts(run, out, "{");
	for (size_t i = 0; i < d->n && r == 0; i++) {
		r = i > 0 ? j_puts(run, out, ", ") : 0;
		r = r ? r : j_put_repr(run, out, d->items[i].key, depth + 1);
		r = r ? r : j_puts(run, out, ": ");
		r = r ? r : j_put_repr(run, out, d->items[i].value, depth + 1);
	}
	return r ? r : j_puts(run, out, "}");
}

int j_put_repr(struct j_run *run, struct j_out *out, struct j_val v, unsigned depth)
{
	char text[128];
	struct j_seq seq;
	int r;
	if (depth > J_MAX_NESTING) {
		return j_error(run, "values nested more than %d deep", J_MAX_NESTING);
	}
	switch (v.type) {
	case J_UNDEFINED:
		return j_puts(run, out, "Undefined");
	case J_NONE:
		return j_puts(run, out, "None");
	case J_BOOL:
		return j_puts(run, out, v.b ? "True" : "False");
	case J_INT:
		return put_int(run, out, v.i);
	case J_FLOAT:
		return j_put_float(run, out, v.f);
	case J_STR:
		if (v.s->markup) {
			r = j_puts(run, out, "Markup(");
			r = r ? r : put_quoted(run, out, v.s);
			return r ? r : j_puts(run, out, ")");
		}
		return put_quoted(run, out, v.s);
	case J_LIST:
		return put_seq(run, out, v.seq, "[", "]", depth);
	case J_TUPLE:
		return put_seq(run, out, v.seq, "(", v.seq->n == 1 ? ",)" : ")", depth);
	case J_DICT:
		return put_dict(run, out, v.d, depth);
	case J_NAMESPACE:
		r = j_puts(run, out, "<Namespace ");
		r = r ? r : put_dict(run, out, v.d, depth);
		return r ? r : j_puts(run, out, ">");
	case J_RANGE:
		snprintf(text, sizeof(text), v.range->step == 1 ? "range(%lld, %lld)" :
			"range(%lld, %lld, %lld)", (long long)v.range->start, (long long)v.range->stop,
			(long long)v.range->step);
		return j_puts(run, out, text);
	case J_VIEW:
		r = j_puts(run, out, j_type_name(v));
		r = r ? r : j_items(run, v, &seq);
		return r ? r : put_seq(run, out, &seq, "([", "])", depth);
	case J_MACRO:
		r = j_puts(run, out, "<Macro ");
		r = r ? r : j_cstr(run, v.macro->name ? v.macro->name : "anonymous", &v);
		r = r ? r : put_quoted(run, out, v.s);
		return r ? r : j_puts(run, out, ">");
	default: /* Python would print an address */
		return j_error(run, "to print a %s is not supported", j_type_name(v));
	}
}

int j_put_str(struct j_run *run, struct j_out *out, struct j_val v)
{
	if (v.type == J_STR) {
		return j_put(run, out, v.s->p, v.s->len);
	}
	return v.type == J_UNDEFINED ? 0 : j_put_repr(run, out, v, 0);
}

int j_to_str(struct j_run *run, struct j_val v, struct j_val *ret)
{
	struct j_out out = {0};
	if (v.type == J_STR) {
		*ret = v;
		return 0;
	}
	int r = j_put_str(run, &out, v);
	return r ? r : j_out_str(run, &out, ret);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static int put_json_str(struct j_run *run, struct j_out *out, const struct j_str *s, bool ascii)
{
	static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
	char text[24];
	unsigned width;
	int r = j_puts(run, out, "\"");
	for (size_t at = 0; at < s->len && r == 0; at += width) {
		uint32_t c = utf8_get((const uint8_t *)s->p + at, &width);
		const char *simple = c > 0 && c < 0x80 ? strchr(from, (int)c) : NULL;
		if (simple) {
			snprintf(text, sizeof(text), "\\%c", to[simple - from]);
		} else if (c < ' ' || (ascii && c >= 0x7F && c < 0x10000)) {
			snprintf(text, sizeof(text), "\\u%04x", c);
		} else if (ascii && c >= 0x10000) {
			snprintf(text, sizeof(text), "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
				0xDC00 + ((c - 0x10000) & 0x3FF));
		} else {
			r = j_put(run, out, s->p + at, width);
			continue;
		}
		r = j_puts(run, out, text);
	}
	return r ? r : j_puts(run, out, "\"");
}

static int put_json_float(struct j_run *run, struct j_out *out, double f)
{
	return isfinite(f) ? j_put_float(run, out, f) :
		j_puts(run, out, isnan(f) ? "NaN" : f < 0 ? "-Infinity" : "Infinity");
}

static int new_line(struct j_run *run, struct j_out *out, const struct j_json *how, unsigned depth)
{
	int r = how->indent ? j_puts(run, out, "\n") : 0;
	for (unsigned i = 0; how->indent && i < depth && r == 0; i++) {
		r = j_put(run, out, how->indent->p, how->indent->len);
	}
	return r;
}

static int put_json_key(struct j_run *run, struct j_out *out, struct j_val key,
	const struct j_json *how)
{
	int r;
	switch (key.type) {
	case J_STR:
		return put_json_str(run, out, key.s, how->ensure_ascii);
	case J_BOOL:
		return j_puts(run, out, key.b ? "\"true\"" : "\"false\"");
	case J_NONE:
		return j_puts(run, out, "\"null\"");
	case J_INT:
	case J_FLOAT:
		r = j_puts(run, out, "\"");
		r = r ? r : key.type == J_INT ? put_int(run, out, key.i) :
			put_json_float(run, out, key.f);
		return r ? r : j_puts(run, out, "\"");
	default:
		return j_error(run, "keys must be str, int, float, bool or None, not %s", j_type_name(key));
	}
}

/* The dict's pairs by their keys. */
static int sorted_pairs(struct j_run *run, const struct j_dict *d, const struct j_pair **ret)
{
	struct j_pair *pairs = j_alloc(run, d->n, sizeof(*pairs));
	int c, r = pairs ? j_work(run, d->n * d->n) : j_no_memory(run);
	for (size_t i = 0; i < d->n && r == 0; i++) {
		size_t at = i;
		for (; at > 0; at--) {
			r = j_compare(run, d->items[i].key, pairs[at - 1].key, "<", &c);
			if (r != 0 || c != -1) {
				break;
			}
			pairs[at] = pairs[at - 1];
		}
		pairs[at] = d->items[i];
	}
	*ret = pairs;
	return r;
}

static int put_json_dict(struct j_run *run, struct j_out *out, const struct j_dict *d,
	const struct j_json *how, unsigned depth)
{
	const struct j_pair *pairs = d->items;
	int r = j_puts(run, out, "{");
	r = r || !how->sort_keys ? r : sorted_pairs(run, d, &pairs);
	for (size_t i = 0; i < d->n && r == 0; i++) {
		r = i > 0 ? j_put(run, out, how->item->p, how->item->len) : 0;
		r = r ? r : new_line(run, out, how, depth + 1);
		r = r ? r : put_json_key(run, out, pairs[i].key, how);
		r = r ? r : j_put(run, out, how->key->p, how->key->len);
		r = r ? r : j_put_json(run, out, pairs[i].value, how, depth + 1);
	}
	r = r || d->n == 0 ? r : new_line(run, out, how, depth);
	return r ? r : j_puts(run, out, "}");
}

int j_put_json(struct j_run *run, struct j_out *out, struct j_val v, const struct j_json *how,
	unsigned depth)
{
	int r;
	if (depth > J_MAX_NESTING) {
		return j_error(run, "values nested more than %d deep", J_MAX_NESTING);
	}
	switch (v.type) {
	case J_NONE:
		return j_puts(run, out, "null");
	case J_BOOL:
		return j_puts(run, out, v.b ? "true" : "false");
	case J_INT:
		return put_int(run, out, v.i);
	case J_FLOAT:
		return put_json_float(run, out, v.f);
	case J_STR:
		return put_json_str(run, out, v.s, how->ensure_ascii);
	case J_DICT:
		return put_json_dict(run, out, v.d, how, depth);
	case J_LIST:
	case J_TUPLE:
		r = j_puts(run, out, "[");
		for (size_t i = 0; i < v.seq->n && r == 0; i++) {
			r = i > 0 ? j_put(run, out, how->item->p, how->item->len) : 0;
			r = r ? r : new_line(run, out, how, depth + 1);
			r = r ? r : j_put_json(run, out, v.seq->items[i], how, depth + 1);
		}
		r = r || v.seq->n == 0 ? r : new_line(run, out, how, depth);
		return r ? r : j_puts(run, out, "]");
	default:
		return j_error(run, "Object of type %s is not JSON serializable", j_type_name(v));
	}
}
