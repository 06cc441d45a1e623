/* Parts that several converters need. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/util.h"

void scratch_deinit(struct scratch *s)
{
	for (size_t i = 0; i < s->n_blocks; i++) {
		free(s->blocks[i]);
	}
	for (size_t i = 0; i < s->n_messages; i++) {
		proto_free(s->messages[i]);
	}
	free(s->blocks);
	free(s->messages);
}

static bool keep(void ***list, size_t *n, size_t *cap, void *p)
{
	if (*n == *cap) {
		size_t more = *cap ? 2 * *cap : 32;
		void **grown = realloc_array(*list, more, sizeof(void *));
		if (!grown) {
			return false;
		}
		*list = grown;
		*cap = more;
	}
	(*list)[(*n)++] = p;
	return true;
}

void *scratch_alloc(struct scratch *s, size_t n, size_t size)
{
	void *p = s->failed ? NULL : calloc_array(n, size);
	if (!p || !keep(&s->blocks, &s->n_blocks, &s->cap_blocks, p)) {
		free(p);
		s->failed = true;
		return NULL;
	}
	return p;
}

void *scratch_unpack(
	struct scratch *s, const ProtobufCMessageDescriptor *desc, const struct packed *p)
{
	void *msg = s->failed ? NULL : proto_unpack(desc, p->data, p->len, LINK_FRAME_MAX, NULL);
	if (!msg || !keep(&s->messages, &s->n_messages, &s->cap_messages, msg)) {
		proto_free(msg);
		s->failed = true;
		return NULL;
	}
	return msg;
}

int pack_message(const void *msg, struct packed *ret)
{
	size_t len;
	uint8_t *data = proto_pack(msg, &len);
	if (!data) {
		return -ENOMEM;
	}
	*ret = (struct packed){data, len};
	return 0;
}

int scratch_pack(struct scratch *s, const void *msg, struct packed *ret)
{
	return s->failed || !msg ? -ENOMEM : pack_message(msg, ret);
}

ProtobufCBinaryData bytes_of(const void *data, size_t len)
{
	return (ProtobufCBinaryData){len, (uint8_t *)data};
}

int take_text(
	bool has, const ProtobufCBinaryData *b, const char *what, char **ret, struct errmsg *err)
{
	*ret = NULL;
	return has && b->len > 0 ? proto_str(b, what, ret, err) : 0;
}

char *clean_text(const void *data, size_t len)
{
	char *s = malloc(len + 1);
	if (!s) {
		return NULL;
	}
	memcpy(s, data, len);
	s[len] = '\0';
	size_t bad;
	for (size_t from = 0; !utf8_valid(s + from, len - from, &bad); from += bad + 1) {
		s[from + bad] = '?';
	}
	for (char *nul = s; (nul = memchr(nul, 0, len - (size_t)(nul - s)));) {
		*nul = '?';
	}
	return s;
}

int take_files(
	const Peftd__V1__Blob *blob, const char *what, struct store_files *ret, struct errmsg *err)
{
	enum { MAX_FILES = 1024 };
	if (blob->digest.len != DIGEST_SIZE) {
		return errmsg_set(err, STATUS_INVALID, "%s: a digest has %d bytes, not %zu", what,
			DIGEST_SIZE, blob->digest.len);
	}
	if (blob->size == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: empty", what);
	}
	if (blob->n_files > MAX_FILES) {
		return errmsg_set(err, STATUS_INVALID, "%s: %zu files, at most %d are allowed", what,
			blob->n_files, MAX_FILES);
	}
	struct store_files f = {.size = blob->size};
	memcpy(f.digest, blob->digest.data, DIGEST_SIZE);
	f.files = calloc_array(blob->n_files, sizeof(*f.files));
	if (!f.files) {
		return -ENOMEM;
	}
	uint64_t sum = 0;
	int r = 0;
	for (size_t i = 0; i < blob->n_files && r == 0; i++) {
		const Peftd__V1__File *file = blob->files[i];
		f.files[i].size = file->size;
		r = proto_name(&file->name, what, &f.files[i].name, err);
		f.n++;
		if (r == 0 && __builtin_add_overflow(sum, file->size, &sum)) {
			r = errmsg_set(err, STATUS_INVALID, "%s: sizes overflow", what);
		}
	}
	if (r == 0 && f.n > 0 && sum != f.size) {
		r = errmsg_set(err, STATUS_INVALID, "%s: its files have %llu bytes in all, but it has %llu",
			what, (unsigned long long)sum, (unsigned long long)f.size);
	}
	if (r != 0) {
		store_files_deinit(&f);
		return r;
	}
	*ret = f;
	return 0;
}

Peftd__V1__Blob *build_blob(struct scratch *s, const struct store_files *f)
{
	Peftd__V1__Blob *b = scratch_message(s, Peftd__V1__Blob, PEFTD__V1__BLOB__INIT);
	Peftd__V1__File **list = scratch_alloc(s, f->n, sizeof(*list));
	Peftd__V1__File *files = scratch_alloc(s, f->n, sizeof(*files));
	if (!b || !list || !files) {
		return NULL;
	}
	for (size_t i = 0; i < f->n; i++) {
		files[i] = (Peftd__V1__File)PEFTD__V1__FILE__INIT;
		files[i].name = proto_bytes(f->files[i].name);
		files[i].size = f->files[i].size;
		list[i] = &files[i];
	}
	b->digest = bytes_of(f->digest, DIGEST_SIZE);
	b->size = f->size;
	b->n_files = f->n;
	b->files = list;
	return b;
}

int convert_event(struct packed *ret, const struct job_event *e, uint64_t seq, uint64_t wall_ns)
{
	Peftd__V1__Event ev = PEFTD__V1__EVENT__INIT;
	Peftd__V1__StateEvent state = PEFTD__V1__STATE_EVENT__INIT;
	Peftd__V1__MetricsEvent metrics = PEFTD__V1__METRICS_EVENT__INIT;
	Peftd__V1__EvalEvent eval = PEFTD__V1__EVAL_EVENT__INIT;
	Peftd__V1__LogEvent log = PEFTD__V1__LOG_EVENT__INIT;
	Peftd__V1__CheckpointEvent checkpoint = PEFTD__V1__CHECKPOINT_EVENT__INIT;

	set_value(&ev, seq, seq);
	set_value(&ev, wall_ns, wall_ns);
	switch (e->kind) {
	case EVENT_STATE:
		state.state = (Peftd__V1__JobState)e->state;
		set_text(&state, reason, e->text);
		set_value(&state, attempt, e->attempt);
		ev.what_case = PEFTD__V1__EVENT__WHAT_STATE;
		ev.state = &state;
		break;
	case EVENT_METRICS:
		metrics.step = e->step;
		set_value(&metrics, loss, e->loss);
		set_value(&metrics, lr, e->lr);
		set_value(&metrics, grad_norm, e->grad_norm);
		set_value(&metrics, tokens, e->tokens);
		set_value(&metrics, target_tokens, e->target_tokens);
		set_value(&metrics, seconds, e->seconds);
		ev.what_case = PEFTD__V1__EVENT__WHAT_METRICS;
		ev.metrics = &metrics;
		break;
	case EVENT_EVAL:
		eval.step = e->step;
		set_value(&eval, eval_loss, e->loss);
		set_value(&eval, target_tokens, e->target_tokens);
		set_value(&eval, seconds, e->seconds);
		ev.what_case = PEFTD__V1__EVENT__WHAT_EVAL;
		ev.eval = &eval;
		break;
	case EVENT_LOG:
		set_text(&log, level, e->level);
		set_text(&log, text, e->text);
		ev.what_case = PEFTD__V1__EVENT__WHAT_LOG;
		ev.log = &log;
		break;
	case EVENT_CHECKPOINT:
		checkpoint.step = e->step;
		set_value(&checkpoint, size, e->size);
		set_value(&checkpoint, final, e->final);
		ev.what_case = PEFTD__V1__EVENT__WHAT_CHECKPOINT;
		ev.checkpoint = &checkpoint;
		break;
	}
	return pack_message(&ev, ret);
}

double convert_step_seconds(const void *event, size_t len)
{
	_cleanup_(proto_freep) void *p =
		proto_unpack(&peftd__v1__event__descriptor, event, len, LINK_FRAME_MAX, NULL);
	const Peftd__V1__Event *e = p;
	bool metrics = e && e->what_case == PEFTD__V1__EVENT__WHAT_METRICS;
	return metrics && e->metrics->has_seconds ? e->metrics->seconds : 0;
}

int convert_plan_decide(struct packed *plan, const char *decision, const char *reason)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Plan *p = scratch_unpack(&s, &peftd__v1__plan__descriptor, plan);
	if (!p) {
		return -ENOMEM;
	}
	/* A shallow copy: the fields set here borrow, and must not be freed with the message. */
	Peftd__V1__Plan decided = *p;
	decided.has_decision = decided.has_reason = false;
	set_text(&decided, decision, decision);
	set_text(&decided, reason, reason);
	struct packed packed;
	int r = pack_message(&decided, &packed);
	if (r == 0) {
		packed_deinit(plan);
		*plan = packed;
	}
	return r;
}

int convert_model_name(struct packed *model, const char *name, const char *path, uint64_t wall_ns)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Model *m = scratch_unpack(&s, &peftd__v1__model__descriptor, model);
	if (!m) {
		return -ENOMEM;
	}
	Peftd__V1__Model named = *m;
	named.name = proto_bytes(name);
	set_text(&named, path, path);
	set_value(&named, added_wall_ns, wall_ns);
	struct packed packed;
	int r = pack_message(&named, &packed);
	if (r == 0) {
		packed_deinit(model);
		*model = packed;
	}
	return r;
}
