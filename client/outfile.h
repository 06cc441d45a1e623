#pragma once
/* A file that somebody asked for, at a path of theirs: it may be anything. */

#include <stddef.h>

#include "util/errmsg.h"

/*
 * Writes a file. A regular one, and one that is not there yet, is written beside its place and
 * moved there, so that it is whole or as it was; a symbolic link stays and what it leads to is
 * written. Everything else (a device, a pipe, the file that is standard output or standard error)
 * is written as it is. STATUS_FAILED; -ENOMEM.
 */
int outfile_write(const char *path, const void *data, size_t len, struct errmsg *err);
