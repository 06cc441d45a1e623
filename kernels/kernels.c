/* The checking wrappers around a backend's table, and what is the same for all backends. A failed
 * assert() here is a bug of the caller. Empty tensors end here. */

#undef NDEBUG /* a check costs nothing beside a tensor, and a missed one costs memory */
#include <assert.h>
#include <string.h>
#include <strings.h>

#include "kernels/backend.h"
#include "kernels/philox.h"
#include "util/util.h"

size_t dtype_size(enum dtype dtype)
{
	return dtype == DTYPE_BF16 ? 2 : 4;
}

const char *dtype_name(enum dtype dtype)
{
	switch (dtype) {
	case DTYPE_F32:
		return "f32";
	case DTYPE_BF16:
		return "bf16";
	case DTYPE_I32:
		return "i32";
	}
	return "unknown";
}

uint16_t bf16_from_f32(float f)
{
	uint32_t u;
	memcpy(&u, &f, sizeof(u));
	if ((u & 0x7FFFFFFFu) > 0x7F800000u) {
		return (uint16_t)((u >> 16) | 0x40); /* quiet, or rounding could make it infinite */
	}
	return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1)) >> 16);
}

uint32_t rng_bits(struct rng_key key, uint64_t element)
{
	uint32_t out[4];
	philox_block(out, key.seed, key.stream, element / 4);
	return out[element % 4];
}

/* ---- checks -------------------------------------------------------------------------------- */

static bool is_act(enum dtype dtype)
{
	return dtype == DTYPE_F32 || dtype == DTYPE_BF16;
}

static bool mat_empty(struct mat m)
{
	return m.rows == 0 || m.cols == 0;
}

static bool mat_valid(struct mat m)
{
	return is_act(m.dtype) && m.rows >= 0 && m.cols >= 0 && m.stride >= m.cols &&
		(m.data || mat_empty(m));
}

/* Valid, and of the shape and dtype of `as`. */
static bool mat_like(struct mat m, struct mat as)
{
	return mat_valid(m) && m.rows == as.rows && m.cols == as.cols && m.dtype == as.dtype;
}

static bool mat_is(struct mat m, int64_t rows, int64_t cols, enum dtype dtype)
{
	return mat_valid(m) && m.rows == rows && m.cols == cols && m.dtype == dtype;
}

/* ---- backends and memory ------------------------------------------------------------------- */

int backend_cpu_new(struct backend **ret, unsigned n_threads, struct errmsg *err)
{
	return backend_cpu_new_isa(ret, NULL, n_threads, err);
}

void backend_free(struct backend *b)
{
	if (b) {
		b->ops->free(b);
	}
}

const char *backend_name(const struct backend *b)
{
	return b->name;
}

const char *backend_device(const struct backend *b)
{
	return b->device;
}

unsigned backend_threads(const struct backend *b)
{
	return b->n_threads;
}

const char *backend_fingerprint(const struct backend *b)
{
	return b->fingerprint;
}

void *backend_alloc(struct backend *b, size_t bytes)
{
	return b->ops->alloc(b, bytes);
}

void backend_free_memory(struct backend *b, void *p, size_t bytes)
{
	if (p) {
		b->ops->free_memory(b, p, bytes);
	}
}

void backend_upload(struct backend *b, void *dst, const void *src, size_t bytes)
{
	if (bytes > 0) {
		b->ops->upload(b, dst, src, bytes);
	}
}

void backend_download(struct backend *b, void *dst, const void *src, size_t bytes)
{
	if (bytes > 0) {
		b->ops->download(b, dst, src, bytes);
	}
}

void *backend_host_view(struct backend *b, void *p)
{
	return b->ops->host_view ? b->ops->host_view(b, p) : NULL;
}

int backend_sync(struct backend *b, struct errmsg *err)
{
	return b->ops->sync(b, err);
}

double backend_measure_gflops(struct backend *b, enum dtype dtype)
{
	assert(is_act(dtype));
	return b->ops->measure_gflops(b, dtype);
}

/* ---- frozen weights ------------------------------------------------------------------------ */

static bool linear_shape_valid(int64_t out, int64_t in, enum dtype dtype, unsigned uses)
{
	return out > 0 && in > 0 && is_act(dtype) && uses != 0 &&
		(uses & ~(unsigned)(PACKED_FORWARD | PACKED_BACKWARD)) == 0;
}

size_t packed_weight_bytes(struct backend *b, int64_t out, int64_t in, enum dtype dtype,
	unsigned uses)
{
	assert(linear_shape_valid(out, in, dtype, uses));
	return b->ops->packed_weight_bytes(b, out, in, dtype, uses);
}

int packed_weight_new(struct packed_weight **ret, struct backend *b, const float *src, int64_t out,
	int64_t in, enum dtype dtype, unsigned uses, struct errmsg *err)
{
	assert(ret && src && linear_shape_valid(out, in, dtype, uses));
	return b->ops->packed_weight_new(ret, b, src, out, in, dtype, uses, err);
}

void packed_weight_free(struct packed_weight *w)
{
	if (w) {
		w->backend->ops->packed_weight_free(w);
	}
}

int64_t packed_weight_out(const struct packed_weight *w)
{
	return w->out;
}

int64_t packed_weight_in(const struct packed_weight *w)
{
	return w->in;
}

int linear_prepare(struct backend *b, int64_t out, int64_t in, enum dtype dtype, unsigned uses,
	int64_t max_rows, struct errmsg *err)
{
	assert(linear_shape_valid(out, in, dtype, uses) && max_rows >= 0);
	return b->ops->linear_prepare(b, out, in, dtype, uses, max_rows, err);
}

void linear_forward(struct backend *b, struct mat y, struct mat x, const struct packed_weight *w,
	const float *bias)
{
	assert(w->backend == b && (w->uses & PACKED_FORWARD));
	assert(mat_is(x, x.rows, w->in, w->dtype));
	assert(mat_is(y, x.rows, w->out, w->dtype) || mat_is(y, x.rows, w->out, DTYPE_F32));
	if (x.rows > 0) {
		b->ops->linear_forward(b, y, x, w, bias);
	}
}

void linear_backward(struct backend *b, struct mat dx, struct mat dy, const struct packed_weight *w,
	bool accumulate)
{
	assert(w->backend == b && (w->uses & PACKED_BACKWARD));
	assert(mat_is(dy, dy.rows, w->out, w->dtype) && mat_is(dx, dy.rows, w->in, w->dtype));
	if (dy.rows > 0) {
		b->ops->linear_backward(b, dx, dy, w, accumulate);
	}
}

/* ---- small or trainable products ----------------------------------------------------------- */

void matmul(struct backend *b, struct mat c, struct mat a, bool trans_a, struct mat b_, bool trans_b,
	float alpha, float beta)
{
	int64_t m = trans_a ? a.cols : a.rows, k = trans_a ? a.rows : a.cols;
	int64_t n = trans_b ? b_.rows : b_.cols, k_b = trans_b ? b_.cols : b_.rows;
	assert(mat_valid(a) && mat_valid(b_) && mat_valid(c) && a.dtype == b_.dtype && k == k_b);
	assert(c.rows == m && c.cols == n && (c.dtype == a.dtype || c.dtype == DTYPE_F32));
	assert(beta == 0 || beta == 1);
	if (mat_empty(c)) {
		return;
	}
	if (k == 0) {
		if (beta == 0) {
			b->ops->fill_zero(b, c);
		}
		return;
	}
	b->ops->matmul(b, c, a, trans_a, b_, trans_b, alpha, beta);
}

int matmul_prepare(struct backend *b, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b,
	enum dtype ab_dtype, enum dtype c_dtype, struct errmsg *err)
{
	assert(m >= 0 && n >= 0 && k >= 0 && is_act(ab_dtype) && is_act(c_dtype));
	return b->ops->matmul_prepare(b, m, n, k, trans_a, trans_b, ab_dtype, c_dtype, err);
}

void bias_backward(struct backend *b, float *db, struct mat dy)
{
	assert(mat_valid(dy));
	if (!mat_empty(dy)) {
		b->ops->bias_backward(b, db, dy);
	}
}

/* ---- element-wise and rows ----------------------------------------------------------------- */

void fill_zero(struct backend *b, struct mat x)
{
	assert(x.rows >= 0 && x.cols >= 0 && x.stride >= x.cols && (x.data || mat_empty(x)));
	if (!mat_empty(x)) {
		b->ops->fill_zero(b, x);
	}
}

void cast(struct backend *b, struct mat dst, struct mat src)
{
	assert(mat_valid(src) && mat_is(dst, src.rows, src.cols, dst.dtype));
	if (!mat_empty(dst)) {
		b->ops->cast(b, dst, src);
	}
}

void add(struct backend *b, struct mat y, struct mat a, struct mat c)
{
	assert(mat_valid(y) && mat_like(a, y) && mat_like(c, y));
	if (!mat_empty(y)) {
		b->ops->add(b, y, a, c);
	}
}

void add_scaled(struct backend *b, struct mat y, struct mat a, struct mat c, float scale)
{
	assert(mat_valid(y) && (!a.data || mat_like(a, y)) && mat_like(c, y));
	if (!mat_empty(y)) {
		b->ops->add_scaled(b, y, a, c, scale);
	}
}

void bias_add(struct backend *b, struct mat y, const void *bias)
{
	assert(mat_valid(y) && bias);
	if (!mat_empty(y)) {
		b->ops->bias_add(b, y, bias);
	}
}

void dropout(struct backend *b, struct mat y, struct mat x, float p, struct rng_key key,
	bool accumulate)
{
	assert(mat_valid(x) && mat_like(y, x) && p >= 0 && p < 1);
	if (!mat_empty(y)) {
		b->ops->dropout(b, y, x, p, key, accumulate);
	}
}

void embedding_forward(struct backend *b, struct mat y, const int32_t *ids, struct mat table)
{
	assert(mat_valid(table) && mat_is(y, y.rows, table.cols, table.dtype));
	if (!mat_empty(y)) {
		b->ops->embedding_forward(b, y, ids, table);
	}
}

void embedding_backward(struct backend *b, struct mat dtable, const int32_t *ids, struct mat dy)
{
	assert(mat_valid(dy) && mat_is(dtable, dtable.rows, dy.cols, DTYPE_F32));
	if (!mat_empty(dy)) {
		b->ops->embedding_backward(b, dtable, ids, dy);
	}
}

void virtual_tokens_forward(struct backend *b, struct mat y, const int32_t *ids, struct mat table)
{
	assert(mat_valid(table) && mat_is(y, y.rows, table.cols, table.dtype));
	if (!mat_empty(y)) {
		b->ops->virtual_tokens_forward(b, y, ids, table);
	}
}

void virtual_tokens_backward(struct backend *b, struct mat dtable, const int32_t *ids,
	struct mat dy)
{
	assert(mat_valid(dy) && mat_is(dtable, dtable.rows, dy.cols, DTYPE_F32));
	if (!mat_empty(dy)) {
		b->ops->virtual_tokens_backward(b, dtable, ids, dy);
	}
}

void rmsnorm_forward(struct backend *b, struct mat y, struct mat sum, float *rstd, struct mat x,
	struct mat delta, const void *w, float eps, bool one_plus)
{
	assert(mat_valid(x) && mat_like(y, x) && rstd && w);
	assert(!delta.data || (mat_like(delta, x) && mat_like(sum, x)));
	if (!mat_empty(x)) {
		b->ops->rmsnorm_forward(b, y, sum, rstd, x, delta, w, eps, one_plus);
	}
}

void rmsnorm_backward(struct backend *b, struct mat dx, float *dw, struct mat dy, struct mat dsum,
	struct mat sum, const float *rstd, const void *w, bool one_plus)
{
	assert(mat_valid(dx) && mat_like(dy, dx) && mat_like(sum, dx));
	assert(!dsum.data || mat_like(dsum, dx));
	if (!mat_empty(dx)) {
		b->ops->rmsnorm_backward(b, dx, dw, dy, dsum, sum, rstd, w, one_plus);
	}
}

void layernorm_forward(struct backend *b, struct mat y, struct mat sum, float *stats, struct mat x,
	struct mat delta, const void *w, const void *bias, float eps)
{
	assert(mat_valid(x) && mat_like(y, x) && stats && w);
	assert(!delta.data || (mat_like(delta, x) && mat_like(sum, x)));
	if (!mat_empty(x)) {
		b->ops->layernorm_forward(b, y, sum, stats, x, delta, w, bias, eps);
	}
}

void layernorm_backward(struct backend *b, struct mat dx, float *dw, float *dbias, struct mat dy,
	struct mat dsum, struct mat sum, const float *stats, const void *w)
{
	assert(mat_valid(dx) && mat_like(dy, dx) && mat_like(sum, dx));
	assert(!dsum.data || mat_like(dsum, dx));
	if (!mat_empty(dx)) {
		b->ops->layernorm_backward(b, dx, dw, dbias, dy, dsum, sum, stats, w);
	}
}

void rope(struct backend *b, struct mat x, const int32_t *positions, const float *cos_sin,
	int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse)
{
	assert(mat_valid(x) && rotary_dim % 2 == 0 && rotary_dim > 0 && rotary_dim <= head_dim);
	assert(x.cols == n_heads * head_dim);
	if (!mat_empty(x)) {
		b->ops->rope(b, x, positions, cos_sin, n_heads, head_dim, rotary_dim, inverse);
	}
}

void swiglu_forward(struct backend *b, struct mat h, struct mat gate, struct mat up)
{
	assert(mat_valid(h) && mat_like(gate, h) && mat_like(up, h));
	if (!mat_empty(h)) {
		b->ops->swiglu_forward(b, h, gate, up);
	}
}

void swiglu_backward(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up)
{
	assert(mat_valid(dh) && mat_like(dgate, dh) && mat_like(dup, dh));
	assert(mat_like(gate, dh) && mat_like(up, dh));
	if (!mat_empty(dh)) {
		b->ops->swiglu_backward(b, dgate, dup, dh, gate, up);
	}
}

void scale_columns(struct backend *b, struct mat y, struct mat x, const void *l)
{
	assert(mat_valid(x) && mat_like(y, x) && l);
	if (!mat_empty(x)) {
		b->ops->scale_columns(b, y, x, l);
	}
}

void scale_columns_backward(struct backend *b, struct mat dx, float *dl, struct mat dy, struct mat x,
	const void *l)
{
	assert(mat_valid(dy) && mat_like(x, dy) && l && (!dx.data || mat_like(dx, dy)));
	if (!mat_empty(dy)) {
		b->ops->scale_columns_backward(b, dx, dl, dy, x, l);
	}
}

bool activation_from_name(const char *name, enum activation *ret)
{
	static const struct {
		const char *name;
		enum activation kind;
	} names[] = {
		{"relu", ACTIVATION_RELU},
		{"gelu", ACTIVATION_GELU},
		{"gelu_new", ACTIVATION_GELU_NEW},
		{"gelu_pytorch_tanh", ACTIVATION_GELU_NEW},
		{"silu", ACTIVATION_SILU},
		{"swish", ACTIVATION_SILU},
		{"tanh", ACTIVATION_TANH},
		{"sigmoid", ACTIVATION_SIGMOID},
		{"leakyrelu", ACTIVATION_LEAKY_RELU},
		{"leaky_relu", ACTIVATION_LEAKY_RELU},
	};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strcasecmp(name, names[i].name) == 0) {
			*ret = names[i].kind;
			return true;
		}
	}
	return false;
}

const char *activation_name(enum activation kind)
{
	static const char *const names[] = {"relu", "gelu", "gelu_new", "silu", "tanh", "sigmoid",
		"leaky_relu"};
	return names[kind];
}

void activation_forward(struct backend *b, struct mat y, struct mat x, enum activation kind)
{
	assert(mat_valid(x) && mat_like(y, x));
	if (!mat_empty(x)) {
		b->ops->activation_forward(b, y, x, kind);
	}
}

void activation_backward(struct backend *b, struct mat dx, struct mat dy, struct mat x,
	enum activation kind)
{
	assert(mat_valid(x) && mat_like(dx, x) && mat_like(dy, x));
	if (!mat_empty(x)) {
		b->ops->activation_backward(b, dx, dy, x, kind);
	}
}

void gated_forward(struct backend *b, struct mat h, struct mat gate, struct mat up,
	enum activation kind)
{
	assert(mat_valid(h) && mat_like(gate, h) && mat_like(up, h));
	if (mat_empty(h)) {
		return;
	}
	if (kind == ACTIVATION_SILU) {
		b->ops->swiglu_forward(b, h, gate, up);
	} else {
		b->ops->gated_forward(b, h, gate, up, kind);
	}
}

void gated_backward(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up, enum activation kind)
{
	assert(mat_valid(dh) && mat_like(dgate, dh) && mat_like(dup, dh));
	assert(mat_like(gate, dh) && mat_like(up, dh));
	if (mat_empty(dh)) {
		return;
	}
	if (kind == ACTIVATION_SILU) {
		b->ops->swiglu_backward(b, dgate, dup, dh, gate, up);
	} else {
		b->ops->gated_backward(b, dgate, dup, dh, gate, up, kind);
	}
}

void softcap(struct backend *b, struct mat x, float cap)
{
	assert(mat_is(x, x.rows, x.cols, DTYPE_F32) && cap > 0);
	if (!mat_empty(x)) {
		b->ops->softcap(b, x, cap);
	}
}

void dora_forward(struct backend *b, struct mat y, struct mat u, const void *m, const float *norms,
	const void *bias)
{
	assert(mat_valid(u) && mat_like(y, u) && m && norms);
	if (!mat_empty(u)) {
		b->ops->dora_forward(b, y, u, m, norms, bias);
	}
}

void dora_backward(struct backend *b, struct mat du, float *dm, float *dbias, struct mat dy,
	struct mat u, const void *m, const float *norms, const void *bias)
{
	assert(mat_valid(u) && mat_like(du, u) && mat_like(dy, u) && dm && m && norms);
	if (!mat_empty(u)) {
		b->ops->dora_backward(b, du, dm, dbias, dy, u, m, norms, bias);
	}
}

void embedding_columns_forward(struct backend *b, struct mat h, const int32_t *ids, struct mat a)
{
	assert(mat_valid(a) && mat_is(h, h.rows, a.rows, a.dtype));
	if (!mat_empty(h)) {
		b->ops->embedding_columns_forward(b, h, ids, a);
	}
}

void embedding_columns_backward(struct backend *b, struct mat da, const int32_t *ids, struct mat dh)
{
	assert(mat_valid(dh) && mat_is(da, dh.cols, da.cols, DTYPE_F32));
	if (!mat_empty(dh)) {
		b->ops->embedding_columns_backward(b, da, ids, dh);
	}
}

void low_rank_row_norms(struct backend *b, float *norms, const float *w_squares, struct mat wa,
	struct mat aa, struct mat b_, float scale)
{
	assert(mat_valid(b_) && mat_is(wa, b_.cols, b_.rows, DTYPE_F32));
	assert(mat_is(aa, b_.cols, b_.cols, DTYPE_F32));
	if (b_.rows > 0) {
		b->ops->low_rank_row_norms(b, norms, w_squares, wa, aa, b_, scale);
	}
}

void lstm_forward(struct backend *b, struct mat h, struct mat gates, struct mat cell, struct mat xg,
	struct mat w, struct mat bias, bool reverse)
{
	int64_t n = h.rows, d = h.cols;
	assert(mat_valid(h) && d <= LSTM_MAX_SIZE && mat_is(xg, n, 4 * d, h.dtype));
	assert(mat_is(w, 4 * d, d, h.dtype) && mat_is(bias, 1, 4 * d, h.dtype));
	assert(mat_is(gates, n, 4 * d, DTYPE_F32) && mat_is(cell, n, d, DTYPE_F32));
	if (!mat_empty(h)) {
		b->ops->lstm_forward(b, h, gates, cell, xg, w, bias, reverse);
	}
}

void lstm_backward(struct backend *b, struct mat dxg, struct mat dw, struct mat dbias, struct mat dh,
	struct mat h, struct mat gates, struct mat cell, struct mat w, bool reverse)
{
	int64_t n = h.rows, d = h.cols;
	assert(mat_valid(h) && d <= LSTM_MAX_SIZE && mat_is(dxg, n, 4 * d, h.dtype) && mat_like(dh, h));
	assert(mat_is(w, 4 * d, d, h.dtype) && mat_is(dw, 4 * d, d, DTYPE_F32));
	assert(mat_is(gates, n, 4 * d, DTYPE_F32) && mat_is(cell, n, d, DTYPE_F32));
	assert(mat_is(dbias, 1, 4 * d, DTYPE_F32));
	if (!mat_empty(h)) {
		b->ops->lstm_backward(b, dxg, dw, dbias, dh, h, gates, cell, w, reverse);
	}
}

/* ---- attention ----------------------------------------------------------------------------- */

static bool attention_valid(const struct attention *a)
{
	return a->n_heads > 0 && a->n_kv_heads > 0 && a->n_heads % a->n_kv_heads == 0 &&
		a->head_dim > 0 && a->head_dim <= 256 && a->n_seqs >= 0 && a->window >= 0 &&
		(a->causal || a->window == 0) && a->softcap >= 0 && !(a->bias.bias.data && a->softcap > 0);
}

/* The table and the rows that distances select. */
static bool attention_bias_valid(const struct attention *a, enum dtype dtype)
{
	const struct attention_bias *s = &a->bias;
	if (!s->bias.data) {
		return true;
	}
	for (int64_t i = 0; i <= 2 * s->reach; i++) {
		if (s->bucket[i] < 0 || s->bucket[i] >= s->bias.rows) {
			return false;
		}
	}
	return mat_is(s->bias, s->bias.rows, a->n_heads, dtype) &&
		(!s->dbias.data || mat_is(s->dbias, s->bias.rows, a->n_heads, DTYPE_F32));
}

/* Every sequence lies within the tensors, and causal ones have no query before the first key. */
static bool attention_ranges_valid(const struct attention *a, int64_t q_rows, int64_t k_rows)
{
	for (int64_t s = 0; s < a->n_seqs; s++) {
		if (a->q_start[s] < 0 || a->q_len[s] < 0 || a->k_start[s] < 0 || a->k_len[s] < 0 ||
			(int64_t)a->q_start[s] + a->q_len[s] > q_rows ||
			(int64_t)a->k_start[s] + a->k_len[s] > k_rows ||
			(a->q_len[s] > 0 && a->k_len[s] == 0) ||
			(a->causal && a->k_len[s] < a->q_len[s])) {
			return false;
		}
	}
	return true;
}

/* The prefix is there where there is to be one, and every query has a key. */
static bool attention_prefix_valid(const struct attention *a, enum dtype dtype, bool backward)
{
	int64_t kv_cols = a->n_kv_heads * a->head_dim, n = a->prefix_len;
	if (n <= 0) {
		return n == 0;
	}
	return mat_is(a->k_prefix, n, kv_cols, dtype) && mat_is(a->v_prefix, n, kv_cols, dtype) &&
		(!backward || !a->dk_prefix.data || (mat_is(a->dk_prefix, n, kv_cols, DTYPE_F32) &&
			mat_is(a->dv_prefix, n, kv_cols, DTYPE_F32)));
}

size_t attention_workspace(struct backend *b, const struct attention *a, int64_t max_rows,
	int64_t max_seqs)
{
	assert(attention_valid(a) && max_rows >= 0 && max_seqs >= 0);
	return b->ops->attention_workspace(b, a, max_rows, max_seqs);
}

void attention_forward(struct backend *b, struct mat o, float *lse, struct mat q, struct mat k,
	struct mat v, const struct attention *a, void *workspace)
{
	int64_t kv_cols = a->n_kv_heads * a->head_dim;
	assert(attention_valid(a) && mat_is(q, q.rows, a->n_heads * a->head_dim, q.dtype));
	assert(mat_like(o, q) && mat_is(k, k.rows, kv_cols, q.dtype) && mat_like(v, k));
	assert(attention_ranges_valid(a, q.rows, k.rows) && attention_prefix_valid(a, q.dtype, false));
	assert(attention_bias_valid(a, q.dtype));
	if (a->n_seqs > 0 && !mat_empty(q)) {
		b->ops->attention_forward(b, o, lse, q, k, v, a, workspace);
	}
}

void attention_backward(struct backend *b, struct mat dq, struct mat dk, struct mat dv,
	struct mat do_, struct mat o, const float *lse, struct mat q, struct mat k, struct mat v,
	const struct attention *a, void *workspace)
{
	int64_t kv_cols = a->n_kv_heads * a->head_dim;
	assert(attention_valid(a) && mat_is(q, q.rows, a->n_heads * a->head_dim, q.dtype));
	assert(mat_like(o, q) && mat_like(do_, q) && mat_like(dq, q));
	assert(mat_is(k, k.rows, kv_cols, q.dtype) && mat_like(v, k));
	assert(mat_like(dk, k) && mat_like(dv, k) && attention_ranges_valid(a, q.rows, k.rows));
	assert(attention_prefix_valid(a, q.dtype, true) && attention_bias_valid(a, q.dtype));
	if (a->n_seqs > 0 && !(mat_empty(q) && mat_empty(k))) {
		b->ops->attention_backward(b, dq, dk, dv, do_, o, lse, q, k, v, a, workspace);
	}
}

/* ---- head and loss ------------------------------------------------------------------------- */

size_t lm_head_workspace(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows)
{
	return lm_head_adapted_workspace(b, vocab_size, hidden_size, dtype, max_rows, 0);
}

size_t lm_head_adapted_workspace(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows, int64_t rank)
{
	assert(vocab_size > 0 && hidden_size > 0 && is_act(dtype) && max_rows >= 0 && rank >= 0);
	return b->ops->lm_head_workspace(b, vocab_size, hidden_size, dtype, max_rows, rank);
}

void lm_head_loss(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct packed_weight *w, float grad_scale, void *workspace)
{
	const struct lm_head h = {.packed = w};
	lm_head_adapted_loss(b, dx, loss_sum, x, targets, &h, grad_scale, !dx.data, workspace);
}

static bool lm_head_valid(const struct backend *b, const struct lm_head *h, struct mat x, bool dx)
{
	int64_t vocab = h->packed ? h->packed->out : h->w.rows, d = x.cols, r = h->a.rows;
	if (h->packed) {
		if (h->packed->backend != b || !(h->packed->uses & PACKED_FORWARD) || h->dw.data ||
			(dx && !(h->packed->uses & PACKED_BACKWARD)) ||
			!mat_is(x, x.rows, h->packed->in, h->packed->dtype)) {
			return false;
		}
	} else if (!mat_is(h->w, vocab, d, x.dtype) ||
		(h->dw.data && !mat_is(h->dw, vocab, d, DTYPE_F32))) {
		return false;
	}
	return !h->a.data || (mat_is(h->a, r, d, x.dtype) && mat_is(h->b, vocab, r, x.dtype) &&
		(!h->da.data || (mat_is(h->da, r, d, DTYPE_F32) && mat_is(h->db, vocab, r, DTYPE_F32))));
}

void lm_head_adapted_loss(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct lm_head *h, float grad_scale, bool loss_only,
	void *workspace)
{
	assert(mat_valid(x) && loss_sum && lm_head_valid(b, h, x, dx.data && !loss_only));
	assert(!dx.data || mat_like(dx, x));
	if (x.rows > 0) {
		b->ops->lm_head_loss(b, dx, loss_sum, x, targets, h, grad_scale, loss_only, workspace);
	}
}

/* ---- optimizer ----------------------------------------------------------------------------- */

double sum_squares(struct backend *b, const float *x, int64_t n)
{
	assert(n >= 0);
	return n > 0 ? b->ops->sum_squares(b, x, n) : 0;
}

void adamw_step(struct backend *b, float *p, float *m, float *v, const float *g, int64_t n,
	const struct adamw *a)
{
	assert(n >= 0 && a->step >= 1);
	if (n > 0) {
		b->ops->adamw_step(b, p, m, v, g, n, a);
	}
}
