"""The chat templates that ship, and those of a base: what is learnt of a conversation is the assistant's words and the
token that ends its turn, in every format, and nothing after it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from conftest import SPECIAL, make_random_model
from test_train import PAIRS, settings_of, sft_settings, train, validation
from test_train_tokens import template
from transformers import AutoTokenizer

from rlaif.engines.chat import Chat
from rlaif.errors import InputError
from rlaif.records import Message
from rlaif.train import chats, pairs, sft, tokens
from rlaif.train.examples import Demonstration, PreferencePair

TURNS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
TURNS += ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base without a chat template, whose tokenizer knows the turn tokens of every format; it ends with <|end|>."""
    return make_random_model(tmp_path_factory.mktemp("chat") / "base", special=[*SPECIAL, *TURNS], template=None)


def message(turn: str) -> Message:
    role = {"s": "system", "u": "user", "a": "assistant"}[turn[0]]
    return Message.model_validate({"role": role, "content": turn[2:]})


def talk(*turns: str) -> list[Message]:
    return [message(turn) for turn in turns]


def chat_of(base: Path, text: str | None, **settings: Any) -> Chat:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = text
    return tokens.chat_of(sft_settings(**settings), tokenizer, tokenizer.eos_token_id, base)


def shown(chat: Chat, messages: Sequence[Message]) -> str:
    """The conversation's tokens as text, what is learnt between ⟦ and ⟧."""
    (segments,) = tokens.conversations(chat, [messages])
    parts = [(chat.tokenizer.decode(ids), learnt) for ids, learnt in segments]
    return "".join(f"⟦{text}⟧" if learnt else text for text, learnt in parts)


END = "<|end|>"
WRITTEN = {
    "chatml": [
        f"<|im_start|>system\ns{END}\n<|im_start|>user\nhi{END}\n<|im_start|>assistant\n⟦ok{END}⟧",
        f"<|im_start|>user\nhi{END}\n<|im_start|>assistant\n⟦ok{END}⟧\n<|im_start|>user\nyo{END}\n"
        f"<|im_start|>assistant\n⟦y{END}⟧",
    ],
    "zephyr": [
        f"<|system|>\ns{END}\n<|user|>\nhi{END}\n<|assistant|>\n⟦ok{END}⟧",
        f"<|user|>\nhi{END}\n<|assistant|>\n⟦ok{END}⟧\n<|user|>\nyo{END}\n<|assistant|>\n⟦y{END}⟧",
    ],
    "tulu": [
        f"<|system|>\ns\n<|user|>\nhi\n<|assistant|>\n⟦ok{END}⟧",
        f"<|user|>\nhi\n<|assistant|>\n⟦ok{END}⟧\n<|user|>\nyo\n<|assistant|>\n⟦y{END}⟧",
    ],
    "tiny": [
        f"<|system|> s{END}<|user|> hi{END}<|assistant|>⟦ ok{END}⟧",
        f"<|user|> hi{END}<|assistant|>⟦ ok{END}⟧<|user|> yo{END}<|assistant|>⟦ y{END}⟧",
    ],
    "mistral": [
        f"[INST] s\n\nhi[/INST]⟦ ok{END}⟧",
        f"[INST] hi[/INST]⟦ ok{END}⟧[INST] yo[/INST]⟦ y{END}⟧",
    ],
    "llama3": [
        "<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦ok<|eot_id|>⟧",
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "⟦ok<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\nyo<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦y<|eot_id|>⟧",
    ],
    "qwen": [
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦ok<|im_end|>⟧",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦ok<|im_end|>⟧\n<|im_start|>user\nyo<|im_end|>\n"
        "<|im_start|>assistant\n⟦y<|im_end|>⟧",
    ],
    "gemma": [
        "<start_of_turn>user\ns\n\nhi<end_of_turn>\n<start_of_turn>model\n⟦ok<end_of_turn>⟧",
        "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n⟦ok<end_of_turn>⟧\n<start_of_turn>user\nyo"
        "<end_of_turn>\n<start_of_turn>model\n⟦y<end_of_turn>⟧",
    ],
}
CLOSING = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>"}


def test_every_shipped_template_is_here() -> None:
    assert {path.stem for path in chats.shipped()} == set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_learnt_is_the_assistants_words_and_the_end_of_its_turn(base: Path, name: str) -> None:
    chat = chat_of(base, template(name), system="merge" if name == "gemma" else "keep")
    with_system, two_turns = WRITTEN[name]
    assert shown(chat, talk("s:s", "u:hi", "a:ok")) == with_system
    assert shown(chat, talk("u:hi", "a:ok", "u:yo", "a:y")) == two_turns
    (last,) = tokens.completions(chat, [(tuple(talk("u:hi", "a:ok", "u:yo")), "y")])
    prompt, completion = map(chat.tokenizer.decode, last)
    assert prompt + f"⟦{completion}⟧" == two_turns.replace("⟦", "", 1).replace("⟧", "", 1)
    ends = {END, CLOSING.get(name, END)}
    assert {chat.tokenizer.convert_ids_to_tokens(end) for end in chat.ends} == ends


@pytest.mark.parametrize("name", WRITTEN)
def test_without_its_marks_a_template_teaches_the_same(base: Path, name: str) -> None:
    """Case 16 of training: the spans follow from the prompts that a conversation begins with."""
    marked = template(name)
    bare = marked.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    bare = bare.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert bare != marked and not tokens.is_marked(chat_of(base, bare))
    for messages in (talk("u:hi", "a:ok"), talk("u:hi", "a:ok", "u: yo ", "a: y\n", "u:z", "a:\nx")):
        assert shown(chat_of(base, bare), messages) == shown(chat_of(base, marked), messages)


# Qwen3's own way: a turn has its empty thought while it is the last, and none once another follows.
FORGETTING = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m['role'] + '\\n' -}}
{%- if m['role'] == 'assistant' and loop.last -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{{- m['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


def test_a_template_that_rewrites_earlier_turns_trains_the_last_and_names_the_nearest_shipped_one(base: Path) -> None:
    chat = chat_of(base, FORGETTING, template_arguments={"enable_thinking": False})
    two = talk("u:hi", "a:ok", "u:yo", "a:y")
    with pytest.raises(InputError, match="marks no assistant turn") as refused:
        tokens.conversations(chat, [two])
    assert "`template: prompts/chat/qwen.jinja`" in str(refused.value) and "`turns: last`" in str(refused.value)
    columns, _ = sft.tokenize(chat, [Demonstration(tuple(two), "last")], 200)
    learnt = [
        token for token, label in zip(columns["input_ids"][0], columns["labels"][0], strict=True) if label != -100
    ]
    assert chat.tokenizer.decode(learnt) == "y<|im_end|>"
    assert chat.tokenizer.decode(columns["input_ids"][0]).endswith("<think>\n\n</think>\n\ny<|im_end|>")


def test_a_system_message_of_a_templates_own_hides_no_format(base: Path) -> None:
    """As SmolLM2's has it, and Qwen2.5's, where a conversation has no system message."""
    own = "{{- '<|im_start|>system\nYou are a helpful assistant, and that is all that you are.<|im_end|>\n' -}}"
    assert chats.nearest_shipped(chat_of(base, own + template("qwen"))) == "prompts/chat/qwen.jinja"


def test_no_template_is_suggested_for_a_format_like_none(base: Path) -> None:
    odd = "{% for m in messages %}{{ (m['role'] | upper) ~ ' SAYS ' ~ m['content'] ~ ' (over and out)' }}{% endfor %}"
    assert chats.nearest_shipped(chat_of(base, odd)) is None
    for name in sorted(set(WRITTEN) - {"qwen", "chatml"}):
        assert chats.nearest_shipped(chat_of(base, template(name))) == f"prompts/chat/{name}.jinja"


def test_thinking_is_switched_off_by_a_template_argument_in_training_as_in_use(base: Path, tmp_path: Path) -> None:
    changed = {"template_arguments": {"enable_thinking": False}, "batch_size": 24}
    train("sft", base, tmp_path / "out", template=template("qwen"), **changed)
    trained = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "hi"}]
    text = trained.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    chat = chat_of(base, template("qwen"), template_arguments={"enable_thinking": False})
    assert shown(chat, talk("u:hi", "a:ok")).endswith("<think>\n\n</think>\n\n⟦ok<|im_end|>⟧")
    again = chat_of(tmp_path / "out", trained.chat_template, template_arguments={"enable_thinking": False})
    assert again.template.source == trained.chat_template  # no argument is set twice
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(trained.convert_ids_to_tokens(ends)) == ["<|end|>", "<|im_end|>"]


@pytest.mark.parametrize("value", [True, False, 3, -0.5, 'it\'s "ä" 𝄞 \\ {{ 1 }}\n'])
def test_a_template_argument_is_what_the_template_gets(base: Path, value: Any) -> None:
    probe = "{% set kind = v is string %}{{ v ~ '|' ~ kind }}" + template("tiny")
    chat = chat_of(base, probe, template_arguments={"v": value})
    assert chat.render(talk("u:hi")).startswith(f"{value}|{isinstance(value, str)}")


@pytest.mark.parametrize("name", ["1x", "a b", "", "a%}{{1}}"])
def test_a_template_argument_has_a_name_of_a_variable(name: str) -> None:
    with pytest.raises(ValueError, match="string_pattern_mismatch"):
        sft_settings(template_arguments={name: 1})


def test_a_system_message_that_the_format_lacks_is_refused_by_row_merged_or_skipped(base: Path) -> None:
    """Case 16 of training: Gemma."""
    rows = [Demonstration(tuple(talk("u:hi", "a:ok"))), Demonstration(tuple(talk("s:be short", "u:hi", "a:ok")))]
    two = [PreferencePair(tuple(talk("u:hi")), "ok", "y"), PreferencePair(tuple(talk("s:be short", "u:hi")), "ok", "y")]
    chat = chat_of(base, template("gemma"))
    for tokenized in (sft.tokenize, pairs.tokenize):
        given: Any = rows if tokenized is sft.tokenize else two
        with pytest.raises(InputError, match=r"system, user, assistant \(row 2, which begins 'be short'\)") as refused:
            tokenized(chat, given, 100)
        assert "`system: merge`" in str(refused.value) and "`system: skip`" in str(refused.value)
        columns, counts = tokenized(chat, given, 100, system="skip")
        assert (counts.kept, counts.dropped) == (1, {"system-message": 1})
        columns, counts = tokenized(chat_of(base, template("gemma"), system="merge"), given, 100)
        text = chat.tokenizer.decode(columns["input_ids" if given is rows else "prompt_ids"][1])
        assert counts.kept == 2 and text.startswith("<start_of_turn>user\nbe short\n\nhi<end_of_turn>\n")


def test_merged_in_training_is_merged_in_use(base: Path, tmp_path: Path) -> None:
    examples = [Demonstration(tuple(talk("s:be short", f"u:{i}", "a:ok"))) for i in range(4)]
    record = train("sft", base, tmp_path / "out", examples=examples, template=template("gemma"), system="merge")
    trained = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "system", "content": "be short"}, {"role": "user", "content": "1"}]
    text = trained.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == "<start_of_turn>user\nbe short\n\n1<end_of_turn>\n<start_of_turn>model\n"
    assert record.kept == 4


@pytest.mark.parametrize("method", ["dpo", "rm"])
def test_a_base_without_a_chat_template_is_given_one_by_every_trainer(base: Path, tmp_path: Path, method: str) -> None:
    """Case 12 of training."""
    with pytest.raises(InputError, match="the base model has no chat template.*template"):
        train(method, base, tmp_path / "out")
    record = train(method, base, tmp_path / "out", template=template("llama3"), batch_size=24)
    assert record.kept == len(PAIRS) + 4
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template("llama3")
    assert settings_of(method, template="mine.jinja").chat_template == "mine.jinja"


def test_words_that_spell_any_of_the_end_tokens_are_dropped(base: Path) -> None:
    chat = chat_of(base, template("llama3"))
    rows = [Demonstration(tuple(talk("u:hi", f"a:a{end}b"))) for end in (END, "<|eot_id|>", "<|im_end|>")]
    _, counts = sft.tokenize(chat, rows, 100)
    assert (counts.kept, counts.dropped) == (1, {"end-token-inside": 2})


# ---------------------------------------------------------------- turns that are context


def test_masked_turns_are_context_and_nothing_follows_the_last_learnt_one(base: Path, tmp_path: Path) -> None:
    """Case 8 of training: `weight: 0` and `train: false` of a turn."""
    chat = chat_of(base, template("tiny"))
    turns = tuple(talk("u:hi", "a:ok", "u:yo", "a:y", "u:z", "a:x"))
    one = f"<|user|> hi{END}<|assistant|> ok{END}"
    two = f"{one}<|user|> yo{END}<|assistant|> y{END}"
    for masked, text, learnt in (
        ((1, 5), two, f" y{END}"),
        ((3, 5), one, f" ok{END}"),
        ((5,), two, f" ok{END} y{END}"),
    ):
        columns, _ = sft.tokenize(chat, [Demonstration(turns, masked=masked)], 200)
        labels = [token for token in columns["labels"][0] if token != -100]
        assert chat.tokenizer.decode(columns["input_ids"][0]) == text and chat.tokenizer.decode(labels) == learnt
    example = Demonstration(turns, masked=(1, 5))
    whole = train(
        "sft", base, tmp_path / "whole", examples=[example, *validation([example])], template=template("tiny")
    )
    alone = train(
        "sft",
        base,
        tmp_path / "last",
        examples=[Demonstration(turns[:4], "last")],
        template=template("tiny"),
    )
    assert whole.metrics["first_loss"] == pytest.approx(alone.metrics["first_loss"], abs=1e-6)


# ---------------------------------------------------------------- excess length


def test_what_is_too_long_is_cut_dropped_or_refused_by_its_name(base: Path) -> None:
    chat = chat_of(base, template("tiny"))
    rows = [Demonstration(tuple(talk("u:hi", "a:ok"))), Demonstration(tuple(talk("u:hi there", "a:ok")))]
    two = [PreferencePair(row.messages[:1], "ok", "y") for row in rows]
    for tokenized, given in ((sft.tokenize, rows), (pairs.tokenize, two)):
        any_tokenize: Any = tokenized
        length = 10  # of the first row; the second has six more
        for excess, counted in (("truncate", (2, 1, {})), ("drop", (1, 0, {"too-long": 1}))):
            _, counts = any_tokenize(chat, given, length, excess)
            assert (counts.kept, counts.cut, counts.dropped) == counted
        with pytest.raises(InputError, match="row 2 has 6 tokens more than `max_length` allows.*`truncate` or `drop`"):
            any_tokenize(chat, given, length, "raise")
        assert any_tokenize(chat, given, length + 6, "raise")[1].kept == 2


# ---------------------------------------------------------------- as published

# What the published template of each format makes of CHAT, written out by hand, without the BOS that `tokens.beginning`
# puts before ours. Each was read where it is named, in a public repository.
CHAT = ["s:be short", "u:hi", "a:ok", "u:yo"]
PUBLISHED = {
    # HuggingFaceH4/zephyr-7b-beta: huggingface/huggingface.js, packages/jinja/test/e2e.test.js
    "zephyr": "<|system|>\nbe short</s>\n<|user|>\nhi</s>\n<|assistant|>\nok</s>\n<|user|>\nyo</s>\n<|assistant|>\n",
    # teknium/OpenHermes-2.5-Mistral-7B: ggml-org/llama.cpp, tests/test-chat-template.cpp; its end token is <|im_end|>
    "chatml": (
        "<|im_start|>system\nbe short</s>\n<|im_start|>user\nhi</s>\n<|im_start|>assistant\nok</s>\n"
        "<|im_start|>user\nyo</s>\n<|im_start|>assistant\n"
    ),
    # Qwen/Qwen2.5: huggingface/swift-jinja, Tests/Templates/ChatTemplateTests.swift; without a system message theirs
    # writes one of its own
    "qwen": (
        "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n"
        "<|im_start|>user\nyo<|im_end|>\n<|im_start|>assistant\n"
    ),
    # Llama 3: ggml-org/llama.cpp, tests/test-chat-template.cpp
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nbe short<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nok<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nyo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    # google/gemma-7b-it, after `system: merge`: ggml-org/llama.cpp, tests/test-chat-template.cpp
    "gemma": (
        "<start_of_turn>user\nbe short\n\nhi<end_of_turn>\n<start_of_turn>model\nok<end_of_turn>\n"
        "<start_of_turn>user\nyo<end_of_turn>\n<start_of_turn>model\n"
    ),
    # allenai/open-instruct, open_instruct/dataset_transformation.py
    "tulu": "<|system|>\nbe short\n<|user|>\nhi\n<|assistant|>\nok</s>\n<|user|>\nyo\n<|assistant|>\n",
    # Mistral 7B Instruct v0.3: mistralai/cookbook, concept-deep-dive/tokenization/chat_templates.md. It puts a system
    # message before the first user's (V1) or the last one's (V3); open-instruct's "mistral" puts it before the first
    "mistral": "[INST] be short\n\nhi[/INST] ok</s>[INST] yo[/INST]",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shipped_template_asks_as_the_published_one_does(base: Path, name: str) -> None:
    chat = chat_of(base, template(name), system="merge" if name == "gemma" else "keep")
    assert chat.render(talk(*CHAT), generation_prompt=True) == PUBLISHED[name].replace("</s>", END)


def test_only_our_own_format_is_published_nowhere() -> None:
    assert set(WRITTEN) - set(PUBLISHED) == {"tiny"}


# ---------------------------------------------------------------- a real model's own template


def test_a_real_template_without_marks_is_read_as_it_is_asked() -> None:
    folder = Path(os.environ.get("RLAIF_SMOLLM2", Path(__file__).parents[1] / ".real/model"))
    if not (folder / "tokenizer.json").exists():
        pytest.skip("no SmolLM2-135M-Instruct: `make real` makes it, or name its folder in RLAIF_SMOLLM2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokens.chat_of(sft_settings(), tokenizer, tokenizer.eos_token_id, folder)
    turns = talk("s:be short", "u:hi", "a:ok", "u:yo", "a:y")
    own = tokenizer.apply_chat_template([m.model_dump() for m in turns], tokenize=False)
    text = shown(chat, turns)
    assert text.replace("⟦", "").replace("⟧", "") == own.rstrip("\n")
    assert text.count("⟦ok<|im_end|>⟧") == text.count("⟦y<|im_end|>⟧") == 1
    assert chats.nearest_shipped(chat) in ("prompts/chat/qwen.jinja", "prompts/chat/chatml.jinja")
