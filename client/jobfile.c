#include "client/jobfile.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "client/spec.h"
#include "proto/jobspec.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

/*
 * libyaml composes a whole document and puts one node for all uses of an alias. Walking it could
 * therefore take for ever (nine lists of nine aliases each) or never end (a list in itself), so the
 * walk counts its steps and its depth.
 */
struct walk {
	const char *file;
	yaml_document_t *doc;
	size_t nodes;
	struct errmsg *err;
};

static size_t line_of(const yaml_node_t *n)
{
	return n->start_mark.line + 1;
}

/* Puts "FILE:LINE: " before what `err` says. */
static int at_line(const struct walk *w, size_t line, int code)
{
	return errmsg_prefix(w->err, code, "%s:%zu", w->file, line);
}

static int enter(struct walk *w, const yaml_node_t *n, unsigned depth)
{
	if (++w->nodes > JOBFILE_NODES_MAX) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"more than %d values, aliases included, are too many for a job file",
			JOBFILE_NODES_MAX));
	}
	const char *tag = (const char *)n->tag;
	bool usual = n->type == YAML_SCALAR_NODE || !tag || strcmp(tag, YAML_MAP_TAG) == 0 ||
		strcmp(tag, YAML_SEQ_TAG) == 0;
	if (!usual) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"the tag %.64s has no meaning in a job file", tag));
	}
	if (depth > JOBFILE_DEPTH_MAX) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"nested more than %d deep", JOBFILE_DEPTH_MAX));
	}
	return 0;
}

static const char *scalar_text(const yaml_node_t *n)
{
	return (const char *)n->data.scalar.value;
}

static int check_text(const struct walk *w, const yaml_node_t *n, const char *what)
{
	if (memchr(n->data.scalar.value, 0, n->data.scalar.length)) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"%s holds a NUL character", what));
	}
	return 0;
}

/* Only what the text itself says decides its type: a quoted "16" is text, and so is !!str 16. */
static int form_of(const struct walk *w, const yaml_node_t *n, enum spec_form *ret)
{
	const char *tag = (const char *)n->tag;
	bool plain = n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
	if (!tag || strcmp(tag, YAML_STR_TAG) == 0) {
		/* libyaml gives every untagged scalar the tag of text, a quoted one too. An explicit !!str
		 * on a plain scalar cannot be told from that; the field's type decides then. */
		*ret = plain ? spec_form(scalar_text(n)) : SPEC_TEXT;
		return 0;
	}
	return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
		"the tag %.64s has no meaning in a job file", tag));
}

static int set_from_scalar(struct walk *w, ProtobufCMessage *msg,
	const ProtobufCFieldDescriptor *f, const yaml_node_t *n, const char *path)
{
	enum spec_form form = 0;
	int r = check_text(w, n, path);
	if (r == 0) {
		r = form_of(w, n, &form);
	}
	if (r != 0) {
		return r;
	}
	r = spec_set(msg, f, scalar_text(n), form, path, w->err);
	return r > 0 ? at_line(w, line_of(n), r) : r;
}

static int set_from_sequence(struct walk *w, ProtobufCMessage *msg,
	const ProtobufCFieldDescriptor *f, const yaml_node_t *n, const char *path, unsigned depth)
{
	if (jobspec_is_map(f)) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"'%s' is a mapping, as in {q_proj: 8}, not a list", path));
	}
	if (f->label != PROTOBUF_C_LABEL_REPEATED) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"'%s' takes one value, not a list", path));
	}
	if (n->data.sequence.items.start == n->data.sequence.items.top) {
		int r = spec_check_empty(path, w->err);
		return r > 0 ? at_line(w, line_of(n), r) : r;
	}
	for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++) {
		const yaml_node_t *item = yaml_document_get_node(w->doc, *i);
		int r = enter(w, item, depth);
		if (r != 0) {
			return r;
		}
		enum spec_form form = SPEC_NULL;
		if (item->type == YAML_SCALAR_NODE) {
			r = form_of(w, item, &form);
		}
		if (r != 0) {
			return r;
		}
		if (form == SPEC_NULL) {
			return at_line(w, line_of(item), errmsg_set(w->err, STATUS_INVALID,
				f->type == PROTOBUF_C_TYPE_BYTES ? "'%s' is a list of texts"
				: "'%s' is a list of numbers", path));
		}
		r = set_from_scalar(w, msg, f, item, path);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* One word where a key belongs. */
static int check_key(struct walk *w, const yaml_node_t *key, unsigned depth)
{
	int r = enter(w, key, depth);
	if (r == 0 && key->type != YAML_SCALAR_NODE) {
		r = at_line(w, line_of(key), errmsg_set(w->err, STATUS_INVALID, "a key must be a word"));
	}
	return r == 0 ? check_text(w, key, "a key") : r;
}

static int set_map(struct walk *w, ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f,
	const yaml_node_t *n, const char *path, unsigned depth)
{
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const yaml_node_t *key = yaml_document_get_node(w->doc, p->key);
		const yaml_node_t *value = yaml_document_get_node(w->doc, p->value);
		enum spec_form form = SPEC_NULL;
		int r = check_key(w, key, depth);
		r = r ? r : enter(w, value, depth);
		if (r == 0 && value->type == YAML_SCALAR_NODE) {
			r = check_text(w, value, path);
			r = r ? r : form_of(w, value, &form);
		}
		if (r != 0) {
			return r;
		}
		if (form == SPEC_NULL) {
			return at_line(w, line_of(value), errmsg_set(w->err, STATUS_INVALID,
				"'%s' takes a number for each key", path));
		}
		r = spec_map_add(msg, f, scalar_text(key), scalar_text(value), form, path, w->err);
		if (r != 0) {
			return r > 0 ? at_line(w, line_of(key), r) : r;
		}
	}
	return 0;
}

static int walk_mapping(struct walk *w, ProtobufCMessage *msg, const yaml_node_t *n,
	const char *path, unsigned depth);

static int set_from_mapping(struct walk *w, ProtobufCMessage *msg,
	const ProtobufCFieldDescriptor *f, const yaml_node_t *n, const char *path, unsigned depth)
{
	if (f->type != PROTOBUF_C_TYPE_MESSAGE) {
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID,
			"'%s' takes one value, not settings of its own", path));
	}
	if (jobspec_is_map(f)) {
		return set_map(w, msg, f, n, path, depth + 1);
	}
	_cleanup_(buf_deinit) struct buf below = {0};
	ProtobufCMessage *section = spec_section(msg, f);
	if (!section || buf_appendf(&below, "%s.", path) < 0 || !buf_cstr(&below)) {
		return -ENOMEM;
	}
	return walk_mapping(w, section, n, (char *)below.data, depth + 1);
}

static int set_from_node(struct walk *w, ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f,
	const yaml_node_t *n, const char *path, unsigned depth)
{
	int r = enter(w, n, depth);
	if (r != 0) {
		return r;
	}
	switch (n->type) {
	case YAML_SCALAR_NODE:
		return set_from_scalar(w, msg, f, n, path);
	case YAML_SEQUENCE_NODE:
		return set_from_sequence(w, msg, f, n, path, depth + 1);
	case YAML_MAPPING_NODE:
		return set_from_mapping(w, msg, f, n, path, depth);
	default:
		return at_line(w, line_of(n), errmsg_set(w->err, STATUS_INVALID, "'%s' is empty", path));
	}
}

/* `path` is what stands before the mapping's keys, dot included. */
static int walk_mapping(struct walk *w, ProtobufCMessage *msg, const yaml_node_t *n,
	const char *path, unsigned depth)
{
	enum { FIELDS_MAX = 64 };
	size_t seen[FIELDS_MAX] = {0}; /* the line of each field's key */
	const ProtobufCMessageDescriptor *d = msg->descriptor;
	if (d->n_fields > FIELDS_MAX) {
		return -EOVERFLOW;
	}
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const yaml_node_t *key = yaml_document_get_node(w->doc, p->key);
		int r = check_key(w, key, depth);
		if (r != 0) {
			return r;
		}
		const ProtobufCFieldDescriptor *f = spec_field(d, scalar_text(key));
		if (!f) {
			return at_line(w, line_of(key), spec_unknown_key(d, path, scalar_text(key), w->err));
		}
		size_t *line = &seen[f - d->fields];
		_cleanup_(buf_deinit) struct buf full = {0};
		if (buf_appendf(&full, "%s%s", path, f->name) < 0 || !buf_cstr(&full)) {
			return -ENOMEM;
		}
		if (*line != 0) {
			return at_line(w, line_of(key), errmsg_set(w->err, STATUS_INVALID,
				"'%s' is given twice; the first time on line %zu", (char *)full.data, *line));
		}
		*line = line_of(key);
		r = set_from_node(w, msg, f, yaml_document_get_node(w->doc, p->value), (char *)full.data,
			depth);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* ---- documents --------------------------------------------------------------------------- */

static size_t line_at(const uint8_t *text, size_t offset)
{
	size_t line = 1;
	for (size_t i = 0; i < offset; i++) {
		line += text[i] == '\n';
	}
	return line;
}

static int yaml_fault(const struct walk *w, const yaml_parser_t *p, const void *text, size_t len)
{
	if (p->error == YAML_MEMORY_ERROR) {
		return -ENOMEM;
	}
	if (p->error == YAML_READER_ERROR) {
		size_t offset = p->problem_offset < len ? p->problem_offset : len;
		return at_line(w, line_at(text, offset), errmsg_set(w->err, STATUS_INVALID, "%s",
			p->problem ? p->problem : "not readable"));
	}
	return at_line(w, p->problem_mark.line + 1, errmsg_set(w->err, STATUS_INVALID,
		"not YAML: %s%s%s", p->problem ? p->problem : "malformed", p->context ? ", " : "",
		p->context ? p->context : ""));
}

static int walk_document(struct walk *w, Peftd__V1__JobSpec *spec)
{
	const yaml_node_t *root = yaml_document_get_root_node(w->doc);
	if (!root) {
		return errmsg_set(w->err, STATUS_INVALID, "%s: the file is empty", w->file);
	}
	if (root->type != YAML_MAPPING_NODE) {
		return at_line(w, line_of(root), errmsg_set(w->err, STATUS_INVALID,
			"a job file is a mapping of settings, as in 'model: NAME'"));
	}
	return walk_mapping(w, &spec->base, root, "", 1);
}

static int load(struct walk *w, yaml_parser_t *parser, const void *text, size_t len,
	Peftd__V1__JobSpec *spec)
{
	yaml_document_t doc, more;
	if (!yaml_parser_load(parser, &doc)) {
		return yaml_fault(w, parser, text, len);
	}
	w->doc = &doc;
	int r = walk_document(w, spec);
	bool had_root = yaml_document_get_root_node(&doc) != NULL;
	yaml_document_delete(&doc);
	if (r != 0 || !had_root) {
		return r;
	}
	if (!yaml_parser_load(parser, &more)) {
		return yaml_fault(w, parser, text, len);
	}
	const yaml_node_t *second = yaml_document_get_root_node(&more);
	if (second) {
		r = at_line(w, line_of(second), errmsg_set(w->err, STATUS_INVALID,
			"a second document begins here; a job file holds one"));
	}
	yaml_document_delete(&more);
	return r;
}

int jobfile_parse(const char *file, const void *text, size_t len, Peftd__V1__JobSpec *spec,
	struct errmsg *err)
{
	static const char bom[] = "\xEF\xBB\xBF";
	struct walk w = {.file = file, .err = err};
	size_t bad;
	if (len >= 3 && memcmp(text, bom, 3) == 0) {
		text = (const char *)text + 3;
		len -= 3;
	}
	if (len > JOBFILE_MAX) {
		return errmsg_set(err, STATUS_INVALID, "%s: %zu bytes are too many for a job file; at most "
			"%d are allowed", file, len, JOBFILE_MAX);
	}
	if (!utf8_valid(text, len, &bad)) {
		return errmsg_set(err, STATUS_INVALID, "%s:%zu: not UTF-8", file, line_at(text, bad));
	}
	yaml_parser_t parser;
	if (!yaml_parser_initialize(&parser)) {
		return -ENOMEM;
	}
	yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&parser, len > 0 ? text : (const void *)"", len);
	int r = load(&w, &parser, text, len, spec);
	yaml_parser_delete(&parser);
	return r;
}

/* The file's bytes, no more than are looked at. */
static int read_file(FILE *f, struct buf *ret)
{
	size_t n;
	do {
		if (buf_reserve(ret, 65536) < 0) {
			return -ENOMEM;
		}
		n = fread(ret->data + ret->len, 1, 65536, f);
		ret->len += n;
	} while (n > 0 && ret->len <= JOBFILE_MAX);
	return ferror(f) ? -errno : 0;
}

int jobfile_read(const char *file, Peftd__V1__JobSpec *spec, struct errmsg *err)
{
	bool standard = strcmp(file, "-") == 0;
	_cleanup_(fclosep) FILE *opened = standard ? NULL : fopen(file, "re");
	FILE *f = standard ? stdin : opened;
	if (!f) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: %s", file, strerror(errno));
	}
	_cleanup_(buf_deinit) struct buf b = {0};
	int r = read_file(f, &b);
	if (r < 0) {
		return r == -ENOMEM ? r : errmsg_set(err, STATUS_NOT_FOUND, "%s: %s", file, strerror(-r));
	}
	return jobfile_parse(standard ? "standard input" : file, b.data, b.len, spec, err);
}

/* The line of the key that `path` leads to from the mapping `n`; 0: it is not there. */
static size_t find_key(yaml_document_t *doc, const yaml_node_t *n, const char *path)
{
	size_t len = strcspn(path, ".");
	if (!n || n->type != YAML_MAPPING_NODE) {
		return 0;
	}
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const yaml_node_t *key = yaml_document_get_node(doc, p->key);
		if (key->type == YAML_SCALAR_NODE && key->data.scalar.length == len &&
				memcmp(key->data.scalar.value, path, len) == 0) {
			return path[len] == '.'
				? find_key(doc, yaml_document_get_node(doc, p->value), path + len + 1)
				: line_of(key);
		}
	}
	return 0;
}

size_t jobfile_line(const char *file, const char *path)
{
	_cleanup_(fclosep) FILE *f = fopen(file, "re");
	_cleanup_(buf_deinit) struct buf b = {0};
	yaml_parser_t parser;
	yaml_document_t doc;
	size_t line = 0;
	if (!f || read_file(f, &b) != 0 || !yaml_parser_initialize(&parser)) {
		return 0;
	}
	yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&parser, b.data, b.len);
	if (yaml_parser_load(&parser, &doc)) {
		line = find_key(&doc, yaml_document_get_root_node(&doc), path);
		yaml_document_delete(&doc);
	}
	yaml_parser_delete(&parser);
	return line;
}
