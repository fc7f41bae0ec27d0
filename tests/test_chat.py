"""Chat: every turn extends the last token for token, for the template families in use; stop tokens; refusals.

The tokenizers are built here, with templates written in the style of each family.
"""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import task

import posttrain as pt
from posttrain import tiny
from posttrain.chat import Chat
from posttrain.policy.text import Sampling, TextPolicy

QWEN3 = """{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role != 'system' %}{% set content = m.content %}
{%- if m.role == 'assistant' and loop.index0 < ns.last and '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{{- '<|begin|>' }}{% for m in messages %}{{ '<|header|>' + m['role'] + '<|/header|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\n\n' }}{% endif %}"""
GEMMA = """{{- '<|begin|>' }}{% for m in messages %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<turn|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""
MISTRAL = """{{- '<|begin|>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"""
MISTRAL_SYSTEM_LAST = """{%- set system = messages[0].content if messages[0].role == 'system' else '' %}{{ '<|begin|>' }}
{%- for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.last and system else '') + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"""

FAMILIES = {
    "chatml": (None, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot|>"),
    "gemma": (GEMMA, "<turn|>"),
    "mistral": (MISTRAL, "</s>"),
}
SPECIAL = ["<|begin|>", "<|header|>", "<|/header|>", "<|eot|>", "<turn>", "<turn|>", "[INST]", "[/INST]", "</s>"]


def policy_for(family_template: str | None, end: str, max_new: int = 12) -> TextPolicy:
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": SPECIAL})
    if family_template:
        words.chat_template = family_template
        words.eos_token = end
    model = tiny.network(words, hidden=32)
    return TextPolicy(model, words, Sampling(max_new))


def three_turns(task):
    messages = [*task.prompt]
    for k in range(3):
        reply = yield from pt.ask(messages)
        messages += [pt.assistant(reply), pt.user(f"and then? {k}")]


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_extend_token_for_token(family):
    template, end = FAMILIES[family]
    policy = policy_for(template, end)
    assert policy.chat.end == end
    for rollout in pt.play([task(str(i)) for i in range(6)], three_turns, {"policy": policy}, list(range(6))):
        stripped = any(turn.reply.content != turn.reply.content.strip() for turn in rollout.turns)
        if family in ("llama3", "gemma") and stripped:
            continue  # these trim what was said: that rewrites the past, see the next test
        for before, after in zip(rollout.turns, rollout.turns[1:], strict=False):
            assert policy.extends(before, after)
            given = after.reply.trace.prompt[len(before.reply.trace.prompt) + len(before.reply.trace.reply) :]
            text = policy.tokenizer.decode(given)
            closed = before.reply.stop == "end"
            assert (end in text) != closed, "the end of turn appears once: sampled, or given when it was cut off"
            assert "and then?" in text
        assert len(pt.rows(policy, rollout, torch.zeros(rollout.decisions))) == 1
    pt.check_policy(policy, [task()], three_turns)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_prompt_is_what_the_template_renders(family):
    policy = policy_for(*FAMILIES[family])
    messages = (pt.user("How much is 4+5?"),)
    ids, text = policy.chat.prompt(messages)
    plain = policy.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
    assert list(ids) == (plain if isinstance(plain, list) else plain["input_ids"])
    assert policy.tokenizer.decode(ids) == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["yes", " yes\n", "  ", "yes <b>", "a\n\nb "])
def test_space_around_a_reply_neither_doubles_nor_breaks_the_row(family, text):
    policy = policy_for(*FAMILIES[family])
    prompt = (pt.user("question"),)
    turn = policy.demonstrate(prompt, text)
    messages = (*prompt, pt.assistant(turn.reply), pt.user("sure?"))
    again = policy.demonstrate(messages, "no")
    assert policy.extends(turn, again)
    given = again.reply.trace.prompt[len(turn.reply.trace.prompt) + len(turn.reply.trace.reply) :]
    shown = policy.tokenizer.decode(given)
    assert shown == shown.strip() or not shown.startswith("  ")
    assert shown.lstrip() in policy.chat.text(messages)


def test_history_that_was_retyped_is_not_passed_off_as_sampled(make):
    policy = make()
    first = policy.sample([pt.Ask((pt.user("hi"),), seed=1)])[0]
    turn = pt.Turn(pt.Ask((pt.user("hi"),)), first)
    other = (pt.user("hi, changed"), pt.assistant(first), pt.user("more"))
    [second] = policy.sample([pt.Ask(other)])
    assert not policy.extends(turn, pt.Turn(pt.Ask(other), second))


def reply_of(policy, prompt, text):
    return policy.demonstrate(prompt, text)


def test_another_tokenizers_reply_is_read_as_text(make):
    """A judge with its own tokenizer is shown what the policy said: the policy's token ids mean nothing to it."""
    policy, judge = make(), policy_for(*FAMILIES["llama3"])
    turn = policy.demonstrate((pt.user("hi"),), "yes")
    messages = (pt.user("hi"), pt.assistant(turn.reply), pt.user("right?"))
    ids, text = judge.chat.prompt(messages)
    assert list(ids) == judge.chat.encode(text)


def test_what_another_player_said_in_between_is_given_and_the_row_goes_on(make):
    policy = make()
    turn = policy.demonstrate((pt.user("hi"),), "yes")
    other = pt.Reply("I doubt it", torch.zeros(0), None)
    messages = (pt.user("hi"), pt.assistant(turn.reply), pt.user("and you?"), pt.assistant(other), pt.user("so?"))
    again = policy.demonstrate(messages, "no")
    assert policy.extends(turn, again)
    assert "I doubt it" in policy.tokenizer.decode(again.reply.trace.prompt)


def test_a_template_that_drops_old_thinking_opens_a_new_row():
    policy = policy_for(*FAMILIES["qwen3"])
    prompt = (pt.user("question"),)
    thought = reply_of(policy, prompt, "<think>\nhm\n</think>\n\nyes")
    plain = reply_of(policy, prompt, "yes")
    for turn, extended in ((thought, False), (plain, True)):
        messages = (*prompt, pt.assistant(turn.reply), pt.user("sure?"))
        ids, text = policy.chat.prompt(messages)
        again = policy.demonstrate(messages, "yes")
        assert policy.extends(turn, again) is extended
        assert policy.tokenizer.decode(ids) == text == policy.chat.text(messages)
        one = pt.Rollout(task(), [turn, again])
        assert len(pt.rows(policy, one, torch.zeros(one.decisions))) == (1 if extended else 2)


def test_a_template_that_moves_the_system_prompt_opens_a_new_row():
    policy = policy_for(MISTRAL_SYSTEM_LAST, "</s>")
    prompt = (pt.system("be brief"), pt.user("question"))
    turn = policy.demonstrate(prompt, "yes")
    messages = (*prompt, pt.assistant(turn.reply), pt.user("sure?"))
    again = policy.demonstrate(messages, "no")
    assert not policy.extends(turn, again)
    assert policy.tokenizer.decode(again.reply.trace.prompt).count("be brief") == 1


def test_the_stop_token_is_sampled_or_given_never_both(make):
    policy = make()
    prompt = (pt.user("hi"),)
    done = policy.demonstrate(prompt, "yes")
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert done.reply.trace.reply[-1] == end
    cut = pt.Reply("yes", torch.zeros(1), pt_tokens(done, drop_last=True), "length")
    for reply, count in ((done.reply, 0), (cut, 1)):
        ids, _ = policy.chat.prompt((*prompt, pt.assistant(reply), pt.user("more")))
        given = ids[len(reply.trace.prompt) + len(reply.trace.reply) :]
        assert given.count(end) == count + 1  # one closes the user's message


def pt_tokens(turn, drop_last):
    from dataclasses import replace

    tokens = turn.reply.trace
    return replace(tokens, reply=tokens.reply[:-1]) if drop_last else tokens


def test_a_tokenizer_without_a_template_is_refused_with_the_remedy():
    bare = copy.deepcopy(tiny.tokenizer())
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template: pass `template=chatml`"):
        Chat(bare)
    with pytest.raises(ValueError, match="neither one of"):
        Chat(bare, "chatlm")
    assert Chat(bare, "plain").text([pt.user("2+2=")]) == "2+2=\n"
    assert Chat(bare, "chatml").end == "<|im_end|>"


def test_supervised_rows_learn_replies_only(make):
    from posttrain.chat import unroll
    from posttrain.row import demonstration_rows

    policy = make()
    talk = (pt.user("a?"), pt.assistant("one"), pt.user("b?"), pt.assistant("two"))
    [row] = demonstration_rows(policy, pt.Demonstration(talk))
    ids, sampled = unroll(row.turns)
    assert policy.tokenizer.decode([ids[i] for i in sampled]) == "one<|im_end|>two<|im_end|>"
    whole = policy.chat.text(talk, prompt=False)
    assert policy.tokenizer.decode(ids) == whole.rstrip("\n")
