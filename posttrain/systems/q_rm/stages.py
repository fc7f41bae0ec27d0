"""Q-RM on a laptop, and on checkpoints, pairs and questions of the user's own: q-model, then train."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

import posttrain as pt
from posttrain.lab.world.lookup import is_right
from posttrain.systems.q_rm import ppo_recipe, recipe
from posttrain.systems.q_rm.model import Head, QModel, by_token, train_q_model

MINIBATCH = 8  # prompts of an optimizer step, of a chunk of 3072


def laptop(whole: bool = False, run: pt.Run = pt.Run("runs/q-rm", steps=100, tasks=12, lr=3e-4)) -> pt.Session:
    """Long answers that are right token by token: pairs from the base model, a Q model, REINFORCE on its scores.

    whole  pay every token the mean of the scores, and not each its own
    """
    from posttrain.systems.q_rm import lab

    world, policy, pairs = lab.start(run.seed)
    reward = by_token(lab.q_model(policy, pairs, run.seed, lab.STEPS).token_values, whole=whole)
    made = replace(recipe(reward), evaluation=pt.each(is_right))
    return pt.train(policy, world.problems(2000, "training"), made, run, held_out=world.problems(64, "test"))


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    q_model: str,
    run: pt.Run = pt.Run("runs/q-rm", steps=12, tasks=3072, lr=1e-6),
    method: Literal["reinforce", "ppo"] = "reinforce",
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Your checkpoint on questions, paid token by token by a Q model.

    q_model   OUT/model of stage q-model, or the address of a server that has such a model
    method    REINFORCE on the scores, or PPO with a critic
    held_out  data of tasks that are only evaluated, by `grade`: FILE, or NAME=FILE
    """
    from posttrain.systems.q_rm.serving import q_values

    policy, values = model.policy(), q_values(q_model, device=model.device)
    if isinstance(values, QModel):
        check_vocabulary(policy, values, q_model)
    reward, updates = by_token(values.token_values), max(run.tasks // MINIBATCH, 1)
    if method == "ppo":
        made = ppo_recipe(reward, pt.Critic(policy, lr=1e-5), policy.frozen_copy(), updates=updates)
    else:
        made = recipe(reward, centre=False, updates=updates)
    made = replace(made, evaluation=task.reward())
    return scale.train(policy, task.tasks(), made, run, held_out=task.tests(held_out))


def check_vocabulary(policy: pt.TextPolicy, values: QModel, name: str) -> None:
    """Raises ValueError when the Q model's tokens are not the policy's."""
    if values.policy.chat.fingerprint != policy.chat.fingerprint:
        raise ValueError(f"`q_model={name}`: its tokenizer is not the policy's, so it cannot score its tokens")


@pt.one_process("a Q model is not sharded")
def learn_q_model(
    pairs: pt.PairOptions,
    body: pt.ScorerOptions,
    run: pt.Run = pt.Run("runs/q-model", steps=500, tasks=16, lr=1e-5),
    head: Head = "scalar",
    bf16: bool = False,
    checkpointing: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn a Q model from pairs, and save it in OUT/model: what stage train is paid by.

    The model's body is a causal model's, with the policy's tokenizer.

    head           a score of the state that has read the token (scalar, as released), or of every token before it
    bf16           run the model in bfloat16; weights and optimizer stay float32
    checkpointing  recompute activations in the backward pass: less memory, more time
    held_out       pairs with the same columns, whose accuracy is only measured: FILE, or NAME=FILE
    """
    policy = pt.ModelOptions(**vars(body), max_new=1, bf16=bf16, checkpointing=checkpointing).policy()
    torch.manual_seed(pt.mix(run.seed, "q") % 2**32)
    made = QModel(policy, head, copied=False)
    return train_q_model(made, pairs.pairs(), run, held_out=pairs.tests(held_out))


STAGES = {"laptop": laptop, "train": learn, "q-model": learn_q_model}
