"""A session: engines, connections, call store, scheduler and ledger, opened once and closed once.

A run, a plan, an audit, `rlaif try` and a training each have one. Knows nothing of stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import cast

from rlaif.config import LocalModel, ModelSpec, SamplingSettings, VLLMModel
from rlaif.config.models import Thinking
from rlaif.engines.asking import Asking, Sampler
from rlaif.engines.ledger import Ledger
from rlaif.engines.open import concurrency_of, open_engine, prices_of
from rlaif.engines.protocol import Engine, Local, Served
from rlaif.engines.scheduler import Scheduler
from rlaif.engines.wire import Wires
from rlaif.store import CallStore


class Session:
    """The models of a pipeline. A trained model is added and is then like any other.

    `used` names the models whose servers are checked before the first call; `note` gets notes for the user. Closed by
    `close`, or by leaving `async with`.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        store: CallStore,
        *,
        seed: int = 0,
        budget: float | None = None,
        used: Collection[str] | None = None,
        retry_failed: bool = False,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store, self.seed, self.budget = store, seed, budget
        self.specs: dict[str, ModelSpec] = {}
        self.engines: dict[str, Engine] = {}
        self.settings: dict[str, SamplingSettings] = {}  # each model's default sampling
        self.thinking: dict[str, Thinking] = {}  # what becomes of each model's thinking
        self.parents: dict[str, str] = {}  # of each trained model, its base
        self.prices = prices_of(models)
        self.concurrency = concurrency_of(models)  # requests in flight at most, by server
        self._wires = Wires()
        self.ledger = Ledger(self.prices, budget)
        self.scheduler = Scheduler(
            store, self.engines, self.concurrency,
            ledger=self.ledger, retry_failed=retry_failed, used=used, on_note=note, thinking=self.thinking,
        )  # fmt: skip
        for name, spec in models.items():
            self.add(name, spec)

    def add(self, name: str, spec: ModelSpec, *, parent: str | None = None) -> None:
        """Add the model `name`; `parent` is its base, if it was trained here."""
        self.specs[name] = spec
        self.engines[name] = open_engine(name, spec, self._wires)
        self.settings[name] = spec.sampling
        self.thinking[name] = spec.thinking
        if parent is not None:
            self.parents[name] = parent

    @property
    def priced(self) -> bool:
        return bool(self.prices)

    def asking(self, stage: str = "", row: int = 0, sampler: Sampler | None = None) -> Asking:
        """How a stage makes calls: through the scheduler, or another `sampler`, such as a plan's."""
        return Asking(sampler or self.scheduler, self.settings, self.seed, stage, row)

    def window(self, models: Collection[str]) -> int:
        """Rows in flight that keep these models busy: full server concurrency, several in-process batches."""
        engines = [self.engines[name] for name in models]
        batch = max((4 * cast(Local, engine).batch_size for engine in engines if engine.in_process), default=0)
        servers = {url for engine in engines if not engine.in_process for url in cast(Served, engine).urls}
        return max(batch, sum(self.concurrency[url] for url in servers), 16)

    async def unload_all_but(self, models: Collection[str], *, to_train: bool) -> None:
        """Unload models that are not used next: vLLM fills a GPU, and training needs one.

        An unloaded model is loaded again when it is used.
        """
        for name, engine in self.engines.items():
            if name not in models and isinstance(self.specs[name], LocalModel if to_train else VLLMModel):
                await engine.close()

    async def close(self) -> None:
        await self.scheduler.close()
        for engine in self.engines.values():
            await engine.close()
        await self._wires.close()
        self.store.close()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
