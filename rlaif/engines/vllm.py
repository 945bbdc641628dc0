"""A model in this process, through vLLM: sampling, and log-probabilities of given text.

Two classes, as in the transformers engine, which shares the code that makes tokens of messages and the random stream of
a call: `VLLMEngine` is the interface, `_Model` does the blocking work. vLLM is imported when the model is loaded, since
the import takes seconds.

- Each sample is a separate request, with a seed that depends on the call alone. Its text therefore does not depend on
  the other requests of its batch, up to the floating-point noise of batched matrix products, and the prefix cache still
  computes the prompt once. vLLM samples differently: only greedy texts equal those of the transformers engine.
- Log-probabilities are those of the raw logits. vLLM reports them before temperature and top_p but after a grammar, so
  where a JSON schema was asked for, they are taken in a second pass over what was written.
- A checkpoint's generation_config.json is ignored, except its end tokens.
- Reward heads run in the transformers engine.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import inspect
import json
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rlaif.engines import adapters
from rlaif.engines.adapters import Adapted, Source
from rlaif.engines.chat import Chat, Item, before_stop, end_tokens, schema_text, stream, whole
from rlaif.engines.identity import has_reward_head, model_files, model_folder, weights_digest
from rlaif.engines.protocol import Logprobs, Reply, Request
from rlaif.engines.vetting import json_object, loading, no_number
from rlaif.engines.worker import Worker
from rlaif.errors import EngineError, InputError, first_line, nearest
from rlaif.records import FinishReason, Usage, digest

Result = TypeVar("Result")

# Set before vLLM is imported, unless the user has set them.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; read on CPU only, where vLLM would otherwise take half of the memory
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # this process has threads, and a fork may inherit their locks
}

# Options that rlaif sets itself, with what to do instead.
OURS = {
    "model": "set `path` or `hub` beside `engine`",
    "revision": "set it beside `engine`",
    "dtype": "set it beside `engine`",
    "tokenizer": "put the tokenizer into the model's folder",
    "chat_template": "put it into the model's folder as chat_template.jinja",
    "skip_tokenizer_init": "remove it: the tokenizer is needed",
    "generation_config": "remove it, and say how to sample under `sampling`",
    "override_generation_config": "remove it, and say how to sample under `sampling`",
    "logprobs_mode": "remove it: log-probabilities are those of the raw logits",
    "trust_remote_code": "remove it: code in a model's folder is never run",
    "runner": "remove it: this engine samples",
}

# Options that change how fast a model runs and what fits, not what it computes: they may differ between runs that share
# their calls. An option not named here is part of the model's identity.
NEUTRAL = frozenset(
    """block_size data_parallel_size disable_custom_all_reduce disable_log_stats distributed_executor_backend
    enable_chunked_prefill enable_prefix_caching enforce_eager gpu_memory_utilization kv_cache_memory_bytes
    max_logprobs max_model_len max_num_batched_tokens max_num_seqs pipeline_parallel_size tensor_parallel_size
    use_tqdm_on_load""".split()
)

NAMED_AT_ONCE = 128  # tokens whose log-probability vLLM reports for one request


class VLLMEngine:
    """A causal language model in this process. The model is loaded at the first verb."""

    in_process = True

    def __init__(
        self,
        name: str,
        path: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        dtype: str = "auto",
        batch_size: int = 1024,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.path, self.revision, self.adapter = name, path, revision, adapter
        self.dtype, self.batch_size, self.options = dtype, batch_size, dict(options or {})
        self._worker = Worker(name, self._loaded)

    @cached_property
    def source(self) -> Source:
        base = model_folder(self.path, self.revision)
        return base if self.adapter is None else Adapted(base, Path(self.adapter))

    @property
    def folder(self) -> Path:
        return adapters.named(self.source)

    @cached_property
    def identity(self) -> str:
        """The weights' digest, and what else decides an answer: this engine, its precision and its options."""
        deciding = {name: value for name, value in self.options.items() if name not in NEUTRAL}
        options = f":{digest(json.dumps(deciding, sort_keys=True, default=str), length=8)}" if deciding else ""
        return f"weights:{weights_digest(self.source)}:vllm:{self.dtype}{options}"

    def _loaded(self) -> _Model:
        with loading(self.folder):
            return _Model(self.name, _whole_model(self.source), self.dtype, self.batch_size, self.options)

    async def probe(self) -> None:
        """Load the model. Raises EngineError or InputError where it cannot be loaded."""
        await self._worker.run(lambda model, stopped: None)

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        return await self._worker.run(lambda model, stopped: model.sample(requests, stopped))

    async def logprobs(self, items: Sequence[Item]) -> list[Logprobs]:
        return await self._worker.run(lambda model, stopped: model.logprobs(items, stopped))

    async def score(self, items: Sequence[Item]) -> list[float | EngineError]:
        """Raises EngineError: reward heads run in the transformers engine."""
        raise _no_reward_head(self.name)

    async def close(self) -> None:
        """Unload the model: end its processes and free its memory. A later verb loads it again."""
        await self._worker.close(lambda model: model.close())


@dataclass(slots=True)
class _Row:
    """One sample to be generated by vLLM."""

    number: int
    index: int  # among the request's indices
    request: Request
    prompt: list[int]
    alternatives: dict[str, int | None]  # name -> id, where one token
    parameters: Any

    @property
    def shaped(self) -> bool:
        """Whether a grammar constrains the sample; vLLM's log-probabilities are then those after the grammar."""
        return self.request.json_schema is not None


class _Model:
    """vLLM's engine, tokenizer and chat template, and the two verbs in plain blocking code."""

    def __init__(self, name: str, folder: Path, dtype: str, batch_size: int, options: Mapping[str, Any]) -> None:
        self.name, self.batch_size = name, batch_size
        model_files(folder)  # refuses what cannot be loaded
        if has_reward_head(folder):
            raise _no_reward_head(name)
        self.vllm = _import()
        self.llm = _load(self.vllm, name, folder, dtype, options)
        self._refusals: dict[str, str | None] = {}  # why a schema cannot be compiled
        try:
            tokenizer = self.llm.get_tokenizer()
            self.ends = end_tokens(_named_ends(folder, self.llm), tokenizer, folder)
            self.chat = Chat(tokenizer, folder, ends=self.ends, limit=self.llm.model_config.max_model_len)
        except BaseException:
            self.close()
            raise
        self._special: dict[str, int] = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))

    def close(self) -> None:
        # Dropping vLLM's object leaves its processes to the garbage collector, and its memory with them.
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()

    # ------------------------------------------------------------ sample

    def sample(self, requests: Sequence[Request], stopped: threading.Event) -> list[list[Reply | EngineError]]:
        prompts = self.chat.prompts(requests)
        named = {text for request in requests for text in request.sampling.alternatives}
        alternatives = {text: self.chat.alternative(text) for text in named}
        rows: list[_Row] = []
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if isinstance(prompt, EngineError):
                continue
            chosen = {text: alternatives[text] for text in request.sampling.alternatives}
            try:
                self._check_schema(schema_text(request))
                rows += [
                    _Row(number, position, request, prompt, chosen, self._parameters(request, index, _tokens(chosen)))
                    for position, index in enumerate(request.indices)
                ]
            except EngineError as error:
                prompts[number] = error
        replies: dict[tuple[int, int], Reply | EngineError] = {}
        for batch in self._batches(rows):
            if stopped.is_set():
                break
            for row, reply in zip(batch, self._sample(batch), strict=True):
                replies[row.number, row.index] = reply
        given_up = EngineError("sampling was cancelled", retryable=True, cause="cancelled")
        return [
            [prompt if isinstance(prompt, EngineError) else replies.get((n, position), given_up)
             for position in range(len(request.indices))]
            for n, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        ]  # fmt: skip

    def _parameters(self, request: Request, index: int, named: Sequence[int]) -> Any:
        """vLLM's parameters of one sample.

        Raises EngineError where vLLM would refuse them, and the whole batch with it.
        """
        sampling, schema = request.sampling, schema_text(request)
        stop = [text for text in sampling.stop if text]
        if len(named) > NAMED_AT_ONCE:
            raise EngineError(
                f"{len(named)} alternatives were named, and vLLM reports {NAMED_AT_ONCE}",
                cause="sampling",
                fix="use `engine: transformers` for this model",
            )
        try:
            return self.vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=int(stream(request, index)[:16], 16) >> 1,  # vLLM takes a signed 64-bit number
                stop=stop,
                # A special token is no text, but may itself be named as a stop.
                stop_token_ids=sorted(self.ends.union(self._special[text] for text in stop if text in self._special)),
                detokenize=bool(stop),  # vLLM needs the text for nothing else
                logprobs=0 if sampling.logprobs and not named and not schema else None,
                logprob_token_ids=list(named) if named and not schema else None,
                structured_outputs=self._grammar(schema) if schema else None,
            )
        except Exception as error:  # whose class differs between versions of vLLM
            raise EngineError(f"vLLM refuses these sampling parameters: {_reason(error)}", cause="sampling") from None

    def _grammar(self, schema: str) -> Any:
        return self.vllm.sampling_params.StructuredOutputsParams(json=schema)

    def _check_schema(self, schema: str) -> None:
        """Raises EngineError where `schema` cannot be compiled.

        vLLM refuses a whole batch for one such schema, so each is tried alone first, at the cost of one token.
        """
        if not schema:
            return
        if schema not in self._refusals:
            tried = self.vllm.SamplingParams(max_tokens=1, structured_outputs=self._grammar(schema))
            try:
                self.llm.generate([{"prompt_token_ids": [min(self.ends)]}], tried, use_tqdm=False)
            except Exception as error:
                self._refusals[schema] = _reason(error)
            else:
                self._refusals[schema] = None
        if (reason := self._refusals[schema]) is not None:
            raise EngineError(f"the JSON schema cannot be compiled: {reason}", cause="schema")

    def _sample(self, batch: Sequence[_Row]) -> list[Reply | EngineError]:
        written = self._generate([row.prompt for row in batch], [row.parameters for row in batch])
        observed = zip(self._chosen(batch, written), self._first(batch, written), strict=True)
        return [
            self._reply(row, one, chosen, first)
            for row, one, (chosen, first) in zip(batch, written, observed, strict=True)
        ]

    def _chosen(self, batch: Sequence[_Row], written: Sequence[Any]) -> list[list[float]]:
        """Raw log-probabilities of the tokens written, where asked for."""
        shaped = [n for n, row in enumerate(batch) if row.shaped and row.request.sampling.logprobs]
        given = self._given([([*batch[n].prompt, *written[n].token_ids], len(batch[n].prompt)) for n in shaped])
        again = dict(zip(shaped, given, strict=True))
        return [
            again[n] if n in again else [entries[token].logprob for entries, token in zip(*_noted(one), strict=True)]
            for n, one in enumerate(written)
        ]

    def _first(self, batch: Sequence[_Row], written: Sequence[Any]) -> list[dict[int, float]]:
        """Raw log-probabilities of the tokens named as alternatives, at the first place."""
        shaped = [n for n, row in enumerate(batch) if row.shaped and _tokens(row.alternatives)]
        again = self._generate(
            [batch[n].prompt for n in shaped],
            [self._scoring(named=_tokens(batch[n].alternatives)) for n in shaped],
        )
        observed = [*written]
        for n, one in zip(shaped, again, strict=True):
            observed[n] = one
        return [
            {token: entry.logprob for token, entry in one.logprobs[0].items()} if one.logprobs else {}
            for one in observed
        ]

    def _reply(self, row: _Row, one: Any, chosen: Sequence[float], first: Mapping[int, float]) -> Reply | EngineError:
        if one.finish_reason not in ("stop", "length"):
            return EngineError(
                f"vLLM ended a completion of {self.name!r} with {one.finish_reason!r}", cause="vllm", retryable=True
            )
        tokens, sampling = list(one.token_ids), row.request.sampling
        ended = bool(tokens) and tokens[-1] in self.ends
        text, cut = before_stop(self.chat.said(tokens, row.request), sampling.stop)
        reason: FinishReason = "stop" if cut or ended or one.finish_reason == "stop" else "length"
        named = {name: None if token is None else first[token] for name, token in row.alternatives.items()}
        if any(map(math.isnan, chosen)) or any(map(math.isnan, first.values())):
            return no_number("probabilities")
        return Reply(
            text=text.strip(),
            finish_reason=reason,
            usage=Usage(prompt_tokens=0 if row.index else len(row.prompt), completion_tokens=len(tokens)),
            token_logprobs=tuple(chosen[: len(tokens) - ended]) if sampling.logprobs else None,
            alternatives=named or None,
        )

    # ------------------------------------------------------------ logprobs

    def logprobs(self, items: Sequence[Item], stopped: threading.Event) -> list[Logprobs]:
        rows = whole(self.chat.completed(items))
        logprobs: list[Logprobs] = []
        for batch in self._batches(rows):
            if stopped.is_set():
                raise EngineError("scoring was cancelled", retryable=True, cause="cancelled")
            for row, values in zip(batch, self._given([(row.ids, row.start) for row in batch]), strict=True):
                own = tuple(values)
                logprobs.append(Logprobs(own[:-1], own[-1]) if row.ends else Logprobs(own, None))
        return logprobs

    def _given(self, sequences: Sequence[tuple[list[int], int]]) -> list[list[float]]:
        """Log-probabilities of each sequence's tokens from `start` on.

        vLLM always samples one token, and its window must hold it. So the last token is not part of the prompt: its
        log-probability is requested at the sampled position.
        """
        outputs = self._outputs(
            [ids[:-1] for ids, _ in sequences],
            [self._scoring(named=[ids[-1]], prompt_logprobs=0) for ids, _ in sequences],
        )
        logprobs = []
        for (ids, start), output in zip(sequences, outputs, strict=True):
            read = [output.prompt_logprobs[n][ids[n]].logprob for n in range(start, len(ids) - 1)]
            last = output.outputs[0].logprobs[0][ids[-1]].logprob
            logprobs.append([*read, last] if start < len(ids) else [])
        return logprobs

    # ------------------------------------------------------------ vLLM

    def _scoring(self, *, named: Sequence[int], prompt_logprobs: int | None = None) -> Any:
        """Parameters of a request that only returns log-probabilities."""
        return self.vllm.SamplingParams(
            temperature=0,
            max_tokens=1,
            detokenize=False,
            logprob_token_ids=list(named),
            prompt_logprobs=prompt_logprobs,
        )

    def _batches(self, rows: Sequence[Result]) -> Iterator[Sequence[Result]]:
        """Rows in order. vLLM makes its own batches; these only bound what is lost when the work is cancelled."""
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def _generate(self, prompts: Sequence[list[int]], parameters: Sequence[Any]) -> list[Any]:
        return [output.outputs[0] for output in self._outputs(prompts, parameters)]

    def _outputs(self, prompts: Sequence[list[int]], parameters: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        try:
            made: list[Any] = self.llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], list(parameters), use_tqdm=False
            )
        except Exception as error:  # of any kind: vLLM's engine cannot be used after it
            raise EngineError(
                f"vLLM failed while running {self.name!r}: {_reason(error)}",
                cause="vllm",
                fatal=True,
                fix="run again with VLLM_LOGGING_LEVEL=INFO to read vLLM's own account",
            ) from None
        return made


def _whole_model(source: Source) -> Path:
    """A folder with the whole model: an adapter's is merged into its base, once, and kept.

    vLLM's own adapters are one over a base, while here each round of training may lie over the one before.
    """
    base, stacked = adapters.layers(source)
    if not stacked:
        return base
    from rlaif.engines.transformers import merged_folder

    return merged_folder(source)


def _noted(one: Any) -> tuple[Sequence[Any], Sequence[int]]:
    """vLLM's log-probabilities at each position of a completion, with its token there; empty where not requested."""
    return (one.logprobs, one.token_ids) if one.logprobs else ((), ())


def _tokens(alternatives: Mapping[str, int | None]) -> list[int]:
    return sorted({token for token in alternatives.values() if token is not None})


def _import() -> Any:
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Deprecations in vLLM's own dependencies do not concern the user of a pipeline.
    warnings.filterwarnings("ignore", module=r"vllm\.")
    import vllm
    import vllm.sampling_params

    return vllm


def _load(vllm: Any, name: str, folder: Path, dtype: str, options: Mapping[str, Any]) -> Any:
    _check_options(options, vllm)
    settings: dict[str, Any] = {
        "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs",
        "runner": "generate",
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "use_tqdm_on_load": False,
    }
    if vllm.platforms.current_platform.is_cpu():
        settings["block_size"] = 32  # only whole blocks are cached, and the default of 128 is longer than many prompts
    try:
        return vllm.LLM(str(folder), dtype=dtype, **settings | dict(options))
    except Exception as error:
        raise EngineError(
            f"vLLM cannot load {name!r}: {_reason(error)}",
            cause="load",
            fatal=True,
            fix="check its `dtype` and `options` (`max_model_len` and `gpu_memory_utilization` decide what fits), "
            "or run again with VLLM_LOGGING_LEVEL=INFO to read vLLM's own account",
        ) from None


def _check_options(options: Mapping[str, Any], vllm: Any) -> None:
    named = {field.name for field in dataclasses.fields(vllm.EngineArgs)} | set(inspect.signature(vllm.LLM).parameters)
    known = named - {"kwargs"}
    for option in options:
        if option in OURS:
            raise InputError("rlaif sets this option of vLLM itself", key=f"options.{option}", fix=OURS[option])
        if option not in known:
            close = difflib.get_close_matches(option, known - OURS.keys())  # the whole list would fill a screen
            raise InputError(
                f"vLLM {vllm.__version__} has no such option",
                key=f"options.{option}",
                fix=nearest(option, close) if close else "give an argument of `vllm.LLM` or `vllm.EngineArgs`",
            )


def _named_ends(folder: Path, llm: Any) -> int | list[int] | None:
    """The end tokens that generation_config.json names; those of the configuration in a folder without that file."""
    if (file := folder / "generation_config.json").is_file():
        named = json_object(file).get("eos_token_id")
    else:
        named = getattr(llm.model_config.hf_text_config, "eos_token_id", None)
    assert named is None or isinstance(named, int | list)
    return named


def _no_reward_head(name: str) -> EngineError:
    return EngineError(
        f"the model {name!r} runs in vLLM, which is not used for reward heads",
        cause="verb",
        fatal=True,
        fix="run the reward model with `engine: transformers`",
    )


def _reason(error: Exception) -> str:
    """The first line of an error's message; of a validation error, the first field and what is wrong with it."""
    listed = getattr(error, "errors", None)
    if callable(listed) and (problems := listed()):
        where = ".".join(str(part) for part in problems[0]["loc"])
        return f"{where}: {problems[0]['msg']}" if where else str(problems[0]["msg"])
    return first_line(error)
