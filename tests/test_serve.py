"""`posttrain serve` as a process: what OpenAI's client sees, what a learner needs, and what is recorded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import processes
import pytest
import torch
from conftest import digits, task

import posttrain as pt
from posttrain import tiny
from posttrain.policy.text import TextPolicy
from posttrain.row import row_logps, rows_of
from posttrain.sampler.engine import ServedEngine, whole_tensor_sums
from posttrain.sampler.server import Player, Server, ServerError
from posttrain.sampler.weights import SyncError, collect_weights, probe_of, scores, sequence_row, synchronise


@pytest.fixture(scope="module")
def served(tmp_path_factory, words):
    """A tiny random model behind a real server: its address, its folder, and the file of its episodes."""
    folder = tmp_path_factory.mktemp("served")
    TextPolicy(tiny.network(words, 5, hidden=32, layers=2, positions=256), words).save(folder / "model")
    record = folder / "episodes.jsonl"
    options = ["--model", str(folder / "model"), "--port", "0", "--record", str(record), "--trainable"]
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrain", "serve", *options, "--name", "small", "--max-new", "12"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.search(r"serving small at (http://127.0.0.1:\d+/v1)", said)
    assert found, said + process.stderr.read()
    yield found.group(1), folder / "model", record
    process.terminate()
    processes.output(process)


@pytest.fixture
def twin(served) -> TextPolicy:
    """The same model in this process."""
    return pt.text(str(served[1]), max_new=12)


def test_openai_s_client_and_the_record_of_its_episode(served, twin):
    from openai import BadRequestError, OpenAI

    url, _, record = served
    client = OpenAI(base_url=url, api_key="none")
    assert [model.id for model in client.models.list()] == ["small"]
    asked = [{"role": "user", "content": "hello"}]
    headers = {"x-posttrain-task": "greeting"}
    first = client.chat.completions.create(model="small", messages=asked, seed=3, logprobs=True, extra_headers=headers)
    said = first.choices[0].message.content
    [local] = twin.sample([pt.Ask((pt.user("hello"),), seed=3)])
    assert said == local.content
    assert [one.logprob for one in first.choices[0].logprobs.content] == pytest.approx(local.logp.tolist(), abs=1e-5)
    asked += [{"role": "assistant", "content": said}, {"role": "user", "content": "and again"}]
    streamed = client.chat.completions.create(model="small", messages=asked, seed=4, stream=True, max_tokens=5)
    pieces = [event.choices[0].delta.content or "" for event in streamed]
    episode = first.choices[0].episode
    assert httpx.post(f"{url}/episodes/{episode}/reward", json={"reward": 0.5}).status_code == 200
    assert httpx.post(f"{url}/episodes/nobody/reward", json={"reward": 0.5}).status_code == 400
    assert httpx.post(f"{url}/completions", json={"prompt": [5], "seed": -1}).status_code == 400
    assert httpx.post(f"{url}/completions", json={"prompt": [5], "n": "many"}).status_code == 400
    assert httpx.post(f"{url}/completions", content=b'{"prompt": [5]}').status_code == 400, "not said to be JSON"
    [rollout] = [one for one in pt.read_episodes(record) if one.task.key == "greeting"]
    assert [turn.reply.content for turn in rollout.turns] == [said, "".join(pieces)]
    assert rollout.facts == 0.5
    rows = rows_of(twin, rollout, rollout.turns)
    assert len(rows) == 1, "the second prompt continues the sampled tokens themselves"
    assert torch.allclose(torch.cat(row_logps(twin, rows)), rows[0].logp, atol=1e-5)
    with pytest.raises(BadRequestError, match="top_p: 0.9 is not supported here"):
        client.chat.completions.create(model="small", messages=asked, top_p=0.9)
    with pytest.raises(BadRequestError, match="'large' is not served here, but 'small'"):
        client.chat.completions.create(model="large", messages=asked)
    with pytest.raises(BadRequestError, match="model 256 positions"):
        client.completions.create(model="small", prompt=[5] * 300)
    with pytest.raises(BadRequestError, match="list of token ids of the model's vocabulary"):
        client.completions.create(model="small", prompt=[10**6])


def test_a_player_behind_a_server(served):
    judge = pt.server(served[0], max_new=6)
    asks = [pt.Ask((pt.user(f"hi {i}"),), seed=i) for i in range(5)]
    replies = judge.sample(asks)
    assert [one.content for one in replies] == [one.content for one in judge.sample(asks)], "seeds decide"
    assert all(one.stop in ("end", "length") and len(one.logp) == 0 for one in replies)
    [greedy, again] = judge.sample([pt.Ask(asks[0].messages, temperature=0.0, seed=s) for s in (1, 2)])
    assert greedy.content == again.content
    last = greedy.content[-1]
    stopped = judge.sample([pt.Ask(asks[0].messages, temperature=0.0, stop=(last,))])[0]
    assert (stopped.content, stopped.stop) == (greedy.content.partition(last)[0], "string")


def test_a_server_samples_in_the_policy_s_place_and_is_trained(served, twin, tmp_path):
    """Weights, versions, sums and parity at every step; the rewards are those of the local sampler."""
    tasks = [task(str(i)) for i in range(4)]
    histories = {}
    for name in ("served", "local"):
        policy = pt.text(str(served[1]), max_new=6)
        engine = ServedEngine(Server(served[0]), policy) if name == "served" else None
        run = pt.Run(tmp_path / name, steps=6, tasks=2, lr=3e-3, quiet=True)
        held_out = [task("held")]
        histories[name] = pt.train(
            policy, tasks, pt.grpo(pt.each(digits), samples=8), run, held_out=held_out, sampler=engine
        ).history
    assert [line["reward"] for line in histories["served"]] == pytest.approx(
        [line["reward"] for line in histories["local"]], abs=1e-6
    )
    assert histories["served"][-1]["reward"] > histories["served"][0]["reward"]
    assert all(line["parity_gap"] < 1e-5 for line in histories["served"])
    assert histories["served"][-1]["held_out/reward"] == pytest.approx(histories["local"][-1]["held_out/reward"])
    records = list(pt.read_rollouts(tmp_path / "served", 5))
    assert {turn["version"] for record in records for turn in record["turns"]} == {5}


def test_the_command_line_samples_by_a_server(served, tmp_path, capsys):
    from posttrain.cli import main

    data, out = tmp_path / "questions.jsonl", tmp_path / "run"
    data.write_text("\n".join(json.dumps({"prompt": f"hi {i}", "answer": "7"}) for i in range(4)))
    words = ["train", "--data", str(data), "--grade", "contains", "--model", str(served[1]), "--max-new", "6"]
    main(
        [*words, "--steps", "2", "--tasks", "2", "--samples", "2", "--quiet", "--out", str(out), "--sampler", served[0]]
    )
    assert all(line["parity_gap"] < 1e-5 for line in pt.read_metrics(out))
    assert (out / "model" / "model.safetensors").is_file()


def test_turns_continue_the_tokens_that_the_server_sampled(served, twin):
    engine = ServedEngine(Server(served[0]), twin)
    synchronise(engine, collect_weights(twin, (), merged=True))

    def two(one):
        first = yield from pt.ask(one.prompt, temperature=0.7)
        yield from pt.ask([*one.prompt, pt.assistant(first), pt.user("go on")])

    [[rollout]] = pt.rollout(two, [task()], {"policy": engine}, 1)
    [row] = rows_of(twin, rollout, rollout.turns)
    assert len(row.turns) == 2
    assert torch.allclose(torch.cat(row_logps(twin, [row])), row.logp, atol=1e-5), "at the temperature of each turn"


def test_the_gate_stops_what_is_not_in_step(served, twin, words):
    engine = ServedEngine(Server(served[0]), twin)
    probe = probe_of(twin, [task("a"), task("b")])
    good = collect_weights(twin, probe, merged=True)
    assert synchronise(engine, good)["parity_gap"] < 1e-5
    other = TextPolicy(tiny.network(words, 9, hidden=32, layers=2, positions=256), words)
    wrong = type(good)(good.version, good.tensors, probe, tuple(scores(other, probe)))
    with pytest.raises(SyncError, match=r"is .* nats from the learner on the probe \(allowed 0.1\)"):
        synchronise(engine, wrong)
    shallow = TextPolicy(tiny.network(words, 5, hidden=32, layers=1, positions=256), words)
    with pytest.raises(SyncError, match="the weights have no tensor model.layers.1.*posttrain.s extension"):
        engine.load(collect_weights(shallow, (), merged=True))
    stale = collect_weights(twin, (), merged=True)
    engine.call = lambda method, arguments: [{"version": 0, "sums": {}}]
    with pytest.raises(SyncError, match="has weights of version 0, not 7"):
        engine.load(type(stale)(7, stale.tensors, (), ()))


def test_sums_that_differ_are_named(twin):
    weights = collect_weights(twin, (), merged=True)
    sums = dict(weights.sums())
    assert {"model.norm.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"} <= set(sums)
    from posttrain.sampler.weights import check_sums

    check_sums(sums, sums, "it")
    with pytest.raises(SyncError, match=r"it did not take the weights: model.norm.weight sums to 1, the learner's to"):
        check_sums(sums, sums | {"model.norm.weight": (1.0, 1.0)}, "it")
    with pytest.raises(SyncError, match=r"it has no tensor lm_head.weight"):
        check_sums(sums, {k: v for k, v in sums.items() if k != "lm_head.weight"}, "it")


def test_sums_of_tensors_that_several_workers_hold():
    """A norm stands whole in both, a matrix half in each, a padded one cannot be compared."""
    parts = [{"norm": [3.0, 4.0, 8], "o_proj": [1.0, 2.0, 6], "lm_head": [5.0, 5.0, 9]} for _ in range(2)]
    assert whole_tensor_sums(parts, {"norm": 8, "o_proj": 12, "lm_head": 16}) == {
        "norm": (3.0, 4.0),
        "o_proj": (2.0, 4.0),
    }


def test_a_sequence_is_scored_as_the_policy_scores_it(twin):
    ids = list(twin.chat.prompt((pt.user("hello"),))[0])
    [found] = scores(twin, [ids])
    assert len(found) == len(ids) - 1 == len(sequence_row(ids).logp)
    with torch.no_grad():
        logits = twin.model(torch.tensor([ids])).logits[0]
    assert torch.allclose(found, logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])], atol=1e-5)


def test_servers_that_fail_say_so(served):
    gone = Server("http://127.0.0.1:9/v1", model="m", retries=1)
    with pytest.raises(ServerError, match=r"127.0.0.1:9/v1/.*ConnectError.*Is the server up\?"):
        Player(gone).sample([pt.Ask((pt.user("hi"),))])
    with pytest.raises(ServerError, match="does not serve 'huge', but small"):
        pt.server(served[0], model="huge").sample([pt.Ask((pt.user("hi"),))])
    [refused] = pt.server(served[0], max_new=-1).sample([pt.Ask((pt.user("hi"),))])
    assert "refused (status 400)" in refused.content.reason
    assert "max_tokens: Input should be greater than or equal to 1" in refused.content.reason


class Moody(BaseHTTPRequestHandler):
    """Overloaded twice, then well; or it answers nonsense."""

    asked = 0

    def do_POST(self):
        Moody.asked += 1
        nonsense = self.path.startswith("/nonsense")
        status = 503 if Moody.asked % 3 and not nonsense else 200
        body = b"<html>" if nonsense else b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


def test_what_may_pass_is_tried_again_and_nonsense_is_named():
    http = HTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{http.server_port}"
    patient = Server(f"{address}/v1")
    patient.__dict__["model"] = "m"
    assert Player(patient).sample([pt.Ask((pt.user("hi"),))])[0].content == "yes"
    assert Moody.asked == 3
    confused = Server(f"{address}/nonsense/v1")
    with pytest.raises(ServerError, match="did not answer in JSON: <html>"):
        _ = confused.model
    http.shutdown()
    http.server_close()


def test_a_record_that_cannot_be_read_names_the_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"episode": "e"}\n')
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 1: not a recorded reply: KeyError"):
        pt.read_episodes(path)


def test_a_server_does_not_outlive_a_run_that_is_killed(tmp_path):
    """Its whole process group goes, and its folder, by a guard that sees the run's end; so on an orderly end."""
    program = tmp_path / "run.py"
    program.write_text(
        "import pathlib, subprocess, sys, time\n"
        "from posttrain.sampler.vllm import guard_process\n"
        "server = subprocess.Popen(['sh', '-c', 'sleep 3600 & echo $! && wait'], stdout=subprocess.PIPE, start_new_session=True)\n"
        "print(server.stdout.readline().decode().strip(), flush=True)\n"
        "with guard_process(server, pathlib.Path(sys.argv[2])):\n    print('guarded', flush=True)\n    time.sleep(float(sys.argv[1]))\n"
    )
    for seconds in ("3600", "0.2"):
        folder = tmp_path / seconds
        folder.mkdir()
        words = [sys.executable, str(program), seconds, str(folder)]
        run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        child = Path("/proc") / run.stdout.readline().strip()
        assert child.is_dir()
        assert run.stdout.readline() == "guarded\n"
        if seconds == "3600":
            run.kill()
        run.wait()
        run.stdout.close()
        assert processes.comes_true(lambda child, folder: not alive(child) and not folder.exists(), child, folder)


def alive(process: Path) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except OSError:
        return False


def test_the_extension_for_vllm_stands_alone():
    """It is imported where posttrain is not installed."""
    from posttrain.sampler.vllm import EXTENSION

    text = (EXTENSION / "posttrain_vllm.py").read_text()
    assert not re.search(r"^\s*(from|import) posttrain", text, re.MULTILINE)
    assert Path(EXTENSION / "posttrain_vllm.py").is_file()
