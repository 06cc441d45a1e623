#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

const char *const golden_cases[] = {"mha", "gqa2-llama3", "gqa3-linear-bias", "gqa3-odd", NULL};

const char *const lora_cases[] = {"mha", "gqa2-llama3", "gqa3-linear-bias", "gqa3-odd",
	"models/gemma2-usual", "models/gemma3-usual", "models/gpt2-usual", "models/gpt_neox-parallel",
	"models/qwen3-gqa", "seq2seq/t5-relu", "seq2seq/t5-v1_1", "seq2seq/t5-uneven", NULL};

const char *const golden_methods[] = {
	"methods/bitfit-beft",
	"methods/bitfit-beft-targets",
	"methods/bitfit-own",
	"methods/bottleneck-attention",
	"methods/bottleneck-houlsby",
	"methods/bottleneck-one",
	"methods/bottleneck-parallel",
	"methods/bottleneck-parallel-both",
	"methods/bottleneck-pfeiffer",
	"methods/full-tied",
	"methods/full-untied",
	"methods/ia3-default",
	"methods/ia3-gpt2",
	"methods/ia3-inputs",
	"methods/ia3-outputs",
	"methods/ia3-phi3",
	"methods/last_k-0-head",
	"methods/last_k-0-tied-head",
	"methods/last_k-1",
	"methods/last_k-2-head-norm",
	"methods/last_k-all",
	"methods/ln_tuning-default",
	"methods/ln_tuning-gemma3",
	"methods/ln_tuning-gpt2",
	"methods/ln_tuning-target",
	"methods/lora-bias-all",
	"methods/lora-bias-gpt_neox",
	"methods/lora-bias-lora_only",
	"methods/lora-dora",
	"methods/lora-dora-bias",
	"methods/lora-dora-gpt2",
	"methods/lora-embeddings",
	"methods/lora-embeddings-gemma3",
	"methods/lora-embeddings-tied",
	"methods/lora-head",
	"methods/lora-layers",
	"methods/lora-modules_to_save",
	"methods/lora-olora",
	"methods/lora-patterns",
	"methods/lora-pissa",
	"methods/lora-plus",
	"methods/lora-plus-dora-bias",
	"methods/lora-plus-embeddings",
	"methods/lora-rank1",
	"methods/lora-rslora",
	"methods/p_tuning-lstm",
	"methods/p_tuning-lstm2",
	"methods/p_tuning-mlp",
	"methods/prefix_tuning-default",
	"methods/prefix_tuning-gemma3",
	"methods/prefix_tuning-gpt2",
	"methods/prefix_tuning-mha",
	"methods/prefix_tuning-one",
	"methods/prefix_tuning-projection",
	"methods/prompt_tuning-gemma3",
	"methods/prompt_tuning-gpt2",
	"methods/prompt_tuning-one",
	"methods/prompt_tuning-random",
	"methods/select-embeddings",
	"methods/select-gpt2",
	"methods/select-some",
	NULL,
};

static const char *golden_root(void)
{
	const char *root = getenv("PEFTD_GOLDEN");
	return root ? root : "tests/golden";
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

char **golden_folders(const char *kind)
{
	char path[4096];
	size_t n = 0;
	char **names = NULL;
	snprintf(path, sizeof(path), "%s/%s", golden_root(), kind);
	DIR *d = opendir(path);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));) {
		if (e->d_name[0] == '.' || strchr(e->d_name, '.')) {
			continue; /* versions.json */
		}
		names = realloc(names, (n + 2) * sizeof(*names));
		assert_non_null(names);
		assert_true(asprintf(&names[n++], "%s/%s", kind, e->d_name) > 0);
	}
	closedir(d);
	assert_true(n > 0);
	qsort(names, n, sizeof(*names), compare_names);
	names[n] = NULL;
	return names;
}

void golden_folders_free(char **names)
{
	for (int k = 0; names[k]; k++) {
		free(names[k]);
	}
	free(names);
}

void expect_ok(int r, const struct errmsg *err, const char *what, int line)
{
	if (r != 0) {
		print_error("line %d: %s: %d: %s\n", line, what, r, err->text);
		fail();
	}
}

char *read_file(const char *folder, const char *name, size_t *ret_len)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	_cleanup_(fclosep) FILE *f = fopen(path, "rb");
	if (!f) {
		print_error("%s: cannot be read\n", path);
		fail();
		return NULL;
	}
	fseek(f, 0, SEEK_END);
	size_t len = (size_t)ftell(f);
	rewind(f);
	char *data = malloc(len + 1);
	assert_non_null(data);
	assert_int_equal(fread(data, 1, len, f), len);
	data[len] = '\0';
	*ret_len = len;
	return data;
}

double golden_number(const struct fixture *f, const char *key)
{
	const json_t *v = json_object_get(f->golden, key);
	assert_true(json_is_number(v));
	return json_number_value(v);
}

double golden_item(const struct fixture *f, const char *key, size_t i)
{
	const json_t *v = json_array_get(json_object_get(f->golden, key), i);
	assert_true(json_is_number(v));
	return json_number_value(v);
}

static void read_rows(struct fixture *f)
{
	json_t *rows = json_object_get(f->golden, "rows");
	size_t n = json_array_size(rows), total = 0;
	for (size_t i = 0; i < n; i++) {
		total += json_array_size(json_object_get(json_array_get(rows, i), "ids"));
	}
	struct samples *s = &f->samples;
	*s = (struct samples){
		.n = n,
		.start = calloc(n + 1, sizeof(*s->start)),
		.ids = calloc(total, sizeof(*s->ids)),
		.labels = calloc(total, sizeof(*s->labels)),
		.row = calloc(n, sizeof(*s->row)),
		.fault = calloc(n, 1),
		.rows = n,
	};
	assert_non_null(s->start);
	assert_non_null(s->ids);
	assert_non_null(s->labels);
	assert_non_null(s->row);
	if (model_files_config(f->files)->is_encoder_decoder) {
		s->source_len = calloc(n, sizeof(*s->source_len));
		assert_non_null(s->source_len);
	}
	for (size_t i = 0; i < n; i++) {
		json_t *ids = json_object_get(json_array_get(rows, i), "ids");
		json_t *labels = json_object_get(json_array_get(rows, i), "labels");
		int64_t len = (int64_t)json_array_size(ids);
		for (int64_t k = 0; k < len; k++) {
			s->ids[s->start[i] + k] = (int32_t)json_integer_value(json_array_get(ids, (size_t)k));
			s->labels[s->start[i] + k] =
				(int32_t)json_integer_value(json_array_get(labels, (size_t)k));
		}
		s->start[i + 1] = s->start[i] + len;
		s->row[i] = i;
		if (s->source_len) {
			s->source_len[i] = json_integer_value(json_object_get(json_array_get(rows, i),
				"source_len"));
			assert_true(s->source_len[i] > 0 && s->source_len[i] < len);
		}
		s->longest_kept = s->longest = max_i64(s->longest, sample_longest_side(s, i));
	}
}

static void read_config(struct fixture *f)
{
	const char *schedule = json_string_value(json_object_get(f->golden, "schedule"));
	assert_non_null(schedule);
	f->config = (struct train_config){
		.max_steps = (int64_t)golden_number(f, "max_steps"),
		.batch_size = (int64_t)golden_number(f, "batch_size"),
		.max_length = 64,
		.packing = true,
		.learning_rate = golden_number(f, "learning_rate"),
		.lr_scheduler = strcmp(schedule, "cosine") == 0 ? LR_COSINE :
			strcmp(schedule, "linear") == 0 ? LR_LINEAR : LR_CONSTANT,
		.warmup_steps = (int64_t)golden_number(f, "warmup"),
		.weight_decay = golden_number(f, "weight_decay"),
		.adam_beta1 = golden_number(f, "adam_beta1"),
		.adam_beta2 = golden_number(f, "adam_beta2"),
		.adam_epsilon = golden_number(f, "adam_epsilon"),
		.max_grad_norm = golden_number(f, "clip"),
		.dtype = DTYPE_F32,
		.seed = 7,
		.sequential = true,
	};
}

/* The part of a method's settings that no library's folder tells. */
static void read_method(struct fixture *f, const char *method)
{
	const json_t *c = json_object_get(f->golden, "config");
	if (f->has_adapter) {
		assert_int_equal(method_config_copy(&f->method, &f->adapter.config), 0);
	} else {
		f->method.method = method;
	}
	f->method.lora.loraplus_lr_ratio = json_number_value(json_object_get(c, "loraplus_lr_ratio"));
	f->method.last_k = (struct last_k_config){
		.k = json_integer_value(json_object_get(c, "k")),
		.head = json_is_true(json_object_get(c, "head")),
		.final_norm = json_is_true(json_object_get(c, "final_norm")),
	};
	size_t i;
	json_t *v;
	json_array_foreach(json_object_get(c, "parameters"), i, v) {
		assert_int_equal(modules_add(&f->method.select.parameters, json_string_value(v)), 0);
	}
	f->starts = f->has_adapter && strcmp(f->method.method, "p_tuning") != 0 &&
		!f->method.prefix_tuning.prefix_projection;
}

static void read_adapter(struct fixture *f, const char *folder)
{
	struct errmsg err = {0};
	size_t len, config_len;
	_cleanup_(freep) char *config = read_file(folder, "adapter_config.json", &config_len);
	enum adapter_kind kind = adapter_kind_of_config(config, config_len);
	f->adapter_weights = read_file(folder, adapter_files(kind).weights, &len);
	OK(adapter_parse(&f->adapter, config, config_len, f->adapter_weights, len, &err));
	f->has_adapter = true;
}

void fixture_open(struct fixture *f, const char *name)
{
	struct errmsg err = {0};
	bool method = strchr(name, '/') != NULL;
	const char *root = golden_root();
	char adapter[4096], model[4096];
	*f = (struct fixture){0};
	assert_true(asprintf(&f->folder, "%s/%s%s", root, method ? "" : "llama/", name) > 0);

	size_t len;
	_cleanup_(freep) char *json = read_file(f->folder, "golden.json", &len);
	json_error_t json_err;
	f->golden = json_loadb(json, len, 0, &json_err);
	assert_non_null(f->golden);
	snprintf(adapter, sizeof(adapter), "%s/%s", f->folder, method ? "init" : "adapter");
	if (access(adapter, F_OK) == 0) {
		read_adapter(f, adapter);
	} else {
		assert_true(method);
	}
	snprintf(model, sizeof(model), "%s/%s", root,
		method ? json_string_value(json_object_get(f->golden, "model")) : f->folder + strlen(root) + 1);
	OK(model_files_open(&f->files, model, &err));
	OK(backend_cpu_new(&f->backend, 2, &err));
	read_rows(f);
	read_config(f);
	read_method(f, method ? json_string_value(json_object_get(f->golden, "method")) : "lora");
}

void fixture_base(struct fixture *f, enum dtype dtype, bool train)
{
	struct errmsg err = {0};
	base_model_free(f->base);
	f->base = NULL;
	f->config.dtype = dtype;
	OK(base_model_load(&f->base, f->files, f->backend, dtype, train, &err));
}

void fixture_close(struct fixture *f)
{
	base_model_free(f->base);
	backend_free(f->backend);
	model_files_free(f->files);
	method_config_deinit(&f->method);
	adapter_deinit(&f->adapter);
	free(f->adapter_weights);
	json_decref(f->golden);
	free(f->samples.start);
	free(f->samples.ids);
	free(f->samples.labels);
	free(f->samples.row);
	free(f->samples.fault);
	free(f->samples.source_len);
	free(f->folder);
	*f = (struct fixture){0};
}

struct train_session *fixture_session_at(struct fixture *f, bool init, int64_t microbatch_tokens)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	struct train_session *s = NULL;
	struct train_config c = f->config;
	c.microbatch_tokens = microbatch_tokens;
	OK(train_plan(&plan, f->files, f->backend, &c, &f->method, f->samples.longest_kept, 0, &err));
	OK(train_session_new(&s, f->base, &c, &f->method, &plan, &f->samples, &f->samples,
		init && f->starts ? &f->adapter : NULL, &err));
	return s;
}

struct train_session *fixture_session(struct fixture *f, bool init)
{
	return fixture_session_at(f, init, 0);
}

float *session_grad(struct train_session *s, const char *key, size_t *ret_n)
{
	for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
		struct peft_tensor t;
		peft_tensor(s->peft, s->job.g, i, &t);
		if (strcmp(t.name, key) == 0) {
			*ret_n = 1;
			for (int d = 0; d < t.n_dims; d++) {
				*ret_n *= (size_t)t.dims[d];
			}
			float *out = malloc(*ret_n * sizeof(*out));
			assert_non_null(out);
			backend_download(s->job.g->backend, out,
				s->arena + s->job.layout.grads + t.offset * sizeof(float), *ret_n * sizeof(*out));
			return out;
		}
	}
	print_error("no tensor %s\n", key);
	fail();
	return NULL;
}

void fixture_start_encoder(const struct fixture *f, struct train_session *s)
{
	struct errmsg err = {0};
	struct safetensors st;
	size_t len, elements = s->job.g->param_elements;
	_cleanup_(freep) char *data = read_file(f->folder, "golden.safetensors", &len);
	_cleanup_(freep) float *flat = calloc(elements, sizeof(float));
	assert_non_null(flat);
	OK(safetensors_parse(&st, data, len, "golden.safetensors", &err));
	for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
		struct peft_tensor t;
		char key[TENSOR_NAME_MAX + 8];
		peft_tensor(s->peft, s->job.g, i, &t);
		size_t n = (size_t)(t.dims[0] * (t.n_dims > 1 ? t.dims[1] : 1));
		snprintf(key, sizeof(key), "init.%s", t.name);
		const struct st_tensor *have = safetensors_find(&st, key);
		if (!have || have->bytes != n * sizeof(float)) {
			print_error("golden.safetensors: no %s of %zu values\n", key, n);
			fail();
			break;
		}
		OK(st_tensor_read_f32(have, flat + t.offset, &err));
	}
	job_upload_params(&s->job, s->arena, flat);
	safetensors_deinit(&st);
}
