#pragma once
/* Commands with commands of their own: model add, dataset put. */

#include "client/ctl.h"

/* Runs the one of n that argv[1] names, as argv[0] of it; a usage error or help otherwise. Names
 * are "dataset put", the last word counts. */
int subcommand_run(struct ctl *ctl, const struct command *list, size_t n, int argc, char **argv);
