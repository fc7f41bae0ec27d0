"""A server with OpenAI's interface as a player: a judge, a teacher, a persuadee, wherever it runs.

vLLM, SGLang, `transformers serve`, `posttrain serve` and the vendors' own answer to this. For a server that samples in
the policy's place, tokens and log-probabilities included, see `engine.py`.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import Any, Literal

import httpx
import torch

from posttrain.chat import HIDDEN, tools_offered
from posttrain.core import Ask, Failure, Message, Reply
from posttrain.episode import ordered_replies
from posttrain.policy.pixels import data_url
from posttrain.seeding import mix
from posttrain.tools import calls_as_text, message_with_calls

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that may pass
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0


class ServerError(ConnectionError):
    """A server did not answer, or refused."""


class Server:
    """An address that is posted to, with a deadline for every request and another try for what may pass.

    url        such as http://localhost:8000/v1; a model may follow: http://localhost:8000/v1#MODEL
    model      as the server names it; None: that of `url`, or the only one it has
    key        None: the environment's OPENAI_API_KEY, if any
    deadline_s for one request, its retries and their pauses included
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        at_once: int = 64,
        deadline_s: float = 600.0,
        retries: int = 5,
    ):
        address, _, named = url.partition("#")
        self.url, self.named = address.rstrip("/"), model or named or None
        self.at_once, self.deadline_s, self.retries = at_once, deadline_s, retries
        key = key or os.environ.get("OPENAI_API_KEY")
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(headers=headers, limits=limits)
        weakref.finalize(self, self.client.close)

    @property
    def root(self) -> str:
        """The address without the version of the interface."""
        return self.url.removesuffix("/v1")

    @cached_property
    def model(self) -> str:
        """Raises ServerError when the server cannot be reached, or has several models and none was named."""
        names = [one["id"] for one in self.get(f"{self.url}/models")["data"]]
        if self.named is None and len(names) != 1:
            raise ServerError(f"{self.url} serves {', '.join(names)}: name one of them, as {self.url}#{names[0]}")
        if self.named is not None and self.named not in names:
            raise ServerError(f"{self.url} does not serve {self.named!r}, but {', '.join(names)}")
        return self.named or names[0]

    def get(self, url: str) -> Any:
        return json_body(self.request("GET", url, None), url)

    def post(self, url: str, body: Mapping[str, Any]) -> Any:
        """The answer's JSON; raises as `request`."""
        return json_body(self.request("POST", url, body), url)

    def tell(self, url: str, body: Mapping[str, Any]) -> None:
        """As `post`, where there is nothing to be answered."""
        self.request("POST", url, body)

    def request(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """Raises ServerError, with what the server said, when it refuses or the deadline passes."""
        end, pause, said = time.monotonic() + self.deadline_s, FIRST_PAUSE_S, "no answer"
        for attempt in range(self.retries + 1):
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                answer = self.client.request(method, url, json=body, timeout=left)
                if not answer.is_error:
                    return answer
                if answer.status_code not in RETRIED:
                    raise ServerError(f"{url} refused (status {answer.status_code}): {excerpt(answer)}")
                said = f"status {answer.status_code}: {excerpt(answer)}"
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(min(pause, max(end - time.monotonic(), 0.0)))
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise ServerError(
            f"{method} {url}: {said} ({self.retries} retries, {self.deadline_s:g} s at most). Is the server up?"
        )


def json_body(answer: httpx.Response, url: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise ServerError(f"{url} did not answer in JSON: {excerpt(answer)}") from error


def excerpt(answer: httpx.Response, width: int = 300) -> str:
    text = " ".join(answer.text.split())
    return text if len(text) <= width else text[:width] + " ..."


class Player:
    """A model behind a chat endpoint, as a sampler. Its replies have no log-probabilities: it is not trained.

    temperature, max_new    where an ask names none
    options                 more fields of the request, such as {"reasoning_effort": "low"}
    """

    def __init__(
        self,
        server: Server,
        *,
        temperature: float = 1.0,
        max_new: int = 512,
        options: Mapping[str, Any] | None = None,
    ):
        self.server, self.temperature, self.max_new = server, temperature, max_new
        self.options = dict(options or {})
        self.at_once = server.at_once

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One reply for each ask; one that was not answered in time has `Failure` as its content.

        Raises ServerError when the server is not there at all, or does not have the model.
        """
        return ordered_replies(self.stream(asks))

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        _ = self.server.model
        return side_by_side(self.answer_or_failure, asks, self.at_once)

    def answer_or_failure(self, ask: Ask) -> Reply:
        """As `answer`; a server that fails one ask fails one episode, and not the run."""
        try:
            return self.answer(ask)
        except ServerError as error:
            return Reply(Failure(str(error)), torch.zeros(0), None)

    def answer(self, ask: Ask) -> Reply:
        """Raises ServerError when it was not answered in time."""
        temperature = self.temperature if ask.temperature is None else ask.temperature
        body = {
            "model": self.server.model,
            "messages": json_messages(ask.messages, bool(tools_offered(ask.messages))),
            "temperature": temperature,
            "max_tokens": self.max_new if ask.max_new is None else ask.max_new,
            "seed": mix(ask.seed) % 2**31,
            **({"stop": list(ask.stop)} if ask.stop else {}),
            **({"tools": tools} if (tools := tools_offered(ask.messages)) else {}),
            **self.options,
        }
        answer = self.server.post(f"{self.server.url}/chat/completions", body)
        try:
            [choice] = answer["choices"]
            text = (choice["message"].get("content") or "") + calls_as_text(choice["message"].get("tool_calls") or ())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.server.url} gave no choice with a message: {str(answer)[:300]}") from error
        return Reply(text, torch.zeros(0), None, stop_of(choice), 0, temperature)


def json_messages(messages: Sequence[Message], tools: bool = False) -> list[dict[str, Any]]:
    """Messages as JSON, without what was sampled and the tools; pictures as data in addresses.

    tools  are offered: calls in the texts of earlier replies are sent apart
    """
    plain = [message_with_calls(message) if tools else message for message in messages]
    return [
        {key: as_json(value) if key == "content" else value for key, value in message.items() if key not in HIDDEN}
        for message in plain
    ]


def as_json(content: Any) -> Any:
    if not isinstance(content, list | tuple):
        return content
    return [
        {"type": "image_url", "image_url": {"url": data_url(part.get("image", part.get("path")))}}
        if part.get("type") == "image"
        else part
        for part in content
    ]


def stop_of(choice: Mapping[str, Any]) -> Literal["end", "string", "length"]:
    if choice.get("finish_reason") == "length":
        return "length"
    return "string" if isinstance(choice.get("stop_reason"), str) else "end"


def side_by_side(answer: Any, asks: Sequence[Ask], at_once: int) -> Iterator[tuple[int, Reply]]:
    """`answer` of each ask with its index, as they come."""
    if len(asks) == 1:
        yield 0, answer(asks[0])
        return
    pool = ThreadPoolExecutor(min(at_once, len(asks)) or 1, thread_name_prefix="posttrain server")
    try:
        waiting = {pool.submit(answer, ask): i for i, ask in enumerate(asks)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def server(
    url: str,
    *,
    model: str | None = None,
    key: str | None = None,
    temperature: float = 1.0,
    max_new: int = 512,
    at_once: int = 64,
    deadline_s: float = 600.0,
    **options: Any,
) -> Player:
    """A chat model behind OpenAI's interface, to be named in `Recipe(others={"judge": pt.server("http://...")})`.

    `options` are more fields of its requests. Raises ServerError when it is first asked and does not answer.
    """
    found = Server(url, model=model, key=key, at_once=at_once, deadline_s=deadline_s)
    return Player(found, temperature=temperature, max_new=max_new, options=options)
