"""A row or two of each published data set that is read without `columns`, in its own columns; the words are ours.

`python tests/hub_rows.py` writes the table of them in docs/pipeline-file.md. `test_published.py` reads every row, and
holds what is made of it against what the table says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent.parent / "docs/pipeline-file.md"
TABLE = re.compile(r"(?<=\| data set \| one row gives \|\n\|---\|---\|\n)(?:\|.*\n)+")

ASKED, GOOD, BAD, WORSE = "How many legs has a horse?", "Four.", "Three, I think.", "None."


def said(*texts: str) -> list[dict[str, str]]:
    """Turns, the first by the user."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def parts(*texts: str) -> list[dict[str, Any]]:
    return [turn | {"content": [{"type": "text", "text": turn["content"], "image": None}]} for turn in said(*texts)]


BOTH = {"chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)}
TEXTS = {"chosen": GOOD, "rejected": BAD}


class Hub(NamedTuple):
    """The rows of a data set, and what is made of them: its row in the table of docs/pipeline-file.md."""

    rows: list[dict[str, Any]]
    read: str


def _annotated(model: str, text: str, ratings: str, overall: float) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    noted = {aspect: {"Rating": value, "Rationale": "Because."} for aspect, value in zip(aspects, ratings, strict=True)}
    return {"model": model, "response": text, "annotations": noted, "overall_score": overall, "critique": "Fine."}


def _ranked(message: str, parent: str | None, text: str, role: str, rank: int | None) -> dict[str, Any]:
    row = {"message_id": message, "parent_id": parent, "text": text, "role": role, "lang": "en", "rank": rank}
    return row | {"message_tree_id": "m1", "tree_state": "ready_for_export"}


def _attributes(text: str, *values: int) -> dict[str, Any]:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": ASKED, "response": text} | dict(zip(names, values, strict=True))


HUB: dict[str, Hub] = {
    "HuggingFaceH4/ultrafeedback_binarized": Hub(
        [{"prompt": ASKED, "prompt_id": "ab", "messages": said(ASKED, GOOD), "score_chosen": 8.5, "score_rejected": 3.0}
         | BOTH],
        "2 completions, the first preferred, scores 8.5 and 3",
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": Hub(
        [{"id": "t_1", "prompt": ASKED, "source": "farm/animals"} | BOTH],
        "2 completions, the first preferred",
    ),
    "nvidia/HelpSteer2 (default)": Hub(
        [_attributes(GOOD, 4, 4, 4, 1, 1), _attributes(BAD, 1, 0, 4, 1, 1)],
        "2 completions, ratings of 5 aspects",
    ),
    "nvidia/HelpSteer2 (preference)": Hub(
        [{"split": "train", "prompt": ASKED, "response_1": GOOD, "response_2": BAD, "preference_strength": -2,
          "preference_statement": "@Response 1 is right", "all_preferences_unprocessed": [{"strength": -2}]}],
        "2 completions, the first preferred, scores 2 and 0",
    ),
    "nvidia/HelpSteer3 (preference)": Hub(
        [{"domain": "general", "language": "english", "context": said(ASKED), "response1": GOOD, "response2": BAD,
          "overall_preference": -2, "individual_preference": [{"score": -2, "reasoning": "r"}]}],
        "2 completions, the first preferred, scores 2 and 0",
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": Hub(
        [{"source": "farm", "prompt": ASKED, "chosen-rating": 5.0, "chosen-model": "big", "rejected-rating": 2.0,
          "rejected-model": "small"} | BOTH],
        "2 completions, the first preferred, scores 5 and 2",
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": Hub(
        [{"system": "Be brief.", "input": ASKED, "generations": [GOOD, BAD], "order": ["chosen", "rejected"],
          "rating": [9.0, 3.0], "labelling_model": "m", "raw_labelling_response": "9 3", "rationale": "r",
          "status": "unchanged", "chosen_score": 9.0, "in_gsm8k_train": False} | TEXTS],
        "2 completions, the first preferred, scores 9 and 3",
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": Hub(
        [{"source": "farm", "conversation": [{"input": ASKED, "output": GOOD}], "original_response": GOOD,
          "generation_prompt": ["p"], "new_generations": [BAD], "prompt": "<|system|>\n\n<|user|>\nlegs?</s>",
          "rating_chosen": 5, "rating_rejected": 2, "chosen_model": "big", "rejected_model": "x", "turns": 1} | BOTH],
        "2 completions, the first preferred, scores 5 and 2",
    ),
    "argilla/dpo-mix-7k": Hub(
        [{"dataset": "farm", "chosen_rating": 5.0, "rejected_rating": 2.0} | BOTH],
        "2 completions, the first preferred, scores 5 and 2",
    ),
    "Anthropic/hh-rlhf": Hub(
        [{side: f"\n\nHuman: {ASKED}\n\nAssistant: {text}" for side, text in TEXTS.items()}],
        "2 completions, the first preferred",
    ),
    "openbmb/UltraFeedback": Hub(
        [{"source": "farm", "instruction": ASKED, "models": ["m1", "m2"], "correct_answers": ["None"],
          "completions": [_annotated("m1", GOOD, "5544", 8.0), _annotated("m2", BAD, "3212", 3.0)]}],
        "2 completions, ratings of 4 aspects, scores 8 and 3",
    ),
    "berkeley-nest/Nectar": Hub(
        [{"prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["farm"],
          "answers": [{"answer": text, "model": f"m{rank}", "rank": float(rank)}
                      for rank, text in enumerate((GOOD, BAD, WORSE), 1)]}],
        "3 completions, ranked 1, 2, 3",
    ),
    "stanfordnlp/SHP": Hub(
        [{"post_id": "q", "domain": "askvets_validation", "history": ASKED, "c_root_id_A": "a", "c_root_id_B": "b",
          "score_A": 50, "score_B": 10, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_ratio": 5.0}],
        "2 completions, the first preferred, scores 50 and 10",
    ),
    "PKU-Alignment/PKU-SafeRLHF": Hub(
        [{"prompt": ASKED, "response_0": GOOD, "response_1": BAD, "prompt_source": "new",
          "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": 0, "safer_response_id": 0}],
        "2 completions, the first preferred twice",
    ),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": Hub(
        [{"source": "farm"} | BOTH],
        "2 completions, the first preferred",
    ),
    "allenai/reward-bench (filtered)": Hub(
        [{"prompt": ASKED, "chosen_model": "m", "rejected_model": "n", "subset": "farm-easy", "id": 0} | TEXTS],
        "2 completions, the first preferred",
    ),
    "allenai/reward-bench-2": Hub(
        [{"id": "1", "prompt": ASKED, "chosen": [GOOD], "rejected": [BAD, WORSE, "Six."], "num_correct": 1,
          "models": ["m", "n", "o", "p"], "subset": "Factuality", "additional_metadata": None}],
        "4 completions, the first preferred 3 times",
    ),
    "lmsys/chatbot_arena_conversations": Hub(
        [{"question_id": "1", "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "arena_user_1",
          "conversation_a": said(ASKED, GOOD), "conversation_b": said(ASKED, BAD), "turn": 1, "language": "English",
          "openai_moderation": {"flagged": False}, "toxic_chat_tag": {}}],
        "2 completions, the first preferred",
    ),
    "lmsys/mt_bench_human_judgments": Hub(
        [{"question_id": 81, "model_a": "x", "model_b": "y", "winner": "tie", "judge": "expert_1", "turn": 2,
          "conversation_a": said(ASKED, GOOD, "Why?", "To stand."),
          "conversation_b": said(ASKED, GOOD, "Why?", "Who knows.")}],
        "2 completions, a tie",
    ),
    "lmarena-ai/arena-human-preference-140k": Hub(
        [{"id": "1", "model_a": "x", "model_b": "y", "winner": "model_b", "evaluation_order": 1,
          "conversation_a": parts(ASKED, BAD), "conversation_b": parts(ASKED, GOOD), "full_conversation": [],
          "is_code": False}],
        "2 completions, the second preferred",
    ),
    "lmsys/lmsys-arena-human-preference-55k": Hub(
        [{"id": 1, "model_a": "x", "model_b": "y", "prompt": f'["{ASKED}"]', "response_a": f'["{GOOD}"]',
          "response_b": f'["{BAD}"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}],
        "2 completions, the first preferred",
    ),
    "OpenAssistant/oasst2": Hub(
        [_ranked("m1", None, ASKED, "prompter", None), _ranked("m2", "m1", GOOD, "assistant", 0),
         _ranked("m3", "m1", BAD, "assistant", 1)],
        "2 completions, ranked 1, 2",
    ),
    "openai/summarize_from_feedback (comparisons)": Hub(
        [{"info": {"id": "t", "post": "My horse fell.", "title": "Horse", "subreddit": "pets", "article": None},
          "split": "train", "worker": "w", "choice": 0, "extra": {"confidence": None},
          "summaries": [{"text": GOOD, "policy": "p1", "note": None}, {"text": BAD, "policy": "p2", "note": None}]}],
        "2 completions, the first preferred",
    ),
    "openai/webgpt_comparisons": Hub(
        [{"question": {"dataset": "farm", "id": "1", "full_text": ASKED}, "quotes_0": {"title": ["t"]},
          "answer_0": GOOD, "score_0": 0.66, "quotes_1": {"title": ["t"]}, "answer_1": BAD, "score_1": -0.66}],
        "2 completions, the first preferred, scores 0.66 and -0.66",
    ),
    "Intel/orca_dpo_pairs": Hub(
        [{"system": "Be brief.", "question": ASKED} | TEXTS],
        "2 completions, the first preferred",
    ),
    "LLaMA-Factory's pairs": Hub(
        [{"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": GOOD},
          "rejected": {"from": "gpt", "value": BAD}}],
        "2 completions, the first preferred",
    ),
    "trl-lib/kto-mix-14k": Hub(
        [{"prompt": said(ASKED), "completion": [{"role": "assistant", "content": text}], "label": text == GOOD}
         for text in (GOOD, BAD)],
        "2 completions, labels 1 and 0",
    ),
    "snorkelai/Snorkel-Mistral-PairRM-DPO": Hub(
        [{"prompt_id": "i", "prompt": ASKED, "all_generated_responses": [GOOD, BAD, WORSE],
          "all_rm_scores": [1.0, 0.2, 0.1]} | BOTH],
        "3 completions, the first preferred, scores 1, 0.2 and 0.1",
    ),
    "princeton-nlp/llama3-ultrafeedback-armorm": Hub(
        [{"prompt_id": "i", "prompt": ASKED, "all_generated_responses": [BAD, WORSE, GOOD],
          "all_rm_scores": [0.1, 0.15, 0.2]} | BOTH],
        "3 completions, the third preferred, scores 0.1, 0.15 and 0.2",
    ),
    "infly/INF-ORM-Preference-Magnitude-80K": Hub(
        [{"source": "farm", "magnitude": 3} | BOTH],
        "2 completions, the first preferred, scores 3 and 0",
    ),
    "HuggingFaceH4/stack-exchange-preferences": Hub(
        [{"qid": 1, "question": ASKED, "date": "d", "metadata": ["m"],
          "answers": [{"answer_id": 1, "author": "a", "pm_score": 5, "selected": True, "text": GOOD},
                      {"answer_id": 2, "author": "b", "pm_score": 1, "selected": False, "text": BAD}]}],
        "2 completions, scores 5 and 1",
    ),
    "openbmb/UltraInteract_pair": Hub(
        [{"task": "Math_CoT", "dataset": "farm", "trajectory": [{"from": "user", "value": ASKED}], "id": "1",
          "parent_id": "0"} | TEXTS],
        "2 completions, the first preferred",
    ),
    "tatsu-lab/alpaca_farm": Hub(
        [{"instruction": ASKED, "input": "", "output_1": GOOD, "output_2": BAD, "preference": 1}],
        "2 completions, the first preferred",
    ),
    "prometheus-eval/Preference-Collection": Hub(
        [{"orig_criteria": "c", "orig_instruction": ASKED, "orig_response_A": GOOD, "orig_response_B": BAD,
          "orig_feedback_A": "f", "orig_score_A": "4", "orig_score_B": "2", "orig_reference_answer": "Four",
          "orig_preference": "A", "instruction": "Judge these two.", "output": "So A.", "input": ""}],
        "2 completions, the first preferred, scores 4 and 2",
    ),
    "prometheus-eval/Feedback-Collection": Hub(
        [{"orig_criteria": "c", "orig_instruction": ASKED, "orig_response": text, "orig_score": score,
          "orig_reference_answer": "Four", "instruction": "Judge this.", "output": "So 5.", "input": ""}
         for text, score in ((GOOD, "5"), (BAD, "1"))],
        "2 completions, scores 5 and 1",
    ),
    "lvwerra/stack-exchange-paired": Hub(
        [{"qid": 1, "question": ASKED, "date": "d", "response_j": GOOD, "response_k": BAD}],
        "2 completions, the first preferred",
    ),
    "Vezora/Code-Preference-Pairs": Hub(
        [{"input": ASKED, "accepted": GOOD, "rejected": BAD, "ID": 3}],
        "2 completions, the first preferred",
    ),
    "THU-KEG/RM-Bench": Hub(
        [{"id": 1, "prompt": ASKED, "chosen": [GOOD, "4."], "rejected": [BAD, WORSE], "domain": "chat"}],
        "4 completions, the first preferred twice, the second preferred twice",
    ),
    "databricks/databricks-dolly-15k": Hub(
        [{"instruction": ASKED, "context": "A horse stands on all of them.", "response": GOOD, "category": "qa"}],
        "a completion",
    ),
    "Open-Orca/OpenOrca": Hub(
        [{"id": "1", "system_prompt": "Be brief.", "question": ASKED, "response": GOOD}],
        "a completion",
    ),
    "allenai/WildChat": Hub(
        [{"conversation": said(ASKED, GOOD), "model": "m", "turn": 1, "toxic": False}],
        "a completion",
    ),
    "LDJnr/Capybara": Hub(
        [{"source": "farm", "conversation": [{"input": ASKED, "output": GOOD}]}],
        "a completion",
    ),
}  # fmt: skip


def put_right(text: str) -> str:
    """The page with its table made anew."""
    table = "".join(f"| {name} | {hub.read} |\n" for name, hub in HUB.items())
    return TABLE.sub(lambda _: table, text)


if __name__ == "__main__":
    DOCS.write_text(put_right(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
