#pragma once
/* The poll loop around the core: links, children, signals and time. */

#include "daemon/core/child.h"
#include "daemon/core/convert.h"
#include "daemon/core/core.h"

struct loop_options {
	struct core_options core;
	struct child_config children;
	struct programs programs; /* borrowed */
	enum log_level level;
};

/* Runs the daemon on an open store until a signal or a fault ends it. The exit status. SIGTERM,
 * SIGINT and SIGHUP must be blocked. */
int loop_run(struct store *store, const struct loop_options *options);
