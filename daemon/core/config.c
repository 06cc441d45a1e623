#include "daemon/core/config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>

#include "util/cleanup.h"
#include "util/util.h"

enum { MAX_ENDPOINTS = 16, LEAST_MEMORY = 256 * 1024 * 1024 };

static const char *const keys[] = {
	"state-dir", "endpoint", "device", "log-level", "memory-limit", "threads"};

void config_deinit(struct config *c)
{
	free(c->state_dir);
	for (size_t i = 0; i < c->n_endpoints; i++) {
		free(c->endpoints[i]);
	}
	free(c->endpoints);
	free(c->device);
	*c = (struct config){.log_level = -1};
}

static int set_text(char **dst, const char *value)
{
	char *copy = strdup(value);
	if (!copy) {
		return -ENOMEM;
	}
	free(*dst);
	*dst = copy;
	return 0;
}

static bool same_key(const char *given, const char *key)
{
	while (*given && (*given == '_' ? '-' : *given) == *key) {
		given++;
		key++;
	}
	return *given == '\0' && *key == '\0';
}

static int add_endpoint(struct config *c, const char *value, struct errmsg *err)
{
	if (strncmp(value, "ipc://", 6) != 0 && strncmp(value, "tcp://", 6) != 0) {
		return errmsg_set(err, STATUS_INVALID,
			"endpoint: '%s'; it begins with ipc:// (a path) or tcp:// (an address and port)",
			value);
	}
	if (c->n_endpoints == MAX_ENDPOINTS) {
		return errmsg_set(err, STATUS_INVALID, "endpoint: more than %d", MAX_ENDPOINTS);
	}
	char **list = realloc_array(c->endpoints, c->n_endpoints + 1, sizeof(char *));
	if (!list) {
		return -ENOMEM;
	}
	c->endpoints = list;
	list[c->n_endpoints] = strdup(value);
	return list[c->n_endpoints] ? (c->n_endpoints++, 0) : -ENOMEM;
}

/* cuda:0 to cuda:999 */
static bool is_cuda(const char *s)
{
	size_t digits = 0;
	if (strncmp(s, "cuda:", 5) != 0) {
		return false;
	}
	for (s += 5; *s >= '0' && *s <= '9'; s++) {
		digits++;
	}
	return *s == '\0' && digits >= 1 && digits <= 3;
}

static int set_device(struct config *c, const char *value, struct errmsg *err)
{
	if (!is_cuda(value) && strcmp(value, "auto") != 0 && strcmp(value, "cpu") != 0) {
		return errmsg_set(err, STATUS_INVALID, "device: '%s'; it is auto, cpu or cuda:N", value);
	}
	return set_text(&c->device, value);
}

/* "16GiB", "500 MB", "1073741824". */
static int parse_bytes(const char *value, uint64_t *ret, struct errmsg *err)
{
	static const struct {
		const char *unit;
		uint64_t bytes;
	} units[] = {
		{"", 1},
		{"B", 1},
		{"KiB", 1ULL << 10},
		{"MiB", 1ULL << 20},
		{"GiB", 1ULL << 30},
		{"TiB", 1ULL << 40},
		{"KB", 1000},
		{"MB", 1000000},
		{"GB", 1000000000},
		{"TB", 1000000000000},
		{"K", 1ULL << 10},
		{"M", 1ULL << 20},
		{"G", 1ULL << 30},
		{"T", 1ULL << 40},
	};
	char *end;
	errno = 0;
	double number = strtod(value, &end);
	if (end != value && errno == 0 && number > 0 && value[0] != '-' && value[0] != '+') {
		end += strspn(end, " ");
		for (size_t i = 0; i < ARRAY_LEN(units); i++) {
			double bytes = number * (double)units[i].bytes;
			if (strcmp(end, units[i].unit) == 0 && bytes >= 1 && bytes < 0x1p62) {
				*ret = (uint64_t)bytes;
				return 0;
			}
		}
	}
	return errmsg_set(
		err, STATUS_INVALID, "memory-limit: '%s'; a number of bytes, or with a unit: 16GiB", value);
}

static int parse_threads(const char *value, uint32_t *ret, struct errmsg *err)
{
	char *end;
	errno = 0;
	long n = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end || n < 0 || n > 1024) {
		return errmsg_set(
			err, STATUS_INVALID, "threads: '%s'; a number up to 1024, or 0 for one a core", value);
	}
	*ret = (uint32_t)n;
	return 0;
}

int config_set(struct config *c, const char *key, const char *value, struct errmsg *err)
{
	if (same_key(key, "state-dir")) {
		if (value[0] == '\0') {
			return errmsg_set(err, STATUS_INVALID, "state-dir: empty; it is a directory");
		}
		return set_text(&c->state_dir, value);
	}
	if (same_key(key, "endpoint")) {
		return add_endpoint(c, value, err);
	}
	if (same_key(key, "device")) {
		return set_device(c, value, err);
	}
	if (same_key(key, "log-level")) {
		enum log_level level;
		if (log_level_parse(value, &level) < 0) {
			return errmsg_set(
				err, STATUS_INVALID, "log-level: '%s'; it is error, warning, info or debug", value);
		}
		c->log_level = (int)level;
		return 0;
	}
	if (same_key(key, "memory-limit")) {
		uint64_t limit = 0;
		int r = parse_bytes(value, &limit, err);
		if (r == 0 && limit < LEAST_MEMORY) {
			return errmsg_set(err, STATUS_INVALID,
				"memory-limit: '%s' is %llu bytes; a trainer without any model takes 160 MiB, so give at "
				"least 256MiB",
				value, (unsigned long long)limit);
		}
		c->memory_limit = r == 0 ? limit : c->memory_limit;
		return r;
	}
	if (same_key(key, "threads")) {
		return parse_threads(value, &c->threads, err);
	}
	const char *closest = keys[0];
	for (size_t i = 1; i < ARRAY_LEN(keys); i++) {
		if (edit_distance(key, keys[i]) < edit_distance(key, closest)) {
			closest = keys[i];
		}
	}
	return errmsg_set(
		err, STATUS_INVALID, "%s: there is no such key; did you mean %s?", key, closest);
}

/* ---- the file ------------------------------------------------------------------------------ */

static int at_line(const char *path, const yaml_mark_t *mark, int r, struct errmsg *err)
{
	return r > 0 ? errmsg_prefix(err, r, "%s:%zu", path, mark->line + 1) : r;
}

static int set_node(struct config *c, yaml_document_t *doc, const char *path, const char *key,
	const yaml_node_t *node, struct errmsg *err)
{
	if (node->type == YAML_SEQUENCE_NODE && same_key(key, "endpoint")) {
		for (yaml_node_item_t *i = node->data.sequence.items.start;
			 i < node->data.sequence.items.top; i++) {
			const yaml_node_t *item = yaml_document_get_node(doc, *i);
			if (item->type == YAML_SEQUENCE_NODE) {
				int r = errmsg_set(err, STATUS_INVALID, "endpoint: a list of lists");
				return at_line(path, &item->start_mark, r, err);
			}
			int r = set_node(c, doc, path, key, item, err);
			if (r != 0) {
				return r;
			}
		}
		return 0;
	}
	if (node->type != YAML_SCALAR_NODE) {
		int r = errmsg_set(err, STATUS_INVALID, "%s: a single value is wanted here", key);
		return at_line(path, &node->start_mark, r, err);
	}
	const char *value = (const char *)node->data.scalar.value;
	int r = strlen(value) == node->data.scalar.length
		? config_set(c, key, value, err)
		: errmsg_set(err, STATUS_INVALID, "%s: holds a NUL character", key);
	return at_line(path, &node->start_mark, r, err);
}

static int read_mapping(
	struct config *c, yaml_document_t *doc, const char *path, struct errmsg *err)
{
	const yaml_node_t *root = yaml_document_get_root_node(doc);
	if (!root) {
		return 0; /* an empty file says nothing */
	}
	if (root->type != YAML_MAPPING_NODE) {
		int r = errmsg_set(err, STATUS_INVALID, "a mapping of keys to values is wanted");
		return at_line(path, &root->start_mark, r, err);
	}
	unsigned seen = 0;
	for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top;
		 p++) {
		const yaml_node_t *k = yaml_document_get_node(doc, p->key);
		int r = 0;
		if (k->type != YAML_SCALAR_NODE) {
			r = errmsg_set(err, STATUS_INVALID, "a key is a word");
			return at_line(path, &k->start_mark, r, err);
		}
		const char *key = (const char *)k->data.scalar.value;
		for (unsigned i = 0; i < ARRAY_LEN(keys) && r == 0; i++) {
			if (same_key(key, keys[i])) {
				r = seen & 1u << i ? errmsg_set(err, STATUS_INVALID, "%s: given twice", key) : 0;
				seen |= 1u << i;
			}
		}
		if (r != 0) {
			return at_line(path, &k->start_mark, r, err);
		}
		r = set_node(c, doc, path, key, yaml_document_get_node(doc, p->value), err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int yaml_fault(const yaml_parser_t *p, const char *path, struct errmsg *err)
{
	return errmsg_set(err, STATUS_INVALID, "%s:%zu: not YAML: %s", path, p->problem_mark.line + 1,
		p->problem ? p->problem : "it cannot be read");
}

static int read_documents(struct config *c, yaml_parser_t *p, const char *path, struct errmsg *err)
{
	yaml_document_t doc, second;
	if (!yaml_parser_load(p, &doc)) {
		return yaml_fault(p, path, err);
	}
	int r = read_mapping(c, &doc, path, err);
	bool empty = yaml_document_get_root_node(&doc) == NULL;
	yaml_document_delete(&doc);
	if (r != 0 || empty) {
		return r;
	}
	if (!yaml_parser_load(p, &second)) {
		return yaml_fault(p, path, err);
	}
	if (yaml_document_get_root_node(&second)) {
		r = errmsg_set(err, STATUS_INVALID, "%s: holds more than one document", path);
	}
	yaml_document_delete(&second);
	return r;
}

int config_read(struct config *c, const char *path, struct errmsg *err)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	if (!f) {
		return errmsg_set(err, STATUS_INVALID, "%s: %s", path, strerror(errno));
	}
	yaml_parser_t p;
	if (!yaml_parser_initialize(&p)) {
		return -ENOMEM;
	}
	yaml_parser_set_input_file(&p, f);
	int r = read_documents(c, &p, path, err);
	yaml_parser_delete(&p);
	return r;
}

/* ---- defaults ------------------------------------------------------------------------------ */

/* The first of a colon-separated list of absolute paths in an environment variable; NULL. */
static const char *env_folder(const char *name)
{
	const char *s = getenv(name);
	return s && s[0] == '/' ? s : NULL;
}

static int default_state_dir(struct config *c, struct errmsg *err)
{
	const char *given = env_folder("STATE_DIRECTORY");
	const char *xdg = env_folder("XDG_STATE_HOME");
	const char *home = env_folder("HOME");
	if (given) {
		c->state_dir = strndup(given, strcspn(given, ":"));
	} else if (getuid() == 0) {
		c->state_dir = strdup("/var/lib/peftd");
	} else if (xdg) {
		return asprintf(&c->state_dir, "%s/peftd", xdg) < 0 ? (c->state_dir = NULL, -ENOMEM) : 0;
	} else if (home) {
		return asprintf(&c->state_dir, "%s/.local/state/peftd", home) < 0
			? (c->state_dir = NULL, -ENOMEM)
			: 0;
	} else {
		return errmsg_set(err, STATUS_INVALID,
			"no state directory: give --state-dir, or set XDG_STATE_HOME or HOME");
	}
	return c->state_dir ? 0 : -ENOMEM;
}

static int default_endpoint(struct config *c, struct errmsg *err)
{
	const char *given = env_folder("RUNTIME_DIRECTORY");
	const char *xdg = env_folder("XDG_RUNTIME_DIR");
	_cleanup_(freep) char *endpoint = NULL;
	int n;
	if (given) {
		n = asprintf(&endpoint, "ipc://%.*s/peftd.sock", (int)strcspn(given, ":"), given);
	} else if (xdg) {
		n = asprintf(&endpoint, "ipc://%s/peftd.sock", xdg);
	} else if (getuid() == 0) {
		n = asprintf(&endpoint, "ipc://" CONFIG_RUN_FOLDER "/peftd.sock");
		c->needs_run_folder = true;
	} else {
		return errmsg_set(
			err, STATUS_INVALID, "no endpoint: give --endpoint ipc://PATH, or set XDG_RUNTIME_DIR");
	}
	if (n < 0) {
		endpoint = NULL;
		return -ENOMEM;
	}
	return add_endpoint(c, endpoint, err);
}

int config_complete(struct config *c, struct config *file, struct errmsg *err)
{
	if (!c->state_dir) {
		c->state_dir = steal_ptr(file->state_dir);
	}
	if (c->n_endpoints == 0) {
		free(c->endpoints);
		c->endpoints = steal_ptr(file->endpoints);
		c->n_endpoints = file->n_endpoints;
		file->n_endpoints = 0;
	}
	if (!c->device) {
		c->device = steal_ptr(file->device);
	}
	c->log_level = c->log_level >= 0 ? c->log_level : file->log_level;
	c->memory_limit = c->memory_limit ? c->memory_limit : file->memory_limit;
	c->threads = c->threads ? c->threads : file->threads;

	int r = c->state_dir ? 0 : default_state_dir(c, err);
	if (r == 0 && c->n_endpoints == 0) {
		r = default_endpoint(c, err);
	}
	if (r == 0 && !c->device) {
		r = set_text(&c->device, "auto");
	}
	if (c->log_level < 0) {
		c->log_level = LOG_LEVEL_INFO;
	}
	return r;
}
