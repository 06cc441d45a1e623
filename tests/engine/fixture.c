#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

const char *const golden_cases[] = {"mha", "gqa2-llama3", "gqa3-linear-bias", "gqa3-odd", NULL};

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
		s->longest_kept = s->longest = max_i64(s->longest, len);
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
	f->method = (struct method_config){.method = "lora", .lora = f->adapter.config};
}

void fixture_open(struct fixture *f, const char *name)
{
	struct errmsg err = {0};
	const char *root = getenv("PEFTD_GOLDEN");
	char adapter[4096];
	*f = (struct fixture){0};
	assert_true(asprintf(&f->folder, "%s/llama/%s", root ? root : "tests/golden", name) > 0);
	snprintf(adapter, sizeof(adapter), "%s/adapter", f->folder);

	size_t len, config_len;
	_cleanup_(freep) char *json = read_file(f->folder, "golden.json", &len);
	json_error_t json_err;
	f->golden = json_loadb(json, len, 0, &json_err);
	assert_non_null(f->golden);
	_cleanup_(freep) char *config = read_file(adapter, "adapter_config.json", &config_len);
	f->adapter_weights = read_file(adapter, "adapter_model.safetensors", &len);
	OK(adapter_parse(&f->adapter, config, config_len, f->adapter_weights, len, &err));
	OK(model_files_open(&f->files, f->folder, &err));
	OK(backend_cpu_new(&f->backend, 2, &err));
	read_rows(f);
	read_config(f);
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
	adapter_deinit(&f->adapter);
	free(f->adapter_weights);
	json_decref(f->golden);
	free(f->samples.start);
	free(f->samples.ids);
	free(f->samples.labels);
	free(f->samples.row);
	free(f->samples.fault);
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
		init ? &f->adapter : NULL, &err));
	return s;
}

struct train_session *fixture_session(struct fixture *f, bool init)
{
	return fixture_session_at(f, init, 0);
}

float *session_grad(struct train_session *s, const char *key, size_t *ret_n)
{
	const struct peft_method *m = s->peft->method;
	for (size_t i = 0; i < m->n_tensors(s->peft); i++) {
		char name[256];
		size_t offset;
		int64_t dims[2];
		m->tensor(s->peft, s->job.g, i, name, sizeof(name), &offset, dims);
		if (strcmp(name, key) == 0) {
			*ret_n = (size_t)(dims[0] * dims[1]);
			float *out = malloc(*ret_n * sizeof(*out));
			assert_non_null(out);
			backend_download(s->job.g->backend, out,
				s->arena + s->job.layout.grads + offset * sizeof(float), *ret_n * sizeof(*out));
			return out;
		}
	}
	print_error("no tensor %s\n", key);
	fail();
	return NULL;
}
