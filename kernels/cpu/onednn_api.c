/* See onednn_api.h. What oneDNN 2 and 3 do differently (descriptors by value or by handle, one or two
 * steps to a primitive) is in the two sections below; the rest is common. */

#include "kernels/cpu/onednn_api.h"

#include <errno.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct onednn {
	dnnl_engine_t engine;
	dnnl_stream_t stream;
};

struct onednn_memory {
	dnnl_memory_t memory;
};

struct onednn_matmul {
	dnnl_primitive_t primitive;
	dnnl_memory_t src, dst, bias, workspace;
	size_t workspace_bytes;
};

static int errno_of(dnnl_status_t status)
{
	switch (status) {
	case dnnl_success:
		return 0;
	case dnnl_out_of_memory:
		return -ENOMEM;
	case dnnl_unimplemented:
		return -ENOTSUP;
	default:
		return -EIO;
	}
}

static dnnl_data_type_t type_of(enum dtype dtype)
{
	return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

static int attributes_new(dnnl_primitive_attr_t *ret, bool accumulate);

#if DNNL_VERSION_MAJOR < 3
/* ---- version 2 ----------------------------------------------------------------------------- */

struct onednn_layout {
	dnnl_memory_desc_t md;
};

typedef const dnnl_memory_desc_t *md_handle;

static md_handle layout_md(const struct onednn_layout *l)
{
	return &l->md;
}

static dnnl_status_t layout_init(struct onednn_layout *l, const dnnl_dims_t dims,
	dnnl_data_type_t type, dnnl_format_tag_t tag)
{
	return dnnl_memory_desc_init_by_tag(&l->md, 2, dims, type, tag);
}

static dnnl_status_t layout_init_copy(struct onednn_layout *l, md_handle md)
{
	l->md = *md;
	return dnnl_success;
}

static void layout_deinit(struct onednn_layout *l)
{
}

static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *ret, dnnl_engine_t engine, md_handle src,
	md_handle weights, md_handle bias, md_handle dst, dnnl_primitive_attr_t attr)
{
	dnnl_matmul_desc_t desc;
	dnnl_status_t r = dnnl_matmul_desc_init(&desc, src, weights, bias, dst);
	return r ? r : dnnl_primitive_desc_create(ret, &desc, attr, engine, NULL);
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
	return dnnl_post_ops_append_sum(ops, 1);
}

#else
/* ---- version 3 ----------------------------------------------------------------------------- */

struct onednn_layout {
	dnnl_memory_desc_t md;
};

typedef const_dnnl_memory_desc_t md_handle;

static md_handle layout_md(const struct onednn_layout *l)
{
	return l->md;
}

static dnnl_status_t layout_init(struct onednn_layout *l, const dnnl_dims_t dims,
	dnnl_data_type_t type, dnnl_format_tag_t tag)
{
	return dnnl_memory_desc_create_with_tag(&l->md, 2, dims, type, tag);
}

static dnnl_status_t layout_init_copy(struct onednn_layout *l, md_handle md)
{
	return dnnl_memory_desc_clone(&l->md, md);
}

static void layout_deinit(struct onednn_layout *l)
{
	dnnl_memory_desc_destroy(l->md);
}

static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *ret, dnnl_engine_t engine, md_handle src,
	md_handle weights, md_handle bias, md_handle dst, dnnl_primitive_attr_t attr)
{
	return dnnl_matmul_primitive_desc_create(ret, engine, src, weights, bias, dst, attr);
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
	return dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
}

#endif
/* ---- engine -------------------------------------------------------------------------------- */

int onednn_new(struct onednn **ret)
{
	struct onednn *d = calloc(1, sizeof(*d));
	if (!d) {
		return -ENOMEM;
	}
	dnnl_status_t r = dnnl_engine_create(&d->engine, dnnl_cpu, 0);
	if (!r) {
		r = dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags);
	}
	if (r) {
		onednn_free(d);
		return errno_of(r);
	}
	*ret = d;
	return 0;
}

void onednn_free(struct onednn *d)
{
	if (d) {
		if (d->stream) {
			dnnl_stream_destroy(d->stream);
		}
		if (d->engine) {
			dnnl_engine_destroy(d->engine);
		}
		free(d);
	}
}

void onednn_describe(char *text, size_t size)
{
	const dnnl_version_t *v = dnnl_version();
	snprintf(text, size, "oneDNN %d.%d.%d (isa %#x)", v->major, v->minor, v->patch,
		(unsigned)dnnl_get_effective_cpu_isa());
}

/* ---- layouts and memory -------------------------------------------------------------------- */

static int layout_new(struct onednn_layout **ret, enum dtype dtype, int64_t rows, int64_t cols,
	dnnl_format_tag_t tag)
{
	struct onednn_layout *l = calloc(1, sizeof(*l));
	if (!l) {
		return -ENOMEM;
	}
	const dnnl_dims_t dims = {rows, cols};
	dnnl_status_t r = layout_init(l, dims, type_of(dtype), tag);
	if (r) {
		free(l);
		return errno_of(r);
	}
	*ret = l;
	return 0;
}

int onednn_layout_plain(struct onednn_layout **ret, enum dtype dtype, int64_t rows, int64_t cols,
	bool transposed)
{
	return layout_new(ret, dtype, rows, cols, transposed ? dnnl_ba : dnnl_ab);
}

void onednn_layout_free(struct onednn_layout *l)
{
	if (l) {
		layout_deinit(l);
		free(l);
	}
}

size_t onednn_layout_bytes(const struct onednn_layout *l)
{
	return dnnl_memory_desc_get_size(layout_md(l));
}

int onednn_memory_new(struct onednn_memory **ret, struct onednn *d, const struct onednn_layout *l,
	void *data)
{
	struct onednn_memory *m = calloc(1, sizeof(*m));
	if (!m) {
		return -ENOMEM;
	}
	dnnl_status_t r = dnnl_memory_create(&m->memory, layout_md(l), d->engine, data);
	if (r) {
		free(m);
		return errno_of(r);
	}
	*ret = m;
	return 0;
}

void onednn_memory_free(struct onednn_memory *m)
{
	if (m) {
		dnnl_memory_destroy(m->memory);
		free(m);
	}
}

int onednn_reorder(struct onednn *d, const struct onednn_layout *dst_layout, void *dst,
	const struct onednn_layout *src_layout, const void *src)
{
	dnnl_primitive_desc_t desc = NULL;
	dnnl_primitive_t primitive = NULL;
	dnnl_memory_t from = NULL, to = NULL;

	dnnl_status_t r = dnnl_reorder_primitive_desc_create(&desc, layout_md(src_layout), d->engine,
		layout_md(dst_layout), d->engine, NULL);
	if (!r) {
		r = dnnl_primitive_create(&primitive, desc);
	}
	if (!r) { /* the library takes sources as mutable and leaves them alone */
		r = dnnl_memory_create(&from, layout_md(src_layout), d->engine, (void *)(uintptr_t)src);
	}
	if (!r) {
		r = dnnl_memory_create(&to, layout_md(dst_layout), d->engine, dst);
	}
	if (!r) {
		dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
		r = dnnl_primitive_execute(primitive, d->stream, 2, args);
	}
	if (!r) {
		r = dnnl_stream_wait(d->stream);
	}

	if (to) {
		dnnl_memory_destroy(to);
	}
	if (from) {
		dnnl_memory_destroy(from);
	}
	if (primitive) {
		dnnl_primitive_destroy(primitive);
	}
	if (desc) {
		dnnl_primitive_desc_destroy(desc);
	}
	return errno_of(r);
}

/* ---- products ------------------------------------------------------------------------------ */

static int attributes_new(dnnl_primitive_attr_t *ret, bool accumulate)
{
	dnnl_primitive_attr_t attr;
	dnnl_status_t r = dnnl_primitive_attr_create(&attr);
	if (r) {
		return errno_of(r);
	}
	r = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
	if (!r && accumulate) {
		dnnl_post_ops_t ops;
		r = dnnl_post_ops_create(&ops);
		if (!r) {
			r = append_sum(ops);
			if (!r) {
				r = dnnl_primitive_attr_set_post_ops(attr, ops);
			}
			dnnl_post_ops_destroy(ops);
		}
	}
	if (r) {
		dnnl_primitive_attr_destroy(attr);
		return errno_of(r);
	}
	*ret = attr;
	return 0;
}

/* weights NULL: any layout. */
static int matmul_desc_new(dnnl_primitive_desc_t *ret, struct onednn *d,
	const struct onednn_matmul_spec *spec, const struct onednn_layout *weights)
{
	struct onednn_layout *src = NULL, *dst = NULL, *bias = NULL, *any = NULL;
	dnnl_primitive_attr_t attr = NULL;

	int r = layout_new(&src, spec->src_dtype, spec->m, spec->k, dnnl_ab);
	if (!r) {
		r = layout_new(&dst, spec->dst_dtype, spec->m, spec->n, dnnl_ab);
	}
	if (!r && spec->bias) {
		r = layout_new(&bias, DTYPE_F32, 1, spec->n, dnnl_ab);
	}
	if (!r && !weights) {
		r = layout_new(&any, spec->src_dtype, spec->k, spec->n, dnnl_format_tag_any);
		weights = any;
	}
	if (!r) {
		r = attributes_new(&attr, spec->accumulate);
	}
	if (!r) {
		r = errno_of(matmul_desc(ret, d->engine, layout_md(src), layout_md(weights),
			bias ? layout_md(bias) : NULL, layout_md(dst), attr));
		dnnl_primitive_attr_destroy(attr);
	}
	onednn_layout_free(any);
	onednn_layout_free(bias);
	onednn_layout_free(dst);
	onednn_layout_free(src);
	return r;
}

int onednn_matmul_layout(struct onednn_layout **ret, struct onednn *d,
	const struct onednn_matmul_spec *spec)
{
	dnnl_primitive_desc_t desc;
	int r = matmul_desc_new(&desc, d, spec, NULL);
	if (r) {
		return r;
	}
	struct onednn_layout *l = calloc(1, sizeof(*l));
	r = -ENOMEM;
	if (l) {
		r = errno_of(layout_init_copy(l,
			dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0)));
	}
	dnnl_primitive_desc_destroy(desc);
	if (r) {
		free(l);
		return r;
	}
	*ret = l;
	return 0;
}

bool onednn_matmul_supported(struct onednn *d, const struct onednn_matmul_spec *spec,
	const struct onednn_layout *weights)
{
	dnnl_primitive_desc_t desc;
	if (matmul_desc_new(&desc, d, spec, weights)) {
		return false;
	}
	const char *name = NULL;
	dnnl_status_t r = dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name);
	bool fast = !r && name && strncmp(name, "ref", 3) != 0;
	dnnl_primitive_desc_destroy(desc);
	return fast;
}

int onednn_matmul_new(struct onednn_matmul **ret, struct onednn *d,
	const struct onednn_matmul_spec *spec, const struct onednn_layout *weights)
{
	struct onednn_matmul *p = calloc(1, sizeof(*p));
	if (!p) {
		return -ENOMEM;
	}
	dnnl_primitive_desc_t desc;
	int error = matmul_desc_new(&desc, d, spec, weights);
	if (error) {
		free(p);
		return error;
	}

	md_handle workspace = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
	p->workspace_bytes = dnnl_memory_desc_get_size(workspace);
	dnnl_status_t r = dnnl_primitive_create(&p->primitive, desc);
	if (!r) {
		r = dnnl_memory_create(&p->src, dnnl_primitive_desc_query_md(desc, dnnl_query_src_md, 0),
			d->engine, NULL);
	}
	if (!r) {
		r = dnnl_memory_create(&p->dst, dnnl_primitive_desc_query_md(desc, dnnl_query_dst_md, 0),
			d->engine, NULL);
	}
	if (!r && spec->bias) {
		r = dnnl_memory_create(&p->bias,
			dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 1), d->engine, NULL);
	}
	if (!r) {
		r = dnnl_memory_create(&p->workspace, workspace, d->engine, NULL);
	}
	dnnl_primitive_desc_destroy(desc);
	if (r) {
		onednn_matmul_free(p);
		return errno_of(r);
	}
	*ret = p;
	return 0;
}

void onednn_matmul_free(struct onednn_matmul *p)
{
	if (!p) {
		return;
	}
	dnnl_memory_t memories[] = {p->src, p->dst, p->bias, p->workspace};
	for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++) {
		if (memories[i]) {
			dnnl_memory_destroy(memories[i]);
		}
	}
	if (p->primitive) {
		dnnl_primitive_destroy(p->primitive);
	}
	free(p);
}

size_t onednn_matmul_workspace(const struct onednn_matmul *p)
{
	return p->workspace_bytes;
}

int onednn_matmul_run(struct onednn_matmul *p, struct onednn *d, void *dst, const void *src,
	const struct onednn_memory *weights, const float *bias, void *workspace)
{
	dnnl_exec_arg_t args[5] = {
		{DNNL_ARG_SRC, p->src},
		{DNNL_ARG_WEIGHTS, weights->memory},
		{DNNL_ARG_DST, p->dst},
		{DNNL_ARG_SCRATCHPAD, p->workspace},
		{DNNL_ARG_BIAS, p->bias},
	};
	dnnl_status_t r = dnnl_memory_set_data_handle(p->src, (void *)(uintptr_t)src);
	if (!r) {
		r = dnnl_memory_set_data_handle(p->dst, dst);
	}
	if (!r) {
		r = dnnl_memory_set_data_handle(p->workspace, workspace);
	}
	if (!r && p->bias) {
		r = dnnl_memory_set_data_handle(p->bias, (void *)(uintptr_t)bias);
	}
	if (!r) {
		r = dnnl_primitive_execute(p->primitive, d->stream, p->bias ? 5 : 4, args);
	}
	if (!r) {
		r = dnnl_stream_wait(d->stream);
	}
	return errno_of(r);
}
