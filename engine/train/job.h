#pragma once
/* A job's graph, its method and its memory, as planning and running both need them. */

#include "engine/graph.h"
#include "engine/model/arch.h"
#include "engine/peft/peft.h"

/* Offsets into the arena; each a multiple of 64. */
struct layout {
	size_t masters, copies, exp_avg, exp_avg_sq, grads; /* flat buffers; copies = masters in f32 */
	size_t ids, positions, targets, source_ids, loss_sum, cos_sin[ROPE_TABLES], constants;
	size_t region; /* of the graph's tensors */
	size_t total;
};

struct job {
	struct graph *g;
	struct peft *peft; /* NULL: base alone; borrowed */
	struct placement placement;
	struct layout layout;
	enum recompute recompute;
};

/* The method `m` on a model; free with peft_free(). */
int job_method(struct peft **ret, const struct graph_request *q, const struct method_config *m,
	struct errmsg *err);

/* Are there positions for sequences of `tokens`, beside what the method (or NULL) puts before them?
 * Otherwise STATUS_INVALID, naming `field`: learned positions end, and some rotary scalings are others
 * beyond a length. */
int job_check_length(const struct model_config *c, const struct peft *peft, int64_t tokens,
	const char *field, struct errmsg *err);

/* Builds, differentiates (q->trainable), places and lays out. */
int job_build(struct job *ret, const struct graph_request *q, struct peft *peft,
	enum recompute recompute, struct errmsg *err);
void job_deinit(struct job *j);

/* Sequences that one microbatch of so many tokens may hold. */
int64_t job_max_seqs(int64_t tokens);

/* A run on an arena laid out like that. */
struct run job_run(const struct job *j, const struct base_model *base, uint8_t *arena);

/* Fills the table of positions in an arena, and the method's constants. */
int job_upload_tables(const struct job *j, const struct base_model *base, uint8_t *arena,
	struct errmsg *err);
/* A flat f32 buffer of the arena (masters, moments) in host memory: the arena's own where the host sees
 * it, else a copy, so that a checkpoint needs no memory for what is there already. */
struct flat {
	float *values; /* [param_elements] */
	float *copy;   /* owned; NULL where `values` is the arena's */
	size_t offset;
};
int flat_init(struct flat *f, const struct job *j, uint8_t *arena, size_t offset); /* -ENOMEM */
/* Puts changed values into the arena, where they are not there already. */
void flat_store(const struct flat *f, const struct job *j, uint8_t *arena);
void flat_deinit(struct flat *f);

/* Masters from the host to the device; and the copy of them that products use. */
void job_upload_params(const struct job *j, uint8_t *arena, const float *flat);
void job_refresh_copies(const struct job *j, uint8_t *arena);

/* An upper bound of the bytes of a checkpoint: adapter and state, headers included. */
uint64_t job_checkpoint_bytes(const struct job *j);

/* Is the folder of this graph's kind of model, where it says? */
int job_check_task(const struct graph *g, const struct adapter *a, struct errmsg *err);
/* Adapter parameters into an arena: those of `a`. */
int job_load_adapter(const struct job *j, uint8_t *arena, const struct adapter *a,
	struct errmsg *err);
