#include "client/adapter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/util.h"

static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};

int adapter_open(struct source *ret, const char *dir, struct progress *p, struct errmsg *err)
{
	char *paths[ARRAY_LEN(files)] = {0};
	int r = 0;
	for (size_t i = 0; i < ARRAY_LEN(files) && r == 0; i++) {
		if (asprintf(&paths[i], "%s/%s", dir, files[i]) < 0) {
			paths[i] = NULL;
			r = -ENOMEM;
		} else if (access(paths[i], R_OK) < 0) {
			r = errmsg_set(err, STATUS_NOT_FOUND,
				"%s: %s; an adapter's folder in PEFT format holds %s and %s", paths[i],
				strerror(errno), files[0], files[1]);
		}
	}
	if (r == 0) {
		r = source_open(ret, (const char *const *)paths, ARRAY_LEN(files), p, err);
	}
	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		free(paths[i]);
	}
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
	if (args_job(arg, &ref->job)) {
		ref->has_job = true;
		ref->has_step = step->given;
		ref->step = step->value;
		return 0;
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
