"""The published shapes of constitutions, read and written: Constitutional AI's files, and llm-swarm's.

Cue words and white space around a text are part of these files, and of no prompt of ours. They go to `origin`, so that
the export of an import has the bytes of the original. Anthropic's files:

    CritiqueRevisionInstructions.json    {id: {prompt: [critique], edit_request: revision}}
    CritiqueRevisionFewShotPrompts.json  [transcript, ...] of critiques and revisions
    RLMadisonInstructions.json           [comparison, ...], of no critique: they become principles of their own
    RLMadisonFewShotPrompts.json         [{prompt, corrects: [...], incorrects: [...]}, ...]
    RLMadisonPrecogFewShotPrompts.json   [{prompt}, ...], comparisons that are reasoned first

llm-swarm's one file: {constitutions: [{critic, revision}], system_chat: [[{role, content}, ...], ...]}.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.document import NAME
from rlaif.constitution.origin import TEXT, Cues, Frame, Layout, OddCues, Origin, Shape
from rlaif.constitution.reading import REQUESTS, Chat, Constitution, Principle, Request
from rlaif.errors import InputError, shown
from rlaif.files import MOST_WRITTEN, read_whole, why
from rlaif.records import Message
from rlaif.resources import find

CRITIQUES, FEW_SHOTS = "CritiqueRevisionInstructions.json", "CritiqueRevisionFewShotPrompts.json"
COMPARISONS, COMPARISON_SHOTS = "RLMadisonInstructions.json", "RLMadisonFewShotPrompts.json"
PRECOG, SWARM = "RLMadisonPrecogFewShotPrompts.json", "constitution.json"

# What stands around a text in each shape, where no file says it.
PUBLISHED = {
    "anthropic": Cues(
        critique=f"\n\nCritiqueRequest: {TEXT}\n\nCritique:",
        revision=f"\n\nRevisionRequest: {TEXT}\n\nRevision:",
        comparison=f"{TEXT}\n\nOptions:",
    ),
    "llm-swarm": Cues(),
}
# The cues before and after a text, as these files have them.
_CUES: dict[Request, tuple[re.Pattern[str], str]] = {
    "critique": (re.compile(r"\s*(?:Critique ?Request:\s*)?"), "Critique:"),
    "revision": (re.compile(r"\s*(?:Revision ?Request:\s*)?"), "Revision:"),
    "comparison": (re.compile(r"\s*"), "Options:"),
}
TURNS = ("Human", "Assistant", "Critique Request", "Critique", "Revision Request", "Revision")
_TURN = re.compile(r"^(Human|Assistant|Critique ?Request|Critique|Revision ?Request|Revision):", re.MULTILINE)
_SPACE = re.compile(r"\s*")
SHAPED = "name files of Constitutional AI or of llm-swarm, as docs/constitutions.md lists them"
ASSISTANT = ("Assistant", "Critique", "Revision")


class Imported(NamedTuple):
    constitution: Constitution
    read: list[str]  # each file, with what it holds
    notes: list[str]


class Exported(NamedTuple):
    files: dict[str, str]
    notes: list[str]  # what the shape has no place for


# ---------------------------------------------------------------- reading


class _File(NamedTuple):
    """A file that is read, and its kind by its content."""

    path: str
    text: str
    value: Any

    def error(self, message: str, fix: str | None = None) -> InputError:
        return InputError(message, file=self.path, fix=fix)


class _Found:
    """What the files hold, as they are read."""

    def __init__(self) -> None:
        self.principles: list[dict[str, str]] = []
        self.around: dict[str, dict[Request, str]] = {}  # by id
        self.examples: dict[str, list[Chat]] = {"revision": [], "comparison": []}
        self.frames: dict[str, list[Frame]] = {"revision": [], "comparison": []}
        self.layouts: dict[str, Layout] = {}
        self.read: list[str] = []
        self.notes: list[str] = []

    def principle(self, file: _File, name: str, **texts: Any) -> None:
        """A principle of these requests, apart from what stands around them."""
        if not re.match(NAME, name):
            raise file.error(f"the key {shown(name)} can be no id", "use letters, digits, '.', '_' and '-'")
        if name in self.around:
            raise file.error(f"the id {name!r} is there twice")
        principle, around = {"id": name}, self.around.setdefault(name, {})
        for request in REQUESTS:
            if request not in texts:
                continue
            if not isinstance(text := texts[request], str):
                raise file.error(f"expected text for the {request} of {name!r}, found {shown(text)}")
            before, words, behind = _without_cues(text, request)
            if not words:
                raise file.error(f"the {request} of {name!r} is empty")
            principle[request], around[request] = words, f"{before}{TEXT}{behind}"
        self.principles.append(principle)

    def example(self, kind: str, roles: Sequence[str], pieces: Sequence[str], frame: Frame) -> None:
        chat = tuple(
            Message.model_validate({"role": role, "content": text}) for role, text in zip(roles, pieces, strict=True)
        )
        self.examples[kind].append(chat)
        self.frames[kind].append(frame)


def _without_cues(text: str, request: Request) -> tuple[str, str, str]:
    """The cue and white space before a text, the text, and what is behind it."""
    first, last = _CUES[request]
    start = match.end() if (match := first.match(text)) else 0
    words = text[start:].rstrip()
    words = words.removesuffix(last).rstrip()
    return text[:start], words, text[start + len(words) :]


def import_constitution(paths: Sequence[str], name: str) -> Imported:
    """The constitution in these files, of one of the shapes. Raises InputError where a file has none of them."""
    files = [_read(path) for path in paths]
    kinds = [_kind(file) for file in files]
    for number, (file, kind) in enumerate(zip(files, kinds, strict=True)):
        if kind in kinds[:number]:
            raise file.error(f"it is of the same kind as {files[kinds.index(kind)].path}", "import them one by one")
        if SWARM in kinds and len(files) > 1:
            raise file.error("llm-swarm's shape is one file", "import each file by itself")
    found = _Found()
    for kind, (reader, what) in READERS.items():  # in this order, whatever order they are named in
        if kind in kinds:
            file = files[kinds.index(kind)]
            count = reader(found, file)
            found.read.append(f"{Path(file.path).name} ({what}: {count})")
            if (layout := _layout(file)) is not None:
                found.layouts[kind] = layout
            else:
                found.notes.append(f"{file.path}: its JSON is set by hand; an export has its values, not its lines")
    if not found.principles:
        raise files[0].error("there are only examples here", "import them together with the principles")
    return Imported(_constitution(found, name, "llm-swarm" if SWARM in kinds else "anthropic"), found.read, found.notes)


def _constitution(found: _Found, name: str, shape: Shape) -> Constitution:
    cues, odd = _cues(found.around)
    origin = {"shape": shape, "cues": cues, "odd": odd, "frames": found.frames, "layouts": found.layouts}
    examples = {"critique": found.examples["revision"], **found.examples}
    return Constitution.model_validate(
        {"name": name, "examples": examples, "principles": found.principles, "origin": Origin.model_validate(origin)}
    )


def _cues(around: dict[str, dict[Request, str]]) -> tuple[Cues, dict[str, OddCues]]:
    """What stands around most texts of a kind, and by id what stands around the others."""
    most: dict[str, str] = {}
    for request in REQUESTS:
        counts = Counter(cues[request] for cues in around.values() if request in cues)
        if counts:
            most[request] = counts.most_common(1)[0][0]
    odd = {
        name: {request: cue for request, cue in cues.items() if cue != most[request]} for name, cues in around.items()
    }
    return Cues.model_validate(most), {name: OddCues.model_validate(cues) for name, cues in odd.items() if cues}


def _read(path: str) -> _File:
    try:
        text = read_whole(find(path), MOST_WRITTEN).decode("utf-8")
        value = json.loads(text, object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()  # an escape may name half a character
        return _File(path, text, value)
    except OSError as error:
        raise InputError(f"cannot be read: {why(error)}", file=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", file=path) from None
    except UnicodeEncodeError:
        raise InputError("an escape in it names half a character", file=path, fix="write the character out") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", file=path, line=error.lineno, fix=SHAPED) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not usable JSON: {error}", file=path) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(repeated)} is there twice")
    return value


def _kind(file: _File) -> str:
    value = file.value
    if isinstance(value, dict) and "constitutions" in value:
        return SWARM
    if isinstance(value, dict) and value and all(isinstance(one, dict) and "prompt" in one for one in value.values()):
        return CRITIQUES
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return FEW_SHOTS if all(_TURN.match(one.lstrip()) for one in value) else COMPARISONS
    if isinstance(value, list) and value and all(isinstance(one, dict) and "prompt" in one for one in value):
        return COMPARISON_SHOTS if "corrects" in value[0] else PRECOG
    raise file.error("it has none of the shapes that are known here", SHAPED)


def _keys(file: _File, value: Any, *keys: str) -> list[Any]:
    """The values of an object that has exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(keys):
        found = ", ".join(value) if isinstance(value, dict) else shown(value)
        raise file.error(f"expected an object of {', '.join(keys)}, found {found}")
    if list(value) != list(keys):
        raise file.error(f"expected the keys in the order {', '.join(keys)}, found {', '.join(value)}")
    return list(value.values())


def _one(file: _File, value: Any, key: str) -> str:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], str):
        raise file.error(f"expected a list of one text under `{key}`, found {shown(value)}")
    return value[0]


def _critiques(found: _Found, file: _File) -> int:
    for name, value in file.value.items():
        prompt, revision = _keys(file, value, "prompt", "edit_request")
        found.principle(file, name, critique=_one(file, prompt, "prompt"), revision=revision)
    return len(file.value)


def _comparisons(found: _Found, file: _File) -> int:
    for number, text in enumerate(file.value):
        found.principle(file, f"comparison{number}", comparison=text)
    return len(file.value)


def _few_shots(found: _Found, file: _File) -> int:
    for number, text in enumerate(file.value, 1):
        roles, between, pieces = _turns(text)
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise file.error(f"transcript {number} does not alternate between Human and Assistant, or ends with Human")
        found.example("revision", roles, pieces, Frame(file=FEW_SHOTS, between=tuple(between)))
    return len(file.value)


def _turns(text: str) -> tuple[list[str], list[str], list[str]]:
    """A transcript's roles, what stands before each turn and after the last, and the turns."""
    roles: list[str] = []
    places: list[tuple[int, int]] = []
    for name, *place in _cues_in(text, _TURN):
        role = "assistant" if name in ASSISTANT else "user"
        if not roles or roles[-1] != role:  # else they are words of the same turn that look like a cue
            roles.append(role)
            places.append((place[0], place[1]))
    between = [text[start:end] for start, end in places]
    pieces = [text[end:start] for (_, end), (start, _) in pairwise([*places, (len(text), len(text))])]
    last = pieces[-1].rstrip()
    return roles, [*between, pieces[-1][len(last) :]], [*pieces[:-1], last]


def _cues_in(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, int, int]]:
    """The cues in a text, each with its place and that of the white space around it."""
    for cue in pattern.finditer(text):
        start = cue.start()
        while start and text[start - 1].isspace():
            start -= 1
        space = _SPACE.match(text, cue.end())
        yield cue[1], start, cue.end() if space is None else space.end()


def _comparison_shots(found: _Found, file: _File) -> int:
    for value in file.value:
        prompt, corrects, incorrects = _keys(file, value, "prompt", "corrects", "incorrects")
        if not isinstance(prompt, str) or not isinstance(incorrects, list):
            raise file.error(f"expected a text under `prompt` and a list under `incorrects`, found {shown(value)}")
        before, question, behind = _apart(prompt)
        start, answer, end = _apart(_one(file, corrects, "corrects"))
        frame = {"file": COMPARISON_SHOTS, "between": (before, behind, start, end), "incorrects": incorrects}
        found.example("comparison", ("user", "assistant"), (question, answer), Frame.model_validate(frame))
    return len(file.value)


def _apart(text: str) -> tuple[str, str, str]:
    """White space before a text, the text, and white space behind it."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start], inner, text[start + len(inner) :]


def _precog(found: _Found, file: _File) -> int:
    for number, value in enumerate(file.value, 1):
        (prompt,) = _keys(file, value, "prompt")
        cues = list(_cues_in(prompt, _SPEAKER)) if isinstance(prompt, str) else []
        if len(cues) < 2 or cues[0][0] != "Human" or cues[0][1] or cues[-1][0] != "Assistant":
            raise file.error(f"prompt {number} is no turn of Human and one of Assistant, in which it is reasoned")
        (_, _, first), (_, start, last) = cues[0], cues[-1]
        answer = prompt[last:].rstrip()
        frame = Frame(file=PRECOG, between=(prompt[:first], prompt[start:last], prompt[last + len(answer) :]))
        found.example("comparison", ("user", "assistant"), (prompt[first:start], answer), frame)
    return len(file.value)


_SPEAKER = re.compile(r"^(Human|Assistant):", re.MULTILINE)


def _swarm(found: _Found, file: _File) -> int:
    pairs, chats = _keys(file, file.value, "constitutions", "system_chat")
    if not isinstance(pairs, list) or not isinstance(chats, list):
        raise file.error("expected a list under `constitutions` and one under `system_chat`")
    for number, pair in enumerate(pairs):
        critique, revision = _keys(file, pair, "critic", "revision")
        found.principle(file, f"principle{number}", critique=critique, revision=revision)
    for number, chat in enumerate(chats, 1):
        turns = [_keys(file, message, "role", "content") for message in chat] if isinstance(chat, list) else []
        roles, texts = [role for role, _ in turns], [text for _, text in turns]
        alternate = ["user", "assistant"] * (len(roles) // 2)
        if not roles or roles != alternate or not all(isinstance(text, str) for text in texts):
            raise file.error(
                f"chat {number} of `system_chat` is no turns of user and assistant that end with the latter"
            )
        found.example("revision", roles, texts, Frame(file=SWARM, between=("",) * (len(roles) + 1)))
    return len(pairs)


READERS: dict[str, tuple[Callable[[_Found, _File], int], str]] = {
    SWARM: (_swarm, "critiques and revisions"),
    CRITIQUES: (_critiques, "critiques and revisions"),
    COMPARISONS: (_comparisons, "comparisons"),
    FEW_SHOTS: (_few_shots, "examples"),
    COMPARISON_SHOTS: (_comparison_shots, "examples"),
    PRECOG: (_precog, "examples"),
}


# ---------------------------------------------------------------- how JSON is set


def _layout(file: _File) -> Layout | None:
    """How the JSON of a file is set; None where it is set as no program sets it."""
    for indent, compact, ascii_only, end in product(
        (4, 2, None, 1, 3, 8, "\t"), (False, True), (True, False), ("", "\n")
    ):
        layout = Layout(indent=indent, compact=compact, ascii=ascii_only, end=end)
        if _written(file.value, layout) == file.text:
            return layout
    return None


def _written(value: Any, layout: Layout) -> str:
    comma = "," if layout.compact or layout.indent is not None else ", "
    colon = ":" if layout.compact else ": "
    return json.dumps(value, indent=layout.indent, separators=(comma, colon), ensure_ascii=layout.ascii) + layout.end


# ---------------------------------------------------------------- writing


def export_constitution(constitution: Constitution, shape: Shape) -> Exported:
    """The files of a shape that hold this constitution, by their names, and what they leave out."""
    origin = constitution.origin
    if origin is None or origin.shape != shape:
        origin = Origin(shape=shape, cues=PUBLISHED[shape])
    values, notes = (_of_swarm if shape == "llm-swarm" else _of_anthropic)(constitution, origin)
    default = Layout(indent=4 if shape == "anthropic" else 2, end="\n")
    files = {name: _written(value, origin.layouts.get(name, default)) for name, value in values.items() if value}
    if not files:
        raise InputError("there is nothing in it that this shape holds", fix="name the other format")
    return Exported(files, notes + _left_out(constitution))


def _left_out(constitution: Constitution) -> list[str]:
    notes = []
    if constitution.preamble is not None:
        notes.append("the preamble")
    if any(principle.weight != 1 for principle in constitution.principles):
        notes.append("the weights")
    if constitution.examples.critique != constitution.examples.revision:
        notes.append("the examples of critiques alone: theirs are of critiques and revisions")
    return notes


def _around(principle: Principle, request: Request, origin: Origin) -> str:
    odd = getattr(origin.odd.get(principle.id), request, None)
    cue: str = getattr(origin.cues, request) if odd is None else odd
    return cue.replace(TEXT, getattr(principle, request))


def _of_swarm(constitution: Constitution, origin: Origin) -> tuple[dict[str, Any], list[str]]:
    pairs = [
        {"critic": _around(principle, "critique", origin), "revision": _around(principle, "revision", origin)}
        for principle in constitution.having("critique")
    ]
    chats = [
        [{"role": message.role, "content": message.content} for message in chat]
        for chat in constitution.examples.revision
    ]
    notes = ["the comparisons"] * bool(constitution.having("comparison"))
    notes += ["the examples of comparisons"] * bool(constitution.examples.comparison)
    return {SWARM: {"constitutions": pairs, "system_chat": chats} if pairs else None}, notes


def _of_anthropic(constitution: Constitution, origin: Origin) -> tuple[dict[str, Any], list[str]]:
    critiques = {
        principle.id: {
            "prompt": [_around(principle, "critique", origin)],
            "edit_request": _around(principle, "revision", origin),
        }
        for principle in constitution.having("critique")
    }
    comparisons = [_around(principle, "comparison", origin) for principle in constitution.having("comparison")]
    transcripts = [
        _joined(chat, _frame(origin.frames.revision, number, chat, FEW_SHOTS).between)
        for number, chat in enumerate(constitution.examples.revision)
    ]
    shots: dict[str, list[dict[str, Any]]] = {COMPARISON_SHOTS: [], PRECOG: []}
    for number, chat in enumerate(constitution.examples.comparison):
        frame = _frame(origin.frames.comparison, number, chat, PRECOG)
        if frame.file == PRECOG:
            shots[PRECOG].append({"prompt": _joined(chat, frame.between)})
            continue
        before, behind, start, end = frame.between
        shots[COMPARISON_SHOTS].append(
            {
                "prompt": before + chat[0].content + behind,
                "corrects": [start + chat[1].content + end],
                "incorrects": list(frame.incorrects),
            }
        )
    return {CRITIQUES: critiques, COMPARISONS: comparisons, FEW_SHOTS: transcripts, **shots}, []


def _frame(frames: Sequence[Frame], number: int, chat: Chat, file: str) -> Frame:
    """What stands around an example's turns: as its file has it, or the published cues where it came from none."""
    if number < len(frames):
        turns = 2 if frames[number].file == COMPARISON_SHOTS else len(frames[number].between) - 1
        if turns == len(chat):
            return frames[number]
    cues = TURNS if file == FEW_SHOTS and len(chat) <= len(TURNS) else TURNS[:2] * len(chat)
    return Frame(file=file, between=(*(f"\n\n{cue}: " for cue in cues[: len(chat)]), ""))


def _joined(chat: Chat, between: Sequence[str]) -> str:
    return "".join(before + message.content for before, message in zip(between, chat, strict=False)) + between[-1]
