/* The CPU backend's life: which instruction set, memory, threads, what it says of itself. */

#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "util/cleanup.h"
#include "util/util.h"

extern const struct backend_ops cpu_baseline_ops;
#ifdef CPU_HAVE_X86_VARIANTS
extern const struct backend_ops cpu_avx2_ops, cpu_avx512_ops, cpu_avx512bf16_ops;
#endif

/* ---- memory -------------------------------------------------------------------------------- */

void *cpu_memory_new(size_t bytes)
{
	size_t size;
	if (!add_size(bytes, 4095, &size)) {
		return NULL;
	}
	size = size / 4096 * 4096;
	void *p = mmap(NULL, size ? size : 4096, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		return NULL;
	}
	madvise(p, size, MADV_HUGEPAGE); /* a wish; small pages do too */
	for (size_t i = 0; i < size; i += 4096) {
		((volatile char *)p)[i] = 0;
	}
	return p;
}

void cpu_memory_free(void *p, size_t bytes)
{
	if (p) {
		size_t size = (bytes + 4095) / 4096 * 4096;
		munmap(p, size ? size : 4096);
	}
}

void *cpu_alloc(struct backend *b, size_t bytes)
{
	return cpu_memory_new(bytes);
}

void cpu_free_memory(struct backend *b, void *p, size_t bytes)
{
	cpu_memory_free(p, bytes);
}

void cpu_copy(struct backend *b, void *dst, const void *src, size_t bytes)
{
	memcpy(dst, src, bytes);
}

void *cpu_host_view(struct backend *b, void *p)
{
	return p;
}

int cpu_sync(struct backend *b, struct errmsg *err)
{
	return 0; /* every operation is done when it returns */
}

/* ---- instruction sets ---------------------------------------------------------------------- */

struct isa {
	const char *name;
	const struct backend_ops *ops;
	bool (*available)(void);
};

static bool always(void)
{
	return true;
}

#ifdef CPU_HAVE_X86_VARIANTS
static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512bf16(void)
{
	return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

/* Best first. */
static const struct isa isas[] = {
#ifdef CPU_HAVE_X86_VARIANTS
	{"avx512bf16", &cpu_avx512bf16_ops, has_avx512bf16},
	{"avx512", &cpu_avx512_ops, has_avx512},
	{"avx2", &cpu_avx2_ops, has_avx2},
#endif
	{"baseline", &cpu_baseline_ops, always},
};

static const struct isa *isa_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(isas); i++) {
		if ((!name || strcmp(name, isas[i].name) == 0) && isas[i].available()) {
			return &isas[i];
		}
	}
	return NULL;
}

/* "model name" of /proc/cpuinfo, or "processor" where the kernel calls it otherwise. */
static void processor_name(char *name, size_t size)
{
	snprintf(name, size, "processor");
	_cleanup_(fclosep) FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256];
	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strchr(line, ':');
		if (strncmp(line, "model name", 10) == 0 && colon) {
			colon += strspn(colon, ": \t");
			colon[strcspn(colon, "\n")] = '\0';
			snprintf(name, size, "%s", colon);
			return;
		}
	}
}

/* ---- life ---------------------------------------------------------------------------------- */

void cpu_free(struct backend *b)
{
	struct cpu_backend *cpu = cpu_backend(b);
	cpu_products_free(cpu->products);
	cpu_memory_free(cpu->scratch, b->n_threads * CPU_SCRATCH_BYTES);
	free(cpu);
}

int backend_cpu_new_isa(struct backend **ret, const char *isa_name, unsigned n_threads,
	struct errmsg *err)
{
	const struct isa *isa = isa_find(isa_name);
	if (!isa) {
		return errmsg_set(err, STATUS_UNAVAILABLE,
			"cpu: this processor or build has no instruction set \"%s\"", isa_name);
	}
	if (n_threads == 0) {
		n_threads = (unsigned)max_i64(1, omp_get_num_procs());
	}
	if (n_threads > CPU_MAX_THREADS) {
		return errmsg_set(err, STATUS_INVALID, "cpu: %u threads asked for; the most is %d",
			n_threads, CPU_MAX_THREADS);
	}

	struct cpu_backend *cpu = calloc(1, sizeof(*cpu));
	if (!cpu) {
		return -ENOMEM;
	}
	cpu->base.ops = isa->ops;
	cpu->base.name = "cpu";
	cpu->base.device = cpu->device;
	cpu->base.fingerprint = cpu->fingerprint;
	cpu->base.n_threads = n_threads;
	cpu->isa = isa->name;

	int r = -ENOMEM;
	cpu->scratch = cpu_memory_new(n_threads * CPU_SCRATCH_BYTES);
	if (!cpu->scratch) {
		goto fail;
	}
	r = cpu_products_new(&cpu->products, &cpu->base, err);
	if (r) {
		goto fail;
	}

	char processor[96], products[96];
	processor_name(processor, sizeof(processor));
	cpu_products_describe(products, sizeof(products));
	snprintf(cpu->device, sizeof(cpu->device), "%s, %u threads, %s, %s", processor, n_threads,
		isa->name, products);
	snprintf(cpu->fingerprint, sizeof(cpu->fingerprint), "cpu/%s/%s/%s/%u", processor,
		isa->name, products, n_threads);
	*ret = &cpu->base;
	return 0;

fail:
	cpu_free(&cpu->base);
	return r;
}
