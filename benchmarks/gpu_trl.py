"""A part of `gpu.py`: TRL's GRPOTrainer on the same model, prompts, lengths and reward, where TRL is installed."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from gpu_model import (
    SHAPES,
    about,
    even,
    learning_operations,
    model,
    options,
    parsed,
    peak,
    peaks,
    prompts,
    reset_peak,
    tokenizer,
    wait,
    writer,
)

WARM, STEPS = 1, 3
BATCH = 32  # rows in one forward and backward pass; TRL's logits of a large vocabulary bound it


def main() -> None:
    parser = options()
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("how", choices=("float32", "bfloat16"))
    given = parsed(parser)
    write = writer(given.to)
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        write({"missing": f"not compared: {error}"})
        return
    import trl

    shape, device = (SHAPES[given.size].quick() if given.quick else SHAPES[given.size]), given.device
    words = tokenizer(shape)
    words.padding_side = "left"
    rows = shape.tasks * shape.samples
    batch = min(BATCH, rows)
    facts = {**about(device), "trl": trl.__version__, "warm": WARM, "batch": batch}
    taken: list[dict[str, float]] = []
    spent: dict[str, float] = {}

    class Clocked(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            spent.clear()
            reset_peak(device)
            wait(device)
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait(device)
            wall = time.perf_counter() - self.start
            step = {"wall_s": wall, "sampling_s": spent["sampling_s"], "learning_s": wall - spent["sampling_s"]}
            step |= {f"learning_{name}": value for name, value in peak(device).items()}
            taken.append({**step, "tokens": float(rows * shape.new)})
            found = {name: statistics.median(one[name] for one in taken[WARM:] or taken) for name in taken[0]}
            found["sampling_tokens_s"] = found["tokens"] / found["sampling_s"]
            found["learning_tokens_s"] = rows * (shape.prompt + shape.new) / found["learning_s"]
            found["learning_flops"] = learning_operations(shape) / found["learning_s"]
            if known := peaks(facts["device_name"]):
                found["mfu"] = found["learning_flops"] / known[0 if given.how == "bfloat16" else 2]
            write({**facts, "counted_steps": len(taken) - WARM, "steps": taken, **found})

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=device == "cpu",
        bf16=given.how == "bfloat16",
        tf32=False if device != "cpu" else None,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rows // batch,
        num_generations=shape.samples,
        max_completion_length=shape.new,
        max_steps=WARM + STEPS,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        beta=0.0,
        loss_type="dapo",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model(shape, device, words),
        reward_funcs=lambda prompts, completions, **_: [even(text) for text in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(shape, 4 * shape.tasks)]),
        processing_class=words,
        callbacks=[Clocked()],
    )
    plain = trainer._generate

    def generate(*some: Any, **more: Any) -> Any:
        wait(device)
        clock = time.perf_counter()
        found = plain(*some, **more)
        wait(device)
        spent["sampling_s"] = spent.get("sampling_s", 0.0) + time.perf_counter() - clock
        return found

    trainer._generate = generate  # type: ignore[method-assign]
    trainer.train()


if __name__ == "__main__":
    main()
