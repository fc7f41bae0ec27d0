"""Reward models, Q models and predictors in processes of their own: the same numbers, one process, clear ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import said, task
from scorer_kinds import LENGTHS

import posttrain as pt
from posttrain import ranks, tiny
from posttrain.policy.scoring import REWARD_MODEL
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.policy.value import RewardModel
from posttrain.sampler.scorer import Connection
from posttrain.sampler.server import ServerError
from posttrain.scale import apart
from posttrain.serve import scorer
from posttrain.serve.scorer import Kind, Listener, Service, kind_at
from posttrain.serve.wire import as_tensor, as_text
from posttrain.systems.q_rm.model import QModel
from posttrain.systems.q_rm.serving import SCORER as Q_MODEL
from posttrain.systems.q_rm.serving import q_values
from posttrain.systems.tomap.predictor import Hashed, Predictor
from posttrain.systems.tomap.serving import SCORER as PREDICTOR
from posttrain.systems.tomap.serving import predictor_of

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    "RAY_worker_niceness": "0",
}


@pytest.fixture(scope="module")
def policy(words) -> TextPolicy:
    return TextPolicy(tiny.network(words, 0, hidden=32, layers=2, positions=256), words, Sampling(12))


@pytest.fixture(scope="module")
def judge(tmp_path_factory, policy) -> Path:
    """A reward model with a random head."""
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("judge")
    policy.save(base)
    torch.manual_seed(1)
    pt.reward_model(str(base), device="cpu").save(folder)
    return folder


@pytest.fixture(scope="module")
def group(policy) -> list[pt.Rollout]:
    """Two turns each, the second after the very tokens that were sampled in the first."""

    def env(one):
        reply = yield from pt.ask(one.prompt)
        yield from pt.ask((*one.prompt, pt.assistant(reply), pt.user("and now?")))

    [found] = pt.rollout(env, [task("q")], {"policy": policy}, 5)
    return found


@contextmanager
def listening(kind: Kind[Any], name: Path, model: Any) -> Iterator[str]:
    """A model behind a port of this process."""
    with Listener(Service(kind, str(name), model), "127.0.0.1", 0) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


def running(*words: str) -> list[int]:
    """Live processes whose command has all of these words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has just ended
        if all(word in command for word in words):
            found.append(int(entry.name))
    return found


def gone(*words: str) -> bool:
    """Whether such processes end, or have."""
    deadline = time.monotonic() + 60
    while running(*words) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(*words)


# ---- the numbers


def test_a_single_process_has_the_model_in_it(judge, group):
    reward = pt.reward_of(str(judge), device="cpu")
    assert isinstance(reward, RewardModel)
    assert values(reward(group)) == values(pt.reward_model(str(judge), device="cpu")(group))
    assert apart.processes == {}


def values(scores) -> list[float]:
    return [score.value for score in scores]


def test_a_server_gives_the_scores_to_the_last_digit(judge, group):
    """Of replies that were sampled, the tokens go over and not only the text, which may be cut otherwise."""
    model = pt.reward_model(str(judge), device="cpu")
    wanted = values(model(group))
    asked = [rollout.turns[-1].ask.messages for rollout in group]
    bare = [[{"role": m["role"], "content": m["content"]} for m in messages] for messages in asked]
    retokenized = [model.judge(tuple(m), r.text).value for m, r in zip(bare, group, strict=True)]
    assert wanted != retokenized, "the sampled tokens make a difference here"
    with listening(REWARD_MODEL, judge, model) as address:
        remote = pt.reward_of(address)
        assert values(remote(group)) == wanted
        long = said("word " * 400)
        [refused] = remote([long])
        assert [refused] == model([long])
        assert "tokens are more than the reward model's 256 positions" in refused.reason
        pictured = pt.Task("p", (pt.user([{"type": "image", "path": "/etc/passwd"}]),), None)
        with pytest.raises(ValueError, match="a part of type 'image'.*sent text only"):
            remote([pt.Rollout(pictured, [])])


def test_requests_of_many_threads_are_answered_one_after_another(judge):
    model = pt.reward_model(str(judge), device="cpu")
    groups = [[said(f"{i} {'b' * j}") for j in range(3)] for i in range(12)]
    wanted, found = [values(model(group)) for group in groups], {}
    with listening(REWARD_MODEL, judge, model) as address:
        remote = pt.reward_of(address)

        def ask(i: int) -> None:
            found[i] = values(remote(groups[i]))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(groups))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(len(groups))] == wanted


@pytest.mark.parametrize("head", ["vocabulary", "scalar"])
def test_a_q_model_is_saved_loaded_and_served_with_equal_values(policy, group, tmp_path, head):
    torch.manual_seed(2)
    model = QModel(policy, head)
    with torch.no_grad():
        model.policy.body.model.norm.weight.add_(torch.randn(32) / 5)  # it has been trained apart from the policy
    wanted = model.token_values(group)
    model.save(tmp_path / "q")
    before = torch.get_rng_state()
    again = QModel.load(tmp_path / "q", device="cpu")
    assert torch.equal(torch.get_rng_state(), before), "loading draws nothing from the run's generator"
    assert again.head == head
    assert all(torch.equal(one, other) for one, other in zip(again.token_values(group), wanted, strict=True))
    assert [one.shape for one in wanted] == [(rollout.decisions,) for rollout in group]
    with listening(Q_MODEL, tmp_path / "q", again) as address:
        remote = q_values(address)
        assert all(torch.equal(one, other) for one, other in zip(remote.token_values(group), wanted, strict=True))
        assert remote.token_values([]) == []
        bad = httpx.post(f"{address}/values", json={"rows": [{"ids": [1, 2, 10**6], "ends": [[1, 3]]}]})
        assert bad.status_code == 400
        assert "token 1000000: the model has" in bad.json()["error"]
        with pytest.raises(ServerError, match="a row of 3 tokens whose turns end at"):
            Connection(address, "Q model").call("values", {"rows": [{"ids": [1, 2, 3], "ends": [[1, 9]]}]})
        stranger = said("hi", decisions=2)
        tokens = pt.TextPolicy.demonstrate(policy, (pt.user("hi"),), "hi").reply.trace
        other = type(tokens)(tokens.prompt, tokens.reply, (), "", "", tokens.vocabulary + 1)
        stranger.turns[0] = pt.Turn(pt.Ask(()), pt.Reply("hi", torch.zeros(len(other.reply)), other))
        with pytest.raises(ValueError, match="has another tokenizer than the policy"):
            remote.token_values([stranger])


def test_a_folder_without_a_q_model_is_named(judge, policy, tmp_path):
    with pytest.raises(ValueError, match="holds no q_model.json, so no Q model was saved there"):
        q_values(str(judge), device="cpu")
    QModel(policy, "scalar").save(tmp_path)
    (tmp_path / "q_model.json").write_text('{"head": "vocabulary", "bf16": false}')
    with pytest.raises(ValueError, match=r"its head has the shape \(1, 32\), and its body needs \(\d+, 32\)"):
        QModel.load(tmp_path, device="cpu")


def test_a_predictor_answers_alike_elsewhere(tmp_path):
    predictor = Predictor(Hashed(64), (16, 8), seed=3)
    generator = torch.Generator().manual_seed(0)
    for p in predictor.network.parameters():
        torch.nn.init.normal_(p, generator=generator)
    predictor.save(tmp_path / "predictor")
    asks = [pt.Ask((pt.user(f"statement {i}"), pt.user("said " * i)), who="predictor") for i in range(20)]
    pairs = [(f"statement {i}", "said " * i) for i in range(20)]
    wanted = [reply.content for reply in predictor.sample(asks)]
    assert len(set(wanted)) > 1
    local = predictor_of(str(tmp_path / "predictor"))
    assert [reply.content for reply in local.sample(asks)] == wanted
    with listening(PREDICTOR, tmp_path / "predictor", predictor) as address:
        assert [reply.content for reply in predictor_of(address).sample(asks)] == wanted
        found = Connection(address, "predictor").call("probabilities", {"pairs": pairs})
        assert torch.equal(torch.tensor(found), predictor.probabilities(pairs)), "float32 survives JSON"


def test_tensors_survive_their_text():
    one = torch.tensor([0.1, -0.0, 1e-45, 3.4e38, float("inf"), float("nan"), 1 / 3])
    assert as_tensor(as_text(one)).view(torch.int32).tolist() == one.view(torch.int32).tolist()
    assert as_tensor(as_text(torch.zeros(0))).shape == (0,)


@pytest.mark.parametrize("kind", [REWARD_MODEL, Q_MODEL, PREDICTOR])
def test_another_process_finds_the_kind_by_its_place(kind):
    assert kind_at(kind.where) is kind


# ---- servers


@pytest.mark.slow
def test_posttrain_serve_is_a_server_for_reward_models(judge, group):
    words = ["serve", "--scorer", f"reward-model={judge}", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrain", *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"serving the reward model .* at (http://127.0.0.1:\d+)", line)
    assert found, line + process.stderr.read()
    address = found.group(1)
    assert values(pt.reward_of(address)(group)) == values(pt.reward_model(str(judge), device="cpu")(group))
    with pytest.raises(ValueError, match=f"{address} serves a reward model, not a Q model"):
        q_values(address)
    assert httpx.post(f"{address}/scores", content=b"{}").status_code == 400, "not said to be JSON"
    assert httpx.post(f"{address}/scores", json={"other": 1}).status_code == 400
    assert "no operation 'values'" in httpx.post(f"{address}/values", json={}).json()["error"]
    assert httpx.get(f"{address}/v1/models").status_code == 404
    process.terminate()
    process.communicate(timeout=30)


def test_what_is_no_such_server_is_said(judge, monkeypatch):
    monkeypatch.setattr("posttrain.sampler.scorer.RETRIES", 1)
    with pytest.raises(ServerError, match=r"reward model at http://127.0.0.1:9: ConnectError.*Is the server up\?"):
        pt.reward_of("http://127.0.0.1:9")
    model = pt.reward_model(str(judge), device="cpu")
    with (
        listening(REWARD_MODEL, judge, model) as address,
        pytest.raises(ValueError, match="is no server of a predictor: posttrain serve starts one"),
    ):
        predictor_of(f"{address}/v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scorer", "runs/rm"], "--scorer runs/rm: write KIND=FOLDER, such as reward-model=runs/rm/model"),
        (
            ["--scorer", "q-rn=a"],
            "--scorer q-rn: unknown, the choices are reward-model, q-rm, rag-zeval, tomap; did you mean q-rm?",
        ),
        (["--scorer", "tomap=a", "--trainable"], "of a model that samples, and --scorer tomap=a only scores"),
        (["--scorer", "q-rm=nowhere"], "holds no q_model.json"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, capsys):
    from posttrain.cli import main

    with pytest.raises(SystemExit):
        main(["serve", *options])
    assert message in capsys.readouterr().err


# ---- waiting


@contextmanager
def steps(operation: Callable[[Any], Iterator[Any]]) -> Iterator[str]:
    kind = Kind("reward model", "", None, lambda model: {}, lambda model: {"scores": operation}, None)  # type: ignore[arg-type]
    with listening(kind, Path("x"), None) as address:
        yield address


def test_a_deadline_measures_progress_and_not_patience(monkeypatch):
    monkeypatch.setattr(scorer, "BEAT_S", 0.05)
    monkeypatch.setattr("posttrain.sampler.scorer.PATIENCE", timedelta(seconds=2))
    hanging = threading.Event()

    def slow(payload):
        for i in range(payload["items"]):
            time.sleep(0.1)
            yield i
        if payload["hangs"]:
            hanging.wait(60)

    with steps(slow) as address:
        connection = Connection(address, "reward model")
        clock = time.monotonic()
        assert connection.call("scores", {"items": 25, "hangs": False}) == list(range(25))
        assert time.monotonic() - clock > 2, "longer than the deadline: it was moved by every item"
        with pytest.raises(ServerError, match="has finished nothing for 2 s.*it hangs"):
            connection.call("scores", {"items": 1, "hangs": True})
        hanging.set()


def test_what_a_model_raises_is_heard_and_harms_no_other(monkeypatch, capfd):
    monkeypatch.setattr("posttrain.sampler.scorer.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("posttrain.sampler.scorer.RETRIES", 1)

    def fails(payload):
        if payload["how"] == "value":
            raise ValueError("no such token")
        if payload["how"] == "bug":
            raise RuntimeError("out of memory")
        yield 1

    with steps(fails) as address:
        connection = Connection(address, "reward model")
        with pytest.raises(ServerError, match="/scores: ValueError: no such token"):
            connection.call("scores", {"how": "value"})
        with pytest.raises(ServerError, match="/scores: RuntimeError: out of memory"):
            connection.call("scores", {"how": "bug"})
        assert connection.call("scores", {"how": "well"}) == [1]
    assert "RuntimeError: out of memory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; [(print('{\"busy\": false}'), time.sleep(0.1)) for _ in range(600)]", "did nothing for 1 s"),
        ("import time; time.sleep(60)", "did nothing for 1 s"),
        ("raise SystemExit(3)", "ended while loading it: exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, as the kernel does when memory runs out"),
        ('print(\'{"error": "no config.json"}\')', "^no config.json$"),
    ],
)
def test_a_process_that_does_not_come_up_is_an_error(program, message, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=1))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-u", "-c", program], bufsize=0, **pipes)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=message):
        apart.port_of(process, "the process of it")
    process.kill()
    apart.end(process)


# ---- a process of the run's own


@pytest.mark.slow
def test_two_ranks_ask_one_process_and_hear_of_its_death(judge, tmp_path):
    """The scores of one process to the last digit; the same error on both ranks when it cannot load, or is killed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    missing = tmp_path / "empty"
    missing.mkdir()
    words = [*launch, str(HERE / "scorer_program.py"), str(judge), str(missing), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [len(one["processes"]) for one in found] == [1, 0], "one process, of the first rank"
    assert found[0]["addresses"] == found[1]["addresses"]
    assert len(found[0]["addresses"]) == 1
    model = pt.reward_model(str(judge), device="cpu")
    for rank, one in enumerate(found):
        groups = [[said(f"{rank} {i} {'a' * j}") for j in range(4)] for i in range(3)]
        assert one["scores"] == [values(model(group)) for group in groups for _ in range(2)]
        assert f"`model={missing}`: the folder holds no config.json" in one["missing"]
        assert f"the process of the reward model at {one['addresses'][0]} has died" in one["dead"]
    assert "killed by SIGKILL" in found[0]["dead"]
    assert gone("posttrain.serve.process", str(judge))


def test_a_process_is_shared_and_ends_when_it_is_told_to(monkeypatch):
    monkeypatch.setattr(apart, "machine", ["127.0.0.1"])  # as on a cluster
    monkeypatch.setattr(apart, "addresses", {})
    monkeypatch.setattr(apart, "processes", {})
    ruler, same = apart.reach(LENGTHS, "shared"), apart.reach(LENGTHS, "shared")
    other = apart.reach(LENGTHS, "another")
    assert ruler.call("lengths", {"texts": ["a", "bcd"]}) == [1, 3]
    assert ruler.about["process"] == same.about["process"] != other.about["process"]
    assert os.getpid() not in (ruler.about["process"], other.about["process"])
    assert running("posttrain.serve.process", "shared") == [ruler.about["process"]]
    for process in apart.processes.values():
        apart.end(process)
    assert [process.returncode for process in apart.processes.values()] == [0, 0]
    with pytest.raises(ChildProcessError, match="the process of the ruler at .* has died: exit code 0"):
        same.call("lengths", {"texts": ["a"]})


@pytest.mark.slow
def test_a_process_does_not_outlive_a_run_that_is_killed():
    program = (
        "import sys, time\nfrom posttrain.scale import apart\nfrom scorer_kinds import LENGTHS\n"
        "apart.machine[:] = ['127.0.0.1']\napart.reach(LENGTHS, 'orphan')\n"
        "print(*apart.addresses.values(), flush=True)\ntime.sleep(120)\n"
    )
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        assert run.stdout is not None
        address = run.stdout.readline().strip()
        assert running("posttrain.serve.process", "orphan") == [Connection(address, "ruler").about["process"]]
        run.kill()
    assert gone("posttrain.serve.process", "orphan")
    with pytest.raises(ChildProcessError, match="has died: it does not answer any more"):
        Connection(address, "ruler", own=True)


@pytest.mark.slow
def test_learners_and_players_of_a_cluster_ask_one_process(judge, policy, tmp_path):
    """A reward file that takes its model from `reward_of`, and writes down who asks what."""
    policy.save(tmp_path / "base")
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps({"prompt": f"hi {i}", "answer": "x"}) for i in range(8)))
    (tmp_path / "graded.py").write_text(
        "import os, posttrain as pt\nfrom pathlib import Path\n"
        f"model = pt.reward_of({str(judge)!r}, device='cpu')\n"
        "def scores(group):\n"
        "    where = model.connection.address if hasattr(model, 'connection') else 'here'\n"
        f"    Path({str(tmp_path)!r}, f'asked-{{os.getpid()}}').write_text(where)\n"
        "    return model(group)\n"
    )
    words = ["train", "--data", str(tmp_path / "tasks.jsonl"), "--grade", f"{tmp_path / 'graded.py'}:scores"]
    words += ["--model", str(tmp_path / "base"), "--max-new", "4", "--steps", "1", "--tasks", "2", "--samples", "2"]
    words += ["--held-out", str(tmp_path / "tasks.jsonl"), "--cluster", "local", "--samplers", "1"]
    words += ["--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *words], capture_output=True, text=True, timeout=240, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    asked = [path.read_text() for path in tmp_path.glob("asked-*")]
    assert len(asked) >= 2, "a learner, for what is held out, and a player"
    assert len(set(asked)) == 1
    assert asked[0].startswith("http://")
    assert gone("posttrain.serve.process", str(judge))
