#include "tests/support/tiny.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/model/safetensors.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

static void die(const char *what)
{
	fprintf(stderr, "test support: %s: %s\n", what, strerror(errno));
	abort();
}

char *tiny_tempdir(void)
{
	const char *base = getenv("TMPDIR");
	char *path = NULL;
	if (asprintf(&path, "%s/peftd-test-XXXXXX", base ? base : "/tmp") < 0 || !mkdtemp(path)) {
		die("temporary folder");
	}
	return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

void tiny_remove_tree(const char *path)
{
	nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

char *tiny_path(const char *dir, const char *name)
{
	char *path = NULL;
	if (asprintf(&path, "%s/%s", dir, name) < 0) {
		die("memory");
	}
	return path;
}

void tiny_write_file(const char *path, const void *data, size_t len)
{
	FILE *f = fopen(path, "we");
	if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0) {
		die(path);
	}
}

char *tiny_read_file(const char *path, size_t *ret_len)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	struct stat st;
	if (!f || fstat(fileno(f), &st) < 0) {
		die(path);
	}
	char *data = malloc((size_t)st.st_size + 1);
	if (!data || fread(data, 1, (size_t)st.st_size, f) != (size_t)st.st_size) {
		die(path);
	}
	data[st.st_size] = '\0';
	if (ret_len) {
		*ret_len = (size_t)st.st_size;
	}
	return data;
}

/* splitmix64: Steele, Lea & Flood 2014. */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* Roughly normal: the sum of four uniform values. */
static float next_normal(uint64_t *state, float std)
{
	float sum = 0;
	for (int i = 0; i < 4; i++) {
		sum += (float)(next_random(state) >> 40) / (float)(1 << 24) - 0.5f;
	}
	return sum * 1.7320508f * std;
}

/* ---- weights --------------------------------------------------------------------------------- */

enum { MAX_TENSORS = 6 + TINY_LAYERS * (8 + 13) };

struct weights {
	struct st_out tensors[MAX_TENSORS];
	size_t n;
	uint64_t seed;
};

/* cols 0: a norm's vector, all ones but for a little. */
static void add_tensor(struct weights *w, const char *name, int64_t rows, int64_t cols, float std)
{
	size_t n = (size_t)(rows * (cols ? cols : 1));
	float *data = alloc_array(n, sizeof(float));
	if (!data) {
		die("memory");
	}
	for (size_t i = 0; i < n; i++) {
		data[i] = (cols ? 0.0f : 1.0f) + next_normal(&w->seed, std);
	}
	w->tensors[w->n++] = (struct st_out){
		.name = strdup(name),
		.dtype = ST_F32,
		.n_dims = cols ? 2 : 1,
		.dims = {rows, cols},
		.data = data,
	};
}

static void add_layer(struct weights *w, int layer)
{
	static const struct {
		const char *name;
		int64_t rows, cols;
	} parts[] = {
		{"input_layernorm", TINY_HIDDEN, 0},
		{"post_attention_layernorm", TINY_HIDDEN, 0},
		{"self_attn.q_proj", TINY_HEADS * TINY_HEAD_DIM, TINY_HIDDEN},
		{"self_attn.k_proj", TINY_KV_HEADS * TINY_HEAD_DIM, TINY_HIDDEN},
		{"self_attn.v_proj", TINY_KV_HEADS * TINY_HEAD_DIM, TINY_HIDDEN},
		{"self_attn.o_proj", TINY_HIDDEN, TINY_HEADS * TINY_HEAD_DIM},
		{"mlp.gate_proj", TINY_INTERMEDIATE, TINY_HIDDEN},
		{"mlp.up_proj", TINY_INTERMEDIATE, TINY_HIDDEN},
		{"mlp.down_proj", TINY_HIDDEN, TINY_INTERMEDIATE},
	};
	for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
		char name[128];
		snprintf(name, sizeof(name), "model.layers.%d.%s.weight", layer, parts[i].name);
		add_tensor(w, name, parts[i].rows, parts[i].cols, parts[i].cols ? 0.12f : 0.05f);
	}
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct st_out *)a)->name, ((const struct st_out *)b)->name);
}

/* Frees them. */
static void write_weights(const char *dir, struct weights *w)
{
	qsort(w->tensors, w->n, sizeof(w->tensors[0]), by_name);

	static const char *const metadata[] = {"format", "pt"};
	_cleanup_(buf_deinit) struct buf out = {0};
	if (safetensors_write(&out, w->tensors, w->n, metadata, 1) < 0) {
		die("safetensors");
	}
	_cleanup_(freep) char *path = tiny_path(dir, "model.safetensors");
	tiny_write_file(path, out.data, out.len);
	for (size_t i = 0; i < w->n; i++) {
		free((void *)w->tensors[i].name);
		free((void *)w->tensors[i].data);
	}
}

static void write_llama(const char *dir, uint64_t seed)
{
	struct weights w = {.seed = seed};
	add_tensor(&w, "model.embed_tokens.weight", TINY_VOCAB, TINY_HIDDEN, 0.3f);
	add_tensor(&w, "model.norm.weight", TINY_HIDDEN, 0, 0.05f);
	for (int i = 0; i < TINY_LAYERS; i++) {
		add_layer(&w, i);
	}
	write_weights(dir, &w);
}

/* A sublayer of a stack of T5: its norm and its products. */
static void add_sublayer(struct weights *w, const char *stack, int block, int layer,
	const char *module, const char *const *parts, int64_t inner)
{
	char name[128];
	snprintf(name, sizeof(name), "%s.block.%d.layer.%d.layer_norm.weight", stack, block, layer);
	add_tensor(w, name, TINY_HIDDEN, 0, 0.05f);
	for (size_t i = 0; parts[i]; i++) {
		bool out = strcmp(parts[i], "o") == 0 || strcmp(parts[i], "wo") == 0;
		snprintf(name, sizeof(name), "%s.block.%d.layer.%d.%s.%s.weight", stack, block, layer,
			module, parts[i]);
		add_tensor(w, name, out ? TINY_HIDDEN : inner, out ? inner : TINY_HIDDEN, 0.1f);
	}
}

static void write_t5(const char *dir, uint64_t seed)
{
	static const char *const attention[] = {"q", "k", "v", "o", NULL}, *const mlp[] = {"wi", "wo", NULL};
	static const char *const stacks[] = {"encoder", "decoder"};
	const int64_t width = TINY_HEADS * TINY_HEAD_DIM;
	struct weights w = {.seed = seed};
	add_tensor(&w, "shared.weight", TINY_VOCAB, TINY_HIDDEN, 1.0f);
	for (int s = 0; s < 2; s++) {
		char name[128];
		snprintf(name, sizeof(name), "%s.final_layer_norm.weight", stacks[s]);
		add_tensor(&w, name, TINY_HIDDEN, 0, 0.05f);
		snprintf(name, sizeof(name), "%s.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
			stacks[s]);
		add_tensor(&w, name, 32, TINY_HEADS, 0.3f);
		for (int i = 0; i < TINY_LAYERS; i++) {
			int layer = 0;
			add_sublayer(&w, stacks[s], i, layer++, "SelfAttention", attention, width);
			if (s == 1) {
				add_sublayer(&w, stacks[s], i, layer++, "EncDecAttention", attention, width);
			}
			add_sublayer(&w, stacks[s], i, layer, "DenseReluDense", mlp, TINY_INTERMEDIATE);
		}
	}
	write_weights(dir, &w);
}

/* ---- tokenizer ------------------------------------------------------------------------------- */

/* The character that stands for a byte in byte-level BPE (GPT-2's table): printable bytes for
 * themselves, the others from U+0100 on. */
static unsigned byte_char(unsigned byte)
{
	unsigned other = 0;
	for (unsigned b = 0;; b++) {
		bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
		if (b == byte) {
			return printable ? b : 0x100 + other;
		}
		other += !printable;
	}
}

static void json_char(struct buf *out, unsigned c)
{
	buf_appendf(out, "\\u%04x", c);
}

static void write_tokenizer(const char *dir)
{
	static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
	static const char merges[][2][3] = {{"h", "e"}, {"i", "n"}, {"i", "s"}, {"p", "l"}, {"u", "s"},
		{"pl", "us"}, {"o", "n"}, {"e", "r"}};
	_cleanup_(buf_deinit) struct buf b = {0};

	buf_appendf(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
	for (size_t i = 0; i < ARRAY_LEN(specials); i++) {
		buf_appendf(&b,
			"%s{\"id\":%zu,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,"
			"\"rstrip\":false,\"normalized\":false,\"special\":true}",
			i ? "," : "", i, specials[i]);
	}
	buf_appendf(&b,
		"],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\","
		"\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
		"\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
		"\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,"
		"\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
		"\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{");
	for (size_t i = 0; i < ARRAY_LEN(specials); i++) {
		buf_appendf(&b, "\"%s\":%zu,", specials[i], i);
	}
	for (unsigned i = 0; i < 256; i++) {
		buf_appendf(&b, "\"");
		json_char(&b, byte_char(i));
		buf_appendf(&b, "\":%u,", TINY_BYTE + i);
	}
	for (size_t i = 0; i < ARRAY_LEN(merges); i++) {
		buf_appendf(&b, "%s\"%s%s\":%zu", i ? "," : "", merges[i][0], merges[i][1],
			TINY_BYTE + 256 + i);
	}
	buf_appendf(&b, "},\"merges\":[");
	for (size_t i = 0; i < ARRAY_LEN(merges); i++) {
		buf_appendf(&b, "%s\"%s %s\"", i ? "," : "", merges[i][0], merges[i][1]);
	}
	buf_appendf(&b, "]}}\n");
	_cleanup_(freep) char *path = tiny_path(dir, "tokenizer.json");
	tiny_write_file(path, b.data, b.len);
}

static void write_text(const char *dir, const char *name, const char *text)
{
	_cleanup_(freep) char *path = tiny_path(dir, name);
	tiny_write_file(path, text, strlen(text));
}

static void write_texts(const char *dir)
{
	write_text(dir, "tokenizer_config.json",
		"{\"tokenizer_class\":\"GPT2Tokenizer\",\"bos_token\":\"<|endoftext|>\","
		"\"eos_token\":\"<|endoftext|>\",\"add_bos_token\":false}\n");
	write_text(dir, "generation_config.json", "{\"eos_token_id\":[0,2]}\n");
	write_tokenizer(dir);
}

void tiny_model_write(const char *dir, uint64_t seed)
{
	if (mkdir(dir, 0777) < 0 && errno != EEXIST) {
		die(dir);
	}
	char config[1024];
	snprintf(config, sizeof(config),
		"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":%d,"
		"\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
		"\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,"
		"\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,"
		"\"rope_scaling\":null,\"tie_word_embeddings\":true,\"attention_bias\":false,"
		"\"mlp_bias\":false,\"hidden_act\":\"silu\",\"bos_token_id\":%d,\"eos_token_id\":%d,"
		"\"torch_dtype\":\"float32\"}\n",
		TINY_VOCAB, TINY_HIDDEN, TINY_INTERMEDIATE, TINY_LAYERS, TINY_HEADS, TINY_KV_HEADS,
		TINY_HEAD_DIM, TINY_POSITIONS, TINY_EOS, TINY_EOS);
	write_text(dir, "config.json", config);
	write_texts(dir);
	write_llama(dir, seed);
}

void tiny_t5_write(const char *dir, uint64_t seed)
{
	if (mkdir(dir, 0777) < 0 && errno != EEXIST) {
		die(dir);
	}
	char config[1024];
	snprintf(config, sizeof(config),
		"{\"architectures\":[\"T5ForConditionalGeneration\"],\"model_type\":\"t5\","
		"\"vocab_size\":%d,\"d_model\":%d,\"d_ff\":%d,\"num_layers\":%d,\"num_heads\":%d,"
		"\"d_kv\":%d,\"is_encoder_decoder\":true,\"feed_forward_proj\":\"relu\","
		"\"tie_word_embeddings\":true,\"decoder_start_token_id\":%d,\"eos_token_id\":%d,"
		"\"pad_token_id\":%d,\"torch_dtype\":\"float32\"}\n",
		TINY_VOCAB, TINY_HIDDEN, TINY_INTERMEDIATE, TINY_LAYERS, TINY_HEADS, TINY_HEAD_DIM, TINY_IM_START,
		TINY_EOS, TINY_EOS);
	write_text(dir, "config.json", config);
	write_texts(dir);
	write_t5(dir, seed);
}

char *tiny_rows(size_t n, uint64_t seed, size_t *ret_len)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	for (size_t i = 0; i < n; i++) {
		unsigned x = (unsigned)(next_random(&seed) % 50), y = (unsigned)(next_random(&seed) % 50);
		buf_appendf(&b, "{\"prompt\":\"%u plus %u is\",\"completion\":\" %u\"}\n", x, y, x + y);
	}
	return buf_steal(&b, ret_len);
}
