"""The gate on a checkpoint and data of the user's own: collecting, and decoding three ways side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from posttrain.core import Ask, Env, Reward, Sampler, Score, Task
from posttrain.decode.decode import Decoding, decoded
from posttrain.directory import write_json
from posttrain.episode import single_turn
from posttrain.evaluation import Evaluation, evaluate
from posttrain.options import TaskOptions, one_of
from posttrain.policy.text import TextPolicy
from posttrain.seeding import mix
from posttrain.systems.actlcd import checkers
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.gate import Constant, GatePolicy, Net, stored
from posttrain.systems.actlcd.labels import Transitions, joined, labels, sequence
from posttrain.systems.actlcd.learning import rate, transitions

AT_ONCE = 64  # references read together
PENALTIES = (1.0, 1.2)


@dataclass(frozen=True)
class Checked:
    """How replies are graded: an environment, its reward, and whom it asks besides the policy."""

    reward: Reward
    env: Env = single_turn
    others: Mapping[str, Sampler] = field(default_factory=dict)


def read_along(policy: GatePolicy, tasks: Sequence[Task], seed: int) -> Transitions:
    """The gate's choices while it reads reference answers: at each token, what both actions would have said.

    The right token is the reference's, whatever the gate chose (teacher forcing): a wording that differs counts as
    wrong, where plain and contrast agree on it for both of them. Answers are cut at the policy's `max_new`.
    """
    parts: list[Transitions] = []
    chat, longest = policy.speaker.chat, policy.speaker.sampling.max_new
    for start in range(0, len(tasks), AT_ONCE):
        some = tasks[start : start + AT_ONCE]
        told = [chat.demonstrated(task.prompt, str(task.truth)) for task in some]
        replies = [one.reply[:longest] for one in told]
        asks = [Ask(task.prompt, seed=mix(seed, start + i)) for i, task in enumerate(some)]
        made = decoded(
            policy.speaker,
            [one.prompt for one in told],
            policy.choosing(asks, longest),
            policy.how,
            max_new=longest,
            forced=replies,
        )
        for one in made:
            label = labels(one.notes["plain"], one.notes["other"], torch.tensor(one.ids))
            parts.append(sequence(one.notes["features"], one.contrast, label))
    return joined(parts)


def graded_sequences(
    policy: GatePolicy, tasks: Sequence[Task], checked: Checked, samples: int, seed: int
) -> Transitions:
    """Rollouts of the gate, paid at their last token what the grader gives; what it cannot grade is left out."""
    players = {"policy": policy, **checked.others}
    found = evaluate(players, tasks, checked.reward, checked.env, samples=samples, seed=seed)
    parts = [
        transitions(one, torch.full((one.decisions,), -1), score=score.value)
        for group, scores in zip(found.groups, found.scores, strict=True)
        for one, score in zip(group, scores, strict=True)
        if isinstance(score, Score) and one.decisions
    ]
    return joined(parts)


def three_ways(
    policy: GatePolicy, tasks: Sequence[Task], checked: Checked, penalties: Sequence[float] = PENALTIES, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Accuracy and contrast rate of plain greedy, of DoLa, and of the gate, each at every repetition penalty."""
    gates = {"greedy": Constant(0.0), "DoLa": Constant(1.0), "ActLCD": policy.gate}
    out: dict[str, dict[str, float]] = {}
    for name, gate in gates.items():
        for penalty in penalties:
            how = replace(policy.how, penalty=penalty)
            player = GatePolicy(policy.speaker, gate, how, policy.kind, temperature=0.0)
            found: Evaluation = evaluate(
                {"policy": player, **checked.others}, tasks, checked.reward, checked.env, seed=seed
            )
            out[f"{name}, penalty {penalty:g}"] = {
                "accuracy": found.reward,
                "contrast rate": rate([one for group in found.groups for one in group]),
                "tokens": statistics.fmean(one.decisions for group in found.groups for one in group),
                "invalid": float(found.invalid),
            }
    return out


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(found.values())))
    lines = [f"{'':22}" + "".join(f"{name:>15}" for name in columns)]
    lines += [f"{name:22}" + "".join(f"{row[c]:15.3f}" for c in columns) for name, row in found.items()]
    return "\n".join(lines)


def decoded_three_ways(policy: GatePolicy, tasks: Sequence[Task], checked: Checked, out: str) -> None:
    """Prints the table of `three_ways`, and writes it to OUT/decoding.json."""
    found = three_ways(policy, tasks, checked)
    print(table(found))
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(Path(out) / "decoding.json", found)


def checked_by(task: TaskOptions, check: str, judge: str | None, registry: str) -> Checked:
    """Raises ValueError for a judge that was not named."""
    if check == "grade":
        return Checked(task.reward())
    one_of(check, list(checkers.GRADES), "--check")
    if check == "packages":
        return Checked(checkers.reward(check), checkers.installing(checkers.Registry(registry)))
    if check == "judge":
        if judge is None:
            raise ValueError("--check judge needs --judge, the address of a chat server (http://host:8000/v1)")
        from posttrain.sampler.server import server

        return Checked(checkers.reward(check), checkers.judged, {"judge": server(judge)})
    return Checked(checkers.reward(check))


def loaded_gate(folder: str, speaker: TextPolicy) -> GatePolicy:
    """A gate that a run has saved, over a language model. Raises ValueError when they do not fit."""
    about, tensors = stored(folder)
    kinds = {"Bcq": Bcq, "Net": Net}
    one_of(about["kind"], list(kinds), f"--gate {folder}: a gate of the kind")
    gate = kinds[about["kind"]](about["inputs"], about["hidden"], **about["settings"])
    policy = GatePolicy(speaker, gate, Decoding(**about["decoding"]), about["features"], temperature=0.0)
    if policy.inputs != about["inputs"]:
        raise ValueError(
            f"--gate {folder}: it reads {about['inputs']} features, and this model has {policy.inputs} with the layers "
            f"{policy.how.layers}: it was trained for {about['speaker'] or 'another model'}"
        )
    policy.load_state_dict(tensors)
    return policy
