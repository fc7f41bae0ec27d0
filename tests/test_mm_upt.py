"""Majority votes."""

from __future__ import annotations

import math

import pytest
from conftest import said, values

from posttrain.grade.verify import equivalent, last_boxed
from posttrain.systems.mm_upt import clusters, majority, semantic_entropy, settled


def find(text: str) -> str | None:
    return None if text == "?" else text


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["a", "b", "a"], [1, 0, 1]),
        (["?", "?", "?", "a", "a"], [0, 0, 0, 1, 1]),  # having no answer is no answer to agree on
        (["?", "?", "a"], [0, 0, 0]),  # one vote is no majority
        (["?"], [0]),
        (["b", "a", "a", "b"], [1, 0, 0, 1]),  # a tie: the one that came first
        (["a"], [0]),  # a group of one
    ],
)
def test_agreement_is_rewarded(texts, wanted):
    assert values(majority(find)([said(text) for text in texts])) == wanted


def test_votes_are_counted_by_equivalence_and_not_by_spelling():
    texts = ["\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{2}", "\\boxed{2}", "\\boxed{\\frac{1}{2}}", "no answer"]
    reward = majority(last_boxed, equivalent)
    assert values(reward([said(text) for text in texts])) == [1, 1, 0, 0, 1, 0]


def test_equivalence_is_made_transitive():
    near = {frozenset("ab"), frozenset("bc")}
    found = clusters(["a", "c", "b", None, "d"], lambda x, y: frozenset((x, y)) in near)
    assert found[0] == found[1] == found[2]
    assert found[3] is None
    assert found[4] != found[0]


def test_semantic_entropy_by_hand():
    # clusters of 2 and 1, and one missing: p = 1/2, 1/4, 1/4
    assert semantic_entropy([0, 0, 1, None]) == pytest.approx(1.5 * math.log(2))
    reward = majority(find)
    assert reward([said("a"), said("a")])[0].parts == {"agreement": 1.0, "semantic_entropy": 0.0}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("so \\boxed{4}", "4"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("steps #### 42", "42"),
        ("nothing", None),
        ("\\boxed{}", None),
        ("\\boxed{cut off", None),
    ],
)
def test_the_last_boxed_answer(text, wanted):
    assert last_boxed(text) == wanted


def test_answers_in_words():
    assert settled("I think. Answer: Paris.") == "paris"
    assert settled("W s3 s5") == settled("D s5") == "s5"
    assert settled("so \\boxed{1/2}, I think") == "1/2"
    assert settled("  ") is None
