#pragma once
/* A golden case opened: model, adapter, rows, and what torch made of them. Cases of
 * tests/golden/make_llama.py go by their name ("mha"), those of make_methods.py by their folder
 * ("methods/ia3-default"). Anything missing ends the test. */

#include <jansson.h>

#include "engine/engine.h"
#include "engine/train/session.h"

struct fixture {
	char *folder;
	struct model_files *files;
	struct backend *backend;
	struct base_model *base; /* loaded by fixture_base() */
	struct adapter adapter; /* the run's start; zero where no library has the method */
	char *adapter_weights;  /* what it is parsed from */
	bool has_adapter;
	bool starts; /* it can be started from: it holds all that is trained */
	json_t *golden;
	struct samples samples;
	struct train_config config; /* f32, the golden run's */
	struct method_config method;
};

extern const char *const golden_cases[];   /* NULL-terminated */
extern const char *const lora_cases[];     /* these and one or two of each family with other operations */
extern const char *const golden_methods[]; /* too */
/* The folders of tests/golden/KIND, "models/gpt2-usual" and so on, sorted; NULL-terminated. */
char **golden_folders(const char *kind);
void golden_folders_free(char **names);

void fixture_open(struct fixture *f, const char *name);
void fixture_base(struct fixture *f, enum dtype dtype, bool train);
void fixture_close(struct fixture *f);

/* A session on all rows, planned without limit; from the fixture's adapter where `init` and where it
 * can be started from. */
struct train_session *fixture_session(struct fixture *f, bool init);
/* The same at a given budget of a microbatch. */
struct train_session *fixture_session_at(struct fixture *f, bool init, int64_t microbatch_tokens);

/* Puts a fresh session where golden.safetensors says ("init.NAME"): what an encoder starts from
 * stands in no folder. */
void fixture_start_encoder(const struct fixture *f, struct train_session *s);

double golden_number(const struct fixture *f, const char *key);
double golden_item(const struct fixture *f, const char *key, size_t i);

char *read_file(const char *folder, const char *name, size_t *ret_len);

/* Gradient of an exported tensor ("…lora_A.weight") after session_accumulate(): caller frees. */
float *session_grad(struct train_session *s, const char *key, size_t *ret_n);

/* Fails with the text unless r is 0. */
void expect_ok(int r, const struct errmsg *err, const char *what, int line);
#define OK(call) expect_ok((call), &err, #call, __LINE__)
