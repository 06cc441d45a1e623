#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/model.h"
#include "client/subcommand.h"
#include "util/cleanup.h"
#include "util/hfcache.h"
#include "util/util.h"

static void text_line(const char *what, const ProtobufCBinaryData *b)
{
	_cleanup_(freep) char *s = format_text(b);
	printf("%-12s  %s\n", what, s && s[0] ? s : "-");
}

void model_print(const Peftd__V1__Model *m)
{
	char a[FORMAT_SIZE], hex[2 * DIGEST_SIZE + 1] = "-";
	text_line("name", &m->name);
	text_line("path", &m->path);
	text_line("format", &m->format);
	text_line("architecture", &m->architecture);
	printf("%-12s  %s\n", "parameters", format_count(a, m->parameters));
	text_line("dtype", &m->dtype);
	printf("%-12s  %s\n", "file size", format_bytes(a, m->file_bytes));
	printf("%-12s  %u layers, hidden size %u, vocabulary %u, positions %u\n", "shape",
		m->num_hidden_layers, m->hidden_size, m->vocab_size, m->max_position_embeddings);
	text_line("template", &m->chat_template);
	printf("%-12s ", "all-linear");
	for (size_t i = 0; i < m->n_linear_modules; i++) {
		_cleanup_(freep) char *s = format_text(&m->linear_modules[i]);
		printf(" %s", s ? s : "");
	}
	if (m->digest.len == DIGEST_SIZE) {
		hex_encode(hex, m->digest.data, DIGEST_SIZE);
	}
	printf("\n%-12s  %s\n%-12s  %s\n", "digest", hex, "added", format_time(a, m->added_wall_ns));
}

static int show_reply(struct ctl *ctl, const Peftd__V1__Model *m)
{
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &m->base);
		jsonw_print(&j, stdout);
	} else {
		model_print(m);
	}
	return ctl_finish(ctl, EXIT_DONE);
}

int model_add(struct ctl *ctl, const char *name, const char *path, Peftd__V1__Reply **ret)
{
	Peftd__V1__ModelAddRequest m = PEFTD__V1__MODEL_ADD_REQUEST__INIT;
	m.name = proto_bytes(name);
	m.path = proto_bytes(path);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_MODEL_ADD;
	req.model_add = &m;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = ctl_call(ctl, &req, -1, &reply); /* its files are read and digested */
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_MODEL);
	}
	if (status == 0) {
		*ret = steal_ptr(reply);
	}
	return status;
}

bool model_endpoint_is_local(struct ctl *ctl)
{
	static const char *const local[] = {"ipc:", "inproc:", "tcp://127.", "tcp://localhost:",
		"tcp://[::1]:"};
	if (!ctl->endpoint) {
		ctl->endpoint = client_default_endpoint();
	}
	for (size_t i = 0; ctl->endpoint && i < ARRAY_LEN(local); i++) {
		if (strncmp(ctl->endpoint, local[i], strlen(local[i])) == 0) {
			return true;
		}
	}
	return false;
}

/* The daemon has another working directory, and may have another cache of models: what is here, as
 * a path or in this user's cache, is named by where it lies. What is not may be there. NULL then. */
static char *locate(struct ctl *ctl, const char *text)
{
	char *real = realpath(text, NULL);
	if (!real && model_endpoint_is_local(ctl)) {
		_cleanup_(freep) char *snapshot = NULL;
		real = hf_cache_find(&snapshot, text, NULL) == 0 ? realpath(snapshot, NULL) : NULL;
	}
	return real;
}

static int add(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 2, 2, &operands, &status) != 0) {
		return status;
	}
	_cleanup_(freep) char *real = locate(ctl, operands.items[1]);
	status = model_add(ctl, operands.items[0], real ? real : operands.items[1], &reply);
	return status == 0 ? show_reply(ctl, reply->model) : status;
}

static int ls(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 0, 0, &operands, &status) != 0) {
		return status;
	}
	Peftd__V1__ModelListRequest l = PEFTD__V1__MODEL_LIST_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_MODEL_LIST;
	req.model_list = &l;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_MODEL_LIST);
	}
	if (status != 0) {
		return status;
	}
	const Peftd__V1__ModelListReply *models = reply->model_list;
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	_cleanup_(table_deinit) struct table t = {.columns = 6, .right = 1 << 3};
	static const char *const heads[] = {"NAME", "FORMAT", "ARCHITECTURE", "PARAMETERS", "DTYPE",
		"PATH"};
	for (size_t i = 0; i < ARRAY_LEN(heads); i++) {
		table_cell(&t, "%s", heads[i]);
	}
	for (size_t i = 0; i < models->n_models; i++) {
		const Peftd__V1__Model *m = models->models[i];
		if (ctl->json) {
			jsonw_message(&j, &m->base);
			jsonw_print(&j, stdout);
			continue;
		}
		char a[FORMAT_SIZE];
		table_cell_text(&t, &m->name);
		table_cell_text(&t, &m->format);
		table_cell_text(&t, &m->architecture);
		table_cell(&t, "%s", format_count(a, m->parameters));
		table_cell_text(&t, &m->dtype);
		table_cell_text(&t, &m->path);
	}
	if (!ctl->json) {
		table_print(&t, stdout);
	}
	return ctl_finish(ctl, EXIT_DONE);
}

static int show(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0) {
		return status;
	}
	Peftd__V1__ModelRequest m = PEFTD__V1__MODEL_REQUEST__INIT;
	m.name = proto_bytes(operands.items[0]);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_MODEL_SHOW;
	req.model_show = &m;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_MODEL);
	}
	return status == 0 ? show_reply(ctl, reply->model) : status;
}

static int rm(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0) {
		return status;
	}
	Peftd__V1__ModelRequest m = PEFTD__V1__MODEL_REQUEST__INIT;
	m.name = proto_bytes(operands.items[0]);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_MODEL_REMOVE;
	req.model_remove = &m;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	return ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
}

static int pull(struct ctl *ctl, int argc, char **argv)
{
	return ctl->pull(ctl, argc, argv);
}

int cmd_model(struct ctl *ctl, int argc, char **argv)
{
	static const struct command list[] = {
		{"model add", "NAME PATH", "Register a base model",
			"PATH is on the daemon's machine: a Hugging Face folder (config.json, tokenizer.json,\n"
			"*.safetensors), a name from the local Hugging Face cache, or a .gguf file.", add},
		{"model pull", "ORG/NAME[@REVISION]", "Fetch a base model into the Hugging Face cache",
			"Run it on the daemon's machine. Prints where the model lies, for 'peftctl model add'.\n"
			"Fetches configuration, tokenizer and safetensors; with --include 'PATTERN' .gguf files.\n"
			"An interrupted pull goes on where it was when it is repeated.\n"
			"Environment: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_DOWNLOAD_TIMEOUT,\n"
			"https_proxy, no_proxy, SSL_CERT_FILE.", pull},
		{"model ls", "", "List the base models", NULL, ls},
		{"model show", "NAME", "Show one base model", NULL, show},
		{"model rm", "NAME", "Forget a base model; its files stay", NULL, rm},
	};
	return subcommand_run(ctl, list, ARRAY_LEN(list), argc, argv);
}
