"""The curves of a training as one picture, from its `metrics.jsonl` alone: a small plot for each thing that is watched.

Drawn by matplotlib's Agg on a figure of its own: no window, no `pyplot`, no setting of the process is touched. Colours
are those of Okabe and Ito, which a colour-blind reader tells apart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.train.log import steps_of

PICTURE = "training.png"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#B8A800", "#000000")
INK, GREY, FAINT = "#333333", "#999999", "#E2E2E2"
COLUMNS = 3
SIZE = (4.2, 2.75)  # inches of one plot, with its title and its labels
MARGINS = {"left": 0.62, "right": 0.18, "bottom": 0.48, "top": 0.52}  # inches around the axes of each
TOP, BOTTOM = 0.5, 0.22  # inches of the picture's title, and of its last line
DOTS = 110  # an inch
LEAST = 3  # steps of a curve
LONGEST = 24  # characters of a source's name
OF_SOURCE = "validation_accuracy/"
TURNS = 25  # a thick curve is a mean over this part of all steps, so that it has not many more turns
WIDE = 50  # a positive figure whose largest value is so many times its least is drawn on a logarithmic scale
SMALL = 0.01  # below, the numbers at an axis are of a power of ten that its title names


class Curve(NamedTuple):
    """A figure of `metrics.jsonl`, and its name in the picture."""

    figure: str
    label: str = ""
    colour: str = BLUE
    validated: bool = False  # points, where there was a validation


class Panel(NamedTuple):
    """What one plot shows. It is left out where none of its figures was reported."""

    title: str
    curves: tuple[Curve, ...]
    level: float | None = None  # of no skill, or of no change
    span: tuple[float, float] | None = None  # of its axis
    band: tuple[str, str] | None = None  # the least and the largest value of a step, between which its curve runs
    bare: str = ""  # its title where the band's two were not reported
    wide: bool = False  # on a logarithmic scale if it has a wide range
    exact: bool = False  # no noise to smooth
    unless: str = ""  # a figure that says more, where it was reported
    crowded: bool = False  # its curves are named among them, one below another


def _with_validation(title: str, figures: Iterable[str], validated: str, **shown: Any) -> Panel:
    curves = (*(Curve(figure, "training") for figure in figures), Curve(validated, "validation", ORANGE, True))
    return Panel(title, curves, **shown)


def _sides(title: str, figure: str, **shown: Any) -> Panel:
    """Of chosen and of rejected completions."""
    return Panel(title, (Curve(f"{figure}/chosen", "chosen"), Curve(f"{figure}/rejected", "rejected", ORANGE)), **shown)


SHARE = (0.0, 1.0)
PANELS = (
    _with_validation("Loss", ["loss"], "validation_loss"),
    Panel("Score", (Curve("score", "score"), Curve("objective", "less the KL penalty", GREEN))),
    _with_validation("Accuracy", ["rewards/accuracies", "accuracy"], "validation_accuracy", level=0.5, span=SHARE),
    _with_validation("Margin", ["rewards/margins", "margin"], "validation_margin", level=0.0),
    _sides("Log-probability of a completion", "logps"),
    _sides("Implicit reward", "rewards", level=0.0),
    Panel("Longer one preferred, on validation pairs",
          (Curve("validation_longer_preferred", "by the model", ORANGE, True),
           Curve("validation_longer_chosen", "by the labels", GREY, True)), level=0.5, span=SHARE),
    Panel("Scores: mean, least and largest", (Curve("mean_reward"),), band=("min_reward", "max_reward"),
          bare="Mean score"),
    _with_validation("Tokens predicted right", ["mean_token_accuracy"], "validation_mean_token_accuracy", span=SHARE,
                     unless="logps/chosen"),
    Panel("KL divergence from the base, nats a completion", (Curve("kl"),), level=0.0),
    Panel("Entropy, nats a token", (Curve("entropy"),)),
    Panel("Value loss", (Curve("value_loss"),), wide=True),
    Panel("Variance of the returns that is explained", (Curve("explained_variance"),), level=0.0),
    Panel("Length of a completion, tokens", (Curve("length"),)),
    _sides("Length of a completion, tokens", "lengths"),
    Panel("Completions that ended", (Curve("ended"),), span=SHARE),
    Panel("Policy's updates", (Curve("clip_fraction", "share clipped"), Curve("approx_kl", "KL", GREEN))),
    Panel("Learning rate", (Curve("learning_rate"),), exact=True),
    Panel("Norm of the gradient", (Curve("grad_norm", "policy"), Curve("value_grad_norm", "value model", GREEN)),
          wide=True),
    Panel("Tokens a second", (Curve("speed"),)),
)  # fmt: skip


def draw(metrics: Path, picture: Path, title: str, kept: int | None = None) -> bool:
    """Draw the steps in `metrics` into `picture`, a PNG. `kept` is the step of the saved weights, where one was chosen.

    Returns whether there were enough steps for a curve. Raises ImportError without matplotlib.
    """
    steps = _with_speed(list(steps_of(metrics)))
    if len(steps) < LEAST:
        return False
    reported = {name for step in steps for name, value in step.items() if value is not None}
    after = next(place for place, panel in enumerate(PANELS, 1) if panel.title == "Accuracy")
    known = [*PANELS[:after], *_by_source(reported), *PANELS[after:]]
    panels = [
        panel if panel.band is None or reported.issuperset(panel.band) else panel._replace(title=panel.bare, band=None)
        for panel in known
        if panel.unless not in reported and any(curve.figure in reported for curve in panel.curves)
    ]
    with _quiet():
        _figure(steps, panels, title, kept).savefig(picture, dpi=DOTS, facecolor="white")
    return True


def _by_source(reported: Iterable[str]) -> list[Panel]:
    """The accuracy on validation pairs of each source, where there are several, and few enough to tell apart."""
    sources = sorted(name.removeprefix(OF_SOURCE) for name in reported if name.startswith(OF_SOURCE))
    if not 1 < len(sources) <= len(PALETTE):
        return []
    named = zip(sources, PALETTE, strict=False)
    curves = tuple(Curve(f"{OF_SOURCE}{source}", _brief(source), colour, True) for source, colour in named)
    return [Panel("Accuracy on validation pairs, by source", curves, level=0.5, span=SHARE, crowded=True)]


def _brief(name: str) -> str:
    """A name that others gave, in letters that the font has; a long one by both its ends."""
    plain = name.encode("ascii", "replace").decode().replace("$", r"\$").lstrip("_") or "?"
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST // 2]}...{plain[-LONGEST // 2 + 3 :]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's words on its caches."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _with_speed(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps with `speed`, the tokens a second since the step before, unless there was a validation between."""
    for before, step in zip(steps, steps[1:], strict=False):
        passed, tokens = step["time"] - before["time"], step.get("tokens", 0) - before.get("tokens", 0)
        if passed > 0 and tokens > 0 and "validation_loss" not in step:
            step["speed"] = tokens / passed
    return steps


def _figure(steps: Sequence[Mapping[str, Any]], panels: Sequence[Panel], title: str, kept: int | None) -> Any:
    from matplotlib.figure import Figure  # its canvas is Agg's

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = SIZE[0] * columns, SIZE[1] * rows + TOP + BOTTOM
    figure: Any = Figure(figsize=(width, height))
    plain = title.encode("ascii", "replace").decode()  # the font has not every letter there is
    look = {"fontsize": 12, "color": INK, "fontweight": "bold", "parse_math": False}
    figure.text(MARGINS["left"] / width, 1 - 0.32 / height, plain, **look)
    window = max(1, len(steps) // TURNS)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, bottom = SIZE[0] * column + MARGINS["left"], height - TOP - SIZE[1] * (row + 1) + MARGINS["bottom"]
        wide, high = SIZE[0] - MARGINS["left"] - MARGINS["right"], SIZE[1] - MARGINS["bottom"] - MARGINS["top"]
        place = figure.add_axes((left / width, bottom / height, wide / width, high / height))
        _plot(place, panel, steps, 1 if panel.exact else window, kept, first=number == 0)
        if number >= len(panels) - columns:  # the lowest of its column
            place.set_xlabel("step", fontsize=8, color=INK)
    if window > 1:
        said = f"Thin: each step. Thick: the mean of {window // 2 * 2 + 1} steps."
        figure.text(MARGINS["left"] / width, 0.12 / height, said, fontsize=7.5, color=GREY)
    return figure


def _plot(
    place: Any, panel: Panel, steps: Sequence[Mapping[str, Any]], window: int, kept: int | None, *, first: bool
) -> None:
    place.spines[["top", "right"]].set_visible(False)
    place.spines[["left", "bottom"]].set_color(GREY)
    place.tick_params(labelsize=8, labelcolor=INK, color=GREY, length=3)
    place.grid(axis="y", color=FAINT, linewidth=0.6)
    place.set_axisbelow(True)
    if panel.level is not None:
        place.axhline(panel.level, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if panel.band is not None:
        _band(place, steps, *panel.band)
    drawn = [
        curve
        for left, curve in zip(range(len(panel.curves) - 1, -1, -1), panel.curves, strict=True)
        if _curve(place, curve, steps, window, left / len(panel.curves) if panel.crowded else 0.0)
    ]
    if kept is not None:
        place.axvline(kept, color=GREEN, linewidth=1.1, linestyle=":", label="weights kept" if first else "_")
    if panel.span is not None:
        room = 0.03 * (panel.span[1] - panel.span[0])
        place.set_ylim(panel.span[0] - room, panel.span[1] + room)
    unit = _scale(place, panel, steps)
    place.set_title(panel.title + unit, loc="left", fontsize=9.5, color=INK, pad=17, x=-0.005)
    if panel.crowded:
        place.legend(loc="best", ncols=1 + (len(drawn) > 4), fontsize=7, labelcolor=INK, handlelength=1.6,
                     framealpha=0.8, edgecolor="none", labelspacing=0.25, borderpad=0.2, handletextpad=0.5)  # fmt: skip
    elif len(drawn) > 1 or (first and kept is not None):
        place.legend(loc="lower left", bbox_to_anchor=(-0.022, 0.985), ncols=3, frameon=False, fontsize=7.5,
                     labelcolor=INK, handlelength=1.2, columnspacing=1.2, borderpad=0.1, handletextpad=0.5)  # fmt: skip


def _curve(place: Any, curve: Curve, steps: Sequence[Mapping[str, Any]], window: int, extra: float) -> bool:
    """Draw a figure where it was reported: thin as it was at each step, thick as a mean around it.

    `extra` makes a curve wider, so that a narrower one over it does not hide it.
    """
    points = [(step["step"], step[curve.figure]) for step in steps if step.get(curve.figure) is not None]
    if not points:
        return False
    at, values = [step for step, _ in points], [value for _, value in points]
    look: dict[str, Any] = {"color": curve.colour, "label": curve.label or "_"}
    if curve.validated or len(points) == 1:
        place.plot(at, values, linewidth=1.2 + 2.6 * extra, marker="o", markersize=3.5 + 3.5 * extra, zorder=3, **look)
        return True
    if window > 1:
        place.plot(at, values, color=curve.colour, linewidth=0.7, alpha=0.3)
        values = smoothed(values, window)
    place.plot(at, values, linewidth=1.6, **look)
    return True


def _band(place: Any, steps: Sequence[Mapping[str, Any]], low: str, high: str) -> None:
    ends = [(step["step"], step[low], step[high]) for step in steps if None not in (step.get(low), step.get(high))]
    if ends:
        place.fill_between(*zip(*ends, strict=True), color=BLUE, alpha=0.15, linewidth=0)


def _scale(place: Any, panel: Panel, steps: Sequence[Mapping[str, Any]]) -> str:
    """Set the axes' scales and numbers; the power of ten that the numbers of the upright one are of, for the title."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    first, last = steps[0]["step"], steps[-1]["step"]
    room = 0.02 * (last - first)
    place.set_xlim(first - room, last + room)
    place.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=NICE))
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    values = [step[curve.figure] for curve in panel.curves for step in steps if step.get(curve.figure) is not None]
    least, largest = min(values), max(map(abs, values))
    if panel.wide and least > 0 and largest > WIDE * least:
        place.set_yscale("log")
        few = largest < 500 * least
        place.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
        place.yaxis.set_minor_formatter(NullFormatter())
        place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        return ""
    power = math.floor(math.log10(largest)) if 0 < largest < SMALL else 0
    place.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=NICE))
    place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value / 10**power)))
    return rf" $\times\,10^{{{power}}}$" if power else ""


NICE = (1, 2, 2.5, 5, 10)  # what the numbers at an axis are multiples of


def _short(value: float) -> str:
    """A number at an axis."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and of the `window // 2` before it and after it, as far as there are any."""
    sums = [0.0, *accumulate(values)]
    half = window // 2
    ends = [(max(0, at - half), min(len(values), at + half + 1)) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]
