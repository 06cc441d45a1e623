#include "client/sweep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/spec.h"
#include "proto/jobspec.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { MAX_AXES = 8 };

struct axis {
	char *key;     /* owned */
	char **values; /* owned */
	size_t n;
};

static void axis_deinit(struct axis *a)
{
	for (size_t i = 0; i < a->n; i++) {
		free(a->values[i]);
	}
	free(a->values);
	free(a->key);
}

struct axes {
	struct axis at[MAX_AXES];
	size_t n;
};

static void axes_deinit(struct axes *a)
{
	for (size_t i = 0; i < a->n; i++) {
		axis_deinit(&a->at[i]);
	}
}

void sweep_deinit(struct sweep *s)
{
	for (size_t i = 0; i < s->n; i++) {
		proto_free(s->jobs[i].spec);
		free(s->jobs[i].variant);
	}
	free(s->jobs);
	*s = (struct sweep){0};
}

/* ---- axes -------------------------------------------------------------------------------- */

/* Where a value ends: at a comma that is in no brackets, or behind the quotes around it. */
static size_t value_length(const char *s)
{
	int depth = 0;
	size_t n = strspn(s, " ");
	if (s[n] == '"' || s[n] == '\'') {
		const char *end = strchr(s + n + 1, s[n]);
		return end ? (size_t)(end - s) + 1 + strcspn(end + 1, ",") : strlen(s);
	}
	for (; s[n] && (s[n] != ',' || depth > 0); n++) {
		depth += s[n] == '[' || s[n] == '{';
		depth -= s[n] == ']' || s[n] == '}';
	}
	return n;
}

static int add_value(struct axis *a, const char *text, size_t len, struct errmsg *err)
{
	while (len > 0 && *text == ' ') {
		text++;
		len--;
	}
	while (len > 0 && text[len - 1] == ' ') {
		len--;
	}
	if (len > 0 && (*text == '"' || *text == '\'')) {
		if (len == 1 || text[len - 1] != *text || memchr(text + 1, *text, len - 2)) {
			return errmsg_set(err, STATUS_INVALID, "'%s' has the value %.*s, whose quotes do not go "
				"around it", a->key, (int)min_i64((int64_t)len, 64), text);
		}
		text++;
		len -= 2;
	}
	if (len == 0) {
		return errmsg_set(err, STATUS_INVALID, "'%s' has an empty value", a->key);
	}
	for (size_t i = 0; i < a->n; i++) {
		if (strlen(a->values[i]) == len && memcmp(a->values[i], text, len) == 0) {
			return errmsg_set(err, STATUS_INVALID, "'%s' has the value %s twice", a->key,
				a->values[i]);
		}
	}
	char **grown = realloc_array(a->values, a->n + 1, sizeof(*grown));
	if (!grown) {
		return -ENOMEM;
	}
	a->values = grown;
	a->values[a->n] = strndup(text, len);
	return a->values[a->n] ? (a->n++, 0) : -ENOMEM;
}

static int parse_axis(struct axis *a, const char *text, struct errmsg *err)
{
	const char *equals = strchr(text, '=');
	if (!equals || equals == text) {
		return errmsg_set(err, STATUS_INVALID, "'%.64s' is no KEY=VALUE,VALUE, as in lora.r=4,8,16",
			text);
	}
	a->key = strndup(text, (size_t)(equals - text));
	if (!a->key) {
		return -ENOMEM;
	}
	if (strcmp(a->key, "init_adapter") == 0) {
		return errmsg_set(err, STATUS_INVALID, "'init_adapter' is one for all jobs of a sweep");
	}
	for (const char *s = equals + 1;; s++) {
		size_t len = value_length(s);
		int r = add_value(a, s, len, err);
		if (r != 0) {
			return r;
		}
		s += len;
		if (!*s) {
			return 0;
		}
	}
}

static int parse_axes(struct axes *a, const struct texts *texts, size_t *ret_n, struct errmsg *err)
{
	size_t n = 1;
	if (texts->n > MAX_AXES) {
		return errmsg_set(err, STATUS_INVALID, "a sweep is over %d settings at most", MAX_AXES);
	}
	for (size_t i = 0; i < texts->n; i++) {
		struct axis *axis = &a->at[a->n++];
		int r = parse_axis(axis, texts->items[i], err);
		if (r != 0) {
			return r > 0 ? errmsg_prefix(err, r, "--sweep %.64s", texts->items[i]) : r;
		}
		for (size_t k = 0; k < i; k++) {
			if (strcmp(a->at[k].key, axis->key) == 0) {
				return errmsg_set(err, STATUS_INVALID, "--sweep %s is given twice", axis->key);
			}
		}
		if (__builtin_mul_overflow(n, axis->n, &n) || n > SWEEP_MAX) {
			return errmsg_set(err, STATUS_INVALID,
				"the sweep has more than %d combinations; that many jobs it may have", SWEEP_MAX);
		}
	}
	*ret_n = n;
	return 0;
}

/* ---- jobs -------------------------------------------------------------------------------- */

static int set_value(Peftd__V1__JobSpec *spec, struct buf *variant, const struct axis *a,
	const char *value, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf assignment = {0};
	if (buf_appendf(&assignment, "%s=%s", a->key, value) < 0 || !buf_cstr(&assignment) ||
		buf_appendf(variant, "%s%s=%s", variant->len > 0 ? " " : "", a->key, value) < 0) {
		return -ENOMEM;
	}
	int r = spec_assign(spec, (char *)assignment.data, err);
	return r > 0 ? errmsg_prefix(err, r, "--sweep %s", a->key) : r;
}

/* Of the methods that are swept over, the sections of the others stay behind. */
static void drop_swept_sections(Peftd__V1__JobSpec *spec, const struct axis *a, size_t chosen)
{
	for (size_t i = 0; i < a->n; i++) {
		const ProtobufCFieldDescriptor *f = spec_field(spec->base.descriptor, a->values[i]);
		if (i != chosen && f && jobspec_is_method(f)) {
			spec_clear(&spec->base, f);
		}
	}
}

static int make_job(struct sweep_job *job, const Peftd__V1__JobSpec *base, const struct axes *a,
	size_t index, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf variant = {0};
	size_t at[MAX_AXES];
	for (size_t i = a->n; i-- > 0; index /= a->at[i].n) {
		at[i] = index % a->at[i].n;
	}
	job->spec = proto_copy(base);
	int r = job->spec ? 0 : -ENOMEM;
	for (size_t i = 0; i < a->n && r == 0; i++) {
		if (strcmp(a->at[i].key, "method") == 0) {
			drop_swept_sections(job->spec, &a->at[i], at[i]);
		}
	}
	for (size_t i = 0; i < a->n && r == 0; i++) {
		r = set_value(job->spec, &variant, &a->at[i], a->at[i].values[at[i]], err);
	}
	if (r == 0) {
		r = jobspec_complete(&job->spec->base, err);
		r = r > 0 && a->n > 0 ? errmsg_prefix(err, r, "%.*s", (int)variant.len,
			(const char *)variant.data) : r;
	}
	if (r == 0) {
		job->variant = buf_cstr(&variant) ? buf_steal(&variant, NULL) : NULL;
		r = job->variant ? 0 : -ENOMEM;
	}
	return r;
}

/* Two ways of writing one value (1e-3, 0.001) make one job twice. */
static int check_different(const struct sweep *s, struct errmsg *err)
{
	struct packed {
		uint8_t *data;
		size_t len;
	} *packed = calloc_array(s->n, sizeof(*packed));
	int r = packed ? 0 : -ENOMEM;
	for (size_t i = 0; i < s->n && r == 0; i++) {
		packed[i].data = proto_pack(s->jobs[i].spec, &packed[i].len);
		r = packed[i].data ? 0 : -ENOMEM;
		for (size_t k = 0; k < i && r == 0; k++) {
			if (packed[k].len == packed[i].len &&
					memcmp(packed[k].data, packed[i].data, packed[i].len) == 0) {
				r = errmsg_set(err, STATUS_INVALID, "--sweep: %s and %s are the same job",
					s->jobs[k].variant, s->jobs[i].variant);
			}
		}
	}
	for (size_t i = 0; packed && i < s->n; i++) {
		free(packed[i].data);
	}
	free(packed);
	return r;
}

int sweep_expand(struct sweep *ret, const Peftd__V1__JobSpec *base, const struct texts *texts,
	struct errmsg *err)
{
	_cleanup_(axes_deinit) struct axes a = {0};
	_cleanup_(sweep_deinit) struct sweep s = {0};
	size_t n = 1;
	int r = parse_axes(&a, texts, &n, err);
	if (r != 0) {
		return r;
	}
	s.jobs = calloc_array(n, sizeof(*s.jobs));
	if (!s.jobs) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n && r == 0; i++) {
		r = make_job(&s.jobs[s.n++], base, &a, i, err);
	}
	r = r ? r : check_different(&s, err);
	if (r == 0) {
		*ret = s;
		s = (struct sweep){0};
	}
	return r;
}

/* ---- operands ---------------------------------------------------------------------------- */

int ctl_target_operand(struct ctl *ctl, const char *text, struct target *ret)
{
	uint64_t id;
	bool sweep = text[0] == 's';
	if (args_job(text + sweep, &id)) {
		*ret = (struct target){sweep, id};
		return 0;
	}
	return ctl_usage(ctl, "'%s' is no job and no sweep: jobs are named by the number that submit "
		"printed, sweeps by an s and a number, as s7; 'peftctl list' shows them", text);
}

void job_list_deinit(struct job_list *l)
{
	for (size_t i = 0; i < l->n; i++) {
		proto_free(l->jobs[i]);
	}
	free(l->jobs);
	*l = (struct job_list){0};
}

/* Takes the job, unless it is there already. */
static int list_add(struct job_list *l, Peftd__V1__Job *job)
{
	for (size_t i = 0; i < l->n; i++) {
		if (l->jobs[i]->id == job->id) {
			proto_free(job);
			return 0;
		}
	}
	Peftd__V1__Job **grown = realloc_array(l->jobs, l->n + 1, sizeof(*grown));
	if (!grown) {
		proto_free(job);
		return -ENOMEM;
	}
	grown[l->n++] = job;
	l->jobs = grown;
	return 0;
}

static int take_jobs(struct job_list *l, const Peftd__V1__JobListReply *reply)
{
	int r = 0;
	for (size_t i = 0; i < reply->n_jobs && r == 0; i++) {
		Peftd__V1__Job *copy = proto_copy(reply->jobs[i]);
		r = copy ? list_add(l, copy) : -ENOMEM;
	}
	return r;
}

static int read_list(struct client *c, const Peftd__V1__Request *req, struct job_list *l,
	struct errmsg *err)
{
	struct call *call = NULL;
	int r = client_start(c, req, NULL, 0, 0, &call, err);
	while (r == 0 && !call_finished(call)) {
		struct answer a = {0};
		r = client_next(c, call, CLIENT_QUICK_MS, &a, err);
		if (r == 0 && a.reply->what_case == PEFTD__V1__REPLY__WHAT_JOB_LIST) {
			r = take_jobs(l, a.reply->job_list);
		}
		answer_deinit(&a);
	}
	if (r == -ETIMEDOUT) {
		r = errmsg_set(err, STATUS_UNAVAILABLE, "the daemon does not answer; see its log");
	}
	client_end(c, call);
	return r;
}

int ctl_list_jobs(struct ctl *ctl, const Peftd__V1__JobListRequest *ask, struct job_list *ret)
{
	uint8_t id[REQUEST_ID_SIZE];
	struct errmsg err = {0};
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	client_make_id(id);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_JOB_LIST;
	req.job_list = (Peftd__V1__JobListRequest *)ask;
	int r = read_list(c, &req, ret, &err);
	return r == 0 ? 0 : ctl_fail(ctl, r, &err);
}

static int add_one(struct ctl *ctl, uint64_t id, struct job_list *ret)
{
	Peftd__V1__Job *job = malloc(sizeof(*job));
	if (!job) {
		return ctl_fail(ctl, -ENOMEM, NULL);
	}
	peftd__v1__job__init(job);
	job->id = id;
	return list_add(ret, job) == 0 ? 0 : ctl_fail(ctl, -ENOMEM, NULL);
}

int ctl_target_jobs(struct ctl *ctl, const struct texts *operands, struct job_list *ret)
{
	int status = 0;
	for (size_t i = 0; i < operands->n && status == 0; i++) {
		struct target t;
		status = ctl_target_operand(ctl, operands->items[i], &t);
		if (status != 0) {
			return status;
		}
		if (t.sweep) {
			Peftd__V1__JobListRequest ask = PEFTD__V1__JOB_LIST_REQUEST__INIT;
			ask.has_sweep = true;
			ask.sweep = t.id;
			status = ctl_list_jobs(ctl, &ask, ret);
		} else {
			status = add_one(ctl, t.id, ret);
		}
	}
	return status;
}
