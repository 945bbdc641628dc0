"""Reasoning models: their thinking is kept for `show`, and is in no data, prompt, verifier or soft verdict."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from echo import write_prompts
from inside import rlaif
from serving import Answer, completion, scripted
from test_engine_openai import ask, bad, good, make
from test_servers import RUBRIC, Body, message, ran

from rlaif.engines.protocol import Reply
from rlaif.engines.scheduler import stored_completion
from rlaif.engines.thinking import marked, parted
from rlaif.engines.transformers import TransformersEngine
from rlaif.errors import EngineError

SECRET = "Zanzibar"  # only the thinking says it

PARTS = {
    "plain": ("The Rhine.", None, "The Rhine."),
    "a block": ("<think>\nhm\n</think>\n\nThe Rhine.", "hm", "The Rhine."),
    "in a line": ("<think>hm</think>The Rhine.", "hm", "The Rhine."),
    "empty": ("<think>\n\n</think>\n\nThe Rhine.", "", "The Rhine."),
    "without its opening": ("hm\n</think>\n\nThe Rhine.", "hm", "The Rhine."),
    "without its opening, in a line": ("Let me see.</think>The Rhine.", "Let me see.", "The Rhine."),
    "only the end": ("</think>\n\nThe Rhine.", "", "The Rhine."),
    "never closed": ("<think>hm", "hm", ""),
    "of another name": ("<thinking>hm</thinking>\nThe Rhine.", "hm", "The Rhine."),
    "in capitals": ("<THINK>hm</THINK>The Rhine.", "hm", "The Rhine."),
    "reasoning": ("<reasoning>hm</reasoning>\nThe Rhine.", "hm", "The Rhine."),
    "of Magistral": ("[THINK]hm[/THINK]The Rhine.", "hm", "The Rhine."),
    "of Kimi": ("◁think▷hm◁/think▷The Rhine.", "hm", "The Rhine."),
    "of Seed": ("<seed:think>hm</seed:think>The Rhine.", "hm", "The Rhine."),
    "of gpt-oss": ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>The Rhine.",
                   "hm", "The Rhine."),
    "two": ("<think>a</think>\n<think>b</think>\nThe Rhine.", "a\n\nb", "The Rhine."),
    "between paragraphs": ("The Rhine.\n<think>more?</think>\nIt is long.", "more?", "The Rhine.\n\nIt is long."),
    "a quoted end in it": ('<think>It says "</think> 1".</think>\nThe Rhine.', 'It says "</think> 1".', "The Rhine."),
    "about the mark": ("Close it with the </think> tag.", None, "Close it with the </think> tag."),
    "the mark in code": ("Write `</think>` at its end.", None, "Write `</think>` at its end."),
    "a block of code": ("```\n<think>hm</think>\n```", None, "```\n<think>hm</think>\n```"),
    "HTML": ("<p>The <b>Rhine</b>.</p>", None, "<p>The <b>Rhine</b>.</p>"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_thinking_is_told_from_the_answer(case: str) -> None:
    text, thinking, answer = PARTS[case]
    assert parted(text)[:2] == (thinking, answer) and parted(text).clear
    assert marked(text) or thinking is None


@pytest.mark.parametrize(
    "text",
    [
        "The first says </think> [[1]] and I agree",  # quoted by a judge: who speaks here?
        "a\n</think>\nb\n</think>\nc",
        "<think>a</think>\nb\n</think>\nc",
    ],
)
def test_where_the_end_is_not_clear_there_is_no_answer(text: str) -> None:
    assert parted(text).answer == "" and not parted(text).clear


def test_what_becomes_of_it() -> None:
    answer: dict[str, Any] = {"text": "<think>hm</think>\nThe Rhine.", "token_logprobs": [-1.0]}
    apart = {"text": "The Rhine.", "thinking": "hm"}
    stripped = stored_completion("m", "k", answer)
    assert (stripped.text, stripped.thinking, stripped.token_logprobs) == ("The Rhine.", "hm", None)
    assert stored_completion("m", "k", apart).thinking == "hm"
    assert stored_completion("m", "k", answer, "keep").text == answer["text"]
    assert stored_completion("m", "k", apart, "keep").text == "<think>\nhm\n</think>\n\nThe Rhine."
    for thoughtful in (answer, apart):
        with pytest.raises(EngineError, match="thinks before it answers"):
            stored_completion("m", "k", thoughtful, "fail")
    assert stored_completion("m", "k", {"text": "x"}, "fail").text == "x"


# ---------------------------------------------------------------- log-probabilities

TOP = {"1": 0.98, "2": 0.01}


def tokens(*texts: str, top: dict[int, dict[str, float]]) -> Body:
    """Log-probabilities of these tokens; `top` by the index of the token."""
    content = [
        {"token": text, "logprob": -0.1,
         "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.get(at, {"x": 1.0}).items()]}
        for at, text in enumerate(texts)
    ]  # fmt: skip
    return {"content": content}


BOUND = {
    "no thinking": (completion("1"), ("1",), 0),
    "an end token": (completion("1"), ("1", "<|im_end|>"), 0),
    "white space": (completion("1"), (" 1", "\n"), 0),
    "white space of its own": (completion("1"), ("\n", "1"), 1),
    "of a vocabulary": (completion("1."), ("▁1", ".", "</s>"), 0),
    "thinking in the content": (
        completion("<think>\n2 is\n</think>\n\n1"),
        ("<think>", "\n", "2", " is\n", "</think>", "\n\n", "1"),
        6,
    ),
    "without its opening": (completion("2 is bad.\n</think>\n1"), ("2", " is bad.\n", "</think>", "\n", "1"), 4),
    "thinking cut off, its tokens reported": (
        message(content="1", reasoning_content="2 is"),
        ("<think>", "2", " is", "</think>", "1"),
        4,
    ),
    "thinking cut off, with its tokens": (message(content="1", reasoning_content="2 is"), ("1",), 0),
    "thinking cut off without a word": (completion("1"), ("2", " is", "</think>", "1", "<|eot_id|>"), 3),
}


@pytest.mark.parametrize("case", BOUND)
def test_a_soft_verdict_reads_the_token_where_the_content_begins(case: str) -> None:
    body, texts, at = BOUND[case]
    wrong = {index: {"2": 0.98, "1": 0.01} for index in range(len(texts))}
    body["choices"][0]["logprobs"] = tokens(*texts, top=wrong | {at: TOP})
    with scripted([Answer(body)]) as script:
        [reply] = good(make(script.base_url), ask(alternatives=("1", "2")))
    assert reply.alternatives == {"1": pytest.approx(math.log(0.98)), "2": pytest.approx(math.log(0.01))}


UNBOUND = {
    "the thinking's tokens alone": (message(content="1", reasoning_content="2 is"), ("2", " is")),
    "tokens of another text": (completion("1"), ("2", " is", " better")),
    "no texts, and thinking": (message(content="1", reasoning_content="2 is"), ("", "")),
    "no end of the answer": (completion("<think>2</think>1"), ("<think>", "2")),
}


@pytest.mark.parametrize("case", UNBOUND)
def test_log_probabilities_that_do_not_fit_the_content_are_none(case: str) -> None:
    body, texts = UNBOUND[case]
    body["choices"][0]["logprobs"] = tokens(*texts, top={at: {"2": 0.98, "1": 0.01} for at in range(len(texts))})
    with scripted([Answer(body)]) as script:
        engine = make(script.base_url)
        told: list[str] = []
        engine.tell = told.append
        [reply] = good(engine, ask(alternatives=("1", "2")))
    assert reply.alternatives == {"1": None, "2": None}
    assert len(told) == 1 and "do not fit" in told[0]


# ---------------------------------------------------------------- tokens of its own


def test_thinking_has_tokens_of_its_own() -> None:
    cut = message(content=None, reasoning_content="hm")
    cut["choices"][0]["finish_reason"] = "length"
    with scripted([Answer(cut)]) as script:
        error = bad(make(script.base_url, thinking_tokens=100), ask(max_tokens=2))
        assert len(script.requests) == 1 and script.requests[0]["body"]["max_tokens"] == 102
    assert error.cause == "cut-thinking" and "102 tokens" in str(error) and "`thinking_tokens`" in str(error.fix)
    with scripted([Answer(completion("<think>hm", finish_reason="length"))]) as script:
        assert bad(make(script.base_url), ask(max_tokens=2)).cause == "cut-thinking"
        assert good(make(script.base_url, thinking="keep"), ask(max_tokens=2))[0].text == "<think>hm"


# ---------------------------------------------------------------- whole runs

PIPELINE = """\
name: thoughtful
models:
  m: {engine: openai, model: m, base_url: "URL", thinking: MODE}
stages:
  - prompts: {path: prompts.jsonl}
  - sample: {models: [m], per_prompt: 2}
  - verify: {checks: [{regex: {pattern: '^my answer'}}]}
  - compare: {model: m, constitution: constitutions/helpful-harmless.yaml, verdicts: hard, reasons: true}
  - rate: {model: m, rubric: rubric.yaml}
  - pair: {rule: best-worst}
  - revise: {from: sample, model: m, constitution: constitutions/helpful-harmless.yaml, revisions: 1}
  - measure: {models: [m], rate: {model: m, rubric: rubric.yaml}}
"""


def thoughtful(form: str) -> Any:
    """A model that thinks before all that it says, in one of the forms."""

    def thinks(text: str, number: int) -> Body:
        thought = f"{SECRET} {number}: the answer may be [[2]], rating 5."
        if form == "apart":
            return {"content": text, "reasoning_content": thought}
        opening = "" if form == "unopened" else "<think>\n"
        return {"content": f"{opening}{thought}\n</think>\n\n{text}"}

    def answer(body: Body) -> Body:
        if "messages" not in body:
            return {"data": [{"id": "m"}]}
        assert SECRET not in json.dumps(body)  # in no prompt
        if "response_format" in body:
            shown = body["response_format"]["json_schema"]["schema"]["properties"]
            texts = [json.dumps({key: {"rationale": "x", "rating": 5 - int(key)} for key in shown})]
        elif len(body["messages"]) > 1:  # after its reasons
            texts = ["1"]
        else:
            texts = [f"my answer {number} {body.get('seed', 0)}" for number in range(body.get("n") or 1)]
        whole = completion(*texts)
        for number, choice in enumerate(whole["choices"]):
            choice["message"] = {"role": "assistant", **thinks(texts[number], number)}
        return whole

    return answer


@pytest.mark.parametrize("form", ["opened", "unopened", "apart"])
def test_a_thinking_model_through_every_stage(form: str, tmp_path: Path) -> None:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    with scripted([Answer(thoughtful(form))]) as script:
        done = ran(tmp_path, script.base_url, PIPELINE, prompts=16, MODE="strip")
    assert done.code == 0, done.out + done.err
    thinks_in_show_alone(tmp_path, "thoughtful")


def thinks_in_show_alone(folder: Path, name: str) -> None:
    """No file of a run of all six stages holds a word of the thinking outside the field that `show` shows."""
    import pyarrow.parquet

    run = folder / "runs" / name
    manifest = json.loads((run / "manifest.json").read_text())
    kinds = {stage["kind"] for stage in manifest["stages"]}
    assert {"sample", "verify", "compare", "rate", "revise", "measure"} <= kinds
    assert all(stage["failed"] == 0 for stage in manifest["stages"] if "failed" in stage)
    assert any("thinks before it answers" in note for note in manifest["notes"])
    seen: Counter[str] = Counter()
    for path in (path for path in run.rglob("*") if path.is_file()):
        seen[path.suffix] += 1
        if path.suffix == ".parquet":
            held = json.dumps(pyarrow.parquet.read_table(path).to_pylist(), default=str)
        elif path.suffix == ".jsonl":
            held = json.dumps([without(json.loads(line)) for line in path.read_text().splitlines()])
        else:
            held = path.read_bytes().decode(errors="replace")
        assert SECRET not in held, path
    assert seen[".parquet"] and seen[".jsonl"] >= 6 and seen[".json"]
    for form in ("sft", "preference"):
        assert rlaif(folder, "export", f"runs/{name}", "--format", form, "--to", f"{form}.jsonl").code == 0
        assert SECRET not in (folder / f"{form}.jsonl").read_text()
    shown = rlaif(folder, "show", f"runs/{name}", "1").out
    assert SECRET in shown and "it thought" in shown


def without(value: Any) -> Any:
    """A record without its thinking."""
    if isinstance(value, dict):
        return {key: without(one) for key, one in value.items() if key != "thinking"}
    return [without(one) for one in value] if isinstance(value, list) else value


def test_thinking_that_is_kept_or_fails(tmp_path: Path) -> None:
    pipeline = PIPELINE.split("  - verify")[0]
    with scripted([Answer(thoughtful("apart"))]) as script:
        ran(tmp_path, script.base_url, pipeline, prompts=3, MODE="keep")
        rows = (tmp_path / "runs/thoughtful/stages/02-sample.jsonl").read_text()
        assert "<think>\\n" + SECRET in rows
        sent = len(script.requests)
        failed = rlaif(tmp_path, "run", "p.yaml", "models.m.thinking=fail")
        assert len(script.requests) <= sent + 1  # nothing is paid for again; the models are listed
    assert failed.code == 1 and "thinks before it answers" in failed.out + failed.err


# ---------------------------------------------------------------- models of this process

# As DeepSeek-R1, QwQ and Qwen3-Thinking have it: the template opens the thinking, and a completion begins within it.
OPENS = (
    "{%- for m in messages -%}{{ '<|' + m.role + '|> ' + m.content + ' <|end|> ' }}{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|> MARK\n' }}{% endif -%}"
)
PLAIN = OPENS.replace(" MARK\\n", "")  # as Qwen3 has it: the model opens its thinking itself
THOUGHT = {"<think>": {SECRET: 1.0}, SECRET: {"maybe": 1.0}, "maybe": {"</think>": 1.0}}
ANSWER = {"my": {"answer": 1.0}, "answer": dict.fromkeys(("one", "two", "three", "four"), 0.25)}
WRITES = {"</think>": {"my": 1.0}, **ANSWER}
JUDGES = {"</think>": {"1": 0.9, "2": 0.1}}
SCORES = {"</think>": {"[[7]]": 0.5, "[[5]]": 0.5}}


def chain(folder: Path, after: dict[str, dict[str, float]], template: str, *, special: bool = False) -> Path:
    """A Llama whose next token depends on the last one alone, as `after` says. What it leaves out ends the turn."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    after = THOUGHT | after
    turns = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    words = sorted({*after, *(word for following in after.values() for word in following)})
    vocabulary = {token: i for i, token in enumerate(["<unk>", *turns, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [word for word in words if word.startswith("<")]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", eos_token="<|end|>",
        additional_special_tokens=[*turns[1:], *(marks if special else [])],
    )  # fmt: skip
    fast.chat_template = template.replace("MARK", "<think>")
    size = len(vocabulary)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        for silent in (layer.self_attn.o_proj, layer.mlp.down_proj, model.lm_head):
            silent.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, config.hidden_size))
        scale = math.sqrt(config.hidden_size)  # of a one-hot vector after the norm
        for last, i in vocabulary.items():
            following = after.get(last, {"<think>": 1.0} if last == "<|assistant|>" else {"<|end|>": 1.0})
            model.lm_head.weight[:, i] = -30 / scale
            for word, probability in following.items():
                model.lm_head.weight[vocabulary[word], i] = math.log(probability) / scale
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


LOCAL = """\
name: local
models:
  m: {engine: transformers, path: writer}
  judge: {engine: transformers, path: judge}
  scorer: {engine: transformers, path: scorer}
stages:
  - prompts: {path: prompts.jsonl}
  - sample: {models: [m], per_prompt: 2, sampling: {max_tokens: 16}}
  - verify: {checks: [{regex: {pattern: '^my answer'}}]}
  - compare: {model: judge, constitution: constitutions/helpful-harmless.yaml, verdicts: soft}
  - rate: &rate
      {model: scorer, rubric: prompts/rubrics/critique.yaml, template: prompts/rate-critique.jinja, shown: one,
       answers: score, sampling: {max_tokens: 16, temperature: 1}}
  - pair: {rule: best-worst}
  - revise: {from: sample, model: m, constitution: constitutions/helpful-harmless.yaml, revisions: 1,
             sampling: {max_tokens: 16}}
  - measure: {models: [m], rate: *rate, sampling: {max_tokens: 16}}
"""


@pytest.mark.parametrize(("opens", "special"), [(True, False), (True, True), (False, False), (False, True)])
def test_a_thinking_model_of_this_process_through_every_stage(opens: bool, special: bool, tmp_path: Path) -> None:
    template = OPENS if opens else PLAIN
    for name, words in {"writer": WRITES, "judge": JUDGES, "scorer": SCORES}.items():
        chain(tmp_path / name, words, template, special=special)
    verdicts = "soft" if opens else "hard"  # where the template does not open the thinking, it cannot be closed
    write_prompts(tmp_path, 16)
    (tmp_path / "p.yaml").write_text(LOCAL.replace("soft", verdicts))
    done = rlaif(tmp_path, "run", "p.yaml")
    assert done.code == 0, done.out + done.err
    thinks_in_show_alone(tmp_path, "local")
    rows = [json.loads(line) for line in (tmp_path / "runs/local/stages/04-compare.jsonl").read_text().splitlines()]
    judged = [one for row in rows for one in row.get("comparisons", ())]
    assert judged and all("<think>" not in c["completion"]["text"] for row in rows for c in row["candidates"])
    if opens:  # read where the answer begins: 0.9 in favour of whichever stands first
        assert {one["probability"] for one in judged} == {0.5}


@pytest.mark.parametrize("special", [False, True])
def test_thinking_that_is_cut_in_this_process_is_no_completion(special: bool, tmp_path: Path) -> None:
    chain(tmp_path / "writer", WRITES, OPENS, special=special)
    stages = LOCAL.split("  - verify")[0].replace("max_tokens: 16", "max_tokens: 2")
    pipeline = "\n".join(line for line in stages.splitlines() if "judge" not in line and "scorer" not in line)
    write_prompts(tmp_path, 4)
    (tmp_path / "p.yaml").write_text(pipeline)
    done = rlaif(tmp_path, "run", "p.yaml")
    assert done.code == 1, done.out + done.err
    for line in (tmp_path / "runs/local/stages/02-sample.jsonl").read_text().splitlines():
        assert SECRET not in json.dumps(without(json.loads(line)))
    assert not list((tmp_path / "runs/local").glob("dataset/**/*.parquet"))


def test_a_template_that_opens_the_thinking_has_it_closed_before_an_answer_of_one_token(tmp_path: Path) -> None:
    engine = TransformersEngine("judge", str(chain(tmp_path / "judge", JUDGES, OPENS)), device="cpu")
    [[free], [named]] = asyncio.run(engine.sample([ask(max_tokens=9), ask(max_tokens=1, alternatives=("1", "2"))]))
    asyncio.run(engine.close())
    assert isinstance(free, Reply) and isinstance(named, Reply)
    assert parted(free.text).thinking == f"{SECRET} maybe" and parted(free.text).answer in ("1", "2")
    assert named.text in ("1", "2")
    assert named.alternatives == {
        "1": pytest.approx(math.log(0.9), abs=1e-4),
        "2": pytest.approx(math.log(0.1), abs=1e-4),
    }
