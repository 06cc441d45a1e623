/*
 * What a repository holds, and which of it a base needs. The names in a listing become names of
 * files and its digests names of blobs, so nothing else than a name and a digest may pass here.
 */

#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/util.h"

enum { FILES_MAX = 200000, SHOWN_MAX = 8 };

#define SIZE_LIMIT ((int64_t)1 << 50) /* a file's; sums of FILES_MAX of them overflow nothing */
#define INDEX "model.safetensors.index.json"

void listing_deinit(struct listing *l)
{
	for (size_t i = 0; i < l->n_files; i++) {
		free(l->files[i].name);
	}
	free(l->files);
	*l = (struct listing){0};
}

void selection_deinit(struct selection *s)
{
	free(s->files);
	*s = (struct selection){0};
}

static bool ends_in(const char *s, const char *suffix)
{
	size_t n = strlen(s), k = strlen(suffix);
	return n >= k && strcasecmp(s + n - k, suffix) == 0;
}

/* ---- reading ----------------------------------------------------------------------------- */

/* A path within the repository: parts that are neither empty nor "." nor "..", of clean UTF-8. */
static bool path_valid(const char *s)
{
	size_t n = strlen(s);
	if (n == 0 || n > 4096 || !utf8_valid(s, n, NULL)) {
		return false;
	}
	for (size_t i = 0; i < n; i++) {
		if ((unsigned char)s[i] < ' ' || s[i] == 0x7F || s[i] == '\\') {
			return false;
		}
	}
	for (const char *end; s; s = end ? end + 1 : NULL) {
		end = strchr(s, '/');
		size_t k = end ? (size_t)(end - s) : strlen(s);
		if (k == 0 || (k == 1 && s[0] == '.') || (k == 2 && s[0] == '.' && s[1] == '.')) {
			return false;
		}
	}
	return true;
}

/* Copies a digest of `digits`; a missing one leaves "". */
static int read_digest(const json_t *o, const char *key, size_t digits, char *out,
	const char *what, struct errmsg *err)
{
	const char *s = NULL;
	int r = json_get_string(o, key, &s, what, err);
	if (r != 0 || !s) {
		return r;
	}
	if (strlen(s) != digits || strspn(s, "0123456789abcdef") != digits) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' must be %zu hexadecimal digits", what, key,
			digits);
	}
	memcpy(out, s, digits + 1);
	return 0;
}

static int read_file(struct hub_file *ret, const char *name, const json_t *o, const char *what,
	struct errmsg *err)
{
	struct hub_file f = {0};
	const json_t *lfs = json_object_get(o, "lfs");
	char where[512];
	snprintf(where, sizeof(where), "%s: %.300s", what, name);
	int64_t size = -1;
	int r;
	if (json_is_object(lfs)) {
		f.lfs = true;
		r = json_get_int(lfs, "size", 0, SIZE_LIMIT, &size, where, err);
		r = r ? r : read_digest(lfs, "sha256", 64, f.digest, where, err);
	} else {
		r = json_get_int(o, "size", 0, SIZE_LIMIT, &size, where, err);
		r = r ? r : read_digest(o, "blobId", 40, f.digest, where, err);
	}
	if (r != 0) {
		return r;
	}
	if (size < 0) {
		f.digest[0] = '\0'; /* without its size it is as unusable as without its digest */
	}
	f.size = size < 0 ? 0 : (uint64_t)size;
	f.name = strdup(name);
	if (!f.name) {
		return -ENOMEM;
	}
	*ret = f;
	return 0;
}

static int read_sibling(struct listing *l, const json_t *o, const char *what, struct errmsg *err)
{
	const char *name = NULL;
	int r = json_is_object(o) ? json_get_string(o, "rfilename", &name, what, err) : STATUS_INVALID;
	if (r < 0) {
		return r;
	}
	if (r != 0 || !name) {
		return errmsg_set(err, STATUS_INVALID, "%s: a file has no name", what);
	}
	if (!path_valid(name)) {
		return errmsg_set(err, STATUS_INVALID, "%s: names a file '%.200s', which can be no file's "
			"name; nothing is fetched", what, name);
	}
	if (strchr(name, '/')) {
		l->nested_gguf = l->nested_gguf || ends_in(name, ".gguf");
		return 0;
	}
	r = read_file(&l->files[l->n_files], name, o, what, err);
	l->n_files += r == 0;
	return r;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct hub_file *)a)->name, ((const struct hub_file *)b)->name);
}

static int read_all(struct listing *l, const json_t *root, const char *what, struct errmsg *err)
{
	const char *commit = NULL;
	int r = json_get_string(root, "sha", &commit, what, err);
	if (r != 0) {
		return r;
	}
	const json_t *list = json_object_get(root, "siblings");
	if (!commit || !hf_commit_valid(commit) || !json_is_array(list)) {
		return errmsg_set(err, STATUS_INVALID, "%s: the answer is no description of a model: it "
			"needs a commit in 'sha' and a list in 'siblings'", what);
	}
	memcpy(l->commit, commit, sizeof(l->commit));
	size_t n = json_array_size(list);
	if (n > FILES_MAX) {
		return errmsg_set(err, STATUS_INVALID, "%s: lists %zu files; at most %d are read", what, n,
			FILES_MAX);
	}
	l->files = calloc_array(n ? n : 1, sizeof(*l->files));
	if (!l->files) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n && r == 0; i++) {
		r = read_sibling(l, json_array_get(list, i), what, err);
	}
	if (r != 0) {
		return r;
	}
	qsort(l->files, l->n_files, sizeof(*l->files), by_name);
	for (size_t i = 1; i < l->n_files; i++) {
		if (strcmp(l->files[i - 1].name, l->files[i].name) == 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: names '%.200s' twice", what,
				l->files[i].name);
		}
	}
	return 0;
}

int listing_parse(struct listing *ret, const char *json, size_t len, const char *what,
	struct errmsg *err)
{
	_cleanup_(listing_deinit) struct listing l = {0};
	json_auto_t *root = NULL;
	int r = json_parse_object(&root, json, len, what, err);
	r = r ? r : read_all(&l, root, what, err);
	if (r == 0) {
		*ret = l;
		l = (struct listing){0};
	}
	return r;
}

const struct hub_file *listing_find(const struct listing *l, const char *name)
{
	struct hub_file key = {.name = (char *)(uintptr_t)name};
	return l->n_files > 0 ? bsearch(&key, l->files, l->n_files, sizeof(*l->files), by_name) : NULL;
}

/* ---- choosing ---------------------------------------------------------------------------- */

static bool is_pickle(const char *name)
{
	return ends_in(name, ".bin") || ends_in(name, ".pt") || ends_in(name, ".pth") ||
		ends_in(name, ".ckpt") || ends_in(name, ".pkl");
}

/* Configuration and tokenizer. */
static bool is_text(const char *name)
{
	static const char *const names[] = {"config.json", "generation_config.json",
		"special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
		"chat_template.jinja", "chat_template.json"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strcmp(name, names[i]) == 0) {
			return true;
		}
	}
	return ends_in(name, ".model") ||
		(strncmp(name, "tokenizer", 9) == 0 && ends_in(name, ".json"));
}

static int choose(struct selection *s, const struct hub_file *f, const char *what,
	struct errmsg *err)
{
	if (!name_valid(f->name, strlen(f->name))) {
		return errmsg_set(err, STATUS_INVALID, "%s: names a file '%.200s', which can be no file's "
			"name; nothing is fetched", what, f->name);
	}
	if (!f->digest[0]) {
		return errmsg_set(err, STATUS_INVALID, "%s: gives no digest of %s, without which nothing is "
			"fetched; is this a hub that answers ?blobs=true?", what, f->name);
	}
	const struct hub_file **grown = realloc_array(s->files, s->n + 1, sizeof(*grown));
	if (!grown) {
		return -ENOMEM;
	}
	grown[s->n++] = f;
	s->files = grown;
	return 0;
}

/* "a, b and 3 more" of the files that `wanted` likes; "" for none. */
static const char *names_of(struct buf *b, const struct listing *l, bool (*wanted)(const char *))
{
	size_t n = 0;
	for (size_t i = 0; i < l->n_files; i++) {
		if (wanted(l->files[i].name) && n++ < SHOWN_MAX) {
			buf_appendf(b, "%s%.80s", n > 1 ? ", " : "", l->files[i].name);
		}
	}
	if (n > SHOWN_MAX) {
		buf_appendf(b, " and %zu more", n - SHOWN_MAX);
	}
	const char *s = buf_cstr(b);
	return s ? s : "";
}

static bool is_gguf(const char *name)
{
	return ends_in(name, ".gguf");
}

static bool is_safetensors(const char *name)
{
	return ends_in(name, ".safetensors");
}

/* Why there are no weights to be had. */
static int no_weights(const struct listing *l, const char *what, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf gguf = {0}, pickles = {0}, others = {0};
	if (*names_of(&gguf, l, is_gguf)) {
		return errmsg_set(err, STATUS_INVALID, "%s: holds GGUF files; choose one with --include: %s",
			what, (char *)gguf.data);
	}
	if (*names_of(&others, l, is_safetensors)) {
		return errmsg_set(err, STATUS_INVALID, "%s: has neither model.safetensors nor " INDEX
			", so it is no base model (it has %s)", what, (char *)others.data);
	}
	if (*names_of(&pickles, l, is_pickle)) {
		return errmsg_set(err, STATUS_INVALID, "%s: has its weights as pickles alone (%s), which "
			"run code when they are read; only safetensors are fetched. A revision or another model "
			"may have them", what, (char *)pickles.data);
	}
	return errmsg_set(err, STATUS_INVALID, "%s: has no weights: neither model.safetensors nor "
		INDEX "%s", what, l->nested_gguf ? "; its GGUF files lie in folders, from which nothing is "
		"fetched" : "");
}

static int select_base(const struct listing *l, const char *what, struct selection *s,
	struct errmsg *err)
{
	/* As transformers chooses: the single file wins. */
	const struct hub_file *weights = listing_find(l, "model.safetensors");
	if (!weights) {
		weights = listing_find(l, INDEX);
		s->sharded = weights != NULL;
	}
	if (!weights) {
		return no_weights(l, what, err);
	}
	if (!listing_find(l, "config.json")) {
		return errmsg_set(err, STATUS_INVALID, "%s: has no config.json, so it is no base model%s",
			what, listing_find(l, "adapter_config.json") ? " but an adapter" : "");
	}
	int r = choose(s, weights, what, err);
	for (size_t i = 0; i < l->n_files && r == 0; i++) {
		r = is_text(l->files[i].name) ? choose(s, &l->files[i], what, err) : 0;
	}
	return r;
}

static int select_included(const struct listing *l, const char *include, const char *what,
	struct selection *s, struct errmsg *err)
{
	for (size_t i = 0; i < l->n_files; i++) {
		const struct hub_file *f = &l->files[i];
		if (fnmatch(include, f->name, 0) != 0 || !is_gguf(f->name)) {
			continue;
		}
		int r = choose(s, f, what, err);
		if (r != 0) {
			return r;
		}
	}
	if (s->n > 0) {
		return 0;
	}
	_cleanup_(buf_deinit) struct buf gguf = {0};
	const char *there = names_of(&gguf, l, is_gguf);
	return errmsg_set(err, STATUS_NOT_FOUND, "%s: no .gguf file at the top of the repository "
		"matches '%.100s'; there %s %s", what, include, *there ? "are:" : "is", *there ? there
		: "none");
}

int listing_select(const struct listing *l, const char *include, const char *what,
	struct selection *ret, struct errmsg *err)
{
	_cleanup_(selection_deinit) struct selection s = {0};
	int r = include ? select_included(l, include, what, &s, err) : select_base(l, what, &s, err);
	if (r == 0) {
		*ret = s;
		s = (struct selection){0};
	}
	return r;
}

static bool is_selected(const struct selection *s, const struct hub_file *f)
{
	for (size_t i = 0; i < s->n; i++) {
		if (s->files[i] == f) {
			return true;
		}
	}
	return false;
}

int listing_select_shards(const struct listing *l, const char *json, size_t len, const char *what,
	struct selection *ret, struct errmsg *err)
{
	_cleanup_(selection_deinit) struct selection s = {0};
	json_auto_t *root = NULL;
	int r = json_parse_object(&root, json, len, what, err);
	if (r != 0) {
		return r;
	}
	const json_t *map = json_object_get(root, "weight_map");
	if (!json_is_object(map) || json_object_size(map) == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'weight_map' must be an object: tensor → file",
			what);
	}
	const char *tensor;
	json_t *place;
	json_object_foreach((json_t *)(uintptr_t)map, tensor, place) {
		const char *name = json_string_value(place);
		const struct hub_file *f = name ? listing_find(l, name) : NULL;
		if (!f || !is_safetensors(name)) {
			return errmsg_set(err, STATUS_INVALID, "%s: weight_map places '%.100s' in %s, which is "
				"no .safetensors file of the repository", what, tensor, json_short(place).s);
		}
		r = is_selected(&s, f) ? 0 : choose(&s, f, what, err);
		if (r != 0) {
			return r;
		}
	}
	*ret = s;
	s = (struct selection){0};
	return 0;
}
