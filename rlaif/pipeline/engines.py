"""Opens the engines a pipeline names. Vendors are imported only when a model of theirs is used."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from rlaif.config import ModelSpec, OpenAIModel, SamplingSettings, TransformersModel, api_key
from rlaif.engines.protocol import Engine
from rlaif.errors import InputError
from rlaif.resources import find


def _transformers(name: str, spec: ModelSpec) -> Engine:
    assert isinstance(spec, TransformersModel)
    _require("transformers", "torch", extra="train", why=f"the model {name!r} runs in this process")
    from rlaif.engines.transformers import TransformersEngine

    source = str(find(spec.path).resolve()) if spec.path is not None else str(spec.hub)
    return TransformersEngine(
        name, source, revision=spec.revision, dtype=spec.dtype, device=spec.device, batch_size=spec.batch_size
    )


def _openai(name: str, spec: ModelSpec) -> Engine:
    assert isinstance(spec, OpenAIModel)
    from rlaif.engines.openai import OpenAIEngine

    return OpenAIEngine(name, spec, api_key(spec))


_OPEN: dict[str, Callable[[str, ModelSpec], Engine]] = {"transformers": _transformers, "openai": _openai}


def open_engine(name: str, spec: ModelSpec) -> Engine:
    return _OPEN[spec.engine](name, spec)


def trained_spec(path: Path, parent: ModelSpec) -> TransformersModel:
    """A trained model runs as the one it started from; but stop strings belong to that model's own prompt format."""
    assert isinstance(parent, TransformersModel)
    sampling = SamplingSettings(**{k: v for k, v in parent.sampling.model_dump().items() if k != "stop"})
    return parent.model_copy(update={"path": str(path), "hub": None, "revision": None, "sampling": sampling})


def _require(*packages: str, extra: str, why: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"{why}, but {' and '.join(missing)} is not installed", fix=f"pip install 'rlaif[{extra}]'")
