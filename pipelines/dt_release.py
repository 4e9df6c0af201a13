"""Decision Transformer checkpoints of Hugging Face's layout (`DecisionTransformerModel`) <-> ours, exactly.

    theirs                                        ours
    encoder.h.<i>.attn.c_attn   [d, 3d] in x out  trunk.blocks.<i>.attention.{query, key, value}   out x in
    encoder.wpe row 0, added after embed_ln       folded into embed_norm.bias: every token gets the same row
    encoder.wte, predict_state, predict_return    not read: their outputs are used by nothing
    encoder.h.<i>.attn.{bias, masked_bias}        not read: causal masks of old versions

Statistics (state_mean, state_std, returns_scale, context_size) are read from config.json, where later exports keep
them; those of three early Hopper checkpoints, printed on their cards only, are in `HOPPER`.
"""

import re

import torch

from pipelines.gpt2_release import ACTIVATIONS, BLOCK, flipped, import_trunk, odd_settings, taken
from pipelines.schema import DataError

UNREAD = re.compile(
    r"encoder\.(wte\.weight|wpe\.weight|h\.\d+\.attn\.(masked_)?bias)|predict_(state|return)\.(weight|bias)"
)
LOG_STD = -1.0  # of the actions: theirs have no spread
OUTER = {
    "embed_ln": "embed_norm", "embed_state": "embed_state",
    "embed_return": "embed_condition", "embed_action": "embed_action", "predict_action.0": "head",
}  # fmt: skip
HOPPER = {  # (state_mean, state_std) of edbeeching/decision-transformer-gym-hopper-<name>
    "medium": (
        (1.311279, -0.08469521, -0.5382719, -0.07201576, 0.04932366, 2.1066856, -0.15017354, 0.00878345, -0.2848186,
         -0.18540096, -0.28461286),
        (0.17790751, 0.05444621, 0.21297139, 0.14530419, 0.6124444, 0.85174465, 1.4515252, 0.6751696, 1.536239,
         1.6160746, 5.6072536),
    ),
    "medium-replay": (
        (1.2305138, -0.04371411, -0.44542956, -0.09370098, 0.09094488, 1.3694725, -0.19992675, -0.02286135, -0.5287045,
         -0.14465883, -0.19652697),
        (0.17565121, 0.06369286, 0.34383234, 0.19566889, 0.5547985, 1.0510299, 1.1583077, 0.79631287, 1.4802359,
         1.6540332, 5.108601),
    ),
    "expert": (
        (1.3490015, -0.11208222, -0.5506444, -0.13188992, -0.00378754, 2.6071432, 0.02322114, -0.01626922, -0.06840388,
         -0.05183131, 0.04272673),
        (0.15980862, 0.0446214, 0.14307782, 0.17629202, 0.5912333, 0.5899924, 1.5405099, 0.8152689, 2.0173461,
         2.4107876, 5.8440027),
    ),
}  # fmt: skip


def net_config(config):
    """Their config.json -> ours for models.decision_transformer.DecisionTransformer."""
    activation = config.get("activation_function", "relu")
    if activation not in ACTIVATIONS:
        raise DataError(f"activation_function={activation!r} of the checkpoint: expected one of {sorted(ACTIVATIONS)}")
    odd = odd_settings(config, config.get("hidden_size", 128))
    if odd:
        raise DataError(f"the checkpoint sets {odd} unlike GPT-2; our trunk would compute something else")
    return {
        "_target_": "models.decision_transformer.DecisionTransformer",
        "state_dim": config.get("state_dim", 17), "action_dim": config.get("act_dim", 4),
        "n_actions": None, "condition_dim": 1, "layout": "interleaved", "embed": "linear", "time": "before",
        "context": config.get("context_size", 20), "max_timestep": config.get("max_ep_len", 4096),
        "width": config.get("hidden_size", 128), "layers": config.get("n_layer", 3), "heads": config.get("n_head", 1),
        "activation": ACTIVATIONS[activation], "dropout": config.get("resid_pdrop", 0.1),
        "head": "tanh" if config.get("action_tanh", True) else "linear", "log_std": LOG_STD, "auxiliary": False,
    }  # fmt: skip


def their_config(settings):
    """All settings of a DecisionTransformer of ours -> entries of their config.json."""
    names = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
    return {
        "architectures": ["DecisionTransformerModel"], "model_type": "decision_transformer",
        "state_dim": settings["state_dim"], "act_dim": settings["action_dim"], "max_ep_len": settings["max_timestep"],
        "hidden_size": settings["width"], "n_layer": settings["layers"], "n_head": settings["heads"],
        "n_positions": positions(settings["context"]), "vocab_size": 1, "action_tanh": settings["head"] == "tanh",
        "activation_function": names[settings["activation"]],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), settings["dropout"]),
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def positions(context):
    """Rows of wpe, of which old versions of transformers make their causal mask: enough for the tokens of a window."""
    return max(1024, 3 * context)


def import_weights(theirs, log_std=LOG_STD):
    """State dict of theirs -> state dict of ours; DataError names tensors that are missing or have no place."""
    left = dict(theirs)
    ours = {f"trunk.{name}": value for name, value in import_trunk(left, "encoder.").items()}
    for source, target in OUTER.items():
        ours |= {f"{target}.{part}": taken(left, f"{source}.{part}") for part in ("weight", "bias")}
    if "encoder.wpe.weight" in left:
        ours["embed_norm.bias"] = ours["embed_norm.bias"] + left["encoder.wpe.weight"][0]
    ours["embed_time.weight"] = taken(left, "embed_timestep.weight")
    ours["log_std"] = torch.full((len(ours["head.bias"]),), float(log_std))
    unknown = [name for name in left if not UNREAD.fullmatch(name)]
    if unknown:
        raise DataError(f"the checkpoint holds tensors that no Decision Transformer has: {unknown[:5]}")
    return ours


def export_weights(net):
    """State dict of theirs that computes what `net` (layout=interleaved, linear embeddings, tanh head) computes."""
    ours, theirs = net.state_dict(), {}

    def move(target, source, transposed=False):
        for part in ("weight", "bias"):
            value = ours[f"{source}.{part}"]
            theirs[f"{target}.{part}"] = flipped(value) if transposed else value

    for i in range(len(net.trunk.blocks)):
        for target, source in BLOCK.items():
            move(f"encoder.h.{i}.{target}", f"trunk.blocks.{i}.{source}", transposed="ln" not in target)
        for part in ("weight", "bias"):
            parts = [ours[f"trunk.blocks.{i}.attention.{name}.{part}"] for name in ("query", "key", "value")]
            theirs[f"encoder.h.{i}.attn.c_attn.{part}"] = torch.cat([flipped(p) for p in parts], -1)
    for target, source in {"encoder.ln_f": "trunk.norm", **OUTER}.items():
        move(target, source)
    theirs["embed_timestep.weight"] = ours["embed_time.weight"]
    width = net.width
    theirs["encoder.wpe.weight"] = torch.zeros(positions(net.context), width)
    theirs["encoder.wte.weight"] = torch.zeros(1, width)
    for name, size in (("state", net.state_dim), ("return", net.condition_dim)):
        theirs |= {f"predict_{name}.weight": torch.zeros(size, width), f"predict_{name}.bias": torch.zeros(size)}
    return theirs
