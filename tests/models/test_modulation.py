import pytest
import torch

from models.modulation import KINDS, TOKENS, Modulated
from tests.models.test_decision_transformer import A, B, K, S, make, make_window, said


def modulated(random=True, **options):
    """A frozen net of two layers with a pool whose slots all do something."""
    base = make(layout="tokenised", n_actions=9, layers=2)
    torch.manual_seed(1)
    net = Modulated(base, **{"slots": 6, "tasks": 3, "rank": 2, **options}).eval()
    if random:
        with torch.no_grad():
            for parameter in net.modulators.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def window_of(net):
    mask = torch.arange(K) < torch.tensor([K, 1, 3, K, 2])[:, None]
    return {**make_window(net.base), "mask": mask}


@pytest.mark.parametrize("kind", KINDS)
def test_new_slots_change_nothing_and_learned_ones_do(kind):
    net, window = modulated(False, kind=kind), None
    window = window_of(net)
    before = said(net.base(window)[0])
    assert torch.equal(said(net(window)[0]), before) == (kind not in TOKENS)  # tokens take attention from the others
    other = modulated(kind=kind)
    assert ((said(other(window)[0]) - before).abs().amax((1, 2, 3)) > 1e-3).all()
    none = {**window, "task": torch.full((B,), -1)}
    assert torch.equal(said(modulated(kind=kind, select="oracle")(none)[0]), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_gets_its_own_slot(kind):
    net = modulated(select="oracle", kind=kind)
    window, task = window_of(net), torch.tensor([0, 2, -1, 1, 2])
    mixed, (slots, _) = net({**window, "task": task})
    assert (slots // 2 * (slots >= 0) == task.clamp(min=0)).all() and slots[2] == -1
    for row in range(B):
        alone = {name: value[row : row + 1] for name, value in {**window, "task": task}.items()}
        torch.testing.assert_close(said(net(alone)[0])[0], said(mixed)[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_one_slot_for_all_is_folded_into_the_weights(kind):
    net = modulated(kind=kind, select="oracle")
    window = {**window_of(net), "task": torch.ones(B, dtype=torch.long)}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        slot = int(net(window)[1][0][0])
        net.keys[[i for i in (2, 3) if i != slot]] = -net.keys[slot]  # all rows take the same one
        folded = said(net(window)[0])
    hooked = said(net(window)[0])  # with gradients, nothing is folded
    assert (said(net.base(window)[0]) - hooked).abs().max() > 1e-3
    torch.testing.assert_close(folded, hooked.detach(), rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if "base" in name)


def test_low_rank_changes_by_hand():
    net = modulated()
    window = window_of(net)
    slots = net(window)[1][0]
    layer, first = net.base.trunk.blocks[0], net.modulators[0]
    x = torch.randn(B, 7, 32)
    with net.modulating(slots):
        query, hidden = layer.attention.query(x), layer.up(x)
    for row, slot in enumerate(slots):
        q = x[row] @ layer.attention.query.weight.T + layer.attention.query.bias
        h = x[row] @ layer.up.weight.T + layer.up.bias
        q = q + 8 * (x[row] @ first["query"].a[slot]) @ first["query"].b[slot]  # alpha 16 / rank 2
        h = h + 8 * (h @ first["hidden"].a[slot]) @ first["hidden"].b[slot]  # acts on the hidden vector itself
        torch.testing.assert_close(query[row], q, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(hidden[row], h, rtol=1e-4, atol=1e-4)
    assert not torch.equal(layer.up(x), hidden)  # outside, the layers are as they were


def test_bottlenecks_by_hand():
    net = modulated(kind="adapter")
    layer, made, x = net.base.trunk.blocks[0].attention.out, net.modulators[0]["attention"], torch.randn(2, 7, 32)
    with net.modulating(torch.tensor([4, 4])):  # nothing to fold: what is between is not linear
        found = layer(x)
    y = layer(x)
    inside = y @ made.a[4]
    torch.testing.assert_close(found, y + inside * torch.sigmoid(inside) @ made.b[4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_are_as_if_they_stood_before(kind):
    net, x, slots = modulated(kind=kind, rank=3), torch.randn(2, 7, 32), torch.tensor([4, 1])
    with net.modulating(slots):
        found, memory = net.base.trunk(x)
        last, _ = net.base.trunk(x[:, 6:], memory=net.base.trunk(x[:, :6])[1])
    learned = net.modulators[0].learned[slots]
    if kind == "prompt":
        expected, _ = net.base.trunk(torch.cat([learned, x], 1), torch.arange(3, 10))
    else:
        parts = [net.base.trunk.blocks[0].attention._split(part) for part in learned.chunk(4, -1)]  # of two blocks
        expected, _ = net.base.trunk(x, memory=[(parts[0], parts[1]), (parts[2], parts[3])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, found[:, 6:], rtol=0, atol=1e-5)
    assert memory[0][0].shape[2] == 10


def test_the_query_is_the_mean_of_the_states_that_are_there():
    net = modulated()
    window = window_of(net)
    changed = {**window, "observation": window["observation"].clone()}
    changed["observation"][1, 1:] += 9  # padding
    assert torch.equal(net.similarity(window), net.similarity(changed))
    token = net.base.tokens(window)[1, 0, 0]  # row 1 has a single step, whose first token is the state
    expected = torch.cosine_similarity(token[None], net.keys)
    torch.testing.assert_close(net.similarity(window)[1], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_chosen_slots_and_keys_only(kind):
    net = modulated(kind=kind).train()
    window = window_of(net)
    distribution, (slots, similarity) = net(window)
    (-distribution.log_prob(window["action"]).mean() - similarity.mean()).backward()
    assert all(p.grad is None for p in net.base.parameters())
    used = torch.zeros(6, dtype=torch.bool).index_fill(0, slots, True)
    for name, parameter in [("keys", net.keys), *net.modulators.named_parameters()]:
        assert torch.equal(parameter.grad.flatten(1).abs().sum(1) > 0, used), name


def test_slots_of_earlier_tasks_are_spared_in_training_only():
    net = modulated(slots=4, tasks=2).train()
    similarity = torch.tensor([[0.9, 0.8, -0.5, -0.9], [0.1, 0.7, -0.2, -0.3]])
    assert net.choose(similarity).tolist() == [0, 1]
    net.counts[0] = torch.tensor([30, 10, 0, 0])
    assert net.choose(similarity).tolist() == [0, 1]  # the first task is not penalised for its own
    net.begin(1)
    inverse = 1 / torch.tensor([0.75 + 1e-6, 0.25 + 1e-6, 1e-6, 1e-6])
    torch.testing.assert_close(net.rarity(), inverse / inverse.sum())
    assert net.choose(similarity).tolist() == [2, 2]
    net.counts[1] = torch.tensor([0, 0, 1000, 0])
    assert net.choose(similarity).tolist() == [2, 2]  # frozen: what this task uses stays free to it
    assert net.eval().choose(similarity).tolist() == [0, 1]
    assert net.own(0).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="built for 2 tasks"):
        net.begin(2)


def test_training_counts_and_the_counts_are_state():
    net = modulated().train()
    window = window_of(net)
    slots = net(window)[1][0]
    assert torch.equal(net.counts[0], torch.bincount(slots, minlength=6))
    net.begin(1)
    net(window)
    other = modulated(False)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.counts, net.counts) and other.task == 1
    other.eval()(window)
    assert torch.equal(other.counts, net.counts)


def test_oracle_blocks_leave_the_rest_to_nobody():
    net = modulated(select="oracle", slots=7)
    similarity = torch.linspace(0, 1, 7).expand(4, 7)
    assert net.choose(similarity, torch.tensor([0, 1, 2, -1])).tolist() == [1, 3, 5, -1]
    net.begin(1)
    assert net.choose(similarity).tolist() == [3] * 4


def play(net, window, **now):
    """Modes of all steps [b t a], slots chosen [b t]."""
    state, chosen, slots, action = net.initial_state(B), [], [], torch.zeros(B, A, dtype=torch.long)
    net.acted.zero_()
    for t in range(K):
        seen = {name: window[name][:, t] for name in ("observation", "condition", "timestep")} | now
        seen |= {"reward": window["reward"][:, max(t - 1, 0)], "action": action}
        distribution, _, state = net.step(seen, torch.full((B,), t == 0), state)
        action = distribution.mode()
        chosen.append(action)
        slots.append(net.acted.clone())
    return torch.stack(chosen, 1), torch.stack(slots).diff(dim=0, prepend=torch.zeros(1, 6, dtype=torch.long))


@pytest.mark.parametrize("kind", KINDS)
def test_acting_equals_the_pass_over_windows_with_the_slots_of_each_step(kind):
    net = modulated(kind=kind)
    window = make_window(net.base)
    with torch.no_grad():
        chosen, slots = play(net, window)
        for t in range(K):
            part = {name: value[:, : t + 1] for name, value in {**window, "action": chosen}.items()}
            distribution, (picked, _) = net(part)
            assert torch.equal(said(distribution)[:, t].argmax(-1), chosen[:, t])
            assert torch.equal(torch.bincount(picked, minlength=6), slots[t])
    assert len(slots.sum(0).nonzero()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_slot_the_policy_acts_as_the_frozen_one(kind):
    net = modulated(select="oracle", kind=kind)
    window = make_window(net.base)
    with torch.no_grad():
        none, slots = play(net, window, task=torch.full((B,), -1))
        told, _ = play(net, window, task=torch.zeros(B, dtype=torch.long))
        fresh, _ = play(modulated(False), window)  # low-rank, so as the frozen one
    assert torch.equal(none, fresh) and slots.sum() == 0
    assert not torch.equal(none, told)


def test_sticky_keeps_the_slot_that_was_nearest_most_often(monkeypatch):
    net, nearest = modulated(select="sticky"), iter([3, 5, 5, 3, 5, 1])
    monkeypatch.setattr(net, "similarity", lambda window: torch.eye(6)[[next(nearest)] * B])
    _, slots = play(net, make_window(net.base))
    assert slots.argmax(1).tolist() == [3, 3, 5, 3, 5, 5]  # a tie goes to the smaller number


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "suffix"}, "kind='suffix'"), ({"select": "best"}, "select='best'"),
     ({"select": "oracle", "tasks": 9}, "each of 9 tasks")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        modulated(**options)
    with pytest.raises(ValueError, match="no state tokens"):
        Modulated(make(layout="merged"), S)
