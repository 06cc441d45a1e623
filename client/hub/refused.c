/* What a hub's refusal means, in words that say what to do. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/util.h"

enum { ANSWER_MAX = 16 << 20, NAMES_MAX = 2000, SHOWN_MAX = 8 };

/* ---- names that there are ---------------------------------------------------------------- */

struct near {
	const char *wanted;
	char best[132];
	unsigned distance;
	struct buf some; /* the first few, in the order that they came */
	size_t n;
};

static void near_deinit(struct near *n)
{
	buf_deinit(&n->some);
}

/* The member `key` of each object in a list, as candidates. */
static void look_at(struct near *near, const json_t *list, const char *key)
{
	for (size_t i = 0; i < json_array_size(list) && near->n < NAMES_MAX; i++) {
		const char *s = json_string_value(json_object_get(json_array_get(list, i), key));
		if (!s || strlen(s) >= sizeof(near->best)) {
			continue;
		}
		unsigned d = edit_distance(near->wanted, s);
		if (near->n == 0 || d < near->distance) {
			near->distance = d;
			memcpy(near->best, s, strlen(s) + 1);
		}
		if (near->n++ < SHOWN_MAX) {
			buf_appendf(&near->some, "%s%.64s", near->n > 1 ? ", " : "", s);
		}
	}
}

/* Asks once: a hint is not worth waiting for. *ret may be anything that JSON can be. */
static json_t *ask(const struct hub_config *config, const char *url)
{
	struct hub_config once = *config;
	_cleanup_(buf_deinit) struct buf text = {0};
	struct http_get answer;
	struct http h;
	json_t *root = NULL;
	once.tries = 1;
	if (http_init(&h, &once) == 0 &&
		http_get_text(&h, url, "hint", ANSWER_MAX, &text, &answer, NULL) == 0) {
		root = json_loadb((const char *)text.data, text.len, 0, NULL);
	}
	http_deinit(&h);
	return root;
}

static void find_repos(const struct hub_config *config, const struct hf_name *name,
	struct near *near)
{
	_cleanup_(buf_deinit) struct buf url = {0};
	const char *slash = strchr(name->repo, '/');
	if (slash && buf_appendf(&url, "%s/api/models?author=%.*s&limit=500", config->endpoint,
			(int)(slash - name->repo), name->repo) == 0 && buf_cstr(&url)) {
		json_auto_t *root = ask(config, (char *)url.data);
		look_at(near, root, "id");
	}
}

static void find_revisions(const struct hub_config *config, const struct hf_name *name,
	struct near *near)
{
	_cleanup_(buf_deinit) struct buf url = {0};
	if (buf_appendf(&url, "%s/api/models/%s/refs", config->endpoint, name->repo) == 0 &&
		buf_cstr(&url)) {
		json_auto_t *root = ask(config, (char *)url.data);
		look_at(near, json_object_get(root, "branches"), "name");
		look_at(near, json_object_get(root, "tags"), "name");
	}
}

/* ---- words ------------------------------------------------------------------------------- */

static int no_repo(const struct hub_config *config, const struct hf_name *name, int code,
	const char *why, struct errmsg *err)
{
	_cleanup_(near_deinit) struct near near = {.wanted = name->repo};
	find_repos(config, name, &near);
	if (near.n > 0 && near.distance <= 3 + strlen(name->repo) / 4) {
		return errmsg_set(err, code, "%s: %s%s; did you mean %s?", name->repo, config->endpoint, why,
			near.best);
	}
	return errmsg_set(err, code, "%s: %s%s%s%s", name->repo, config->endpoint, why,
		near.n > 0 ? "; of this owner there are " : "",
		near.n > 0 && buf_cstr(&near.some) ? (char *)near.some.data : "");
}

static int no_revision(const struct hub_config *config, const struct hf_name *name,
	struct errmsg *err)
{
	_cleanup_(near_deinit) struct near near = {.wanted = name->revision};
	find_revisions(config, name, &near);
	const char *some = near.n > 0 ? buf_cstr(&near.some) : NULL;
	bool close = near.n > 0 && near.distance <= 3;
	return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no revision '%s'%s%s%s%s%s", name->repo,
		name->revision, close ? "; did you mean '" : "", close ? near.best : "", close ? "'?" : "",
		some ? close ? " There are " : "; there are " : "", some ? some : "");
}

static int gated(const struct hub_config *config, const struct hf_name *name, struct errmsg *err)
{
	return errmsg_set(err, STATUS_DENIED, "%s is gated: accept its licence at %s/%s, %s", name->repo,
		config->endpoint, name->repo, config->token
		? "with the account that the token belongs to, and see that the token may read gated models"
		: "and set HF_TOKEN to a token of the account that did");
}

int hub_refused(const struct hub_config *config, const struct hf_name *name, const char *what,
	const struct http_get *answer, struct errmsg *err)
{
	const char *code = answer->error_code;
	bool missing = answer->status == 404;
	if (strcmp(code, "GatedRepo") == 0 || (answer->status == 403 && !code[0])) {
		return gated(config, name, err);
	}
	if (strcmp(code, "RevisionNotFound") == 0) {
		return no_revision(config, name, err);
	}
	if (answer->status == 401 && !config->token) { /* also said of what is not there */
		return no_repo(config, name, STATUS_DENIED, " has no public model of this name; if it is "
			"private or gated, set HF_TOKEN to a token that may read it", err);
	}
	if (answer->status == 401) {
		return no_repo(config, name, STATUS_DENIED, " has no such model, or does not accept the token "
			"(HF_TOKEN, or the one saved by logging in)", err);
	}
	if (answer->status == 403) {
		return errmsg_set(err, STATUS_DENIED, "%s: %s does not let this token read it", name->repo,
			config->endpoint);
	}
	if (missing && what) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: %s lists %s, but has no such file",
			name->repo, config->endpoint, what);
	}
	if (missing) {
		return no_repo(config, name, STATUS_NOT_FOUND, " has no such model", err);
	}
	return errmsg_set(err, STATUS_FAILED, "%s: %s answers %ld", name->repo, config->endpoint,
		answer->status);
}
