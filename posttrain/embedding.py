"""Texts to vectors, by an encoder of sentences or any other checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST = 512  # tokens of a text that are read


class MeanOfTokens:
    """A checkpoint in the Hugging Face format: the mean of its last hidden states, as sentence-transformers has it.

    A text that is too long for it keeps its beginning. Raises ValueError when it cannot be loaded.
    """

    def __init__(self, model: str, device: str | None = None, rows: int = 64):
        from transformers import AutoModel

        from posttrain.policy.pretrained import checkpoint_path, choose_device, load_pretrained, load_tokenizer

        path, self.rows = checkpoint_path(model), rows
        self.tokenizer = load_tokenizer(path)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = (
            load_pretrained(AutoModel, path, fresh=["pooler"]).to(choose_device(device)).eval().requires_grad_(False)
        )
        self.most = min(getattr(self.model.config, "max_position_embeddings", MOST), MOST)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """[B, D] float32 of length 1, on the CPU; a text's vector does not depend on those beside it."""
        device, found = next(self.model.parameters()).device, []
        for start in range(0, len(texts), self.rows):
            some = list(texts[start : start + self.rows])
            options = {"padding": True, "truncation": True, "max_length": self.most, "return_tensors": "pt"}
            read = self.tokenizer(some, padding_side="right", **options).to(device)
            hidden = self.model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
            weight = read["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)  # a text of no tokens has no direction
            found.append(nn.functional.normalize(mean.float(), dim=-1).cpu())
        return torch.cat(found)
