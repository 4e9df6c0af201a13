"""GPT-2 checkpoints of Hugging Face's layout -> our language model and its trunk, exactly.

theirs                                           ours
transformer.wte, wpe                             tokens, positions
transformer.h.<i>.attn.c_attn [d, 3d] in x out   trunk.blocks.<i>.attention.{query, key, value}   out x in
transformer.h.<i>.attn.{bias, masked_bias}       not read: causal masks of old files
lm_head                                          not read: it is wte
"""

import re

from pipelines.schema import DataError

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
BLOCK = {  # of theirs -> ours; matrices of these are stored in x out
    "ln_1": "norm1", "ln_2": "norm2", "attn.c_proj": "attention.out", "mlp.c_fc": "up", "mlp.c_proj": "down",
}  # fmt: skip
UNREAD = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|lm_head\.weight")
ODD = ("scale_attn_by_inverse_layer_idx", "add_cross_attention")  # settings that would compute something else


def settings(config):
    """config.json of a GPT-2 -> settings of our LanguageModel; DataError where ours would compute something else."""
    width, activation = config["n_embd"], config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise DataError(f"activation_function={activation!r}: expected one of {sorted(ACTIVATIONS)}")
    odd = odd_settings(config, width)
    if odd:
        raise DataError(f"the checkpoint sets {odd} unlike GPT-2; our trunk would compute something else")
    return {
        "vocabulary": config["vocab_size"], "context": config["n_positions"], "width": width,
        "layers": config["n_layer"], "heads": config["n_head"], "activation": ACTIVATIONS[activation],
    }  # fmt: skip


def odd_settings(config, width):
    """Names of what a config.json sets so that our trunk would compute something else."""
    odd = [name for name in ODD if config.get(name)]
    odd += ["n_inner"] if config.get("n_inner") not in (None, 4 * width) else []
    odd += ["scale_attn_weights"] if not config.get("scale_attn_weights", True) else []
    odd += ["layer_norm_epsilon"] if abs(config.get("layer_norm_epsilon", 1e-5) - 1e-5) > 1e-12 else []
    return odd


def import_weights(theirs):
    """State dict of GPT2LMHeadModel (or GPT2Model, without the prefix) -> of our LanguageModel."""
    left = dict(theirs)
    prefix = "transformer." if any(name.startswith("transformer.") for name in left) else ""
    ours = {"tokens.weight": taken(left, f"{prefix}wte.weight"), "positions.weight": taken(left, f"{prefix}wpe.weight")}
    ours |= {f"trunk.{name}": value for name, value in import_trunk(left, prefix).items()}
    unknown = [name for name in left if not UNREAD.fullmatch(name)]
    if unknown:
        raise DataError(f"the checkpoint holds tensors that no GPT-2 has: {unknown[:5]}")
    return ours


def import_trunk(left, prefix):
    """Takes blocks and final norm of GPT-2 out of the dict `left` -> state dict of models.language.GPT."""
    ours = {}

    def move(source, target, transposed=False):
        for part in ("weight", "bias"):
            value = taken(left, f"{prefix}{source}.{part}")
            ours[f"{target}.{part}"] = flipped(value) if transposed else value

    for i in range(blocks(left, prefix)):
        for source, target in BLOCK.items():
            move(f"h.{i}.{source}", f"blocks.{i}.{target}", transposed="ln" not in source)
        for part in ("weight", "bias"):
            joined = taken(left, f"{prefix}h.{i}.attn.c_attn.{part}")
            for name, value in zip(("query", "key", "value"), joined.chunk(3, -1), strict=True):
                ours[f"blocks.{i}.attention.{name}.{part}"] = flipped(value)
    move("ln_f", "norm")
    return ours


def flipped(value):
    """A matrix with inputs and outputs exchanged; a bias as it is."""
    return value.T.contiguous() if value.ndim == 2 else value


def blocks(state, prefix):
    found = {int(match[1]) for name in state if (match := re.match(rf"{re.escape(prefix)}h\.(\d+)\.", name))}
    if not found:
        raise DataError(f"the file holds no {prefix}h.<i> tensors; expected GPT-2's layout of transformers")
    return max(found) + 1


def taken(state, name):
    if name not in state:
        raise DataError(f"the checkpoint has no tensor {name}; expected GPT-2's layout of transformers")
    return state.pop(name)
