"""A frozen policy with a pool of small changes to it, one of which a learned key picks (L2M, arXiv:2306.14884).

    query: the mean of the state tokens before the first block     key: that of the nearest slot, by cosine
    slot:  lora = low-rank changes of queries, values and of the 4d-wide hidden layer; ia3 = factors of keys, values and
           of the activated hidden layer (Liu et al. 2022); adapter = bottlenecks behind attention and hidden layer;
           prompt = tokens before the window; prefix = keys and values before those of each block

A new slot changes nothing, bit for bit, unless it is a prompt or a prefix. While a task is trained, slots that earlier
tasks used are all but excluded by their inverse frequency, so that what those learned stays; acting knows of no tasks.
How often each task used each slot is part of the state, as the release's is not: there a run that was stopped forgets
which slots are taken.
"""

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from models.bins import Autoregressive
from models.decision_transformer import check, histories, remember
from models.modulators import Bottleneck, Factor, LowRank, Tokens

KINDS, SELECT = ("lora", "ia3", "adapter", "prompt", "prefix"), ("cosine", "oracle", "sticky")
FOLDED, TOKENS = ("lora", "ia3"), ("prompt", "prefix")
TAKES = ("x", "read", "memory", "visible")  # the trunk's arguments
SHARED = ("layout", "n_actions", "context", "max_timestep", "state_dim", "action_dim")
RARE = 1e-6  # added to frequencies: a slot that was never used weighs up to a million times one that was
NONE = -1  # no slot: the frozen policy


class Modulated(nn.Module):
    """policy(window) -> (distribution, (slots int [b], similarity [b] of their keys to the query)); acts as the base.

    base: a DecisionTransformer with state tokens of their own; nothing of it is trained. slots: in the pool; tasks:
    that it can be trained on. select: cosine | sticky = when acting, the slot that was the nearest most often in
    the episode | oracle = the nearest of the task's own slots, equal blocks of the pool; the task is `task` of the
    window, or of `now`, int [b] (-1: none, the frozen policy), else the one in training. rank: of lora; width of an
    adapter; tokens of a prompt or prefix. alpha: of lora. spread: bound of A's initial values in units of
    1 / sqrt(inputs), LoRA's own; the release's is about .06; of tokens it is the bound itself.
    """

    def __init__(self, base, slots=30, tasks=10, kind="lora", rank=8, alpha=16, spread=1.0, select="cosine"):
        super().__init__()
        check(kind=(kind, KINDS), select=(select, SELECT))
        if base.layout == "merged":
            raise ValueError("layout=merged has no state tokens to compute a query from")
        if select == "oracle" and slots < tasks:
            raise ValueError(f"select=oracle gives each of {tasks} tasks slots of its own, there are {slots}")
        self.base, self.select = base.requires_grad_(False), select
        for name in SHARED:
            setattr(self, name, getattr(base, name))
        self.keys = nn.Parameter(torch.empty(slots, base.width).uniform_(-1, 1))
        self.register_buffer("counts", torch.zeros(tasks, slots, dtype=torch.long))  # windows trained
        self.register_buffer("task", torch.zeros((), dtype=torch.long))  # in training
        self.register_buffer("acted", torch.zeros(slots, dtype=torch.long), persistent=False)  # steps, for whoever asks
        self.folds = []  # (modulator, linear layer, `inner` of its `folded`)
        if kind in TOKENS:
            self.modulators = nn.ModuleList([Tokens(kind, slots, rank, base.trunk, spread)])
            base.trunk.register_forward_pre_hook(self._precede, with_kwargs=True)
        else:
            make = {
                "lora": partial(LowRank, slots, rank=rank, alpha=alpha, spread=spread),
                "ia3": partial(Factor, slots), "adapter": partial(Bottleneck, slots, width=rank, spread=spread),
            }[kind]  # fmt: skip
            self.modulators = nn.ModuleList(self._attach(kind, block, slots, make) for block in base.trunk.blocks)
        self._now = None  # (slots [b], bool [b 1 1]) of the pass that runs

    def _attach(self, kind, block, slots, make):
        """Modulators of a block, by name, hooked to its layers."""
        attention, (d, hidden) = block.attention, (block.up.in_features, block.up.out_features)
        if kind == "lora":
            layers = {"query": attention.query, "value": attention.value, "hidden": block.up}
            made = {"query": make(inputs=d, outputs=d), "value": make(inputs=d, outputs=d)}
            made["hidden"] = make(inputs=hidden, outputs=hidden)
        elif kind == "ia3":
            layers = {"key": attention.key, "value": attention.value, "hidden": block.activation}
            made = {"key": make(outputs=d), "value": make(outputs=d), "hidden": make(outputs=hidden)}
        else:
            layers = {"attention": attention.out, "hidden": block.down}
            made = {name: make(outputs=d) for name in layers}
        if kind in FOLDED:
            place = {**layers, "hidden": block.up if kind == "lora" else block.down}  # the linear layers to fold into
            self.folds += [(made[name], place[name], name == "hidden") for name in made]
        for name, layer in layers.items():
            layer.register_forward_hook(partial(self._modulate, made[name], name == "hidden"))
        return nn.ModuleDict(made)

    def _modulate(self, modulator, after, layer, inputs, output):
        if self._now is not None:
            return modulator(output if after else inputs[0], output, *self._now)

    def _precede(self, trunk, inputs, options):
        if self._now is not None:
            (tokens,) = self.modulators
            return (), tokens(*self._now, **dict(zip(TAKES, inputs, strict=False)), **options)

    @contextmanager
    def modulating(self, slots):
        """The base runs with these slots, int [b]. Without gradients, one slot for all is folded into weights."""
        on, one = slots >= 0, slots[:1]
        if self.folds and not torch.is_grad_enabled() and (slots == one).all() and one >= 0:
            with self._folding(int(one)):
                yield
            return
        self._now = (slots.clamp(min=0), on[:, None, None]) if on.any() else None
        try:
            yield
        finally:
            self._now = None

    @contextmanager
    def _folding(self, slot):
        own = [(layer.weight.data, layer.bias.data) for _, layer, _ in self.folds]
        try:
            for (modulator, layer, inner), tensors in zip(self.folds, own, strict=True):
                layer.weight.data, layer.bias.data = modulator.folded(slot, *tensors, inner)
            yield
        finally:
            for (_, layer, _), tensors in zip(self.folds, own, strict=True):
                layer.weight.data, layer.bias.data = tensors

    # which slot

    def begin(self, task):
        """Training of a task starts: the slots that others used by now are spared from now on."""
        if not 0 <= task < len(self.counts):
            raise ValueError(f"task {task}: the pool was built for {len(self.counts)} tasks")
        self.task.fill_(task)

    def rarity(self):
        """[slots]: inverse frequency in the tasks before this one, sum 1; while it is the first, all are alike."""
        before = torch.arange(len(self.counts), device=self.counts.device) < self.task
        counts = (self.counts * before[:, None]).sum(0)
        inverse = 1 / (counts / counts.sum().clamp(min=1) + RARE)
        return inverse / inverse.sum()

    def similarity(self, window):
        """Cosine of query and keys, [b slots], always in float32; gradient reaches the keys only."""
        with torch.no_grad():
            states = self.base.state_tokens(window).float()
        with torch.autocast(states.device.type, enabled=False):
            mask = window.get("mask")
            mask = torch.ones_like(states[..., :1]) if mask is None else mask[..., None].float()
            query = (states * mask).sum(1) / mask.sum(1).clamp(min=1)  # b d
            return F.normalize(query, dim=-1) @ F.normalize(self.keys.float(), dim=-1).T

    def choose(self, similarity, task=None):
        """int [b] slots."""
        score = similarity.detach()
        if self.select == "oracle":
            task = self.task.expand(len(score)) if task is None else task  # b
            tasks, slots = self.counts.shape
            block = torch.arange(slots, device=score.device) // (slots // tasks)  # a rest belongs to nobody
            chosen = score.masked_fill(block != task[:, None], -torch.inf).argmax(-1)
            return torch.where(task < 0, NONE, chosen)
        if self.training:
            score = (score + 1) / 2 * self.rarity()
        return score.argmax(-1)

    def own(self, task):
        """bool [slots]: which were trained on a task."""
        return self.counts[task] > 0

    # as the base does

    def forward(self, window, state=None):
        similarity = self.similarity(window)
        slots = self.choose(similarity, window.get("task"))
        if self.training:
            self.counts[self.task] += torch.bincount(slots[slots >= 0], minlength=len(self.keys))
        with self.modulating(slots):
            distribution, _ = self.base(window)
        return distribution, (slots, similarity.gather(1, slots.clamp(min=0)[:, None])[:, 0])

    def initial_state(self, batch_size, device=None):
        votes = torch.zeros(batch_size, len(self.keys), dtype=torch.long, device=device)
        return {**self.base.initial_state(batch_size, device), "votes": votes}

    def step(self, now, first, state):
        """See DecisionTransformer.step; the slot is chosen once, for all dimensions of an action."""
        votes = torch.where(first[:, None], 0, state["votes"])
        state = remember(now, first, {name: value for name, value in state.items() if name != "votes"}, self.context)
        slots = self.choose(self.similarity(histories(state)), now.get("task"))
        rows = torch.arange(len(slots), device=slots.device)[slots >= 0]
        votes[rows, slots[rows]] += 1
        if self.select == "sticky":
            slots = votes.argmax(-1)
        self.acted += torch.bincount(slots[slots >= 0], minlength=len(self.keys))
        with self.modulating(slots):
            distribution, latent = self.base.look(state)
        if isinstance(distribution, Autoregressive):
            distribution.trunk = partial(self._run, slots)
        return distribution, latent, {**state, "votes": votes}

    def _run(self, slots, *inputs, **options):
        with self.modulating(slots):
            return self.base.trunk(*inputs, **options)

    def unit(self, action):
        return self.base.unit(action)
