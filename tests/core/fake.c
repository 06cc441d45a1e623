#include "tests/core/fake.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "util/util.h"

static const char config_name[] = "adapter_config.json",
				  weights_name[] = "adapter_model.safetensors",
				  state_name[] = "peftd_state.safetensors";

int fake_init(struct fake *f, int fd, bool inspect)
{
	*f = (struct fake){.inspect = inspect};
	return link_new(&f->link, fd);
}

static void task_deinit(struct fake_task *t)
{
	proto_free(t->task);
	for (int i = 0; i < FAKE_INPUTS; i++) {
		free(t->inputs[i].data);
	}
	buf_deinit(&t->ckpt_data);
	*t = (struct fake_task){0};
}

void fake_deinit(struct fake *f)
{
	for (int i = 0; i < FAKE_TASKS; i++) {
		task_deinit(&f->tasks[i]);
	}
	link_free(f->link);
	*f = (struct fake){0};
}

int fake_send_mangled(int fd, void (*mangle)(void *ctx, uint8_t *data, size_t len), void *ctx,
	const void *msg, const void *raw, size_t raw_len)
{
	size_t len;
	uint8_t *packed = proto_pack(msg, &len);
	uint8_t *frame = packed ? malloc(4 + len + raw_len) : NULL;
	if (!frame) {
		free(packed);
		return -ENOMEM;
	}
	mangle(ctx, packed, len);
	le32_write(frame, (uint32_t)len);
	memcpy(frame + 4, packed, len);
	if (raw_len > 0) {
		memcpy(frame + 4 + len, raw, raw_len);
	}
	/* What does not fit now is lost: that is a fault, too. */
	ssize_t n = send(fd, frame, 4 + len + raw_len, MSG_NOSIGNAL | MSG_DONTWAIT);
	free(frame);
	free(packed);
	return n < 0 && errno != EAGAIN ? -errno : 0;
}

static void say(struct fake *f, const Peftd__V1__TrainerToCore *m, const void *raw, size_t raw_len)
{
	int r = f->mangle
		? fake_send_mangled(link_fd(f->link), f->mangle, f->mangle_ctx, m, raw, raw_len)
		: link_send(f->link, m, raw, raw_len);
	if (r < 0 && f->failed == 0) {
		f->failed = r;
	}
}

#define MESSAGE(name, CASE, field, body)                                                           \
	Peftd__V1__TrainerToCore name = PEFTD__V1__TRAINER_TO_CORE__INIT;                              \
	name.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_##CASE;                                      \
	name.field = body

/* ---- hearing ------------------------------------------------------------------------------- */

static struct fake_task *find(struct fake *f, uint64_t id)
{
	for (int i = 0; i < FAKE_TASKS; i++) {
		if (f->tasks[i].task && f->tasks[i].task->task == id) {
			return &f->tasks[i];
		}
	}
	return NULL;
}

static void hear_task(struct fake *f, const Peftd__V1__Task *m)
{
	for (int i = 0; i < FAKE_TASKS; i++) {
		struct fake_task *t = &f->tasks[i];
		if (t->task) {
			continue;
		}
		t->task = proto_copy(m);
		f->seen_tasks[f->n_seen++ % 64] = m->task;
		if (m->n_inputs > FAKE_INPUTS) {
			f->failed = -EPROTO;
		}
		for (size_t k = 0; k < m->n_inputs && k < FAKE_INPUTS; k++) {
			t->inputs[k].size = m->inputs[k]->size;
			memcpy(t->inputs[k].digest, m->inputs[k]->digest.data, 32);
		}
		return;
	}
	f->failed = -EPROTO; /* more at once than the core may send */
}

static void hear_chunk(struct fake *f, const Peftd__V1__Chunk *m, const void *raw, size_t len)
{
	struct fake_task *t = find(f, m->task);
	if (!t) {
		return;
	}
	struct fake_input *in = &t->inputs[m->input];
	uint64_t left = in->size - in->received;
	if (!in->wanted || m->offset != in->received ||
		len != (left < CHUNK_SIZE ? left : CHUNK_SIZE) || in->received + len > in->pulled) {
		f->failed = -EPROTO;
		return;
	}
	memcpy(in->data + in->received, raw, len);
	in->received += len;
}

static void hear(struct fake *f, const Peftd__V1__CoreToTrainer *m, const void *raw, size_t len)
{
	struct fake_task *t;
	switch (m->what_case) {
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CONFIG:
		f->configured = m->config->version == LINK_VERSION;
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_TASK:
		if (!f->ready) {
			f->failed = -EPROTO;
		}
		hear_task(f, m->task);
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CHUNK:
		hear_chunk(f, m->chunk, raw, len);
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CANCEL:
		if ((t = find(f, m->cancel->task))) {
			t->cancelled = t->cancelled || !m->cancel->checkpoint_first;
			t->stop = t->stop || m->cancel->checkpoint_first;
		}
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_CREDIT:
		if ((t = find(f, m->checkpoint_credit->task))) {
			t->ckpt_credit += m->checkpoint_credit->chunks;
		}
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_DONE:
		t = find(f, m->checkpoint_done->task);
		if (t && t->ckpt != CKPT_NONE && t->ckpt_step == m->checkpoint_done->step) {
			t->ckpt = CKPT_DONE;
			t->ckpt_status = (int)m->checkpoint_done->status->code;
		}
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_SHUTDOWN:
		f->shutdown = true;
		break;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_OUTPUT_CREDIT:
		if ((t = find(f, m->output_credit->task))) {
			t->output_credit += m->output_credit->outputs;
		}
		break;
	default:
		f->failed = -EPROTO;
	}
}

bool fake_listen(struct fake *f)
{
	for (;;) {
		void *msg;
		const void *raw;
		size_t len;
		struct errmsg err;
		int r = link_recv(f->link, &peftd__v1__core_to_trainer__descriptor, &msg, &raw, &len, &err);
		if (r == 0) {
			return f->failed == 0;
		}
		if (r < 0) {
			f->failed = r;
			return false;
		}
		hear(f, msg, raw, len);
		proto_free(msg);
	}
}

/* ---- pretending ---------------------------------------------------------------------------- */

void fake_advance(uint8_t state[FAKE_STATE], uint64_t step)
{
	uint8_t both[FAKE_STATE + 8];
	memcpy(both, state, FAKE_STATE);
	le64_write(both + FAKE_STATE, step);
	crypto_generichash(state, FAKE_STATE, both, sizeof(both), NULL, 0);
}

void fake_chain(const Peftd__V1__JobSpec *spec, const uint8_t data_digest[32], uint64_t step,
	uint8_t ret[FAKE_STATE])
{
	/* Not of the whole spec: name and priority must make no difference. */
	uint64_t seed = spec->train->seed;
	crypto_generichash_state s;
	crypto_generichash_init(&s, NULL, 0, FAKE_STATE);
	crypto_generichash_update(&s, (const uint8_t *)&seed, sizeof(seed));
	crypto_generichash_update(&s, data_digest, 32);
	crypto_generichash_final(&s, ret, FAKE_STATE);
	for (uint64_t i = 1; i <= step; i++) {
		fake_advance(ret, i);
	}
}

double fake_loss(const uint8_t state[FAKE_STATE], uint64_t step)
{
	return (double)le32_read(state) / 4294967296.0 + 1.0 / (double)(step + 1);
}

static int build_checkpoint(struct buf *b, const Peftd__V1__JobSpec *spec,
	const uint8_t state[FAKE_STATE], uint64_t step, size_t sizes[3])
{
	/* Some are several chunks long, some end exactly at a chunk's end. */
	size_t big = spec->train->seed % 4 == 3 ? 2 * CHUNK_SIZE + 4321
		: spec->train->seed % 4 == 2        ? CHUNK_SIZE - 64 - FAKE_STATE - 8
											: 999;
	sizes[0] = 64;
	sizes[1] = big;
	sizes[2] = FAKE_STATE + 8;
	b->len = 0;
	if (buf_reserve(b, sizes[0] + sizes[1] + sizes[2]) < 0) {
		return -ENOMEM;
	}
	memset(b->data, ' ', sizes[0]);
	memcpy(b->data, "{\"peft_type\": \"LORA\"}", 21);
	for (size_t i = 0; i < sizes[1]; i++) {
		b->data[sizes[0] + i] = (uint8_t)(state[i % FAKE_STATE] + i / FAKE_STATE);
	}
	memcpy(b->data + sizes[0] + sizes[1], state, FAKE_STATE);
	le64_write(b->data + sizes[0] + sizes[1] + FAKE_STATE, step);
	b->len = sizes[0] + sizes[1] + sizes[2];
	return 0;
}

void fake_checkpoint_digest(
	const Peftd__V1__JobSpec *spec, const uint8_t data_digest[32], uint64_t step, uint8_t ret[32])
{
	uint8_t state[FAKE_STATE];
	size_t sizes[3];
	struct buf b = {0};
	fake_chain(spec, data_digest, step, state);
	if (build_checkpoint(&b, spec, state, step, sizes) == 0) {
		crypto_generichash(ret, 32, b.data, b.len, NULL, 0);
	}
	buf_deinit(&b);
}

static void result(
	struct fake *f, struct fake_task *t, int code, const char *text, Peftd__V1__TaskResult *filled)
{
	Peftd__V1__TaskResult empty = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__TaskResult *r = filled ? filled : &empty;
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	status.code = (uint32_t)code;
	if (text) {
		status.has_message = true;
		status.message = proto_bytes(text);
	}
	r->task = t->task->task;
	r->status = &status;
	MESSAGE(m, RESULT, result, r);
	say(f, &m, NULL, 0);
	task_deinit(t);
}

/* True when all of the input is here; otherwise pulls, and says whether that was something to do.
 */
static bool have_input(struct fake *f, struct fake_task *t, uint32_t index, bool *ret_busy)
{
	struct fake_input *in = &t->inputs[index];
	*ret_busy = true;
	if (!in->wanted) {
		in->wanted = true;
		in->data = malloc((size_t)in->size);
		if (!in->data) {
			f->failed = -ENOMEM;
			return false;
		}
	}
	if (in->received == in->size) {
		return true;
	}
	uint64_t total = (in->size + CHUNK_SIZE - 1) / CHUNK_SIZE;
	uint64_t asked = (in->pulled + CHUNK_SIZE - 1) / CHUNK_SIZE;
	if (in->pulled >= in->size || in->pulled - in->received > 4 * (uint64_t)CHUNK_SIZE) {
		*ret_busy = false;
		return false;
	}
	Peftd__V1__Pull pull = PEFTD__V1__PULL__INIT;
	pull.task = t->task->task;
	pull.input = index;
	pull.offset = asked * CHUNK_SIZE;
	pull.chunks = (uint32_t)(total - asked < 3 ? total - asked : 3);
	in->pulled = (asked + pull.chunks) * CHUNK_SIZE;
	MESSAGE(m, PULL, pull, &pull);
	say(f, &m, NULL, 0);
	return false;
}

static bool input_sound(const struct fake_input *in)
{
	uint8_t digest[32];
	crypto_generichash(digest, 32, in->data, (size_t)in->size, NULL, 0);
	return memcmp(digest, in->digest, 32) == 0;
}

static void send_event(struct fake *f, const struct fake_task *t, Peftd__V1__Event *e)
{
	Peftd__V1__TaskEvent ev = PEFTD__V1__TASK_EVENT__INIT;
	ev.task = t->task->task;
	ev.event = e;
	ev.has_arena_bytes = true;
	ev.arena_bytes = 4096;
	ev.has_peak_rss = true;
	ev.peak_rss = 1000000;
	Peftd__V1__Measured measured = PEFTD__V1__MEASURED__INIT;
	bool running = e->what_case == PEFTD__V1__EVENT__WHAT_STATE &&
		e->state->state == PEFTD__V1__JOB_STATE__JOB_RUNNING;
	measured.has_arena = measured.has_gradients = true;
	measured.arena = 4096;
	measured.gradients = 1024;
	ev.measured = running ? &measured : NULL;
	MESSAGE(m, EVENT, event, &ev);
	say(f, &m, NULL, 0);
}

static void send_state(struct fake *f, const struct fake_task *t, Peftd__V1__JobState state)
{
	Peftd__V1__Event e = PEFTD__V1__EVENT__INIT;
	Peftd__V1__StateEvent s = PEFTD__V1__STATE_EVENT__INIT;
	s.state = state;
	e.what_case = PEFTD__V1__EVENT__WHAT_STATE;
	e.state = &s;
	send_event(f, t, &e);
}

static void send_metrics(struct fake *f, const struct fake_task *t)
{
	Peftd__V1__Event e = PEFTD__V1__EVENT__INIT;
	Peftd__V1__MetricsEvent x = PEFTD__V1__METRICS_EVENT__INIT;
	x.step = t->step;
	x.has_loss = x.has_tokens = x.has_seconds = true;
	x.loss = fake_loss(t->state, t->step);
	x.tokens = 100;
	x.seconds = fake_seconds(t->step);
	e.what_case = PEFTD__V1__EVENT__WHAT_METRICS;
	e.metrics = &x;
	send_event(f, t, &e);
}

static void send_eval(struct fake *f, struct fake_task *t)
{
	Peftd__V1__Event e = PEFTD__V1__EVENT__INIT;
	Peftd__V1__EvalEvent x = PEFTD__V1__EVAL_EVENT__INIT;
	t->last_eval = fake_loss(t->state, t->step) / 2;
	x.step = t->step;
	x.has_eval_loss = true;
	x.eval_loss = t->last_eval;
	e.what_case = PEFTD__V1__EVENT__WHAT_EVAL;
	e.eval = &x;
	send_event(f, t, &e);
}

static void begin_checkpoint(struct fake *f, struct fake_task *t, bool final)
{
	size_t sizes[3];
	if (build_checkpoint(&t->ckpt_data, t->task->train->spec, t->state, t->step, sizes) < 0) {
		f->failed = -ENOMEM;
		return;
	}
	const char *const names[3] = {config_name, weights_name, state_name};
	Peftd__V1__File files[3], *list[3];
	for (int i = 0; i < 3; i++) {
		files[i] = (Peftd__V1__File)PEFTD__V1__FILE__INIT;
		files[i].name = proto_bytes(names[i]);
		files[i].size = sizes[i];
		list[i] = &files[i];
	}
	uint8_t digest[32];
	crypto_generichash(digest, 32, t->ckpt_data.data, t->ckpt_data.len, NULL, 0);
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	blob.digest = (ProtobufCBinaryData){32, digest};
	blob.size = t->ckpt_data.len;
	blob.n_files = 3;
	blob.files = list;
	Peftd__V1__CheckpointBegin b = PEFTD__V1__CHECKPOINT_BEGIN__INIT;
	b.task = t->task->task;
	b.step = t->step;
	b.blob = &blob;
	b.has_eval_loss = t->last_eval != 0;
	b.eval_loss = t->last_eval;
	b.has_final = true;
	b.final = final;
	MESSAGE(m, CHECKPOINT_BEGIN, checkpoint_begin, &b);
	say(f, &m, NULL, 0);
	t->ckpt = CKPT_SENDING;
	t->ckpt_step = t->step;
	t->ckpt_sent = 0;
	t->ckpt_credit = 0;
	t->ckpt_final = final;
}

static bool go_on_with_checkpoint(struct fake *f, struct fake_task *t)
{
	if (t->ckpt != CKPT_SENDING) {
		return false;
	}
	if (t->ckpt_sent == t->ckpt_data.len) {
		Peftd__V1__CheckpointEnd end = PEFTD__V1__CHECKPOINT_END__INIT;
		end.task = t->task->task;
		MESSAGE(m, CHECKPOINT_END, checkpoint_end, &end);
		say(f, &m, NULL, 0);
		t->ckpt = CKPT_ENDED;
		return true;
	}
	if (t->ckpt_credit == 0) {
		return false;
	}
	size_t left = t->ckpt_data.len - t->ckpt_sent, len = left < CHUNK_SIZE ? left : CHUNK_SIZE;
	Peftd__V1__CheckpointChunk c = PEFTD__V1__CHECKPOINT_CHUNK__INIT;
	c.task = t->task->task;
	c.offset = t->ckpt_sent;
	MESSAGE(m, CHECKPOINT_CHUNK, checkpoint_chunk, &c);
	say(f, &m, t->ckpt_data.data + t->ckpt_sent, len);
	t->ckpt_sent += len;
	t->ckpt_credit--;
	return true;
}

/* Restores the state from the resume checkpoint, and checks that it is what it must be. */
static bool restore(struct fake *f, struct fake_task *t)
{
	const Peftd__V1__TrainTask *train = t->task->train;
	const uint8_t *data_digest = t->inputs[train->dataset->input].digest;
	fake_chain(train->spec, data_digest, 0, t->state);
	if (!train->has_resume_checkpoint) {
		return true;
	}
	const struct fake_input *in = &t->inputs[train->resume_checkpoint];
	uint8_t want[FAKE_STATE];
	fake_chain(train->spec, data_digest, train->resume_step, want);
	if (!input_sound(in) || in->size < FAKE_STATE + 8 ||
		memcmp(in->data + in->size - FAKE_STATE - 8, want, FAKE_STATE) != 0 ||
		le64_read(in->data + in->size - 8) != train->resume_step) {
		result(f, t, STATUS_INVALID, "the checkpoint is not what it should be", NULL);
		return false;
	}
	memcpy(t->state, want, FAKE_STATE);
	t->step = train->resume_step;
	return true;
}

static bool start_training(struct fake *f, struct fake_task *t)
{
	const Peftd__V1__TrainTask *train = t->task->train;
	bool busy, any = false;
	for (uint32_t i = 0; i < t->task->n_inputs; i++) {
		bool have = have_input(f, t, i, &busy);
		if (!have) {
			return busy || any;
		}
		if (!input_sound(&t->inputs[i])) {
			result(f, t, STATUS_INVALID, "an input's digest differs", NULL);
			return true;
		}
	}
	t->started = true;
	t->steps = train->spec->train->max_steps;
	t->save_steps = train->spec->train->save_steps;
	t->eval_steps = train->eval_dataset ? train->spec->train->eval_steps : 0;
	if (restore(f, t)) {
		send_state(f, t, PEFTD__V1__JOB_STATE__JOB_RUNNING);
	}
	return true;
}

static void one_step(struct fake *f, struct fake_task *t)
{
	uint64_t i = t->step + 1;
	fake_advance(t->state, i);
	t->step = i;
	send_metrics(f, t);
	if (t->eval_steps && t->step % t->eval_steps == 0) {
		send_eval(f, t);
	}
	if (t->step < t->steps && t->save_steps && t->step % t->save_steps == 0) {
		begin_checkpoint(f, t, false);
	}
}

static void end_training(struct fake *f, struct fake_task *t)
{
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__TrainResult train = PEFTD__V1__TRAIN_RESULT__INIT;
	Peftd__V1__InferenceTimes times = PEFTD__V1__INFERENCE_TIMES__INIT;
	times.has_tokens = times.has_passes = true;
	times.has_base_seconds = times.has_unmerged_seconds = true;
	times.tokens = 32;
	times.passes = 5;
	times.base_seconds = 0.25;
	times.unmerged_seconds = 0.5;
	train.inference = &times;
	train.has_steps = true;
	train.steps = t->step;
	r.what_case = PEFTD__V1__TASK_RESULT__WHAT_TRAIN;
	r.train = &train;
	result(f, t, STATUS_OK, NULL, &r);
}

static bool train(struct fake *f, struct fake_task *t)
{
	if (t->cancelled) {
		result(f, t, STATUS_CANCELLED, "cancelled", NULL);
		return true;
	}
	if (!t->started) {
		if (t->stop || f->shutdown) {
			result(f, t, STATUS_UNAVAILABLE, "stopped before it began", NULL);
			return true;
		}
		return start_training(f, t);
	}
	if (t->ckpt == CKPT_SENDING || t->ckpt == CKPT_ENDED) {
		return go_on_with_checkpoint(f, t);
	}
	if (t->ckpt == CKPT_DONE) {
		t->ckpt = CKPT_NONE;
		if (t->ckpt_status != STATUS_OK) {
			result(f, t, t->ckpt_status, "the checkpoint was not taken", NULL);
			return true;
		}
		if (t->ckpt_final) {
			end_training(f, t);
			return true;
		}
		if (t->stop || f->shutdown) {
			result(f, t, STATUS_UNAVAILABLE, "stopped, with a checkpoint", NULL);
			return true;
		}
	}
	if (t->step >= t->steps) {
		begin_checkpoint(f, t, true);
	} else if (t->stop || f->shutdown) {
		if (t->step == 0) {
			result(f, t, STATUS_UNAVAILABLE, "stopped at the beginning", NULL);
		} else {
			begin_checkpoint(f, t, false);
		}
	} else {
		one_step(f, t);
	}
	return true;
}

static bool all_inputs(struct fake *f, struct fake_task *t, bool *ret_busy)
{
	*ret_busy = false;
	for (uint32_t i = 0; i < t->task->n_inputs; i++) {
		if (!have_input(f, t, i, ret_busy)) {
			return false;
		}
		if (!input_sound(&t->inputs[i])) {
			f->failed = -EPROTO;
		}
	}
	return true;
}

static void plan(struct fake *f, struct fake_task *t)
{
	const Peftd__V1__JobSpec *spec = t->task->plan->spec;
	if (!spec->lora) {
		result(f, t, STATUS_INVALID, "method: there is lora alone", NULL);
		return;
	}
	if (spec->lora->r == 0) {
		result(f, t, STATUS_INVALID, "lora.r: 0; it is at least 1", NULL);
		return;
	}
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__Plan p = PEFTD__V1__PLAN__INIT;
	p.has_total = p.has_overhead = p.has_steps = p.has_rows = p.has_mergeable = true;
	p.total = spec->lora->r > 1000 ? (uint64_t)spec->lora->r << 20 : 1 << 20;
	p.overhead = 1 << 20;
	p.steps = spec->train->max_steps;
	p.rows = 10;
	p.mergeable = spec->lora->r != 3;
	r.what_case = PEFTD__V1__TASK_RESULT__WHAT_PLAN;
	r.plan = &p;
	result(f, t, STATUS_OK, NULL, &r);
}

static void inspect_model(struct fake *f, struct fake_task *t)
{
	const Peftd__V1__ModelInspectTask *in = t->task->model_inspect;
	if (in->path.len < 1 || in->path.data[0] != '/') {
		result(f, t, STATUS_NOT_FOUND, "path: there is no such model", NULL);
		return;
	}
	uint8_t digest[32];
	crypto_generichash(digest, 32, in->path.data, in->path.len, NULL, 0);
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__Model model = PEFTD__V1__MODEL__INIT;
	model.name = in->name;
	model.has_digest = model.has_parameters = true;
	model.digest = (ProtobufCBinaryData){32, digest};
	model.parameters = 1000;
	r.what_case = PEFTD__V1__TASK_RESULT__WHAT_MODEL;
	r.model = &model;
	result(f, t, STATUS_OK, NULL, &r);
}

static void check_dataset(struct fake *f, struct fake_task *t)
{
	const struct fake_input *in = &t->inputs[t->task->dataset_check->dataset->input];
	if (in->size >= 3 && memcmp(in->data, "bad", 3) == 0) {
		result(f, t, STATUS_INVALID, "line 1: not JSON", NULL);
		return;
	}
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__Dataset d = PEFTD__V1__DATASET__INIT;
	d.name = t->task->dataset_check->dataset->name;
	d.has_rows = d.has_format = true;
	d.rows = in->size;
	d.format = proto_bytes("text");
	r.what_case = PEFTD__V1__TASK_RESULT__WHAT_DATASET;
	r.dataset = &d;
	result(f, t, STATUS_OK, NULL, &r);
}

static bool output(struct fake *f, struct fake_task *t, uint64_t outputs)
{
	bool generate = t->task->what_case == PEFTD__V1__TASK__WHAT_GENERATE;
	if (t->outputs < outputs) {
		if (t->output_credit == 0) {
			return false;
		}
		t->output_credit--;
		Peftd__V1__TaskOutput o = PEFTD__V1__TASK_OUTPUT__INIT;
		Peftd__V1__GenerateReply g = PEFTD__V1__GENERATE_REPLY__INIT;
		Peftd__V1__InspectRow row = PEFTD__V1__INSPECT_ROW__INIT;
		o.task = t->task->task;
		if (generate) {
			g.has_text = true;
			g.text = proto_bytes("word ");
			o.what_case = PEFTD__V1__TASK_OUTPUT__WHAT_GENERATE;
			o.generate = &g;
		} else {
			row.has_row = true;
			row.row = t->outputs;
			o.what_case = PEFTD__V1__TASK_OUTPUT__WHAT_INSPECT_ROW;
			o.inspect_row = &row;
		}
		t->outputs++;
		MESSAGE(m, OUTPUT, output, &o);
		say(f, &m, NULL, 0);
		return true;
	}
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__GenerateReply g = PEFTD__V1__GENERATE_REPLY__INIT;
	Peftd__V1__InspectSummary s = PEFTD__V1__INSPECT_SUMMARY__INIT;
	if (generate) {
		g.has_new_tokens = true;
		g.new_tokens = (uint32_t)outputs;
		r.what_case = PEFTD__V1__TASK_RESULT__WHAT_GENERATE;
		r.generate = &g;
	} else {
		s.has_rows = true;
		s.rows = outputs;
		r.what_case = PEFTD__V1__TASK_RESULT__WHAT_INSPECT;
		r.inspect = &s;
	}
	result(f, t, STATUS_OK, NULL, &r);
	return true;
}

static void evaluate(struct fake *f, struct fake_task *t)
{
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__EvalReply e = PEFTD__V1__EVAL_REPLY__INIT;
	e.has_loss = true;
	e.loss = 1.5;
	r.what_case = PEFTD__V1__TASK_RESULT__WHAT_EVAL;
	r.eval = &e;
	result(f, t, STATUS_OK, NULL, &r);
}

static void fill_merged(uint8_t *out, uint64_t offset, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		out[i] = (uint8_t)((offset + i) % 251);
	}
}

static void merge(struct fake *f, struct fake_task *t)
{
	static uint8_t all[FAKE_MERGED];
	uint8_t digest[32];
	if (t->task->merge->spec->lora->r == 3) {
		result(f, t, STATUS_INVALID, "lora cannot be merged here: it is 3", NULL);
		return;
	}
	fill_merged(all, 0, sizeof(all));
	crypto_generichash(digest, 32, all, sizeof(all), NULL, 0);
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__FetchReply fetch = PEFTD__V1__FETCH_REPLY__INIT;
	Peftd__V1__MergeReport report = PEFTD__V1__MERGE_REPORT__INIT;
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	Peftd__V1__File file = PEFTD__V1__FILE__INIT, *files[] = {&file};
	file.name = proto_bytes("model.safetensors");
	file.size = blob.size = sizeof(all);
	blob.files = files;
	blob.n_files = 1;
	blob.digest = (ProtobufCBinaryData){32, digest};
	report.has_drift_max = true;
	report.drift_max = 0.25;
	fetch.blob = &blob;
	fetch.merge = &report;
	fetch.has_step = true;
	fetch.step = t->task->merge->step;
	r.what_case = PEFTD__V1__TASK_RESULT__WHAT_MERGE;
	r.merge = &fetch;
	result(f, t, STATUS_OK, NULL, &r);
}

static bool read_merged(struct fake *f, struct fake_task *t)
{
	uint64_t at = t->task->merge_read->offset + (uint64_t)t->outputs * CHUNK_SIZE;
	if (at >= FAKE_MERGED) {
		result(f, t, STATUS_OK, NULL, NULL);
		return true;
	}
	if (t->output_credit == 0) {
		return false;
	}
	t->output_credit--;
	t->outputs++;
	static uint8_t chunk[CHUNK_SIZE];
	size_t len = FAKE_MERGED - at < CHUNK_SIZE ? (size_t)(FAKE_MERGED - at) : CHUNK_SIZE;
	fill_merged(chunk, at, len);
	Peftd__V1__TaskOutput o = PEFTD__V1__TASK_OUTPUT__INIT;
	Peftd__V1__ReadReply read = PEFTD__V1__READ_REPLY__INIT;
	o.task = t->task->task;
	read.has_offset = true;
	read.offset = at;
	o.what_case = PEFTD__V1__TASK_OUTPUT__WHAT_MERGED;
	o.merged = &read;
	MESSAGE(m, OUTPUT, output, &o);
	say(f, &m, chunk, len);
	return true;
}

static bool work_on(struct fake *f, struct fake_task *t)
{
	bool busy;
	if (t->task->what_case == PEFTD__V1__TASK__WHAT_TRAIN) {
		return train(f, t);
	}
	if (t->cancelled) {
		result(f, t, STATUS_CANCELLED, "cancelled", NULL);
		return true;
	}
	if (!all_inputs(f, t, &busy)) {
		return busy;
	}
	switch (t->task->what_case) {
	case PEFTD__V1__TASK__WHAT_PLAN:
		plan(f, t);
		return true;
	case PEFTD__V1__TASK__WHAT_MODEL_INSPECT:
		inspect_model(f, t);
		return true;
	case PEFTD__V1__TASK__WHAT_DATASET_CHECK:
		check_dataset(f, t);
		return true;
	case PEFTD__V1__TASK__WHAT_EVAL:
		evaluate(f, t);
		return true;
	case PEFTD__V1__TASK__WHAT_DATASET_INSPECT:
		return output(f, t, t->task->dataset_inspect->request->rows);
	case PEFTD__V1__TASK__WHAT_GENERATE:
		return output(f, t, t->task->generate->request->max_new_tokens);
	case PEFTD__V1__TASK__WHAT_MERGE:
		merge(f, t);
		return true;
	case PEFTD__V1__TASK__WHAT_MERGE_READ:
		return read_merged(f, t);
	default:
		f->failed = -EPROTO;
		return false;
	}
}

bool fake_work(struct fake *f, unsigned n)
{
	if (f->failed || f->ended) {
		return false;
	}
	if (!f->ready) {
		if (!f->configured) {
			return false;
		}
		Peftd__V1__TrainerReady ready = PEFTD__V1__TRAINER_READY__INIT;
		ready.version = LINK_VERSION;
		ready.has_memory_total = ready.has_device = ready.has_threads = true;
		ready.memory_total = (uint64_t)8 << 30;
		ready.device = proto_bytes("cpu");
		ready.threads = 2;
		MESSAGE(m, READY, ready, &ready);
		say(f, &m, NULL, 0);
		f->ready = true;
		return true;
	}
	for (unsigned i = 0; i < FAKE_TASKS; i++) {
		struct fake_task *t = &f->tasks[(i + n) % FAKE_TASKS];
		if (t->task && work_on(f, t)) {
			return true;
		}
	}
	for (int i = 0; i < FAKE_TASKS; i++) {
		if (f->tasks[i].task && f->tasks[i].task->what_case == PEFTD__V1__TASK__WHAT_TRAIN) {
			return false;
		}
	}
	f->ended = f->shutdown;
	return false;
}

void fake_late(struct fake *f, uint64_t task, unsigned kind)
{
	struct fake_task stale = {0};
	Peftd__V1__Task named = PEFTD__V1__TASK__INIT;
	named.task = task;
	stale.task = &named;
	stale.step = 1;
	if (kind % 3 == 0) {
		send_metrics(f, &stale);
	} else if (kind % 3 == 1) {
		send_state(f, &stale, PEFTD__V1__JOB_STATE__JOB_RUNNING);
	} else {
		Peftd__V1__CheckpointEnd end = PEFTD__V1__CHECKPOINT_END__INIT;
		end.task = task;
		MESSAGE(m, CHECKPOINT_END, checkpoint_end, &end);
		say(f, &m, NULL, 0);
	}
}
