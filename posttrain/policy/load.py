"""A policy from a Hub id, a local checkpoint, a GGUF file, or the models `tiny` and `smollm2`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.policy.abilities import choose_bf16
from posttrain.policy.pretrained import (
    checkpoint_path,
    first_line,
    has_encoders,
    load_pretrained,
    load_tokenizer,
    prepare_network,
    sees_pictures,
)
from posttrain.policy.text import Sampling, TextPolicy

if TYPE_CHECKING:
    from posttrain.policy.encoders import Encoder
    from posttrain.policy.injection import InjectedPolicy, InjectedVisionPolicy
    from posttrain.policy.pixels import Preprocessing
    from posttrain.policy.vision import VisionPolicy

Made = TypeVar("Made", bound=TextPolicy)


def text(
    model: str = "tiny",
    *,
    max_new: int = 256,
    temperature: float = 1.0,
    stop: tuple[str, ...] = (),
    template: str | None = None,
    lora: int = 0,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str | None = None,
    threads: int | None = None,
    weights: bool = True,
) -> TextPolicy:
    """A trainable text policy.

    model          Hub id, folder of a Hugging Face checkpoint, GGUF file, `tiny`, or `smollm2` (SmolLM2-135M-Instruct)
    bf16           run the model in bfloat16, except on a CPU that it makes slower; weights stay float32
    lora           rank of a LoRA adapter on every linear layer; 0 trains all parameters
    checkpointing  recompute activations in the backward pass: less memory, about a third more time
    weights        False: read only the configuration and the tokenizer; the model lies on torch's `meta` device, takes
                   no memory and can be planned but not run
    Raises ValueError naming what is missing: the folder, the extra, the template, the positions for `max_new`.
    """
    from transformers import AutoModelForCausalLM

    path = checkpoint_path(model)
    network = prepare_network(
        load_pretrained(AutoModelForCausalLM, path, weights), lora, checkpointing, device, threads
    )
    sampling = Sampling(max_new, temperature, stop)
    bf16 = choose_bf16(bf16, network.device)
    return require_room(TextPolicy(network, load_tokenizer(path), sampling, template=template, bf16=bf16), model)


def vision(
    model: str,
    *,
    max_new: int = 256,
    temperature: float = 1.0,
    stop: tuple[str, ...] = (),
    template: str | None = None,
    lora: int = 0,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str | None = None,
    threads: int | None = None,
    weights: bool = True,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> VisionPolicy:
    """A trainable policy that sees pictures: a model of Qwen's pattern (Qwen2-VL, Qwen2.5-VL, Qwen3-VL).

    min_pixels, max_pixels  of a resized picture; the checkpoint's own if not given
    Other arguments are those of `text`. Raises ValueError also for a model of another pattern.
    """
    from transformers import AutoModelForImageTextToText

    from posttrain.policy.vision import VisionPolicy

    path = checkpoint_path(model)
    preprocessing = with_pixel_limits(load_preprocessing(path), min_pixels, max_pixels)
    network = prepare_network(
        load_pretrained(AutoModelForImageTextToText, path, weights), lora, checkpointing, device, threads
    )
    sampling = Sampling(max_new, temperature, stop)
    options: dict[str, Any] = {"template": template, "bf16": choose_bf16(bf16, network.device)}
    return require_room(VisionPolicy(network, load_tokenizer(path), preprocessing, sampling, **options), model)


def inject(
    model: str,
    encoders: Sequence[Encoder] = (),
    *,
    trained: Iterable[str] = (),
    max_new: int = 256,
    temperature: float = 1.0,
    stop: tuple[str, ...] = (),
    template: str | None = None,
    lora: int = 0,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str | None = None,
    threads: int | None = None,
    weights: bool = True,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    seed: int = 0,
) -> InjectedPolicy | InjectedVisionPolicy:
    """A trainable policy that is shown parts of other kinds: DNA, clouds of points; pictures too, if its model sees.

    model     a text or vision-language model; one that `save` of such a policy has written needs no `encoders`
    encoders  `pt.DnaEncoder(...)`, `pt.PointEncoder(...)`: one of a kind
    trained   kinds whose encoders learn too; the others are frozen, and what they say of a part is kept
    seed      of the projectors, which begin untrained
    Other arguments are those of `text` and `vision`. Raises ValueError also for two encoders of a kind, for a kind in
    `trained` without an encoder, and for a checkpoint that has other encoders already.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from posttrain.policy import injection

    path, sees = checkpoint_path(model), sees_pictures(checkpoint_path(model))
    known = has_encoders(path)
    if known == bool(encoders):
        has = "has encoders of its own, give it no others" if known else "has no encoders, and none were given"
        raise ValueError(f"`model={model}`: it {has}")
    if known:
        encoders, trained = injection.saved_encoders(Path(path), weights)
    kinds = [one.kind for one in encoders]
    if len({*kinds}) < len(kinds) or not {*trained} <= {*kinds}:
        raise ValueError(
            f"`encoders` of {kinds} with `trained={sorted(trained)}`: one of a kind, and trained ones of these"
        )
    loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    network, tokenizer = load_pretrained(loader, path, weights), load_tokenizer(path)
    injection.add_marks(network, tokenizer, encoders)
    network = prepare_network(network, lora, checkpointing, device, threads)
    injection.attach(network, encoders, trained, seed)
    if known and weights:
        injection.load_projectors(network, Path(path))
    options: dict[str, Any] = {"template": template, "bf16": choose_bf16(bf16, network.device)}
    sampling = Sampling(max_new, temperature, stop)
    if not sees:
        check_pixels(model, min_pixels, max_pixels)
        return require_room(injection.InjectedPolicy(network, tokenizer, sampling, **options), model)
    preprocessing = with_pixel_limits(load_preprocessing(path), min_pixels, max_pixels)
    seeing = injection.InjectedVisionPolicy(network, tokenizer, preprocessing, sampling, **options)
    return require_room(seeing, model)


def load_policy(
    model: str, *, min_pixels: int | None = None, max_pixels: int | None = None, **options: Any
) -> TextPolicy:
    """As the checkpoint is: `inject` for one with encoders, `vision` for one that sees pictures, `text` for others."""
    path = checkpoint_path(model)
    if has_encoders(path):
        return inject(model, min_pixels=min_pixels, max_pixels=max_pixels, **options)
    if sees_pictures(path):
        return vision(model, min_pixels=min_pixels, max_pixels=max_pixels, **options)
    check_pixels(model, min_pixels, max_pixels)
    return text(model, **options)


def check_pixels(model: str, least: int | None, most: int | None) -> None:
    """Raises ValueError for limits of pictures, of a model that sees none."""
    if least is not None or most is not None:
        raise ValueError(f"`min_pixels` and `max_pixels`: the model {model} sees no pictures")


def require_room(policy: Made, model: str) -> Made:
    """The policy, whose model must have positions for its replies."""
    if policy.sampling.max_new >= policy.context:
        raise ValueError(
            f"max_new={policy.sampling.max_new} tokens, but the model {model!r} has {policy.context} positions"
        )
    return policy


def load_preprocessing(path: str) -> Preprocessing:
    from transformers.image_processing_base import ImageProcessingMixin

    from posttrain.policy.pixels import Preprocessing

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
        return Preprocessing.of(settings)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model={path}`: {first_line(error)}") from error


def with_pixel_limits(preprocessing: Preprocessing, least: int | None, most: int | None) -> Preprocessing:
    """With these limits of a resized picture in the place of its own; raises ValueError where no picture is within."""
    least = preprocessing.least if least is None else least
    most = preprocessing.most if most is None else most
    token = (preprocessing.patch * preprocessing.merge) ** 2
    if not 0 < least <= most or most < token:
        raise ValueError(
            f"`min_pixels={least}` `max_pixels={most}`: the fewest pixels of a resized picture are at least 1, the "
            f"most not fewer than these, nor than the {token} of one token"
        )
    return replace(preprocessing, least=least, most=most)
