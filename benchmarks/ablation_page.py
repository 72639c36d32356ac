"""The page that the results of ablation.py make."""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mattecompress.training.evaluation import HeldOut
from mattecompress.training.recipes import Recipe

sys.path.insert(0, str(Path(__file__).parent))

from results import render_page, spread

METRICS = ("mad", "mse", "dtssd")
PAPER = ("rvm-react", "bimatting", "bivm")
"""From the largest error to the smallest in BiVM, Table II, of those that learn there and are here."""


@dataclass(frozen=True)
class Plan:
    """What all runs have in common; once begun, a folder keeps to it.

    budget: as it was given. pace: mean seconds of a step by variant, where it was timed.
    """

    budget: str
    steps: int
    teacher: str
    pace: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """A run that is done: seconds that its steps took, and held-out scores of the network and of constant answers.

    There are no scores where the loss did not stay finite.
    """

    variant: str
    seed: int
    seconds: float
    scores: Mapping[str, Mapping[str, float]]


def write_page(
    path: Path,
    plan: Plan,
    recipe: Recipe,
    held_out: HeldOut,
    about: Mapping[str, str],
    results: Sequence[Result],
) -> None:
    """The table and what it says of the paper's order, as Markdown.

    about: what each variant is.
    """
    render_page(
        path,
        "ablation.md.jinja",
        plan=plan,
        recipe=recipe,
        held_out=held_out,
        rows=table_rows(results, about),
        constant=constant_mad(results),
        order=list(order_lines(results)),
    )


def table_rows(results: Sequence[Result], about: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Name, what it is, seeds, each metric's mean and spread, minutes of a run."""
    rows = []
    for name, runs in _by_variant(results).items():
        scores = [run.scores["network"] for run in runs if run.scores]
        metrics = [
            spread([score[metric] for score in scores]) if scores else "diverged" for metric in METRICS
        ]
        minutes = statistics.mean(run.seconds for run in runs) / 60
        rows.append((name, about[name], str(len(runs)), *metrics, f"{minutes:.1f}"))
    return rows


def constant_mad(results: Sequence[Result]) -> float:
    """Of the better of two answers: alpha 0, and the mean alpha."""
    measured = [result.scores for result in results if result.scores]
    return min(
        (scores[answer]["mad"] for scores in measured for answer in ("all_zero", "mean_alpha")),
        default=math.inf,
    )


def order_lines(results: Sequence[Result]) -> Iterator[str]:
    """Which variants learned nothing, and whether the paper's order holds, pair by pair."""
    errors: dict[str, list[float]] = {}
    for name, runs in _by_variant(results).items():
        measured = [run.scores["network"]["mad"] for run in runs if run.scores]
        if measured:
            errors[name] = measured
        if len(measured) < len(runs):
            yield f"`{name}` diverged in {len(runs) - len(measured)} of {len(runs)} runs."
    for name, found in errors.items():
        if statistics.mean(found) >= constant_mad(results):
            yield f"`{name}` is no better than a constant answer."
    for worse, better in pairwise(PAPER):
        if worse in errors and better in errors:
            gap = statistics.mean(errors[worse]) - statistics.mean(errors[better])
            holds = "as in the paper" if gap > 0 else "not as in the paper"
            noise = sum(
                statistics.stdev(errors[name]) if len(errors[name]) > 1 else 0 for name in (worse, better)
            )
            clear = "more" if abs(gap) > noise else "no more"
            yield f"`{better}` against `{worse}`: {-gap:+.1f} of MAD, {holds}, {clear} than their spreads together."


def _by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    grouped = defaultdict(list)
    for result in results:
        grouped[result.variant].append(result)
    return dict(grouped)
