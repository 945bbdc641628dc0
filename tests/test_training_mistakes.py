"""What people do wrong as they train: each ends with its exit code and one sentence that names where, what and the fix."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file, save_file
from test_chat_templates import FORGETTING
from test_run import Cli, run_cli  # noqa: F401 - the fixture
from transformers import AutoTokenizer

Edit = Callable[[Path], Any]
ASKED = [f"what is {i}?" for i in range(16)]
SFT = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"it is {q}"}]} for q in ASKED]
DPO = [{"prompt": q, "chosen": f"it is {q}", "rejected": "no idea"} for q in ASKED]
PROMPTS = [{"prompt": q} for q in ASKED]
DATA = {"sft": SFT, "dpo": DPO, "rm": DPO, "ppo": PROMPTS}


def rows(items: list[Any]) -> Edit:
    return lambda folder: (folder / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def text(name: str, content: str) -> Edit:
    return lambda folder: (folder / name).write_text(content)


def config(**changed: Any) -> Edit:
    return _json("base/config.json", **changed)


def tokens(**changed: Any) -> Edit:
    return _json("base/tokenizer_config.json", **changed)


def _json(name: str, **changed: Any) -> Edit:
    def edit(folder: Path) -> None:
        read = json.loads((folder / name).read_text()) | changed
        kept = {key: value for key, value in read.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "base/model.safetensors")
        change(tensors)
        save_file(tensors, folder / "base/model.safetensors", {"format": "pt"})

    return edit


def fill(name: str, value: float) -> Edit:
    return weights(lambda tensors: tensors[name].fill_(value))


def only_bin(folder: Path) -> None:
    (folder / "base/model.safetensors").unlink()
    (folder / "base/pytorch_model.bin").write_bytes(b"PK\x03\x04")


def without_template(folder: Path) -> None:
    (folder / "base/chat_template.jinja").unlink()


def shorter_vocabulary(folder: Path) -> None:
    """A tokenizer with more tokens than the model has rows, as one that was resized and its model was not."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.add_tokens([f"<new{i}>" for i in range(8)])
    tokenizer.save_pretrained(folder / "base")


def other_job(folder: Path) -> None:
    """What another program left where this training keeps its checkpoints."""
    (folder / "out.partial/checkpoint-100").mkdir(parents=True)
    (folder / "out.partial/checkpoint-100/trainer_state.json").write_text("{}")


def foreign_file(folder: Path) -> None:
    (folder / "out.partial").mkdir()
    (folder / "out.partial/key").write_text("a key")
    (folder / "out.partial/notes.txt").write_text("mine")


def another_bases_adapter(folder: Path) -> None:
    """An adapter whose record names this base, and other weights than it has."""
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "training.json").write_text(json.dumps({"base": {"folder": str(folder / "base"), "weights": "0" * 64}}))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    made = {name.format("A"): torch.zeros(2, 64), name.format("B"): torch.zeros(64, 2)}
    save_file(made, adapter / "adapter_model.safetensors", {"format": "pt"})


def nothing(folder: Path) -> None: ...


LONG = [row | {"prompt": row["prompt"] + "a" * 1100} for row in DPO]
ENDS = [{"prompt": q, "chosen": "it is<|end|>", "rejected": "no"} for q in ASKED]
UNENDED = [{"messages": [{"role": "user", "content": q}]} for q in ASKED]

# name: (method, what is changed, arguments, exit code, what is said)
CASES: dict[str, tuple[str, Edit, list[str], int, str]] = {
    # the data
    "unknown columns": ("dpo", rows([{"text": "a"}]), [], 2, r"^error: data\.jsonl:1: no known shape has the columns `text`\. Fix: give `chosen` and `rejected`"),
    "no rows": ("sft", rows([]), [], 2, r"^error: data\.jsonl: there are no rows\. Fix: the file is empty: name another"),
    "conversations for dpo": ("dpo", rows(SFT), [], 2, r"^error: data\.jsonl:1: no known shape has the columns `messages`\. Fix: give `chosen` and `rejected`"),
    "prompts for sft": ("sft", rows(PROMPTS), [], 2, r"^error: data\.jsonl:1: no known shape has the columns `prompt`\. Fix: give `messages`"),
    "nothing but a question": ("sft", rows(UNENDED), [], 2, r"^error: data\.jsonl: no row could be used \(16 no assistant turn at the end\)\. Fix: mend them, or name the columns"),
    "a broken line": ("rm", text("data.jsonl", '{"prompt": "a", "chosen": "b"\n'), [], 2, r"^error: data\.jsonl:1: not valid JSON: .*\. Fix: put one object on each line"),
    "a line that ends too soon": ("rm", text("data.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "cho'), [], 2, r"^error: data\.jsonl:2: not valid JSON: Unterminated string starting at column 17\. Fix: the last line is unfinished: finish it, or remove it"),
    "no file": ("sft", nothing, ["--data", "dat.jsonl"], 2, r"^error: command line: `--data`: there is no file or folder 'dat\.jsonl'\. Fix: did you mean 'data\.jsonl'"),
    "a folder": ("sft", nothing, ["--data", "base"], 2, r"^error: base: the folder holds no data set .*\. Fix: name the file to read"),
    "chosen is rejected": ("dpo", rows([row | {"rejected": row["chosen"]} for row in DPO]), [], 2, r"^error: data\.jsonl: no row could be used \(16 identical texts\)\. Fix: mend them, or name the columns"),
    "the end token inside": ("rm", rows(ENDS), [], 1, r"^error: none of the 12 rows can be trained on \(12 end-token-inside\)\. Fix: take '<\|end\|>' out of the texts: the template writes it"),
    "prompts longer than the context": ("dpo", rows(LONG), [], 1, r"^error: none of the 11 rows .*\(11 too-long\)\. Fix: give shorter rows: the model's context has 512 tokens"),
    "prompts longer than the context, which is asked for": ("dpo", rows(LONG), ["max_length=512"], 1, r"\(11 too-long\)\. Fix: give shorter rows: the model's context has 512 tokens"),
    "completions longer than max_length": ("dpo", nothing, ["max_length=8"], 1, r"^error: none of the 12 rows .*\(12 too-long\)\. Fix: raise `max_length` \(now 8\)"),
    "no validation to choose by": ("sft", rows(SFT[:3]), ["keep=best"], 2, r"^error: `keep`: there are no validation rows to choose the best step by\. Fix: .*`keep: last`"),
    # the settings
    "TRL's name": ("sft", nothing, ["gradient_accumulation_steps=8"], 2, r"^error: command line: `gradient_accumulation_steps`: unknown key\. Fix: it is called `accumulate` here"),
    "axolotl's name": ("dpo", nothing, ["micro_batch_size=8"], 2, r"^error: command line: `micro_batch_size`: unknown key\. Fix: it is called `batch_size` here"),
    "LLaMA-Factory's name": ("dpo", nothing, ["cutoff_len=8"], 2, r"^error: command line: `cutoff_len`: unknown key\. Fix: it is called `max_length` here"),
    "TRL's name in PPO": ("ppo", nothing, ["checks=[]", "max_steps=8"], 2, r"^error: command line: `max_steps`: unknown key\. Fix: it is called `iterations` here"),
    "a share of the steps": ("sft", nothing, ["warmup_steps=100"], 2, r"^error: command line: `warmup_steps`: unknown key\. Fix: it is called `warmup` here, and is a share of the steps"),
    "another unit": ("dpo", nothing, ["simpo_gamma=1"], 2, r"`simpo_gamma`: unknown key\. Fix: it is called `gamma_beta_ratio` here, and is gamma divided by `beta`"),
    "a name of a group's": ("dpo", nothing, ["lora_rank=8"], 2, r"`lora_rank`: unknown key\. Fix: write `lora: \{r: \.\.\.\}`"),
    "a name that has no counterpart": ("rm", nothing, ["max_grad_norm=1"], 2, r"`max_grad_norm`: unknown key\. Fix: leave it out: it is 1"),
    "a folder's name": ("rm", nothing, ["output_dir=x"], 2, r"`output_dir`: unknown key\. Fix: it is called `name` here, or --out on the command line"),
    "a mistyped name": ("dpo", nothing, ["learnin_rate=1e-5"], 2, r"^error: command line: `learnin_rate`: unknown key\. Fix: did you mean `learning_rate`"),
    "a rate of nothing": ("sft", nothing, ["learning_rate=0"], 2, r"^error: command line: `learning_rate`: expected a number greater than 0, found 0"),
    "a rate in words": ("sft", nothing, ["learning_rate=high"], 2, r"^error: command line: `learning_rate`: expected a number, found 'high'"),
    "no epoch": ("sft", nothing, ["epochs=0"], 2, r"^error: command line: `epochs`: expected a number greater than 0, found 0"),
    "epochs and steps": ("rm", nothing, ["epochs=2", "max_steps=9"], 2, r"^error: command line: `rm`: `epochs` and `max_steps` both say how long it trains: give one of them"),
    "another schedule": ("sft", nothing, ["schedule=polynomial"], 2, r"^error: command line: `schedule`: expected 'cosine', 'linear', 'constant' or 'wsd', found 'poly"),
    "warm-up in steps": ("sft", nothing, ["warmup=100"], 2, r"^error: command line: `warmup`: expected a number less than 1, found 100"),
    "decay of no schedule that decays": ("sft", nothing, ["decay=0.2"], 2, r"^error: command line: `sft`: `decay` is of `schedule: wsd`, and the schedule is cosine: leave"),
    "warm-up and decay of more than all": ("sft", nothing, ["schedule=wsd", "warmup=0.6", "decay=0.6"], 2, r"^error: command line: `sft`: `warmup` \(0\.6\) and `decay` \(0\.6\) are more than all steps: lower"),
    "half a step": ("rm", nothing, ["evaluate_every=2.5"], 2, r"^error: command line: `evaluate_every`: 2\.5 steps are no whole number; give a share"),
    "half precision": ("dpo", nothing, ["dtype=float16"], 2, r"^error: command line: `dtype`: expected 'auto', 'float32' or 'bfloat16', found 'float16'"),
    "beta of nothing": ("dpo", nothing, ["beta=0"], 2, r"^error: command line: `beta`: expected a number greater than 0, found 0"),
    "an unknown tracker": ("dpo", nothing, ["report_to=clearml"], 2, r"^error: command line: `report_to\.0`: expected 'tensorboard', .* found 'clearml'"),
    "a tracker that is not there": ("dpo", nothing, ["report_to=[wandb]"], 2, r"^error: `report_to`: wandb is not installed\. Fix: `pip install wandb`, or leave it out"),
    "no value": ("sft", nothing, ["epochs"], 2, r"^error: 'epochs' is not of the form key=value\. Fix: for example epochs=2"),
    "an option as a setting": ("sft", nothing, ["base=other"], 2, r"^error: `base` is not a setting here\. Fix: use --base"),
    "no such trainer": ("orpo", nothing, [], 2, r"^error: there is no trainer 'orpo'\. Fix: use one of dpo, ppo, rm, sft"),
    "no such template": ("sft", nothing, ["template=prompts/chat/zephr.jinja"], 2, r"^error: command line: `template`: there is no file .*zephr\.jinja'\. Fix: did you mean 'prompts/chat/zephyr"),
    "minibatches that do not fit": ("ppo", nothing, ["checks=[]", "batch_size=10", "minibatch_size=4"], 2, r"^error: command line: `ppo`: `batch_size` \(10\) is not a multiple of `minibatch_size`"),
    "no room for a prompt": ("ppo", nothing, ["checks=[]", "max_tokens=64", "max_length=64"], 2, r"^error: command line: `ppo`: `max_tokens` \(64\) leaves no room for a prompt in `max_length`"),
    # the base
    "no base": ("sft", nothing, ["--base", "bas"], 2, r"^error: command line: `--base`: there is no file or folder 'bas'\. Fix: did you mean 'base'"),
    "a base without configuration": ("sft", lambda f: (f / "base/config.json").unlink(), [], 2, r"^error: base/config\.json: cannot be read: no such file or directory\. Fix: download or copy"),
    "pickled weights": ("sft", only_bin, [], 2, r"^error: base: the folder holds no safetensors weights, .*\. Fix: save the model again"),
    "a pickle under another name": ("rm", lambda f: (f / "base/model.safetensors").write_bytes(b"\x80\x04"), [], 2, r"^error: base/model\.safetensors: it is a pickle, which may run code .*\. Fix: download"),
    "half a file of weights": ("sft", lambda f: _half(f / "base/model.safetensors"), [], 2, r"^error: base/model\.safetensors: its tensors take [\d,]+ bytes, and it has [\d,]+ for them\. Fix: d"),
    "remote code": ("dpo", config(auto_map={"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}, model_type="own"), [], 2, r"base/config\.json: the configuration needs code of its own, which is never run: `auto_map` names it\. Fix: use one"),
    "an architecture that is not there": ("dpo", config(model_type="own"), [], 2, r"base/config\.json: the configuration is of an architecture that this version .*\. Fix: install a newer one, or use"),
    "an adapter on another base": ("dpo", another_bases_adapter, ["--adapter", "adapter"], 2, r"adapter: the adapter was trained over other weights than those of .*base: their digest was 0{8,}, .*\. Fix: "),
    "a tensor is missing": ("dpo", weights(lambda t: t.pop("model.norm.weight")), [], 2, r"base: the weights lack 1 of the model's tensors, .*'model\.norm\.weight'\. Fix: save the whole model"),
    "weights that are no numbers": ("dpo", fill("model.norm.weight", float("nan")), [], 2, r"base: the weights hold NaN or infinity, first in model\.norm\.weight: .*\. Fix: use an earlier"),
    "a loss that is none": ("sft", fill("model.norm.weight", 3e38), [], 1, r"^error: the loss is nan at step 1\. Fix: lower `learning_rate`"),
    "a rate that ruins a model": ("sft", nothing, ["learning_rate=1", "max_steps=8"], 1, r"^error: the training diverged: the loss began at [\d.]+ and ended at [\d.]+, the mean of the last 4 steps; its figures are in .*out\.partial/metrics\.jsonl\. Fix: lower `learning_rate`"),
    "no chat template": ("dpo", without_template, [], 2, r"^error: `template`: the base model has no chat template\. Fix: give `template`"),
    "no marks": ("sft", text("base/chat_template.jinja", FORGETTING), [], 2, r"^error: the chat template marks no assistant turn .*\. Fix: give `template: prompts/chat/qwen\.jinja`, which marks the turns of a format like this one, or train the last turn"),
    "no end token": ("dpo", tokens(eos_token=None), [], 2, r"^error: the base model's tokenizer has no end token\. Fix: set its `eos_token`"),
    "a vocabulary that outgrew its model": ("dpo", shorter_vocabulary, [], 2, r"^error: base/tokenizer\.json: it has 269 tokens and the model 261\. Fix: use the tokenizer"),
    # the reward
    "no reward": ("ppo", nothing, [], 2, r"^error: ppo needs a reward\. Fix: give a reward model with --reward, or checks in code"),
    "a reward for sft": ("sft", nothing, ["--reward", "base"], 2, r"^error: sft takes no reward model\. Fix: remove --reward"),
    "a reward model that scores nothing": ("ppo", nothing, ["--reward", "base"], 2, r"^error: command line: `--reward`: the model 'reward' has no reward head\. Fix: name another"),
    # the folder
    "a folder of somebody": ("sft", lambda f: (f / "out").mkdir() or (f / "out/a").touch(), [], 2, r"^error: out: the folder exists already, and holds what no training made\. Fix: name another with --out"),
    "the data's own name": ("sft", nothing, ["--out", "data.jsonl"], 2, r"^error: data\.jsonl: it is the data\. Fix: name another with --out"),
    "the base's own folder": ("sft", lambda f: (f / "base/training.json").write_text("{}"), ["--out", "base"], 2, r"^error: base: it is the base model\. Fix: name another with --out"),
    "the folder of all": ("sft", nothing, ["--out", "."], 2, r"it holds the data\. Fix: name another with --out"),
    "a folder in the base's": ("sft", nothing, ["--out", "base/out"], 2, r"^error: base/out: `--out`: it lies in the folder of another model, .*/base\. Fix: name a folder outside it"),
    "a folder deep in the base's": ("dpo", nothing, ["--out", "base/mine/runs/out"], 2, r"it lies in the folder of another model, .*/base\. Fix: name a folder outside it"),
    "a folder in a model's that is not read": ("rm", lambda f: (f / "a").mkdir() or (f / "a/x-00001.safetensors").touch(), ["--out", "a/out"], 2, r"it lies in the folder of another model, .*/a\. Fix"),
    "a folder in an adapter's": ("sft", lambda f: (f / "a").mkdir() or (f / "a/adapter_config.json").touch(), ["--out", "a/out"], 2, r"it lies in the folder of another model, .*/a\. Fix"),
    "a folder in an unfinished training": ("sft", lambda f: (f / "m.partial").mkdir() or (f / "m.partial/key").touch(), ["--out", "m.partial/out"], 2, r"it lies in the folder of an unfinished training, .*/m\.partial\. Fix"),
    "the name of an unfinished one": ("sft", nothing, ["--out", "m.partial"], 2, r"^error: m\.partial: `--out`: names in \.partial are those of unfinished trainings\. Fix: give"),
    "the checkpoints of another program": ("sft", other_job, [], 2, r"^error: out\.partial: the folder is not an unfinished training\. Fix: move it"),
    "a file of somebody among ours": ("sft", foreign_file, [], 2, r"^error: out\.partial/notes\.txt: the file lies in .*, and no training made it\. Fix: move it"),
}  # fmt: skip


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_sentence(
    name: str,
    random_model: Path,
    tmp_path: Path,
    run_cli: Cli,  # noqa: F811
) -> None:
    method, edit, arguments, code, told = CASES[name]
    shutil.copytree(random_model, tmp_path / "base")
    rows(DATA.get(method, SFT))(tmp_path)
    edit(tmp_path)
    given = {"--base": "base", "--data": "data.jsonl", "--out": "out"}
    options = [part for option, value in given.items() if option not in arguments for part in (option, value)]
    found, out, err = run_cli("train", method, *options, *arguments)
    assert not list(tmp_path.rglob("*.lock"))
    assert found == code and out in ("", f"{method}: begins\n"), err
    assert "Traceback" not in err and not (tmp_path / "out/config.json").exists()
    assert re.search(told, err.splitlines()[-1]), err
