"""Turn the calculator notes of GSM8K's training file into tasks that a small model can learn in minutes.

    python examples/gsm8k_notes.py train.jsonl FOLDER

The file is github.com/openai/grade-school-math's train.jsonl. Its solutions hold notes such as <<48+24=72>>; those
over two numbers below 100 (a product: one of them below 10) become questions, each once, a tenth of them held out.
"""

import json
import random
import re
import sys
from pathlib import Path

NOTE = re.compile(r"<<(\d{1,2})([-+*])(\d{1,2})=(\d+)>>")

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
found: dict[str, str] = {}
for line in source.read_text().splitlines():
    for a, sign, b, value in NOTE.findall(json.loads(line)["answer"]):
        if sign != "*" or min(int(a), int(b)) < 10:
            found[f"What is {a}{sign}{b}?"] = value
questions = sorted(found)
random.Random(0).shuffle(questions)
held = len(questions) // 10
for name, part in (("test.jsonl", questions[:held]), ("questions.jsonl", questions[held:])):
    with (folder / name).open("w") as file:
        for question in part:
            file.write(json.dumps({"question": question, "answer": found[question]}) + "\n")
print(f"{len(questions) - held} questions to train on and {held} to test on in {folder}")
