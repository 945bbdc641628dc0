"""A model in this process, through transformers: sampling, log-probabilities of given text, a reward head.

`TransformersEngine` is the public class: asynchronous, lazy, one job at a time in a thread of its own, so the event
loop is never blocked. `_Model` is plain blocking code and knows nothing of the loop.

Differences from plain `generate`:
- The next token is drawn here, per row, by inverse CDF from a stream of uniforms that depends on the call alone
  (messages, temperature, top_p, schema, seed, attempt, index). A call's text therefore does not depend on its batch or
  its row there, up to the floating-point noise of batched matrix products. Parameters that draw nothing (log-probs,
  alternatives, max_tokens, stop) do not change the stream.
- Log-probabilities are those of the raw logits: natural log, before temperature, top_p or a grammar.
- A JSON schema becomes a grammar over tokens (xgrammar), per row, so rows with and without one share a batch. The
  caller still validates: a text may be truncated, and xgrammar ignores what it cannot express (`not`, `multipleOf`).
- A checkpoint's defaults in generation_config.json (penalties, top_k, ...) are ignored, except its end tokens.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from rlaif.engines import adapters
from rlaif.engines.adapters import Adapted, Source
from rlaif.engines.chat import Chat, Completed, Item, before_stop, end_tokens, schema_text, stream, whole
from rlaif.engines.identity import has_reward_head, model_files, model_folder, weights_digest
from rlaif.engines.protocol import Logprobs, Reply, Request
from rlaif.engines.vetting import failing, loading, no_number
from rlaif.engines.worker import Worker
from rlaif.errors import EngineError, InputError, first_line
from rlaif.records import FinishReason, Usage
from rlaif.version import install

Result = TypeVar("Result")

PEFT_ON_EXPERTS = "The following .*_pattern keys did not match"  # said of experts that have no adapter
LOGITS_AT_ONCE = 2**27  # float32 logits held while scoring given text: 512 MiB


class TransformersEngine:
    """A causal language model, or a reward head, in this process. The model is loaded at the first verb."""

    in_process = True

    def __init__(
        self,
        name: str,
        path: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 256,
    ) -> None:
        self.name, self.path, self.revision, self.adapter = name, path, revision, adapter
        self.dtype, self.device, self.batch_size = dtype, device, batch_size
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
        """The weights' digest, and the precision where it is not float32: it changes completions."""
        precision = "" if self.dtype == "float32" else f":{self.dtype}"
        return f"weights:{weights_digest(self.source)}{precision}"

    async def probe(self) -> None:
        """Load the model."""
        await self._work(lambda model, stopped: None)

    async def sample(self, requests: Sequence[Request]) -> list[list[Reply | EngineError]]:
        return await self._work(lambda model, stopped: model.sample(requests, stopped))

    async def logprobs(self, items: Sequence[Item]) -> list[Logprobs]:
        return await self._work(lambda model, stopped: model.logprobs(items, stopped))

    async def score(self, items: Sequence[Item]) -> list[float | EngineError]:
        return await self._work(lambda model, stopped: model.score(items, stopped))

    async def close(self) -> None:
        """Unload the model and end its thread. A later verb loads it again."""
        await self._worker.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _loaded(self) -> _Model:
        with loading(self.folder), quietly():
            return _Model(self.source, self.dtype, self.device, self.batch_size)

    async def _work(self, verb: Callable[[_Model, threading.Event], Result]) -> Result:
        """Run `verb` in the engine's thread. Cancelling the caller ends it after the current batch."""

        def work(model: _Model, stopped: threading.Event) -> Result:
            with torch.inference_mode(), failing(self.name, model.folder, self.batch_size):
                return verb(model, stopped)

        return await self._worker.run(work)


@dataclass(slots=True)
class _Row:
    """One sample of a batch."""

    number: int  # of the request
    position: int  # among the request's indices
    request: Request
    prompt: list[int]
    alternatives: dict[str, int | None] = field(default_factory=dict)  # name -> id, where one token

    @property
    def index(self) -> int:
        return self.request.indices[self.position]

    @property
    def schema(self) -> str:
        return schema_text(self.request)

    def uniforms(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(count,) the first uniforms in [0, 1) of this call's stream."""
        key = stream(self.request, self.index)
        return np.random.Generator(np.random.PCG64(int(key, 16))).random(count, dtype=np.float32)


class _Model:
    """Weights, tokenizer and chat template, and the three verbs in plain blocking code."""

    def __init__(self, source: Source, dtype: str, device: str, batch_size: int) -> None:
        folder = adapters.named(source)
        self.folder, self.batch_size = folder, batch_size
        model_files(source)  # refuses what cannot be loaded
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.net = _load(source, dtype).to(self.device).eval()
        refuse_diverged(self.net, folder)
        self.is_reward = hasattr(self.net, "score")
        self.tokenizer = load_tokenizer(source)
        text_config = self.net.config.get_text_config()
        self.vocabulary: int = text_config.vocab_size
        named = getattr(self.net, "generation_config", None) and self.net.generation_config.eos_token_id
        self.ends = end_tokens(named, self.tokenizer, folder)
        if max(self.ends) >= self.vocabulary:
            raise InputError(
                f"the end token is number {max(self.ends)}, and the model has {self.vocabulary} tokens",
                file=str(folder),
                fix="set `eos_token` in tokenizer_config.json to one that the model was trained with",
            )
        limit: int | None = getattr(text_config, "max_position_embeddings", None)
        self.chat = Chat(self.tokenizer, folder, ends=self.ends, limit=limit)
        pad = self.tokenizer.pad_token_id
        self.pad: int = pad if pad is not None and pad < self.vocabulary else min(self.ends)
        # A checkpoint's own generation settings must not override the request's.
        self.net.generation_config = self._settings()
        self._accepted = frozenset(inspect.signature(self.net.forward).parameters)
        self._pieces: list[str] | None = None
        self._last_characters: dict[str, torch.Tensor] = {}
        self._grammars: dict[str, Any] = {}  # by the schema's text

    def _settings(self, **settings: Any) -> GenerationConfig:
        config: Any = GenerationConfig
        made: GenerationConfig = config(pad_token_id=self.pad, eos_token_id=sorted(self.ends), **settings)
        return made

    def _prompts(self, requests: Sequence[Request]) -> list[list[int] | EngineError]:
        """Each request's prompt as tokens, or its error."""
        prompts = self.chat.prompts(requests)
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if isinstance(prompt, list) and (schema := schema_text(request)):
                try:
                    self.compiled(schema)
                except EngineError as error:
                    prompts[number] = error
        return prompts

    # ------------------------------------------------------------ sample

    def sample(self, requests: Sequence[Request], stopped: threading.Event) -> list[list[Reply | EngineError]]:
        if self.is_reward:
            raise EngineError(
                f"the model in {self.folder} has a reward head and cannot sample",
                cause="verb",
                fatal=True,
                fix="name a causal language model",
            )
        prompts = self._prompts(requests)
        named = {text for request in requests for text in request.sampling.alternatives}
        alternatives = {text: self.chat.alternative(text) for text in named}
        rows: list[_Row] = []
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if isinstance(prompt, EngineError):
                continue
            chosen = {text: alternatives[text] for text in request.sampling.alternatives}
            rows += [_Row(number, i, request, prompt, chosen) for i in range(len(request.indices))]
        replies: dict[tuple[int, int], Reply | EngineError] = {}
        for batch in self._batches(rows):
            if stopped.is_set():
                break
            for row, reply in zip(batch, self._generate(batch), strict=True):
                replies[row.number, row.position] = reply
        cancelled = EngineError("sampling was cancelled", retryable=True, cause="cancelled")
        return [
            [prompt if isinstance(prompt, EngineError) else replies.get((n, i), cancelled)
             for i in range(len(request.indices))]
            for n, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        ]  # fmt: skip

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows of similar length and schema together, for little padding. Longest first: out of memory shows early."""
        ordered = sorted(rows, key=lambda r: (r.request.sampling.max_tokens, r.schema, len(r.prompt)), reverse=True)
        for start in range(0, len(ordered), self.batch_size):
            yield ordered[start : start + self.batch_size]

    def _generate(self, batch: Sequence[_Row]) -> list[Reply | EngineError]:
        ids, mask = self._padded([row.prompt for row in batch])
        longest = max(row.request.sampling.max_tokens for row in batch)
        stops = _Stops(self, batch, prompt_width=ids.shape[1])
        grammar = _Grammar(self, batch, stops) if any(row.schema for row in batch) else None
        draw = _Draw(batch, longest, self.device, grammar)
        written = self.net.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._settings(max_new_tokens=longest, do_sample=False),
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList([stops]),
        )[:, ids.shape[1] :]
        kept = [tokens[:length] for tokens, length in zip(written.tolist(), stops.lengths.tolist(), strict=True)]
        ended = [bool(tokens) and tokens[-1] in self.ends for tokens in kept]
        texts = [self.chat.said(tokens, row.request) for tokens, row in zip(kept, batch, strict=True)]
        chosen = draw.logprobs.tolist() if draw.logprobs is not None else None
        first = draw.first.tolist() if draw.first is not None else None
        lost = draw.lost.tolist()
        replies: list[Reply | EngineError] = []
        for n, (row, text) in enumerate(zip(batch, texts, strict=True)):
            if lost[n]:
                replies.append(no_number("probabilities"))
                continue
            if grammar is not None and n in grammar.stuck:
                replies.append(
                    EngineError(f"no token of the model continues the JSON after {text[-40:]!r}", cause="schema")
                )
                continue
            sampling = row.request.sampling
            text, cut = before_stop(text, sampling.stop)
            reason: FinishReason = "stop" if cut or ended[n] or n in stops.hit else "length"
            logprobs = chosen[n][: len(kept[n]) - ended[n]] if sampling.logprobs and chosen is not None else None
            named = None
            if row.alternatives and first is not None:
                named = {
                    name: None if token is None else first[n][draw.columns[token]]
                    for name, token in row.alternatives.items()
                }
            replies.append(
                Reply(
                    text=text.strip(),
                    finish_reason=reason,
                    usage=Usage(prompt_tokens=0 if row.position else len(row.prompt), completion_tokens=len(kept[n])),
                    token_logprobs=None if logprobs is None else tuple(logprobs),
                    alternatives=named,
                )
            )
        return replies

    def compiled(self, schema: str) -> Any:
        """The grammar of a JSON schema, compiled once. Raises EngineError."""
        if schema not in self._grammars:
            try:
                self._grammars[schema] = self._compiler.compile_json_schema(schema, any_whitespace=False)
            except RuntimeError as error:
                # The prefix, `[12:00:00] file.cc:1: `, would make every message different.
                reason = re.sub(r"^\[[\d:]+\] \S+: ", "", first_line(error))
                raise EngineError(f"the JSON schema cannot be compiled: {reason}", cause="schema") from None
        return self._grammars[schema]

    @cached_property
    def _compiler(self) -> Any:
        """Compiles schemas to grammars over this model's tokens. Raises EngineError without xgrammar."""
        try:
            import xgrammar
        except ImportError:
            raise EngineError(
                "a JSON schema for a transformers model needs xgrammar, which is not installed",
                cause="schema",
                fatal=True,  # so that it is not stored as a failure: the call succeeds once xgrammar is installed
                fix=f"{install('schema')}, or have the judge answer in lines (`answers: lines`)",
            ) from None
        ends = sorted(self.ends)
        read = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=self.vocabulary, stop_token_ids=ends)
        # xgrammar allows two kinds of tokens in strings that must not be there: special tokens, which it reads as the
        # text of their names and decoding drops, and control characters (where a length is bounded).
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        pieces = [
            b"" if token in special or any(byte < 0x20 for byte in piece) else piece
            for token, piece in enumerate(read.decoded_vocab)
        ]
        info = xgrammar.TokenizerInfo(
            pieces, vocab_size=self.vocabulary, stop_token_ids=ends, add_prefix_space=read.add_prefix_space
        )
        return xgrammar.GrammarCompiler(info, max_threads=1)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, T) and attention mask (B, T), padded on the left."""
        width = max(map(len, sequences))
        ids = torch.tensor([[self.pad] * (width - len(s)) + list(s) for s in sequences])  # (B, T)
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])  # (B, T)
        return ids.to(self.device), mask.to(self.device)

    # ------------------------------------------------------------ stop strings

    def may_end(self, stop: str) -> torch.Tensor:
        """(V,) whether a token can complete `stop`, that is, holds its last character.

        All true where that cannot be told: a non-ASCII character may span tokens, and some tokenizers drop the space
        of a token decoded alone.
        """
        last = stop[-1]
        if last not in self._last_characters:
            if self._pieces is None:
                # Decoding one row per token is slow for large vocabularies, so it is done once.
                self._pieces = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            certain = last.isascii() and last != " "
            known = [last in piece or not certain for piece in self._pieces[: self.vocabulary]]
            known += [False] * (self.vocabulary - len(known))
            self._last_characters[last] = torch.tensor(known, device=self.device)
        return self._last_characters[last]

    # ------------------------------------------------------------ logprobs and score

    def _by_length(self, rows: Sequence[Completed], size: Callable[[Completed], int]) -> Iterator[list[int]]:
        """Positions in `rows` in batches of similar length, at most `size(longest)` each."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids), reverse=True)
        while order:
            count = max(1, min(self.batch_size, min(size(rows[i]) for i in order[: self.batch_size])))
            yield order[:count]
            order = order[count:]

    def _inputs(self, rows: Sequence[Completed]) -> dict[str, Any]:
        ids, mask = self._padded([row.ids for row in rows])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._accepted:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "use_cache" in self._accepted:
            inputs["use_cache"] = False
        return inputs

    def logprobs(self, items: Sequence[Item], stopped: threading.Event) -> list[Logprobs]:
        if self.is_reward:
            raise EngineError(
                f"the model in {self.folder} has a reward head and no log-probabilities",
                cause="verb",
                fatal=True,
                fix="name a causal language model",
            )
        rows = whole(self.chat.completed(items))
        by_row: dict[int, Logprobs] = {}
        for batch in self._by_length(rows, lambda row: LOGITS_AT_ONCE // ((row.length + 1) * self.vocabulary)):
            if stopped.is_set():
                raise EngineError("scoring was cancelled", retryable=True, cause="cancelled")
            inputs = self._inputs([rows[i] for i in batch])
            keep = max(rows[i].length for i in batch) + 1  # and the token before, which predicts the first one
            if "logits_to_keep" in self._accepted:
                inputs["logits_to_keep"] = keep
            logits = self.net(**inputs).logits[:, -keep:-1].float()  # (B, keep - 1, V)
            targets = inputs["input_ids"][:, -(keep - 1) :] if keep > 1 else inputs["input_ids"][:, :0]
            chosen = logits.gather(-1, targets[:, :, None])[:, :, 0] - logits.logsumexp(-1)  # (B, keep - 1)
            for i, values in zip(batch, chosen.tolist(), strict=True):
                own = values[len(values) - rows[i].length :]
                if not all(map(math.isfinite, own)):
                    raise no_number("log-probabilities")
                by_row[i] = Logprobs(tuple(own[:-1]), own[-1]) if rows[i].ends else Logprobs(tuple(own), None)
        return [by_row[i] for i in range(len(rows))]

    def score(self, items: Sequence[Item], stopped: threading.Event) -> list[float | EngineError]:
        if not self.is_reward:
            raise EngineError(
                f"the model in {self.folder} has no reward head",
                cause="verb",
                fatal=True,
                fix="name a trained reward model",
            )
        completed = self.chat.completed(items)
        rows = [row for row in completed if isinstance(row, Completed)]
        by_row: dict[int, float | EngineError] = {}
        for batch in self._by_length(rows, lambda row: self.batch_size):
            if stopped.is_set():
                raise EngineError("scoring was cancelled", retryable=True, cause="cancelled")
            # The head is applied here, at the last position: transformers looks for the last token that is not padding,
            # which is the wrong one where the end token is also the padding token.
            hidden = self.net.base_model(**self._inputs([rows[i] for i in batch])).last_hidden_state[:, -1]  # (B, D)
            for i, value in zip(batch, self.net.score(hidden)[:, 0].float().tolist(), strict=True):
                by_row[i] = value if math.isfinite(value) else no_number("scores")
        scores = iter(by_row[i] for i in range(len(rows)))
        return [next(scores) if isinstance(row, Completed) else row for row in completed]


class _Draw(LogitsProcessor):
    """Draws the next token of each row, records its log-probability, and masks every other token for `generate`."""

    def __init__(self, batch: Sequence[_Row], steps: int, device: torch.device, grammar: _Grammar | None) -> None:
        samplings = [row.request.sampling for row in batch]
        self.step, self.grammar = 0, grammar
        self.drawn = [i for i, s in enumerate(samplings) if s.temperature > 0]
        self.nucleus = [n for n, i in enumerate(self.drawn) if samplings[i].top_p < 1]  # positions among the drawn rows
        column = {"dtype": torch.float32, "device": device}
        self.temperature = torch.tensor([[samplings[i].temperature] for i in self.drawn], **column)  # type: ignore[arg-type]
        self.top_p = torch.tensor([[samplings[self.drawn[n]].top_p] for n in self.nucleus], **column)  # type: ignore[arg-type]
        if self.drawn:
            self.uniforms = torch.from_numpy(np.stack([batch[i].uniforms(steps) for i in self.drawn])).to(device)
        needed = any(s.logprobs for s in samplings)
        self.logprobs = torch.zeros(len(batch), steps, device=device) if needed else None  # (B, steps)
        tokens = sorted({token for row in batch for token in row.alternatives.values() if token is not None})
        self.columns = {token: i for i, token in enumerate(tokens)}
        self.first: torch.Tensor | None = None  # (B, named tokens) log-probabilities at the first step
        self.named = torch.tensor(tokens, dtype=torch.long, device=device)
        self.lost = torch.zeros(len(batch), dtype=torch.bool, device=device)  # rows with a logit that is no number

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # scores: (B, V)
        log_z = scores.logsumexp(-1, keepdim=True) if self.logprobs is not None or self.step == 0 else None
        if self.step == 0 and log_z is not None:
            self.first = scores[:, self.named] - log_z
        allowed = scores if self.grammar is None else self.grammar.mask(input_ids, scores.clone())
        if len(self.drawn) == len(scores):
            chosen = self._sampled(allowed)[:, None]
        else:
            chosen = allowed.argmax(-1, keepdim=True)  # (B, 1)
            if self.drawn:
                chosen[self.drawn, 0] = self._sampled(allowed[self.drawn])
        # A row with NaN draws a token past the last one, or one whose logit is not finite.
        chosen.clamp_(max=scores.shape[-1] - 1)
        self.lost |= ~torch.isfinite(scores.gather(-1, chosen)[:, 0])
        if self.logprobs is not None and log_z is not None:
            self.logprobs[:, self.step] = (scores.gather(-1, chosen) - log_z)[:, 0]
        self.step += 1
        scores.fill_(-torch.inf).scatter_(1, chosen, 0.0)
        return scores

    def _sampled(self, scores: torch.Tensor) -> torch.Tensor:
        """Inverse CDF in vocabulary order: the first token whose cumulative probability exceeds the uniform."""
        probabilities = torch.softmax(scores / self.temperature, -1)
        if self.nucleus:
            own = probabilities[self.nucleus]
            ordered = _descending(own)
            # The smallest set with mass top_p; tokens as likely as its least likely one stay too.
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            least = ordered.masked_fill(beyond, torch.inf).amin(-1, keepdim=True)
            probabilities[self.nucleus] = own.masked_fill(own < least, 0.0)
        cumulative = probabilities.cumsum(-1)
        # A uniform is at most 1 - 2**-24, so the product stays below the total and the search finds a token.
        threshold = self.uniforms[:, self.step, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


class _Stops(StoppingCriteria):
    """Ends each row separately: at an end token, a stop string or max_tokens. Keeps the rows' lengths."""

    def __init__(self, model: _Model, batch: Sequence[_Row], *, prompt_width: int) -> None:
        self.model, self.batch, self.prompt_width = model, batch, prompt_width
        # `generate` pads finished rows only if a criterion has an attribute of this name.
        self.eos_token_id = torch.tensor(sorted(model.ends), device=model.device)
        self.limits = torch.tensor([row.request.sampling.max_tokens for row in batch], device=model.device)
        self.lengths = self.limits.clone()
        self.done = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
        self.hit: set[int] = set()  # rows ended by a stop string
        self.suspects = self._suspects()

    def _suspects(self) -> torch.Tensor | None:
        """(B, V) tokens after which a row must be searched for its stop strings; None when no row has any."""
        if not any(row.request.sampling.stop for row in self.batch):
            return None
        distinct: dict[tuple[str, ...], torch.Tensor] = {}
        for row in self.batch:
            stop = row.request.sampling.stop
            if stop not in distinct:
                mask = torch.zeros(self.model.vocabulary, dtype=torch.bool, device=self.model.device)
                for text in filter(None, stop):
                    mask = mask | self.model.may_end(text)
                distinct[stop] = mask
        return torch.stack([distinct[row.request.sampling.stop] for row in self.batch])

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:  # input_ids: (B, T)
        length = input_ids.shape[1] - self.prompt_width
        last = input_ids[:, -1]
        ended = torch.isin(last, self.eos_token_id) | (self.limits <= length)
        if self.suspects is not None:
            searched = self.suspects.gather(1, last[:, None])[:, 0] & ~self.done
            for n in searched.nonzero()[:, 0].tolist():
                text = self.model.chat.text(input_ids[n, self.prompt_width :])
                # A special token decodes to nothing, but may itself be a stop string.
                token = str(self.model.tokenizer.decode(last[n : n + 1]))
                if any(stop and (stop in text or stop == token) for stop in self.batch[n].request.sampling.stop):
                    ended[n] = True
                    self.hit.add(n)
        self.lengths = torch.where(ended & ~self.done, torch.full_like(self.lengths, length), self.lengths)
        self.done = self.done | ended
        return self.done  # type: ignore[return-value]


class _Grammar:
    """Masks tokens that the JSON schemas of a batch forbid. xgrammar's own processor fails on rows that end early.

    `stuck` are rows whose grammar allows no token, as in a vocabulary without `{`; they end there.
    """

    def __init__(self, model: _Model, batch: Sequence[_Row], stops: _Stops) -> None:
        import xgrammar

        self.apply, self.stops, self.end = xgrammar.apply_token_bitmask_inplace, stops, min(model.ends)
        self.matchers = {
            n: xgrammar.GrammarMatcher(model.compiled(row.schema)) for n, row in enumerate(batch) if row.schema
        }
        self.bitmask = xgrammar.allocate_token_bitmask(len(batch), model.vocabulary)  # all tokens allowed at first
        self.stuck: set[int] = set()

    def mask(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (B, V) with minus infinity where a row's grammar forbids the token; in place."""
        done, last = self.stops.done.tolist(), input_ids[:, -1].tolist()
        for n, matcher in self.matchers.items():
            if done[n]:
                continue
            if input_ids.shape[1] > self.stops.prompt_width:
                accepted = matcher.accept_token(last[n])
                assert accepted, "a token was drawn that the grammar forbids"
            matcher.fill_next_token_bitmask(self.bitmask, n)
        self.apply(scores, self.bitmask.to(scores.device))
        self.stuck.update((self.bitmask == 0).all(-1).nonzero()[:, 0].tolist())
        if self.stuck:
            scores[sorted(self.stuck), self.end] = 0.0
        return scores


def _descending(values: torch.Tensor) -> torch.Tensor:
    """Each row sorted in descending order."""
    if values.device.type != "cpu":
        return values.sort(-1, descending=True).values
    # numpy sorts with vector instructions: 0.7 ms instead of 71 ms for 256 rows of 2048 on one core.
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)


def _load(source: Source, dtype: str) -> Any:
    """The model that its config names, loaded. Raises InputError, also for missing weights, which transformers would
    initialise at random."""
    config = load_config(source)
    auto: Any = transformers.AutoModelForCausalLM
    if has_reward_head(source):
        if config.num_labels != 1:
            raise InputError(
                f"a reward model has one output, this classifier has {config.num_labels}",
                file=str(adapters.named(source)),
                fix="name a model trained with `num_labels=1`",
            )
        auto = transformers.AutoModelForSequenceClassification
    net, info = load_net(auto, source, config, getattr(torch, dtype))
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"the weights lack {len(missing)} tensors, the first is {missing[0]}",
            file=str(adapters.named(source)),
            fix="save the whole model",
        )
    return net


# ---------------------------------------------------------------- loading, here and for the trainers

SHIPPED_ATTENTION = ("eager", "sdpa", None)  # any other may be compiled, or code that is fetched from the hub


def load_config(source: Source, **options: Any) -> Any:
    """The configuration of the model's base, with an attention that ships with torch."""
    folder, stacked = adapters.layers(source)
    if stacked and adapters.scores(stacked[-1]):
        options = {"num_labels": 1} | options
    with loading(folder / "config.json", "the configuration"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        stated = config._attn_implementation
        # Assigned in any case, since that reaches the configurations inside it.
        config._attn_implementation = stated if stated in SHIPPED_ATTENTION else None
        config._experts_implementation = None
        return config


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of the last adapter that has one, or the base's."""
    base, stacked = adapters.layers(source)
    own = [folder for folder in stacked if (folder / "tokenizer_config.json").exists()]
    folder = own[-1] if own else base
    with loading(folder, "the tokenizer"):
        if not own:
            return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The folder has no configuration, from which the tokenizer's class is taken.
        config = load_config(base)
        return transformers.AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)


def load_net(auto: Any, source: Source, config: Any, dtype: torch.dtype, **how: Any) -> tuple[Any, Any]:
    """The network of the class that `auto` chooses by `config`, and transformers' record of its loading.

    Adapters are added to the weights, which are then those of a plain model. `how` goes to `from_pretrained`.
    """
    how |= {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    folder, stacked = adapters.layers(source)
    if stacked:
        weights_digest(source)  # refuses an adapter over another base
    with loading(folder):
        net, info = auto.from_pretrained(folder, config=config, dtype=dtype, **how)
    for adapter in stacked:
        with loading(adapter, "the adapter"), warnings.catch_warnings():
            # peft 0.21 still uses this property's old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            warnings.filterwarnings("ignore", message=PEFT_ON_EXPERTS)
            net = _adapted(net, adapter, info)
    return net, info


def _adapted(net: Any, adapter: Path, info: Any) -> Any:
    """The network with the adapter added to its weights; the heads that it brings are no longer missing in `info`.

    Raises InputError for an adapter that does not fit.
    """
    peft = _peft()
    named = peft.LoraConfig(**adapters.settings(adapter))
    if not net.can_generate() and not named.modules_to_save:  # of a language model, which is to get a score head
        named.task_type = None
    state = peft.load_peft_weights(str(adapter), device="cpu")
    if adapters.scores(adapter):
        _make_room_to_pad(net, load_tokenizer(Adapted(Path(net.name_or_path), adapter)))
    wrapped = peft.get_peft_model(net, named)
    loaded = peft.set_peft_model_state_dict(wrapped, state)
    lacking = [key for key in loaded.missing_keys if "lora_" in key or "modules_to_save" in key]
    if strangers := sorted([*loaded.unexpected_keys, *lacking]):
        raise InputError(
            f"the adapter does not fit its base model: {len(strangers)} of its tensors have no place there, or are "
            f"missing, the first is {strangers[0]!r}",
            file=str(adapter),
            fix="give the base model that it was trained on",
        )
    merged = wrapped.merge_and_unload().requires_grad_(True)  # which peft had frozen
    info["missing_keys"] = set(info["missing_keys"]) - {f"{head}.weight" for head in named.modules_to_save or ()}
    if (adapter / "generation_config.json").exists():
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    return merged


def merged_folder(source: Source) -> Path:
    """A folder with the weights of an adapted model as a plain one, in the precision of its base.

    Written once, under its digest, into the user's cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "rlaif" / "merged" / weights_digest(source)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        written = Path(tempfile.mkdtemp(prefix=".merging-", dir=folder.parent))
        try:
            config = load_config(source)
            with quietly():
                net, _ = load_net(transformers.AutoModelForCausalLM, source, config, config.dtype or torch.float32)
                net.save_pretrained(written)
                load_tokenizer(source).save_pretrained(written)
            with suppress(OSError):  # another process was faster
                os.rename(written, folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)
    return folder


def _make_room_to_pad(net: Any, tokenizer: Any) -> None:
    """Give a reward model the row of a padding token that was added to its base, as when it was trained."""
    if tokenizer.pad_token_id >= net.get_input_embeddings().num_embeddings:
        net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    net.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise InputError("an adapter needs peft, which is not installed", fix=install("train")) from None
    return peft


def refuse_diverged(net: Any, folder: Path) -> None:
    """Raise InputError for weights that are not finite."""
    if name := not_finite(net):
        raise InputError(
            f"the weights hold NaN or infinity, first in {name}: the model diverged when it was trained",
            file=str(folder),
            fix="use an earlier checkpoint of it, or train it again with a lower learning rate",
        )


def not_finite(net: Any) -> str | None:
    """The name of the first of a network's parameters with a value that is not finite."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # `aminmax` carries NaN on, and reads 24 GB/s where `isfinite` reads 0.3.
            if parameter.is_floating_point() and parameter.element_size() > 1 and parameter.numel():
                low, high = torch.aminmax(parameter)
                if not (torch.isfinite(low) and torch.isfinite(high)):
                    return str(name)
    return None


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and no messages from transformers: what it raises is told once, by us."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
