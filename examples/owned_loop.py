"""A loop of your own: `gather` and `learn` are the two halves of a step, and the session keeps the run.

Here the first half of the run learns only what was right (expert iteration), the second half is GRPO.
"""

import sys

import posttrain as pt
from posttrain import tiny

if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    policy = pt.text("tiny", max_new=32)
    phases = [pt.expert_iteration(pt.grade.exact), pt.grpo(pt.grade.exact)]
    run = pt.Run("runs/owned-loop", steps=steps, lr=5e-4, overwrite=True)
    with pt.Session(run, policy, tiny.tasks(500), phases[1]) as session:
        for number in session:
            recipe = phases[number * 2 // run.steps]
            experience = pt.gather(policy, session.source, recipe, run.tasks, seed=session.seed)
            learned = pt.learn(policy, session, experience, recipe)
            session.log(experience.metrics | learned, experience.played)
