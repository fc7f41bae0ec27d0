"""Discrete BCQ (arXiv:1910.01708): a Q-network that only chooses among what a cloned classifier finds likely."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import posttrain as pt
from posttrain.systems.actlcd.gate import HIDDEN, Standardised, network
from posttrain.systems.actlcd.labels import NEITHER, Transitions

Phase: TypeAlias = Literal["clone", "value"]
THRESHOLD = 0.3
REFRESH = 200  # steps of the Q-network between copies to its target
CLONING = 35 / 165  # of all steps; 35 epochs, then 130


class Bcq(nn.Module):
    """Two networks of features [N, F]: `bc` says whether a contrast is needed, `q` what each action is worth.

    cloned  act by `bc` alone
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int] = HIDDEN, threshold: float = THRESHOLD, *, cloned: bool = False
    ):
        super().__init__()
        self.inputs, self.hidden, self.threshold, self.cloned = inputs, tuple(hidden), threshold, cloned
        self.view, self.bc, self.q = Standardised(inputs), network(inputs, hidden), network(inputs, hidden)
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    @property
    def settings(self) -> dict[str, float | bool]:
        return {"threshold": self.threshold, "cloned": self.cloned}

    def allowed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 2] log-probabilities of the classifier, and which actions it finds likelier than the threshold."""
        logp = self.bc(self.view(x)).log_softmax(-1)
        return logp, logp.exp() > self.threshold

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2] whose larger entry is the action: Q of allowed ones; the classifier's choice where none is allowed."""
        logp, allowed = self.allowed(x)
        if self.cloned:
            return logp
        values = self.q(self.view(x)).masked_fill(~allowed, -1e9)
        return torch.where(allowed.any(-1, keepdim=True), values, logp)

    def act(self, x: Tensor) -> Tensor:
        """[N] 1 where it contrasts."""
        return self(x).argmax(-1)

    def refresh(self) -> None:
        self.target.load_state_dict(self.q.state_dict())

    # ---- learning

    def clone_loss(self, data: Transitions, index: Tensor) -> tuple[Tensor, pt.Metrics]:
        """Cross-entropy on labels, without decisions at which neither token was right."""
        index = index[data.label[index] != NEITHER]
        if not len(index):
            return self.bc(self.view(data.features[:1])).sum() * 0, {}
        logits, label = self.bc(self.view(data.features[index])), data.label[index]
        return cross_entropy(logits, label), {"label_accuracy": (logits.argmax(-1) == label).float().mean().item()}

    def value_loss(self, data: Transitions, index: Tensor) -> tuple[Tensor, pt.Metrics]:
        """Mean squared error of Q(s, a) from r + max over allowed a' of Q_target(s', a'); gamma is 1.

        Decisions whose reward is not known (NaN) teach the classifier only.
        """
        index = index[~data.reward[index].isnan()]
        if not len(index):
            return self.q(self.view(data.features[:1])).sum() * 0, {}
        with torch.no_grad():
            after = data.next_features(index)
            _, allowed = self.allowed(after)
            allowed |= ~allowed.any(-1, keepdim=True)
            ahead = self.target(self.view(after)).masked_fill(~allowed, -torch.inf).amax(-1)
            wanted = data.reward[index] + torch.where(data.done[index], 0.0, ahead)
        value = self.q(self.view(data.features[index])).gather(1, data.action[index][:, None])[:, 0]
        return (value - wanted).square().mean(), {"value": value.detach().mean().item()}

    def loss(self, phase: Phase, data: Transitions, index: Tensor) -> tuple[Tensor, pt.Metrics]:
        return self.clone_loss(data, index) if phase == "clone" else self.value_loss(data, index)


def phase_of(step: int, steps: int, cloned: bool = False) -> Phase:
    """The first of the steps clone, the others value; all of them clone where no Q-network is wanted."""
    return "clone" if cloned or step < round(CLONING * steps) else "value"
