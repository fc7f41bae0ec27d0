"""Tool calls: read from replies, learned from data, answered in episodes, and served."""

from __future__ import annotations

import asyncio
import copy
import json
import time

import pytest
import torch
from conftest import Canned, task

import posttrain as pt
from posttrain.chat import Tokens
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.row import rows_of
from posttrain.sampler.server import json_messages
from posttrain.tools import ToolCall, calls_as_text, text_beside_calls

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TEMPLATE = (
    "{% if tools %}tools {{ tools | map(attribute='function') | map(attribute='name') | join(' ') }}\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [("f", {"x": 1})]),
        ('I look.\n<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [("f", {"x": 1})]),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>',
            [("f", {}), ("g", {})],
        ),
        (
            "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n<parameter=city>\nOslo\n</parameter>\n</function>\n"
            "</tool_call>",
            [("f", {"x": 1, "city": "Oslo"})],
        ),
        ('{"name": "f", "parameters": {"x": 1}}', [("f", {"x": 1})]),
        ('<think><tool_call>{"name": "f", "arguments": {}}</tool_call></think> no', []),
        ('<tool_call>{"name": "f", "arguments": {</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []),
        ('The call would be {"name": "f", "arguments": {}}', []),
        ("x" * 100_000 + "<tool_call>" * 1000, []),
        ("", []),
    ],
)
def test_calls_are_read_in_the_formats_that_models_write(text, found):
    assert [(call.name, call.arguments) for call in pt.tool_calls(text)] == found


def test_a_call_in_thinking_that_the_template_has_opened_is_only_thought_of(words):
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    trace = Tokens((), (), (), "assistant: <think>\n", text, 0)
    assert pt.tool_calls(pt.Reply(text, torch.zeros(0), trace)) == []
    assert [call.name for call in pt.tool_calls(pt.Reply(f"so</think>{text}", torch.zeros(0), trace))] == ["f"]


def test_a_server_gets_its_own_calls_back_apart():
    call = {"id": "abc", "type": "function", "function": {"name": "f", "arguments": ""}}
    said = "I look." + calls_as_text([call])
    assert pt.tool_calls(said) == [ToolCall("abc", "f", {})]
    messages = [pt.user("hi"), pt.assistant(said), pt.tool("7", pt.tool_calls(said)[0])]
    sent = json_messages(messages, tools=True)
    assert (sent[1]["content"], sent[1]["tool_calls"][0]["id"]) == ("I look.", "abc")
    assert sent[2]["tool_call_id"] == "abc"
    assert json_messages(messages)[1]["content"] == said
    with pytest.raises(ValueError, match="are no object"):
        calls_as_text([{"function": {"name": "f", "arguments": "[1]"}}])
    assert pt.tool([{"type": "image", "image": "a.png"}])["content"] == [{"type": "image", "image": "a.png"}]


def test_calls_go_to_openai_s_form_and_back():
    call = ToolCall("call_0", "f", {"x": [1, "a"]})
    assert [(one.name, one.arguments) for one in pt.tool_calls(calls_as_text([call.openai()]))] == [
        ("f", {"x": [1, "a"]})
    ]
    assert text_beside_calls('I look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>') == "I look."
    assert text_beside_calls('{"name": "f", "parameters": {}}') == ""
    assert text_beside_calls("no call") == "no call"
    assert pt.tool({"degrees": 7}, call) == {
        "role": "tool",
        "content": '{"degrees": 7}',
        "name": "f",
        "tool_call_id": "call_0",
    }


def asks_the_weather(task):
    messages = [{**task.prompt[0], "tools": [WEATHER]}]
    for _ in range(2):
        reply = yield from pt.ask(messages)
        calls = pt.tool_calls(reply)
        if not calls:
            return reply.content
        messages += [pt.assistant(reply), *(pt.tool(f"{call.arguments['city']} 7", call) for call in calls)]
    return None


def test_an_environment_answers_calls():
    says = lambda ask: "Oslo 7" if len(ask.messages) > 1 else '{"name": "weather", "parameters": {"city": "Oslo"}}'  # noqa: E731
    [[played]] = pt.rollout(asks_the_weather, [task()], {"policy": Canned(says)}, 1)
    assert played.facts == "Oslo 7"
    assert played.turns[1].ask.messages[-1]["tool_call_id"] == "call_0"


@pytest.fixture(scope="module")
def caller(words, tmp_path_factory) -> TextPolicy:
    """A tiny model that has learned one conversation with a tool call from a file."""
    from posttrain import tiny

    folder = tmp_path_factory.mktemp("caller")
    (folder / "template.jinja").write_text(TEMPLATE)
    call = {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": "Oslo"})}}
    talk = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Oslo 7"},
        {"role": "assistant", "content": "It is 7."},
    ]
    (folder / "talk.jsonl").write_text(json.dumps({"messages": talk, "tools": [WEATHER]}) + "\n")
    model = tiny.network(words, 0, hidden=48, layers=2, positions=512)
    policy = TextPolicy(model, copy.deepcopy(words), Sampling(96), template=str(folder / "template.jinja"))
    shown = pt.read_demonstrations(folder / "talk.jsonl", prompt="messages")
    pt.sft(policy, shown, pt.Run(folder / "run", steps=120, tasks=1, lr=3e-3, quiet=True))
    return policy


@pytest.mark.slow
def test_a_model_that_learned_to_call_is_trained_on_one_row(caller):
    question: pt.Task = pt.Task("t", (pt.user("weather?"),), None)
    [group] = pt.rollout(
        lambda one: pt.episode.decoded_with(asks_the_weather, 0.01, None)(one), [question], {"policy": caller}, 1
    )
    assert group[0].facts == "It is 7."
    assert len(rows_of(caller, group[0], group[0].turns)) == 1, "the second prompt continues the sampled tokens"


@pytest.mark.slow
def test_a_served_model_s_calls_are_openai_s(caller, tmp_path):
    from starlette.testclient import TestClient

    from posttrain.serve.app import App
    from posttrain.serve.record import Recorder

    record = tmp_path / "episodes.jsonl"
    client = TestClient(App(caller, "small", Recorder(record)).routes())

    def ask(messages, **more):
        body = {"messages": messages, "temperature": 0, "tools": [WEATHER], **more}
        return client.post("/v1/chat/completions", json=body)

    messages = [{"role": "user", "content": "weather?"}]
    [choice] = ask(messages).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    messages += [choice["message"], {"role": "tool", "content": "Oslo 7", "tool_call_id": call["id"]}]
    [last] = ask(messages).json()["choices"]
    assert last["message"]["content"] == "It is 7."
    [rollout] = pt.read_episodes(record)
    assert len(rows_of(caller, rollout, rollout.turns)) == 1, "what the client sent back is what was sampled"
    streamed = ask(messages[:1], stream=True).text
    assert '"tool_calls": [{"index": 0, ' in streamed
    for wrong, message in (
        ({"tool_choice": "required"}, "tool_choice: Input should be 'auto' or 'none'"),
        ({"tools": [{"type": "function"}]}, "which has a name"),
        ({"tools": "weather"}, "tools: Input should be a valid list"),
    ):
        refused = ask(messages[:1], **wrong)
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]
    assert "tool_calls" not in ask(messages[:1], tool_choice="none").json()["choices"][0]["message"]


# ---- tools that are functions


def calculator(a: int, b: int = 1) -> int:
    """The sum of two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


async def lookup(city: str) -> dict:
    """The weather of a city.

    Args:
        city: its name
    """
    if city == "Atlantis":
        raise LookupError("it sank")
    await asyncio.sleep(60.0 if city == "Nowhere" else 0.0)
    return {"degrees": 7}


def written(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def conversation(env, *said):
    """What the model was shown before its last reply, and the facts."""
    left = iter(said)
    [rollout] = pt.play([task("t")], env, {"policy": Canned(lambda ask: next(left))})
    return rollout.turns[-1].ask.messages, rollout.facts


def test_functions_are_shown_called_and_answered_by_the_ids_of_their_calls():
    env = pt.with_tools(calculator, lookup)
    messages, facts = conversation(env, written("calculator", a="2", b=3) + written("lookup", city="Oslo"), "12")
    shown = [one["function"] for one in messages[0]["tools"]]
    assert [one["name"] for one in shown] == ["calculator", "lookup"]
    assert shown[0]["parameters"]["required"] == ["a"]
    assert shown[0]["parameters"]["properties"]["b"] == {"type": "integer", "description": "the second"}
    assert messages[-2] == {"role": "tool", "content": "5", "name": "calculator", "tool_call_id": "call_0"}
    assert messages[-1] == {"role": "tool", "content": '{"degrees": 7}', "name": "lookup", "tool_call_id": "call_1"}
    assert "reply" in messages[-3], "what was sampled is continued"
    assert [call.name for call in facts.calls] == ["calculator", "lookup"]
    assert facts.failed == {}


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (written("calculater", a=1), "there is no tool 'calculater', only calculator, lookup"),
        (written("calculator", a="many"), "ValidationError: 1 validation error"),
        (written("calculator"), "ValidationError: 1 validation error"),
        (written("calculator", a=1, c=2), "ValidationError: 1 validation error"),
        (written("lookup", city="Atlantis"), "LookupError: it sank"),
        (written("lookup", city="Nowhere"), "the tool lookup took more than 0.2 s"),
    ],
)
def test_a_call_that_fails_is_told_to_the_model_and_counted(call, why):
    messages, facts = conversation(pt.with_tools(calculator, lookup, timeout_s=0.2), call, "done")
    assert messages[-1]["content"].startswith(f"error: {why}")
    assert facts.failed[0].startswith(why)


def test_a_tool_that_hangs_is_ended():
    def hangs() -> str:
        """Nothing."""
        time.sleep(60.0)
        return ""

    _, facts = conversation(pt.with_tools(hangs, timeout_s=0.2), written("hangs"), "done")
    assert facts.failed == {0: "the tool hangs took more than 0.2 s"}


def test_a_model_that_only_calls_is_stopped():
    [rollout] = pt.play([task("t")], pt.with_tools(calculator, turns=3), {"policy": Canned(written("calculator", a=1))})
    assert len(rollout.turns) == 3


def test_functions_that_cannot_be_shown_are_refused():
    def bare(x):
        """Something."""

    def unexplained(x: int) -> int:
        """Something."""
        return x

    for function in (bare, unexplained):
        with pytest.raises(ValueError, match=f"the tool {function.__name__}: .*give every argument a type hint"):
            pt.with_tools(function)
    with pytest.raises(ValueError, match="each with a name of its own"):
        pt.with_tools(calculator, calculator)
