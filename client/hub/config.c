/* What the environment says about the hub. */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { TOKEN_MAX = 4096, STALL_S = 30, TRIES = 5, BACKOFF_MS = 1000 };

void hub_config_deinit(struct hub_config *c)
{
	if (c->token) {
		explicit_bzero(c->token, strlen(c->token));
	}
	free(c->endpoint);
	free(c->token);
	free(c->ca_file);
	*c = (struct hub_config){0};
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);
	return value && value[0] ? value : NULL;
}

static bool is_true(const char *value)
{
	return value && (strcmp(value, "1") == 0 || strcasecmp(value, "true") == 0 ||
		strcasecmp(value, "yes") == 0 || strcasecmp(value, "on") == 0);
}

static int set_endpoint(struct hub_config *c, struct errmsg *err)
{
	const char *value = variable("HF_ENDPOINT");
	c->endpoint = strdup(value ? value : HUB_DEFAULT_ENDPOINT);
	if (!c->endpoint) {
		return -ENOMEM;
	}
	for (size_t n = strlen(c->endpoint); n > 0 && c->endpoint[n - 1] == '/'; n--) {
		c->endpoint[n - 1] = '\0';
	}
	return http_check_endpoint(c->endpoint, err);
}

/* A token goes into a header: it must not be able to end the line. */
static int set_token(struct hub_config *c, const char *text, const char *from, struct errmsg *err)
{
	size_t begin = strspn(text, " \t\r\n"), n = strlen(text);
	while (n > begin && strchr(" \t\r\n", text[n - 1])) {
		n--;
	}
	for (size_t i = begin; i < n; i++) {
		if (text[i] <= ' ' || text[i] > '~') {
			return errmsg_set(err, STATUS_INVALID, "%s: holds characters that no token has", from);
		}
	}
	if (n == begin) {
		return 0;
	}
	c->token = strndup(text + begin, n - begin);
	return c->token ? 0 : -ENOMEM;
}

/* The file where logging in with Hugging Face's tools leaves the token; none is fine. */
static int read_token(struct hub_config *c, struct errmsg *err)
{
	char path[PATH_MAX], home[PATH_MAX - 8], text[TOKEN_MAX];
	const char *given = variable("HF_TOKEN_PATH");
	if (given) {
		snprintf(path, sizeof(path), "%s", given);
	} else if (hf_home(home, sizeof(home), NULL) == 0) {
		snprintf(path, sizeof(path), "%s/token", home);
	} else {
		return 0;
	}
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		return errno == ENOENT || errno == ENOTDIR ? 0 : errmsg_set(err, STATUS_INVALID,
			"%s: the token cannot be read: %s", path, strerror(errno));
	}
	ssize_t n = read(fd, text, sizeof(text) - 1);
	if (n < 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: the token cannot be read: %s", path,
			strerror(errno));
	}
	text[n] = '\0';
	int r = set_token(c, text, path, err);
	explicit_bzero(text, sizeof(text));
	return r;
}

static int set_stall(struct hub_config *c, struct errmsg *err)
{
	const char *value = variable("HF_HUB_DOWNLOAD_TIMEOUT");
	char *end;
	unsigned long s = value ? strtoul(value, &end, 10) : STALL_S;
	if (value && (value[0] < '0' || value[0] > '9' || *end || s < 1 || s > 86400)) {
		return errmsg_set(err, STATUS_INVALID, "HF_HUB_DOWNLOAD_TIMEOUT: must be a whole number of "
			"seconds from 1 to 86400");
	}
	c->stall_s = (unsigned)s;
	return 0;
}

int hub_config_read(struct hub_config *ret, struct errmsg *err)
{
	_cleanup_(hub_config_deinit) struct hub_config c = {.tries = TRIES, .backoff_ms = BACKOFF_MS};
	if (is_true(variable("HF_HUB_OFFLINE"))) {
		return errmsg_set(err, STATUS_DENIED, "HF_HUB_OFFLINE is set, which forbids the network");
	}
	const char *token = variable("HF_TOKEN"), *ca = variable("SSL_CERT_FILE");
	int r = set_endpoint(&c, err);
	r = r ? r : set_stall(&c, err);
	r = r ? r : token ? set_token(&c, token, "HF_TOKEN", err) : read_token(&c, err);
	if (r != 0) {
		return r;
	}
	c.ca_file = ca ? strdup(ca) : NULL;
	if (ca && !c.ca_file) {
		return -ENOMEM;
	}
	*ret = c;
	c = (struct hub_config){0};
	return 0;
}
