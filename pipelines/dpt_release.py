"""State dicts of the published Decision-Pretrained Transformer (arXiv:2306.14892) -> ours, exactly.

    theirs                                                      ours
    transformer.h.<i>.attn.c_attn   [d, 3d] in x out            trunk.blocks.<i>.attention.{query, key, value}
    transformer.wpe   [4 (1 + H), d], H transitions trained     positions
    embed_transition  [d, 2 states + actions + 1]               embed
    pred_actions      [actions, d]                              head
    transformer.wte, transformer.h.<i>.attn.{bias, masked_bias} not read: no words are read, masks are made

A file has weights only: which world they were trained for is not in it. Attention has one head in their code, whatever
their file names say.
"""

import re
from pathlib import Path

from pipelines import card, checkpoint, construct
from pipelines.command import command_line
from pipelines.gpt2_release import import_trunk, taken
from pipelines.schema import DataError
from pipelines.trajectories import Spaces
from pipelines.vpt_release import load_weights

UNREAD = re.compile(r"transformer\.(wte\.weight|h\.\d+\.attn\.(masked_)?bias)")
OUTER = {"embed_transition": "embed", "pred_actions": "head"}
PICTURES = "image_encoder."


def import_weights(theirs):
    """State dict of theirs -> of models.in_context.InContext; DataError names what is missing or has no place."""
    if any(name.startswith(PICTURES) for name in theirs):
        raise DataError("the file holds an image_encoder: only networks on vectors can be converted")
    left = dict(theirs)
    ours = {f"trunk.{name}": value for name, value in import_trunk(left, "transformer.").items()}
    ours["positions.weight"] = taken(left, "transformer.wpe.weight")
    for source, target in OUTER.items():
        ours |= {f"{target}.{part}": taken(left, f"{source}.{part}") for part in ("weight", "bias")}
    unknown = [name for name in left if not UNREAD.fullmatch(name)]
    if unknown:
        raise DataError(f"the file holds tensors that no Decision-Pretrained Transformer has: {unknown[:5]}")
    return {name: value.float() for name, value in ours.items()}


def net_config(ours, state_dim, n_actions, context=None):
    """Settings of an InContext for imported weights; DataError unless the sizes are those of the weights."""
    (outputs, _), (width, inputs) = ours["head.weight"].shape, ours["embed.weight"].shape
    layers = len({name.split(".")[2] for name in ours if name.startswith("trunk.blocks.")})
    most = len(ours["positions.weight"]) - 1
    if n_actions != outputs or token(state_dim, n_actions) != inputs:
        raise DataError(
            f"state_dim={state_dim}, n_actions={n_actions} would have {n_actions} outputs and tokens of"
            f" {token(state_dim, n_actions)} numbers; the file has {outputs} outputs and tokens of {inputs} ="
            " 2 state_dim + n_actions + 1 numbers"
        )
    if context is not None and not 1 <= context <= most:
        raise DataError(f"context={context}: the file has positions for contexts of 1 to {most} transitions")
    return {
        "_target_": "models.in_context.InContext", "state_dim": state_dim, "action_dim": 1, "n_actions": n_actions,
        "context": most if context is None else context, "width": width, "layers": layers, "heads": 1,
        "activation": "gelu_tanh", "dropout": 0.0, "query": "first", "positions": "learned", "mixing": "causal",
        "next_state": True,
    }  # fmt: skip


def token(state_dim, n_actions):
    return 2 * state_dim + n_actions + 1


def built(weights, state_dim, n_actions, context, place):
    """(net of ours with their weights, its settings); DataError where they do not fit each other."""
    try:
        ours = import_weights(weights)
        settings = net_config(ours, state_dim, n_actions, context)
        ours["positions.weight"] = ours["positions.weight"][: settings["context"] + 1]
        net = construct.build_to_fit(settings, ours, place)
    except construct.BUILD_ERRORS as error:
        raise DataError(f"{place} holds no Decision-Pretrained Transformer: {error}") from error
    net.load_state_dict(ours)
    return net.eval(), settings


def import_file(path, out, state_dim, n_actions, context=None):
    """Writes their file as a hub folder. context: transitions it was trained on, None = all that it has positions for.

    The published code makes four times as many positions as it trains.
    """
    net, settings = built(load_weights(path), state_dim, n_actions, context, path)
    digest = checkpoint.file_sha256(path)
    extras = {
        "spaces": Spaces(state_dim, 1, n_actions).to_dict(), "fps": 1.0, "condition": "none",
        "statistics": {"returns_scale": 1.0}, "source_sha256": digest,
    }  # fmt: skip
    lead = (
        f"A Decision-Pretrained Transformer (arXiv:2306.14892), read from `{Path(path).name}`; for which tasks it was"
        " trained, the file does not say."
    )
    tables = {"Source": {"sha256 of the weights": digest}}
    checkpoint.save(out, settings, net, extras, card.render(Path(path).stem, "policy", lead, tables, command_line()))
