"""A diffusion model as a policy: a reply is a picture, every step of its denoising a decision (DDPO, arXiv:2305.13301).

What is asked is text: the last message of the user. Where the conversation already holds a picture that this policy
made, that picture is first led back to noise under the same text (inversion), and the next one begins there and not at
fresh noise: so a model reflects on what it drew.

    [user(text)]                       fresh noise -> picture
    [user(text), assistant(reply)]     the reply's latents -> noise -> picture

A reply's temperature is DDIM's eta. At 0 nothing is drawn but the first noise, and the reply has no decisions. A part
`branch_part(seed, last)` beside the text makes replies of one seed share all but their last steps: only those decide.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.core import Ask, Density, Message, Reply, Row, Task, Turn
from posttrain.policy.denoise import (
    LEAST_SIGMA,
    Reduction,
    gaussian_entropy,
    gaussian_logp,
    per_picture,
    schedule,
)
from posttrain.policy.latents import Latents, PictureRequest, branch_of, text_of
from posttrain.policy.pipeline_folder import has_adapter, write_pipeline
from posttrain.policy.png import pixels_of, png_address
from posttrain.policy.trained import restore, trained_parameters
from posttrain.seeding import mix

THUMBNAIL = 64  # pixels of the longer side of a recorded picture


@dataclass(frozen=True, slots=True)
class Denoising:
    """How pictures are drawn. Weights are of classifier-free guidance: 0 unconditional, 1 conditional."""

    steps: int = 20  # T
    temperature: float = 1.0  # of replies whose ask names no temperature
    guidance: float = 5.0  # of replies with decisions, in sampling and in training
    w_denoise: float = 3.0  # of drafts: replies at temperature 0
    w_invert: float = 0.1  # of the way back to noise
    reduction: Reduction = "mean"  # of a decision's log-probability over the numbers of a picture
    least_sigma: float = LEAST_SIGMA


class DiffusionPolicy:
    """Made by `posttrain.policy.pipeline.diffusion(...)`; by hand from diffusers' and transformers' models.

    unet        a UNet2DConditionModel: all that is trained
    scheduler   a DDIMScheduler
    encoder     a CLIPTextModel
    tokenizer   of the encoder
    vae         an AutoencoderKL, if the UNet works on latents and not on pixels
    bf16        run the models under bfloat16 autocast; weights, log-probabilities and the optimizer stay float32
    batch       latents in the UNet at a time, those with and those without the text counted: memory, never the result
    adapter     False: with the LoRA adapter switched off (see `frozen_copy`)
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        encoder: Any,
        tokenizer: Any,
        vae: Any = None,
        denoising: Denoising = Denoising(),
        *,
        bf16: bool = False,
        batch: int = 256,
        adapter: bool = True,
    ):
        self.unet, self.scheduler, self.vae = unet.eval(), scheduler, vae
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer
        self.denoising, self.bf16, self.batch, self.adapter = denoising, bf16, batch, adapter
        self.schedule = schedule(scheduler, denoising.steps, denoising.least_sigma).on(self.device)
        self.version = 0
        self.calls = 0  # pictures that have gone forward through the UNet: what all of it costs
        side = unet.config.sample_size
        self.shape = (unet.config.in_channels, *([side, side] if isinstance(side, int) else side))  # C, H, W

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    # ---- what is asked

    def picture_request(self, ask: Ask) -> PictureRequest:
        """Raises ValueError for an ask without text, or with a picture that this policy did not make."""
        asked = [message for message in ask.messages if message["role"] == "user"]
        if not asked:
            raise ValueError("a diffusion policy is asked in text: there is no message of the user")
        shown = [message for message in ask.messages if message["role"] == "assistant"]
        start = self.latents_of(shown[-1]) if shown else None
        number = start.round + 1 if start else 0
        temperature = self.denoising.temperature if ask.temperature is None else ask.temperature
        if temperature < 0:
            raise ValueError(f"temperature {temperature}: it must be 0 or more")
        branch, steps = branch_of(asked[-1]), self.denoising.steps
        last = branch["last"] if branch else steps
        if not 1 <= last <= steps:
            raise ValueError(f"branching over the last {last} steps of a walk of {steps}")
        trunk = mix(branch["seed"], number) if branch else ask.seed
        return PictureRequest(
            text_of(asked[-1]), start, number, temperature, trunk, ask.seed, last if temperature else 0
        )

    def latents_of(self, message: Message) -> Latents:
        trace = message["reply"].trace if "reply" in message else None
        if not isinstance(trace, Latents):
            raise ValueError(
                "the conversation holds a reply that is no picture of a diffusion policy: it has no latents"
            )
        if trace.path.shape[1:] != self.shape:
            raise ValueError(f"latents of shape {list(trace.path.shape[1:])}, but this model's are {list(self.shape)}")
        return trace

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError, naming the task, for a prompt that the text encoder cannot read whole."""
        for task in tasks:
            try:
                self.tokens([self.picture_request(Ask(task.prompt)).prompt])
            except ValueError as error:
                raise ValueError(f"task {task.key!r}: {error}") from error

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """[P, L] padded. Raises ValueError for a prompt that is too long, or with a word that is not known."""
        most, unknown = self.tokenizer.model_max_length, self.tokenizer.unk_token_id
        known = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}  # CLIP's own end token doubles as unknown
        for prompt in prompts:
            ids = self.tokenizer(prompt)["input_ids"]
            if len(ids) > most:
                raise ValueError(f"the prompt {prompt!r} has {len(ids)} tokens; the text encoder reads {most}")
            if unknown not in known and unknown in ids:
                raise ValueError(f"the prompt {prompt!r} has a word that the text encoder does not know")
        found = self.tokenizer(list(prompts), padding="max_length", max_length=most, return_tensors="pt")
        return found["input_ids"].to(self.device)

    def conditions(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[1 + P, L, D] of no text and of every distinct prompt, and the place in it of each prompt given [N]."""
        distinct = list(dict.fromkeys(prompts))
        places = {prompt: 1 + i for i, prompt in enumerate(distinct)}
        with torch.no_grad(), self.mode():
            encoded = self.encoder(input_ids=self.tokens(["", *distinct])).last_hidden_state
        return encoded, torch.tensor([places[prompt] for prompt in prompts], device=self.device)

    # ---- drawing

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One picture for each ask, in order; what is drawn depends on its seed, not on the asks beside it."""
        wanted = [self.picture_request(ask) for ask in asks]
        kinds: dict[tuple[float, bool, int], list[int]] = {}
        for i, one in enumerate(wanted):
            kinds.setdefault(one.kind, []).append(i)
        replies: dict[int, Reply] = {}
        for members in kinds.values():
            replies |= zip(members, self.draw_pictures([wanted[i] for i in members]), strict=True)
        return [replies[i] for i in range(len(asks))]

    @torch.no_grad()
    def draw_pictures(self, asked: Sequence[PictureRequest]) -> list[Reply]:
        """Pictures of one kind. What several share, a trunk or all of a draft, is walked and decoded once."""
        heads = list({one.key: one for one in asked}.values())
        place = {one.key: i for i, one in enumerate(heads)}
        trunks = torch.cat([self.trunk(heads[part]) for part in self.portions(len(heads))])
        if not asked[0].temperature:  # one reply to all of them, so that what follows it can be shared as well
            drafts = [self.reply(one, x[None], x.new_zeros(0)) for one, x in zip(heads, trunks, strict=True)]
            return [drafts[place[one.key]] for one in asked]
        replies: list[Reply] = []
        for part in self.portions(len(asked)):
            some = asked[part]
            begun = trunks[[place[one.key] for one in some]]
            steps = range(len(self.schedule) - some[0].last, len(self.schedule))
            path, logp = self.walks(begun, [(one.prompt, one.own) for one in some], some[0].temperature, steps)
            replies += map(self.reply, some, path, logp)
        return replies

    def portions(self, count: int) -> Iterator[slice]:
        """Of so many walks or decisions, each of which may go through the UNet with the text and without it."""
        return pieces(count, self.batch // 2)

    def trunk(self, heads: Sequence[PictureRequest]) -> Tensor:
        """[B, C, H, W] where the decisions of walks of one kind begin; of drafts, which have none, the end."""
        asked = [(one.prompt, one.trunk) for one in heads]
        path, _ = self.walks(self.starts(heads), asked, heads[0].temperature, range(len(self.schedule) - heads[0].last))
        return path[:, -1]

    def reply(self, one: PictureRequest, path: Tensor, logp: Tensor) -> Reply:
        trace = Latents(one.prompt, path.cpu(), one.round)
        return Reply(self.picture(path[-1]), logp.cpu(), trace, "end", self.version, one.temperature)

    def starts(self, heads: Sequence[PictureRequest]) -> Tensor:
        """[B, C, H, W] the noise at which walks of one kind begin."""
        ends = [one.start.path[-1] for one in heads if one.start]
        if not ends:
            return self.noise([mix(one.trunk, "start") for one in heads], 1)[:, 0]
        x, given = torch.stack(ends).to(self.device), self.conditions([one.prompt for one in heads])
        for step in reversed(range(len(self.schedule))):
            steps = torch.full((len(x),), step, device=self.device)
            x = self.schedule.back(x, self.prediction(x, steps, given, self.denoising.w_invert), steps)
        return x

    def walks(
        self, x: Tensor, asked: Sequence[tuple[str, int]], temperature: float, steps: range
    ) -> tuple[Tensor, Tensor]:
        """Paths [B, N + 1, C, H, W] over N steps from pictures x, by the prompt and the seed of each, and their
        log-probabilities [B, N], or [B, 0] without noise."""
        path, logp = [x], [x.new_zeros(len(x), 0)]
        given = self.conditions([prompt for prompt, _ in asked]) if steps else (x, x)
        noise = self.noise([mix(seed, "steps") for _, seed in asked], len(steps)) if temperature else None
        weight = self.denoising.guidance if temperature else self.denoising.w_denoise
        for i, number in enumerate(steps):
            step = torch.full((len(x),), number, device=self.device)
            temperatures = torch.full((len(x),), temperature, device=self.device)
            x = mean = self.schedule.mean(x, self.prediction(x, step, given, weight), step, temperatures)
            if noise is not None:
                width = self.schedule.width(step, temperatures)
                x = mean + per_picture(width) * noise[:, i]
                logp.append(gaussian_logp(x, mean, width, self.denoising.reduction)[:, None])
            path.append(x)
        return torch.stack(path if temperature or not steps else path[-1:], 1), torch.cat(logp, 1)

    def noise(self, seeds: Sequence[int], count: int) -> Tensor:
        """[B, count, C, H, W] of a standard Gaussian: the same for a seed, whatever the others and the device."""
        drawn = [torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device)

    def prediction(self, x: Tensor, step: Tensor, given: tuple[Tensor, Tensor], weight: float) -> Tensor:
        """[N, C, H, W] the network's prediction at each `step` [N], without the text plus `weight` times what the text
        changes."""
        encoded, place = given
        both = weight not in (0.0, 1.0)
        which = torch.cat([0 * place, place]) if both else place * int(weight)
        twice = (lambda values: torch.cat([values, values])) if both else (lambda values: values)
        self.calls += len(which)
        with self.mode():
            out = self.unet(twice(x), twice(self.schedule.timesteps[step]), encoder_hidden_states=encoded[which]).sample
        if not both:
            return out.float()
        without, along = out.float().chunk(2)
        return without + weight * (along - without)

    @torch.no_grad()
    def picture(self, latents: Tensor) -> Tensor:
        """[C, H, W] in [-1, 1] on the CPU."""
        if self.vae is None:
            return latents.clamp(-1, 1).cpu()
        with self.mode():
            decoded = self.vae.decode(latents[None].to(self.device) / self.vae.config.scaling_factor).sample[0]
        return decoded.float().clamp(-1, 1).cpu()

    # ---- scoring

    def parameters(self) -> Iterable[nn.Parameter]:
        return [p for p in self.unet.parameters() if p.requires_grad]

    def extends(self, last: Turn, turn: Turn) -> bool:
        """Never: a picture is walked to from noise, however the noise was come by."""
        return False

    def size(self, rows: Sequence[Row]) -> int:
        """Positions that go through the UNet, with the text and without it."""
        return max(2 * sum(len(row.advantage) for row in rows) * self.shape[1] * self.shape[2], 1)

    def density(self, rows: Sequence[Row]) -> Density:
        """Log-probability and entropy of every step that was decided, [N], guided as it was in sampling.

        Rows of more steps than fit into a batch are computed in pieces, and again on the way back.
        """
        drawn = [turn.reply for row in rows for turn in row.turns]
        paths: list[Tensor] = [reply.trace.path for reply in drawn]
        total, counts = len(self.schedule), [len(reply.logp) for reply in drawn]
        before, after = (torch.cat([path[at] for path in paths]).to(self.device) for at in (slice(-1), slice(1, None)))
        step = torch.cat([torch.arange(total - count, total) for count in counts]).to(self.device)
        temperature = torch.tensor([reply.temperature for reply in drawn]).repeat_interleave(torch.tensor(counts))
        temperature = temperature.to(self.device)
        encoded, of_turn = self.conditions([reply.trace.prompt for reply in drawn])
        place = of_turn.repeat_interleave(torch.tensor(counts, device=self.device))
        width, how = self.schedule.width(step, temperature), self.denoising

        def step_logp(part: slice) -> Tensor:
            predicted = self.prediction(before[part], step[part], (encoded, place[part]), how.guidance)
            mean = self.schedule.mean(before[part], predicted, step[part], temperature[part])
            return gaussian_logp(after[part], mean, width[part], how.reduction)

        parts = list(self.portions(len(step)))
        again = len(parts) > 1 and torch.is_grad_enabled()
        found = [checkpoint(step_logp, part, use_reentrant=False) if again else step_logp(part) for part in parts]
        return Density(torch.cat(found), gaussian_entropy(width, before[0].numel(), how.reduction))

    @contextmanager
    def mode(self) -> Iterator[None]:
        """How the networks are run: under bfloat16 or not, the adapter on or off."""
        with ExitStack() as stack:
            if self.bf16:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if not self.adapter:
                self.unet.disable_adapters()
                stack.callback(self.unet.enable_adapters)
            yield

    # ---- what training changes, and what others load

    def frozen_copy(self) -> DiffusionPolicy:
        """The policy as it is now, for a reference. Under LoRA: the same model with its adapter switched off."""
        twin = copy.copy(self)
        if has_adapter(self.unet):
            twin.adapter = False
        else:
            twin.unet = copy.deepcopy(self.unet).requires_grad_(False)
        return twin

    def record(self, reply: Reply) -> dict[str, Any]:
        """The picture as a small PNG, and the timestep and the entropy of every step that was decided."""
        count = len(reply.logp)
        total = len(self.schedule)
        step = torch.arange(total - count, total, device=self.device)
        width = self.schedule.width(step, torch.full((count,), reply.temperature, device=self.device))
        entropy = gaussian_entropy(width, reply.trace.path[0].numel(), self.denoising.reduction)
        return {
            "picture": png_address(pixels_of(thumbnail(reply.content))),
            "pieces": [f"{t} " for t in self.schedule.timesteps[step].tolist()],
            "entropy": [round(h, 4) for h in entropy.tolist()],
        }

    def state_dict(self) -> dict[str, Any]:
        """Parameters that are trained: the UNet's, or its adapter's."""
        return trained_parameters(self.unet)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the names or shapes are not those of this model."""
        restore(self.state_dict(), state)

    def save(self, path: Path) -> None:
        """A folder in diffusers' layout; a LoRA adapter is merged into it, and kept beside it in `adapter/`."""
        parts = {
            "unet": self.unet,
            "scheduler": self.scheduler,
            "text_encoder": self.encoder,
            "tokenizer": self.tokenizer,
        }
        write_pipeline(parts if self.vae is None else {**parts, "vae": self.vae}, path)


def pieces(count: int, most: int) -> Iterator[slice]:
    """Slices of at most `most` of so many."""
    for start in range(0, count, max(most, 1)):
        yield slice(start, min(start + max(most, 1), count))


def thumbnail(picture: Tensor) -> Tensor:
    """[C, H, W] no larger than a record should be."""
    most = max(picture.shape[1:]) / THUMBNAIL
    if most <= 1:
        return picture
    side = [max(round(s / most), 1) for s in picture.shape[1:]]
    return nn.functional.interpolate(picture[None], side, mode="area")[0]
