"""Write the arithmetic questions of `make demo`: questions.jsonl to train on, test.jsonl to evaluate on.

python examples/make_questions.py FOLDER
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
