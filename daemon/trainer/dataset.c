#include "daemon/trainer/dataset.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "util/util.h"

struct entry {
	struct entry *next;
	uint8_t key[32];
	struct samples *samples;
	const char *template_name;
	uint64_t used;
	unsigned refs;
};

struct sample_cache {
	struct entry *list;
	uint64_t turn;
};

/* Tokens of datasets that nobody uses are kept up to this many bytes. */
#define CACHE_BYTES_MAX ((uint64_t)512 * 1024 * 1024)

int sample_cache_new(struct sample_cache **ret)
{
	*ret = calloc(1, sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

static void entry_free(struct entry *e)
{
	samples_free(e->samples);
	free(e);
}

void sample_cache_free(struct sample_cache *c)
{
	if (!c) {
		return;
	}
	while (c->list) {
		struct entry *next = c->list->next;
		entry_free(c->list);
		c->list = next;
	}
	free(c);
}

static uint64_t samples_bytes(const struct samples *s)
{
	return (uint64_t)s->start[s->n] * 8 + s->n * (s->source_len ? 25 : 17);
}

static void shrink(struct sample_cache *c)
{
	for (;;) {
		uint64_t bytes = 0;
		struct entry **oldest = NULL;
		for (struct entry **p = &c->list; *p; p = &(*p)->next) {
			bytes += samples_bytes((*p)->samples);
			if ((*p)->refs == 0 && (!oldest || (*p)->used < (*oldest)->used)) {
				oldest = p;
			}
		}
		if (bytes <= CACHE_BYTES_MAX || !oldest) {
			return;
		}
		struct entry *e = *oldest;
		*oldest = e->next;
		entry_free(e);
	}
}

static void key_text(crypto_generichash_state *state, const char *s)
{
	const char *text = s ? s : "";
	crypto_generichash_update(state, (const uint8_t *)text, strlen(text) + 1);
}

static bool has_encoder(const struct model *model)
{
	return model_files_config(model_files_of(model))->is_encoder_decoder;
}

/* All that decides the samples: the rows, the tokenizer, the template, the kind of model and the
 * options. */
static void make_key(uint8_t key[32], const struct input *in, const struct task_dataset *d,
	const struct model *model, const struct tokenizer *tokenizer, const struct chat_template *tmpl,
	const struct dataset_options *o)
{
	crypto_generichash_state state;
	crypto_generichash_init(&state, NULL, 0, 32);
	crypto_generichash_update(&state, in->digest, sizeof(in->digest));
	uint8_t digest[32];
	tokenizer_digest(tokenizer, digest);
	crypto_generichash_update(&state, digest, sizeof(digest));
	memset(digest, 0, sizeof(digest));
	if (tmpl) {
		chat_template_digest(tmpl, digest);
	}
	crypto_generichash_update(&state, digest, sizeof(digest));
	key_text(&state, d->prompt_field);
	key_text(&state, d->completion_field);
	int64_t options[] = {o->max_length, o->overlong, o->train_on_prompt, o->keep_all,
		has_encoder(model)};
	crypto_generichash_update(&state, (const uint8_t *)options, sizeof(options));
	crypto_generichash_final(&state, key, 32);
}

static struct entry *find(struct sample_cache *c, const uint8_t key[32])
{
	for (struct entry *e = c->list; e; e = e->next) {
		if (memcmp(e->key, key, 32) == 0) {
			return e;
		}
	}
	return NULL;
}

static int tokenize(struct compute *c, struct task *task, const struct task_dataset *d,
	struct model *model, const struct tokenizer *tokenizer, const struct chat_template *tmpl,
	const struct dataset_options *o, struct entry *e, struct errmsg *err)
{
	const uint8_t *data;
	size_t len;
	int r = task_input(c->trainer, task, (int)d->input, &data, &len, err);
	if (r != 0) {
		return r;
	}
	struct sample_options so = {
		.rows = {d->prompt_field, d->completion_field},
		.max_length = o->max_length,
		.overlong = o->overlong,
		.train_on_prompt = o->train_on_prompt,
		.chat_template = tmpl,
		.keep_all = o->keep_all,
		.encoder_decoder = has_encoder(model),
	};
	const struct input *in = &task->inputs[d->input];
	_cleanup_(freep) struct rows_file *files = calloc_array(in->n_files + 1, sizeof(*files));
	if (!files) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < in->n_files; i++) {
		files[so.n_files++] = (struct rows_file){in->files[i].name, (size_t)in->files[i].size};
	}
	so.files = files;
	enum row_format format = ROWS_TEXT;
	r = rows_format((const char *)data, len, &so.rows, &format, err);
	if (r == 0 && format == ROWS_MESSAGES && !has_encoder(model)) {
		/* Found again for its error, which says what is missing. */
		r = tmpl ? 0 : model_template(model, o->chat_template, &tmpl, err);
		e->template_name = tmpl ? chat_template_name(tmpl) : NULL;
	}
	if (r == 0) {
		r = samples_new(&e->samples, (const char *)data, len, tokenizer, &so, c->threads, err);
	}
	task_input_drop(c->trainer, task, (int)d->input);
	if (r > 0) {
		return errmsg_prefix(err, r, "dataset '%s'", d->name ? d->name : "?");
	}
	return r;
}

int dataset_samples(struct compute *c, struct task *task, const struct task_dataset *d,
	struct model *model, const struct dataset_options *o, const struct samples **ret,
	const char **ret_template_name, struct errmsg *err)
{
	const struct tokenizer *tokenizer;
	int r = model_tokenizer(model, &tokenizer, err);
	if (r != 0) {
		return r;
	}
	/* A template asked for by name must exist even where the rows need none. The model's own may be
	 * unknown as long as the rows need none. */
	const struct chat_template *tmpl = NULL;
	r = model_template(model, o->chat_template, &tmpl, err);
	if (r < 0 || (r > 0 && o->chat_template)) {
		return r;
	}

	uint8_t key[32];
	make_key(key, &task->inputs[d->input], d, model, tokenizer, tmpl, o);
	struct entry *e = find(c->samples, key);
	if (!e) {
		e = calloc(1, sizeof(*e));
		if (!e) {
			return -ENOMEM;
		}
		memcpy(e->key, key, sizeof(key));
		r = tokenize(c, task, d, model, tokenizer, tmpl, o, e, err);
		if (r != 0) {
			free(e);
			return r;
		}
		e->next = c->samples->list;
		c->samples->list = e;
	}
	e->refs++;
	e->used = ++c->samples->turn;
	*ret = e->samples;
	if (ret_template_name) {
		*ret_template_name = e->template_name;
	}
	return 0;
}

void dataset_release(struct sample_cache *c, const struct samples *s)
{
	for (struct entry *e = s ? c->list : NULL; e; e = e->next) {
		if (e->samples == s) {
			e->refs--;
			break;
		}
	}
	shrink(c);
}
