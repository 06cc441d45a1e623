#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/adapter.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/subcommand.h"
#include "client/transfer.h"
#include "util/cleanup.h"
#include "util/util.h"

static void text_line(const char *what, const ProtobufCBinaryData *b)
{
	_cleanup_(freep) char *s = format_text(b);
	if (s && s[0]) {
		printf("%-16s  %s\n", what, s);
	}
}

static void print_dataset(const Peftd__V1__Dataset *d)
{
	char a[FORMAT_SIZE], hex[2 * DIGEST_SIZE + 1] = "-";
	text_line("name", &d->name);
	printf("%-16s  %llu\n", "rows", (unsigned long long)d->rows);
	text_line("format", &d->format);
	text_line("prompt field", &d->prompt_field);
	text_line("completion field", &d->completion_field);
	for (size_t i = 0; d->blob && i < d->blob->n_files; i++) {
		_cleanup_(freep) char *name = format_text(&d->blob->files[i]->name);
		printf("%-16s  %s, %s\n", i == 0 ? "files" : "", name ? name : "",
			format_bytes(a, d->blob->files[i]->size));
	}
	if (d->blob && d->blob->digest.len == DIGEST_SIZE) {
		hex_encode(hex, d->blob->digest.data, DIGEST_SIZE);
	}
	printf("%-16s  %s\n", "digest", hex);
	text_line("owner", &d->owner);
	printf("%-16s  %s\n", "added", format_time(a, d->added_wall_ns));
}

static int show_reply(struct ctl *ctl, const Peftd__V1__Reply *reply)
{
	int status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_DATASET);
	if (status != 0) {
		return status;
	}
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &reply->dataset->base);
		jsonw_print(&j, stdout);
	} else {
		print_dataset(reply->dataset);
	}
	return ctl_finish(ctl, EXIT_DONE);
}

static int upload(struct ctl *ctl, const char *name, const struct texts *files,
	struct source *source)
{
	struct errmsg err = {0};
	struct progress p = ctl_progress(ctl);
	char interrupted[256];
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	snprintf(interrupted, sizeof(interrupted),
		"interrupted; repeat the command to go on with '%.100s' where it was", name);
	term_on_interrupt(interrupted);
	int r = source_open(source, files->items + 1, files->n - 1, &p, &err);
	if (r == 0) {
		r = transfer_upload(c, source, &p, &err);
	}
	return r == 0 ? 0 : ctl_fail(ctl, r, &err);
}

static int put(struct ctl *ctl, int argc, char **argv)
{
	const char *prompt = NULL, *completion = NULL;
	const struct opt opts[] = {
		{"prompt-field", 0, OPT_TEXT, "KEY", "the rows' key that holds the prompt", &prompt},
		{"completion-field", 0, OPT_TEXT, "KEY", "the rows' key that holds the completion",
			&completion},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(source_deinit) struct source source = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 2, SIZE_MAX, &operands, &status) != 0) {
		return status;
	}
	if (!prompt != !completion) {
		return ctl_usage(ctl, "--prompt-field and --completion-field go together");
	}
	if (prompt && (prompt[0] == '\0' || completion[0] == '\0')) {
		return ctl_usage(ctl, "--prompt-field and --completion-field: an empty name is no key of a row");
	}
	status = upload(ctl, operands.items[0], &operands, &source);
	if (status != 0) {
		return status;
	}
	Peftd__V1__DatasetPutRequest d = PEFTD__V1__DATASET_PUT_REQUEST__INIT;
	d.name = proto_bytes(operands.items[0]);
	d.blob = &source.blob;
	d.has_prompt_field = d.has_completion_field = prompt != NULL;
	d.prompt_field = proto_bytes(prompt);
	d.completion_field = proto_bytes(completion);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_DATASET_PUT;
	req.dataset_put = &d;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = ctl_call(ctl, &req, -1, &reply); /* every row is checked */
	return status == 0 ? show_reply(ctl, reply) : status;
}

static int ls(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 0, 0, &operands, &status) != 0) {
		return status;
	}
	Peftd__V1__DatasetListRequest l = PEFTD__V1__DATASET_LIST_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_DATASET_LIST;
	req.dataset_list = &l;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_DATASET_LIST);
	}
	if (status != 0) {
		return status;
	}
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	_cleanup_(table_deinit) struct table t = {.columns = 5, .right = 1 << 1 | 1 << 2};
	static const char *const heads[] = {"NAME", "ROWS", "SIZE", "FORMAT", "OWNER"};
	for (size_t i = 0; i < ARRAY_LEN(heads); i++) {
		table_cell(&t, "%s", heads[i]);
	}
	for (size_t i = 0; i < reply->dataset_list->n_datasets; i++) {
		const Peftd__V1__Dataset *d = reply->dataset_list->datasets[i];
		if (ctl->json) {
			jsonw_message(&j, &d->base);
			jsonw_print(&j, stdout);
			continue;
		}
		char a[FORMAT_SIZE];
		table_cell_text(&t, &d->name);
		table_cell(&t, "%llu", (unsigned long long)d->rows);
		table_cell(&t, "%s", d->blob ? format_bytes(a, d->blob->size) : "-");
		table_cell_text(&t, &d->format);
		table_cell_text(&t, &d->owner);
	}
	if (!ctl->json) {
		table_print(&t, stdout);
	}
	return ctl_finish(ctl, EXIT_DONE);
}

/* show and rm: requests with a name. */
static int named(struct ctl *ctl, int argc, char **argv, bool remove)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0) {
		return status;
	}
	Peftd__V1__DatasetRequest d = PEFTD__V1__DATASET_REQUEST__INIT;
	d.name = proto_bytes(operands.items[0]);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	if (remove) {
		req.what_case = PEFTD__V1__REQUEST__WHAT_DATASET_REMOVE;
		req.dataset_remove = &d;
	} else {
		req.what_case = PEFTD__V1__REQUEST__WHAT_DATASET_SHOW;
		req.dataset_show = &d;
	}
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	return status != 0 || remove ? status : show_reply(ctl, reply);
}

static int show(struct ctl *ctl, int argc, char **argv)
{
	return named(ctl, argc, argv, false);
}

static int rm(struct ctl *ctl, int argc, char **argv)
{
	return named(ctl, argc, argv, true);
}

int cmd_dataset(struct ctl *ctl, int argc, char **argv)
{
	static const struct command list[] = {
		{"dataset put", "NAME FILE...", "Upload a dataset",
			"FILEs hold JSON Lines with the keys prompt and completion, or messages, or text, or\n"
			"those named by the options below; '-' is standard input. An interrupted put goes on\n"
			"where it was when it is repeated.", put},
		{"dataset ls", "", "List the datasets", NULL, ls},
		{"dataset show", "NAME", "Show one dataset", NULL, show},
		{"dataset rm", "NAME", "Remove a dataset; jobs that were submitted keep theirs", NULL, rm},
		{"dataset inspect", "NAME --model M", "Show rows token by token, and what is trained on",
			"On a terminal what is trained on stands out in colour, elsewhere in [brackets];\n"
			"tokens are set apart by '|'. With --json a line a row with the keys row, input_ids\n"
			"and labels, which are -100 where nothing is trained on, and the counts on standard\n"
			"error.",
			cmd_inspect},
	};
	return subcommand_run(ctl, list, ARRAY_LEN(list), argc, argv);
}
