"""`posttrain eval`: every task's samples graded, each reply kept as it comes, and the measures that follow."""

from __future__ import annotations

from posttrain.cli.options import ModelOptions, TaskOptions
from posttrain.cli.scale import ScaleOptions
from posttrain.run.settings import Output


def evaluate(
    task: TaskOptions,
    model: ModelOptions = ModelOptions(),
    scale: ScaleOptions = ScaleOptions(),
    output: Output = Output(""),
    samples: int | None = None,
    k: str = "1",
    greedy: bool = False,
    env: str | None = None,
    recipe: str | None = None,
) -> None:
    """Grade samples of a model: mean reward, pass@k, majority@k, with 95 % intervals.

    With `out`, every reply with its score goes to OUT/replies.jsonl as it comes, and `resume` continues after them;
    OUT/measures.json has the numbers.

    samples  samples per task; 1, or none where `greedy` is given alone
    k        the k of pass@k and majority@k, separated by commas
    greedy   answer every task greedily; with `samples` too, also report Potential@k
    env      an environment of your own, file.py:function (docs/environments.md)
    recipe   a recipe of your own, file.py:function, for its environment, players and (evaluation) reward
    """
    from posttrain.cli.measures import evaluation_table, evaluation_values
    from posttrain.cli.training import recipe_of
    from posttrain.run.replies import Replies

    count = (0 if greedy else 1) if samples is None else samples
    ks = [int(one) for one in k.split(",")]
    if count and max(ks) > count:
        raise ValueError(f"`k={k}`: pass@{max(ks)} needs at least `samples={max(ks)}`, not {count}")
    if not count and k != "1":
        raise ValueError(f"`k={k}`: it is of samples, and there is one greedy reply; give `samples` too")
    if not count and not greedy:
        raise ValueError("`samples=0`: there would be nothing to grade; give `greedy=True`, or more samples")
    tasks, reward = task.tasks(), task.reward()
    own = recipe or (f"{task.data}:recipe" if task.project and task.project.recipe else None)
    if not own:
        task.check_answers(tasks)
    policy = model.policy()
    made = recipe_of(own, policy, reward, None) if own else None
    environment = task.env(env, made.env if made else None)
    reward = reward if made is None else made.evaluation or made.reward
    policy.check(tasks)
    kept = Replies(output)
    with scale.playing(policy, output.out or "eval", tasks) as sampler:
        players = {"policy": sampler, **(made.others if made else {})}
        found = kept.grade(players, tasks, reward, environment, count) if count else None
        first = kept.grade(players, tasks, reward, environment, 1, greedy=True) if greedy else None
    values = evaluation_values(found, ks, first)
    evaluation_table(values, f"{model.model} on {task.data}")
    if output.out:
        kept.write(values)
