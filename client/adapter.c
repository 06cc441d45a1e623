#include "client/adapter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/util.h"

/* PEFT's folders, AdapterHub's, and peftd's own of trained parameters. */
enum { KINDS = 3, FILES = 2 };
static const char *const kinds[KINDS][FILES] = {
	{"adapter_config.json", "adapter_model.safetensors"},
	{"adapter_config.json", "adapter.safetensors"},
	{"delta_config.json", "delta.safetensors"},
};

static void free_paths(char *paths[FILES])
{
	for (size_t i = 0; i < FILES; i++) {
		free(paths[i]);
		paths[i] = NULL;
	}
}

/* The paths of a kind's files; *ret_there counts those that can be read. */
static int find_files(char *paths[FILES], const char *dir, const char *const names[FILES],
	size_t *ret_there)
{
	*ret_there = 0;
	for (size_t i = 0; i < FILES; i++) {
		if (asprintf(&paths[i], "%s/%s", dir, names[i]) < 0) {
			paths[i] = NULL;
			return -ENOMEM;
		}
		*ret_there += access(paths[i], R_OK) == 0;
	}
	return 0;
}

int adapter_open(struct source *ret, const char *dir, struct progress *p, struct errmsg *err)
{
	char *paths[FILES] = {0};
	size_t there = 0;
	int r = 0;
	for (size_t i = 0; i < KINDS && r == 0 && there < FILES; i++) {
		free_paths(paths);
		r = find_files(paths, dir, kinds[i], &there);
	}
	if (r == 0 && there == FILES) {
		r = source_open(ret, (const char *const *)paths, FILES, p, err);
	} else if (r == 0) {
		bool is_dir = access(dir, R_OK) == 0;
		r = errmsg_set(err, STATUS_NOT_FOUND,
			"%s: %s; an adapter's folder holds %s and %s (or %s, or %s and %s)", dir,
			is_dir ? "no adapter is there" : strerror(errno), kinds[0][0], kinds[0][1], kinds[1][1],
			kinds[2][0], kinds[2][1]);
	}
	free_paths(paths);
	return r;
}

char *adapter_folder_name(const char *dir)
{
	_cleanup_(freep) char *real = realpath(dir, NULL);
	const char *from = real ? real : dir, *slash = strrchr(from, '/');
	return strdup(slash && slash[1] ? slash + 1 : from);
}

struct progress ctl_progress(const struct ctl *ctl)
{
	return (struct progress){
		.shown = ctl->term.err_tty && !ctl->quiet,
		.utf8 = ctl->term.utf8,
	};
}

int adapter_ref(struct ctl *ctl, const char *arg, const struct opt_u64 *step,
	Peftd__V1__AdapterRef *ref, struct source *folder)
{
	char job[32];
	const char *at = strchr(arg, '@');
	struct opt_u64 of = *step;
	size_t len = at ? (size_t)(at - arg) : strlen(arg);
	if (len < sizeof(job)) {
		snprintf(job, sizeof(job), "%.*s", (int)len, arg);
		if (at && (of.given = args_job(at + 1, &of.value)) && step->given) {
			return ctl_usage(ctl, "--adapter %s names a step, and so does --step", arg);
		}
		if ((!at || of.given) && args_job(job, &ref->job)) {
			ref->has_job = true;
			ref->has_step = of.given;
			ref->step = of.value;
			return 0;
		}
	}
	if (step->given) {
		return ctl_usage(ctl, "--step goes with the adapter of a job, not with a folder");
	}
	struct errmsg err = {0};
	struct progress p = ctl_progress(ctl);
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	int r = adapter_open(folder, arg, &p, &err);
	if (r == 0) {
		r = transfer_upload(c, folder, &p, &err);
	}
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	ref->uploaded = &folder->blob;
	return 0;
}
