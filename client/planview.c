#include "client/planview.h"

#include <stdio.h>

#include "client/format.h"
#include "util/cleanup.h"

static void row(struct table *t, const char *what, uint64_t bytes, const char *remark)
{
	char text[FORMAT_SIZE];
	table_cell(t, "  %s", what);
	table_cell(t, "%s", format_bytes(text, bytes));
	table_cell(t, "%s", remark);
}

static void print_memory(const Peftd__V1__Plan *p)
{
	_cleanup_(table_deinit) struct table t = {.columns = 3, .right = 1 << 1};
	char base[FORMAT_SIZE], trainable[FORMAT_SIZE], split[3 * FORMAT_SIZE], micro[2 * FORMAT_SIZE];
	snprintf(split, sizeof(split), "base model %s, shared by jobs; trainable %s",
		format_bytes(base, p->base_weights), format_bytes(trainable, p->trainable_weights));
	snprintf(micro, sizeof(micro), "%u tokens at a time", (unsigned)p->microbatch_tokens);
	row(&t, "weights", p->base_weights + p->trainable_weights, split);
	row(&t, "optimizer state", p->optimizer_states, "");
	row(&t, "gradients", p->gradients, "");
	row(&t, "activations", p->activations, p->has_microbatch_tokens ? micro : "");
	row(&t, "temporary", p->temporary, "");
	row(&t, "total", p->total, "");
	if (p->has_overhead) {
		row(&t, "process", p->overhead, "beside the total, a checkpoint on its way out included");
	}
	puts("memory");
	table_print(&t, stdout);
}

static void print_work(const Peftd__V1__Plan *p)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	printf("trainable   %s of %s parameters", format_count(a, p->trainable_parameters),
		format_count(b, p->total_parameters));
	if (p->total_parameters > 0) {
		printf(" (%.3g %%)",
			100 * (double)p->trainable_parameters / (double)p->total_parameters);
	}
	if (p->has_inference_flops_per_token) {
		printf("\ninference   %s FLOPs and %s more a token than the bare base%s",
			format_count(a, (uint64_t)p->inference_flops_per_token),
			format_bytes(b, p->inference_bytes_per_token),
			!p->has_mergeable ? "" : p->mergeable ? "; nothing more when merged"
												 : "; cannot be merged");
	}
	printf("\nrows        %llu trained on", (unsigned long long)p->rows);
	if (p->rows_overlong > 0) {
		printf(", %llu too long", (unsigned long long)p->rows_overlong);
	}
	if (p->rows_untrainable > 0) {
		printf(", %llu with nothing to train on", (unsigned long long)p->rows_untrainable);
	}
	if (p->rows_misaligned > 0) {
		printf(", %llu whose prompt's tokens are no prefix",
			(unsigned long long)p->rows_misaligned);
	}
	printf("\nwork        %llu steps, %s epochs, %s tokens an epoch\n",
		(unsigned long long)p->steps, format_figure(a, p->epochs, 3),
		format_count(b, p->tokens_per_epoch));
	if (p->has_tokens_per_second && p->tokens_per_second > 0) {
		printf("estimate    %s tokens/s, %s\n", format_figure(a, p->tokens_per_second, 3),
			p->has_seconds ? format_duration(b, p->seconds) : "time unknown");
	}
}

void planview_print(const Peftd__V1__Plan *p)
{
	print_memory(p);
	print_work(p);
	if (p->has_template_name && p->template_name.len > 0) {
		_cleanup_(freep) char *text = format_text(&p->template_name);
		printf("template    %s\n", text ? text : "");
	}
	if (p->has_decision) {
		_cleanup_(freep) char *decision = format_text(&p->decision);
		_cleanup_(freep) char *reason = format_text(&p->reason);
		printf("decision    %s%s%s\n", decision ? decision : "", p->has_reason ? ": " : "",
			p->has_reason && reason ? reason : "");
	}
}

void planview_note_rows(struct ctl *ctl, const Peftd__V1__Plan *p)
{
	if (p->rows_overlong > 0) {
		ctl_note(ctl, "note: %llu rows are longer than max_length (train.overlong says what "
			"becomes of them)", (unsigned long long)p->rows_overlong);
	}
	if (p->rows_untrainable > 0) {
		ctl_note(ctl, "note: %llu rows have no token to train on and are left out",
			(unsigned long long)p->rows_untrainable);
	}
	if (p->rows_misaligned > 0) {
		ctl_note(ctl, "note: in %llu rows the prompt's tokens are no prefix of the whole row's; "
			"look at them with 'peftctl dataset inspect'", (unsigned long long)p->rows_misaligned);
	}
}
