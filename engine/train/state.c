/*
 * What resuming needs beside the adapter: moments of the optimizer by tensor, the number of steps
 * done, and the fingerprint of all that decides the bits of the run. Order, schedule and random
 * numbers are functions of these, so there is nothing else to keep.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/train/session.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	/* To change what is written: raise it, and say in restore() what becomes of older states. */
	STATE_VERSION = 1,
	STATE_NAME_MAX = TENSOR_NAME_MAX + 16,
};

/* What is kept of each trained tensor: the moments, and where an export does not hold the tensor itself
 * (the encoder of a soft prompt), that too. */
static const char *const kept_names[3] = {"exp_avg", "exp_avg_sq", "master"};

static size_t n_kept(const struct train_session *s)
{
	return s->peft->method->exported ? 3 : 2;
}

static void bufp(struct buf *b)
{
	buf_deinit(b);
}

static void safetensorsp(struct safetensors *s)
{
	safetensors_deinit(s);
}

int session_fingerprint(const struct train_session *s, char **ret)
{
	_cleanup_(bufp) struct buf b = {0};
	const struct graph *g = s->job.g;
	const struct model_config *mc = &g->config;
	const struct train_config *c = &s->config;
	int r = buf_appendf(&b, "backend=%s\n", backend_fingerprint(g->backend));
	if (r == 0) {
		r = buf_appendf(&b, "model=%s layers=%" PRId64 " hidden=%" PRId64 " vocab=%" PRId64 "\n"
			"dtype=%s\nmicrobatch_tokens=%" PRId64 "\nrecompute=%d\nparameters=%zu\nmethod=",
			mc->model_type, mc->num_hidden_layers, mc->hidden_size, mc->vocab_size,
			dtype_name(g->dtype), g->tokens, (int)s->job.recompute, g->param_elements);
	}
	if (r == 0) {
		r = s->peft->method->describe(s->peft, &b);
	}
	if (r == 0) {
		r = buf_appendf(&b, "\noptimizer=adamw %.17g %.17g %.17g decay=%.17g clip=%.17g\n"
			"schedule=%d lr=%.17g warmup=%" PRId64 " steps=%" PRId64 "\n", c->adam_beta1,
			c->adam_beta2, c->adam_epsilon, c->weight_decay, c->max_grad_norm, (int)c->lr_scheduler,
			c->learning_rate, c->warmup_steps, c->max_steps);
	}
	if (r == 0) {
		r = buf_appendf(&b, "data=rows %" PRIu64 " tokens %" PRId64 " batch=%" PRId64
			" packing=%d sequential=%d seed=%" PRIu64 "\n", s->samples->n,
			s->samples->start[s->samples->n], c->batch_size, c->packing, c->sequential, c->seed);
	}
	if (r < 0) {
		return r;
	}
	*ret = buf_steal(&b, NULL);
	return *ret ? 0 : -ENOMEM;
}

uint64_t train_session_checkpoint_bytes(const struct train_session *s)
{
	return job_checkpoint_bytes(&s->job);
}

int train_session_export(struct train_session *s, struct buf *config_json, struct buf *weights,
	struct errmsg *err)
{
	_cleanup_(flat_deinit) struct flat masters = {0};
	int r = flat_init(&masters, &s->job, s->arena, s->job.layout.masters);
	return r ? r : peft_save(s->peft, s->job.g, masters.values, base_model_path(s->base),
		config_json, weights, err);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct st_out *)a)->name, ((const struct st_out *)b)->name);
}

/* The i-th tensor of a state: `ret->name` is STATE_NAME_MAX long. */
static void state_tensor(const struct train_session *s, size_t i, char name[STATE_NAME_MAX],
	struct peft_tensor *ret)
{
	peft_tensor(s->peft, s->job.g, i / n_kept(s), ret);
	snprintf(name, STATE_NAME_MAX, "%s.%s", ret->name, kept_names[i % n_kept(s)]);
}

int train_session_save(struct train_session *s, struct buf *state, struct errmsg *err)
{
	const struct layout *l = &s->job.layout;
	size_t kept = n_kept(s), n = kept * peft_n_tensors(s->peft, s->job.g);
	_cleanup_(flat_deinit) struct flat exp_avg = {0};
	_cleanup_(flat_deinit) struct flat exp_avg_sq = {0};
	_cleanup_(flat_deinit) struct flat masters = {0};
	_cleanup_(freep) char *names = calloc_array(n, STATE_NAME_MAX);
	_cleanup_(freep) struct st_out *out = calloc_array(n, sizeof(*out));
	int r = names && out ? flat_init(&exp_avg, &s->job, s->arena, l->exp_avg) : -ENOMEM;
	r = r ? r : flat_init(&exp_avg_sq, &s->job, s->arena, l->exp_avg_sq);
	r = r ? r : flat_init(&masters, &s->job, s->arena, l->masters);
	if (r != 0) {
		return r;
	}
	const float *flats[3] = {exp_avg.values, exp_avg_sq.values, masters.values};
	for (size_t i = 0; i < n; i++) {
		char *name = names + i * STATE_NAME_MAX;
		struct peft_tensor t;
		state_tensor(s, i, name, &t);
		out[i] = (struct st_out){.name = name, .dtype = ST_F32, .n_dims = t.n_dims,
			.data = flats[i % kept] + t.offset};
		memcpy(out[i].dims, t.dims, sizeof(t.dims));
	}
	qsort(out, n, sizeof(*out), compare_names);
	char version[16], step[32];
	snprintf(version, sizeof(version), "%d", STATE_VERSION);
	snprintf(step, sizeof(step), "%" PRId64, s->step);
	const char *const metadata[] = {"fingerprint", s->fingerprint, "format", "peftd-state",
		"step", step, "version", version};
	return safetensors_write(state, out, n, metadata, ARRAY_LEN(metadata) / 2);
}

static const char *find_metadata(const struct safetensors *st, const char *key)
{
	for (size_t i = 0; i < st->n_metadata; i++) {
		if (strcmp(st->metadata[2 * i], key) == 0) {
			return st->metadata[2 * i + 1];
		}
	}
	return NULL;
}

/* Names the first line in which two fingerprints differ. */
static int refuse_other(const char *have, const char *want, struct errmsg *err)
{
	while (*have && *want) {
		int a = (int)strcspn(have, "\n"), b = (int)strcspn(want, "\n");
		if (a != b || strncmp(have, want, (size_t)a) != 0) {
			return errmsg_set(err, STATUS_CONFLICT, "the checkpoint is of another setting and "
				"would not go on to the same bits: it has \"%.*s\", here is \"%.*s\"",
				a < 400 ? a : 400, have, b < 400 ? b : 400, want);
		}
		have += a + (have[a] == '\n');
		want += b + (want[b] == '\n');
	}
	return errmsg_set(err, STATUS_CONFLICT, "the checkpoint's fingerprint is of another form");
}

static bool same_dims(const struct st_tensor *have, const struct peft_tensor *want)
{
	bool same = have->n_dims == want->n_dims;
	for (int i = 0; same && i < want->n_dims; i++) {
		same = have->dims[i] == want->dims[i];
	}
	return same;
}

static int read_kept(const struct train_session *s, const struct safetensors *st, float *flats[3],
	struct errmsg *err)
{
	size_t n = n_kept(s) * peft_n_tensors(s->peft, s->job.g);
	if (st->n_tensors != n) {
		return errmsg_set(err, STATUS_INVALID, "state: %zu tensors, not %zu", st->n_tensors, n);
	}
	for (size_t i = 0; i < n; i++) {
		char name[STATE_NAME_MAX];
		struct peft_tensor want;
		state_tensor(s, i, name, &want);
		const struct st_tensor *t = safetensors_find(st, name);
		if (!t || !same_dims(t, &want)) {
			return errmsg_set(err, STATUS_INVALID, "state: no tensor %s of the right shape", name);
		}
		int r = st_tensor_read_f32(t, flats[i % n_kept(s)] + want.offset, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int check_header(const struct train_session *s, const struct safetensors *st,
	bool allow_other, int64_t *ret_step, struct errmsg *err)
{
	const char *version = find_metadata(st, "version"), *step = find_metadata(st, "step");
	const char *fingerprint = find_metadata(st, "fingerprint");
	if (!version || !step || !fingerprint) {
		return errmsg_set(err, STATUS_INVALID, "state: no version, step or fingerprint in it");
	}
	if (strtol(version, NULL, 10) != STATE_VERSION) {
		return errmsg_set(err, STATUS_VERSION, "state: version %.16s; this build reads version %d",
			version, STATE_VERSION);
	}
	char *end;
	errno = 0;
	long long n = strtoll(step, &end, 10);
	if (errno != 0 || end == step || *end != '\0' || n < 0) {
		return errmsg_set(err, STATUS_INVALID, "state: \"%.32s\" is no number of steps", step);
	}
	if (!allow_other && strcmp(fingerprint, s->fingerprint) != 0) {
		return refuse_other(fingerprint, s->fingerprint, err);
	}
	*ret_step = n;
	return 0;
}

int train_session_restore(struct train_session *s, const struct adapter *adapter, const void *state,
	size_t state_len, bool allow_other, struct errmsg *err)
{
	_cleanup_(safetensorsp) struct safetensors st = {0};
	int r = safetensors_parse(&st, state, state_len, "state", err);
	int64_t step = 0;
	if (r == 0) {
		r = check_header(s, &st, allow_other, &step, err);
	}
	if (r != 0) {
		return r;
	}
	_cleanup_(flat_deinit) struct flat exp_avg = {0};
	_cleanup_(flat_deinit) struct flat exp_avg_sq = {0};
	_cleanup_(flat_deinit) struct flat masters = {0};
	const struct layout *l = &s->job.layout;
	r = flat_init(&exp_avg, &s->job, s->arena, l->exp_avg);
	r = r ? r : flat_init(&exp_avg_sq, &s->job, s->arena, l->exp_avg_sq);
	r = r ? r : flat_init(&masters, &s->job, s->arena, l->masters);
	r = r ? r : read_kept(s, &st,
		(float *[3]){exp_avg.values, exp_avg_sq.values, masters.values}, err);
	if (r == 0 && n_kept(s) > 2) {
		flat_store(&masters, &s->job, s->arena);
		job_refresh_copies(&s->job, s->arena);
	} else if (r == 0) {
		r = job_load_adapter(&s->job, s->arena, adapter, err);
	}
	if (r != 0) {
		return r;
	}
	flat_store(&exp_avg, &s->job, s->arena);
	flat_store(&exp_avg_sq, &s->job, s->arena);
	s->step = step;
	return 0;
}
