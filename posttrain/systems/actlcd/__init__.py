"""ActLCD: a gate learnt offline decides at each token whether layers are contrasted (arXiv:2505.23657).

DoLa's contrast of late and early layers brings out truths that a model knows and does not say, and spoils answers that
were right. So contrast only where it helps: before every token a small network looks at the layers' distributions. It
is learnt from decoding with a mixed gate, by discrete BCQ, with a reward of classification paid once a sequence.

    gate        a policy whose decisions are to contrast or not, token by token, over a frozen language model
    features    what the gate sees of a token
    labels      whether a contrast was needed, and what the gate's choice earns
    bcq         the gate that is learnt, and its losses
    learning    from transitions to a gate
    collecting  transitions of a checkpoint that reads answers, or is graded
    checkers    the paper's benchmarks: stated answers, packages that exist, a judge of truth
"""

from __future__ import annotations

from collections.abc import Mapping

import posttrain as pt

__all__ = ["PARTS"]

PARTS: Mapping[str, pt.Part] = {}  # a gate is a policy of its own, and changes no other method
