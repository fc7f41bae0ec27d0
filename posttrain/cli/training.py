"""The commands that train on data of one's own."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from posttrain.cli.options import (
    DemonstrationOptions,
    ModelOptions,
    PairOptions,
    TaskOptions,
    check_choice,
)
from posttrain.cli.scale import ScaleOptions
from posttrain.run.settings import Run

if TYPE_CHECKING:
    from posttrain.core import Loss, Reward, Row
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe
    from posttrain.run.session import Session

TRUNCATED = ("train", "mask", "penalise")
PairLossName = Literal["dpo", "cdpo", "ipo", "simpo", "kto", "orpo", "reward-model"]


def train(
    task: TaskOptions,
    run: Run,
    model: ModelOptions = ModelOptions(),
    scale: ScaleOptions = ScaleOptions(),
    method: str | None = None,
    samples: int | None = None,
    kl: float = 0.0,
    entropy: float = 0.0,
    updates: int | None = None,
    with_: Annotated[str | None, tyro.conf.arg(name="with")] = None,
    truncated: str = "train",
    held_out: tuple[str, ...] = (),
    held_out_split: str = "test",
    env: str | None = None,
    recipe: str | None = None,
) -> Session:
    """Train a model by reinforcement on your own data, with a grader or a reward function of your own.

    method          grpo, dr_grpo, dapo, rloo, reinforce_pp, ppo, gspo, cispo or expert_iteration; if not given the
                    project's recipe, or grpo
    samples         samples per task (the group); the method's own number if not given (grpo 8, dapo 16, rloo 4, ppo 1)
    kl              weight of the divergence from the starting model; 0 loads no reference
    entropy         weight of an entropy bonus
    updates         optimizer steps per batch of rollouts; the method's own number if not given
    with_           parts of published systems, separated by commas, such as entropy.kl_cov,diversity.positive (see
                    list), or ./my_paper.py:part
    truncated       replies cut off by `max_new`: train (as they were graded), mask (not trained), penalise (DAPO's soft
                    penalty)
    held_out        data files or datasets of tasks that are only evaluated, with the same columns: FILE, or NAME=FILE
    held_out_split  their split, if they are Hugging Face datasets
    env             an environment of your own, file.py:function (docs/environments.md)
    recipe          a recipe of your own, file.py:function of policy, reward and samples, as far as it names them
    """
    from posttrain.cli.parts import is_tiny, part_of, parts_in, with_parts
    from posttrain.method import METHODS

    check_choice(method or "grpo", METHODS, "method")
    check_choice(truncated, TRUNCATED, "truncated")
    parts = parts_in(with_ or "")
    for name in parts:
        part_of(name)  # raises, before any work, where there is none
    reward, tasks, tests = task.reward(), task.tasks(), task.tests(held_out, held_out_split)
    own = recipe is not None or (method is None and task.project is not None and task.project.recipe is not None)
    if not own and not parts:  # which may pay by something else
        task.check_answers([*tasks, *itertools.chain(*tests.values())])
    policy = model.policy()
    made = recipe_of(recipe or f"{task.data}:recipe", policy, reward, samples) if own else named_recipe(
        policy, reward, method=method or "grpo", samples=samples, kl=kl, updates=updates, truncated=truncated, lr=run.lr
    )  # fmt: skip
    made = replace(made, env=task.env(env, made.env))
    if parts:
        made = with_parts(made, parts, is_tiny(policy))
    made = with_terms(made, entropy, truncated == "mask")
    return scale.train(policy, tasks, made, run, held_out=tests)


def recipe_of(spec: str, policy: TextPolicy, reward: Reward, samples: int | None) -> Recipe:
    """The recipe of the user's own file. Raises ValueError when it asks for something else or returns none."""
    from posttrain.recipe import Recipe
    from posttrain.user_code import function_in

    function: Callable[..., Any] = function_in(spec, "recipe")
    known: dict[str, Any] = {"policy": policy, "reward": reward, "samples": samples}
    names = inspect.signature(function).parameters
    if strange := [n for n, one in names.items() if n not in known and one.default is inspect.Parameter.empty]:
        raise ValueError(f"`recipe={spec}`: it asks for {strange[0]}; a recipe may ask for policy, reward and samples")
    wanted = [name for name in known if name in names and not (name == "samples" and samples is None)]
    made = function(**{name: known[name] for name in wanted})
    if not isinstance(made, Recipe):
        raise ValueError(f"`recipe={spec}`: it returned {type(made).__name__}, not a posttrain.Recipe")
    return made


def named_recipe(
    policy: TextPolicy,
    reward: Reward,
    *,
    method: str,
    samples: int | None,
    kl: float,
    updates: int | None,
    truncated: str,
    lr: float | None,
) -> Recipe:
    """A method's recipe with the command's options in it. Raises ValueError for options that do not go together."""
    from posttrain.method import METHODS
    from posttrain.reward import overlong

    most = policy.sampling.max_new
    options: dict[str, Any] = {} if samples is None else {"samples": samples}
    if method in ("dr_grpo", "dapo"):
        options["max_new"] = most
    if kl and method not in ("grpo", "rloo", "reinforce_pp", "ppo"):
        raise ValueError(f"`kl={kl}`: the method {method} has no divergence term; use grpo, or `kl=0`")
    if kl:
        options |= {"kl": kl, "reference": policy.frozen_copy()}
    if method == "ppo":
        from posttrain.policy.value import Critic, Gae

        options["advantage"] = Gae(Critic(policy, lr=(lr or 1e-5)))
    if updates is not None:
        options["updates"] = updates
    if truncated == "penalise" and method == "dapo":
        raise ValueError("`truncated=penalise`: the method dapo does so already")
    if truncated == "penalise":
        reward = overlong(reward, most, max(most // 5, 1))
    return METHODS[method](reward, **options)


def with_terms(recipe: Recipe, entropy: float, masked: bool) -> Recipe:
    """The recipe with an entropy bonus, and without rows that were cut off."""
    from posttrain.loss import entropy_bonus, total
    from posttrain.recipe import wait_for_learners

    loss: Loss = total((1.0, recipe.loss), (entropy, entropy_bonus)) if entropy else recipe.loss
    keep = recipe.keep

    def is_kept(row: Row) -> bool:
        return keep(row) and wait_for_learners(row)

    return replace(recipe, loss=loss, keep=is_kept if masked else keep)


def sft(
    shown: DemonstrationOptions,
    run: Run,
    model: ModelOptions = ModelOptions(),
    scale: ScaleOptions = ScaleOptions(),
    held_out: tuple[str, ...] = (),
) -> Session:
    """Supervised fine-tuning: learn the replies of demonstrations (loss on replies only).

    held_out  demonstrations with the same columns whose loss is only measured: FILE, or NAME=FILE
    """
    from posttrain.supervised import sft

    scale.refuse_sampler()
    return sft(model.policy(), shown.demonstrations(), run, held_out=shown.tests(held_out))


def prefer(
    pairs: PairOptions,
    run: Run,
    model: ModelOptions = ModelOptions(),
    scale: ScaleOptions = ScaleOptions(),
    loss: PairLossName = "dpo",
    beta: float | None = None,
    held_out: tuple[str, ...] = (),
) -> Session:
    """Learn from preference pairs: DPO and its family, or a Bradley-Terry reward model.

    loss      of a pair; reward-model trains a sequence classifier
    beta      the loss's beta (orpo: its weight); its published value if not given
    held_out  pairs with the same columns whose loss, accuracy and margin are only measured: FILE, or NAME=FILE
    """
    from posttrain import preference

    scale.refuse_sampler()
    known, tests = pairs.pairs(), pairs.tests(held_out)
    if loss == "reward-model":
        from posttrain.policy.value import reward_model
        from posttrain.reward_training import train_reward_model

        unused = [name for name in ("lora", "bf16", "checkpointing") if getattr(model, name)]
        if unused or beta is not None:
            raise ValueError(f"`loss=reward-model` does not take `{(unused or ['beta'])[0]}`: leave it out")
        options: dict[str, Any] = {"device": model.device, "threads": model.threads, "weights": model.weights}
        judge = reward_model(model.model, template=model.template, **options)
        return train_reward_model(judge, known, run, held_out=tests)
    policy = model.policy()
    make: Any = preference.PAIR_LOSSES[loss]
    name = "weight" if loss == "orpo" else "beta"
    made = make(**{name: beta}) if beta is not None else make()
    reference = policy.frozen_copy() if loss in preference.WITH_REFERENCE else None
    return preference.prefer(policy, known, made, run, reference=reference, held_out=tests)
