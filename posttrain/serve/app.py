"""The endpoints: chat and text completions, the models, and the calls by which a learner sends weights."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain.core import Ask, Reply
from posttrain.policy.fast.generate import Sample, SampleRequest
from posttrain.policy.text import TextPolicy
from posttrain.sampler.weights import scores, tensor_sums
from posttrain.serve.desk import Desk
from posttrain.serve.record import Recorder
from posttrain.tools import ToolCall, text_beside_calls, tool_calls

FINISH = {"end": "stop", "string": "stop", "length": "length"}


class InvalidRequest(ValueError):
    """A request that cannot be answered; its message is the client's."""


class App:
    """A policy and its record behind OpenAI's interface.

    trainable   a learner may load weights, from any folder that this process can read: for a trusted network only
    """

    def __init__(self, policy: TextPolicy, name: str, recorder: Recorder, trainable: bool = False):
        self.policy, self.name, self.recorder, self.trainable = policy, name, recorder, trainable
        self.desk = Desk(policy)

    def routes(self) -> Starlette:
        posts: dict[str, Any] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/episodes/{episode}/reward": self.reward,
        }
        if self.trainable:
            posts |= {"/collective_rpc": self.call, "/pause": self.health, "/resume": self.health}
        gets = {"/v1/models": self.models, "/health": self.health}
        found = [Route(path, with_json_errors(work), methods=["POST"]) for path, work in posts.items()]
        return Starlette(
            routes=found + [Route(path, with_json_errors(work), methods=["GET"]) for path, work in gets.items()]
        )

    async def health(self, request: Request) -> Response:
        return JSONResponse({})

    async def models(self, request: Request) -> Response:
        one = {"id": self.name, "object": "model", "created": 0, "owned_by": "posttrain"}
        return JSONResponse({"object": "list", "data": [one | {"max_model_len": self.policy.context}]})

    # ---- completions

    async def chat(self, request: Request) -> Response:
        """Chat completions; the messages that were sampled here are continued by their own tokens."""
        body = await self.body(request)
        given = body.get("messages")
        if not isinstance(given, list) or not given or not all(map(is_message, given)):
            raise InvalidRequest("messages: a list of objects with role and content, or tool_calls")
        for message in given:
            check_text(message.get("content"))
        tools = tools_of(body)
        given = [{**given[0], "tools": tools}, *given[1:]] if tools else given
        messages, last = self.recorder.restore_replies(given)
        episode = request.headers.get("x-posttrain-episode") or (last.episode if last else "")
        task = request.headers.get("x-posttrain-task") or (last.task if last else "")
        prompt, before = self.policy.chat.prompt(messages)
        wanted = self.sample_requests(prompt, body, body.get("max_completion_tokens") or body.get("max_tokens"))
        choices = []
        for i, (one, got) in enumerate(zip(wanted, await self.samples(wanted), strict=True)):
            ask = Ask(messages)
            reply = self.policy.reply(ask, before, one, got)
            said = answer_message(without_stop(reply, one.stop), tool_calls(reply) if tools else [])
            name = self.recorder.note(given, said, ask, reply, episode if i == 0 else "", task)
            logprobs = {"content": [self.token(*pair) for pair in zip(got.ids, got.logp.tolist(), strict=True)]}
            choice = {"index": i, "message": said, **self.finish_fields(reply, one)}
            choice |= {"finish_reason": "tool_calls"} if said.get("tool_calls") else {}
            choices.append(choice | {"logprobs": logprobs if body.get("logprobs") else None, "episode": name})
        answer = self.answer("chat.completion", choices, prompt, wanted)
        return (
            StreamingResponse(events(answer), media_type="text/event-stream")
            if body.get("stream")
            else JSONResponse(answer)
        )

    async def complete(self, request: Request) -> Response:
        """Completions of a text, or of token ids: what a learner asks."""
        body = await self.body(request)
        given = body.get("prompt")
        prompt = tuple(self.policy.chat.encode(given)) if isinstance(given, str) else tuple(given or ())
        if not prompt or not all(isinstance(i, int) and 0 <= i < self.policy.stops.size for i in prompt):
            raise InvalidRequest("prompt: a text, or a list of token ids of the model's vocabulary, not empty")
        wanted = self.sample_requests(prompt, body, body.get("max_tokens", 16))
        scored = None
        if body.get("prompt_logprobs") is not None:
            [found] = await asyncio.wrap_future(self.desk.do(lambda: scores(self.policy, [prompt])))
            scored = [None, *({str(i): {"logprob": p}} for i, p in zip(prompt[1:], found.tolist(), strict=True))]
        choices = []
        for i, (one, got) in enumerate(zip(wanted, await self.samples(wanted), strict=True)):
            reply = self.policy.reply(Ask(()), "", one, got)
            pieces = self.policy.chat.pieces(got.ids)
            logprobs = {"tokens": pieces, "token_logprobs": got.logp.tolist()}
            choice = {"index": i, "text": without_stop(reply, one.stop), **self.finish_fields(reply, one)}
            choice |= {"logprobs": logprobs if body.get("logprobs") is not None else None, "prompt_logprobs": scored}
            choices.append(choice | ({"token_ids": list(got.ids)} if body.get("return_token_ids") else {}))
        return JSONResponse(self.answer("text_completion", choices, prompt, wanted))

    async def body(self, request: Request) -> Mapping[str, Any]:
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise InvalidRequest(
                "the request is not application/json (a web page of another site could send anything else)"
            )
        try:
            body = await request.json()
        except ValueError as error:
            raise InvalidRequest(f"the request is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise InvalidRequest("the request is not a JSON object")
        if body.get("model") not in (None, self.name):
            raise InvalidRequest(f"model: {body['model']!r} is not served here, but {self.name!r}")
        for name, plain in (("top_p", 1.0), ("top_k", -1), ("min_p", 0.0)):
            if body.get(name) not in (None, plain):
                raise InvalidRequest(
                    f"{name}: {body[name]!r} cuts the distribution short, which posttrain does not sample from"
                )
        return body

    def sample_requests(self, prompt: tuple[int, ...], body: Mapping[str, Any], most: Any) -> list[SampleRequest]:
        """`n` samples of a prompt, by consecutive seeds."""
        room = self.policy.context - len(prompt)
        if room < 1:
            raise InvalidRequest(f"the prompt has {len(prompt)} tokens and the model {self.policy.context} positions")
        warmth = body.get("temperature")
        warmth = self.policy.sampling.temperature if warmth is None else float(warmth)
        count, limit = int(body.get("n") or 1), int(self.policy.sampling.max_new if most is None else most)
        if warmth < 0 or count < 1 or limit < 1:
            raise InvalidRequest("temperature must not be negative, n and max_tokens must be at least 1")
        stop = body.get("stop") or ()
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        seed = uuid.uuid4().int % 2**31 if body.get("seed") is None else int(body["seed"])
        if seed < 0:
            raise InvalidRequest("seed: must not be negative")
        return [SampleRequest(prompt, min(limit, room), warmth, seed + i, strings) for i in range(count)]

    async def samples(self, wanted: list[SampleRequest]) -> list[Sample]:
        return list(await asyncio.gather(*(asyncio.wrap_future(self.desk.sample(one)) for one in wanted)))

    def finish_fields(self, reply: Reply, wanted: SampleRequest) -> dict[str, Any]:
        ended = next((s for s in wanted.stop if s in str(reply.content)), None) if reply.stop == "string" else None
        return {"finish_reason": FINISH[reply.stop], "stop_reason": ended}

    def token(self, i: int, logp: float) -> dict[str, Any]:
        [piece] = self.policy.chat.pieces([i])
        return {"token": piece, "logprob": logp, "bytes": list(piece.encode()), "top_logprobs": []}

    def answer(
        self, kind: str, choices: list[Any], prompt: tuple[int, ...], wanted: list[SampleRequest]
    ) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
            "usage": {"prompt_tokens": len(prompt)},
            "version": self.policy.version,
        }

    # ---- from the agent's judge, and from the learner

    async def reward(self, request: Request) -> Response:
        body = await self.body(request)
        if not isinstance(body.get("reward"), int | float):
            raise InvalidRequest("reward: a number")
        if not self.recorder.reward(request.path_params["episode"], float(body["reward"])):
            raise InvalidRequest(f"episode: none is called {request.path_params['episode']!r}")
        return JSONResponse({})

    async def call(self, request: Request) -> Response:
        """As vLLM's endpoint of that name, for the two methods of posttrain's extension."""
        body = await self.body(request)
        methods = {"posttrain_load": self.load, "posttrain_held": self.weight_sums}
        if body.get("method") not in methods:
            raise InvalidRequest(f"method: {body.get('method')!r} is none of {', '.join(methods)}")
        work, arguments = methods[body["method"]], body.get("kwargs") or {}
        return JSONResponse({"results": [await asyncio.wrap_future(self.desk.do(lambda: work(**arguments)))]})

    def load(self, folder: str, version: int, names: list[str]) -> dict[str, Any]:
        tensors = {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}
        own = dict(self.policy.body.named_parameters())
        missing = sorted(set(own) - set(tensors))
        if missing:
            raise InvalidRequest(f"the weights have no tensor {missing[0]}: they are of another model")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
        self.policy.version = version
        return {"version": version, "sums": {name: tensor_sums(tensors[name]) for name in names}}

    def weight_sums(self, names: list[str]) -> dict[str, Any]:
        own = dict(self.policy.body.named_parameters())
        sums = {name: [*tensor_sums(own[name]), own[name].numel()] for name in names if name in own}
        return {"version": self.policy.version, "sums": sums}


def is_message(message: Any) -> bool:
    if not isinstance(message, dict) or "role" not in message:
        return False
    calls = message.get("tool_calls") or []
    named = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    )
    return named and ("content" in message or bool(calls))


def tools_of(body: Mapping[str, Any]) -> list[Any]:
    """The tools that a request offers, as the chat template is given them."""
    tools, choice = body.get("tools") or [], body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise InvalidRequest(f"tool_choice: {choice!r} is not supported here; use auto or none")
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    if not isinstance(tools, list) or not all(
        isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions
    ):
        raise InvalidRequest("tools: a list of objects with type and function, which has a name")
    return tools if choice == "auto" else []


def answer_message(text: str, calls: list[ToolCall]) -> dict[str, Any]:
    """A reply as OpenAI's interface has it: with its calls apart where tools were offered."""
    if not calls:
        return {"role": "assistant", "content": text}
    named = [replace(call, id=f"call_{uuid.uuid4().hex}").openai() for call in calls]
    return {"role": "assistant", "content": text_beside_calls(text) or None, "tool_calls": named}


def check_text(content: Any) -> None:
    """Refuse what is not text: of a picture a client could name any file of this machine."""
    if isinstance(content, str | None):
        return
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(f"messages: a part of type {kind!r}; this server takes text only, and no pictures")


def without_stop(reply: Reply, strings: tuple[str, ...]) -> str:
    """The text up to the string that ended it, as OpenAI's interface has it."""
    text = str(reply.content)
    at = min((text.find(s) for s in strings if s in text), default=len(text)) if reply.stop == "string" else len(text)
    return text[:at]


def with_json_errors(work: Any) -> Any:
    """Errors of a request in OpenAI's form."""

    async def endpoint(request: Request) -> Response:
        try:
            return await work(request)
        except (InvalidRequest, TypeError, ValueError) as error:  # fields of wrong types
            said = {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}
            return JSONResponse({"error": said}, status_code=400)

    return endpoint


async def events(answer: dict[str, Any]) -> AsyncIterator[str]:
    """A chat completion as a stream of events: every choice in one piece."""
    plain = {key: answer[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in answer["choices"]:
        message = dict(choice["message"])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        for delta, reason in ((message, None), ({}, choice["finish_reason"])):
            part = {"index": choice["index"], "delta": delta, "finish_reason": reason}
            yield f"data: {json.dumps(plain | {'choices': [part]})}\n\n"
    yield "data: [DONE]\n\n"
