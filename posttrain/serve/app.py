"""The endpoints: chat and text completions, the models, and the calls by which a learner sends weights."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain.core import Ask, Message, Reply
from posttrain.policy.fast.generate import Sample, SampleRequest
from posttrain.policy.text import TextPolicy
from posttrain.sampler.weights import scores, tensor_sums
from posttrain.serve.desk import Desk
from posttrain.serve.record import Recorder
from posttrain.serve.request import (
    KEYS,
    MOST_BYTES,
    ChatRequest,
    InvalidRequest,
    Sampled,
    TextRequest,
    Verdict,
    fields_of,
    read_body,
)
from posttrain.serve.stream import CHUNK, Pieces, event, rest_of
from posttrain.tools import ToolCall, text_beside_calls, tool_calls

Found = TypeVar("Found")
LOOK_S = 0.5  # between looks at whether a client is still there
FINISH = {"end": "stop", "string": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat request that has been read.

    given     its messages; `messages`: the same, those that were sampled here with their replies
    prompt    what they are as tokens, `before` as text
    """

    fields: ChatRequest
    given: list[dict[str, Any]]
    messages: tuple[Message, ...]
    prompt: tuple[int, ...]
    before: str
    tools: bool
    episode: str
    task: str


class App:
    """A policy and its record behind OpenAI's interface.

    trainable   a learner may load weights, from any folder that this process can read: for a trusted network only
    key         that every request but the health check must show; None: none is asked for
    """

    def __init__(
        self, policy: TextPolicy, name: str, recorder: Recorder, trainable: bool = False, key: str | None = None
    ):
        self.policy, self.name, self.recorder, self.trainable, self.key = policy, name, recorder, trainable, key
        self.desk = Desk(policy)
        self.clerk = ThreadPoolExecutor(1, thread_name_prefix="posttrain clerk")  # renders and tokenises, one at a time

    def routes(self) -> Starlette:
        posts: dict[str, Any] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/episodes/{episode}/reward": self.reward,
        }
        if self.trainable:
            posts |= {"/collective_rpc": self.call, "/pause": self.health, "/resume": self.health}
        gets = {"/v1/models": self.models, "/health": self.health}
        routes = [
            Route(path, with_json_errors(work if path == "/health" else self.with_key(work)), methods=[method])
            for method, some in (("POST", posts), ("GET", gets))
            for path, work in some.items()
        ]
        return Starlette(routes=routes)

    def with_key(self, work: Any) -> Any:
        """The same, for those who show the key."""

        async def endpoint(request: Request) -> Response:
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            if self.key is not None and not hmac.compare_digest(shown.encode(), self.key.encode()):
                return error_answer("the request shows no key, or a wrong one (Authorization: Bearer KEY)", 401)
            return await work(request)

        return endpoint

    async def health(self, request: Request) -> Response:
        return JSONResponse({})

    async def models(self, request: Request) -> Response:
        one = {"id": self.name, "object": "model", "created": 0, "owned_by": "posttrain"}
        return JSONResponse({"object": "list", "data": [one | {"max_model_len": self.policy.context}]})

    # ---- completions

    async def chat(self, request: Request) -> Response:
        """Chat completions; the messages that were sampled here are continued by their own tokens."""
        body = await read_body(request)
        asked = await self.in_clerk(lambda: self.conversation(body, request.headers))
        wanted = self.sample_requests(asked.prompt, asked.fields, asked.fields.max_completion_tokens)
        if asked.fields.stream and asked.fields.logprobs:
            raise InvalidRequest("logprobs: a stream has none here: leave one of them out")
        if not asked.fields.stream:
            got = await self.samples(wanted, request)
            return JSONResponse(await self.in_clerk(lambda: self.chat_answer(asked, wanted, got)))
        return StreamingResponse(self.events(asked, wanted), media_type="text/event-stream")

    def conversation(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Conversation:
        """A chat request with its prompt. Raises InvalidRequest."""
        fields = fields_of(ChatRequest, body)
        self.check_model(fields.model)
        tools = tools_of(fields)
        given = [{key: message[key] for key in KEYS if key in message} for message in body["messages"]]
        for message in given:
            check_text(message)
        self.check_length(sum(len(json.dumps(message)) for message in given), fields.n or 1)
        given = [{**given[0], "tools": tools}, *given[1:]] if tools else given
        messages, last = self.recorder.restore_replies(given)
        episode = headers.get("x-session-id") or (last.episode if last else "")
        task = headers.get("x-posttrain-task") or (last.task if last else "")
        prompt, before = self.policy.chat.prompt(messages)
        return Conversation(fields, given, messages, prompt, before, bool(tools), episode, task)

    def chat_answer(self, asked: Conversation, wanted: list[SampleRequest], got: list[Sample]) -> dict[str, Any]:
        choices = []
        for i, (one, sample) in enumerate(zip(wanted, got, strict=True)):
            ask = Ask(asked.messages)
            reply = self.policy.reply(ask, asked.before, one, sample)
            said = answer_message(without_stop(reply, one.stop), tool_calls(reply) if asked.tools else [])
            name = self.recorder.note(asked.given, said, ask, reply, asked.episode if i == 0 else "", asked.task)
            logprobs = {"content": [self.token(*pair) for pair in zip(sample.ids, sample.logp.tolist(), strict=True)]}
            choice = {"index": i, "message": said, **self.finish_fields(reply, one)}
            choice |= {"finish_reason": "tool_calls"} if said.get("tool_calls") else {}
            choices.append(choice | {"logprobs": logprobs if asked.fields.logprobs else None, "episode": name})
        return self.answer("chat.completion", choices, asked.prompt, got)

    async def events(self, asked: Conversation, wanted: list[SampleRequest]) -> AsyncIterator[str]:
        """A chat completion as it is sampled: pieces of text, token by token, then how each choice ended.

        Where tools were offered, a choice is one piece: only its end says what of it is a call.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Queue[tuple[int, int] | None]()
        pieces = [Pieces(self.policy.chat.decode, one.stop) for one in wanted]

        def watch(i: int) -> Callable[[int], object]:
            return lambda token: loop.call_soon_threadsafe(news.put_nowait, (i, token))

        gone = threading.Event()
        watched = [
            replace(one, gone=gone.is_set, watch=None if asked.tools else watch(i)) for i, one in enumerate(wanted)
        ]
        work = asyncio.ensure_future(self.samples(watched))
        work.add_done_callback(lambda _: news.put_nowait(None))
        plain = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        try:
            while (drawn := await news.get()) is not None:
                i, token = drawn
                if text := pieces[i].add(token):
                    yield event(plain, i, {"role": "assistant", "content": text})
        finally:
            gone.set()  # a client that leaves is sampled for no longer
        try:
            got = await work
            answer = await self.in_clerk(lambda: self.chat_answer(asked, wanted, got))
        except Exception as error:  # the answer has begun: its status cannot say so any more
            yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'server_error'}})}\n\n"
            return
        for choice in answer["choices"]:
            yield event(plain, choice["index"], rest_of(choice["message"], pieces[choice["index"]].sent))
            yield event(plain | {"episode": choice["episode"]}, choice["index"], {}, choice["finish_reason"])
        if asked.fields.stream_options and asked.fields.stream_options.include_usage:
            yield f"data: {json.dumps({**plain, 'object': CHUNK, 'choices': [], 'usage': answer['usage']})}\n\n"
        yield "data: [DONE]\n\n"

    async def complete(self, request: Request) -> Response:
        """Completions of a text, or of token ids: what a learner asks."""
        body = await read_body(request)
        fields, prompt = await self.in_clerk(lambda: self.text_prompt(body))
        if fields.stream:
            raise InvalidRequest("stream: completions of a text come whole here: leave it out, or ask for a chat")
        wanted = self.sample_requests(prompt, fields, 16 if fields.max_tokens is None else None)
        scored = None
        if fields.prompt_logprobs is not None:
            [found] = await asyncio.wrap_future(self.desk.do(lambda: scores(self.policy, [prompt])))
            scored = [None, *({str(i): {"logprob": p}} for i, p in zip(prompt[1:], found.tolist(), strict=True))]
        choices, samples = [], await self.samples(wanted, request)
        for i, (one, got) in enumerate(zip(wanted, samples, strict=True)):
            reply = self.policy.reply(Ask(()), "", one, got)
            pieces = self.policy.chat.pieces(got.ids)
            logprobs = {"tokens": pieces, "token_logprobs": got.logp.tolist()}
            choice = {"index": i, "text": without_stop(reply, one.stop), **self.finish_fields(reply, one)}
            choice |= {"logprobs": logprobs if fields.logprobs is not None else None, "prompt_logprobs": scored}
            choices.append(choice | ({"token_ids": list(got.ids)} if fields.return_token_ids else {}))
        return JSONResponse(self.answer("text_completion", choices, prompt, samples))

    def text_prompt(self, body: Mapping[str, Any]) -> tuple[TextRequest, tuple[int, ...]]:
        fields = fields_of(TextRequest, body)
        self.check_model(fields.model)
        given = fields.prompt
        self.check_length(len(given) if isinstance(given, str) else 0, 1)
        prompt = tuple(self.policy.chat.encode(given) if isinstance(given, str) else given)
        if not prompt or not all(0 <= i < self.policy.stops.size for i in prompt):
            raise InvalidRequest("prompt: a text, or a list of token ids of the model's vocabulary, not empty")
        return fields, prompt

    def check_length(self, characters: int, samples: int) -> None:
        """Refuse what cannot fit, before it is tokenised, and what many samples would write down too often."""
        most = self.policy.context * self.longest
        if characters > most:
            raise InvalidRequest(f"the prompt has {characters} characters, more than {self.policy.context} tokens hold")
        if characters * samples > MOST_BYTES:
            raise InvalidRequest(f"n: {samples} samples of a prompt of {characters} characters are too many")

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.policy.chat.vocabulary))

    async def in_clerk(self, work: Callable[[], Found]) -> Found:
        """Work on text, off the event loop: a long one must not keep others from being heard."""
        return await asyncio.get_running_loop().run_in_executor(self.clerk, work)

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise InvalidRequest(f"model: {name!r} is not served here, but {self.name!r}")

    def sample_requests(self, prompt: tuple[int, ...], fields: Sampled, most: int | None) -> list[SampleRequest]:
        """`n` samples of a prompt, by consecutive seeds."""
        room = self.policy.context - len(prompt)
        if room < 1:
            raise InvalidRequest(f"the prompt has {len(prompt)} tokens and the model {self.policy.context} positions")
        if fields.stop_token_ids and not {*fields.stop_token_ids} <= self.policy.ends():
            raise InvalidRequest("stop_token_ids: tokens that do not end the model's replies are not supported here")
        warmth = self.policy.sampling.temperature if fields.temperature is None else fields.temperature
        limit = most or fields.max_tokens or self.policy.sampling.max_new
        seed = uuid.uuid4().int % 2**31 if fields.seed is None else fields.seed
        one = SampleRequest(prompt, min(limit, room), float(warmth), seed, tuple(fields.stop or ()))
        return [replace(one, seed=seed + i) for i in range(fields.n or 1)]

    async def samples(self, wanted: list[SampleRequest], request: Request | None = None) -> list[Sample]:
        """Sampled for as long as the request's client is there. Raises ClientDisconnect when it is not."""
        gone = threading.Event()
        asked = [replace(one, gone=gone.is_set) for one in wanted] if request else wanted
        work = asyncio.gather(*(asyncio.wrap_future(self.desk.sample(one)) for one in asked))
        while request is not None and not (await asyncio.wait([work], timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                gone.set()
                raise ClientDisconnect
        return list(await work)

    def finish_fields(self, reply: Reply, wanted: SampleRequest) -> dict[str, Any]:
        ended = next((s for s in wanted.stop if s in str(reply.content)), None) if reply.stop == "string" else None
        return {"finish_reason": FINISH[reply.stop], "stop_reason": ended}

    def token(self, i: int, logp: float) -> dict[str, Any]:
        [piece] = self.policy.chat.pieces([i])
        return {"token": piece, "logprob": logp, "bytes": list(piece.encode()), "top_logprobs": []}

    def answer(self, kind: str, choices: list[Any], prompt: tuple[int, ...], samples: list[Sample]) -> dict[str, Any]:
        said = sum(len(one.ids) for one in samples)
        return {
            "id": f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": said,
                "total_tokens": len(prompt) + said,
            },
            "version": self.policy.version,
        }

    # ---- from the agent's judge, and from the learner

    async def reward(self, request: Request) -> Response:
        reward = fields_of(Verdict, await read_body(request)).reward
        if not self.recorder.reward(request.path_params["episode"], float(reward)):
            raise InvalidRequest(f"episode: none is called {request.path_params['episode']!r}")
        return JSONResponse({})

    async def call(self, request: Request) -> Response:
        """As vLLM's endpoint of that name, for the two methods of posttrain's extension."""
        body = await read_body(request)
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


def tools_of(fields: ChatRequest) -> list[Any]:
    """The tools that a request offers, as the chat template is given them."""
    tools = fields.tools or []
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    if not all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions):
        raise InvalidRequest("tools: a list of objects with type and function, which has a name")
    return tools if fields.tool_choice != "none" else []


def answer_message(text: str, calls: list[ToolCall]) -> dict[str, Any]:
    """A reply as OpenAI's interface has it: with its calls apart where tools were offered."""
    if not calls:
        return {"role": "assistant", "content": text}
    named = [replace(call, id=f"call_{uuid.uuid4().hex}").openai() for call in calls]
    return {"role": "assistant", "content": text_beside_calls(text) or None, "tool_calls": named}


def check_text(message: Mapping[str, Any]) -> None:
    """Refuse what is not text: of a picture a client could name any file of this machine."""
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise InvalidRequest("messages: one has neither content nor tool_calls")
    for part in content if isinstance(content, list) else []:
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
        except (InvalidRequest, TypeError, ValueError, RecursionError) as error:
            return error_answer(str(error), 400)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody hears it; a traceback for each would fill the log

    return endpoint


def error_answer(said: str, status: int) -> JSONResponse:
    error = {"message": said, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status)
