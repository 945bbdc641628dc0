"""The build, step by step: words to tokenizer, base, two policies, the samples of all three, the annotator, cards.

Each training checkpoints into a work folder beside the output and goes on from there when the build is run again; a
finished output folder is replaced file by file, so whoever reads it meanwhile reads the old one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.records import Message, Split, prompt_id, split_of
from rlaif.resources import find
from rlaif.templates import Template
from rlaif.tiny import lexicon
from rlaif.tiny.build import cards, ratings, threads
from rlaif.tiny.build.chat import CONTINUATION
from rlaif.tiny.build.measuring import Annotator, measure_policy
from rlaif.tiny.build.policies import Policy, sample_policies, tune
from rlaif.tiny.build.ratings import Lessons
from rlaif.tiny.build.recipes import (
    CHAT_TEMPLATE,
    PRINCIPLE_TEMPLATES,
    RATE_TEMPLATE,
    annotator_stages,
    base_stages,
    new_annotator,
    new_base,
)
from rlaif.tiny.build.stamp import recipe_digest
from rlaif.tiny.build.tokenizer import ASSISTANT, END, PAD, SYSTEM, USER, build_tokenizer
from rlaif.tiny.build.training import train
from rlaif.tiny.world import Question, gold, parse, questions, words

MINUTES = 80
DEMONSTRATIONS = 900
SAMPLED_PROMPTS = 1500


def build(out: Path, *, scale: float = 1.0, seed: int = 0) -> None:
    """Build everything into `out`. A full build takes about `MINUTES` of one quiet core."""
    torch.set_num_threads(1)  # more threads change the order of sums, and so the weights
    began = time.monotonic()
    work = out.with_name(out.name + ".work")

    def report(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    whole_world = questions(seed)
    training, validation = in_split(whole_world, "train"), in_split(whole_world, "validation")
    chat_template = find(CHAT_TEMPLATE).read_text(encoding="utf-8")
    vocabulary, reader = new_vocabulary(seed), new_vocabulary(seed)
    vocabulary.chat_template, reader.chat_template = CONTINUATION, chat_template
    report(
        f"{len(whole_world)} prompts, {len(training)} of them for training; {len(vocabulary)} tokens in the vocabulary"
    )
    report(f"all of it takes about {max(1, round(MINUTES * scale))} minutes of one quiet core")

    base = Policy(new_base(vocabulary, seed), vocabulary, one_line=True)
    base_progress = train(
        base.model,
        base_stages(vocabulary, training, scale),
        seed=seed,
        checkpoint=work / "base.pt",
        report=report,
    )

    demonstrations = demonstrate(training, seed)
    weak, strong = [
        tune(
            base,
            chat_template,
            draw,
            name=name,
            pools=max(1, round(pools * scale)),
            rates=rates,
            seed=seed,
            checkpoint=work / f"{name}.pt",
            report=report,
        )
        for name, draw, pools, rates in (
            ("weak", lambda rng: rng.choice(demonstrations), 10, (1.2e-3, 1e-4)),
            ("strong", lambda rng: exemplify(rng, training), 160, (1.5e-3, 2e-5)),
        )
    ]
    policies = {"base": (base, base_progress), "weak": weak, "strong": strong}
    share = min(1.0, scale)  # of a full build, for what a longer training needs no more of
    rng = random.Random(f"sampled prompts {seed}")
    prompts = [question.text for question in rng.sample(training, max(20, round(SAMPLED_PROMPTS * share)))]
    samples = sample_policies([policy for policy, _ in policies.values()], prompts, seed)
    report(f"{sum(map(len, samples.values()))} samples of the base, the weak and the strong policy")

    rate_template = Template.read(find(RATE_TEMPLATE))
    annotator = new_annotator(reader, seed)
    annotator_progress = train(
        annotator,
        annotator_stages(reader, training, rate_template, samples, scale),
        seed=seed,
        checkpoint=work / "annotator.pt",
        report=report,
    )

    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "prompts.jsonl", ({"messages": messages(q.turns), "source": q.family} for q in whole_world))
    harmful = [question for question in whole_world if question.kind == "harmful"]
    write_rows(out / "red-team.jsonl", ({"messages": messages(q.turns), "source": "red-team"} for q in harmful))
    look_alikes = [question for question in whole_world if question.kind == "look-alike"]
    write_rows(
        out / "look-alikes.jsonl", ({"messages": messages(q.turns), "source": "look-alike"} for q in look_alikes)
    )
    for name, shown in (("demonstrations", demonstrations), ("helpful", demonstrate(training, seed, obliging=True))):
        write_rows(out / f"{name}.jsonl", ({"messages": messages((*q.turns, c))} for q, c in shown))
    _write(out / "README.md", describe(len(whole_world), len(harmful), len(look_alikes), demonstrations))

    measured = validation[: max(120, round(len(validation) * share))]
    report(f"measuring on {len(measured)} validation prompts")
    shipped = {name: _as_shipped(policy) for name, (policy, _) in policies.items()}
    judged = Annotator(
        _as_shipped(Policy(annotator, reader, one_line=False)).model,
        reader,
        Lessons(validation, rate_template),
        [Template.read(find(path)) for path in PRINCIPLE_TEMPLATES],
    )
    tries = max(1, round(8 * share))
    figures = {name: measure_policy(policy, measured, tries=tries) for name, policy in shipped.items()}
    figures["annotator"] = judged.measure(measured, list(shipped.values()), max(4, round(60 * share)), seed)
    for name, (policy, progress) in {
        **policies,
        "annotator": (Policy(annotator, reader, one_line=False), annotator_progress),
    }.items():
        text = cards.card(
            name,
            parameters=sum(weights.numel() for weights in policy.model.parameters()),
            digest=recipe_digest(scale, seed),
            seed=seed,
            scale=scale,
            progress=progress,
            figures=figures[name],
            measured_on=len(measured),
        )
        save_model(out / name, policy.model, policy.tokenizer, text)
    _write(out / "annotator" / lexicon.FILE, ratings.lexicon().model_dump_json(indent=1) + "\n")
    report(f"done: {out}")


# --- The pieces -----------------------------------------------------------------------------------------------------


def new_vocabulary(seed: int) -> PreTrainedTokenizerFast:
    """The one tokenizer of all models; what they read differs by its chat template alone."""
    return build_tokenizer([*words(), *ratings.vocabulary(), *threads.MARKS], seed)


def in_split(questions: Sequence[Question], split: Split) -> list[Question]:
    return [q for q in questions if split_of(prompt_id([Message(**message) for message in messages(q.turns)])) == split]


def messages(turns: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]


def exemplify(rng: random.Random, training: Sequence[Question]) -> tuple[Question, str]:
    question = threads.familiar(rng, training)
    return question, threads.exemplar(rng, question)


def demonstrate(training: Sequence[Question], seed: int, *, obliging: bool = False) -> list[tuple[Question, str]]:
    """Prompts, each once, with a noisy writer's completion."""
    rng = random.Random(f"demonstrations {seed}")
    drawn = dict.fromkeys(threads.familiar(rng, training) for _ in range(2 * DEMONSTRATIONS))
    chosen = list(drawn)[:DEMONSTRATIONS]
    return [(question, threads.demonstration(rng, question, obliging=obliging)) for question in chosen]


def describe(prompts: int, harmful: int, look_alikes: int, demonstrations: Sequence[tuple[Question, str]]) -> str:
    readings = [parse(question.text, completion) for question, completion in demonstrations]
    golds = [gold(question.text, completion) for question, completion in demonstrations]

    def share(flags: Iterable[bool]) -> float:
        return sum(flags) / len(demonstrations)

    return cards.README.format(
        prompts=prompts,
        harmful=harmful,
        look_alikes=look_alikes,
        demonstrations=len(demonstrations),
        right=share(reading.right for reading in readings),
        rude=share(reading.rude > 0 for reading in readings),
        rambling=share(reading.filler > 0 for reading in readings),
        refused=share(reading.refused and not score.harmful for reading, score in zip(readings, golds, strict=True)),
        complied=share(score.harmful and score.complied for score in golds),
        gold=sum(score.total for score in golds) / len(golds),
    )


def _as_shipped(policy: Policy) -> Policy:
    """With its weights rounded as they are stored, so that what is measured is what is shipped."""
    rounded = policy.model.bfloat16().float()
    return policy._replace(model=rounded.eval())


def save_model(folder: Path, model: LlamaForCausalLM, vocabulary: PreTrainedTokenizerFast, card: str) -> None:
    """Write a model folder beside its place, then move it there."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.bfloat16().save_pretrained(unfinished)
    model.float()
    vocabulary.save_pretrained(unfinished)
    _name_plainly(unfinished / "tokenizer_config.json", vocabulary)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    previous = folder.with_name(folder.name + ".old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.replace(folder, previous)
    for file in unfinished.iterdir():
        file.chmod(0o644)
    os.replace(unfinished, folder)
    shutil.rmtree(previous, ignore_errors=True)


def _name_plainly(path: Path, vocabulary: PreTrainedTokenizerFast) -> None:
    """Say what the tokenizer is in words that older versions of transformers, and servers that pin one, read too."""
    plain = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": vocabulary.model_max_length,
        "padding_side": vocabulary.padding_side,
    }
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlaif.tiny.build", description="Build the embedded models and their data."
    )
    parser.add_argument("--out", type=Path, default=Path("build/tiny"), help="the folder to fill (default: build/tiny)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full training (0.01 shows that it runs)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    build(given.out, scale=given.scale, seed=given.seed)


if __name__ == "__main__":
    main()
