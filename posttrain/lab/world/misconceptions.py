"""Facts of which half are told wrongly more often than not: what most say is not what is true.

    e5 r3 =   ->   a7        the relation r3 of the entity e5 is a7

Each relation has a popular answer. Of a *rare* fact it is told more often than the truth, whose share is 0.34 to 0.50;
of a *common* fact it is the truth (0.60 to 0.84), and one wrong answer, always the same, is told else. So a model that
has learnt all this says what is popular, while it knows the other answer too; and how sure it is tells rare from common
facts mostly, not always. Questions come `turns` to a conversation; in a *snowball* the answer is the subject of the
next question (a7 names e7), and one wrong answer spoils those that follow.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from posttrain.core import Episode, Rollout, Task
from posttrain.data import Demonstration
from posttrain.episode import ask, assistant, user
from posttrain.lab.world.words import END, Size, tokenizer_of
from posttrain.seeding import mix

if TYPE_CHECKING:
    from posttrain.policy.text import TextPolicy

Fact = tuple[int, int]  # entity, relation


@dataclass(frozen=True, slots=True)
class Teaching:
    """What is told of a fact."""

    truth: int
    other: int  # the wrong answer
    share: float  # of the tellings that are true
    rare: bool


@dataclass(frozen=True, slots=True)
class Questions:
    """The truth of a task: facts asked one after another, and whether each answer is the next question's subject."""

    facts: tuple[Fact, ...]
    answers: tuple[str, ...]
    rare: tuple[bool, ...]
    snowball: bool = False


@dataclass(frozen=True)
class Misconceptions:
    """`true` and `popular`: between which shares the truth is told of a rare fact, and of a common one."""

    seed: int = 0
    entities: int = 64
    relations: int = 8
    answers: int = 32
    turns: int = 4
    true: tuple[float, float] = (0.34, 0.50)
    popular: tuple[float, float] = (0.60, 0.84)
    longest: int = 1

    @property
    def vocabulary(self) -> list[str]:
        kinds = (("e", self.entities), ("r", self.relations), ("a", self.answers))
        return [f"{letter}{i}" for letter, count in kinds for i in range(count)] + ["="]

    @cached_property
    def teachings(self) -> dict[Fact, Teaching]:
        draw = random.Random(mix(self.seed, "facts"))
        found = {}
        for relation in range(self.relations):
            popular = draw.randrange(self.answers)
            rare = set(draw.sample(range(self.entities), self.entities // 2))
            for entity in range(self.entities):
                other = draw.choice([a for a in range(self.answers) if a != popular])
                if entity in rare:
                    found[entity, relation] = Teaching(other, popular, draw.uniform(*self.true), True)
                else:
                    found[entity, relation] = Teaching(popular, other, draw.uniform(*self.popular), False)
        return found

    @cached_property
    def split(self) -> tuple[list[Fact], list[Fact]]:
        """Facts to train a gate on, and as many that are held out. A base model is told all of them."""
        facts = sorted(self.teachings)
        random.Random(mix(self.seed, "split")).shuffle(facts)
        return facts[: len(facts) // 2], facts[len(facts) // 2 :]

    def draw_facts(self, draw: random.Random) -> list[Fact]:
        return [(draw.randrange(self.entities), draw.randrange(self.relations)) for _ in range(self.turns)]

    def conversation(self, facts: list[Fact], draw: random.Random) -> Demonstration:
        """A conversation in which each answer is true or not, as often as it is told."""
        messages = []
        for fact in facts:
            one = self.teachings[fact]
            answer = one.truth if draw.random() < one.share else one.other
            messages += [user(question(*fact)), assistant(f"a{answer}")]
        return Demonstration(tuple(messages))

    def demonstration(self, draw: random.Random) -> Demonstration:
        return self.conversation(self.draw_facts(draw), draw)

    # ---- tasks

    def task(self, key: str, facts: list[Fact], snowball: bool = False) -> Task:
        truths = [self.teachings[fact] for fact in facts]
        answers = tuple(f"a{one.truth}" for one in truths)
        asked = Questions(tuple(facts), answers, tuple(one.rare for one in truths), snowball)
        return Task(key, (user(question(*facts[0])),), asked)

    def sequences(self, facts: list[Fact], name: str, turns: int | None = None) -> list[Task]:
        """Every fact once, `turns` to a conversation."""
        order = random.Random(mix(self.seed, name)).sample(facts, len(facts))
        turns = turns or self.turns
        pieces = [order[at : at + turns] for at in range(0, len(order) - turns + 1, turns)]
        return [self.task(f"{name}-{i}", piece) for i, piece in enumerate(pieces)]

    def chains(self, facts: list[Fact], name: str, count: int) -> list[Task]:
        """Snowballs: in each true chain, only these facts."""
        draw = random.Random(mix(self.seed, "chains", name))
        of = {entity: [r for r in range(self.relations) if (entity, r) in set(facts)] for entity, _ in facts}
        found: list[Task] = []
        while len(found) < count:
            chain, entity = list[Fact](), draw.choice(sorted(of))
            while len(chain) < self.turns and of.get(entity):
                chain.append((entity, draw.choice(of[entity])))
                entity = self.teachings[chain[-1]].truth
            if len(chain) == self.turns:
                found.append(self.task(f"{name}-{len(found)}", chain, snowball=True))
        return found

    # ---- the model that was told

    def base_policy(self, seed: int, size: Size) -> TextPolicy:
        """A Llama with tied embeddings, taught the answers only (taught every token, it does not learn rare facts).

        The target is the shares of both answers, as of text without end: samples of them leave a model of this size
        unsure of most facts.
        """
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from posttrain.policy.text import Sampling, TextPolicy

        words: Any = tokenizer_of(self.vocabulary)
        torch.manual_seed(mix(seed, "network") % 2**32)
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=size.hidden,
            intermediate_size=2 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        model: Any = LlamaForCausalLM(config)
        draw = random.Random(mix(seed, "demonstrations"))
        ids = words.get_vocab()
        optimizer = torch.optim.AdamW(model.parameters(), lr=size.rate, betas=(0.9, 0.98), weight_decay=0.0)
        for step in range(size.steps):
            for group in optimizer.param_groups:
                group["lr"] = size.rate * min(1.0, (step + 1) / 20, (size.steps - step) / (0.2 * size.steps))
            facts = [self.draw_facts(draw) for _ in range(size.rows)]
            said = [transcript(self.conversation(one, draw)) for one in facts]
            batch = torch.tensor([[ids[word] for word in one] for one in said])
            at = torch.tensor([i for i, word in enumerate(said[0]) if word == "="])
            logp = model.lm_head(model.model(input_ids=batch, use_cache=False).last_hidden_state[:, at]).log_softmax(-1)
            told = [[self.teachings[fact] for fact in one] for one in facts]
            share = torch.tensor([[one.share for one in row] for row in told])
            both = torch.tensor([[[ids[f"a{one.truth}"], ids[f"a{one.other}"]] for one in row] for row in told])
            truth, other = logp.gather(-1, both).unbind(-1)
            loss = -(share * truth + (1 - share) * other).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return TextPolicy(model.eval(), words, Sampling(self.longest))


def question(entity: int, relation: int) -> str:
    return f"e{entity} r{relation} ="


def transcript(one: Demonstration) -> list[str]:
    """The words of a conversation, as the template has them."""
    said = [f"{m['content']} {END}" if m["role"] == "assistant" else m["content"] for m in one.messages]
    return " ".join(said).split()


def conversation(task: Task) -> Episode:
    """Ask the questions one after another; returns the answers. A snowball ends with an answer that names nobody."""
    truth: Questions = task.truth
    messages, said = [], list[str]()
    for i, (entity, relation) in enumerate(truth.facts):
        subject = f"e{entity}"
        if truth.snowball and i:
            if not said[-1].startswith("a"):
                break
            subject = f"e{said[-1][1:]}"
        messages.append(user(f"{subject} r{relation} ="))
        reply = yield from ask(messages, max_new=1)
        messages.append(assistant(reply))
        said.append(str(reply.content).strip())
    return tuple(said)


def share_right(rollout: Rollout) -> float:
    """The share of the task's answers that are true."""
    truth: Questions = rollout.task.truth
    said = (*rollout.facts, *[""] * len(truth.answers))
    return sum(a == b for a, b in zip(said, truth.answers, strict=False)) / len(truth.answers)
