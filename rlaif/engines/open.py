"""Opens engines from the model settings of a pipeline file. A library is imported only when a model needs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rlaif.config import LocalModel, ModelSpec, OpenAIModel, SamplingSettings, TransformersModel, VLLMModel
from rlaif.config.models import VARIABLE
from rlaif.config.models import TokenPrice as Price
from rlaif.engines.adapters import Adapted, Source
from rlaif.engines.identity import model_folder
from rlaif.engines.protocol import Engine
from rlaif.engines.secrets import may_be_a_word
from rlaif.engines.wire import Extra, Wires
from rlaif.errors import InputError
from rlaif.resources import find
from rlaif.version import install


def _transformers(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    assert isinstance(spec, TransformersModel)
    _require("transformers", "torch", extra="train", why=f"the model {name!r} runs in this process")
    from rlaif.engines.transformers import TransformersEngine

    return TransformersEngine(
        name, _source(spec), revision=spec.revision, adapter=_adapter(spec),
        dtype=spec.dtype, device=spec.device, batch_size=spec.batch_size,
    )  # fmt: skip


def _openai(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    assert isinstance(spec, OpenAIModel)
    from rlaif.engines.openai import OpenAIEngine

    return OpenAIEngine(name, spec, api_key(spec), wires, extra_of(name, spec))


def _vllm(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    assert isinstance(spec, VLLMModel)
    _require("vllm", extra="vllm", why=f"the model {name!r} runs in vLLM")
    from rlaif.engines.vllm import VLLMEngine

    return VLLMEngine(
        name, _source(spec), revision=spec.revision, adapter=_adapter(spec),
        dtype=spec.dtype, batch_size=spec.batch_size, options=spec.options,
    )  # fmt: skip


_OPEN: dict[str, Callable[[str, ModelSpec, Wires], Engine]] = {
    "transformers": _transformers,
    "openai": _openai,
    "vllm": _vllm,
}


def open_engine(name: str, spec: ModelSpec, wires: Wires) -> Engine:
    """The engine of a model. Engines on one server share its connections, which `wires` holds."""
    return _OPEN[spec.engine](name, spec, wires)


def trained_spec(path: Path, parent: ModelSpec, *, scores: bool) -> TransformersModel | VLLMModel:
    """The settings of a trained model: its parent's, without stop strings, which belong to the parent's prompt format.

    One that `scores` always runs in transformers: no other engine here has a reward head.
    """
    assert isinstance(parent, TransformersModel | VLLMModel)
    if scores and isinstance(parent, VLLMModel):
        return TransformersModel(engine="transformers", path=str(path))
    sampling = SamplingSettings(**{k: v for k, v in parent.sampling.model_dump().items() if k != "stop"})
    own = {"path": str(path), "hub": None, "revision": None, "adapter": None, "sampling": sampling}
    return parent.model_copy(update=own)


def source_of(spec: ModelSpec) -> Source:
    """The folders of a local model. Raises InputError or WorkError when they cannot be found or fetched."""
    assert isinstance(spec, LocalModel), "checked as the pipeline was read"
    base = model_folder(spec.hub, spec.revision) if spec.hub else find(str(spec.path))
    return base if spec.adapter is None else Adapted(base, find(spec.adapter))


def _source(spec: LocalModel) -> str:
    return str(find(spec.path).resolve()) if spec.path is not None else str(spec.hub)


def _adapter(spec: LocalModel) -> str | None:
    return str(find(spec.adapter).resolve()) if spec.adapter is not None else None


def _require(*packages: str, extra: str, why: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"{why}, but {' and '.join(missing)} is not installed", fix=install(extra))


def concurrency_of(specs: Mapping[str, ModelSpec]) -> dict[str, int]:
    """The concurrency limit of each server, by URL: the highest of its models'."""
    by_url: dict[str, int] = {}
    for spec in specs.values():
        if isinstance(spec, OpenAIModel):
            by_url |= {url: max(spec.concurrency, by_url.get(url, 0)) for url in spec.base_urls}
    return by_url


def prices_of(specs: Mapping[str, ModelSpec]) -> dict[str, Price]:
    """The prices, of the models that have one."""
    return {name: p for name, spec in specs.items() if isinstance(spec, OpenAIModel) and (p := spec.price)}


def api_key(spec: OpenAIModel) -> str:
    """The key from the environment, or `none`. Raises InputError for a key that no HTTP header can hold."""
    key = os.environ.get(spec.key_variable or "", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {spec.key_variable} holds invalid characters", fix="set it again")
    return key or "none"


def extra_of(name: str, spec: OpenAIModel) -> Extra:
    """The model's headers and query with the values of environment variables. Raises InputError for one not set."""
    secrets: list[str] = []

    def filled(value: str) -> str:
        for variable in VARIABLE.findall(value):
            found = os.environ.get(variable, "").strip()
            if not found or not (found.isascii() and found.isprintable()):
                problem = "is not set" if not found else "holds invalid characters"
                raise InputError(f"the environment variable {variable}, of the model {name!r}, {problem}", fix="set it")
            secrets.append(found)
        return VARIABLE.sub(lambda match: os.environ[match[1]].strip(), value)

    headers = {key: filled(value) for key, value in spec.headers.items()}
    query = {key: filled(value) for key, value in spec.query.items()}
    return Extra(headers, query, tuple(dict.fromkeys(secrets)))


def notes_on_keys(specs: Iterable[ModelSpec]) -> list[str]:
    """A note for each key variable that is not set, which may be mistyped, or whose key is too short to be masked."""
    served = [spec for spec in specs if isinstance(spec, OpenAIModel)]
    unset = [
        f"the environment variable {variable} is not set, so its server is called without a key"
        for variable in dict.fromkeys(spec.api_key_env for spec in served if spec.api_key_env)
        if not os.environ.get(variable)
    ]
    keys = {spec.key_variable: api_key(spec) for spec in served if spec.key_variable}
    short = [
        f"the key in {variable} has {len(key)} characters and may be a word: it is masked in errors, and stays in "
        "completions that repeat it"
        for variable, key in keys.items()
        if may_be_a_word(key)
    ]
    return unset + short
