"""What a frozen encoder knows: linear targets are read, noise is not; encoders of every kind."""

import numpy as np
import pytest
import torch

from foundation import hub
from foundation.probe import encoder_of, features, linear_probe, untrained
from models.icvf import Icvf
from models.inverse_dynamics import InverseDynamics
from pipelines import checkpoint
from pipelines.schema import DataError


def test_a_probe_reads_what_is_linear_and_not_what_is_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    target = x @ np.arange(5) + 0.1 * rng.normal(size=600)
    assert linear_probe(lambda s: s, x[:400], target[:400], x[400:], target[400:]) > 0.99
    assert linear_probe(lambda s: s[:, :1], x[:400], target[:400], x[400:], target[400:]) < 0.2
    noise = rng.normal(size=600)
    assert linear_probe(lambda s: s, x[:400], noise[:400], x[400:], noise[400:]) < 0.1
    both = np.stack([target, noise], 1)
    assert 0.4 < linear_probe(lambda s: s, x[:400], both[:400], x[400:], both[400:]) < 0.6
    with pytest.raises(DataError, match="400 and 200 states have 400 and 100 targets"):
        linear_probe(lambda s: s, x[:400], target[:400], x[400:], target[400:500])


def test_encoders_of_every_kind_can_be_probed():
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 40, 3), np.uint8)
    torch.manual_seed(0)
    icvf = Icvf(height=32, width=40, dim=8, encoder="impala", channels=[4, 4]).eval()
    idm = InverseDynamics(32, 40, 6, 11, channels=[4, 4], dim=16, layers=1, heads=2).eval()
    assert features(encoder_of(icvf), frames).shape == (5, 8)
    assert features(encoder_of(idm), frames, at_once=2).shape == (5, 16)
    assert features(icvf.encoder[0], frames).shape == (5, 256)
    with pytest.raises(DataError, match="neither `phi` nor `encode`"):
        encoder_of(torch.nn.Linear(1, 1))


def test_an_untrained_copy_is_another_network_of_the_same_kind(tmp_path):
    torch.manual_seed(7)
    config = {"_target_": "models.icvf.Icvf", "state_dim": 3, "dim": 8}
    net = Icvf(state_dim=3, dim=8)
    checkpoint.save(tmp_path, config, net, {}, "card")
    bundle, x = hub.load(tmp_path), torch.randn(4, 3)
    one, same, other = (untrained(bundle, seed).phi(x) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, bundle.net.phi(x))
