"""Reward models in this process or elsewhere, by one function: `pt.reward_of`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.core import Group, Invalid, Reward, Score
from posttrain.policy.value import RewardModel, conversation, reward_model
from posttrain.sampler.scorer import Connection
from posttrain.scale.apart import reach
from posttrain.serve.scorer import Kind, Operation
from posttrain.serve.wire import conversation_json, conversation_of


class RemoteRewardModel:
    """A reward model in another process, as a reward: one request for each group."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def __call__(self, group: Group) -> list[Score | Invalid]:
        vocabulary = self.connection.about["vocabulary"]
        asked = [conversation_json(*conversation(rollout), vocabulary) for rollout in group]
        found = self.connection.call("scores", {"conversations": asked})
        return [Invalid(one["invalid"]) if isinstance(one, dict) else Score(one) for one in found]


def operations(model: RewardModel) -> Mapping[str, Operation]:
    size = model.model.get_input_embeddings().num_embeddings

    def scores(payload: Any) -> Iterator[float | dict[str, str]]:
        for data in payload["conversations"]:
            found = model.judge(*conversation_of(data, size))
            yield {"invalid": found.reason} if isinstance(found, Invalid) else found.value

    return {"scores": scores}


REWARD_MODEL: Kind[Reward] = Kind(
    "reward model",
    "posttrain.policy.scoring:REWARD_MODEL",
    reward_model,
    lambda model: {"vocabulary": model.chat.fingerprint},
    operations,
    RemoteRewardModel,
)


def reward_of(name: str, *, device: str | None = None, template: str | None = None) -> Reward:
    """The reward of a reward model, which exists once for all ranks and players of a run.

    name      a folder, a Hub id, or the address of a server (posttrain serve --scorer reward-model=FOLDER)
    device    where it runs, in whichever process that is; the best one there if not given
    template  its chat template, as of `pt.text`
    In a single process it is `pt.reward_model(name)`. Raises ValueError when it cannot be loaded, or the address serves
    something else; ServerError when nobody answers there.
    """
    return reach(REWARD_MODEL, name, device=device, template=template)
