"""A second model as judge: it is asked inside the episode, and its answer is graded outside."""

import sys

import posttrain as pt
from posttrain import tiny


def judged(task: pt.Task) -> pt.Episode:
    """The policy answers; the judge, who never trains, solves the same question. Facts: the judge's reply."""
    yield from pt.ask(task.prompt)
    verdict = yield from pt.ask(task.prompt, who="judge", temperature=0.0)
    return verdict.content


def agrees(rollout: pt.Rollout) -> float:
    answer = rollout.text.rpartition("####")[2].strip()
    return float(answer == rollout.facts.rpartition("####")[2].strip())


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    policy = pt.text("tiny", max_new=32)
    recipe = pt.Recipe(pt.each(agrees), judged, others={"judge": policy.frozen_copy()})
    pt.train(policy, tiny.tasks(500), recipe, pt.Run("runs/judge", steps=steps, lr=5e-4, overwrite=True))
