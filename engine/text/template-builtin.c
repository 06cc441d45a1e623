/*
 * The chat templates that come with the engine, for models that have none.
 *
 * What they mark as the assistant's words follows TRL's training templates: for ChatML the content,
 * <|im_end|> and the newline behind it (qwen2_5_vl, qwen3 and lfm2 there; qwen2_5 starts at the newline
 * before the content); for Llama 3 the content and <|eot_id|>.
 */

#include "engine/text/text-internal.h"
#include "util/util.h"

#define KNOWN_ROLES(list, names, name) \
	"{%- for message in messages %}" \
	"{%- if message.role not in " list " %}" \
	"{{- raise_exception('message ' ~ loop.index ~ ' has the role `' ~ message.role ~ " \
	"'`, which the chat template " name " does not know; it knows " names "') }}" \
	"{%- endif %}" \
	"{%- endfor %}"

#define DEFAULT_SYSTEM(text) \
	"{%- if messages[0].role != 'system' %}" \
	"{{- '<|im_start|>system\\n" text "<|im_end|>\\n' }}" \
	"{%- endif %}"

/* `before`: what stands behind the assistant's role and is not marked; `marked`: what is, before the
 * content. One of them is the newline. */
#define CHATML(before, marked) \
	"{%- for message in messages %}" \
	"{{- '<|im_start|>' ~ message.role }}" \
	"{%- if message.role == 'assistant' %}" \
	"{{- '" before "' }}" \
	"{%- generation %}{{- '" marked "' ~ message.content ~ '<|im_end|>\\n' }}{%- endgeneration %}" \
	"{%- else %}" \
	"{{- '\\n' ~ message.content ~ '<|im_end|>\\n' }}" \
	"{%- endif %}" \
	"{%- endfor %}" \
	"{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"

#define FOUR_ROLES(name) \
	KNOWN_ROLES("['system', 'user', 'assistant', 'tool']", "system, user, assistant, tool", name)
#define THREE_ROLES(name) \
	KNOWN_ROLES("['system', 'user', 'assistant']", "system, user, assistant", name)

#define LLAMA3 \
	"{{- '<|begin_of_text|>' }}" \
	"{%- for message in messages %}" \
	"{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}" \
	"{%- if message.role == 'assistant' %}" \
	"{%- generation %}{{- message.content | trim ~ '<|eot_id|>' }}{%- endgeneration %}" \
	"{%- else %}" \
	"{{- message.content | trim ~ '<|eot_id|>' }}" \
	"{%- endif %}" \
	"{%- endfor %}" \
	"{%- if add_generation_prompt %}" \
	"{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}" \
	"{%- endif %}"

static const struct builtin_template templates[] = {
	{"chatml", FOUR_ROLES("chatml") CHATML("\\n", "")},
	{"smollm2", FOUR_ROLES("smollm2")
		DEFAULT_SYSTEM("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
		CHATML("\\n", "")},
	{"qwen2", FOUR_ROLES("qwen2") DEFAULT_SYSTEM("You are a helpful assistant.") CHATML("\\n", "")},
	{"qwen2.5", THREE_ROLES("qwen2.5")
		DEFAULT_SYSTEM("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
		CHATML("", "\\n")},
	{"llama3", THREE_ROLES("llama3") LLAMA3},
};

const struct builtin_template *builtin_template(size_t i)
{
	return i < ARRAY_LEN(templates) ? &templates[i] : NULL;
}
