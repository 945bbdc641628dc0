"""KL(model || its parent) for each completion in nats, estimated on the model's own samples.

E_y[log model(y) - log parent(y)] over the text's tokens, without the end token, since a model and its parent may use
different ones. It needs samples of the model's own distribution: temperature 1 and top_p 1. Where it cannot be
estimated, `problem` says why.
"""

from __future__ import annotations

from typing import Any

from rlaif.errors import EngineError
from rlaif.measures.collecting import Measured, Setting
from rlaif.measures.lines import Figures, Line, as_dict, interval
from rlaif.records import Sampling
from rlaif.statistics import best_of_n_kl, mean_interval

OTHER_DISTRIBUTION = "the samples are not at temperature 1 and top_p 1"


async def figures(model: Measured, baseline: Measured, setting: Setting) -> dict[str, Any]:
    best = setting.stage.best_of
    if best is not None and model.name == best.name:
        bound: dict[str, Any] = {"at_most": round(best_of_n_kl(best.n), 6)}
        if not _its_own(setting.sampling(best.model)):
            bound = {"problem": OTHER_DISTRIBUTION}
        return {"kl": bound | {"against": best.model}}
    parent = setting.parents.get(model.name)
    if parent is None:
        return {}
    if not _its_own(setting.sampling(model.name)):
        return {"kl": {"problem": OTHER_DISTRIBUTION, "against": parent}}
    items = [(p.messages, c.text) for p, c in zip(setting.prompts, model.completions, strict=True) if c is not None]
    written = [item for item in items if item[1]]
    try:
        own = await setting.engines[model.name].logprobs(written)
        reference = await setting.engines[parent].logprobs(written)
    except EngineError as error:
        return {"kl": {"problem": str(error), "against": parent}}
    differences = [sum(a.tokens) - sum(b.tokens) for a, b in zip(own, reference, strict=True)]
    differences += [0.0] * (len(items) - len(written))  # no tokens, no difference
    return {"kl": (as_dict(mean_interval(differences)) or {}) | {"against": parent}}


def _its_own(sampling: Sampling) -> bool:
    """Whether samples are of the model's own distribution."""
    return (sampling.temperature, sampling.top_p) == (1.0, 1.0)


def lines(summary: Figures, baseline: str) -> list[Line]:
    def cell(model: Figures, summary: Figures) -> str:
        kl = model.get("kl") or {}
        return f"at most {kl['at_most']:.2f}" if "at_most" in kl else interval(kl, 2)

    return [Line("KL, nats", cell)]
