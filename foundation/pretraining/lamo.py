"""LaMo (Shi et al. 2024, arXiv:2310.20587): a Decision Transformer whose trunk begins as a language model.

Against method=dt: `language.init` fills the trunk, `language.train` says what of it learns, and language modelling can
go on beside: L = L_action + text_weight * L_language. The release computes the second term even at weight 0; here it
costs nothing then. Its learning rate for the language model never applied; here all that learns has one.
"""

import logging
from pathlib import Path

import numpy as np

from foundation.losses.next_token import next_token_loss
from foundation.pretraining.dt import DecisionTransformerTask
from foundation.training import made
from models.adapters import parameters_by_part
from models.causal_lm import Reader
from models.language import ACTIVATIONS, LanguageModel
from models.markov_heads import attention_maps, markov_head_score, uniform_score
from pipelines import checkpoint, language_release
from pipelines.schema import MASK, TOKENS, DataError

log = logging.getLogger("foundation-policy")
WATCHED = 64  # windows over which the heads' attention is averaged
MARKOV = 0.8  # a head with that much attention on the last two tokens counts as a Markov head
RANDOM = (None, "random")
DECODER = "models.causal_lm.CausalLM"
OURS = ("width", "layers", "heads", "activation", "dropout")  # settings of a trunk that is our own


class LaMoTask(DecisionTransformerTask):
    """language: {init: random | run folder or hub name of method=language | path or hub name of a causal language model
    of transformers, train: full | lora | frozen (what net.trunk was built with), save: whole | adapters, text_weight,
    text: settings of a token data module, read only if text_weight > 0, seed: of its batches}.
    """

    @classmethod
    def configured(cls, net, method, init):
        """The network's config, with the decoder of language.init (or of the policy `init`) as trunk if not our own."""
        where = method["language"]["init"]
        if where not in RANDOM:
            decoder = language_release.architecture(where)
        else:
            decoder = None if init is None else decoder_in(checkpoint.load(init).config["net"])
        if decoder is None:
            return net
        check_length(net, decoder, init if where in RANDOM else where)
        trunk = {**net["trunk"], "trunk": {"_target_": DECODER, "architecture": decoder}}
        return {name: value for name, value in net.items() if name not in OURS} | {"trunk": trunk}

    def __init__(self, net, optimizer, language, **options):
        super().__init__(net, optimizer, **options)
        self.text_weight, self.pretrained = language["text_weight"], language["init"] not in RANDOM
        found = language_release.load(language["init"]) if self.pretrained else None
        if found is not None:
            start_from(net.trunk, found)
            self.started = f"the language model `{found.origin}`"
        self.base = base_of(language, found)
        if self.text_weight > 0:
            self.text = made(language["text"], steps=0, seed=language["seed"])
            self.reader = reader(net.trunk, self.text, found, language["train"] == "full")
        for part, (learning, total) in parameters_by_part(net).items():
            log.info("%-10s %12s numbers, %12s of them learn", part, f"{total:,}", f"{learning:,}")

    def losses(self, batch):
        loss, metrics = super().losses(batch)
        if self.training and self.text_weight > 0:
            text = self.text_loss()
            loss, metrics = loss + self.text_weight * text, {**metrics, "text": text}
        return loss, metrics

    def text_loss(self):
        """Next-token cross-entropy of this step's text, read with the policy's trunk."""
        trainer = self.trainer
        batches = self.text.sequences(trainer.global_rank, trainer.world_size)
        tokens = batches[trainer.fit_loop.total_batch_idx][TOKENS].to(self.device)
        return next_token_loss(self.reader(tokens[:, :-1]), tokens)

    def describe(self, data):
        """Parameters by part; of a trunk that began as a language model, how far its heads look."""
        numbers = {}
        for part, (learning, total) in parameters_by_part(self.net).items():
            numbers |= {f"parameters/{part}": total, f"parameters/{part}_trainable": learning}
        return numbers | (head_scores(self.net.eval(), data.validation or data.dataset) if self.pretrained else {})


def decoder_in(net):
    """The architecture of the decoder in a policy's config; None where its trunk is our own."""
    trunk = (net.get("trunk") or {}).get("trunk") or {}
    return trunk.get("architecture") if trunk.get("_target_") == DECODER else None


def check_length(net, decoder, where):
    """DataError where a window has more tokens than the decoder has positions."""
    known, n = decoder.get("max_position_embeddings"), net["context"] * (1 if net["layout"] == "merged" else 3)
    if known is not None and n > known:
        raise DataError(f"{where} reads {known} tokens at once, {net['context']} steps are {n}: set method.net.context")


def base_of(language, found):
    """Where the weights are that need not be saved; None: all are saved."""
    save = language["save"]
    if save not in ("whole", "adapters"):
        raise DataError(f"method.language.save={save}: expected whole or adapters")
    if save == "adapters" and (found is None or language["train"] == "full"):
        raise DataError("method.language.save=adapters leaves out what init= has: set that, and train=lora or frozen")
    here = Path(language["init"] or "")
    return None if save == "whole" else str(here.absolute()) if here.exists() else found.origin


def start_from(trunk, found):
    """Copies a language model's trunk; DataError with both sizes where they differ."""
    if found.model is None:
        check_sizes(trunk, found)
    inner = {n.removeprefix("trunk."): value for n, value in found.weights.items() if n.startswith("trunk.")}
    try:
        trunk.load_base(inner)
    except ValueError as error:
        raise DataError(f"method.language.init={found.origin} does not fit the policy's trunk: {error}") from error


def check_sizes(trunk, found):
    """DataError with the sizes of a GPT and the policy's where they differ."""
    ours = {
        "width": trunk.width, "layers": len(trunk.blocks), "heads": trunk.blocks[0].attention.heads,
        "activation": next(n for n, make in ACTIVATIONS.items() if repr(make()) == repr(trunk.blocks[0].activation)),
    }  # fmt: skip
    theirs = {name: found.settings.get(name, "gelu_tanh") for name in ours}
    if ours != theirs:
        wanted = " ".join(f"method.net.{name}={value}" for name, value in theirs.items() if ours[name] != value)
        raise DataError(f"method.language.init={found.origin} has {theirs}, the policy's trunk {ours}; set {wanted}")


def reader(trunk, text, found, learns):
    """The language model around the policy's trunk, with the embeddings of the one it began as; random without one."""
    vocabulary, length = text.source.vocabulary, text.length
    size = found.settings if found else {"vocabulary": vocabulary, "context": length}
    foreign = found is not None and found.model is not None  # its table may have more rows than there are tokens
    fits = vocabulary <= size["vocabulary"] if foreign else vocabulary == size["vocabulary"]
    if not fits or (size["context"] is not None and size["context"] < length):
        raise DataError(
            f"the language model has {size['vocabulary']} kinds of tokens and reads {size['context']} at once, the text"
            f" has {vocabulary} in sequences of {length}; give method.language.text what the model was trained on"
        )
    if foreign:
        return Reader(found.model.requires_grad_(learns).train(), trunk.trunk)
    net = LanguageModel(size["vocabulary"], size["context"], trunk.width, None, None, trunk=trunk)
    for layer, name in ((net.tokens, "tokens.weight"), (net.positions, "positions.weight")):
        if found:
            layer.weight.data.copy_(found.weights[name])
        layer.requires_grad_(learns)
    return net


def head_scores(net, windows):
    """{"heads/<layer>_<head>": markov_head_score} on windows of data, with the score of an even gaze; logs a table."""
    places = windows.cover()
    chosen = places[np.linspace(0, len(places) - 1, min(WATCHED, len(places))).astype(int)]
    batch = windows.__getitems__(chosen)
    maps = attention_maps(net.trunk, lambda: net.latent(batch))
    if not maps:
        log.info("this decoder does not say where its heads look")
        return {}
    mask = batch[MASK].repeat_interleave(net.tokens(batch).shape[2], 1)[:, : maps[0].shape[-1]]
    scores = [markov_head_score(attention, mask).tolist() for attention in maps]
    even, flat = uniform_score(mask), [score for layer in scores for score in layer]
    log.info("attention on the current or previous token, by head (a head that looks everywhere alike: %.2f)", even)
    for i, layer in enumerate(scores):
        log.info("layer %-3d %s", i, "  ".join(f"{score:.2f}" for score in layer))
    share = float(np.mean([score > MARKOV for score in flat]))
    words = "%.0f %% are Markov heads (above %.1f): a good start for short memories, a bad one for long"
    log.info(words, 100 * share, MARKOV)
    numbers = {f"heads/{i}_{j}": score for i, layer in enumerate(scores) for j, score in enumerate(layer)}
    return {**numbers, "heads/even": even, "heads/markov_share": share}
