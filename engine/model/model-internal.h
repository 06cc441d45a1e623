#pragma once
/* What the readers of Hugging Face folders and of GGUF share. */

#include "engine/model/dequant.h"
#include "engine/model/model.h"
#include "util/buf.h"

/* ---- configuration ------------------------------------------------------------------------- */

/* From the text of a config.json. `what` names it in errors. STATUS_INVALID, -ENOMEM. */
int model_config_parse(struct model_config *ret, const char *json, size_t len, const char *what,
	struct errmsg *err);

/* Checks that hold between fields, for either format. */
int model_config_check(const struct model_config *c, const char *what, struct errmsg *err);

/* The architectures that there are, for errors: "llama, mistral, …". */
struct architectures {
	char s[256];
};
struct architectures model_architectures(void);
struct architectures gguf_architectures(void);

/* A tensor that a model has in its files: Hugging Face's name and shape; a vector has cols 1. */
struct tensor_spec {
	char name[160];
	int n_dims;
	int64_t rows, cols;
};

/* All that a configuration asks for, in the model's order; the caller frees. It is what the slots of
 * the model's graph need. -ENOMEM. */
int model_tensors(struct tensor_spec **ret, size_t *ret_n, const struct model_config *c);

/* A tensor in files of this model that nothing is computed from: masks, rotary buffers. */
bool model_ignores_tensor(const struct model_config *c, const char *name);

/* Finds the parameters of the "llama3" scaling that a converter turned into a list of n =
 * head_dim/2 divisors of the rotary frequencies, and puts them into `c`. False when no parameters
 * that are in use give this list. */
bool model_config_llama3_from_factors(struct model_config *c, const float *factors, int64_t n);

/* ---- files --------------------------------------------------------------------------------- */

struct stored_weight {
	char *name; /* Hugging Face's; owned */
	enum weight_type type;
	int64_t rows, cols; /* as in Hugging Face: (out, in); a vector has cols 1 */
	int n_dims;
	const uint8_t *data;
	size_t bytes;
	size_t file; /* index into model_files.files */
	/* > 0: llama.cpp stored the rows so that the two halves of each head are interleaved, and there
	 * are this many heads. */
	int64_t interleaved_heads;
	bool transposed; /* stored as [cols, rows] */
	bool one_plus;   /* stored with 1 added */
	bool expected; /* by the configuration */
};

/* A weight file, mapped read-only. */
struct mapped_file {
	char *name; /* for errors */
	int fd;
	const uint8_t *data;
	size_t len;
};

enum text_file {
	TEXT_CONFIG,
	TEXT_TOKENIZER,
	TEXT_TOKENIZER_CONFIG,
	TEXT_CHAT_TEMPLATE,
	TEXT_SPECIAL_TOKENS_MAP,
	TEXT_GENERATION_CONFIG,
	TEXT_N_FILES,
};

struct model_files {
	char *path;
	const char *format;
	struct model_config config;

	struct stored_weight *weights; /* sorted by name */
	size_t n_weights;

	struct mapped_file *files;
	size_t n_files;

	struct buf text[TEXT_N_FILES]; /* NUL-terminated; data NULL: no such file */
	char *chat_template;           /* owned; NULL: none */

	struct gguf_tokenizer *tokenizer; /* owned, as are its arrays; NULL: none */
	char *tokenizer_model, *tokenizer_pre; /* owned */

	/* Of a view: all of the above is another's, and values that were read pass through this. */
	bool view;
	model_change *change;
	const void *change_ctx;
};

/* A tensor by Hugging Face's name, once the weights are sorted; NULL: there is none. */
struct stored_weight *model_files_find(const struct model_files *m, const char *name);

/* Opens a regular file and maps it. `path` is opened as it is; `name` is for errors.
 * STATUS_NOT_FOUND, STATUS_INVALID, -errno. */
int mapped_file_open(struct mapped_file *ret, const char *path, const char *name,
	struct errmsg *err);
void mapped_file_close(struct mapped_file *f);

/* Reads a text file of at most `max` bytes. A missing file is no fault: `ret` stays empty. */
int text_file_read(struct buf *ret, const char *path, const char *name, size_t max,
	struct errmsg *err);

const char *text_file_name(enum text_file which); /* "config.json" */

/* Reads a folder with config.json and *.safetensors, resolved already, into `m`. */
int folder_load(struct model_files *m, const char *dir, struct errmsg *err);

/* Reads a GGUF, already mapped as m->files[file], into `m`. Nothing in it is believed unchecked. */
int gguf_load(struct model_files *m, size_t file, struct errmsg *err);

/* Sorts the weights by name and holds them against the configuration: each there once, of the right
 * shape, and none left over. Drops what changes nothing (a copy of tied embeddings, rotary
 * buffers). */
int model_files_check_weights(struct model_files *m, const char *what, struct errmsg *err);
