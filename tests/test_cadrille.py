"""cadrille: programs are admitted and run, solids compared, and the policy learns from the samples that tell most."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import broken_rows, said
from hypothesis import example, given, settings
from hypothesis import strategies as st
from injection_checkpoints import text_checkpoint

import posttrain as pt
from posttrain.lab.world.solids import LONGEST, VOCABULARY, Piece, Solid, Solids
from posttrain.sandbox.backends import lacking
from posttrain.systems.cadrille.cppo import largest, recipe
from posttrain.systems.cadrille.data import demonstrations_of, input_of, read_shapes, tasks_of
from posttrain.systems.cadrille.kernel import pool
from posttrain.systems.cadrille.kernel.pool import Comparison, Kernel
from posttrain.systems.cadrille.kernel.syntax import Refused, check
from posttrain.systems.cadrille.lab import ShownSolids
from posttrain.systems.cadrille.measures import as_table, drawing, measures_of, predictions
from posttrain.systems.cadrille.mining import graded_samples, hard, read_samples
from posttrain.systems.cadrille.points import Mesh, chamfer, cloud, farthest_points, read_mesh, surface_points
from posttrain.systems.cadrille.preferences import pairs
from posttrain.systems.cadrille.render import montage, picture
from posttrain.systems.cadrille.reward import program_in, reward

BOX, CYLINDER = "r = cq.Workplane().box(4, 4, 4)", "r = cq.Workplane().cylinder(4, 2)"  # of which one fills pi / 4
RECODED = """import cadquery as cq
w0=cq.Workplane('ZX',origin=(0,-20,0))
w1=cq.Workplane('XY')
r=w0.sketch().arc((20,-30),(10,-10),(20,10)).segment((60,10)).segment((60,-30)).close().assemble().reset()\
.face(w0.sketch().push([(45,-10)]).circle(8),mode='s').finalize().extrude(-35).union(w1.workplane(offset=86/2)\
.moveTo(-5,-20).cylinder(86,10)).union(w1.sketch().rect(40,30).push([(0,0)]).rect(20,10,mode='s').finalize().extrude(9))
"""


@pytest.fixture(scope="module")
def kernel():
    pytest.importorskip("cadquery")
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    with Kernel(2, deadline_s=60) as held:
        yield held


@pytest.fixture
def draw():
    return np.random.default_rng(0)


# ---- which programs are admitted


@pytest.mark.parametrize("program", [BOX, RECODED, "r = cq.Workplane().box(-(3 + 1) * -2, .5e2, 4, centered=True)"])
def test_programs_of_cad_recode_are_admitted(program):
    check(program)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "nothing is assigned to r"),
        ("x = cq.Workplane().box(1, 1, 1)", "nothing is assigned to r"),
        ("r = (", "not Python"),
        ("r = '\0'", "not Python"),
        ("(" * 10_000, "not Python"),
        ("r = 1\n" * 10_000, "characters"),
        ("r = (" + "1," * 6000 + ")", "nodes"),
        ("import os\nr = 1", "an import"),
        ("import cadquery as cq, os\nr = 1", "an import"),
        ("from cadquery import exporters\nr = 1", "ImportFrom"),
        ("while True: pass", "While"),
        ("r = [x for x in (1, 2)]", "ListComp"),
        ("r = (lambda: 1)()", "something else than a method"),
        ("r = open('/etc/passwd')", "something else than a method"),
        ("r = ().__class__", "__class__"),
        ("r = __builtins__", "__builtins__"),
        ("__builtins__ = 1", "no assignment of a name"),
        ("cq = 1", "no assignment of a name"),
        ("r.x = 1", "no assignment of a name"),
        ("r += 1", "no assignment of a name"),
        ("r = 2 ** 9", "Pow"),
        ("r = cq.exporters", "exporters"),
        ("r = cq.Workplane().export('x')", "export"),
        ("r = cq.Workplane().box", "box is not called"),
        ("r = cq.Workplane(*[1])", "Starred"),
        ("r = cq.Workplane(**{})", "something else than a method"),
        ("r = f'{1}'", "JoinedStr"),
        ("r = 1e5", "a number above"),
        ("r = 1e999", "a number above"),
        ("r = 1j", "complex"),
        ("r = b''", "bytes"),
        ("r = 'x' * 3\nq = '" + "x" * 101 + "'", "short text"),
        ("if (r := 1): pass", "If"),
    ],
)
def test_everything_else_is_refused_and_says_why(program, why):
    with pytest.raises(Refused, match=why):
        check(program)


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["r", "=", "cq.", "Workplane", "(", ")", ".box", "1", ",", "\n", "'"])).map("".join)
)
@example("r = '\\d'")
def test_no_text_makes_the_check_fail_in_another_way(text):
    with contextlib.suppress(Refused):
        check(text)


# ---- the kernel


@pytest.mark.parametrize(
    ("program", "target", "iou"),
    [
        (BOX, BOX, 1.0),
        (CYLINDER, BOX, np.pi / 4),
        ("r = cq.Workplane(origin=(7, 8, 9)).box(40, 40, 40)", BOX, 1.0),  # place and scale are not scored
        ("r = cq.Workplane().box(4, 2, 2)", "r = cq.Workplane().box(2, 2, 1)", 1 / 2),  # a quarter and half of the cube
        ("r = cq.Workplane().box(4, 4, 4).val()", BOX, 1.0),
        (RECODED, RECODED, 1.0),
    ],
)
def test_solids_are_compared_within_the_unit_cube(kernel, program, target, iou):
    [found] = kernel.compare([(program, target)])
    assert found.valid
    assert found.iou == pytest.approx(iou, abs=1e-4)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("r = cq.Workplane().boxx(1, 1, 1)", "refused: the attribute boxx"),
        ("r = cq.Workplane().box(0, 1, 1)", "Standard_DomainError"),
        ("r = cq.Workplane().box(1, 1)", "TypeError"),
        ("r = nothing", "NameError"),
        ("r = 1", "NoSolid: r holds no solid"),
        ("r = cq.Workplane()", "NoSolid: r holds no solid"),
        ("r = cq.Workplane().rect(1, 1)", "NoSolid: r holds no solid"),
        ("r = cq.Workplane().box(1, 1, 1).cut(cq.Workplane().box(2, 2, 2))", ""),
        ("r = cq.Workplane().box(1, 1, 1).faces('>Z').edges('no such').fillet(1)", ""),
    ],
)
def test_a_program_that_leaves_no_solid_is_invalid_and_says_why(kernel, program, why):
    [found] = kernel.compare([(program, BOX)])
    assert not found.valid
    assert found.iou is None
    assert why in found.reason


def test_a_batch_keeps_its_order_and_runs_equal_programs_once(kernel):
    fresh = [f"r = cq.Workplane().box(4, 4, {side})" for side in (1, 2, 3)]
    ran = [worker.done for worker in kernel.workers]
    found = kernel.compare([(program, BOX) for program in (*fresh, *fresh[::-1])] * 2)
    assert [one.iou for one in found] == pytest.approx([0.25, 0.5, 0.75, 0.75, 0.5, 0.25] * 2)
    assert sum(worker.done for worker in kernel.workers) == sum(ran) + 3


def test_a_mesh_is_a_target_as_a_program_is(kernel, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box((30, 30, 30)).export(tmp_path / "box.stl")
    found = kernel.compare([(program, tmp_path / "box.stl") for program in (BOX, CYLINDER, RECODED)])
    assert [one.iou for one in found[:2]] == pytest.approx([1, np.pi / 4], abs=2e-3)
    assert 0 < found[2].iou < 1


def test_a_target_that_is_no_solid_is_nobodys_fault(kernel, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]).export(tmp_path / "flat.stl")
    for target in ("r = cq.Workplane().box(0, 1, 1)", tmp_path / "flat.stl"):
        [found] = kernel.compare([(BOX, target)])
        assert isinstance(found, pt.Invalid)
        assert found.reason.startswith("the target: ")


def test_surfaces_are_closed_and_in_the_programs_unit(kernel):
    made, none = kernel.meshes(["r = cq.Workplane(origin=(1, 0, 0)).box(2, 4, 6)", "r = 1"])
    assert none == "NoSolid: r holds no solid"
    assert made.vertices.min(0).tolist() == [0, -2, -3]
    assert made.vertices.max(0).tolist() == [2, 2, 3]
    corners = made.vertices[made.faces]
    assert np.linalg.det(corners).sum() / 6 == pytest.approx(48)  # the volume, of faces that look outwards


ATTACKS = """
import ctypes, os
cq.Workplane.hole = lambda self: ctypes.string_at(0)
cq.Workplane.clean = lambda self: os._exit(3)
cq.Workplane.shell = lambda self: bytearray(8 << 30)
def endless(self):
    while True: pass
cq.Workplane.wedge = endless
"""


@pytest.fixture
def fragile(kernel, tmp_path, monkeypatch):
    """A kernel that crashes, exits, hangs or runs out of memory at some methods."""
    source = tmp_path / "worker.py"
    source.write_text(pool.WORKER.read_text() + ATTACKS)
    monkeypatch.setattr(pool, "WORKER", source)
    monkeypatch.setattr(kernel, "deadline_s", 2.0)
    for worker in kernel.workers:
        worker.renew()
    yield kernel
    for worker in kernel.workers:
        worker.renew()


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("hole", "the program ends the kernel: signal 11"),
        ("clean", "the program ends the kernel: exit code 3"),
        ("wedge", "the program ends the kernel: no answer in 2 s"),
        ("shell", "MemoryError"),
    ],
)
def test_what_a_program_does_to_the_kernel_is_its_own_fault(fragile, method, why):
    found = fragile.compare([(BOX, BOX), (f"r = cq.Workplane().{method}()", BOX), (CYLINDER, BOX)])
    assert [one.iou for one in (found[0], found[2])] == pytest.approx([1, np.pi / 4])
    assert why in found[1].reason


def test_a_kernel_that_is_killed_from_outside_is_nobodys_fault(fragile, monkeypatch):
    ended = pool.SessionEnded("signal 9", -9)
    calls = iter([ended, {"iou": 0.5}, ended, ended, RuntimeError("the sandbox has failed")])

    def call(worker, *arguments, deadline_s):
        said = next(calls)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(pool.Worker, "_call", call)
    again, twice, failed = (fragile.compare([(f"r = cq.Workplane().box(1, 1, {side})", BOX)])[0] for side in (5, 6, 7))
    assert again == Comparison(0.5)
    assert twice == pt.Invalid("the kernel was killed from outside, twice")
    assert failed == pt.Invalid("the kernel failed: the sandbox has failed")


def test_a_crash_in_a_used_worker_counts_only_if_it_comes_again(kernel, monkeypatch):
    crash = pool.SessionEnded("signal 11", -11)
    calls = iter([crash, {"iou": 0.5}])

    def call(worker, *arguments, deadline_s):
        said = next(calls)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(pool.Worker, "_call", call)
    monkeypatch.setattr(kernel.workers[0], "done", 3)
    monkeypatch.setattr(kernel.workers[1], "done", 3)
    assert kernel.compare([("r = cq.Workplane().box(1, 1, 8)", BOX)]) == [Comparison(0.5)]


# ---- points and pictures


def cube(side: float = 1.0) -> Mesh:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) - 0.5
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Mesh.of((corners * side).tolist(), [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])


def test_points_lie_uniformly_on_a_surface(draw):
    points = surface_points(cube(2), 6000, draw)
    assert np.abs(points).max(1) == pytest.approx(1)
    assert np.bincount(np.abs(points).argmax(1)) / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)
    with pytest.raises(ValueError, match="without area"):
        surface_points(Mesh.of([[0, 0, 0]] * 3, [[0, 1, 2]]), 1, draw)


def test_farthest_points_by_hand():
    points = np.array([[0, 0, 0], [1, 0, 0], [10, 0, 0], [4, 0, 0], [6, 0, 0]])
    assert farthest_points(points, 4)[:, 0].tolist() == [0, 10, 4, 6]
    with pytest.raises(ValueError, match="6 points of 5"):
        farthest_points(points, 6)


def test_the_chamfer_distance_of_parallel_squares(draw):
    """Each point is about 0.1 from the other plane, so that both ways together are 2 x 0.01."""
    square = Mesh.of([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    assert chamfer(square, square.moved(np.array([0, 0, 0.1]), 1), draw) == pytest.approx(0.02, rel=0.02)
    assert chamfer(square, square, draw) < 1e-3


def test_a_mesh_is_brought_into_the_cube_and_disturbed(draw):
    mesh = cube(7).moved(np.array([1, 2, 3]), 2).in_cube()
    assert np.abs(mesh.vertices) == pytest.approx(0.5)
    assert np.std(mesh.noisy(draw, 0.01).vertices - mesh.vertices) == pytest.approx(0.01, rel=0.5)
    with pytest.raises(ValueError, match="without any extent"):
        Mesh.of([[1, 1, 1]], []).in_cube()


def test_a_file_without_a_mesh_is_named(tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "words.stl").write_text("solid words")
    with pytest.raises(ValueError, match=r"words\.stl: (no mesh|a mesh without)"):
        read_mesh(tmp_path / "words.stl")


def test_a_picture_shows_what_is_nearest():
    front = picture(cube(0.5), (0, 0, 1), 64)
    assert (front[0, 0] == 255).all()
    inner, outer = front[20:44, 20:44], (front != 255).any(2)
    assert (inner == inner[0, 0]).all()  # one face, seen from straight ahead, all of one shade
    assert outer.sum() == pytest.approx((64 / 2 / np.tan(np.pi / 6) / (0.9 - 0.25) * 0.5) ** 2, rel=0.1)
    assert outer[:, ::-1].sum() == (outer & outer[:, ::-1]).sum()  # symmetric
    small, far = cube(0.2).moved(np.array([0, 0, 0.3]), 1), cube(0.5)
    both = Mesh(np.concatenate([far.vertices, small.vertices]), np.concatenate([far.faces, small.faces + 8]))
    assert (picture(both, (0, 0, 1), 64)[32, 32] == front[32, 32]).all()


def test_four_views_stand_in_a_border():
    found = montage(cube())
    assert found.shape == (268, 268, 3)
    assert not found[:3].any()
    assert not found[:, 131:137].any()
    assert (found[3:131, 3:131] == picture(cube())[::-1, ::-1]).all()


# ---- shapes of files


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "programs"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text(RECODED)
    (folder / "inner" / "b.py").write_text("r = cq.Workplane(origin=(30, 0, 0)).box(40, 20, 20)")
    return folder


def test_programs_of_a_folder_become_tasks_and_demonstrations(kernel, programs):
    shapes = read_shapes(str(programs))
    assert [shape.key for shape in shapes] == ["a", "inner/b"]
    first, second = tasks_of(shapes, ["points"], kernel)
    assert first.truth == RECODED
    points, words = second.prompt[0]["content"]
    assert words == {"type": "text", "text": "Generate cadquery code"}
    assert points["points"].shape == (256, 3)
    assert points["points"].min(0) == pytest.approx([0.1, -0.1, -0.1], abs=1e-3)  # in hundredths of the program's unit
    assert points["points"].max(0) == pytest.approx([0.5, 0.1, 0.1], abs=1e-3)
    again = tasks_of(shapes[1:], ["points"], kernel)[0].prompt[0]["content"][0]
    assert (again["points"] == points["points"]).all()  # the same without its neighbours
    pictured = demonstrations_of(shapes, ["image"], kernel, noisy=0)
    assert pictured[0].messages[0]["content"][0]["image"].shape == (268, 268, 3)
    assert pictured[1].messages[1] == pt.assistant(shapes[1].target)
    assert {input_of(shapes[0], ["points", "image", "text"], seed) for seed in range(20)} == {"points", "image"}


def test_meshes_of_a_folder_fill_the_cube_that_the_model_sees(kernel, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box((3, 3, 1.5)).apply_translation((9, 9, 9)).export(tmp_path / "plate.stl")
    [found] = tasks_of(read_shapes(str(tmp_path)), ["points"], kernel)
    points = found.prompt[0]["content"][0]["points"]
    assert points.min(0) == pytest.approx([-1, -1, -0.5], abs=1e-3)
    assert points.max(0) == pytest.approx([1, 1, 0.5], abs=1e-3)
    with pytest.raises(ValueError, match=r"plate\.stl: a mesh without a program"):
        demonstrations_of(read_shapes(str(tmp_path)), ["points"], kernel)
    (tmp_path / "b.py").write_text(BOX)
    with pytest.raises(ValueError, match="both programs and meshes"):
        read_shapes(str(tmp_path))


def test_descriptions_are_shown_as_they_are(kernel, tmp_path):
    file = tmp_path / "described.jsonl"
    rows = [{"id": "x", "description": "A cube.", "program": BOX}, {"program": CYLINDER}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shapes = read_shapes(str(file))
    assert [shape.key for shape in shapes] == ["x", "2"]
    assert tasks_of(shapes[:1], ["text"], kernel)[0].prompt == (pt.user("A cube."),)
    assert tasks_of(shapes[1:], ["text", "image"], kernel)[0].prompt[0]["content"][0]["type"] == "image"
    with pytest.raises(ValueError, match=r"described\.jsonl, line 2: a shape without a description"):
        tasks_of(shapes, ["text"], kernel)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"program": "import os\nr = 1"}, "line 1: an import"),
        ({"program": 3}, "line 1: the column 'program' holds int"),
        ({"description": "A cube."}, "line 1: there is no column 'program'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, why):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=why):
        read_shapes(str(tmp_path / "rows.jsonl"))


def test_a_program_that_is_no_solid_is_named(kernel, programs):
    (programs / "c.py").write_text("r = cq.Workplane().box(0, 1, 1)")
    with pytest.raises(ValueError, match=r"c\.py: Standard_DomainError"):
        tasks_of(read_shapes(str(programs)), ["points"], kernel)
    (programs / "d.py").write_text("while True: pass")
    with pytest.raises(ValueError, match=r"d\.py: a statement that is no assignment"):
        read_shapes(str(programs))


@given(broken_rows({"id": "x", "description": "A cube.", "program": BOX}))
@settings(max_examples=60, deadline=None)
def test_any_row_is_a_shape_or_an_error_that_names_it(tmp_path_factory, row):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    try:
        found, said = read_shapes(str(file)), ""
    except ValueError as error:
        found, said = [], str(error)
    assert all(isinstance(shape.target, str) for shape in found)
    assert bool(found) != ("rows.jsonl" in said)


def test_a_checkpoint_is_given_an_encoder_once(tmp_path):
    model = pt.ModelOptions(text_checkpoint(tmp_path / "text"), max_new=4, device="cpu")
    policy = model.policy(pt.PointEncoder(5))
    assert list(policy.kinds) == ["points"]
    policy.save(tmp_path / "model")
    saved = replace(model, model=str(tmp_path / "model"))
    assert saved.policy().modalities["points"].encoder.points == 5
    with pytest.raises(ValueError, match="has encoders of its own, give it no others"):
        saved.policy(pt.PointEncoder(7))
    assert not hasattr(model.policy(), "modalities")


# ---- how good programs are


def test_measures_count_invalid_programs_beside_the_mean(kernel):
    lines = predictions(rollouts(BOX, CYLINDER, "r = 1"), kernel)
    assert [line["reason"] for line in lines] == ["", "", "NoSolid: r holds no solid"]
    assert lines[0]["chamfer"] < lines[1]["chamfer"] < 0.02
    found = measures_of(lines)
    assert found["IoU"] == pytest.approx((1 + np.pi / 4) / 2, abs=1e-3)
    assert found["invalid"] == pytest.approx(1 / 3)
    assert found["IoU, invalid 0"] == pytest.approx((1 + np.pi / 4) / 3, abs=1e-3)
    assert found["CD x1000"] == pytest.approx(500 * (lines[0]["chamfer"] + lines[1]["chamfer"]))
    assert as_table(measures_of(lines[2:])).split()[-4:] == ["-", "-", "1.000", "0.000"]


def test_a_drawing_shows_the_target_beside_what_was_made(kernel):
    draw = drawing(kernel)
    same, nothing = (draw(one) for one in rollouts(BOX, "r = 1"))
    assert same.shape == (128, 256, 3)
    assert (same[:, :128] == same[:, 128:]).all()
    assert (nothing[:, :128] == same[:, :128]).all()
    assert (nothing[:, 128:] == 255).all()
    assert draw(rollouts(BOX, target="r = 1")[0]) is None


# ---- the reward, and what is learned from it


def rollouts(*texts: str, target=BOX) -> pt.Group:
    return [said(text, truth=target, decisions=len(text)) for text in texts]


def test_the_reward_is_ten_times_the_iou_or_minus_ten(kernel, monkeypatch):
    scores = pt.group_scores(reward(kernel), rollouts(BOX, f"Here:\n```python\n{CYLINDER}\n```", "r = 1", "no program"))
    assert [one.value for one in scores] == pytest.approx([10, 10 * np.pi / 4, -10, -10], abs=1e-3)
    assert [one.parts["valid"] for one in scores] == [1, 1, 0, 0]
    assert scores[2].parts["iou"] == 0
    monkeypatch.setattr(kernel, "compare", lambda pairs: [Comparison(None), pt.Invalid("killed")])
    failed, invalid = pt.group_scores(reward(kernel), rollouts(BOX, BOX))
    assert (failed.value, failed.parts) == (0, {"iou": 0, "valid": 1})  # two solids that cannot be intersected
    assert invalid == pt.Invalid("killed")


def test_a_program_may_stand_in_a_fence():
    assert program_in(" r = 1\n") == "r = 1"
    assert program_in("So:\n```py\nr = 2\n```\nand ```\nr = 3```") == "r = 2"


def test_the_samples_of_largest_advantage_are_kept():
    """Rewards 10, 8, 6, -10 have the mean 3.5, and the advantages 6.5, 4.5, 2.5 and -13.5."""
    group = rollouts("abc", "ab", "a", "abcd")
    scores = [pt.Score(value) for value in (10.0, 8.0, 6.0, -10.0)]
    kept = largest(2)(group, scores)
    assert [one.tolist() for one in kept] == [[6.5] * 3, [0] * 2, [0], [-13.5] * 4]
    everything = largest(4)(group, scores)
    assert [one[0].item() for one in everything] == [6.5, 4.5, 2.5, -13.5]
    with pytest.raises(ValueError, match="`kept=0`"):
        largest(0)


def test_dr_cppo_weighs_sequences_alike_and_clips_at_a_tenth():
    """Two kept sequences of 2 and 1 tokens, A = 6 and -6, ratios 1.2, 0.8 and 0.8.

    Costs -6 x 1.1 (clipped), -6 x 0.8; and 6 x 0.9 (clipped): the mean of -5.7 and 5.4 is -0.15.
    """
    made = recipe(pt.each(len), samples=4, kept=2)
    ratio = torch.tensor([1.2, 0.8, 0.8])
    batch = pt.Batch(torch.zeros(3), torch.zeros(3), torch.tensor([6.0, 6, -6]), torch.tensor([0, 0, 1]))
    cost, _ = made.loss(batch, pt.Density(ratio.log(), torch.zeros(3)))
    weight = made.reduce(torch.tensor([2, 1]), torch.tensor([0, 0]))[batch.row]
    assert (cost * weight).sum().item() == pytest.approx(-0.15, abs=1e-6)
    assert (made.epochs, made.updates, made.reference) == (3, 1, None)
    with pytest.raises(ValueError, match="`kept=5`"):
        recipe(pt.each(len), samples=4, kept=5)


def test_hard_tasks_are_those_of_a_low_mean_of_three():
    lines = [
        {"id": name, "rewards": rewards}
        for name, rewards in {
            "x": [7.5, 7.5, 7.5],
            "y": [7.5, 7.5, 7.4],
            "z": [-10],
            "late": [9, 9, 9, -10, -10],
        }.items()
    ]
    assert hard(lines) == {"y", "z"}


@pytest.mark.parametrize(
    "row",
    [
        {"id": "x", "replies": ["a"], "rewards": []},
        {"id": "x", "replies": [], "rewards": []},
        {"id": "x", "replies": ["a"], "rewards": ["b"]},
        {"id": "x", "replies": "a", "rewards": [1]},
        {"id": "x", "rewards": [1]},
    ],
)
def test_a_line_without_a_reward_for_each_reply_is_named(tmp_path, row):
    (tmp_path / "samples.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1"):
        read_samples(str(tmp_path / "samples.jsonl"))


def test_every_pair_of_different_rewards_is_a_preference():
    scores = {"a": pt.Score(9), "b": pt.Score(-10), "c": pt.Score(9), "d": pt.Invalid("down")}
    group = rollouts("a", "b", "c", "d")
    line = graded_samples(pt.each(lambda one: scores[one.text]))(group)
    assert line == {"replies": ["a", "b", "c"], "rewards": [9, -10, 9]}
    found = pairs([group[0].task], [{"id": "t", **line}])
    assert [(one.chosen, one.rejected) for one in found] == [("a", "b"), ("c", "b")]
    assert found[0].prompt == group[0].task.prompt
    assert graded_samples(pt.each(lambda one: scores["d"]))(group) == pt.Invalid("down")
    with pytest.raises(ValueError, match="nothing to prefer"):
        pairs([group[0].task], [{"id": "t", "replies": ["a", "c"], "rewards": [9, 9]}])


# ---- the tiny world


@pytest.mark.parametrize("domain", ["R", "D"])
def test_programs_of_the_tiny_world_are_solids_and_their_points_lie_on_them(kernel, domain, draw):
    solids = Solids(3, domain).solids(12, "test")
    assert solids == Solids(3, domain).solids(12, "test")
    assert solids != Solids(3, domain).solids(12, "training")
    for one in solids:
        assert set(one.words) <= set(VOCABULARY)
        assert len(one.words) < LONGEST
        check(one.program)
        assert one.program.split() == one.words
    for one, mesh in zip(solids, kernel.meshes([one.program for one in solids]), strict=True):
        points = one.surface(2000, draw)
        assert points.shape == (2000, 3)
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        assert points.min(0) == pytest.approx(low, abs=2)
        assert points.max(0) == pytest.approx(high, abs=2)
        assert distance_to(mesh, points, draw) < 0.03 * (high - low).max()


def test_a_slip_leaves_one_word_out():
    for seed in range(20):
        shown, slipped = (
            ShownSolids(3, slips=share).demonstration(random.Random(seed)).messages[1]["content"].split()
            for share in (0.0, 1.0)
        )
        check(" ".join(shown))
        assert any(slipped == shown[:i] + shown[i + 1 :] for i in range(len(shown)))


def distance_to(mesh: Mesh, points: np.ndarray, draw: np.random.Generator) -> float:
    """The largest distance of a point to the nearest of many on the surface."""
    from scipy.spatial import KDTree

    return float(KDTree(surface_points(mesh, 20_000, draw)).query(points)[0].max())


def test_what_is_cut_away_leaves_its_inside(draw):
    one = Solid(Piece("box", (40, 40, 40)), "cut", Piece("cylinder", (60, 10)))
    points = one.surface(4000, draw)
    reach = np.hypot(points[:, 0], points[:, 1])
    assert reach.min() == pytest.approx(10)  # nothing is left within the hole
    assert (np.abs(points).max(1) <= 20 + 1e-9).all()
    wall = np.isclose(reach, 10) & (np.abs(points[:, 2]) < 20)
    whole = 6 * 1600 - 2 * np.pi * 100 + 2 * np.pi * 10 * 40
    assert wall.mean() == pytest.approx(2 * np.pi * 10 * 40 / whole, abs=0.03)


def test_points_are_the_same_in_any_process(draw):
    mesh = cube(2)
    assert (cloud(mesh, np.random.default_rng(5), 16, 64) == cloud(mesh, np.random.default_rng(5), 16, 64)).all()
    assert cloud(mesh, draw, 16, 64).dtype == np.float32
