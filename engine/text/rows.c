/* Reading JSON Lines: rows, and what is wrong with them. */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	MAX_ROW_BYTES = 64 << 20,
	MAX_FAULTS = 10,
};

const char *row_format_name(enum row_format f)
{
	static const char *const names[] = {
		[ROWS_PROMPT_COMPLETION] = "prompt-completion",
		[ROWS_MESSAGES] = "messages",
		[ROWS_TEXT] = "text",
	};
	return names[f];
}

void row_deinit(struct row *r)
{
	json_decref(r->root);
	*r = (struct row){0};
}

/* ---- one row ----------------------------------------------------------------------------- */

static int wrong(struct errmsg *fault, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int wrong(struct errmsg *fault, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(fault->text, sizeof(fault->text), fmt, ap);
	va_end(ap);
	return -EBADMSG;
}

static const char *type_name(const json_t *j)
{
	switch (j ? json_typeof(j) : JSON_NULL) {
	case JSON_OBJECT:
		return "an object";
	case JSON_ARRAY:
		return "a list";
	case JSON_STRING:
		return "a string";
	case JSON_INTEGER:
	case JSON_REAL:
		return "a number";
	case JSON_TRUE:
	case JSON_FALSE:
		return "true or false";
	default:
		return "null";
	}
}

static int get_text(const json_t *root, const char *key, bool may_be_empty, const char **ret,
	size_t *ret_len, struct errmsg *fault)
{
	const json_t *value = json_object_get(root, key);
	if (json_is_array(value)) {
		return wrong(fault,
			"`%.64s` is a list; it must be a string (for conversations use one list "
			"`messages`)",
			key);
	}
	if (!json_is_string(value)) {
		return wrong(fault, "`%.64s` is %s; it must be a string", key, type_name(value));
	}
	*ret = json_string_value(value);
	*ret_len = json_string_length(value);
	return *ret_len > 0 || may_be_empty ? 0 :
		wrong(fault, "`%.64s` is empty; there must be some text to learn", key);
}

/* "a, b, c": a row's first keys. */
static void list_keys(json_t *root, char *out, size_t size)
{
	const char *key;
	json_t *value;
	size_t at = 0;
	unsigned n = 0;
	out[0] = '\0';
	json_object_foreach(root, key, value) {
		if (n == 8 || at + 48 > size) {
			snprintf(out + at, size - at, ", …");
			return;
		}
		at += (size_t)snprintf(out + at, size - at, "%s%.40s", n ? ", " : "", key);
		n++;
	}
}

/* Tool calls go to the chat template as they are; there may be content beside them. */
static int check_calls(const json_t *calls, const json_t *content, size_t i, bool reals,
	struct errmsg *fault)
{
	if (!json_is_array(calls) || json_array_size(calls) == 0) {
		return wrong(fault, "messages[%zu].tool_calls is %s; it must be a list of calls", i,
			json_is_array(calls) ? "empty" : type_name(calls));
	}
	for (size_t k = 0; k < json_array_size(calls); k++) {
		if (!json_is_object(json_array_get(calls, k))) {
			return wrong(fault, "messages[%zu].tool_calls[%zu] is %s; it must be an object", i, k,
				type_name(json_array_get(calls, k)));
		}
	}
	if (content && !json_is_string(content) && !json_is_null(content)) {
		return wrong(fault, "messages[%zu].content is %s; it must be a string", i,
			type_name(content));
	}
	return !reals ? 0 : wrong(fault, "messages[%zu] has tool calls, and the row a whole number "
		"beyond 64 bits; write it as a string", i);
}

/* reals: whole numbers were read as reals. */
static int check_message(json_t *m, size_t i, bool reals, struct errmsg *fault)
{
	const json_t *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
	const json_t *calls = json_object_get(m, "tool_calls");
	if (!json_is_object(m)) {
		return wrong(fault, "messages[%zu] is %s; it must be {\"role\": …, \"content\": …}", i,
			type_name(m));
	}
	if (!json_is_string(role) || json_string_length(role) == 0) {
		bool sharegpt = json_object_get(m, "from") && json_object_get(m, "value");
		return wrong(fault, "messages[%zu] has no `role`%s; it must be a string such as user or "
			"assistant", i, sharegpt ? " (`from` and `value` are `role` and `content` here)" : "");
	}
	if (calls && !json_is_null(calls)) {
		return check_calls(calls, content, i, reals, fault);
	}
	if (!json_is_string(content)) {
		return wrong(fault, "messages[%zu].content is %s; it must be a string", i,
			type_name(content));
	}
	if (strcmp(json_string_value(role), "assistant") == 0 && json_string_length(content) == 0) {
		return wrong(fault, "messages[%zu].content is empty; an assistant's turn must have text to "
			"learn", i);
	}
	return 0;
}

static int read_messages(struct row *row, struct errmsg *fault)
{
	json_t *messages = json_object_get(row->root, "messages");
	const json_t *tools = json_object_get(row->root, "tools");
	row->format = ROWS_MESSAGES;
	if (!json_is_array(messages)) {
		return wrong(fault, "`messages` is %s; it must be a list of {\"role\": …, \"content\": …}",
			type_name(messages));
	}
	if (json_array_size(messages) == 0) {
		return wrong(fault, "`messages` is empty; it must hold at least one message");
	}
	if (tools && !json_is_null(tools)) {
		return wrong(fault, "`tools` are not supported; write them into the system message");
	}
	for (size_t i = 0; i < json_array_size(messages); i++) {
		int r = check_message(json_array_get(messages, i), i, row->reals, fault);
		if (r < 0) {
			return r;
		}
	}
	row->messages = messages;
	const json_t *examples = json_object_get(row->root, QUESTION_EXAMPLES);
	row->examples = json_is_number(examples) ? (uint64_t)json_number_value(examples) : 0;
	return 0;
}

static int read_prompt_completion(struct row *row, const char *prompt, const char *completion,
	struct errmsg *fault)
{
	row->format = ROWS_PROMPT_COMPLETION;
	int r = get_text(row->root, prompt, true, &row->prompt, &row->prompt_len, fault);
	return r < 0 ? r : get_text(row->root, completion, false, &row->completion,
		&row->completion_len, fault);
}

static int read_fields(struct row *row, const struct rows_spec *spec, struct errmsg *fault)
{
	bool has_prompt = json_object_get(row->root, "prompt");
	bool has_completion = json_object_get(row->root, "completion");
	bool has_messages = json_object_get(row->root, "messages");
	bool has_text = json_object_get(row->root, "text");
	char keys[400];

	if (spec && (spec->prompt_field || spec->completion_field)) {
		const char *prompt = spec->prompt_field ? spec->prompt_field : "prompt";
		const char *completion = spec->completion_field ? spec->completion_field : "completion";
		list_keys(row->root, keys, sizeof(keys));
		if (!json_object_get(row->root, prompt) || !json_object_get(row->root, completion)) {
			return wrong(fault, "there is no `%.64s`; the row has %s",
				json_object_get(row->root, prompt) ? completion : prompt, keys);
		}
		return read_prompt_completion(row, prompt, completion, fault);
	}
	if ((has_prompt || has_completion) + has_messages + has_text > 1) {
		return wrong(fault, "the row has %s%s%s; it must have only one of prompt and completion, "
			"messages, text", has_prompt || has_completion ? "prompt or completion, " : "",
			has_messages ? "messages" : "", has_text ? has_messages ? ", text" : "text" : "");
	}
	if (has_messages) {
		return read_messages(row, fault);
	}
	if (has_text) {
		row->format = ROWS_TEXT;
		return get_text(row->root, "text", false, &row->completion, &row->completion_len, fault);
	}
	if (has_prompt != has_completion) {
		return wrong(fault, "there is `%s` but no `%s`; a row needs both",
			has_prompt ? "prompt" : "completion", has_prompt ? "completion" : "prompt");
	}
	if (has_prompt) {
		return read_prompt_completion(row, "prompt", "completion", fault);
	}
	list_keys(row->root, keys, sizeof(keys));
	return wrong(fault, "the row has %s; it must have prompt and completion, messages, or text "
		"(--prompt-field and --completion-field name other keys)", keys[0] ? keys : "no keys");
}

/* What jansson says, in the words of a data file. */
static int syntax_fault(const struct row_reader *r, const json_error_t *e, struct errmsg *fault)
{
	int column = e->position > 0 ? e->position : 1;
	size_t at = r->at + (size_t)column;
	switch (json_error_code(e)) {
	case json_error_out_of_memory:
		return -ENOMEM;
	case json_error_null_character:
	case json_error_null_byte_in_key:
		return wrong(fault, "byte %zu: a string holds the NUL character (\\u0000); remove it", at);
	case json_error_duplicate_key:
		return wrong(fault, "byte %zu: %s; each key may stand only once in an object", at, e->text);
	case json_error_stack_overflow:
		return wrong(fault, "byte %zu: nested too deep", at);
	case json_error_premature_end_of_input:
		return wrong(fault, "the JSON object does not end; each line must hold a whole one");
	default:
		return wrong(
			fault, "byte %zu: no JSON: %s; each line must be one JSON object", at, e->text);
	}
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

int row_next(struct row_reader *r, const struct rows_spec *spec, struct row *ret,
	struct errmsg *fault)
{
	json_error_t e;
	size_t bad;
	unsigned width;
	while (r->at < r->len && is_blank(r->line[r->at])) {
		r->at++;
	}
	if (r->at == r->len) {
		return 0;
	}
	if (r->len > MAX_ROW_BYTES) {
		return wrong(fault, "the line has %zu bytes; at most %d are read", r->len, MAX_ROW_BYTES);
	}
	if (!utf8_valid(r->line + r->at, r->len - r->at, &bad)) {
		bad += r->at;
		return wrong(fault, "byte %zu (0x%02X) is not UTF-8; save the file as UTF-8", bad + 1,
			(uint8_t)r->line[bad]);
	}
	if (r->line[r->at] != '{') {
		utf8_get((const uint8_t *)r->line + r->at, &width);
		return wrong(fault, "the line starts with `%.*s`; each line must be one JSON object, {…}%s",
			(int)width, r->line + r->at,
			r->line[r->at] == '[' ? ", without a list around them" : "");
	}
	*ret = (struct row){0};
	size_t flags = JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK;
	ret->root = json_loadb(r->line + r->at, r->len - r->at, flags, &e);
	if (!ret->root && json_error_code(&e) == json_error_numeric_overflow) {
		/* no number counts but in tool calls */
		ret->reals = true;
		ret->root = json_loadb(r->line + r->at, r->len - r->at, flags | JSON_DECODE_INT_AS_REAL, &e);
	}
	if (!ret->root) {
		return syntax_fault(r, &e, fault);
	}
	r->at += (size_t)e.position;
	int x = read_fields(ret, spec, fault);
	if (x < 0) {
		row_deinit(ret);
	}
	return x < 0 ? x : 1;
}

struct message row_message(const json_t *messages, size_t i)
{
	const json_t *m = json_array_get(messages, i);
	const json_t *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
	return (struct message){
		.role = json_string_value(role),
		.content = json_string_value(content),
		.role_len = json_string_length(role),
		.content_len = json_string_length(content),
		.fields = m,
	};
}

/* ---- a dataset --------------------------------------------------------------------------- */

struct check {
	const struct rows_spec *spec;
	struct rows_check *ret;
	struct buf *faults;
	char first[256]; /* where the first row was, for mixed formats */
	struct errmsg first_fault;
};

/* Appends `file:line: text`; control characters, which may come from the file, become `?`. */
static int add_fault(struct check *c, const char *file, uint64_t line, const char *text)
{
	size_t before = c->faults->len;
	if (c->ret->faults++ >= MAX_FAULTS) {
		return 0;
	}
	int r = buf_appendf(c->faults, "%s:%llu: %s", file, (unsigned long long)line, text);
	if (r < 0) {
		return r;
	}
	for (size_t i = before; i < c->faults->len; i++) {
		if (c->faults->data[i] < ' ' || c->faults->data[i] == 0x7F) {
			c->faults->data[i] = '?';
		}
	}
	if (c->ret->faults == 1) {
		errmsg_set(&c->first_fault, 0, "%.*s", (int)min_i64((int64_t)c->faults->len, 900),
			(const char *)c->faults->data);
	}
	return buf_append(c->faults, "\n", 1);
}

static int check_format(struct check *c, const char *file, uint64_t line, enum row_format format)
{
	char text[512];
	if (c->first[0] == '\0') {
		c->ret->format = format;
		snprintf(c->first, sizeof(c->first), "%.200s:%llu", file, (unsigned long long)line);
		return 0;
	}
	if (format == c->ret->format) {
		return 0;
	}
	snprintf(text, sizeof(text), "a row of format %s; the first row, %s, is %s, and all rows of a "
		"dataset must be alike", row_format_name(format), c->first,
		row_format_name(c->ret->format));
	return add_fault(c, file, line, text);
}

static int check_line(
	struct check *c, const char *file, uint64_t line, const char *text, size_t len)
{
	struct row_reader reader = {.line = text, .len = len};
	struct errmsg fault;
	struct row row;
	int r = row_next(&reader, c->spec, &row, &fault);
	if (r == -EBADMSG) {
		c->ret->rows++;
		return add_fault(c, file, line, fault.text);
	}
	if (r <= 0) {
		return r;
	}
	c->ret->rows++;
	enum row_format format = row.format;
	row_deinit(&row);
	while (reader.at < len && is_blank(text[reader.at])) {
		reader.at++;
	}
	if (reader.at < len) {
		snprintf(fault.text, sizeof(fault.text),
			"byte %zu: there is more after the JSON object; each "
			"row needs a line of its own",
			reader.at + 1);
		return add_fault(c, file, line, fault.text);
	}
	return check_format(c, file, line, format);
}

static int check_start(struct check *c, const char *file, const char **data, size_t *len)
{
	if (*len >= 3 && memcmp(*data, "\xEF\xBB\xBF", 3) == 0) {
		*data += 3;
		*len -= 3;
		return add_fault(c, file, 1,
			"the file starts with a byte order mark; save it as UTF-8 without one");
	}
	if (*len >= 2 && (memcmp(*data, "\xFF\xFE", 2) == 0 || memcmp(*data, "\xFE\xFF", 2) == 0)) {
		*len = 0;
		c->ret->rows++;
		return add_fault(c, file, 1, "the file is UTF-16; save it as UTF-8");
	}
	return 0;
}

static int check_file(struct check *c, const char *file, const char *data, size_t len)
{
	uint64_t line = 0, blank = 0; /* the first of the blank lines just seen */
	int r = check_start(c, file, &data, &len);
	while (len > 0 && r == 0) {
		const char *end = memchr(data, '\n', len);
		size_t n = end ? (size_t)(end - data) : len, at = 0;
		line++;
		while (at < n && is_blank(data[at])) {
			at++;
		}
		if (at == n) {
			blank = blank ? blank : line;
		} else {
			r = blank ? add_fault(c, file, blank, "an empty line between rows; remove it") : 0;
			blank = 0;
			r = r < 0 ? r : check_line(c, file, line, data, n);
		}
		n += end ? 1 : 0;
		data += n;
		len -= n;
	}
	return r;
}

int rows_check(const char *data, size_t len, const struct rows_file *files, size_t n_files,
	const struct rows_spec *spec, struct rows_check *ret, struct buf *faults, struct errmsg *err)
{
	const struct rows_file whole = {.name = "line", .size = len};
	struct rows_check result = {0};
	struct check c = {.spec = spec, .ret = &result, .faults = faults};
	size_t at = 0;

	if (n_files == 0) {
		files = &whole;
		n_files = 1;
	}
	for (size_t i = 0; i < n_files; i++) {
		if (files[i].size > len - at) {
			return errmsg_set(err, STATUS_INVALID,
				"the files' sizes add up to more than the dataset's "
				"%zu bytes",
				len);
		}
		int r = check_file(&c, files[i].name, data + at, files[i].size);
		if (r < 0) {
			return r;
		}
		at += files[i].size;
	}
	if (at != len) {
		return errmsg_set(err, STATUS_INVALID,
			"the files' sizes add up to %zu bytes of the dataset's "
			"%zu",
			at, len);
	}
	*ret = result;
	if (result.faults > 0) {
		return errmsg_set(err, STATUS_INVALID, "%llu fault%s in %llu row%s; the first: %s",
			(unsigned long long)result.faults, result.faults == 1 ? "" : "s",
			(unsigned long long)result.rows, result.rows == 1 ? "" : "s", c.first_fault.text);
	}
	return result.rows > 0 ? 0 : errmsg_set(err, STATUS_INVALID,
		"there are no rows; each line must be one JSON object");
}

int rows_format(const char *data, size_t len, const struct rows_spec *spec, enum row_format *ret,
	struct errmsg *err)
{
	while (len > 0 && is_blank(data[0])) {
		data++;
		len--;
	}
	const char *end = len > 0 ? memchr(data, '\n', len) : NULL;
	struct row_reader reader = {.line = data, .len = end ? (size_t)(end - data) : len};
	struct errmsg fault;
	struct row row = {0};
	int r = row_next(&reader, spec, &row, &fault);
	if (r == -EBADMSG) {
		return errmsg_set(err, STATUS_INVALID, "the first row: %.900s", fault.text);
	}
	if (r == 0) {
		return errmsg_set(err, STATUS_INVALID, "there are no rows");
	}
	if (r < 0) {
		return r;
	}
	*ret = row.format;
	row_deinit(&row);
	return 0;
}
