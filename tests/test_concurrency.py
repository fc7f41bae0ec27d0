"""Episodes side by side against a server: order, isolation, deadlines, retries."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch
from conftest import Canned, task

import posttrain as pt
from posttrain.core import EpisodeFailed, Failure
from posttrain.episode import play_concurrently
from posttrain.group import play_and_grade
from posttrain.reward import group_scores


class Desk:
    """A player that answers from any thread, once `crowd` asks have been under way together; `most` is how many were."""

    at_once = 8

    def __init__(self, crowd=1):
        self.crowd, self.under_way, self.most = crowd, 0, 0
        self.lock, self.met = threading.Lock(), threading.Event()

    def sample(self, asks):
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            if self.under_way >= self.crowd:
                self.met.set()
        assert self.met.wait(600)
        time.sleep(0.002 if self.crowd > 1 else 0)
        with self.lock:
            self.under_way -= 1
        return [pt.Reply(f"{ask.messages[0]['content']} {ask.seed}", torch.zeros(0), None) for ask in asks]


def talk(one):
    """Two turns."""
    first = yield from pt.ask(one.prompt)
    second = yield from pt.ask([*one.prompt, pt.assistant(first), pt.user("and?")])
    return first.content, second.content


def test_the_same_asks_and_seeds_as_in_lock_step_in_the_order_of_the_tasks():
    tasks = [task(str(i)) for i in range(12)]
    lock_step = pt.play(tasks, talk, {"policy": Desk()}, seeds=range(12))
    desk = Desk(5)
    ended: list[int] = []
    side_by_side = play_concurrently(
        tasks, talk, {"policy": desk}, range(12), lambda i, one: ended.append(i), at_once=5
    )
    assert [one.facts for one in side_by_side] == [one.facts for one in lock_step]
    assert [one.task.key for one in side_by_side] == [str(i) for i in range(12)]
    assert sorted(ended) == list(range(12))
    assert desk.most == 5


def test_rollout_plays_so_when_the_policy_is_a_server():
    desk = Desk(2)
    groups = pt.rollout(talk, [task("a"), task("b")], {"policy": desk, "judge": Canned("fine")}, 3)
    assert [len(group) for group in groups] == [3, 3]
    assert desk.most > 1


def test_one_that_fails_is_begun_again_then_invalid_and_harms_no_other():
    tries: dict[str, int] = {}

    def shaky(one):
        tries[one.key] = tries.get(one.key, 0) + 1
        yield from pt.ask(one.prompt)
        if one.key == "once" and tries[one.key] == 1:
            raise ConnectionError("reset by peer")
        if one.key == "always":
            raise EpisodeFailed("the tool is down")
        return "done"

    tasks = [task(key) for key in ("fine", "once", "always")]
    fine, once, always = play_concurrently(tasks, shaky, {"policy": Desk()}, retries=2)
    assert fine.facts == once.facts == "done"
    assert always.facts == Failure("EpisodeFailed: the tool is down")
    assert tries == {"fine": 1, "once": 2, "always": 3}
    seen: list[int] = []

    def reward(group):
        seen.append(len(group))
        return [pt.Score(1.0) for _ in group]

    scores = group_scores(reward, [fine, always, once])
    assert scores == [scores[0], pt.Invalid("EpisodeFailed: the tool is down"), scores[2]]
    assert seen == [2], "no reward sees what was not played to its end"
    assert group_scores(reward, [always]) == [pt.Invalid("EpisodeFailed: the tool is down")]


def test_a_judge_that_fails_one_ask_fails_one_episode():
    def judged(one):
        yield from pt.ask(one.prompt)
        said = yield from pt.ask(one.prompt, who="judge")
        return said.content

    def moody(ask):
        return Failure("ServerError: refused") if "b" in ask.messages[0]["content"] else "fine"

    tasks = [task("a"), task("b"), task("c")]
    for play in (pt.play, partial(play_concurrently, retries=0)):
        found = play(tasks, judged, {"policy": Desk(), "judge": Canned(moody)})
        assert [one.facts for one in found] == ["fine", Failure("EpisodeFailed: ServerError: refused"), "fine"]
        assert [len(one.turns) for one in found][::2] == [1, 1]


def test_one_that_hangs_is_given_up_at_its_deadline():
    gate, through = threading.Event(), []

    def hangs(one):
        yield from pt.ask(one.prompt)
        if one.key == "stuck":
            gate.wait(60)
            through.append(one.key)
        return "done"

    stuck, fine = play_concurrently([task("stuck"), task("fine")], hangs, {"policy": Desk()}, deadline_s=2)
    assert not through, "it is not waited for"
    gate.set()
    assert stuck.facts == Failure("TimeoutError: not finished after 2 s")
    assert fine.facts == "done"


def test_a_mistake_in_an_environment_is_raised_with_the_task():
    def wrong(one):
        yield from pt.ask(one.prompt)
        raise KeyError("gold")

    with pytest.raises(KeyError) as caught:
        play_concurrently([task("q7")], wrong, {"policy": Desk()})
    assert "raised by the episode of task 'q7'" in caught.value.__notes__


def test_too_many_that_fail_stop_the_run():
    def down(one):
        yield from pt.ask(one.prompt)
        raise EpisodeFailed("the page does not load")

    from posttrain.group import limit_invalid

    found, _ = play_and_grade([task("a")], down, pt.each(lambda one: 1.0), {"policy": Desk()}, 2, 0)
    with pytest.raises(ValueError, match="2 of 2 rollouts could not be graded .*the page does not load"):
        limit_invalid(found, 0.2)
