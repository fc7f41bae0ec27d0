"""The step: rows that teach nothing are left out, memory that runs out is met, groups are graded while others sample."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from conftest import Bandit, Spy, digits, task

import posttrain as pt
from posttrain import loss
from posttrain.background import PATIENCE
from posttrain.descent import is_out_of_memory
from posttrain.loss import ImportanceCorrection, credit_only


def rows_with_flat_groups(policy, flat=(0,)):
    groups = pt.rollout(pt.single_turn, [task(str(i)) for i in range(3)], {"policy": policy}, 4)
    return [
        pt.Row(one.turns, torch.full((one.decisions,), 0.0 if i in flat else j - 1.5), group=i)
        for i, group in enumerate(groups)
        for j, one in enumerate(group)
    ]


def unmarked(term):
    """The same loss, of which nothing is known."""
    return lambda batch, now: term(batch, now)


@pytest.mark.parametrize("reduce", [pt.token_mean, pt.sequence_mean, pt.prompt_mean, pt.constant_length(8)])
@pytest.mark.parametrize(
    "term", [loss.clipped(), loss.gspo(), loss.cispo(), pt.likelihood, ImportanceCorrection(loss.clipped())]
)
def test_rows_without_credit_are_left_out_and_the_gradient_is_the_same(make, term, reduce):
    rows = rows_with_flat_groups(make())
    seen = []
    for one in (term, unmarked(term)):
        policy = make()
        spy = Spy(policy)
        metrics = pt.update(policy, spy, rows, one, reduce, max_norm=1e9)
        seen.append(spy.seen[0])
        assert metrics["rows_skipped"] == pytest.approx(1 / 3 if one is term else 0)
    torch.testing.assert_close(*seen, atol=1e-6, rtol=1e-4)


def test_a_step_without_any_credit_moves_the_optimizer_as_before(make):
    after = []
    for term in (pt.clipped(), unmarked(pt.clipped())):
        policy = make()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.1)
        for flat in ((0,), (0, 1, 2), (1,)):
            pt.update(policy, optimizer, rows_with_flat_groups(make(), flat), term)
        after.append(torch.cat([p.flatten() for p in policy.parameters()]))
    torch.testing.assert_close(*after, atol=1e-5, rtol=1e-4)


def test_only_losses_known_to_follow_the_advantage_leave_rows_out():
    assert credit_only(pt.total((1.0, pt.clipped()), (0.5, pt.likelihood)))
    statistic = pt.WholeStep(lambda batch, now: now.logp, lambda batch, now, mark: (mark, {}))
    for other in (pt.entropy_bonus, pt.kl_to_reference(), statistic, unmarked(pt.clipped())):
        assert not credit_only(pt.total((1.0, pt.clipped()), (0.1, other)))


def test_a_step_that_runs_out_of_memory_is_taken_in_smaller_pieces(make):
    rows = rows_with_flat_groups(make(), ())
    whole = Spy(make())
    pt.update(whole.policy, whole, rows, pt.clipped(), max_norm=1e9)
    policy = make()
    room, tried, density = policy.size(rows) // 3, [], policy.density

    def tight(rows):
        tried.append(policy.size(rows))
        if tried[-1] > room:
            density(rows).logp.sum().backward()  # memory runs out half-way: a gradient is left behind
            raise torch.OutOfMemoryError("out of memory")
        return density(rows)

    policy.density = tight
    spy = Spy(policy)
    metrics = pt.update(policy, spy, rows, pt.clipped(), max_norm=1e9)
    assert max(tried) > room
    assert metrics["micro_tokens"] <= room
    torch.testing.assert_close(spy.seen[0], whole.seen[0], atol=1e-6, rtol=1e-4)
    room = 1
    with pytest.raises(torch.OutOfMemoryError):
        pt.update(policy, spy, rows, pt.clipped(), max_norm=1e9)


def test_memory_that_the_processor_cannot_give_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


class Watched(Bandit):
    """Hands out replies one by one, and notes who is at work; the last group waits until the second is being graded."""

    def __init__(self):
        super().__init__([0.1, 0.5, -1.0])
        self.grading, self.threads = threading.Event(), []

    def stream(self, asks):
        for i, reply in enumerate(self.sample(asks)):
            self.threads.append((threading.current_thread().name, torch.get_num_threads()))
            if i == 8:
                assert self.grading.wait(600), "nobody graded while others were sampled"
            yield i, reply


def test_groups_are_graded_while_others_are_sampled():
    policy, graded = Watched(), []

    def reward(group):
        graded.append((group[0].task.key, threading.current_thread() is threading.main_thread()))
        if len(graded) == 2:
            policy.grading.set()
        time.sleep(2 * PATIENCE)
        return [pt.Score(float(i)) for i, _ in enumerate(group)]

    source = pt.ShuffledSource([task("a"), task("b"), task("c")], 0)
    experience = pt.gather(policy, source, pt.grpo(reward, samples=4), 3)
    assert len(experience.rows) == 12
    assert [key for key, _ in graded] == [one.rollout.task.key for one in experience.played[::4]]
    assert all(main for _, main in graded)  # a reward may use signals and what else belongs to the main thread
    names = [name for name, _ in policy.threads]
    own = names.count("MainThread")
    assert 1 <= own <= 4, "until the first group has taken its time, or another program has"
    assert names == ["MainThread"] * own + ["posttrain sampler"] * (12 - own)
    assert {threads for _, threads in policy.threads} == {torch.get_num_threads()} == {1}


def test_a_quick_reward_needs_no_thread(make, monkeypatch):
    monkeypatch.setattr("posttrain.background.PATIENCE", 60)  # on a busy machine nothing is quick
    policy, names = make(), []
    stream = policy.stream

    def watched(asks):
        for one in stream(asks):
            names.append(threading.current_thread().name)
            yield one

    policy.stream = watched
    pt.rollout(pt.single_turn, [task(str(i)) for i in range(3)], {"policy": policy}, 4)
    assert names == ["MainThread"] * 12


def test_errors_of_the_sampler_and_of_the_reward_reach_the_caller(make):
    class Broken(Bandit):
        def stream(self, asks):
            yield 0, self.sample(asks)[0]
            yield 1, self.sample(asks)[1]
            raise ConnectionError("the engine has gone")

    def waiting(pause):
        def environment(task):
            yield from pt.ask(task.prompt)
            time.sleep(pause)

        return environment

    source = pt.ShuffledSource([task("a")], 0)
    for pause in (0, 2 * PATIENCE):  # in the main thread, and in one of its own
        with pytest.raises(ConnectionError, match="the engine has gone"):
            pt.gather(Broken([0.0, 1.0]), source, pt.grpo(pt.each(digits), samples=4, env=waiting(pause)), 1)

    seen = []

    def refuses(rollout):
        seen.append(rollout)
        time.sleep(2 * PATIENCE)
        if len(seen) == 6:  # the sampler is in its thread by then
            raise LookupError("no answer key")
        return 1.0

    before = threading.active_count()
    several = pt.ShuffledSource([task(str(i)) for i in range(4)], 0)
    with pytest.raises(LookupError, match="no answer key"):
        pt.gather(make(), several, pt.grpo(pt.each(refuses), samples=4), 4)
    for thread in threading.enumerate():
        if thread.name == "posttrain sampler":
            thread.join()
    assert threading.active_count() <= before


def test_micro_batches_fit_the_memory_that_is_free(make, monkeypatch):
    """A kernel's kill cannot be caught, so they are cut before; the gradient stays what it is."""
    policy, twin = make(), make()
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 12)[0]
    rows = [pt.Row([one.turns[0]], torch.linspace(-1, 1, one.decisions)) for one in group]
    sizes = []

    def learned(one):
        density = one.density
        monkeypatch.setattr(one, "density", lambda some: sizes.append(len(some)) or density(some))
        spy = Spy(one)
        metrics = pt.update(one, spy, rows, pt.clipped())
        return spy.seen[0], metrics["micro_tokens"]

    monkeypatch.setattr("posttrain.policy.activations.free_memory", lambda: None)
    whole, tokens = learned(policy)
    assert (sizes, tokens) == ([12], 16384)
    sizes.clear()
    monkeypatch.setattr("posttrain.policy.activations.free_memory", lambda: 600_000)
    pieces, tokens = learned(twin)
    assert 1 < len(sizes) <= 12
    assert tokens == 16384, "only memory that did run out is remembered"
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-4)
    sizes.clear()
    monkeypatch.setattr("posttrain.policy.activations.free_memory", lambda: 1)
    learned(twin)
    assert set(sizes) == {1}, "a row is never cut"


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    from posttrain.policy import abilities

    whole = abilities.free_memory()
    assert whole is None or whole > 2**20
    for name, value in (("max", "5000"), ("current", "2000"), ("stat", "anon 900\ninactive_file 1100")):
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setattr(abilities, "CGROUPS", (tuple(tmp_path / name for name in ("max", "current", "stat")),))
    assert abilities.free_memory() == 4100, "files in the cache are given up"
    (tmp_path / "max").write_text("max\n")
    assert abilities.free_memory() == whole or whole is None or abilities.free_memory() > 2**20


@pytest.mark.parametrize(
    ("field", "part", "message"),
    [
        (
            "loss",
            lambda batch, now: (-now.logp.mean(), {}),
            r"the loss returned \[\], not \[\d+\]: one number for each dec",
        ),
        ("loss", lambda batch, now: -now.logp, "the loss returned Tensor, not its costs"),
        ("loss", pt.clipped, "the loss returned function"),
        ("reduce", lambda lengths, group: torch.tensor(1.0), r"the reduction returned \[\], not \[\d+\]"),
        ("advantage", lambda group, scores: [1.0] * len(group), "the advantage returned float, not"),
        ("advantage", lambda group, scores: [torch.ones(1)] * len(group), r"the advantage returned \[1\], not"),
        ("across", lambda credit: credit[:1], "`across` returned credit of another shape"),
    ],
)
def test_parts_of_the_wrong_shape_are_named(make, field, part, message):
    """Some would be broadcast, and learn something else without a word."""
    recipe = pt.Recipe(pt.each(digits), samples=2, **{field: part})
    with pytest.raises(ValueError, match=message):
        pt.train_in_memory(make(max_new=6), [task("a"), task("b")], recipe, steps=1, per_step=2)


def test_a_long_row_beside_short_ones_is_met(make, monkeypatch):
    """It cannot be cut, however small micro-batches become: the others are, and it is tried."""
    policy = make(max_new=60)
    replies = [policy.sample([pt.Ask((pt.user("hi"),), max_new=n, seed=n)])[0] for n in (60, 8, 8, 8)]
    rows = [
        pt.Row([pt.Turn(pt.Ask((pt.user("hi"),)), one)], torch.ones(len(one.logp)), i) for i, one in enumerate(replies)
    ]
    monkeypatch.setattr("posttrain.policy.activations.free_memory", lambda: 1)
    assert pt.update(policy, Spy(policy), rows, pt.clipped())["micro_tokens"] == 16384
    density = policy.density

    def scarce(some):
        if len(some) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return density(some)

    monkeypatch.setattr("posttrain.policy.activations.free_memory", lambda: None)
    monkeypatch.setattr(policy, "density", scarce)
    assert pt.update(policy, Spy(policy), rows, pt.clipped())["micro_tokens"] < 16384


def test_networks_of_another_build_are_not_sized(words, monkeypatch):
    """GPT-2 has neither `layers` nor `intermediate_size`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from posttrain.policy.text import Sampling, TextPolicy

    config = GPT2Config(vocab_size=len(words), n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=None)
    policy = TextPolicy(GPT2LMHeadModel(config), words, Sampling(4))
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 2)[0]
    rows = [pt.Row([one.turns[0]], torch.ones(one.decisions)) for one in group]
    monkeypatch.setattr("posttrain.policy.activations.free_memory", lambda: 1)
    assert pt.update(policy, Spy(policy), rows, pt.clipped())["micro_tokens"] == 16384
