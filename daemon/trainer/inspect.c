/* What needs the engine but no device: looking at models and datasets. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/dataset.h"
#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"
#include "util/util.h"

int task_model_inspect(struct compute *c, struct task *task, struct errmsg *err)
{
	struct model *model;
	int r = models_open(c->models, task->model_name, task->model_path, NULL, &model, err);
	if (r != 0) {
		return r;
	}
	const struct model_files *files = model_files_of(model);
	struct model_info info = {
		.name = task->model_name,
		.path = model_files_path(files),
		.format = model_files_format(files),
		.architecture = model_files_config(files)->model_type,
		.dtype = model_files_dtype(files),
		.parameters = model_files_parameters(files),
		.file_bytes = model_files_bytes(files),
		.config = model_files_config(files),
		.linear_modules = model_linear_modules(model_files_config(files)),
	};
	const struct tokenizer *tokenizer;
	r = model_tokenizer(model, &tokenizer, err);
	if (r == 0 && tokenizer_vocab_size(tokenizer) > info.config->vocab_size) {
		r = errmsg_set(err, STATUS_INVALID,
			"model '%s': its tokenizer has ids up to %" PRId64 ", its embedding only %" PRId64
			" rows; tokenizer and weights are not of one model", task->model_name,
			tokenizer_vocab_size(tokenizer) - 1, info.config->vocab_size);
	}
	if (r == 0) {
		/* An unknown template is no fault of the model: datasets without messages train. */
		const struct chat_template *tmpl = NULL;
		struct errmsg ignored;
		if (model_template(model, NULL, &tmpl, &ignored) == 0) {
			info.chat_template = chat_template_name(tmpl);
		}
		r = model_digest(model, info.digest, err);
	}
	if (r == 0) {
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.model = &info});
	}
	models_close(c->models, model);
	return r;
}

/* ---- datasets -------------------------------------------------------------------------------- */

static int check_rows(struct task *task, const uint8_t *data, size_t len, struct rows_check *ret,
	struct buf *faults, struct errmsg *err)
{
	const struct input *in = &task->inputs[task->dataset.input];
	size_t n = in->n_files ? in->n_files : 1;
	_cleanup_(freep) struct rows_file *files = calloc_array(n, sizeof(*files));
	if (!files) {
		return -ENOMEM;
	}
	files[0] = (struct rows_file){task->dataset.name ? task->dataset.name : "dataset", len};
	for (size_t i = 0; i < in->n_files; i++) {
		files[i] = (struct rows_file){in->files[i].name, (size_t)in->files[i].size};
	}
	struct rows_spec spec = {task->dataset.prompt_field, task->dataset.completion_field};
	return rows_check((const char *)data, len, files, n, &spec, ret, faults, err);
}

int task_dataset_check(struct compute *c, struct task *task, struct errmsg *err)
{
	if (!task->dataset.present) {
		return errmsg_set(err, STATUS_INVALID, "there is no dataset to check");
	}
	const uint8_t *data;
	size_t len;
	int r = task_input(c->trainer, task, (int)task->dataset.input, &data, &len, err);
	if (r != 0) {
		return r;
	}
	struct rows_check check = {0};
	_cleanup_(buf_deinit) struct buf faults = {0};
	r = check_rows(task, data, len, &check, &faults, err);
	if (r > 0 && check.faults > 1) {
		/* The faults are longer than an errmsg; the result is sent from here. */
		_cleanup_(buf_deinit) struct buf message = {0};
		while (faults.len > 0 && faults.data[faults.len - 1] == '\n') {
			faults.len--;
		}
		if (buf_append(&message, err->text, strlen(err->text)) < 0 ||
			buf_append(&message, "\n", 1) < 0 ||
			buf_append(&message, faults.data, faults.len) < 0 || !buf_cstr(&message)) {
			return -ENOMEM;
		}
		emit_result(c->trainer, task, r, (const char *)message.data, NULL);
		return 0;
	}
	if (r == 0) {
		struct dataset_info info = {
			.name = task->dataset.name ? task->dataset.name : "",
			.format = row_format_name(check.format),
			.prompt_field = task->dataset.prompt_field,
			.completion_field = task->dataset.completion_field,
			.rows = check.rows,
		};
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.dataset = &info});
	}
	return r;
}

/* The text of a token for people: its bytes, or "<0xE2><0x80>" where they are only part of a
 * character. */
static int token_text(const struct tokenizer *t, int32_t id, char **ret)
{
	_cleanup_(buf_deinit) struct buf bytes = {0};
	_cleanup_(buf_deinit) struct buf text = {0};
	int r = tokenizer_decode(t, id, false, &bytes);
	if (r != 0) {
		return r;
	}
	if (utf8_valid(bytes.data, bytes.len, NULL) &&
		!(bytes.len > 0 && memchr(bytes.data, 0, bytes.len))) {
		r = buf_append(&text, bytes.data, bytes.len);
	} else {
		for (size_t i = 0; r == 0 && i < bytes.len; i++) {
			r = buf_appendf(&text, "<0x%02X>", bytes.data[i]);
		}
	}
	if (r != 0) {
		return r;
	}
	*ret = buf_steal(&text, NULL);
	return *ret ? 0 : -ENOMEM;
}

/* A label of -100 takes ten bytes on the wire, an id up to five, each text its own: so many bytes
 * of a row go into one message. */
enum {
	ROW_PIECE_BYTES = 40 * 1024,
	TOKEN_BYTES = 17,
	ROW_PIECE_TOKENS = ROW_PIECE_BYTES / TOKEN_BYTES,
};

static const char *fault_name(uint8_t fault)
{
	return fault == ROW_OVERLONG      ? "overlong"
		   : fault == ROW_UNTRAINABLE ? "untrainable"
		   : fault == ROW_MISALIGNED  ? "misaligned"
									  : NULL;
}

struct piece {
	char *texts[ROW_PIECE_TOKENS];
	size_t n, bytes;
};

static void piece_clear(struct piece *p)
{
	for (size_t i = 0; i < p->n; i++) {
		free(p->texts[i]);
	}
	p->n = p->bytes = 0;
}

static int send_row(struct compute *c, struct task *task, const struct tokenizer *t,
	const struct samples *s, uint64_t i, struct errmsg *err)
{
	_cleanup_(freep) struct piece *piece = calloc(1, sizeof(*piece));
	if (!piece) {
		return -ENOMEM;
	}
	int64_t at = s->start[i], end = s->start[i + 1];
	int r;
	do {
		int64_t next = at;
		while (next < end && piece->n < ROW_PIECE_TOKENS && piece->bytes < ROW_PIECE_BYTES) {
			char *text = NULL;
			r = task->inspect.token_texts ? token_text(t, s->ids[next], &text) : 0;
			if (r != 0) {
				piece_clear(piece);
				return r;
			}
			piece->bytes += TOKEN_BYTES + (text ? strlen(text) : 0);
			piece->texts[piece->n++] = text;
			next++;
		}
		struct inspect_row row = {
			.row = s->row[i],
			.ids = s->ids + at,
			.labels = s->labels + at,
			.n = (size_t)(next - at),
			.tokens = task->inspect.token_texts ? piece->texts : NULL,
			.fault = fault_name(s->fault[i]),
			.continues = next < end,
		};
		r = task_take_credit(c->trainer, task, err);
		if (r == 0) {
			emit_inspect_row(c->trainer, task, &row);
		}
		piece_clear(piece);
		at = next;
	} while (r == 0 && at < end);
	return r;
}

static void summarize(const struct samples *s, struct inspect_summary *sum)
{
	sum->rows = s->rows;
	sum->overlong = s->overlong;
	sum->untrainable = s->untrainable;
	sum->misaligned = s->misaligned;
	sum->longest = (uint64_t)s->longest;
	for (uint64_t i = 0; i < s->n; i++) {
		if (s->fault[i] == ROW_OVERLONG || s->fault[i] == ROW_UNTRAINABLE) {
			continue;
		}
		sum->tokens += (uint64_t)(s->start[i + 1] - s->start[i]);
		for (int64_t j = s->start[i]; j < s->start[i + 1]; j++) {
			sum->target_tokens += s->labels[j] >= 0;
		}
	}
}

static int inspect_rows(struct compute *c, struct task *task, struct model *model,
	const struct samples *s, const char *template_name, struct errmsg *err)
{
	const struct tokenizer *t;
	int r = model_tokenizer(model, &t, err);
	uint64_t n = task->inspect.rows == 0 || task->inspect.rows > s->n ? s->n : task->inspect.rows;
	for (uint64_t i = 0; r == 0 && i < n; i++) {
		r = send_row(c, task, t, s, i, err);
	}
	if (r == 0) {
		struct inspect_summary sum = {.template_name = template_name};
		summarize(s, &sum);
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.inspect = &sum});
	}
	return r;
}

int task_dataset_inspect(struct compute *c, struct task *task, struct errmsg *err)
{
	if (!task->dataset.present) {
		return errmsg_set(err, STATUS_INVALID, "there is no dataset to inspect");
	}
	if (task->inspect.max_length < 1) {
		return errmsg_set(err, STATUS_INVALID, "max_length: must be at least 1");
	}
	struct model *model;
	int r = models_open(c->models, task->model_name, task->model_path,
		task->has_model_digest ? task->model_digest : NULL, &model, err);
	if (r != 0) {
		return r;
	}
	struct dataset_options o = {
		.max_length = task->inspect.max_length,
		.overlong = OVERLONG_DROP,
		.train_on_prompt = task->inspect.train_on_prompt,
		.chat_template = task->inspect.chat_template,
		.keep_all = true,
	};
	const struct samples *s = NULL;
	const char *template_name = NULL;
	r = dataset_samples(c, task, &task->dataset, model, &o, &s, &template_name, err);
	if (r == 0) {
		r = inspect_rows(c, task, model, s, template_name, err);
		dataset_release(c->samples, s);
	}
	models_close(c->models, model);
	return r;
}
