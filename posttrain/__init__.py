"""Reinforcement learning for language models: one small core on which published post-training systems run.

    import posttrain as pt

    tasks = pt.read("questions.jsonl", prompt="question", answer="answer")
    policy = pt.text("Qwen/Qwen2.5-0.5B-Instruct")
    pt.train(policy, tasks, pt.grpo(reward=pt.grade.math), pt.Run("runs/first", steps=200))

The public names stand in `__init__.pyi`; each is loaded when it is first used, so that importing stays fast.
"""

import lazy_loader

__version__ = "0.5.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
