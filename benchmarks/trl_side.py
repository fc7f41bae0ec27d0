"""TRL's side: its GRPOTrainer on the workload, one step for every line on standard input."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from side import Clock, options, tell, wait
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from workloads import ANSWER, WORKLOADS, Workload, rewarded


class Paced(TrainerCallback):
    """Holds the trainer before every step until one is wanted, and reports what the step cost."""

    def __init__(self, clock: Clock):
        self.clock, self.reward = clock, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        wait()
        self.clock.spent.clear()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        spent = dict(self.clock.spent)
        for kind, now, start in (
            ("wall", time.perf_counter(), self.wall),
            ("cpu", time.process_time(), self.cpu),
        ):
            spent[kind] = now - start
            spent[f"{kind}_learn"] = spent[kind] - spent.get(f"{kind}_sample", 0.0) - spent.get(f"{kind}_grade", 0.0)
        tell(**spent, reward=self.reward)


def main() -> None:
    parser = options()
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    work, clock = WORKLOADS[given.work], Clock()
    lines = Path(given.folder, "prompts.jsonl").read_text().splitlines()
    dataset = Dataset.from_list([{"prompt": json.loads(x)["prompt"]} for x in lines])
    tokenizer = AutoTokenizer.from_pretrained(given.folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=given.bf16,
        per_device_train_batch_size=work.prompts * work.samples,
        num_generations=work.samples,
        max_completion_length=work.new,
        max_steps=100_000,
        learning_rate=given.lr,
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
        seed=given.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )

    paced = Paced(clock)

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        rewards = [rewarded(work, prompt, said) for prompt, said in zip(prompts, completions, strict=True)]
        paced.reward = sum(rewards) / len(rewards)
        return rewards

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[paced],
        rollout_func=conversation(work) if work.turns > 1 else None,
    )
    timed(trainer, "_generate", "sample", clock)
    timed(trainer, "_calculate_rewards", "grade", clock)
    trainer.train()


def conversation(work: Workload) -> Any:
    """Several replies with the environment's words between them, by TRL's own sampling of one."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        encode = trainer.processing_class
        said = [encode(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        answer = encode(ANSWER, add_special_tokens=False)["input_ids"]
        completions: list[list[int]] = [[] for _ in prompts]
        masks: list[list[int]] = [[] for _ in prompts]
        for turn in range(work.turns):
            context = [p + c for p, c in zip(said, completions, strict=True)]
            replies, _ = trainer._generate_single_turn(context, None, {}, trainer.num_generations)
            for ids, mask, reply in zip(completions, masks, replies, strict=True):
                more = answer if turn + 1 < work.turns else []
                ids += reply + more
                mask += [1] * len(reply) + [0] * len(more)
        return {"prompt_ids": said, "completion_ids": completions, "logprobs": None, "env_mask": masks}

    return rollout


def timed(trainer: Any, name: str, part: str, clock: Clock) -> None:
    plain = getattr(trainer, name)

    def method(*given: Any, **options: Any) -> Any:
        with clock.part(part):
            return plain(*given, **options)

    setattr(trainer, name, method)


if __name__ == "__main__":
    main()
