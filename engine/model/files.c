/* What both formats share: mapped files, the table of weights, reading them, digests. Opening them is in
 * open.c. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/hfcache.h"
#include "util/util.h"


/* ---- mapping and reading --------------------------------------------------------------------- */

/* Opens a regular file for reading; a FIFO or a device never blocks us. */
static int open_regular(const char *path, const char *name, int *ret_fd, struct stat *ret_st,
	struct errmsg *err)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		if (errno == ENOENT || errno == ENOTDIR) {
			return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no such file", name);
		}
		if (errno == EACCES || errno == EPERM || errno == ELOOP || errno == ENAMETOOLONG) {
			return errmsg_set(err, STATUS_INVALID, "%s: cannot be opened: %s", name,
				strerror(errno));
		}
		return -errno;
	}
	if (fstat(fd, ret_st) < 0) {
		return -errno;
	}
	if (!S_ISREG(ret_st->st_mode)) {
		return errmsg_set(err, STATUS_INVALID, "%s: is no regular file", name);
	}
	*ret_fd = steal_fd(&fd);
	return 0;
}

int mapped_file_open(struct mapped_file *ret, const char *path, const char *name,
	struct errmsg *err)
{
	_cleanup_(closep) int fd = -1;
	struct stat st;

	int r = open_regular(path, name, &fd, &st, err);
	if (r != 0) {
		return r;
	}
	if (st.st_size == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: is empty", name);
	}
	_cleanup_(freep) char *copy = strdup(name);
	if (!copy) {
		return -ENOMEM;
	}
	void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED) {
		return -errno;
	}
	*ret = (struct mapped_file){
		.name = steal_ptr(copy),
		.fd = steal_fd(&fd),
		.data = data,
		.len = (size_t)st.st_size,
	};
	return 0;
}

void mapped_file_close(struct mapped_file *f)
{
	if (f->data && f->fd >= 0) {
		munmap((void *)(uintptr_t)f->data, f->len);
		close(f->fd);
	}
	free(f->name);
	*f = (struct mapped_file){.fd = -1};
}

int text_file_read(struct buf *ret, const char *path, const char *name, size_t max,
	struct errmsg *err)
{
	_cleanup_(closep) int fd = -1;
	_cleanup_(buf_deinit) struct buf text = {0};
	struct stat st;

	int r = open_regular(path, name, &fd, &st, NULL);
	if (r == STATUS_NOT_FOUND) {
		return 0;
	}
	r = r == STATUS_INVALID ? open_regular(path, name, &fd, &st, err) : r; /* again, in words */
	if (r != 0) {
		return r;
	}
	if ((uint64_t)st.st_size > max) {
		return errmsg_set(err, STATUS_INVALID, "%s: has %" PRIu64 " bytes; at most %zu are read",
			name, (uint64_t)st.st_size, max);
	}
	if (buf_reserve(&text, (size_t)st.st_size + 1) < 0) {
		return -ENOMEM;
	}
	while (text.len < (size_t)st.st_size) {
		ssize_t n = read(fd, text.data + text.len, (size_t)st.st_size - text.len);
		if (n < 0 && errno != EINTR) {
			return -errno;
		}
		if (n == 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: became shorter while it was read", name);
		}
		text.len += n > 0 ? (size_t)n : 0;
	}
	text.data[text.len] = '\0';
	*ret = text;
	text = (struct buf){0};
	return 0;
}

void model_files_free(struct model_files *m)
{
	if (!m) {
		return;
	}
	if (m->view) {
		free(m);
		return;
	}
	for (size_t i = 0; i < m->n_weights; i++) {
		free(m->weights[i].name);
	}
	for (size_t i = 0; i < m->n_files; i++) {
		mapped_file_close(&m->files[i]);
	}
	for (size_t i = 0; i < TEXT_N_FILES; i++) {
		buf_deinit(&m->text[i]);
	}
	if (m->tokenizer) {
		free((void *)(uintptr_t)m->tokenizer->tokens);
		free((void *)(uintptr_t)m->tokenizer->token_lens);
		free((void *)(uintptr_t)m->tokenizer->token_types);
		free((void *)(uintptr_t)m->tokenizer->scores);
		free((void *)(uintptr_t)m->tokenizer->merges);
		free((void *)(uintptr_t)m->tokenizer->merge_lens);
	}
	free(m->tokenizer);
	free(m->tokenizer_model);
	free(m->tokenizer_pre);
	free(m->chat_template);
	free(m->weights);
	free(m->files);
	free(m->path);
	free(m);
}

/* ---- weights ------------------------------------------------------------------------------- */

struct stored_weight *model_files_find(const struct model_files *m, const char *name)
{
	size_t lo = 0, hi = m->n_weights;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int c = strcmp(name, m->weights[mid].name);
		if (c == 0) {
			return &m->weights[mid];
		}
		if (c < 0) {
			hi = mid;
		} else {
			lo = mid + 1;
		}
	}
	return NULL;
}

bool model_files_shape(const struct model_files *m, const char *name, int64_t *ret_rows,
	int64_t *ret_cols)
{
	const struct stored_weight *w = model_files_find(m, name);
	if (w) {
		*ret_rows = w->rows;
		*ret_cols = w->cols;
	}
	return w;
}

static bool is_finite(float x)
{
	uint32_t bits;
	memcpy(&bits, &x, sizeof(bits));
	return (bits & 0x7F800000) != 0x7F800000;
}

/* The first value that is infinite or no number; n where all are finite. By chunks, for a loop
 * without an early end is one that compilers make fast. */
static size_t first_not_finite(const float *x, size_t n)
{
	enum { CHUNK = 1024 };
	for (size_t at = 0; at < n; at += CHUNK) {
		size_t end = n - at < CHUNK ? n : at + CHUNK, bad = 0;
		for (size_t i = at; i < end; i++) {
			bad += !is_finite(x[i]);
		}
		for (size_t i = at; bad > 0 && i < end; i++) {
			if (!is_finite(x[i])) {
				return i;
			}
		}
	}
	return n;
}

/* llama.cpp's converter takes each head's rows from (2, D/2) order to (D/2, 2), for it rotates
 * neighbours where Hugging Face rotates halves. Row j·D/2 + i here is row 2i + j there. */
static int64_t stored_row(const struct stored_weight *w, int64_t row)
{
	if (w->interleaved_heads == 0) {
		return row;
	}
	int64_t d = w->rows / w->interleaved_heads, head = row / d, at = row % d;
	return head * d + at % (d / 2) * 2 + at / (d / 2);
}

int model_files_read(const struct model_files *m, const char *name, float *out, struct errmsg *err)
{
	const struct stored_weight *w = model_files_find(m, name);
	struct stat st;

	if (!w) {
		return errmsg_set(err, STATUS_NOT_FOUND, "%s: there is no tensor '%s'", m->path, name);
	}
	/* Memory behind a file that was cut short cannot be read; ask before touching it. */
	const struct mapped_file *f = &m->files[w->file];
	if (f->fd >= 0 && (fstat(f->fd, &st) < 0 || (uint64_t)st.st_size < f->len)) {
		return errmsg_set(err, STATUS_INVALID, "%s: became shorter since it was opened", f->name);
	}

	size_t n = (size_t)(w->rows * w->cols);
	if (w->transposed) {
		_cleanup_(freep) float *stored = alloc_array(n, sizeof(*stored));
		if (!stored) {
			return -ENOMEM;
		}
		weight_read(w->type, w->data, stored, n);
		for (int64_t i = 0; i < w->rows; i++) {
			for (int64_t j = 0; j < w->cols; j++) {
				out[i * w->cols + j] = stored[j * w->rows + i];
			}
		}
	} else if (w->interleaved_heads == 0) {
		weight_read(w->type, w->data, out, n);
	} else {
		size_t row_bytes = w->bytes / (size_t)w->rows;
		for (int64_t r = 0; r < w->rows; r++) {
			weight_read(w->type, w->data + (size_t)stored_row(w, r) * row_bytes,
				out + r * w->cols, (size_t)w->cols);
		}
	}
	for (size_t i = 0; i < n && w->one_plus; i++) {
		out[i] -= 1;
	}
	size_t bad = first_not_finite(out, n);
	if (bad < n) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': value %zu (row %" PRId64
			", column %" PRId64 ") is not finite; the file is damaged", f->name, name, bad,
			(int64_t)bad / w->cols, (int64_t)bad % w->cols);
	}
	if (!m->change) {
		return 0;
	}
	int r = m->change(m->change_ctx, name, w->rows, w->cols, out, err);
	bad = r == 0 ? first_not_finite(out, n) : n;
	return bad < n ? errmsg_set(err, STATUS_FAILED, "tensor '%s': value %zu is no finite number "
		"once it is changed", name, bad) : r;
}

int model_files_view(struct model_files **ret, const struct model_files *of, model_change *change,
	const void *ctx)
{
	struct model_files *m = malloc(sizeof(*m));
	if (!m) {
		return -ENOMEM;
	}
	*m = *of;
	m->view = true;
	m->change = change;
	m->change_ctx = ctx;
	*ret = m;
	return 0;
}

/* ---- facts --------------------------------------------------------------------------------- */

const struct model_config *model_files_config(const struct model_files *m)
{
	return &m->config;
}

const char *model_files_path(const struct model_files *m)
{
	return m->path;
}

const char *model_files_format(const struct model_files *m)
{
	return m->format;
}

const char *model_files_dtype(const struct model_files *m)
{
	uint64_t bytes[WEIGHT_N_TYPES] = {0};
	size_t most = 0;
	for (size_t i = 0; i < m->n_weights; i++) {
		bytes[m->weights[i].type] += m->weights[i].bytes;
	}
	for (size_t i = 1; i < WEIGHT_N_TYPES; i++) {
		most = bytes[i] > bytes[most] ? i : most;
	}
	return weight_types[most].name;
}

uint64_t model_files_bytes(const struct model_files *m)
{
	uint64_t n = 0;
	for (size_t i = 0; i < m->n_files; i++) {
		n += m->files[i].len;
	}
	return n;
}

uint64_t model_files_parameters(const struct model_files *m)
{
	uint64_t n = 0;
	for (size_t i = 0; i < m->n_weights; i++) {
		n += (uint64_t)(m->weights[i].rows * m->weights[i].cols);
	}
	return n;
}

static const char *const text_names[TEXT_N_FILES] = {
	[TEXT_CONFIG] = "config.json",
	[TEXT_TOKENIZER] = "tokenizer.json",
	[TEXT_TOKENIZER_CONFIG] = "tokenizer_config.json",
	[TEXT_CHAT_TEMPLATE] = "chat_template.jinja",
	[TEXT_SPECIAL_TOKENS_MAP] = "special_tokens_map.json",
	[TEXT_GENERATION_CONFIG] = "generation_config.json",
};

const char *text_file_name(enum text_file which)
{
	return text_names[which];
}

const char *model_files_text(const struct model_files *m, const char *file, size_t *ret_len)
{
	for (size_t i = 0; i < TEXT_N_FILES; i++) {
		if (strcmp(text_names[i], file) == 0 && m->text[i].data) {
			if (ret_len) {
				*ret_len = m->text[i].len;
			}
			return (const char *)m->text[i].data;
		}
	}
	return NULL;
}

const char *model_files_chat_template(const struct model_files *m)
{
	return m->chat_template;
}

uint64_t model_files_largest(const struct model_files *m)
{
	uint64_t most = 0;
	for (size_t i = 0; i < m->n_weights; i++) {
		uint64_t bytes = (uint64_t)(m->weights[i].rows * m->weights[i].cols) * sizeof(float);
		most = bytes > most ? bytes : most;
	}
	return most;
}

const struct gguf_tokenizer *model_files_gguf_tokenizer(const struct model_files *m)
{
	return m->tokenizer;
}

/* ---- digest -------------------------------------------------------------------------------- */

static void digest_part(crypto_generichash_state *h, const char *label, uint64_t len)
{
	uint8_t le[8];
	le64_write(le, len);
	crypto_generichash_update(h, (const uint8_t *)label, strlen(label) + 1);
	crypto_generichash_update(h, le, sizeof(le));
}

/* By read(), not through the mapping: a fault of the disk is an error then, not a signal. */
static int digest_file(crypto_generichash_state *h, const struct mapped_file *f, struct errmsg *err)
{
	enum { CHUNK = 1 << 20 };
	_cleanup_(freep) uint8_t *chunk = malloc(CHUNK);
	if (!chunk) {
		return -ENOMEM;
	}
	for (uint64_t at = 0; at < f->len;) {
		size_t want = f->len - at < CHUNK ? (size_t)(f->len - at) : CHUNK;
		ssize_t n = pread(f->fd, chunk, want, (off_t)at);
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return -errno;
		}
		if (n == 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: became shorter since it was opened",
				f->name);
		}
		crypto_generichash_update(h, chunk, (size_t)n);
		at += (uint64_t)n;
	}
	return 0;
}

int model_files_digest(const struct model_files *m, uint8_t ret_digest[32], struct errmsg *err)
{
	crypto_generichash_state h;
	if (sodium_init() < 0) {
		return -EIO;
	}
	crypto_generichash_init(&h, NULL, 0, 32);
	/* Names of weight files are left out: sharding's names are no part of a model. What generation
	 * defaults to is none either. */
	for (size_t i = 0; i < TEXT_N_FILES; i++) {
		if (m->text[i].data && i != TEXT_GENERATION_CONFIG) {
			digest_part(&h, text_names[i], m->text[i].len);
			crypto_generichash_update(&h, m->text[i].data, m->text[i].len);
		}
	}
	for (size_t i = 0; i < m->n_files; i++) {
		digest_part(&h, "weights", m->files[i].len);
		int r = digest_file(&h, &m->files[i], err);
		if (r != 0) {
			return r;
		}
	}
	crypto_generichash_final(&h, ret_digest, 32);
	return 0;
}
