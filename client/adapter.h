#pragma once
/* Adapters on the client's side: folders that are sent along. */

#include "client/ctl.h"
#include "client/transfer.h"

/* Opens a folder of PEFT, of AdapterHub's `adapters` or of peftd's own kind as one content of its
 * two files. STATUS_NOT_FOUND, with their names; what source_open() returns. */
int adapter_open(struct source *ret, const char *dir, struct progress *p, struct errmsg *err);

/* The last part of a folder's path, as a name for people. Allocated; NULL without memory. */
char *adapter_folder_name(const char *dir);

/*
 * What --adapter says, for eval and generate: a job's id, or a folder, which is uploaded. `ref`
 * points into `folder`, which stays empty for a job; deinit it later. 0 or an exit status, with
 * words said.
 */
int adapter_ref(struct ctl *ctl, const char *arg, const struct opt_u64 *step,
	Peftd__V1__AdapterRef *ref, struct source *folder);

/* A progress line as this command may show it. */
struct progress ctl_progress(const struct ctl *ctl);
