/* peftctl-pull: peftctl with the one command that needs the web. peftctl becomes it for that. */

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/adapter.h"
#include "client/format.h"
#include "client/hub/hub.h"
#include "client/jsonw.h"
#include "client/model.h"
#include "util/cleanup.h"
#include "util/util.h"

struct pull_options {
	const char *include, *add;
};

struct teller {
	struct ctl *ctl;
	struct progress bar;
	bool begun;
	uint64_t total;
};

static void on_progress(void *data, uint64_t done, uint64_t total)
{
	struct teller *t = data;
	if (!t->begun || total != t->total) {
		progress_begin(&t->bar, "fetching", done, total);
		t->begun = true;
		t->total = total;
	}
	progress_update(&t->bar, done);
}

static void on_note(void *data, const char *text)
{
	struct teller *t = data;
	progress_end(&t->bar);
	ctl_note(t->ctl, "%s", text);
}

/* On a terminal the bar tells enough. */
static void on_file(void *data, const struct hub_file *f)
{
	struct teller *t = data;
	char size[FORMAT_SIZE];
	if (!t->bar.shown) {
		ctl_note(t->ctl, "%s  %s", f->name, format_bytes(size, f->size));
	}
}

static void print_json(const struct hf_name *name, const struct hub_pulled *p,
	const Peftd__V1__Model *model)
{
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	jsonw_key(&j, "repo");
	jsonw_string(&j, name->repo);
	jsonw_key(&j, "revision");
	jsonw_string(&j, name->revision);
	jsonw_key(&j, "commit");
	jsonw_string(&j, p->commit);
	jsonw_key(&j, "path");
	jsonw_string(&j, p->path);
	jsonw_key(&j, "fetched_bytes");
	jsonw_u64(&j, p->fetched);
	jsonw_key(&j, "files");
	jsonw_open(&j, '[');
	for (size_t i = 0; i < p->n_files; i++) {
		jsonw_open(&j, '{');
		jsonw_key(&j, "name");
		jsonw_string(&j, p->files[i].name);
		jsonw_key(&j, "size");
		jsonw_u64(&j, p->files[i].size);
		jsonw_key(&j, "digest");
		jsonw_string(&j, p->files[i].digest);
		jsonw_key(&j, "was_there");
		jsonw_bool(&j, p->files[i].was_there);
		jsonw_close(&j, '}');
	}
	jsonw_close(&j, ']');
	if (model) {
		jsonw_key(&j, "model");
		jsonw_message(&j, &model->base);
	}
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static void print_path(struct ctl *ctl, const struct hf_name *name, const struct hub_pulled *p)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	if (p->fetched == 0) {
		ctl_note(ctl, "%s at %.12s was there already", name->repo, p->commit);
	}
	if (term_escape(&b, p->path, strlen(p->path), 0) == 0 && buf_cstr(&b)) {
		puts((char *)b.data);
	}
}

/* What can be known to go wrong with --add goes wrong before gigabytes have come. */
static int check_add(struct ctl *ctl, const struct pull_options *o)
{
	int status;
	struct errmsg err;
	if (!o->add) {
		return 0;
	}
	if (o->include && strpbrk(o->include, "*?[")) {
		return ctl_usage(ctl, "--add with --include needs the name of one .gguf file, not a pattern");
	}
	if (!model_endpoint_is_local(ctl)) {
		return ctl_fail(ctl, errmsg_set(&err, STATUS_INVALID, "the daemon at %s is on another "
			"machine, and models must lie on its own: run 'peftctl model pull' there", ctl->endpoint),
			&err);
	}
	if (!ctl_client(ctl, &status)) {
		return status;
	}
	Peftd__V1__StatusRequest s = PEFTD__V1__STATUS_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = &s;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	return ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
}

static int finish(struct ctl *ctl, const struct pull_options *o, const struct hf_name *name,
	const struct hub_pulled *p)
{
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = o->add ? model_add(ctl, o->add, p->path, &reply) : 0;
	if (status != 0) {
		ctl_note(ctl, "%s is complete in %s; the daemon's user must be able to read it there",
			name->repo, p->path);
		return status;
	}
	if (ctl->json) {
		print_json(name, p, reply ? reply->model : NULL);
	} else if (reply) {
		model_print(reply->model);
	} else {
		print_path(ctl, name, p);
	}
	return ctl_finish(ctl, EXIT_DONE);
}

static int pull(struct ctl *ctl, const struct pull_options *o, const char *text)
{
	_cleanup_(hub_config_deinit) struct hub_config config = {0};
	_cleanup_(hub_pulled_deinit) struct hub_pulled pulled = {0};
	struct hf_name name;
	struct errmsg err = {0};
	int r = hf_name_parse(&name, text, &err);
	if (r != 0) {
		return ctl_usage(ctl, "%s", err.text);
	}
	r = hub_config_read(&config, &err);
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	int status = check_add(ctl, o);
	if (status != 0) {
		return status;
	}
	if (config.token && strncasecmp(config.endpoint, "http:", 5) == 0) {
		ctl_note(ctl, "the token goes to %s unencrypted", config.endpoint);
	}
	/* Written to sockets that the other side closed; libcurl says so without it. */
	signal(SIGPIPE, SIG_IGN);
	term_on_interrupt("interrupted; what came is kept: repeat the command to go on where it was");
	struct teller teller = {.ctl = ctl, .bar = ctl_progress(ctl)};
	const struct hub_watch watch = {&teller, on_progress, on_file, on_note};
	r = hub_pull(&config, &name, o->include, &watch, &pulled, &err);
	progress_end(&teller.bar);
	term_on_interrupt(NULL);
	return r == 0 ? finish(ctl, o, &name, &pulled) : ctl_fail(ctl, r, &err);
}

static int pull_here(struct ctl *ctl, int argc, char **argv)
{
	struct pull_options o = {0};
	const struct opt opts[] = {
		{"include", 0, OPT_TEXT, "PATTERN", "fetch the .gguf files of this name instead",
			&o.include},
		{"add", 0, OPT_TEXT, "NAME", "then register it with the daemon, under this name", &o.add},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 1, 1, &operands, &status) != 0) {
		return status;
	}
	return pull(ctl, &o, operands.items[0]);
}

int main(int argc, char **argv)
{
	return ctl_main(argc, argv, pull_here);
}
