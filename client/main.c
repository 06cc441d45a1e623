/* peftctl: the thin client. It starts in milliseconds because it loads next to nothing; the one
 * command that needs the web is left to peftctl-pull. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl.h"
#include "util/cleanup.h"
#include "util/util.h"

/* Replaces this process by FOLDER/peftctl-pull with the same command line; returns when it is not
 * there. */
static void become(struct ctl *ctl, const char *base, const char *folder)
{
	_cleanup_(freep) char *path = NULL;
	if (asprintf(&path, "%s%s/peftctl-pull", base, folder) < 0) {
		path = NULL;
	} else {
		execv(path, ctl->program_args);
	}
}

/* Looked for where peftd looks for its programs. */
static int pull_elsewhere(struct ctl *ctl, int argc, char **argv)
{
	static const char *const folders[] = {"/../libexec/peftd", ""};
	const char *set = getenv("PEFTD_LIBEXEC");
	_cleanup_(freep) char *own = realpath("/proc/self/exe", NULL);
	char *slash = own ? strrchr(own, '/') : NULL;
	if (set) {
		become(ctl, set, "");
	} else if (slash) {
		*slash = '\0';
		for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
			become(ctl, own, folders[i]);
		}
	}
	struct errmsg err;
	return ctl_fail(ctl, errmsg_set(&err, STATUS_NOT_FOUND, "peftctl-pull, which fetches models, "
		"cannot be run (%s): it belongs beside peftctl or into ../libexec/peftd; PEFTD_LIBEXEC can "
		"name its folder", strerror(errno)), &err);
}

int main(int argc, char **argv)
{
	return ctl_main(argc, argv, pull_elsewhere);
}
