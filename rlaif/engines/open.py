"""Opens engines by what a pipeline file says of its models. A vendor is imported only when a model of its is used."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rlaif.config import LocalModel, ModelSpec, OpenAIModel, SamplingSettings, TransformersModel, VLLMModel
from rlaif.config.models import TokenPrice as Price
from rlaif.engines.protocol import Engine
from rlaif.engines.wire import Wires
from rlaif.errors import InputError
from rlaif.resources import find


def _transformers(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    assert isinstance(spec, TransformersModel)
    _require("transformers", "torch", extra="train", why=f"the model {name!r} runs in this process")
    from rlaif.engines.transformers import TransformersEngine

    return TransformersEngine(
        name, _source(spec), revision=spec.revision, dtype=spec.dtype, device=spec.device, batch_size=spec.batch_size
    )


def _openai(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    assert isinstance(spec, OpenAIModel)
    from rlaif.engines.openai import OpenAIEngine

    return OpenAIEngine(name, spec, api_key(spec), wires)


def _vllm(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    assert isinstance(spec, VLLMModel)
    _require("vllm", extra="vllm", why=f"the model {name!r} runs in vLLM")
    from rlaif.engines.vllm import VLLMEngine

    return VLLMEngine(
        name, _source(spec), revision=spec.revision, dtype=spec.dtype, batch_size=spec.batch_size, options=spec.options
    )


_OPEN: dict[str, Callable[[str, ModelSpec, Wires], Engine]] = {
    "transformers": _transformers,
    "openai": _openai,
    "vllm": _vllm,
}


def open_engine(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    """The engine of a model. Those behind one server share its connections, which `wires` holds."""
    return _OPEN[spec.engine](name, spec, wires)


def trained_spec(path: Path, parent: ModelSpec, *, scores: bool) -> TransformersModel | VLLMModel:
    """A trained model runs as the one it started from; but stop strings belong to that model's own prompt format.

    One that `scores` runs under transformers, whatever its parent did: no other engine here reads a reward head.
    """
    assert isinstance(parent, TransformersModel | VLLMModel)
    if scores and isinstance(parent, VLLMModel):
        return TransformersModel(engine="transformers", path=str(path))
    sampling = SamplingSettings(**{k: v for k, v in parent.sampling.model_dump().items() if k != "stop"})
    return parent.model_copy(update={"path": str(path), "hub": None, "revision": None, "sampling": sampling})


def _source(spec: LocalModel) -> str:
    return str(find(spec.path).resolve()) if spec.path is not None else str(spec.hub)


def _require(*packages: str, extra: str, why: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"{why}, but {' and '.join(missing)} is not installed", fix=f"pip install 'rlaif[{extra}]'")


def concurrency_of(specs: Mapping[str, ModelSpec]) -> dict[str, int]:
    """How many requests each server is given at a time at most: the most that any of its models says."""
    found: dict[str, int] = {}
    for spec in specs.values():
        if isinstance(spec, OpenAIModel):
            found |= {url: max(spec.concurrency, found.get(url, 0)) for url in spec.base_urls}
    return found


def prices_of(specs: Mapping[str, ModelSpec]) -> dict[str, Price]:
    """What the models cost that have a price."""
    return {name: p for name, spec in specs.items() if isinstance(spec, OpenAIModel) and (p := spec.price)}


def api_key(spec: OpenAIModel) -> str:
    """The key from the environment, or the word that stands for none. Raises InputError for what no header can hold."""
    key = os.environ.get(spec.key_variable or "", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {spec.key_variable} holds characters that no key has", fix="set it again")
    return key or "none"


def keyless(specs: Iterable[ModelSpec]) -> list[str]:
    """Notes on keys that are named and not there: a server may do without, and a name may be mistyped."""
    variables = dict.fromkeys(spec.api_key_env for spec in specs if isinstance(spec, OpenAIModel) and spec.api_key_env)
    return [
        f"the environment variable {variable} is not set, so its server is asked without a key"
        for variable in variables
        if not os.environ.get(variable)
    ]
