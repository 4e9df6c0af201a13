"""Language models to start from: runs of method=language, GPT-2s, and any other causal one of transformers.

The first two bring weights for our own trunk (models.language.GPT), the others their own decoder as the trunk
(models.causal_lm.CausalLM). From the hub come config.json and safetensors only; no code that lies beside them is run.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.causal_lm import CausalLM
from pipelines import checkpoint, gpt2_release, remote, untrusted
from pipelines.schema import DataError

FILES = ("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
BARE = re.compile(r"[\w.-]+", re.ASCII)  # old names on the hub, such as gpt2
MAX_CONFIG_BYTES = 16 << 20
OTHER = ("implementation", "quantization_config")
FORGOTTEN = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "id2label", "label2id"}
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError)  # what transformers says it with


@dataclass(frozen=True)
class Language:
    """A language model as an initialisation: settings {vocabulary, context, width, and of a GPT layers, ...}."""

    settings: dict
    weights: dict  # state dict of models.language.LanguageModel; of others, of their trunk as trunk.<name>
    origin: str
    model: Any = None  # of others: all of it, as transformers built it


def load(where):
    """Language for a run folder or hub name of method=language, or of a causal language model of transformers."""
    if is_ours(where):
        bundle = checkpoint.load(where)
        net = bundle.config["net"]
        if net["_target_"] != "models.language.LanguageModel":
            raise DataError(f"{where} holds a {net['_target_']}, no language model; give a run of method=language")
        settings = {k: v for k, v in net.items() if k != "_target_"}
        return Language(settings, bundle.net.state_dict(), bundle.origin or str(where))
    net, origin = transformers_model(where), folder_of(where).origin or str(where)
    if net.config.model_type == "gpt2":
        weights = gpt2_release.import_weights(net.state_dict())
        return Language(gpt2_release.settings(net.config.to_dict()), weights, origin)
    decoder, words = net.get_decoder(), net.get_input_embeddings()
    check_causal(decoder, words.embedding_dim, where)
    own = {id(parameter) for parameter in words.parameters()}
    weights = {f"trunk.model.{n}": v.data for n, v in decoder.state_dict(keep_vars=True).items() if id(v) not in own}
    sizes = {"vocabulary": words.num_embeddings, "context": context(net.config), "width": words.embedding_dim}
    return Language(sizes, weights, origin, net)


def is_ours(where):
    """Whether a path or hub name is a hub folder of this program: of a local folder the files say so."""
    path = Path(where)
    if path.exists():
        return not (path / "config.json").is_file()
    if BARE.fullmatch(str(where)):
        return False
    try:
        remote.find(where)
    except DataError as error:
        return "has no" not in str(error)  # there, but without our files
    return True


def folder_of(where):
    """Found: config.json and weights of a path, or of a name on the hub (owner/name[@revision], or gpt2)."""
    name = remote.named(where)
    if name is None and not Path(where).exists() and BARE.fullmatch(str(where)):
        name = str(where), "main"
    if name is None:
        return remote.Found(Path(where))
    folder = remote.snapshot(*name, FILES)
    return remote.Found(folder, f"{name[0]}@{folder.name}")


def checked(where):
    """The folder of folder_of, if its config.json asks for no other code than the library's and no other numbers."""
    folder = folder_of(where).folder
    config = untrusted.read_json(folder / "config.json", MAX_CONFIG_BYTES)
    stack, odd = [config], []
    while stack:
        item = stack.pop()
        stack += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        odd += [n for n, v in item.items() if v and any(w in n for w in OTHER)] if isinstance(item, dict) else []
    if odd:
        raise DataError(f"{where} sets {sorted(odd)}: only full weights and the library's own attention are read")
    return folder


def transformers_model(where):
    """A causal language model of transformers on the CPU in float32; DataError for what cannot be read."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        net, found = AutoModelForCausalLM.from_pretrained(
            checked(where), dtype="float32", use_safetensors=True, trust_remote_code=False,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except UNREADABLE as error:
        raise unreadable(where, error) from error
    if found["missing_keys"]:
        raise DataError(f"{where} lacks the tensors {sorted(found['missing_keys'])[:5]}; copy it again")
    return net.eval()


def unreadable(where, error):
    return DataError(
        f"{where} is no language model that can be read ({remote.first_line(error)}); give a run of method=language, or"
        " a folder or hub name with config.json and weights (safetensors) of a causal language model"
    )


# other decoders than GPT-2's


def architecture(where):
    """What models.causal_lm.CausalLM builds the trunk of a language model from; None where that is our own GPT."""
    from transformers import AutoConfig

    if is_ours(where):
        return None
    try:
        config = AutoConfig.from_pretrained(checked(where), trust_remote_code=False, local_files_only=True)
        if config.model_type == "gpt2":
            return None
        found = entries(config.get_text_config(decoder=True))
        with torch.device("meta"):
            CausalLM(found)
    except UNREADABLE as error:
        raise unreadable(where, error) from error
    return found


def entries(config):
    """A config of transformers as plain values: what its class does not share with all others, and what is set."""
    from transformers import PreTrainedConfig

    common = PreTrainedConfig().to_dict()
    return clean({n: v for n, v in config.to_dict().items() if n not in common or v != common[n]}) | {
        "model_type": config.model_type
    }


def clean(value):
    """Without private entries, those of the words, and integers where a number may be large."""
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {n: clean(v) for n, v in value.items() if not n.startswith("_") and n not in FORGOTTEN}
    return {n: float(v) if n == "rope_theta" else v for n, v in kept.items() if not n.endswith("_token_id")}


def context(config):
    """Tokens that a model has positions for; None where nothing limits them."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


@torch.no_grad()
def check_causal(decoder, width, where):
    """DataError where what comes later changes what comes out before, as in an encoder."""
    x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    other = torch.cat([x[:, :3], -x[:, 3:]], 1)
    before, after = (decoder(inputs_embeds=one).last_hidden_state[:, :3] for one in (x, other))
    if not torch.allclose(before, after, atol=1e-4):
        raise DataError(f"{where} looks at tokens to come, so it is no causal language model; give a decoder")
