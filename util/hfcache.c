#include "util/hfcache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "util/cleanup.h"
#include "util/util.h"

struct place {
	const char *variable, *below;
};

/* The first of these that is set; false when it is too long for `out` or none is set. */
static bool first_set(const struct place *places, size_t n, char *out, size_t cap)
{
	for (size_t i = 0; i < n; i++) {
		const char *value = getenv(places[i].variable);
		if (value && value[0]) {
			return (size_t)snprintf(out, cap, "%s%s", value, places[i].below) < cap;
		}
	}
	return false;
}

/* The order is that of huggingface_hub/constants.py. */
int hf_cache_root(char *out, size_t cap, struct errmsg *err)
{
	static const struct place places[] = {
		{"HF_HUB_CACHE", ""},
		{"HUGGINGFACE_HUB_CACHE", ""},
		{"HF_HOME", "/hub"},
		{"XDG_CACHE_HOME", "/huggingface/hub"},
		{"HOME", "/.cache/huggingface/hub"},
	};
	return first_set(places, ARRAY_LEN(places), out, cap) ? 0 : errmsg_set(err, STATUS_NOT_FOUND,
		"no Hugging Face cache: none of HF_HUB_CACHE, HF_HOME, HOME is set");
}

int hf_home(char *out, size_t cap, struct errmsg *err)
{
	static const struct place places[] = {
		{"HF_HOME", ""},
		{"XDG_CACHE_HOME", "/huggingface"},
		{"HOME", "/.cache/huggingface"},
	};
	return first_set(places, ARRAY_LEN(places), out, cap) ? 0 : errmsg_set(err, STATUS_NOT_FOUND,
		"no folder of Hugging Face: neither HF_HOME nor HOME is set");
}

bool hf_commit_valid(const char *s)
{
	return strlen(s) == 40 && strspn(s, "0123456789abcdef") == 40;
}

/* ORG/NAME or NAME, of the characters that the Hub allows. */
static bool repo_valid(const char *name)
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

/* Branches may have '/' in them ("refs/pr/1"); each part must be a name. */
static bool revision_valid(const char *s)
{
	size_t n = strlen(s);
	if (n == 0 || n > 128) {
		return false;
	}
	for (const char *end; s; s = end ? end + 1 : NULL) {
		end = strchr(s, '/');
		if (!name_valid(s, end ? (size_t)(end - s) : strlen(s))) {
			return false;
		}
	}
	return true;
}

int hf_name_parse(struct hf_name *ret, const char *text, struct errmsg *err)
{
	struct hf_name name = {.revision = "main"};
	const char *at = strchr(text, '@');
	size_t n = at ? (size_t)(at - text) : strlen(text);
	memcpy(name.repo, text, n < sizeof(name.repo) ? n : 0);
	if (!repo_valid(name.repo)) {
		return errmsg_set(err, STATUS_INVALID, "'%.140s': no name of a model; it must be ORG/NAME or "
			"ORG/NAME@REVISION, of letters, digits, '-', '_' and '.'", text);
	}
	if (at && !revision_valid(at + 1)) {
		return errmsg_set(err, STATUS_INVALID, "'%.140s': what follows the '@' can be no revision; "
			"it must be a branch, a tag or a commit of 40 hexadecimal digits", text);
	}
	const char *slash = strchr(name.repo, '/');
	if (slash) {
		snprintf(name.folder, sizeof(name.folder), "models--%.*s--%s", (int)(slash - name.repo),
			name.repo, slash + 1);
	} else {
		snprintf(name.folder, sizeof(name.folder), "models--%s", name.repo);
	}
	if (at) {
		memcpy(name.revision, at + 1, strlen(at + 1) + 1);
	}
	*ret = name;
	return 0;
}

/* What a refs/ file says, NUL-terminated; -errno. */
static int read_ref(const char *path, char *out, size_t cap)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0) {
		return -errno;
	}
	ssize_t n = S_ISREG(st.st_mode) ? read(fd, out, cap - 1) : 0;
	if (n < 0) {
		return -errno;
	}
	while (n > 0 && strchr(" \r\n\t", out[n - 1])) {
		n--;
	}
	out[n] = '\0';
	return 0;
}

static int find_commit(const char *root, const struct hf_name *name, const char *shown, char *out,
	size_t cap, struct errmsg *err)
{
	char path[PATH_MAX];
	if (hf_commit_valid(name->revision)) {
		memcpy(out, name->revision, 41);
		return 0;
	}
	if ((size_t)snprintf(path, sizeof(path), "%s/%s/refs/%s", root, name->folder,
			name->revision) >= sizeof(path)) {
		return errmsg_set(err, STATUS_INVALID, "%s: the path of its cache is too long", shown);
	}
	int r = read_ref(path, out, cap);
	if (r == -ENOENT || r == -ENOTDIR) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no such file or folder, and the "
			"Hugging Face cache %s has no such model (no %s/refs/%s)", shown, root, name->folder,
			name->revision);
	}
	if (r < 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: cannot be read: %s", path, strerror(-r));
	}
	return name_valid(out, strlen(out)) ? 0
		: errmsg_set(err, STATUS_INVALID, "%s: holds no name of a revision", path);
}

int hf_cache_find(char **ret_path, const char *text, struct errmsg *err)
{
	char root[PATH_MAX], commit[160], path[PATH_MAX];
	struct hf_name name;
	struct stat st;

	if (hf_name_parse(&name, text, NULL) != 0) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no such file or folder", text);
	}
	int r = hf_cache_root(root, sizeof(root), err);
	if (r != 0) {
		return errmsg_prefix(err, r, "%s: there is no such file or folder", text);
	}
	r = find_commit(root, &name, text, commit, sizeof(commit), err);
	if (r != 0) {
		return r;
	}
	size_t n = (size_t)snprintf(path, sizeof(path), "%s/%s/snapshots/%s", root, name.folder,
		commit);
	if (n >= sizeof(path)) {
		return errmsg_set(err, STATUS_INVALID, "%s: the path of its cache is too long", text);
	}
	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: the Hugging Face cache names revision %s, "
			"but there is no %s; download it again", text, commit, path);
	}
	*ret_path = strdup(path);
	return *ret_path ? 0 : -ENOMEM;
}
