"""Vision-language models of some 100 thousand parameters, in the real format, for tiny worlds and tests."""

from __future__ import annotations

from typing import Any, Literal

from posttrain.policy.pixels import Preprocessing

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
START, PLACEHOLDER, STOP, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
MARKS = (START, PLACEHOLDER, STOP, VIDEO)
PICTURE = f"{START} {PLACEHOLDER} {STOP}"  # as a template of whole words writes one


def network(
    words: Any,
    preprocessing: Preprocessing,
    seed: int = 0,
    family: Family = "qwen2_5_vl",
    *,
    hidden: int = 64,
    layers: int = 2,
    positions: int = 128,
    depth: int = 1,
) -> Any:
    """A model from random weights, drawn as wide as the tiny text model's; `words` must know `MARKS`.

    layers of the language model, `depth` of those of the vision tower
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    ids = dict(zip(("vision_start", "image", "vision_end", "video"), words.convert_tokens_to_ids(MARKS), strict=True))
    text = {
        "vocab_size": len(words),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": hidden // 4,
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections(hidden // 8)},
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=vision(family, preprocessing, hidden, depth),
        tie_word_embeddings=False,
        **{f"{name}_token_id": value for name, value in ids.items()},
    )
    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.3)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    return model


def vision(family: Family, preprocessing: Preprocessing, hidden: int, depth: int) -> dict[str, Any]:
    """The configuration of a vision tower of `hidden` width, as each family spells it."""
    side = preprocessing.patch * preprocessing.merge
    same = {
        "depth": depth,
        "num_heads": 4,
        "patch_size": preprocessing.patch,
        "spatial_merge_size": preprocessing.merge,
        "temporal_patch_size": preprocessing.frames,
        "initializer_range": 0.1,
    }
    if family == "qwen2_vl":
        return {**same, "embed_dim": hidden, "hidden_size": hidden, "mlp_ratio": 2}
    whole = {**same, "hidden_size": hidden, "intermediate_size": 2 * hidden, "out_hidden_size": hidden}
    if family == "qwen2_5_vl":
        return {**whole, "window_size": 2 * side, "fullatt_block_indexes": [depth - 1]}
    return {**whole, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}


def sections(half: int) -> list[int]:
    """How the frequencies of a head, half its width, are shared by time, height and width: 1/4, 3/8, 3/8."""
    side = 3 * half // 8
    return [half - 2 * side, side, side]
