#pragma once
/* What peftd is told by its command line and its configuration file. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/errmsg.h"
#include "util/log.h"

#define CONFIG_RUN_FOLDER "/run/peftd"

struct config {
	char *state_dir;
	char **endpoints;
	size_t n_endpoints;
	bool needs_run_folder; /* the default for root, whose folder neither systemd nor a login has made */
	char *device;
	int log_level;         /* enum log_level; -1: not given */
	uint64_t memory_limit; /* bytes; 0: not given */
	uint32_t threads;      /* 0: all cores */
};
void config_deinit(struct config *c);

/* Each takes a value as it stands in the file or on the command line; STATUS_INVALID says what
 * would be right. Keys are the options' names; '_' and '-' are the same. */
int config_set(struct config *c, const char *key, const char *value, struct errmsg *err);

/* Reads a YAML file: a mapping of keys to scalars, `endpoint` also to a list. Unknown and repeated
 * keys and wrong types are errors with the line. */
int config_read(struct config *c, const char *path, struct errmsg *err);

/* Fills what was not given from `file`, whose contents are taken, and then with the defaults: as a
 * service (root, or systemd's STATE_DIRECTORY and RUNTIME_DIRECTORY), or for a user. */
int config_complete(struct config *c, struct config *file, struct errmsg *err);
