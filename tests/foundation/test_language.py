import math

import pytest
import torch
from hydra import compose, initialize_config_dir

from foundation import hub, pretrain
from foundation.losses.next_token import next_token_loss
from foundation.pretraining.token_data import MarkovData
from pipelines.command import CONFIGS, execute
from pipelines.schema import TOKENS, DataError

TINY = ["method.net.width=32", "method.net.layers=1", "method.net.context=16", "method.net.dropout=0"]
CHAIN = ["data=markov", "data.states=10", "data.validation=4"]
QUICK = ["steps=120", "validate_every=120", "method.optimizer.lr=2e-2", "method.optimizer.warmup_steps=10"]


def train(folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("pretrain", ["method=language", f"run.dir={folder}", *TINY, *overrides])
    return execute(pretrain.main.function, cfg)


def test_a_small_net_approaches_the_entropy_of_its_chain(tmp_path):
    summary = train(tmp_path, *CHAIN, *QUICK)
    floor = summary["validation/entropy_floor"]
    assert floor < summary["validation/uniform"] - 0.4
    assert floor - 0.03 < summary["validation/loss"] < floor + 0.1  # the sample is finite, hence below is possible
    bundle = hub.load(tmp_path)
    assert bundle.config["tokens"] == "chain" and bundle.net.tokens.num_embeddings == 10
    assert "text-generation" in (tmp_path / "model" / "README.md").read_text()


def test_tokens_without_structure_stay_at_the_uniform_loss(tmp_path):
    summary = train(tmp_path, *CHAIN, *QUICK, "data.order=iid", "steps=40", "validate_every=40")
    assert summary["validation/loss"] == pytest.approx(math.log(10), abs=0.03)
    assert summary["validation/entropy_floor"] == pytest.approx(math.log(10))


def test_text_is_learned_beyond_its_frequencies(tmp_path, texts):
    data = [f"data.train={texts}", f"data.validation={texts}", "data.batch_size=8"]
    summary = train(tmp_path, *data, *QUICK, "steps=50", "validate_every=50")
    assert summary["validation/loss"] < summary["validation/frequencies_only"] / 2
    with pytest.raises(DataError, match=r"no text to learn from"):
        train(tmp_path / "unset")


def test_loss_by_hand():
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    tokens = torch.tensor([[1, 0, 1]])  # p = 3/4, then 1/2
    assert float(next_token_loss(logits, tokens)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_a_batch_depends_on_the_step_and_ranks_share_it():
    def data(batch_size, seed=0):
        return MarkovData(10, 0.1, "markov", 0, 2, batch_size, 0, 8, 5, seed)

    whole = data(4).sequences()[3][TOKENS]
    halves = [data(2).sequences(rank, 2)[3][TOKENS] for rank in (0, 1)]
    assert torch.equal(whole, torch.cat(halves)) and whole.shape == (4, 9)
    assert not torch.equal(whole, data(4).sequences()[4][TOKENS])
    assert not torch.equal(whole, data(4, seed=1).sequences()[3][TOKENS])
    held = [data(4, seed).validation[0][TOKENS] for seed in (0, 1)]
    assert torch.equal(*held) and not torch.equal(held[0], data(4).sequences()[0][TOKENS])
