"""The libraries that peftd's methods are held against, behind one face: make_methods.py and tests/hf use it.

A case is {"method": …, "config": the section of a peftd job file}. Each class makes its trainable model from a
base, names what is trained as the saved folder names it, saves and reads folders. PEFT and `adapters` are
imported only where they are used, since each wants a transformers of its own.
"""

import json
import os
import re
import shutil

import reference  # before torch: it sets the number of threads

import safetensors.torch
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

DELTA_FILE = "delta.safetensors"  # peftd's own folder: changed parameters by their names in the model


def load_base(folder):
    """In float32. Versions 4 of transformers read the rotary settings from other keys than 5 writes."""
    config = AutoConfig.from_pretrained(folder)
    with open(os.path.join(folder, "config.json")) as f:
        rope = json.load(f).get("rope_parameters")
    if rope and transformers.__version__.startswith("4."):
        config.rope_theta = rope["rope_theta"]
        if rope["rope_type"] != "default":
            config.rope_scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, config=config, dtype=torch.float32,
                                attn_implementation="eager")


def noise(model, wanted, std, generator):
    """Away from values at which gradients vanish, or at which a wrong sign or order would not show."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and re.search(wanted, name):
                p.add_(std * torch.randn(p.shape, generator=generator))


class Plain:
    """No library: parameters of the model itself are trained."""

    FILE = None  # nothing but peftd saves it

    def __init__(self, base, case, generator, scale=1.0):
        self.model = base
        for name, p in base.named_parameters():
            p.requires_grad_(self.trained(case, name, base.config))

    @staticmethod
    def trained(case, name, model):
        method, config = case["method"], case["config"]
        if method == "full":
            return True
        if method == "bitfit":
            return name.endswith(".bias")
        if method == "select":
            return any(re.fullmatch(p, name) for p in config["parameters"])
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        head = "model.embed_tokens.weight" if model.tie_word_embeddings else "lm_head.weight"
        return (bool(layer) and int(layer[1]) >= model.num_hidden_layers - config["k"]
                or config.get("head", False) and name == head
                or config.get("final_norm", False) and name == "model.norm.weight")

    @staticmethod
    def key(name):
        return name

    def optimizer(self, case):
        return None

    @staticmethod
    def load(base, folder):
        state = base.state_dict()
        for name, value in safetensors.torch.load_file(os.path.join(folder, DELTA_FILE)).items():
            state[name].copy_(value)
        return base

    @staticmethod
    def tensors(model):
        return model.state_dict()


class Peft:
    FILE = "adapter_model.safetensors"

    def __init__(self, base, case, generator, scale=1.0):
        import peft
        method, options = case["method"], dict(case["config"])
        self.ratio = options.pop("loraplus_lr_ratio", 0)
        kinds = dict(ia3=peft.IA3Config, ln_tuning=peft.LNTuningConfig, lora=peft.LoraConfig,
                     bitfit=peft.BeftConfig, prompt_tuning=peft.PromptTuningConfig,
                     prefix_tuning=peft.PrefixTuningConfig, p_tuning=peft.PromptEncoderConfig)
        task_type = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
        self.config = kinds[method](task_type=task_type, **options)
        self.model = peft.get_peft_model(base, self.config)
        # Is what is trained not what is saved?
        self.encoded = method == "p_tuning" or options.get("prefix_projection", False)
        # PiSSA and OLoRA take their start out of the base, so it must stay as it is.
        initial = str(options.get("init_lora_weights", ""))
        self.initial = initial if initial.startswith(("pissa", "olora")) else None
        if not self.initial:
            noise(self.model, "lora_B|lora_embedding_A|beft_bias|base_layer.bias", 0.1 * scale,
                  generator)
            noise(self.model, "ia3_l|ln_tuning|magnitude|modules_to_save", 0.2 * scale, generator)

    def optimizer(self, case):
        from peft.optimizers import create_loraplus_optimizer
        if not self.ratio:
            return None
        return create_loraplus_optimizer(
            self.model, torch.optim.AdamW, lr=case["lr"], loraplus_lr_ratio=self.ratio,
            loraplus_weight_decay=case["decay"], betas=reference.BETAS, eps=reference.EPS)

    def key(self, name):
        if name.startswith("prompt_encoder."):
            name = name.replace(".default.", ".")
            return name if self.encoded else "prompt_embeddings"
        name = name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
        name = name.removesuffix(".default")
        return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name

    def save(self, folder):
        self.model.save_pretrained(folder)
        reference.tidy_folder(folder)

    def save_for_conversion(self, folder):
        """Before the run. Loaded with init_lora_weights as it is, PEFT would change the base again."""
        self.model.peft_config["default"].init_lora_weights = True
        self.model.save_pretrained(folder)
        self.model.peft_config["default"].init_lora_weights = self.initial

    def save_converted(self, folder, initial):
        """Plain LoRA on the unchanged base."""
        self.model.save_pretrained(folder, path_initial_model_for_weight_conversion=initial)
        reference.tidy_folder(folder)
        shutil.rmtree(initial)

    @staticmethod
    def load(base, folder):
        import peft
        return peft.PeftModel.from_pretrained(base, folder)

    @staticmethod
    def tensors(model):
        import peft
        return peft.get_peft_model_state_dict(model)


class Adapters:
    FILE = "adapter.safetensors"
    encoded = False
    NAME = "default"

    def __init__(self, base, case, generator, scale=1.0):
        import adapters
        options = dict(case["config"])
        preset = adapters.ADAPTER_CONFIG_MAP[options.pop("config")]
        adapters.init(base)
        base.add_adapter(self.NAME, config=preset.replace(**options))
        base.train_adapter(self.NAME)
        self.model = base
        noise(base, "adapter_up.weight|adapter_down.0.weight", 0.1 * scale, generator)
        noise(base, "bias", 0.1 * scale, generator)

    def optimizer(self, case):
        return None

    @staticmethod
    def key(name):
        return name

    def save(self, folder):
        self.model.save_adapter(folder, self.NAME, use_safetensors=True)
        reference.tidy_folder(folder)

    @staticmethod
    def load(base, folder):
        import adapters
        adapters.init(base)
        base.load_adapter(folder, use_safetensors=True, set_active=True)
        return base

    @staticmethod
    def tensors(model):
        return model.state_dict()


def kind_of(case):
    if case["method"] == "bottleneck":
        return Adapters
    own = case["method"] in ("full", "last_k", "select") or \
        case["method"] == "bitfit" and "target_modules" not in case["config"]
    return Plain if own else Peft


