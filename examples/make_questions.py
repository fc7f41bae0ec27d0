"""Write arithmetic questions: of `make demo`, and easy sums for `--model smollm2`.

python examples/make_questions.py FOLDER      writes questions.jsonl and test.jsonl, sums.jsonl and sums-test.jsonl
"""

import json
import random
import sys
from pathlib import Path

from posttrain.tiny import question

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
draw = random.Random(7)
seen: set[str] = set()
for name, count in (("test.jsonl", 200), ("questions.jsonl", 2000)):
    with (folder / name).open("w") as file:
        while count:
            asked, value = question(draw)
            if asked not in seen:
                seen.add(asked)
                count -= 1
                file.write(json.dumps({"question": asked, "answer": str(value)}) + "\n")

sums = [(a, b) for a in range(2, 13) for b in range(2, 13)]
random.Random(7).shuffle(sums)
for name, part in (("sums-test.jsonl", sums[:21]), ("sums.jsonl", sums[21:])):
    lines = [json.dumps({"question": f"What is {a} + {b}?", "answer": str(a + b)}) + "\n" for a, b in part]
    (folder / name).write_text("".join(lines))
