/* Names ORG/NAME in the local Hugging Face cache: models--ORG--NAME/refs/main holds the revision,
 * snapshots/<revision> the files. Nothing is ever downloaded. */

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

/* huggingface_hub/constants.py: the first of these that is set. */
static bool cache_root(char *out, size_t cap)
{
	static const struct {
		const char *variable, *below;
	} places[] = {
		{"HF_HUB_CACHE", ""},
		{"HUGGINGFACE_HUB_CACHE", ""},
		{"HF_HOME", "/hub"},
		{"XDG_CACHE_HOME", "/huggingface/hub"},
		{"HOME", "/.cache/huggingface/hub"},
	};
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		const char *value = getenv(places[i].variable);
		if (value && value[0]) {
			return (size_t)snprintf(out, cap, "%s%s", value, places[i].below) < cap;
		}
	}
	return false;
}

/* ORG/NAME or NAME, of the characters that the Hub allows. */
static bool repo_name_valid(const char *name)
{
	size_t slashes = 0, n = strlen(name);
	if (n == 0 || n > 128 || strstr(name, "..") || strstr(name, "--")) {
		return false;
	}
	for (size_t i = 0; i < n; i++) {
		char c = name[i];
		bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
		bool edge = i == 0 || i == n - 1 || name[i - 1] == '/' || name[i + 1] == '/';
		if (!letter && c != '_' && (edge || !strchr("-./", c))) {
			return false;
		}
		slashes += c == '/';
	}
	return slashes <= 1;
}

static int read_revision(const char *root, const char *folder, const char *name, char *out,
	size_t cap, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf text = {0};
	char path[PATH_MAX];
	if ((size_t)snprintf(path, sizeof(path), "%s/%s/refs/main", root, folder) >= sizeof(path)) {
		return errmsg_set(err, STATUS_INVALID, "%s: the path of its cache is too long", name);
	}
	int r = text_file_read(&text, path, path, 256, err);
	if (r != 0) {
		return r;
	}
	if (!text.data) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no such file or folder, and the "
			"Hugging Face cache %s has no such model (no %s/refs/main)", name, root, folder);
	}
	while (text.len > 0 && strchr(" \r\n\t", text.data[text.len - 1])) {
		text.len--;
	}
	if (!name_valid(text.data, text.len) || text.len >= cap) {
		return errmsg_set(err, STATUS_INVALID, "%s: holds no name of a revision", path);
	}
	memcpy(out, text.data, text.len);
	out[text.len] = '\0';
	return 0;
}

int hf_cache_find(char **ret_path, const char *name, struct errmsg *err)
{
	char root[PATH_MAX], folder[160], revision[160], path[PATH_MAX];
	struct stat st;

	if (!repo_name_valid(name)) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no such file or folder", name);
	}
	if (!cache_root(root, sizeof(root))) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no such file or folder, and no "
			"Hugging Face cache: none of HF_HUB_CACHE, HF_HOME, HOME is set", name);
	}
	const char *slash = strchr(name, '/');
	if (slash) {
		snprintf(folder, sizeof(folder), "models--%.*s--%s", (int)(slash - name), name, slash + 1);
	} else {
		snprintf(folder, sizeof(folder), "models--%s", name);
	}
	int r = read_revision(root, folder, name, revision, sizeof(revision), err);
	if (r != 0) {
		return r;
	}
	size_t n = (size_t)snprintf(path, sizeof(path), "%s/%s/snapshots/%s", root, folder, revision);
	if (n >= sizeof(path)) {
		return errmsg_set(err, STATUS_INVALID, "%s: the path of its cache is too long", name);
	}
	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: the Hugging Face cache names revision %s, "
			"but there is no %s; download it again", name, revision, path);
	}
	*ret_path = strdup(path);
	return *ret_path ? 0 : -ENOMEM;
}
