"""`posttrain serve` under attack: no request ends it, holds up the others, or fails for what another asked."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import processes
import pytest
from hypothesis import given
from hypothesis import strategies as some
from test_serve import served  # noqa: F401

import posttrain as pt
from posttrain.policy.fast.stops import Stops
from posttrain.serve.listen import check_key
from posttrain.serve.stream import Pieces

HELLO = [{"role": "user", "content": "hello"}]


def ask(url, **fields):
    body = json.dumps({"messages": HELLO, "max_tokens": 4, **fields})
    kind = {"content-type": "application/json"}
    return httpx.post(f"{url}/chat/completions", content=body, headers=kind, timeout=60)


def refusal(answer) -> str:
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stop": "x" * 1_000_000}, "stop.0: String should have at most 1000 characters"),
        ({"stop": ["a"] * 5}, "stop: List should have at most 4 items"),
        ({"stop": ""}, "stop.0: String should have at least 1 character"),
        ({"stop": [7]}, "stop.0: Input should be a valid string"),
        ({"seed": 2**64}, "seed: Input should be less than or equal to"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": True}, "seed: Input should be a valid integer"),
        ({"seed": 10**4000}, "seed: "),
        ({"n": 129}, "n: Input should be less than or equal to 128"),
        ({"n": "many"}, "n: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 2.5}, "max_tokens: Input should be a valid integer"),
        ({"temperature": -0.1}, "temperature: Input should be greater than or equal to 0"),
        ({"temperature": True}, "temperature: Input should be a valid number"),
        ({"temperature": 1e300}, "temperature: Input should be less than or equal to 100"),
        ({"logit_bias": {"5": 100}}, "logit_bias: {'5': 100} is not supported here: leave it out"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: 0.5 is not supported here"),
        ({"presence_penalty": True}, "presence_penalty: True is not supported here"),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"reasoning_effort": "high"}, "reasoning_effort: is not supported here: leave it out"),
        ({"tool_choice": "required"}, "tool_choice: Input should be 'auto' or 'none'"),
        ({"tools": "all"}, "tools: Input should be a valid list"),
        ({"tools": [{"type": "function"}]}, "tools: a list of objects with type and function, which has a name"),
        ({"tools": [{"function": {"name": "add"}}]}, "drops the tool 'add'"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role: Input should be 'system'"),
        ({"messages": [{"role": "user"}]}, "one has neither content nor tool_calls"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type 'image'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "lone surrogate"),
        ({"stop_token_ids": [1, 2]}, "stop_token_ids: tokens that do not end"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(served, fields, said):  # noqa: F811
    assert said in refusal(ask(served[0], **fields))
    assert ask(served[0]).status_code == 200, "the server goes on"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"messages": [' + b"[" * 100_000, "not JSON"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is no number of JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature: "),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
    ],
)
def test_bodies_that_are_no_request(served, body, said):  # noqa: F811
    answer = httpx.post(f"{served[0]}/completions", content=body, headers={"content-type": "application/json"})
    assert said in refusal(answer)


@pytest.mark.parametrize(
    "fields", [{"messages": [1] * 200_000}, {"messages": HELLO * 10_001}, {"stop_token_ids": ["a"] * 500_000}]
)
def test_many_mistakes_cost_no_more_than_one(served, fields):  # noqa: F811
    with Health(served[0]) as health:
        refusal(ask(served[0], **fields))
    assert health.longest < 1.0


def test_what_a_message_need_not_have_is_not_written_down(served):  # noqa: F811
    url, _, record = served
    before = record.stat().st_size if record.is_file() else 0
    junk = [{**HELLO[0], "junk": "x" * 1_000_000, "tools": ["y"]}]
    assert ask(url, messages=junk, n=4).status_code == 200
    assert record.stat().st_size - before < 10_000


def test_what_cannot_fit_is_refused_before_it_is_tokenised(served):  # noqa: F811
    clock = time.process_time()
    said = refusal(ask(served[0], messages=[{"role": "user", "content": "a b " * 2_000_000}]))
    assert "more than 256 tokens hold" in said
    assert time.process_time() - clock < 5


def test_a_stream_has_no_logprobs_and_names_its_episode(served):  # noqa: F811
    assert "logprobs: a stream has none here" in refusal(ask(served[0], stream=True, logprobs=True))
    assert '"episode": "episode-' in ask(served[0], stream=True).text


def test_a_reply_that_nobody_waits_for_ends(make):
    """At the next token, whatever its limit; the others go on, and theirs are what they would have been."""
    policy = make(max_new=200)
    asks = [policy.sample_request(pt.Ask((pt.user("hi"),), seed=seed), (5, 6)) for seed in (1, 2)]
    alone = dict(policy.sample_tokens(asks))
    drawn = []
    asks[0] = replace(asks[0], gone=lambda: len(drawn) >= 3, watch=drawn.append)
    found = dict(policy.sample_tokens(asks))
    assert len(found[0].ids) == min(3, len(alone[0].ids))
    assert found[1].ids == alone[1].ids


def test_what_is_remembered_is_bounded_by_its_size(monkeypatch, make):
    from posttrain.serve.record import Recorder

    monkeypatch.setattr("posttrain.serve.record.REMEMBERED_BYTES", 5_000)
    recorder, policy = Recorder(None), make(max_new=3)
    for i in range(50):
        asked = [{"role": "user", "content": f"hello {i}"}]
        [reply] = policy.sample([pt.Ask(tuple(asked), seed=i)])
        recorder.note(asked, {"role": "assistant", "content": reply.content}, pt.Ask(tuple(asked)), reply, "", "")
    assert 0 < len(recorder.known) < 50
    assert recorder.held <= 5_000


def test_one_bad_request_does_not_fail_its_neighbours(served):  # noqa: F811
    fields = [{"seed": 2**64} if i % 4 == 0 else {"seed": i} for i in range(24)]
    with ThreadPoolExecutor(24) as crowd:
        answers = list(crowd.map(lambda one: ask(served[0], **one), fields))
    assert [answer.status_code for answer in answers] == [400 if i % 4 == 0 else 200 for i in range(24)]


def test_a_request_that_fails_in_sampling_fails_alone(make):
    """What a batch raises is raised again for the one that caused it, and the others are sampled."""
    from posttrain.serve.desk import Desk

    policy = make(max_new=3)
    plain = policy.sample_tokens

    def sample(wanted):
        if any(one.seed == 13 for one in wanted):
            raise RuntimeError("thirteen")
        return plain(wanted)

    policy.sample_tokens = sample
    desk = Desk(policy)
    ready = threading.Event()
    desk.do(ready.wait)  # so that what follows is one batch
    asks = [policy.sample_request(pt.Ask((pt.user("hi"),), seed=seed), (5, 6)) for seed in (1, 13, 2)]
    futures = [desk.sample(one) for one in asks]
    ready.set()
    with pytest.raises(RuntimeError, match="thirteen"):
        futures[1].result(30)
    assert [len(futures[i].result(30).ids) > 0 for i in (0, 2)] == [True, True]
    desk.close()


class Health:
    """Asks for the health check again and again, and remembers the longest answer."""

    def __init__(self, url: str):
        self.url, self.longest, self.over = url.removesuffix("/v1") + "/health", 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.over.is_set():
                clock = time.perf_counter()
                assert client.get(self.url).status_code == 200
                self.longest = max(self.longest, time.perf_counter() - clock)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


@pytest.mark.slow
def test_two_hundred_clients_large_bodies_and_slow_ones(served):  # noqa: F811
    """The health check answers all the while: the event loop neither renders, nor tokenises, nor samples."""
    url = served[0]
    host, port = re.match(r"http://(.*):(\d+)/", url).groups()
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for one in slow:  # they never finish what they say
        one.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    with Health(url) as health:
        with ThreadPoolExecutor(50) as crowd:
            answers = list(crowd.map(lambda i: ask(url, seed=i), range(200)))
        assert {answer.status_code for answer in answers} == {200}
        long = json.dumps({"prompt": "hello there " * 500_000}).encode()
        kind = {"content-type": "application/json"}
        answer = httpx.post(f"{url}/completions", content=long, headers=kind, timeout=120)
        assert "more than 256 tokens hold" in refusal(answer)
        try:
            answer = httpx.post(f"{url}/completions", content=b"x" * 100_000_000, headers=kind, timeout=120)
            assert "more than 16777216 bytes" in refusal(answer)
        except httpx.TransportError:
            pass  # it stopped listening before all was said
    assert health.longest < 1.0, f"{health.longest:.2f} s"
    for one in slow:
        one.close()


def test_a_key_is_asked_for(tmp_path, words):
    from posttrain import tiny
    from posttrain.policy.text import TextPolicy

    TextPolicy(tiny.network(words, 5, hidden=32, layers=2, positions=256), words).save(tmp_path)
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "serve",
        "--model",
        str(tmp_path),
        "--port",
        "0",
        "--max-new",
        "9",
        "--api-key",
        "sesame",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://\S+/v1", said)
        assert found, said + process.stderr.read()
        url = found[0]
        assert ask(url).status_code == 401
        assert httpx.get(f"{url}/models").status_code == 401
        assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer sesam"}).status_code == 401
        assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 200
    finally:
        process.terminate()
        processes.output(process)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(ValueError, match="other machines reach it, so give `api_key`"):
        check_key(host, None)
    check_key(host, "key")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_none(host):
    check_key(host, None)


def test_a_client_s_own_reply_key_is_dropped(served):  # noqa: F811
    forged = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reply": {"trace": 1}}, *HELLO]
    plain = [{key: value for key, value in one.items() if key != "reply"} for one in forged]
    answers = [ask(served[0], messages=messages, seed=1) for messages in (forged, plain)]
    assert answers[0].status_code == 200
    assert answers[0].json()["choices"][0]["message"] == answers[1].json()["choices"][0]["message"]


def test_usage_and_a_session_s_record(served):  # noqa: F811
    url, _, record = served
    headers = {"x-session-id": "session-7"}
    body = {"messages": HELLO, "max_tokens": 4, "n": 2, "seed": 1}
    answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers).json()
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    [mine] = [line for line in lines if line.get("episode") == "session-7"]
    assert len(mine["prompt_token_ids"]) == usage["prompt_tokens"]
    assert len(mine["token_ids"]) == len(mine["logprobs"]) <= 4


def test_a_chat_is_streamed_token_by_token(served):  # noqa: F811
    """The pieces make the text, they come one after another, and a stop string is never shown."""
    from openai import OpenAI

    client = OpenAI(base_url=served[0], api_key="none")
    plain = ask(served[0], seed=5, max_tokens=12).json()["choices"][0]
    options = {"model": "small", "messages": HELLO, "seed": 5, "max_tokens": 12, "stream": True}
    events = list(client.chat.completions.create(**options, stream_options={"include_usage": True}))
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == plain["message"]["content"]
    assert sum(map(bool, pieces)) > 3
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == plain["finish_reason"]
    assert events[-1].usage.completion_tokens > 0
    stop = plain["message"]["content"][2:4]
    cut = ask(served[0], seed=5, max_tokens=12, stop=stop).json()["choices"][0]["message"]["content"]
    events = client.chat.completions.create(**options, stop=stop)
    assert "".join(event.choices[0].delta.content or "" for event in events) == cut


# ---- what the server is made of


@given(some.text("abc\u00e9\u4e16", max_size=12), some.lists(some.text("abc", min_size=1, max_size=3), max_size=3))
def test_pieces_are_the_text_up_to_the_first_stop(text, stops):
    """Bytes as tokens: characters arrive whole."""
    pieces = Pieces(lambda ids: bytes(ids).decode(errors="replace"), tuple(stops))
    sent = "".join(pieces.add(byte) for byte in text.encode())
    whole = text[: min((at for s in stops if (at := text.find(s)) >= 0), default=len(text))]
    assert whole.startswith(sent)
    assert len(whole) - len(sent) < max(map(len, stops), default=1)


@given(some.lists(some.text("ab", min_size=1, max_size=6), min_size=1, max_size=4))
def test_tokens_that_may_complete_a_string_are_found_as_by_trying_all(words_chat, strings):
    stops = Stops(words_chat, (), len(words_chat.vocabulary), "cpu")
    found = stops.may_complete(strings).tolist()
    for i, piece in enumerate(words_chat.vocabulary):
        rests = [string[at:] for string in strings for at in range(len(string))]
        assert found[i] == ("\ufffd" in piece or piece.startswith(tuple(rests)) or any(s in piece for s in strings))


@pytest.fixture(scope="module")
def words_chat(words):
    from posttrain.chat import Chat

    return Chat(words)


def test_long_and_many_stops_cost_little(words_chat):
    stops = Stops(words_chat, (), len(words_chat.vocabulary), "cpu")
    clock = time.process_time()
    stops.may_complete(["x" * 1_000_000])
    stops.may_complete([f"stop {i}" for i in range(20_000)])
    assert time.process_time() - clock < 5.0
    for i in range(200):
        stops.may_complete([f"{i}"])
    assert len(stops.completing) <= 64


def test_a_served_scorer_asks_for_its_key():
    from posttrain.serve.scorer import Kind, Listener, Service

    kind = Kind("toy", "a:b", lambda name: 1, lambda model: {}, lambda model: {"scores": lambda payload: iter([1])}, id)
    key = {"Authorization": "Bearer secret"}
    with Listener(Service(kind, "toy", 1), "127.0.0.1", 0, "secret") as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listener.server_port}"
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/about").status_code == 401
        assert httpx.get(f"{url}/about", headers=key).status_code == 200
        assert httpx.post(f"{url}/scores", json={}).status_code == 401
        assert httpx.post(f"{url}/scores", json={}, headers=key).json() == {"result": [1]}
        listener.shutdown()
