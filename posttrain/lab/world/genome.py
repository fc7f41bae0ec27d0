"""A genome of few genes, and diseases that follow from the gene that a variant is in and the pathway that it acts on.

    CTAGGTAACCGATTACGTAGCATT CTAGGTAACCGAATACGTAGCATT  pathway p1   ->   g5 A, d2

There are eight genes, known sequences of ten bases. A genome is four of them in a row, in which one base in twenty has
mutated. A labelled item is a window of 24 bases around a variant of one base, without it and with it, as BioReason's
windows are: where a gene begins in it is anybody's guess. Its disease is a table's entry for gene and pathway, so that
the text alone says nothing about it, and the DNA alone leaves as many diseases as there are pathways. Windows without
labels are free: a model that predicts their hidden bases comes to know the genes.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.lab.world.words import END, tokenizer_of
from posttrain.seeding import mix

BASES = "ACGT"
GENES, LENGTH, IN_A_ROW, MUTATED = 8, 10, 4, 0.05
WINDOW = 24  # bases; the variant stands in the middle
PATHWAYS = 2
LABELS = tuple(f"d{disease}" for disease in range(GENES))
QUESTION = "pathway p{}, which disease?"
PIECES = r" ?[^ \n]+|\n"  # of a text: words with the blank before them, and ends of lines
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}" + END + "{% endif %}\n{% endfor %}"
)


VOCABULARY = (
    *("\n", "<think>", "</think>", "Answer:", "Reference", "Variant", " sequence:", "pathway", " which", " disease?"),
    *(f" p{pathway}," for pathway in range(PATHWAYS)),
    *(f"g{gene}" for gene in range(GENES)),
    *(f" d{disease}" for disease in range(GENES)),
    *(f" {base}" for base in BASES),
    *(" " + "".join(bases) for bases in itertools.product(BASES, repeat=3)),
)


def tokenizer() -> Any:
    """Of whole words, as `posttrain.lab.world.words` has it, that keeps blanks and ends of lines."""
    from tokenizers import Regex, decoders, pre_tokenizers

    made = tokenizer_of(VOCABULARY)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    made.backend_tokenizer.decoder = decoders.Fuse()
    made.chat_template = TEMPLATE
    return made


@dataclass(frozen=True, slots=True)
class Variant:
    """A labelled item."""

    reference: str  # [24] bases
    variant: str  # [24] the same with another base in the middle
    gene: int
    pathway: int
    disease: int

    def record(self, width: int = WINDOW) -> dict[str, str]:
        """In the columns of `wanglab/kegg`, with a blank after every `width` bases."""
        return {
            "question": QUESTION.format(self.pathway),
            "answer": f"d{self.disease}",
            "reasoning": f"g{self.gene} {self.variant[WINDOW // 2]}",
            "reference_sequence": spaced(self.reference, width),
            "variant_sequence": spaced(self.variant, width),
        }


def spaced(sequence: str, width: int) -> str:
    return " ".join(sequence[start : start + width] for start in range(0, len(sequence), width))


@dataclass(frozen=True)
class Genome:
    """Genes and diseases of a seed."""

    seed: int

    @cached_property
    def genes(self) -> list[str]:
        draw = random.Random(mix(self.seed, "genes"))
        return ["".join(draw.choices(BASES, k=LENGTH)) for _ in range(GENES)]

    @cached_property
    def diseases(self) -> list[list[int]]:
        """[pathway][gene]: with every pathway another disease for a gene, and for every gene another one."""
        draw = random.Random(mix(self.seed, "diseases"))
        first = draw.sample(range(GENES), GENES)
        return [first[step:] + first[:step] for step in draw.sample(range(GENES), PATHWAYS)]

    # ---- DNA

    def genome(self, draw: random.Random) -> tuple[list[int], str]:
        """Its genes, and its bases with their mutations."""
        order = draw.choices(range(GENES), k=IN_A_ROW)
        whole = "".join(self.genes[gene] for gene in order)
        return order, "".join(draw.choice(BASES) if draw.random() < MUTATED else base for base in whole)

    def window(self, draw: random.Random) -> str:
        """[24] bases without a label."""
        _, whole = self.genome(draw)
        start = draw.randrange(len(whole) - WINDOW + 1)
        return whole[start : start + WINDOW]

    def item(self, draw: random.Random) -> Variant:
        order, whole = self.genome(draw)
        start, pathway = draw.randrange(len(whole) - WINDOW + 1), draw.randrange(PATHWAYS)
        gene = order[(start + WINDOW // 2) // LENGTH]
        plain = whole[start : start + WINDOW]
        other = draw.choice([base for base in BASES if base != plain[WINDOW // 2]])
        changed = plain[: WINDOW // 2] + other + plain[WINDOW // 2 + 1 :]
        return Variant(plain, changed, gene, pathway, self.diseases[pathway][gene])

    def items(self, count: int, split: str) -> list[Variant]:
        draw = random.Random(mix(self.seed, "items", split))
        return [self.item(draw) for _ in range(count)]
