"""The schedule: how old a rollout may become, what is lost, and that the simulation of it gives the facts' table."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.scale.schedule import RULES, Schedule
from posttrain.scale.simulation import Load, as_table, simulate


def begun(schedule: Schedule, slots: int) -> None:
    while len(schedule.running) < slots and schedule.room():
        schedule.begin(None)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RULES), st.integers(1, 4), st.integers(0, 3), st.integers(1, 9), st.lists(st.integers(0, 99), max_size=120)
)  # fmt: skip
def test_whatever_the_order_nothing_is_trained_too_old_or_twice(rule, batch, staleness, slots, picks):
    """Players finish in any order, some very late; the trainer steps as soon as it may."""
    schedule = Schedule(batch, staleness, rule)
    trained: list[int] = []
    for pick in picks:
        begun(schedule, slots)
        if schedule.running:
            number = sorted(schedule.running)[pick % len(schedule.running)]
            schedule.finish(number, None, worth=pick)
        if schedule.ready():
            jobs = schedule.take()
            assert [job.number for job in jobs] == sorted(job.number for job in jobs)
            assert len(jobs) == batch
            if rule != "capacity":
                assert all(0 <= schedule.age(job) <= staleness for job in jobs)
            trained += [job.number for job in jobs]
            for job in schedule.advance():
                assert rule == "interrupt"
                schedule.again(job.number)
        assert schedule.room() >= 0
    assert len(trained) == len(set(trained)) == schedule.trained
    left = set(schedule.running) | set(schedule.waiting)
    assert not left & set(trained)
    assert schedule.submitted == len(trained) + len(left) + schedule.dropped
    if rule in ("block", "capacity"):
        assert schedule.dropped == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.lists(st.integers(0, 99), min_size=10, max_size=60))
def test_staleness_zero_is_the_synchronous_loop(batch, slots, picks):
    schedule = Schedule(batch, 0)
    step = 0
    for pick in picks:
        begun(schedule, slots)
        schedule.finish(sorted(schedule.running)[pick % len(schedule.running)], None)
        if schedule.ready():
            assert [job.number for job in schedule.take()] == list(range(step * batch, (step + 1) * batch))
            step += 1
            schedule.advance()


def test_the_oldest_go_first_and_then_those_that_teach_most():
    schedule = Schedule(2, 1)
    for _ in range(4):
        schedule.begin(None)
    for number, worth in enumerate((0.1, 0.5, 0.3, 0.9)):
        schedule.finish(number, None, worth)
    assert [job.number for job in schedule.take()] == [1, 3]
    schedule.advance()
    schedule.begin(None)
    schedule.finish(4, None, worth=2.0)
    assert [job.number for job in schedule.take()] == [0, 2], "older than job 4, whatever they are worth"


def test_nothing_is_accepted_twice_or_of_nobody():
    schedule = Schedule(1, 0)
    schedule.begin(None)
    schedule.finish(0, None)
    with pytest.raises(KeyError):
        schedule.finish(0, None)
    with pytest.raises(ValueError, match="a batch of 0 with staleness 1"):
        Schedule(0, 1)


def test_the_simulation_gives_the_table_of_the_facts():
    """32 slots, batches of 64, log-normal times: within 5 % of the time, and with the ages, of shared/systems' table.

    Its row `block` is of a rule that lets ages reach s + 1; ours does not, and takes longer.
    """
    facts = {
        "capacity": {0: 542.7, 1: 178.5, 2: 163.1, 4: 163.1},
        "drop": {0: 542.7, 1: 183.7, 2: 163.1, 4: 163.1},
    }
    lost = {0: 0.0, 1: 0.047, 2: 0.014, 4: 0.001}
    for rule, times in facts.items():
        for staleness, time in times.items():
            found = [simulate(Load(), staleness, rule, seed) for seed in range(5)]
            assert sum(one.time for one in found) / 5 == pytest.approx(time, rel=0.05)
            if rule == "drop":
                assert max(one.oldest for one in found) <= staleness
                assert sum(one.lost for one in found) / 5 == pytest.approx(lost[staleness], abs=0.006)
            elif staleness:
                assert max(one.oldest for one in found) >= 7, "admission alone does not bound an age"
    blocked = [simulate(Load(), 1, "block", seed) for seed in range(5)]
    assert all(one.oldest == 1 and one.lost == 0 for one in blocked)
    assert sum(one.time for one in blocked) / 5 < 0.6 * 542.7
    assert simulate(Load(), 2, "interrupt", 3) == simulate(Load(), 2, "interrupt", 3)
    assert "| block | " in as_table(Load(slots=4, batch=4, steps=5), (0, 1), ("block",), seeds=1)
