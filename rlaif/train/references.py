"""Log-probabilities of completions by a frozen model, computed once and kept by digest.

    FOLDER/MODEL/NAME.parquet   MODEL is the digest of what computes, NAME that of the file's rows
        key       16 bytes: the digest of the token ids of a prompt and of its completion
        logp      float32: log model(completion | prompt) in nats, summed over the completion's tokens

No key holds a setting of a loss, so that another training of the same base reads what the first one computed, whatever
its loss and beta. A training keeps what it uses in its job's folder, which is complete wherever it is resumed, and in a
folder that trainings share (`train.kept_files`). That one is a cache: a file that is damaged, or cannot be written,
costs only computing again. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.files import read_whole
from rlaif.train import kept_files

LARGEST = 128_000_000  # bytes of a shared folder: six million completions
LARGEST_FILE = LARGEST
KEPT_EVERY = 60.0  # seconds of computing that a kill may cost

LogProbs = dict[bytes, float]  # by key


class Completion(NamedTuple):
    """A completion with its prompt, as token ids."""

    prompt: list[int]
    ids: list[int]

    @property
    def key(self) -> bytes:
        """16 bytes: the digest of the ids, and of where the completion begins."""
        words = chain((len(self.prompt),), self.prompt, self.ids)
        return hashlib.blake2b(b"".join(word.to_bytes(4, "little") for word in words), digest_size=16).digest()

    def begins(self, length: int) -> Completion:
        """Its first `length` tokens, whose log-probability does not depend on the others."""
        return Completion(self.prompt, self.ids[:length])


class References:
    """The log-probabilities under one model that are kept in its job's `own` folder, and in a `shared` one.

    `model` is the digest, 32 hex digits, of everything that computes them: weights, precision, device, versions.
    """

    def __init__(self, model: str, own: Path, shared: Path | None = None) -> None:
        self._own, self._shared = own / model, None if shared is None else shared / model
        self._held: dict[Path, set[bytes]] = {}  # the keys in each folder, of those asked for

    def known(self, keys: Collection[bytes]) -> LogProbs:
        """What is kept of `keys`, the job's own first."""
        wanted, found = set(keys), LogProbs()
        for folder in (self._shared, self._own):
            if folder is not None:
                read = _read(folder, wanted)
                self._held[folder] = set(read)
                found |= read
        return found

    def keep(self, values: Mapping[bytes, float]) -> None:
        """Keep the finite ones of `values`, in each folder what it lacks.

        Raises OSError when the job's own folder cannot be written.
        """
        self._add(self._own, values)
        if self._shared is not None:
            with suppress(OSError):
                self._add(self._shared, values)
                kept_files.prune(self._shared.parent, LARGEST)

    def _add(self, folder: Path, values: Mapping[bytes, float]) -> None:
        held = self._held.setdefault(folder, set())
        new = {key: value for key, value in values.items() if key not in held and math.isfinite(value)}
        if new:
            _write(folder, new)
            held |= new.keys()


# ---------------------------------------------------------------- files


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema([("key", pyarrow.binary(16)), ("logp", pyarrow.float32())])


def _read(folder: Path, wanted: Collection[bytes]) -> LogProbs:
    """What the files of `folder` hold of `wanted`. A file that is not such a one is passed over."""
    import pyarrow
    import pyarrow.parquet

    found: LogProbs = {}
    for path in kept_files.files(folder):
        try:
            table = pyarrow.parquet.read_table(io.BytesIO(read_whole(path, LARGEST_FILE)))
            if table.schema != _schema():
                continue
            rows = zip(table["key"].to_pylist(), table["logp"].to_pylist(), strict=True)
            used = {key: logp for key, logp in rows if key in wanted and logp is not None and math.isfinite(logp)}
        except (OSError, pyarrow.ArrowException):  # gone, or damaged
            continue
        if used:
            found |= used
            kept_files.used(path)
    return found


def _write(folder: Path, values: Mapping[bytes, float]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = sorted(values.items())
    name = hashlib.sha256(b"".join(key for key, _ in rows)).hexdigest()[:32]
    columns = [[key for key, _ in rows], [logp for _, logp in rows]]
    whole = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=_schema()), whole)
    kept_files.write(folder, name, whole.getvalue())
