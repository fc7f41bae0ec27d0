"""ToMAP: a persuader that is told what the other thinks, trained by PPO (arXiv:2505.22961).

Alice argues with Bob about a claim, three turns each; what she earns is how far he moves. Two modules give her a theory
of his mind: counterclaims that he may hold, proposed by herself beforehand, and a predictor that says from the dialogue
how much he agrees with each.

    dialogue        two players with private thoughts; Bob's attitude after every round
    reward          persuasion, tags, format, repetition, length, for every turn
    counterclaims   the tree of a topic, and how it is made
    predictor       an encoder and a small network, learnt from logged dialogues
"""

from __future__ import annotations

from collections.abc import Mapping

import posttrain as pt
from posttrain.systems.tomap.recipe import recipe

__all__ = ["PARTS", "recipe"]

PARTS: Mapping[str, pt.Part] = {}
