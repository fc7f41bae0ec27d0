"""DIP-R1: what replies state, frames, matching, the look reward of a group, AP and MR^-2, files, drawings, stages."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import vision_checkpoints
from conftest import said
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world.crowd import CELLS, Crowd, box_of, cells_of, reply
from posttrain.systems.dip_r1 import lab
from posttrain.systems.dip_r1.data import scenes
from posttrain.systems.dip_r1.drawing import ANSWERED, LOOKED, TRUE, draw_boxes
from posttrain.systems.dip_r1.frames import Frame, Truth, coordinates_of, frame_of
from posttrain.systems.dip_r1.look import look_reward, regions, uncertainty
from posttrain.systems.dip_r1.match import Counts, as_array, counts, iou, matching, pooled
from posttrain.systems.dip_r1.measures import (
    Detections,
    as_table,
    coco_average_precision,
    detections,
    log_average_miss_rate,
    measures_of,
    own_average_precision,
)
from posttrain.systems.dip_r1.prompts import demonstration, hard_boxes, question
from posttrain.systems.dip_r1.reply import TAGS, Stated, boxes_of, read_loosely, read_strictly, stated
from posttrain.systems.dip_r1.reward import Weights, evaluation, reward

pytest.importorskip("scipy")

PLAIN = Frame(100, 100, 100, 100, "absolute")
A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 20.0, 10.0, 30.0)


def listed(*boxes) -> str:
    return json.dumps([{"bbox_2d": list(box), "label": "person"} for box in boxes])


def whole(answer: str = "[]", look: str = "[]", thought: str = "a crowd") -> str:
    return f"<think>{thought}</think>\n<look>{look}</look>\n<answer>{answer}</answer>"


def replied(text: str, boxes=(A,), ignored=(), frame: Frame = PLAIN, stop: str = "end") -> pt.Rollout:
    return said(text, Truth(tuple(boxes), tuple(ignored), frame), stop=stop)


# ---- replies


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (whole(), Stated((), ())),
        (whole(listed(A, B), listed(C)), Stated((C,), (A, B))),
        (whole(f" {listed(A)} \n"), Stated((), (A,))),
        (whole('[{"bbox_2d": [1, 2, 3.5, 4]}]'), Stated((), ((1.0, 2.0, 3.5, 4.0),))),
        (whole(listed(A)[:-3]), None),  # cut off
        (whole(listed(A)).removesuffix("</answer>"), None),
        (whole(f"```json\n{listed(A)}\n```"), None),
        (whole("{}"), None),
        (whole("[[0, 0, 1, 1]]"), None),
        (whole('[{"box": [0, 0, 1, 1]}]'), None),
        (whole('[{"bbox_2d": [0, 0, 1]}]'), None),
        (whole('[{"bbox_2d": [0, 0, 1, "1"]}]'), None),
        (whole('[{"bbox_2d": [0, 0, 1, true]}]'), None),
        (whole('[{"bbox_2d": [0, 0, 1, NaN]}]'), None),
        (whole('[{"bbox_2d": [0, 0, 1, 1e999]}]'), None),
        (whole(f'[{{"bbox_2d": [0, 0, 1, 1{"0" * 400}]}}]'), None),  # beyond all floats
        (whole('[{"bbox_2d": [5, 0, 5, 1]}]'), None),  # no width
        (whole('[{"bbox_2d": [0, 3, 1, 2]}]'), None),  # upside down
        (whole("[" * 100_000), None),
        ("so " + whole(), None),
        (whole() + whole(), None),
        ("<look>[]</look><think>a</think><answer>[]</answer>", None),
        ("<think>a</think><answer>[]</answer>", None),  # without a look
        ("<think><look>[]</look></think><answer>[]</answer>", None),
        ("", None),
    ],
)
def test_what_a_reply_states(text, found):
    assert stated(text) == found


PIECES = st.sampled_from(
    [*TAGS, *"[]{},\ud800 a", '"bbox_2d":', "[1,2,3,4]", "[]", listed(A), "NaN", "1e999", "-5", "null", "true", "```"]
)


@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40))
def test_no_reply_breaks_the_reward(text):
    group = [replied(text), replied(whole(listed(A), listed(B))), replied(whole(text, text))]
    for score in reward()(group):
        assert isinstance(score, pt.Score)
        assert math.isfinite(score.value)
    read_loosely(group[0])


@given(st.lists(st.lists(st.floats() | st.integers() | st.booleans() | st.none(), max_size=5), max_size=3))
def test_whatever_is_read_is_a_box(rows):
    found = boxes_of(json.dumps([{"bbox_2d": row} for row in rows]))
    for x1, y1, x2, y2 in found or ():
        assert x1 < x2
        assert y1 < y2
        assert math.isfinite(x1 + y1 + x2 + y2) or max(map(abs, (x1, y1, x2, y2))) > 1e300


def test_evaluation_reads_loosely():
    for text in (listed(A), f"```json\n{listed(A)}\n```", f"<answer>{listed(A)}</answer>", f"I see {listed(A)}."):
        assert read_strictly(replied(text)) is None
        assert read_loosely(replied(text)) == Stated((), (A,))
        assert evaluation()([replied(text)])[0].value == 1.0
    for text in ("no boxes", listed(A, B)[:-9], '{"bbox_2d": [0, 0, 1, 1]}'):
        assert read_loosely(replied(text)) is None
        assert evaluation()([replied(text)])[0].value == 0.0


# ---- frames


SIDES = st.integers(30, 3000)
UNITS = st.sampled_from(["absolute", "thousand"])


@st.composite
def framed(draw):
    frame = Frame(draw(SIDES), draw(SIDES), draw(SIDES), draw(SIDES), draw(UNITS))
    x = sorted(draw(st.lists(st.floats(0, frame.width), min_size=2, max_size=2)))
    y = sorted(draw(st.lists(st.floats(0, frame.height), min_size=2, max_size=2)))
    return frame, (x[0], y[0], x[1], y[1])


@given(framed())
def test_boxes_go_to_the_reply_and_back(given_):
    frame, box = given_
    assert frame.to_picture(frame.to_reply(box)) == pytest.approx(box, abs=1e-6)
    assert frame.to_reply(frame.to_picture(box)) == pytest.approx(box, abs=1e-6)
    written = frame.whole_numbers(box)
    x1, y1, x2, y2 = written
    wide, high = (1000, 1000) if frame.coordinates == "thousand" else (frame.shown_width, frame.shown_height)
    assert 0 <= x1 < x2 <= wide
    assert 0 <= y1 < y2 <= high
    assert all(abs(a - b) <= 1.5 for a, b in zip(written, frame.to_reply(box), strict=True)), (
        "rounded, and kept a unit wide"
    )


def test_frames_by_hand():
    preprocessing = vision_checkpoints.SMALL  # multiples of 8 pixels, at most 4096 of them
    absolute = frame_of(200, 100, preprocessing, "absolute")
    assert (absolute.shown_width, absolute.shown_height) == (88, 40)
    assert absolute.to_reply((100, 50, 200, 100)) == pytest.approx((44, 20, 88, 40))
    thousand = frame_of(200, 100, preprocessing, "thousand")
    assert thousand.to_reply((100, 50, 200, 100)) == pytest.approx((500, 500, 1000, 1000))
    assert thousand.to_picture((0, 0, 500, 1000)) == pytest.approx((0, 0, 100, 100))
    assert "88 wide and 40 high" in question("car", absolute)
    assert "thousandths" in question("car", thousand)
    with pytest.raises(ValueError, match="at most 200 times"):
        frame_of(1000, 1, preprocessing, "absolute")


def test_the_family_says_how_boxes_are_written():
    assert coordinates_of("qwen2_5_vl", None) == "absolute"
    assert coordinates_of("qwen3_vl", None) == coordinates_of("qwen2_vl", None) == "thousand"
    assert coordinates_of("qwen3_vl", "absolute") == "absolute"
    with pytest.raises(ValueError, match="`coordinates`: say absolute or thousand"):
        coordinates_of("llava", None)


def test_boxes_outside_of_the_picture():
    over = replied(whole('[{"bbox_2d": [-50, 0, 10, 10]}]'))
    assert read_strictly(over) == Stated((), (A,)), "cut at the edge"
    beside = replied(whole('[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [200, 200, 210, 210]}]'))
    score = reward()([beside])[0]
    assert score.parts["format"] == 1
    assert (score.parts["precision"], score.parts["recall"]) == (0.5, 1.0), "one that lies outside is a false positive"


# ---- matching


def test_iou_by_hand():
    found = iou(as_array([A, (0, 0, 10, 5), (5, 5, 5, 9)]), as_array([A, B, (5, 0, 15, 10)]))
    assert found == pytest.approx(np.array([[1, 0, 1 / 3], [0.5, 0, 25 / 125], [0, 0, 0]]))
    assert iou(as_array([]), as_array([A])).shape == (0, 1)


def test_as_many_pairs_as_can_be_are_matched():
    """The pairs of the largest sum of IoU, 0.95 + 0.45, would be one."""
    found = np.array([[0.95, 0.55], [0.55, 0.45]])
    assert sorted(matching(found, 0.5)) == [(0, 1), (1, 0)]
    assert matching(found, 0.9) == [(0, 0)]
    assert matching(np.zeros((0, 3)), 0.5) == []


@given(st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
def test_the_matching_is_the_best_of_all(rows, columns, draw):
    found = np.array([[draw.random() for _ in range(columns)] for _ in range(rows)]).reshape(rows, columns)
    pairs = matching(found, 0.5)
    assert len({p for p, _ in pairs}) == len({g for _, g in pairs}) == len(pairs)
    wide = found if rows <= columns else found.T
    choices = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    sums = [[v for v in (wide[p, g] for p, g in enumerate(choice)) if v >= 0.5] for choice in choices]
    best = max((len(values), sum(values)) for values in sums) if sums else (0, 0.0)
    assert len(pairs) == best[0]
    assert sum(found[p, g] for p, g in pairs) == pytest.approx(best[1])


@pytest.mark.parametrize(
    ("boxes", "wanted", "ignored", "found"),
    [
        ([A, B], [A, C], [], Counts(1, 2, 2)),
        ([A, A], [A], [], Counts(1, 2, 1)),  # a duplicate is a false positive
        ([], [], [], Counts(0, 0, 0)),
        ([A, B], [A], [(15, 0, 40, 40)], Counts(1, 1, 1)),  # B lies in an ignored region
        ([A, B], [A], [(27, 0, 40, 40)], Counts(1, 2, 1)),  # not by half of its area
        ([A], [A], [A], Counts(1, 1, 1)),  # what is matched counts
    ],
)
def test_counts_by_hand(boxes, wanted, ignored, found):
    assert counts(boxes, wanted, ignored, 0.5) == found


def test_precision_recall_and_f_by_hand():
    one = Counts(2, 4, 3)
    assert (one.precision, one.recall) == (0.5, 2 / 3)
    assert one.f() == pytest.approx(4 / 7)
    assert one.f(2) == pytest.approx(5 * (1 / 3) / (4 * 0.5 + 2 / 3))
    assert (Counts(0, 0, 0).precision, Counts(0, 0, 0).recall, Counts(0, 0, 0).f()) == (1, 1, 1)
    assert (Counts(0, 0, 2).precision, Counts(0, 0, 2).recall, Counts(0, 0, 2).f()) == (0, 0, 0)
    assert (Counts(0, 2, 0).precision, Counts(0, 2, 0).recall) == (0, 0)
    assert pooled([one, Counts(0, 1, 1)]) == Counts(2, 5, 4)


# ---- the look reward


def test_uncertainty_by_hand():
    answers = [[A, B], [A], [A, (20.0, 0.0, 30.0, 6.0)], [A]]  # the third's matches B with an IoU of 0.6
    places = regions(answers, [A, C], 0.5)
    assert places.tolist() == [list(A), list(C), [20.0, 0.0, 30.0, 6.0]], "true boxes, then what else was answered"
    assert uncertainty(answers, places, "frequency", 0.5) == pytest.approx([0, 0, 1])
    spread = 4 * np.var([0.6, 0, 1, 0])
    assert uncertainty(answers, places, "iou", 0.5) == pytest.approx([0, 0, spread])
    assert uncertainty(answers, places, "uniform", 0.5) == pytest.approx([1, 1, 1])
    assert uncertainty(answers[:1], places, "frequency", 0.5) == pytest.approx([0, 0, 0]), "one cannot disagree"
    assert uncertainty([[]] * 3, regions([], [], 0.5), "iou", 0.5).shape == (0,)


def test_look_reward_by_hand():
    places, uncertain = as_array([A, B, C]), np.array([1.0, 0.5, 0.0])
    paid = lambda *looks: look_reward(looks, places, uncertain, 0.5)  # noqa: E731
    assert paid(A) == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
    assert paid(A, B) == pytest.approx(2 * 0.75 * 1 / 1.75)
    assert paid(A, C) == pytest.approx(2 * 0.5 * (2 / 3) / (7 / 6))
    assert paid() == paid(C) == paid((50, 50, 60, 60)) == 0
    assert paid(A, B, A, A) < paid(A, B), "a look twice at one region is one too many"
    certain = np.zeros(3)
    assert look_reward([], places, certain, 0.5) == 1
    assert look_reward([A], places, certain, 0.5) == 0


CORNERS = st.integers(0, 12).map(float)
SOME_BOXES = st.lists(
    st.tuples(CORNERS, CORNERS, st.integers(1, 8), st.integers(1, 8)).map(
        lambda one: (one[0], one[1], one[0] + one[2], one[1] + one[3])
    ),
    max_size=4,
)


@given(st.lists(SOME_BOXES, min_size=2, max_size=5), SOME_BOXES, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_count(answers, wanted, draw):
    places = regions(answers, wanted, 0.5)
    mixed = [draw.sample(boxes, len(boxes)) for boxes in draw.sample(answers, len(answers))]
    assert regions(mixed, draw.sample(wanted, len(wanted)), 0.5).tolist() == places.tolist()
    for variance in ("frequency", "iou"):
        found = uncertainty(answers, places, variance, 0.5)
        assert found == pytest.approx(uncertainty(mixed, places, variance, 0.5))
        assert ((found >= 0) & (found <= 1)).all()
    if len(places):
        pool = as_array([box for boxes in answers for box in boxes])
        assert (iou(pool, places) >= 0.5).any(1).all(), "every box is of some region"
    for looks in answers:
        assert 0 <= look_reward(looks, places, uncertainty(answers, places, "frequency", 0.5), 0.5) <= 1


def test_where_boxes_match_wholly_or_not_at_all_both_variances_are_the_same():
    answers = [[A, B], [A], [B, C], []]
    places = regions(answers, [], 0.5)
    both = [uncertainty(answers, places, variance, 0.5) for variance in ("frequency", "iou")]
    assert both[0] == pytest.approx(both[1])


# ---- the reward


def test_the_reward_by_hand():
    """Two of four find B, so that B is what the group disagrees on."""
    group = [
        replied(whole(listed(A, B), listed(B)), [A, B]),
        replied(whole(listed(A, B)), [A, B]),
        replied(whole(listed(A), listed(A, B)), [A, B]),
        replied(whole(listed(A), listed(A)), [A, B]),
        replied(whole(listed(A))[:-12], [A, B], stop="length"),
    ]
    one, two, three, four, cut = reward()(group)
    assert one.parts["look"] == 1
    assert one.value == pytest.approx(1 + 0.5 + 0.5)
    assert two.value == pytest.approx(1 + 0.5)
    assert three.parts["look"] == pytest.approx(2 / 3), "a = 1/2, b = 1"
    assert three.value == pytest.approx((0.5 + 0.25) + 0.5 + 1 / 3)
    assert four.value == pytest.approx(0.75 + 0.5)
    assert cut.value == cut.parts["format"] == cut.parts["accuracy"] == cut.parts["look"] == 0
    assert cut.parts.keys() == one.parts.keys()
    assert {score.parts["uncertain"] for score in (one, two, three, four, cut)} == {1.0}, "the cut one has no voice"


def test_the_accuracy_has_its_weights():
    truth = Truth((A, B), (), PLAIN)
    boxes = [A, (0.0, 0.0, 10.0, 6.0), C]  # P = 1/3, R = 1/2
    assert Weights().accuracy(boxes, truth) == pytest.approx(5 / 12)
    assert Weights(precision_weight=0.4, recall_weight=0.6).accuracy(boxes, truth) == pytest.approx(0.4 / 3 + 0.3)
    assert Weights(f_beta=1).accuracy(boxes, truth) == pytest.approx(0.4)
    near = [(0.0, 0.0, 10.0, 7.2), (20.0, 0.0, 30.0, 7.2)]  # IoU 0.72: matches at 0.5 to 0.7, five of ten thresholds
    assert Weights(mean_iou=True).accuracy(near, truth) == pytest.approx(0.5)
    assert Weights(iou=0.75).accuracy(near, truth) == 0
    for wrong in ({"look_weight": -1}, {"f_beta": 0}, {"iou": 0}, {"iou": 1.5}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}="):
            Weights(**wrong)


def test_only_true_regions():
    group = [replied(whole(listed(A, B), listed(B))), replied(whole(listed(A)))]
    assert reward()(group)[0].parts["look"] == 1, "B was made up by one of two"
    found = reward(Weights(truth_only=True))(group)
    assert [score.parts["look"] for score in found] == [0, 1], "of the true box A nothing is uncertain"


# ---- measures


def detected(boxes, confidence, wanted, ignored=()) -> Detections:
    return Detections(as_array(boxes), np.asarray(confidence, float), as_array(wanted), as_array(ignored))


@st.composite
def pictures(draw):
    out = []
    for _ in range(draw(st.integers(1, 4))):
        boxes = draw(SOME_BOXES)
        confidence = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=len(boxes), max_size=len(boxes)))
        out.append(detected(boxes, confidence, draw(SOME_BOXES), draw(SOME_BOXES.map(lambda some: some[:1]))))
    return out


@given(pictures())
def test_ap_is_that_of_pycocotools(found):
    pytest.importorskip("pycocotools")
    if any(len(one.wanted) for one in found):
        assert own_average_precision(found) == pytest.approx(coco_average_precision(found), abs=1e-9)


def test_ap_by_hand():
    """Two of three true boxes are found, with a false one between them: P = 1 up to R = 1/3, and 2/3 up to R = 2/3."""
    found = [detected([A, B, C], [0.9, 0.8, 0.7], [A, C, (50, 50, 60, 60)])]
    assert own_average_precision(found)["AP50"] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert own_average_precision(found)["AR"] == pytest.approx(2 / 3)
    assert own_average_precision([detected([], [], [A])]) == {"AP50": 0, "AP": 0, "AR": 0}


def test_the_miss_rate_by_hand():
    perfect = [detected([A], [1], [A])]
    assert log_average_miss_rate(perfect) == pytest.approx(1e-10)
    assert log_average_miss_rate([detected([], [], [A])]) == pytest.approx(1)
    # Two pictures, four true boxes. Above 0.9: two right, none wrong; above 0.5: three right, one wrong (0.5 a picture)
    two = [detected([A, B], [0.9, 0.5], [A, B]), detected([A, C], [0.9, 0.5], [A, (50, 50, 60, 60)])]
    # 0.5 false positives are reached at two of nine rates only, 0.562 and 1
    assert log_average_miss_rate(two) == pytest.approx(math.exp((7 * math.log(0.5) + 2 * math.log(0.25)) / 9))
    # without confidence there is one threshold, with 0.5 false positives
    flat = [detected(one.boxes, np.ones(2), one.wanted) for one in two]
    assert log_average_miss_rate(flat) == pytest.approx(math.exp((7 * math.log(1) + 2 * math.log(0.25)) / 9))
    # what lies in an ignored region is no false positive
    ignored = [two[0], detected([A, C], [0.9, 0.5], [A, (50, 50, 60, 60)], [(0, 15, 40, 40)])]
    assert log_average_miss_rate(ignored) == pytest.approx(0.25)


def test_confidence_is_the_share_of_samples():
    truth = Truth((A, B), (), PLAIN)
    found = detections([Stated((), (A, B)), Stated((), (A,)), None, Stated((), (A, A))], truth)
    assert found.boxes.tolist() == [list(A), list(B)]
    assert found.confidence.tolist() == [0.75, 0.25], "an unparsable reply holds none"
    assert detections([Stated((), (A, A))], truth).confidence.tolist() == [1, 1]
    assert len(detections([None], truth).boxes) == 0


def test_a_table_of_measures():
    truths = [Truth((A, B), (), PLAIN), Truth((C,), (), PLAIN)]
    found = measures_of([[Stated((), (A, C))], [None]], truths)
    assert (found["precision"], found["recall"], found["F1"], found["unparsable"]) == (0.5, 1 / 3, 0.4, 0.5)
    assert found["AR"] == pytest.approx(1 / 3)
    assert as_table({"crowd": found})[1].split()[:5] == ["crowd", "2", "0.500", "0.333", "0.400"]
    with pytest.raises(ValueError, match="nothing to be found"):
        measures_of([[None]], [Truth((), (), PLAIN)])


# ---- files


def coco_file(folder: Path, **changes) -> str:
    for name in "ab":
        vision_checkpoints.png(folder / f"{name}.png", 40, 80)
    whole_ = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "person"}, {"id": 4, "name": "car"}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 30]},
            {"image_id": 1, "category_id": 3, "bbox": [70, 30, 20.5, 30], "iscrowd": 1},
            {"image_id": 1, "category_id": 4, "bbox": [0, 0, 5, 5], "iscrowd": 0},
            {"image_id": 2, "category_id": 3, "bbox": [0, 0, 5, 0]},
        ],
    }
    (folder / "coco.json").write_text(json.dumps(whole_ | changes))
    return str(folder / "coco.json")


def test_coco_files_are_read(tmp_path):
    first, second = scenes(coco_file(tmp_path), category="person")
    assert (first.width, first.height) == (80, 40)
    assert first.boxes == [(10, 5, 30, 35)]
    assert first.ignored == [(70, 30, 80, 40)], "cut at the edges"
    assert second.boxes == [], "a box without an area is left out"
    [only] = scenes(coco_file(tmp_path), category="car", limit=1)
    assert only.boxes == [(0, 0, 5, 5)]


BAD_COCO = [
    ({"images": None}, "it has no list of images"),
    ({"images": [7]}, r"images\[0\]: a int, not an object"),
    ({"images": [{"id": 1, "file_name": "c.png"}]}, r"images\[0\]: there is no picture"),
    ({"images": [{"id": 1, "file_name": "coco.json"}]}, r"images\[0\]: the picture .* cannot be read"),
    ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, r"images\[1\]: the id 1 was there before"),
    ({"annotations": [{"image_id": 9, "category_id": 3}]}, r"annotations\[0\]: there is no image with the id 9"),
    (
        {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3]}]},
        r"annotations\[0\]: 'bbox' is \[1, 2, 3\]",
    ),
    ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, -3, 4]}]}, r"annotations\[0\]: 'bbox'"),
    ({"annotations": [{"image_id": 1, "category_id": True}]}, r"annotations\[0\]: 'category_id' is True"),
    ({"images": []}, "there is no (image with|picture in it)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_COCO)
def test_bad_coco_files_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        scenes(coco_file(tmp_path, **changes), category="person")


def test_which_category(tmp_path):
    file = coco_file(tmp_path)
    with pytest.raises(ValueError, match="name one of its categories with `category`: person, car"):
        scenes(file)
    with pytest.raises(ValueError, match=r"`category=persn`.*did you mean person\?"):
        scenes(file, category="persn")
    for name, text in (("x.txt", ""), ("y.json", "[1]"), ("z.json", "{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            scenes(str(tmp_path / name))
    with pytest.raises(ValueError, match="there is no such file"):
        scenes("none.json")


PERSON = {"tag": "person", "fbox": [-5, 0, 20, 30], "vbox": [0, 0, 10, 20], "hbox": [0, 0, 5, 5], "extra": {"occ": 1}}
MASK = {"tag": "mask", "fbox": [40, 0, 40, 40], "extra": {"ignore": 1}}


def odgt_file(folder: Path, *lines) -> str:
    from PIL import Image

    for name in "ab":
        Image.fromarray(vision_checkpoints.noise(40, 80)).save(folder / f"{name}.jpg")
    path = folder / "crowd.odgt"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_crowd_human_is_read(tmp_path):
    hidden = {**PERSON, "extra": {"ignore": 1}}
    file = odgt_file(tmp_path, {"ID": "a", "gtboxes": [PERSON, MASK, hidden]}, "", {"ID": "b", "gtboxes": []})
    first, second = scenes(file)
    assert first.boxes == [(0, 0, 15, 30)]
    assert first.ignored == [(40, 0, 80, 40), (0, 0, 15, 30)]
    assert second.boxes == second.ignored == []
    assert scenes(file, extent="visible")[0].boxes == [(0, 0, 10, 20)]
    assert len(scenes(file, limit=1)) == 1
    with pytest.raises(ValueError, match="`category=car`"):
        scenes(file, category="car")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"crowd.odgt:2: malformed JSON"),
        ("[" * 100_000, r"crowd.odgt:2: malformed JSON"),
        ([], r"crowd.odgt:2: a list, not an object"),
        ({"ID": "a", "gtboxes": []}, r"crowd.odgt:2: the ID 'a' was there before"),
        ({"ID": 7, "gtboxes": []}, r"crowd.odgt:2: 'ID' is 7, not text"),
        ({"ID": "c", "gtboxes": []}, r"crowd.odgt:2: there is no picture"),
        ({"ID": "b"}, r"crowd.odgt:2: 'gtboxes' is None, not a list"),
        ({"ID": "b", "gtboxes": [PERSON, 1]}, r"crowd.odgt:2: gtboxes\[1\]: a int, not an object"),
        ({"ID": "b", "gtboxes": [{**PERSON, "fbox": "x"}]}, r"crowd.odgt:2: gtboxes\[0\]: 'fbox' is 'x'"),
        ({"ID": "b", "gtboxes": [{**PERSON, "extra": 3}]}, r"crowd.odgt:2: gtboxes\[0\]: 'extra' is 3"),
    ],
)
def test_bad_lines_are_named(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        scenes(odgt_file(tmp_path, {"ID": "a", "gtboxes": [PERSON]}, line))


def test_pictures_that_lie_on_their_side(tmp_path):
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    file = odgt_file(tmp_path, {"ID": "a", "gtboxes": []})
    Image.fromarray(vision_checkpoints.noise(40, 80)).save(tmp_path / "a.jpg", exif=turned)
    [one] = scenes(file)
    assert (one.width, one.height) == (40, 80), "as it is shown"


# ---- prompts and drawings


def test_demonstrations_are_in_form():
    frame = Frame(200, 100, 100, 50, "absolute")
    boxes = ((0.0, 0.0, 40.0, 40.0), (30.0, 0.0, 60.0, 40.0), (100.0, 0.0, 110.0, 8.0), (150.0, 0.0, 190.0, 40.0))
    text = demonstration("person", Truth(boxes, (), frame))
    found = stated(text)
    assert found is not None
    assert [frame.to_picture(box) for box in found.boxes] == list(boxes)
    assert [frame.to_picture(box) for box in found.looks] == list(boxes[:3]), "two that overlap, and the smallest"
    assert hard_boxes([]) == set()
    assert stated(demonstration("person", Truth((), (), frame))) == Stated((), ())


def test_reports_show_boxes():
    picture = np.zeros((40, 80, 3), np.uint8)
    frame = Frame(80, 40, 80, 40, "absolute")
    task = pt.Task("t", (pt.user([vision_checkpoints.image(picture)]),), Truth((A,), (), frame))
    one = replied(whole(listed(B), listed((40, 0, 60, 20))))
    one.task = task
    drawn = draw_boxes(one)
    assert drawn is not None
    assert drawn.shape == (280, 560, 3), "seven times as large"
    assert drawn.dtype == np.uint8
    assert tuple(drawn[0, 5 * 7]) == TRUE
    assert tuple(drawn[4, 25 * 7]) == ANSWERED
    assert tuple(drawn[2, 50 * 7]) == LOOKED
    one.turns[-1] = said("nothing").turns[-1]
    assert {tuple(colour) for colour in draw_boxes(one).reshape(-1, 3)} == {(0, 0, 0), TRUE}
    one.task = pt.Task("t", (pt.user([vision_checkpoints.image(np.zeros((600, 2048, 3), np.uint8))]),), task.truth)
    assert draw_boxes(one).shape == (300, 1024, 3), "large ones are made smaller"
    assert draw_boxes(replied(whole())) is None, "a task without a picture"


# ---- the tiny world


def test_the_annotator_leaves_out_half_of_the_faint_squares():
    world, draw = Crowd(0), random.Random(0)
    faint = reported = 0
    for _ in range(2000):
        squares = world.squares(draw)
        found = cells_of(world.annotation(squares, draw))
        assert found is not None
        assert set(squares.clear) <= set(found[1])
        faint, reported = faint + len(squares.faint), reported + len(set(squares.faint) & set(found[1]))
    assert reported / faint == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (reply([3], [3, 24]), ([3], [3, 24])),
        ("look answer", ([], [])),
        ("look b1 b1 answer", ([1, 1], [])),
        ("answer b1", None),
        ("look b1", None),
        ("look b1 answer b2 answer", None),
        ("look b1 look answer", None),
        (f"look answer b{CELLS}", None),
        ("look answer b01", None),
        ("", None),
    ],
)
def test_replies_of_the_world(text, found):
    assert cells_of(text) == found


def test_pictures_of_the_world_are_read_as_boxes():
    [task, *_] = lab.tasks(Crowd(0), 2, "x", least=2, most=2, faint=1.0)
    assert task.columns["faint"] == set(task.truth.boxes)
    picture = task.prompt[0]["content"][0]["image"]
    assert picture.shape == (20, 20, 3)
    for x1, y1, x2, y2 in task.truth.boxes:
        assert picture[int(y1) : int(y2), int(x1) : int(x2), 2].mean() == pytest.approx(110, abs=10)
    one = said("look b3 answer b3 b4")
    assert lab.read(one) == Stated((box_of(3),), (box_of(3), box_of(4)))
    assert draw_boxes(pt.Rollout(task, one.turns), lab.read).shape == (260, 260, 3)


# ---- stages


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def vision_checkpoint(request, tmp_path_factory) -> str:
    return vision_checkpoints.checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def test_a_checkpoint_is_trained_and_evaluated(vision_checkpoint, tmp_path, capsys):
    data = odgt_file(tmp_path, {"ID": "a", "gtboxes": [PERSON, MASK]}, {"ID": "b", "gtboxes": [PERSON]})
    words = ["--model", vision_checkpoint, "--max-new", "8", "--quiet"]
    size = ["--steps", "1", "--tasks", "2", "--samples", "2"]
    main(["run", "dip-r1", "--scale", "full", "--data", data, *words, *size, "--out", str(tmp_path / "run")])
    [metrics] = pt.read_metrics(tmp_path / "run")
    assert metrics["part/look"] == metrics["part/format"] == 0.0, "it was not taught the form"
    [first, *_] = pt.read_rollouts(tmp_path / "run")
    assert first["drawing"].startswith("data:image/png"), "the report shows boxes"
    assert first["truth"]["frame"]["coordinates"] == ("thousand" if "qwen3" in vision_checkpoint else "absolute")
    out = tmp_path / "evaluation"
    files = [f"crowd={data}", f"again={coco_file(tmp_path)}", "--category", "person"]
    evaluate = ["run", "dip-r1", "--stage", "evaluate", "--data", *files, *words, "--out", str(out)]
    main(evaluate)
    found = json.loads((out / "measures.json").read_text())
    assert found["crowd"]["pictures"] == 2
    assert found["again"]["F1"] == 0
    lines = (out / "replies.jsonl").read_text()
    main([*evaluate, "--resume"])
    assert (out / "replies.jsonl").read_text() == lines
    assert "MR-2" in capsys.readouterr().out


def test_a_model_that_is_blind_is_refused(tmp_path, capsys):
    data = odgt_file(tmp_path, {"ID": "a", "gtboxes": [PERSON]})
    with pytest.raises(SystemExit):
        main(["run", "dip-r1", "--scale", "full", "--data", data, "--out", str(tmp_path / "run")])
    assert "--model tiny: it sees no pictures" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
