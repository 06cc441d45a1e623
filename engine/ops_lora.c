/*
 * What variants of LoRA add: DoRA's magnitudes (Liu et al. 2024) and factors on an embedding.
 *
 * DoRA divides each row of W + s·B·A by its norm. That sum is never built: the norms follow from the
 * squared norms of W's rows, which are constants of the job, from A·Wᵀ and from A·Aᵀ.
 */
#include "engine/base.h"
#include "engine/ops.h"
#include "util/util.h"

static struct mat rows_of(struct mat m, int64_t row, int64_t rows)
{
	m.data = (uint8_t *)m.data + (size_t)(row * m.stride) * dtype_size(m.dtype);
	m.rows = rows;
	return m;
}

/* ---- norms --------------------------------------------------------------------------------- */

/* out: norms[1, rows of the slot], workspace, biases[1, rows]. */
static struct node add_norms(struct graph *g, int weight, const struct low_rank *l,
	size_t w_squares)
{
	const struct weight w = g->weights[weight];
	struct node n = graph_node_init(&op_dora_norms);
	bool bias = w.bias;
	for (int i = 0; i < w.n_parts; i++) {
		bias |= w.parts[i].bias_param != NONE;
	}
	n.weight = weight;
	n.low_rank = *l;
	n.arg[0] = (int64_t)w_squares;
	n.out[0] = graph_tensor(g, DTYPE_F32, ROWS_ONE, w.rows, RECOMPUTE_NEVER);
	n.out[1] = graph_tensor_fixed(g, DTYPE_F32, l->rank, w.rows + l->rank, RECOMPUTE_NEVER);
	if (bias) {
		n.out[2] = graph_tensor(g, g->dtype, ROWS_ONE, w.rows, RECOMPUTE_NEVER);
	}
	graph_append(g, &n, false);
	return n;
}

static double norms_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct weight *w = &g->weights[n->weight];
	return 2.0 * (double)n->low_rank.rank * (double)w->cols *
		(double)(w->rows + n->low_rank.rank);
}

static int norms_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[n->weight];
	const struct low_rank *l = &n->low_rank;
	enum dtype dt = r->g->dtype;
	int res = linear_prepare(r->backend, w->rows, w->cols, dt, PACKED_FORWARD, l->rank, err);
	return res ? res : matmul_prepare(r->backend, l->rank, l->rank, w->cols, false, true, dt,
		DTYPE_F32, err);
}

static void norms_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat norms = run_mat(r, n->out[0]), scratch = run_mat(r, n->out[1]);
	struct mat a = run_param(r, l->a), wa = columns(scratch, 0, norms.cols);
	struct mat aa = columns(scratch, norms.cols, l->rank);
	linear_forward(r->backend, wa, a, base_packed(r->base, n->weight), NULL);
	matmul(r->backend, aa, a, false, a, true, 1, 0);
	for (int i = 0; i < l->n_parts; i++) {
		int64_t col = l->parts[i].col, row = l->parts[i].row, rank = l->parts[i].r;
		low_rank_row_norms(r->backend, (float *)norms.data + col,
			r->constants + n->arg[0] + col, columns(rows_of(wa, row, rank), col, l->parts[i].cols),
			columns(rows_of(aa, row, rank), row, rank), run_param(r, l->parts[i].b),
			l->parts[i].scale);
	}
	if (n->out[2] != NONE) {
		run_bias(r, n->weight, run_mat(r, n->out[2]));
	}
}

const struct op op_dora_norms = {
	.name = "dora_norms",
	.flops = norms_flops,
	.prepare = norms_ready,
	.run = norms_run,
};

/* ---- magnitudes ---------------------------------------------------------------------------- */

/* in: u, norms, biases. out: y. */
int graph_dora(struct graph *g, int u, int weight, const struct low_rank *l,
	const int m[LINEAR_PARTS], size_t w_squares)
{
	struct node norms = add_norms(g, weight, l, w_squares);
	struct node n = graph_node_init(&op_dora);
	n.in[0] = u;
	n.in[1] = norms.out[0];
	n.in[2] = norms.out[2];
	n.weight = weight;
	n.low_rank = *l;
	for (int i = 0; i < l->n_parts; i++) {
		n.param[i] = m[i];
	}
	n.out[0] = like(g, u, g->dtype, g->region);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

static void dora_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_dora_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.in[2] = autodiff_use(ad, n->in[1]);
	b.in[3] = autodiff_use(ad, n->in[2]);
	b.weight = n->weight;
	b.low_rank = n->low_rank;
	for (int i = 0; i < LINEAR_PARTS; i++) {
		b.param[i] = n->param[i];
	}
	b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_add(ad, n->in[0], b.out[0]);
}

/* The biases of columns [col, …), or NULL. */
static const void *bias_at(struct mat bias, int64_t col)
{
	return bias.data ? (const uint8_t *)bias.data + (size_t)col * dtype_size(bias.dtype) : NULL;
}

static void dora_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat y = run_mat(r, n->out[0]), u = run_mat(r, n->in[0]);
	struct mat norms = run_mat(r, n->in[1]), bias = run_mat(r, n->in[2]);
	if (y.data != u.data) {
		cast(r->backend, y, u);
	}
	for (int i = 0; i < l->n_parts; i++) {
		int64_t col = l->parts[i].col, cols = l->parts[i].cols;
		dora_forward(r->backend, columns(y, col, cols), columns(y, col, cols),
			run_param(r, n->param[i]).data, (const float *)norms.data + col, bias_at(bias, col));
	}
}

const struct op op_dora = {
	.name = "dora",
	.backward = dora_differentiate,
	.run = dora_run,
	.inplace = {1u << 0},
};

/* The bias parameter of the part that begins at a column. */
static int bias_param_at(const struct weight *w, int64_t col)
{
	int64_t at = 0;
	for (int i = 0; i < w->n_parts; at += w->parts[i++].rows) {
		if (at == col) {
			return w->parts[i].bias_param;
		}
	}
	return NONE;
}

static void dora_backward_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat du = run_mat(r, n->out[0]), dy = run_mat(r, n->in[0]), u = run_mat(r, n->in[1]);
	struct mat norms = run_mat(r, n->in[2]), bias = run_mat(r, n->in[3]);
	if (du.data != dy.data) {
		cast(r->backend, du, dy);
	}
	for (int i = 0; i < l->n_parts; i++) {
		int64_t col = l->parts[i].col, cols = l->parts[i].cols;
		int b = bias_param_at(&r->g->weights[n->weight], col);
		dora_backward(r->backend, columns(du, col, cols), run_grad(r, n->param[i]).data,
			run_grad(r, b).data, columns(du, col, cols), columns(u, col, cols),
			run_param(r, n->param[i]).data, (const float *)norms.data + col, bias_at(bias, col));
	}
}

const struct op op_dora_backward = {
	.name = "dora_backward",
	.run = dora_backward_run,
	.inplace = {1u << 0},
};

/* ---- embedding ----------------------------------------------------------------------------- */

/* in: x. out: y, h. */
int graph_embedding_low_rank(struct graph *g, int x, int a, int b, float scale)
{
	struct node n = graph_node_init(&op_embedding_low_rank);
	n.in[0] = x;
	n.param[0] = a;
	n.param[1] = b;
	n.p = scale;
	n.out[0] = like(g, x, g->dtype, RECOMPUTE_NEVER);
	n.out[1] = act(g, x, g->params[a].rows, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

static void embedding_low_rank_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_embedding_low_rank_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_use(ad, n->out[1]);
	b.param[0] = n->param[0];
	b.param[1] = n->param[1];
	b.p = n->p;
	b.out[0] = act(ad->g, dy, ad->g->params[n->param[0]].rows, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], dy);
	}
}

static double embedding_low_rank_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct param *b = &g->params[n->param[1]];
	return 2.0 * (double)tensor_rows(g, n->in[0]) * (double)b->rows * (double)b->cols;
}

static int embedding_low_rank_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct param *b = &r->g->params[n->param[1]];
	return matmul_prepare(r->backend, tensor_rows(r->g, n->in[0]), b->rows, b->cols, false,
		true, r->g->dtype, r->g->dtype, err);
}

static void embedding_low_rank_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), h = run_mat(r, n->out[1]), x = run_mat(r, n->in[0]);
	if (y.data != x.data) {
		cast(r->backend, y, x);
	}
	embedding_columns_forward(r->backend, h, run_ids(r, n->in[0]), run_param(r, n->param[0]));
	matmul(r->backend, y, h, false, run_param(r, n->param[1]), true, n->p, 1);
}

const struct op op_embedding_low_rank = {
	.name = "embedding_low_rank",
	.backward = embedding_low_rank_differentiate,
	.flops = embedding_low_rank_flops,
	.prepare = embedding_low_rank_ready,
	.run = embedding_low_rank_run,
	.inplace = {1u << 0},
};

static double embedding_low_rank_backward_flops(const struct graph *g, const struct node *n,
	int64_t seq_len)
{
	return 2 * embedding_low_rank_flops(g, n, seq_len);
}

static int embedding_low_rank_backward_ready(struct run *r, const struct node *n,
	struct errmsg *err)
{
	const struct param *b = &r->g->params[n->param[1]];
	int64_t t = tensor_rows(r->g, n->in[0]);
	enum dtype dt = r->g->dtype;
	int res = matmul_prepare(r->backend, b->rows, b->cols, t, true, false, dt, DTYPE_F32, err);
	return res ? res : matmul_prepare(r->backend, t, b->cols, b->rows, false, false, dt, dt, err);
}

static void embedding_low_rank_backward_run(struct run *r, const struct node *n)
{
	struct mat dy = run_mat(r, n->in[0]), h = run_mat(r, n->in[1]), dh = run_mat(r, n->out[0]);
	matmul(r->backend, run_grad(r, n->param[1]), dy, true, h, false, n->p, 1);
	matmul(r->backend, dh, dy, false, run_param(r, n->param[1]), false, n->p, 0);
	embedding_columns_backward(r->backend, run_grad(r, n->param[0]), run_ids(r, n->in[0]), dh);
}

const struct op op_embedding_low_rank_backward = {
	.name = "embedding_low_rank_backward",
	.flops = embedding_low_rank_backward_flops,
	.prepare = embedding_low_rank_backward_ready,
	.run = embedding_low_rank_backward_run,
};

/* ---- frozen low-rank update ---------------------------------------------------------------- */

/*
 * As op_low_rank, with factors that are constants: arg[0] is the place of A, low_rank.parts[].b that of
 * each B. Constants are f32; where products want bf16 they are rounded into a workspace first.
 */
static int fixed_scratch(struct graph *g, const struct low_rank *l, int64_t in)
{
	int64_t n = l->rank * in;
	for (int i = 0; i < l->n_parts; i++) {
		n += l->parts[i].cols * l->parts[i].r;
	}
	return g->dtype == DTYPE_F32 ? NONE :
		graph_tensor_fixed(g, g->dtype, 1, n, RECOMPUTE_NEVER);
}

/* in: y, x. out: y, h, workspace. */
int graph_fixed_low_rank(struct graph *g, int y, int x, size_t a, const struct low_rank *l)
{
	struct node n = graph_node_init(&op_fixed_low_rank);
	n.in[0] = y;
	n.in[1] = x;
	n.low_rank = *l;
	n.arg[0] = (int64_t)a;
	n.out[0] = like(g, y, g->dtype, g->region);
	n.out[1] = act(g, y, l->rank, RECOMPUTE_NEVER);
	n.out[2] = fixed_scratch(g, l, g->tensors[x].cols);
	graph_append(g, &n, false);
	return n.out[0];
}

static void fixed_low_rank_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], dy);
	}
	if (!autodiff_needs(ad, n->in[1])) {
		return;
	}
	struct node b = graph_node_init(&op_fixed_low_rank_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_grad(ad, n->in[1]);
	b.low_rank = n->low_rank;
	b.arg[0] = n->arg[0];
	b.out[0] = act(g, dy, n->low_rank.rank, RECOMPUTE_NEVER);
	b.out[1] = like(g, n->in[1], g->dtype, RECOMPUTE_NEVER);
	b.out[2] = fixed_scratch(g, &n->low_rank, g->tensors[n->in[1]].cols);
	graph_append(g, &b, false);
	autodiff_set(ad, n->in[1], b.out[1]);
}

/* Factor i of the node, A first, in the dtype of activations. */
static struct mat fixed_factor(struct run *r, const struct node *n, int i, int64_t in)
{
	const struct low_rank *l = &n->low_rank;
	int64_t at = 0;
	struct mat m = {NULL, DTYPE_F32, l->rank, in, in};
	const float *from = r->constants + n->arg[0];
	for (int k = 0; k < i; k++) {
		at += m.rows * m.cols;
		m.rows = l->parts[k].cols;
		m.cols = m.stride = l->parts[k].r;
		from = r->constants + l->parts[k].b;
	}
	m.data = (float *)(uintptr_t)from;
	if (n->out[2] == NONE) {
		return m;
	}
	struct mat scratch = run_mat(r, n->out[2]), to = m;
	to.dtype = scratch.dtype;
	to.data = (uint8_t *)scratch.data + (size_t)at * dtype_size(scratch.dtype);
	cast(r->backend, to, m);
	return to;
}

static double fixed_low_rank_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct low_rank *l = &n->low_rank;
	int in = n->op == &op_fixed_low_rank ? n->in[1] : n->out[1];
	double sum = (double)l->rank * (double)g->tensors[in].cols;
	for (int i = 0; i < l->n_parts; i++) {
		sum += (double)l->parts[i].r * (double)l->parts[i].cols;
	}
	return 2.0 * (double)tensor_rows(g, n->in[0]) * sum;
}

static int fixed_low_rank_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct low_rank *l = &n->low_rank;
	bool forward = n->op == &op_fixed_low_rank;
	int64_t t = tensor_rows(r->g, n->in[0]), in = r->g->tensors[forward ? n->in[1] : n->out[1]].cols;
	enum dtype dt = r->g->dtype;
	int res = matmul_prepare(r->backend, t, forward ? l->rank : in, forward ? in : l->rank, false,
		forward, dt, dt, err);
	for (int i = 0; i < l->n_parts && res == 0; i++) {
		int64_t cols = l->parts[i].cols, rank = l->parts[i].r;
		res = matmul_prepare(r->backend, t, forward ? cols : rank, forward ? rank : cols, false,
			forward, dt, dt, err);
	}
	return res;
}

static void fixed_low_rank_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat y = run_mat(r, n->out[0]), h = run_mat(r, n->out[1]);
	struct mat y0 = run_mat(r, n->in[0]), x = run_mat(r, n->in[1]);
	if (y.data != y0.data) {
		cast(r->backend, y, y0);
	}
	matmul(r->backend, h, x, false, fixed_factor(r, n, 0, x.cols), true, 1, 0);
	for (int i = 0; i < l->n_parts; i++) {
		matmul(r->backend, columns(y, l->parts[i].col, l->parts[i].cols),
			columns(h, l->parts[i].row, l->parts[i].r), false,
			fixed_factor(r, n, i + 1, x.cols), true, l->parts[i].scale, 1);
	}
}

const struct op op_fixed_low_rank = {
	.name = "fixed_low_rank",
	.backward = fixed_low_rank_differentiate,
	.flops = fixed_low_rank_flops,
	.prepare = fixed_low_rank_ready,
	.run = fixed_low_rank_run,
	.inplace = {1u << 0},
};

static void fixed_low_rank_backward_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat dy = run_mat(r, n->in[0]), dh = run_mat(r, n->out[0]), dx = run_mat(r, n->out[1]);
	bool accumulate = n->in[1] != NONE;
	if (accumulate && run_mat(r, n->in[1]).data != dx.data) {
		cast(r->backend, dx, run_mat(r, n->in[1]));
	}
	for (int i = 0; i < l->n_parts; i++) {
		matmul(r->backend, columns(dh, l->parts[i].row, l->parts[i].r),
			columns(dy, l->parts[i].col, l->parts[i].cols), false,
			fixed_factor(r, n, i + 1, dx.cols), false, l->parts[i].scale, 0);
	}
	matmul(r->backend, dx, dh, false, fixed_factor(r, n, 0, dx.cols), false, 1,
		accumulate ? 1 : 0);
}

const struct op op_fixed_low_rank_backward = {
	.name = "fixed_low_rank_backward",
	.flops = fixed_low_rank_flops,
	.prepare = fixed_low_rank_ready,
	.run = fixed_low_rank_backward_run,
	.inplace = {0, 1u << 1},
};
