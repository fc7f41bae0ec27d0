"""SRRL: reflection as a conversation, credit with a memory, the best and the worst, stages, and rewards on pictures."""

from __future__ import annotations

import json
import math
import statistics

import diffusion_checkpoints
import pytest
import torch
from conftest import digits, said, task
from diffusion_checkpoints import drawing

import posttrain as pt
from posttrain.advantage import normalised
from posttrain.cli import main
from posttrain.cli.bridge import bind
from posttrain.core import Invalid
from posttrain.grade.clip import clip_similarity
from posttrain.lab.trial import QUICK
from posttrain.lab.world.balance import Balance, likeness
from posttrain.lab.world.balance import drawing as beam
from posttrain.policy.latents import text_of
from posttrain.policy.pipeline import diffusion
from posttrain.step import train_in_memory
from posttrain.stream import ShuffledSource
from posttrain.systems.srrl import PARTS, lab, recipe
from posttrain.systems.srrl.curriculum import Curriculum, read_prompts, rounds_by_stage, task_of_stage
from posttrain.systems.srrl.lab import logic_by_rounds
from posttrain.systems.srrl.reflection import every_round, reflected
from posttrain.systems.srrl.selection import Windowed, selected
from posttrain.systems.srrl.stages import DrawingOptions, ReflectionOptions, laptop, learn, reward_of

BRIGHT = pt.each(lambda rollout: float(rollout.turns[-1].reply.content.mean()))
WORLD = Balance()


def reply(content=None, decisions=1, temperature=1.0):
    return pt.Reply(content, torch.zeros(decisions), None, temperature=temperature)


def rounds_of(*values, decisions=2):
    """A rollout of one picture per round, each worth a number."""
    turns = [pt.Turn(pt.Ask(task().prompt), reply(torch.full((1, 2, 2), value), decisions)) for value in values]
    return pt.Rollout(task(), turns)


def scored(*values):
    return [said("x") for _ in values], [pt.Score(value) for value in values]


# ---- reflection


def asks_of(env, one, answers):
    episode, asked = env(one), []
    try:
        asked += next(episode)
        for answer in answers:
            asked += episode.send([answer])
    except StopIteration:
        return asked
    raise AssertionError("the episode goes on")


def test_a_round_shows_the_policy_its_own_picture():
    drafts = [reply("first"), reply("second"), reply("third")]
    asked = asks_of(reflected(2), task(text="p"), drafts)
    assert [len(one.messages) for one in asked] == [1, 2, 2]
    assert [one.temperature for one in asked] == [0.0, 0.0, None]
    assert [one.messages[-1].get("reply") for one in asked[1:]] == drafts[:2]
    assert [one.temperature for one in asks_of(reflected(1, "all"), task(), drafts[:2])] == [None, None]
    assert len(asks_of(reflected(0), task(), drafts[:1])) == 1  # DDPO
    with pytest.raises(ValueError, match="0 or more"):
        reflected(-1)


def test_a_task_may_name_its_own_rounds_which_the_policy_does_not_see():
    one = task_of_stage(task(text="p"), rounds=1, last=3, seed=5)
    asked = asks_of(reflected(4), one, [reply(), reply()])
    assert len(asked) == 2
    assert [part["type"] for part in asked[0].messages[0]["content"]] == ["text", "branch"]


def test_rounds_cost_two_more_walks_each_and_keep_no_graph():
    policy = drawing()
    for k, walks in ((0, 1), (1, 3), (2, 5)):
        policy.calls = 0
        [[one]] = pt.rollout(reflected(k), WORLD.tasks()[:1], {"policy": policy}, 1)
        assert policy.calls == walks * 2 * 3
        assert one.decisions == 3  # the last walk's alone
        assert not any(turn.reply.trace.path.requires_grad for turn in one.turns)
    assert logic_by_rounds(policy, WORLD, 0, 2)["calls@2"] == 5 * 2 * 3


@pytest.mark.parametrize("batch", [2, 8, 256])
def test_branches_share_their_drafts_and_their_trunk_at_any_batch(batch):
    """8 cuts groups of 5 in two, 2 lets every walk go alone: neither the pictures nor the cost may tell."""
    tasks = [task_of_stage(WORLD.tasks()[i % 2], rounds=2, last=2, seed=i) for i in range(4)]
    whole, policy = drawing(steps=4), drawing(steps=4, batch=batch)
    wanted, groups = (pt.rollout(reflected(2), tasks, {"policy": one}, 5) for one in (whole, policy))
    assert policy.calls == 2 * (4 * 2 * (4 + 4) + 4 * 2 + 4 * 5 * 2)  # drafts and the way back, trunks, branches
    for group, like in zip(groups, wanted, strict=True):
        for rollout, other in zip(group, like, strict=True):
            for turn, same in zip(rollout.turns, other.turns, strict=True):
                torch.testing.assert_close(turn.reply.content, same.reply.content, atol=1e-4, rtol=1e-3)
                torch.testing.assert_close(turn.reply.logp, same.reply.logp, atol=1e-4, rtol=1e-3)
        assert [len({id(one.turns[k].reply.content) for one in group}) for k in range(3)] == [1, 1, 5]


def test_a_shared_draft_is_decoded_once(tmp_path, monkeypatch):
    policy = diffusion(diffusion_checkpoints.stable_diffusion(tmp_path), pt.Denoising(steps=2), batch=4, device="cpu")
    decode, decoded = policy.vae.decode, []
    monkeypatch.setattr(policy.vae, "decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    pt.rollout(reflected(2), [task_of_stage(task(text="a cat"), 2, 1, 0)], {"policy": policy}, 5)
    assert sum(decoded) == 2 + 5


@pytest.mark.parametrize(("arm", "drafts"), [("srrl", True), ("srrl, every round", False)])
def test_rounds_are_measured_as_they_were_trained(monkeypatch, arm, drafts):
    policy, asked = drawing(), []
    sample = policy.sample
    monkeypatch.setattr(policy, "sample", lambda asks: asked.extend(asks) or sample(asks))
    monkeypatch.setattr(lab, "base_policy", lambda seed, budget: policy)
    lab.ARMS[arm](0, QUICK)
    assert any(one.temperature == 0 for one in asked) == drafts


def test_every_round_earns_its_own_reward():
    scores = every_round(BRIGHT)([rounds_of(0.25, 0.75), rounds_of(0.5)])
    assert [score.turns for score in scores] == [(0.25, 0.75), (0.5,)]
    assert [score.value for score in scores] == [0.75, 0.5]
    assert scores[0].parts == {"first round": 0.25}
    refuses = pt.each(lambda rollout: Invalid("dark") if len(rollout.turns) == 1 else 1.0)
    assert every_round(refuses)([rounds_of(0.0, 1.0)]) == [Invalid("dark")]
    assert every_round(BRIGHT)([pt.Rollout(task(), [])]) == [Invalid("nothing was drawn")]


def test_all_rounds_are_trained_or_the_last():
    for trained, rows in (("last", 2), ("all", 6)):
        made = recipe(BRIGHT, rounds=2, trained=trained, samples=2, select=None)
        got = pt.gather(drawing(), ShuffledSource(WORLD.tasks()), made, 1, seed=0)
        assert len(got.rows) == rows
        assert got.metrics["turns"] == 3


# ---- credit


def test_distances_are_over_a_prompt_s_last_groups():
    windowed = Windowed(window=1)
    first = windowed(*scored(0.0, 1.0))
    assert [values.tolist() for values in first] == [[pytest.approx(-1.0, abs=1e-4)], [pytest.approx(1.0, abs=1e-4)]]
    second = windowed(*scored(1.0, 2.0))  # among 0 1 1 2: mean 1, deviation sqrt(1/2)
    assert [values.item() for values in second] == pytest.approx([0.0, math.sqrt(2)], abs=1e-4)
    third = windowed(*scored(2.0, 2.0))  # 0 and 1 have been forgotten: among 1 2 2 2
    known = [1.0, 2.0, 2.0, 2.0]
    wanted = (2.0 - statistics.fmean(known)) / statistics.pstdev(known)
    assert [values.item() for values in third] == pytest.approx([wanted] * 2, abs=1e-4)


def test_another_prompt_knows_nothing_of_it_and_a_group_may_be_one():
    windowed = Windowed()
    windowed(*scored(0.0, 1.0))
    other = pt.Rollout(task("other"), said("x").turns)
    assert windowed([other], [pt.Score(7.0)])[0].item() == 0
    assert windowed(*scored(1.0))[0].item() > 0  # among 0 1 1


def test_distances_are_limited():
    windowed = Windowed(limit=2.0)
    for _ in range(8):
        windowed(*scored(*[0.0] * 8))
    assert windowed(*scored(1.0))[0].item() == 2.0
    with pytest.raises(ValueError, match="0 or more"):
        Windowed(-1)


def test_turns_are_compared_with_turns():
    group = [rounds_of(0.0, 0.0), rounds_of(0.0, 0.0)]
    scores = [pt.Score(3.0, turns=(0.0, 3.0)), pt.Score(1.0, turns=(1.0, 1.0))]
    credit = Windowed()(group, scores)
    assert [values.tolist() for values in credit] == [
        pytest.approx([-1, -1, 1, 1], abs=1e-4),
        pytest.approx([1, 1, -1, -1], abs=1e-4),
    ]


def test_the_memory_is_saved_and_restored():
    windowed, again = Windowed(2), Windowed(2)
    windowed(*scored(0.0, 1.0))
    again.load_state_dict(json.loads(json.dumps(windowed.state_dict())))
    assert windowed(*scored(3.0, 1.0)) == again(*scored(3.0, 1.0))


@pytest.mark.parametrize(
    ("credits", "wanted"),
    [
        ([0.6, -0.6, 0.9, -0.9, 0.1], [0, 0, 0.9, -0.9, 0]),
        ([0.4, -0.4, 0.0], [0, 0, 0]),  # neither is far enough: nothing is trained
        ([0.5, -0.5], [0.5, 0]),  # from 0.5 on, and below -0.5
        ([0.9, 0.8, 0.7], [0.9, 0, 0]),
        ([-0.9], [-0.9]),
    ],
)
def test_the_best_and_the_worst_of_a_group_are_selected(credits, wanted):
    advantage = selected(lambda group, scores: [torch.tensor([value]) for value in credits])
    found = advantage(*scored(*credits))
    assert [values.item() for values in found] == pytest.approx(wanted)


def test_a_step_in_which_nothing_was_selected_trains_nothing(tmp_path):
    policy = drawing()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    made = recipe(pt.each(lambda rollout: 1.0), samples=3)
    session = pt.train(policy, WORLD.tasks(), made, pt.Run(tmp_path / "run", steps=2, tasks=2, quiet=True))
    assert [line["rows"] for line in session.history] == [0.0, 0.0]
    assert all("loss" not in line for line in session.history)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_its_parts_compose_with_text(make):
    for name in PARTS:
        made = PARTS[name](pt.Recipe(pt.each(digits), advantage=normalised, samples=4), True)
        assert len(train_in_memory(make(max_new=6), [task("a"), task("b")], made, steps=2, per_step=2)) == 2


# ---- stages


def test_stages_tell_tasks_their_rounds_and_their_branching():
    source = Curriculum(
        ShuffledSource([task("a", text="p"), task("b", text="q")], 0), rounds_by_stage(4, 2), (1, 3), seed=0
    )
    told = [source.take(2) for _ in range(5)]
    parts = [[one.prompt[-1]["content"] for one in stage] for stage in told]
    assert [[content[1]["rounds"] for content in stage] for stage in parts] == [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]
    assert [stage[0][2]["last"] for stage in parts] == [1, 3, 1, 3, 1]
    assert len({content[2]["seed"] for stage in parts for content in stage}) == 10
    assert {text_of(one.prompt[-1]) for one in told[0]} == {"p", "q"}
    plain = Curriculum(ShuffledSource([task()], 0), [0])
    assert len(plain.take(1)[0].prompt[-1]["content"]) == 2  # no branching
    assert [one.key for one in source.items] == ["a", "b"]
    with pytest.raises(ValueError, match="empty"):
        Curriculum(ShuffledSource([task()]), [])


def test_the_released_schedule():
    rounds = rounds_by_stage(50, 5)
    assert (rounds[0], rounds[4], rounds[5], rounds[-1]) == (0, 0, 1, 9)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    ends = []
    for steps in ((4,), (2, 4)):
        for total in steps:
            policy = drawing()
            source = Curriculum(ShuffledSource(WORLD.tasks(), 0), rounds_by_stage(4, 2), (1, 2), seed=0)
            run = pt.Run(tmp_path / f"{steps}", steps=total, tasks=2, lr=1e-2, quiet=True, resume=total != steps[0])
            session = pt.train(policy, source, recipe(BRIGHT, samples=4), run)
        ends.append((policy.state_dict(), [line["reward"] for line in session.history]))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "holds dict, not a list"),
        ("[]", "with one at least"),
        ('["a cat", 3]', r"prompts.json, prompt 1: 3 is not a text"),
        ('["a cat", " "]', "prompt 1"),
        ('["a cat",]', "line 1: malformed JSON"),
    ],
)
def test_prompts_that_are_no_list_of_texts(tmp_path, text, message):
    file = tmp_path / "prompts.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(file))


def test_prompts_from_a_file(tmp_path, capsys):
    file = tmp_path / "prompts.json"
    file.write_text('["a cat washing dishes", "a dog riding a bike"]')
    assert [one.prompt[0]["content"] for one in read_prompts(str(file))] == json.loads(file.read_text())
    with pytest.raises(ValueError, match="`data=.*nothing.json`: there is no such file"):
        read_prompts(str(tmp_path / "nothing.json"))
    with pytest.raises(SystemExit):
        main(["run", "srrl", "--scale", "full", "--data", str(file), "--held-out", "b=nothing.json"])
    assert "--held-out nothing.json: there is no such file" in capsys.readouterr().err
    file.write_bytes(b'["caf\xe9"]')
    with pytest.raises(ValueError, match="prompts.json: it is not UTF-8, .* at byte 5"):
        read_prompts(str(file))


# ---- runs at full scale


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        (ReflectionOptions, {"every": 0}, "`every=0`: it must be at least 1"),
        (ReflectionOptions, {"every": -3}, "`every=-3`"),
        (ReflectionOptions, {"rounds": -1}, "`rounds=-1`: it must be at least 0"),
        (ReflectionOptions, {"method": "ddpo", "rounds": 3}, "`rounds=3`: `method=ddpo` has no rounds of reflection"),
        (DrawingOptions, {"denoising": 0}, "`denoising=0`"),
        (DrawingOptions, {"lora": -1}, "`lora=-1`"),
        (DrawingOptions, {"at_once": 1}, "`at_once=1`: it must be at least 2"),
    ],
)
def test_numbers_that_make_no_run_are_refused(group, options, message):
    with pytest.raises(ValueError, match=message):
        group(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--branches 0", "--branches 0"),
        ("--clip -1.0", "--clip -1.0: it must be above 0"),
        ("--sampler vllm", "--sampler: this runs in one process, since a diffusion model's UNet is not sharded"),
    ],
)
def test_options_that_make_no_run_are_refused_before_anything_is_read(options, message, capsys):
    with pytest.raises(SystemExit):
        main(["run", "srrl", "--scale", "full", "--data", "nothing.json", *options.split()])
    assert message in capsys.readouterr().err


def test_a_laptop_run_goes_no_rounds_below_none():
    with pytest.raises(ValueError, match="`rounds=-1`"):
        laptop(rounds=-1)


def test_a_resume_may_change_the_batch_but_not_what_is_learned(tmp_path):
    model = diffusion_checkpoints.stable_diffusion(tmp_path / "sd")
    data, own = tmp_path / "prompts.json", tmp_path / "own.py"
    data.write_text('["a cat", "a dog"]')
    own.write_text("def bright(reply, prompt):\n    return float(reply.mean())\n")

    small = "--branches 2 --rounds 1 --every 1 --denoising 2 --lora 2 --device cpu --tasks 2 --lr 1e-4 --quiet"
    given = ["--data", str(data), "--model", model, "--reward", f"{own}:bright", "--out", str(tmp_path / "run")]

    def run(*more):
        return bind(learn, [*given, *small.split(), *more], "srrl").run()

    run("--steps", "1")
    for option, message in ((["--bf16"], "bf16 = False"), (["--held-out", str(data)], "held_out = ")):
        with pytest.raises(ValueError, match=f"started with {message}"):
            run("--steps", "2", "--resume", *option)
    assert len(run("--steps", "2", "--resume", "--at-once", "2").history) == 2


# ---- the log-probability's reduction and the clip range (a trap of the release)


def test_with_the_mean_a_range_of_a_tenth_clips_nothing_and_with_the_sum_it_does():
    shares = {}
    for reduction in ("mean", "sum"):
        policy = drawing(reduction=reduction)
        made = recipe(BRIGHT, samples=8, select=None, epochs=4)
        got = pt.gather(policy, ShuffledSource(WORLD.tasks()), made, 2, seed=0)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.001)
        metrics = pt.update(policy, optimizer, got.rows, made.loss, epochs=made.epochs, max_norm=1.0)
        shares[reduction] = metrics["clip_share"]
    assert shares["mean"] == 0
    assert shares["sum"] > 0


# ---- the world and rewards on pictures


def test_a_picture_is_graded_by_what_the_beam_ought_to_do():
    for inverted in (False, True):
        world = Balance(inverted=inverted)
        for one in world.tasks():
            heavy = one.truth
            for down in ("left", "right"):
                picture = beam(heavy, down)
                score = world.score(pt.Rollout(one, [pt.Turn(pt.Ask(one.prompt), reply(picture))]))
                right = (down == heavy) != inverted
                assert score.parts == {"logic": float(right), "as told": 1.0}
                assert (score.value == pytest.approx(1.0)) == right
    wrong = world.score(pt.Rollout(one, [pt.Turn(pt.Ask(one.prompt), reply(beam("left", "left")))]))
    assert wrong.parts["as told"] == 0
    assert likeness(torch.zeros(1, 8, 8), beam("left", "left")) == 0
    with pytest.raises(ValueError, match=r"shape \[1, 4, 4\]"):
        likeness(torch.zeros(1, 4, 4), beam("left", "left"))


def test_demonstrations_tilt_either_way():
    import random

    draw = random.Random(0)
    seen = [(prompt, WORLD.reading(picture)) for prompt, picture in (WORLD.demonstration(draw) for _ in range(200))]
    assert all(prompt == f"heavy {heavy}" for prompt, (heavy, _) in seen)
    assert 0.35 < statistics.fmean(heavy == down for _, (heavy, down) in seen) < 0.65


def test_clip_scores_a_picture_by_its_prompt(tmp_path):
    from transformers import CLIPModel, CLIPProcessor

    folder = diffusion_checkpoints.clip(tmp_path)
    torch.manual_seed(0)
    shown = torch.rand(3, 16, 16) * 2 - 1
    one = pt.Rollout(task(text="a cat"), [pt.Turn(pt.Ask(task().prompt), reply(shown))])
    grey = pt.Rollout(task(text="a cat"), [pt.Turn(pt.Ask(task().prompt), reply(shown[:1]))])
    scores = clip_similarity(folder, "cpu")([one, grey, pt.Rollout(task(), [])])
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pixels = ((shown + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    with torch.no_grad():
        found = model(**processor(text=["a cat"], images=[pixels], return_tensors="pt"))
    assert scores[0].value == pytest.approx((found.image_embeds @ found.text_embeds.T).item(), abs=1e-4)
    assert -1 <= scores[1].value <= 1
    assert scores[2] == Invalid("nothing was drawn")
    latents = pt.Rollout(task(text="a cat"), [pt.Turn(pt.Ask(task().prompt), reply(torch.zeros(4, 16, 16)))])
    with pytest.raises(ValueError, match="1 or 3 channels, not of 4"):
        clip_similarity(folder, "cpu")([latents])


def test_rewards_by_name(tmp_path):
    with pytest.raises(ValueError, match="write clip=MODEL"):
        reward_of("clip", None)
    with pytest.raises(ValueError, match="no loadable processor"):
        reward_of(f"clip={tmp_path}", None)
    folder = diffusion_checkpoints.clip(tmp_path / "clip")
    for weights in (tmp_path / "clip").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=f"`reward` clip={folder}: it has no loadable model"):
        reward_of(f"clip={folder}", None)
    file = tmp_path / "own.py"
    file.write_text("def bright(reply, prompt):\n    return float(reply.mean())\n")
    one = rounds_of(0.25)
    assert [score.value for score in reward_of(f"{file}:bright", None)([one])] == [0.25]
