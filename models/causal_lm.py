"""Decoders of transformers as trunks of sequence models: Llama, Qwen2, GPT-NeoX, OPT, whatever takes embeddings.

What is built is a library class that `model_type` names, on plain values; nothing is fetched, no code of a model's
author is run. The table of tokens and the head over words are left out: a policy has embeddings and heads of its own.
Positions are the decoder's: what it has learned to attend by stays.
"""

import copy
import inspect

import torch
from torch import nn

TAKES = ("inputs_embeds", "past_key_values", "use_cache")  # in a forward that can be a trunk
NOT_BUILT = ("implementation", "auto_map", "quantization")  # entries with this in their name change the code that runs
NO_WORDS = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


class CausalLM(nn.Module):
    """GPT's forward, of a decoder of transformers. architecture: entries of its config.json, `model_type` among them.

    The last block is computed at all positions, of which those that are read are picked. The memory is the decoder's
    cache, and there is one only while no gradient is asked for: no training step reads it.
    """

    def __init__(self, architecture):
        super().__init__()
        self.model = language_model(architecture).get_decoder()
        takes = inspect.signature(self.model.forward).parameters
        if missing := [name for name in TAKES if name not in takes]:
            raise ValueError(f"model_type {self.model_type!r} takes no {', '.join(missing)}: it cannot be a trunk")
        self.positioned = "position_ids" in takes
        self.width = self.model.get_input_embeddings().embedding_dim
        self.model.set_input_embeddings(None)

    @property
    def model_type(self):
        return self.model.config.model_type

    def forward(self, x, read=None, memory=None, visible=None):
        """See models.language.GPT.forward."""
        acting = not torch.is_grad_enabled()
        options = {} if memory is None else {"past_key_values": copy.deepcopy(memory)}  # the decoder writes into it
        if visible is not None:
            options["attention_mask"] = visible.long()
            if self.positioned:  # those of what is visible, as if there were nothing between
                options["position_ids"] = (visible.long().cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        out = self.model(inputs_embeds=x, use_cache=acting, **options)
        y = out.last_hidden_state
        return (y if read is None else y[:, read]), out.past_key_values if acting else None

    @torch.no_grad()
    def attention_maps(self, x):
        """Attention [b h n n] of every block that has one, first block first."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the others do not say where they looked
        try:
            maps = self.model(inputs_embeds=x, use_cache=False, output_attentions=True).attentions
        finally:
            self.model.set_attn_implementation(before)
        return [one for one in maps or () if one is not None and one.ndim == 4]


def language_model(architecture):
    """A causal language model of transformers with random weights, over a single word."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    values = {name: v for name, v in harmless(architecture).items() if not name.endswith("_token_id")}
    kind = values.pop("model_type", None)
    if kind not in KNOWN:
        raise ValueError(f"model_type {kind!r} is no causal language model of the installed transformers")
    try:
        config = AutoConfig.for_model(kind, **{**values, **NO_WORDS})
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture has its own ways to say that values do not fit
        raise ValueError(f"a {kind} cannot be built from these values: {error}") from error


def harmless(value):
    """Nested values without private entries and those that say which code runs."""
    if isinstance(value, list):
        return [harmless(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if not any(word in name for word in NOT_BUILT)}
    return {name: harmless(item) for name, item in kept.items() if not name.startswith("_")}


class Reader(nn.Module):
    """Tokens int [b n] -> logits [b n v]: a language model of transformers that reads with a policy's trunk."""

    def __init__(self, language_model, trunk):
        super().__init__()
        self.words, decoder = language_model.get_input_embeddings(), language_model.get_decoder()
        place = next(name for name, module in language_model.named_modules() if module is decoder)
        parent, _, name = place.rpartition(".")
        setattr(language_model.get_submodule(parent), name, trunk.model)
        self.rest = language_model

    def forward(self, tokens):
        return self.rest(inputs_embeds=self.words(tokens), use_cache=False).logits
