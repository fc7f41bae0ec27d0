"""One thread that owns the model: it samples together what has been asked meanwhile, and does all else in between."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from posttrain.policy.fast.generate import Sample, SampleRequest
from posttrain.policy.text import TextPolicy

Job = tuple[SampleRequest | Callable[[], Any], Future]


class Desk:
    """Futures for samples and for work; requests that come while others are sampled are answered after those."""

    def __init__(self, policy: TextPolicy):
        self.policy = policy
        self.mail: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.serve, name="posttrain desk", daemon=True)
        self.thread.start()

    def sample(self, wanted: SampleRequest) -> Future[Sample]:
        return self.put(wanted)

    def do(self, work: Callable[[], Any]) -> Future[Any]:
        """Work that must not meet a sampler at work, such as loading weights."""
        return self.put(work)

    def put(self, job: SampleRequest | Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.mail.put((job, future))
        return future

    def close(self) -> None:
        self.mail.put(None)
        self.thread.join(timeout=60)

    def serve(self) -> None:
        while True:
            jobs: list[Job | None] = [self.mail.get()]
            while not self.mail.empty():
                jobs.append(self.mail.get())
            wanted = [job for job in jobs if job is not None]
            batch = [job for job in wanted if job[1].set_running_or_notify_cancel()]  # its client may have gone
            for work, future in batch:
                if not isinstance(work, SampleRequest):
                    answer(future, work)
            self.run_batch([(job, future) for job, future in batch if isinstance(job, SampleRequest)])
            if len(wanted) < len(jobs):
                return

    def run_batch(self, batch: list[tuple[SampleRequest, Future]]) -> None:
        """Sample together; where that fails, one by one, so that no request fails for what another asked."""
        if not batch:
            return
        try:
            for k, got in self.policy.sample_tokens([wanted for wanted, _ in batch]):
                batch[k][1].set_result(got)
        except Exception as error:  # the request fails, the server goes on
            left = [one for one in batch if not one[1].done()]
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for wanted, future in left:  # what was drawn once is drawn again, and nobody is told of it twice
                    self.run_batch([(replace(wanted, watch=None), future)])


def answer(future: Future, work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # as above
        future.set_exception(error)
