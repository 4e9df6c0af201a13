"""Trunks of which only some weights are trained: all, none, or low-rank adapters (LoRA, Hu et al. 2021) through peft.

An adapter adds scale * B A x to a linear layer, scale = alpha / rank; B starts at zero, so nothing changes at first.
Queries, keys and values of our trunk are layers of their own and get an A each: LaMo's layout (arXiv:2310.20587).
"""

import torch
from torch import nn

TRAIN = ("full", "lora", "frozen")
LAMO = ("query", "key", "value")  # of our trunk: the targets of LaMo
FUSED = ("query_key_value", "qkv_proj", "c_attn", "Wqkv")  # all three in one layer, with one A
QKV = (*LAMO, "q_proj", "k_proj", "v_proj", *FUSED, "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
BASE, ADDED = ".base_layer", "lora_"  # in names of parameters, as peft writes them


class Adapted(nn.Module):
    """A trunk as it is to its caller, of which `train` says what learns: full | lora | frozen.

    trunk: a module with GPT's forward and `width`. lora: rank, alpha and dropout of adapters on the linear layers whose
    last name is in `targets`, None = those of queries, keys and values, by the names that the trunk has for them;
    biases: these layers' biases learn too, as in LaMo. At GPT-2 small's size that makes 912,384 numbers, 0.73 % of it.
    """

    def __init__(self, trunk, train="full", rank=16, alpha=32, dropout=0.1, targets=None, biases=True):
        super().__init__()
        if train not in TRAIN:
            raise ValueError(f"train={train!r}: expected one of {list(TRAIN)}")
        self.trunk, self.width = trunk, trunk.width
        trunk.requires_grad_(train == "full")
        if train == "lora":
            targets = [targets] if isinstance(targets, str) else found_targets(trunk) if targets is None else targets
            check_targets(trunk, targets)
            add_lora(trunk, rank, alpha, dropout, targets)
            for name, parameter in trunk.named_parameters():
                bias = biases and name.endswith(f"{BASE}.bias")
                parameter.requires_grad_(ADDED in name or bias)

    @property
    def blocks(self):
        return self.trunk.blocks

    def forward(self, *inputs, **options):
        return self.trunk(*inputs, **options)

    def base_state(self):
        """{name without adapters: tensor} of the trunk proper, sharing memory with it."""
        state = self.trunk.state_dict()
        return {name.replace(BASE, ""): value for name, value in state.items() if ADDED not in name}

    @torch.no_grad()
    def load_base(self, weights):
        """Copies the weights of a trunk without adapters; ValueError names what does not fit."""
        own = self.base_state()
        odd = sorted(own.keys() ^ weights.keys())
        odd += [n for n in sorted(own.keys() & weights.keys()) if own[n].shape != weights[n].shape]
        if odd:
            raise ValueError(f"{len(odd)} tensors have no counterpart of their size, first {odd[:3]}")
        for name, value in own.items():
            value.copy_(weights[name])

    def adapter_state(self):
        """What learns, by name: all that need be kept of a trunk whose other weights are kept elsewhere."""
        return {name: value.detach() for name, value in self.trunk.named_parameters() if value.requires_grad}


def found_targets(trunk):
    """Names of the linear layers that make queries, keys and values; else what peft knows of the architecture; or []"""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    linear, known = linear_names(trunk), KNOWN.get(getattr(trunk, "model_type", None), ())
    return [name for name in QKV if name in linear] or [name for name in known if name in linear]


def linear_names(trunk):
    return {name.rpartition(".")[2] for name, module in trunk.named_modules() if isinstance(module, nn.Linear)}


def check_targets(trunk, targets):
    """ValueError for a target that matches no linear layer."""
    linear = linear_names(trunk)
    missing = sorted(set(targets) - linear)
    if missing or not targets:
        raise ValueError(
            f"targets={list(targets)}: no linear layer of the trunk is called {missing or 'so'}; there are"
            f" {sorted(linear)}"
        )


def add_lora(trunk, rank, alpha, dropout, targets):
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none")
    inject_adapter_in_model(config, trunk)


def parameters_by_part(net):
    """{part: (numbers that learn, all)} of a policy with a trunk: trunk, adapters, embeddings, heads."""
    parts = {"trunk": [0, 0], "adapters": [0, 0], "embeddings": [0, 0], "heads": [0, 0]}
    for name, parameter in net.named_parameters():
        counts = parts[part_of(name)]
        counts[0] += parameter.numel() if parameter.requires_grad else 0
        counts[1] += parameter.numel()
    return {part: tuple(counts) for part, counts in parts.items()}


def part_of(name):
    if name.startswith("trunk."):
        return "adapters" if ADDED in name else "trunk"
    return "embeddings" if name.startswith("embed_") else "heads"
