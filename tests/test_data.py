"""Reading the user's files, and what is said of bad ones."""

from __future__ import annotations

import json

import pytest
import torch

import posttrain as pt
from posttrain import preference
from posttrain.cli.options import TaskOptions


@pytest.fixture
def write(tmp_path):
    def file(name: str, *lines):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return file


ROWS = [{"question": "2+2?", "answer": "4"}, {"question": "3+3?", "answer": "6"}]


def test_jsonl_csv_and_parquet_give_the_same_tasks(write, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    jsonl = write("q.jsonl", *ROWS)
    table = write("q.csv", "question,answer", "2+2?,4", "3+3?,6")
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    for path in (jsonl, table, tmp_path / "q.parquet"):
        tasks = pt.read(path, prompt="question", answer="answer")
        assert [(t.prompt[0]["content"], t.truth) for t in tasks] == [("2+2?", "4"), ("3+3?", "6")]
    assert len(pt.read(jsonl, prompt="question", limit=1)) == 1


def test_a_saved_dataset_of_the_hub_library_is_read(tmp_path, monkeypatch):
    """`datasets` reads a local folder as it reads an id of the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert [t.truth for t in pt.read("sums", prompt="question")] == ["4", "6"]


def test_prompts_from_columns_templates_and_chats(write):
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    path = write("q.jsonl", {"question": "2+2?", "unit": "apples", "messages": chat, "answer": "4", "id": "first"})
    [task] = pt.read(path, prompt="Solve {question} in {unit}", system="be brief")
    assert [m["content"] for m in task.prompt] == ["be brief", "Solve 2+2? in apples"]
    assert task.key == "first"
    [task] = pt.read(path, prompt=r"{question} Put it in \boxed{}.")
    assert task.prompt[0]["content"] == r"2+2? Put it in \boxed{}."
    [task] = pt.read(path, prompt="messages", answer=None)
    assert [m["content"] for m in task.prompt] == ["s", "hi"]
    assert task.truth is None
    [one] = pt.read_demonstrations(path, prompt="messages")
    assert [m["role"] for m in one.messages] == ["system", "user", "assistant"]
    [one] = pt.read_demonstrations(path, prompt="question", response="answer")
    assert [m["content"] for m in one.messages] == ["2+2?", "4"]


def test_transcripts_of_hh_rlhf_are_conversations(write):
    """As its files are: no prompt column, both sides a whole transcript."""
    start = "\n\nHuman: hi\n\nAssistant: hello, said\n\nthe machine\n\nHuman: why?\n\nAssistant:"
    path = write("hh.jsonl", {"chosen": f"{start} because", "rejected": f"{start} no"})
    asked = (pt.user("hi"), pt.assistant("hello, said\n\nthe machine"), pt.user("why?"))
    assert pt.read_pairs(path) == [pt.Pair(asked, "because", "no")]


def test_pairs_that_differ_in_several_replies_learn_each_of_them(write, make):
    first, second = pt.user("hi"), pt.user("and?")
    good, bad = [first, pt.assistant("a"), second, pt.assistant("b")], [first, pt.assistant("c c")]
    [pair] = pt.read_pairs(write("a.jsonl", {"chosen": good, "rejected": bad}))
    assert pair == pt.Pair((first,), (pt.assistant("a"), second, pt.assistant("b")), "c c")
    policy = make(template="chatml")
    row = preference.row(policy, pair, pair.chosen)
    assert [policy.chat.decode(turn.reply.trace.reply) for turn in row.turns] == ["a", "b"]
    logp, lengths = preference.sequence_logp(policy, [row])
    both = [policy.demonstrate(good[:1], "a"), policy.demonstrate(good[:3], "b")]
    assert lengths.tolist() == [sum(len(turn.reply.logp) for turn in both)]
    apart = policy.density([pt.Row([turn], torch.ones(len(turn.reply.logp))) for turn in both]).logp.sum()
    torch.testing.assert_close(logp[0], apart, atol=1e-4, rtol=1e-4)


def test_a_pair_of_tool_calls_keeps_them(write):
    def calling(city: str) -> dict:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    [pair] = pt.read_pairs(
        write("a.jsonl", {"prompt": "hi", "chosen": [calling("Oslo")], "rejected": [calling("Rome")]})
    )
    assert pair.chosen == (calling("Oslo"),)
    assert pair.rejected == (calling("Rome"),)


def test_pairs_in_plain_and_chat_form_are_the_same(write):
    user = {"role": "user", "content": "hi"}
    good, bad = {"role": "assistant", "content": "hello"}, {"role": "assistant", "content": "go away"}
    plain = write("a.jsonl", {"prompt": "hi", "chosen": "hello", "rejected": "go away"})
    mixed = write("b.jsonl", {"prompt": [user], "chosen": [good], "rejected": [bad]})
    whole = write("c.jsonl", {"chosen": [user, good], "rejected": [user, bad]})
    expected = pt.Pair((pt.user("hi"),), "hello", "go away")
    assert [pt.read_pairs(path) for path in (plain, mixed, whole)] == [[expected]] * 3
    odd = write("d.jsonl", {"chosen": [user, good], "rejected": [{"role": "user", "content": "ho"}, bad]})
    with pytest.raises(ValueError, match="differ in a user's message before any reply"):
        pt.read_pairs(odd)
    with pytest.raises(ValueError, match="'chosen' begin with the user's, not with a reply"):
        pt.read_pairs(write("f.jsonl", {"prompt": "hi", "chosen": [user, good], "rejected": "go away"}))
    with pytest.raises(ValueError, match="line 1: .* are the same text"):
        pt.read_pairs(write("e.jsonl", {"prompt": "hi", "chosen": "x", "rejected": "x"}))


@pytest.mark.parametrize(
    ("lines", "options", "match"),
    [
        (
            [ROWS[0], {"question": "x", "anwser": "1"}],
            {},
            r"q.jsonl, line 2: there is no column 'answer', .*`answer=anwser`",
        ),
        (ROWS, {"prompt": "questions"}, r"line 1: there is no column 'questions'.*did you mean `prompt=question`\?"),
        (ROWS, {"prompt": "Do {qestion}"}, r"no column 'qestion'"),
        ([ROWS[0], '{"question": "x", '], {}, r"q.jsonl, line 2: malformed JSON, .* at column"),
        ([ROWS[0], "[1, 2]"], {}, "line 2: a list, not an object"),
        ([""], {}, "the file is empty"),
        (ROWS, {"limit": 0}, "`limit=0`: it must be at least 1"),
        ([{**ROWS[0], "id": 7}, {**ROWS[1], "id": 7}], {}, "line 2: the id '7' was already used in line 1"),
        ([{"question": "", "answer": "4"}], {}, "the column 'question' is empty"),
        ([{"question": 7, "answer": "4"}], {}, "holds int, neither text nor chat messages"),
    ],
)
def test_bad_lines_are_named(write, lines, options, match):
    path = write("q.jsonl", *lines)
    with pytest.raises(ValueError, match=match):
        pt.read(path, **{"prompt": "question", **options})


def test_bad_files_are_named(write, tmp_path):
    write("questions.jsonl", *ROWS)
    with pytest.raises(ValueError, match="there is no such file; did you mean questions.jsonl"):
        pt.read(tmp_path / "question.jsonl")
    with pytest.raises(ValueError, match=r"^`data=.*question.jsonl`: there is no such file"):
        TaskOptions("no").tests([str(tmp_path / "question.jsonl")])
    with pytest.raises(ValueError, match=r"the ending '.txt' is none of"):
        pt.read(write("q.txt", "hello"))
    with pytest.raises(ValueError, match="line 3: it has not as many fields"):
        pt.read(write("q.csv", "question,answer", "a,b", "c"), prompt="question")
    chat = write("m.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(ValueError, match="no assistant reply to learn"):
        pt.read_demonstrations(chat, prompt="messages")
    with pytest.raises(ValueError, match="neither a file here nor a dataset"):
        pt.read("nobody/has-this-dataset")


def test_columns_within_objects_and_arrays_of_objects(write, tmp_path):
    rows = [{"prompt": "3*4?", "reward_model": {"ground_truth": "12", "style": "rule"}}]
    assert pt.read(write("q.jsonl", *rows), answer="reward_model.ground_truth")[0].truth == "12"
    with pytest.raises(ValueError, match="there is no column 'ground_truths'.*did you mean `answer=ground_truth`"):
        pt.read(write("q.jsonl", *rows), answer="reward_model.ground_truths")
    path = tmp_path / "q.json"
    path.write_text(json.dumps([*rows, {"prompt": "1+1?", "reward_model": {"ground_truth": "2"}}], indent=1))
    assert [task.truth for task in pt.read(path, answer="reward_model.ground_truth")] == ["12", "2"]
    path.write_text("[1]")
    with pytest.raises(ValueError, match="entry 1: a int, not an object with columns"):
        pt.read(path)
    path.write_text("[{]")
    with pytest.raises(ValueError, match=r"q\.json, line 1: malformed JSON"):
        pt.read(path)
