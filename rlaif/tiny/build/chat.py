"""Texts to token ids and back: the two formats the embedded models read, and batched sampling from them.

Knows tokens and templates, not what any text is about. A model's format is its tokenizer's own chat template, the same
that every engine and trainer uses later, so what is learnt here is what is read there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlaif.tiny.build.tokenizer import END, encode
from rlaif.tiny.build.training import Example

# What the base continues: a forum page, one line each. A completion ends where its line does.
CONTINUATION = (
    "{%- for message in messages -%}{{ 'a :' if message['role'] == 'assistant' else 'q :' }}"
    "{{ ' ' + message['content'] + '\\n' }}{%- endfor -%}{%- if add_generation_prompt %}a :{% endif -%}"
)


Turns = Sequence[str]  # what the user and the assistant said by turns, the user first and last


def prefix(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> str:
    """What a model reads before it completes a prompt, in its own format."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def lesson(tokenizer: PreTrainedTokenizerFast, turns: Turns, assistant: str) -> Example:
    """One exchange, of which the assistant's last words and the end mark are learnt."""
    before, after = encode(tokenizer, prefix(tokenizer, turns)), encode(tokenizer, f" {assistant}{END}")
    return Example(before + after, len(before))


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Turns],
    *,
    temperature: float,
    seed: int,
    limit: int = 48,
    batch: int = 128,
    one_line: bool = False,
) -> list[str]:
    """One completion per prompt; greedy at temperature 0. `one_line` cuts each at its first line end."""
    torch.manual_seed(seed)
    texts = [prefix(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    completions = [""] * len(texts)
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        inputs = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True, add_special_tokens=False)
        produced = model.generate(  # type: ignore[misc]  # its self type is a protocol that the class does not name
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=limit,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            top_k=None,
            top_p=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=_ends(tokenizer, one_line),
        )
        for index, ids in zip(chosen, produced[:, inputs["input_ids"].shape[1] :], strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            completions[index] = (text.split("\n")[0] if one_line else text).strip()
    return completions


def _ends(tokenizer: PreTrainedTokenizerFast, one_line: bool) -> list[int]:
    return encode(tokenizer, f"{END}\n" if one_line else END)
