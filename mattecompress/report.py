"""One self-contained page that shows variants of a network side by side."""

import base64
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.data.colours import parse_colour
from mattecompress.data.frames import composite, to_bytes
from mattecompress.errors import MissingExtraError
from mattecompress.files import atomic_path

TEMPLATE = "report.html"
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#db2777", "#4d7c0f")
"""Of the variants in order; where there are more, they begin again."""
GREEN = "#00b140"
TINT, OPACITY = "#f59e0b", 0.5
BINS = 24


@dataclass(frozen=True)
class VariantReport:
    """What the page says of one variant.

    alpha: (T,1,H,W) and composite: (T,3,H,W), both in 0..1. errors: mean absolute error of each frame, x 1e3.
    facts: label and value pairs, one row of the table each. mask: where it looks closely, (T,1,h,w) of zeros and ones.
    regions: signal to noise ratios by region, in dB; None where there is no error. numbers: to draw as histograms, by
    what they are.
    """

    name: str
    alpha: Tensor
    composite: Tensor
    errors: Sequence[float]
    facts: Sequence[tuple[str, str]]
    mask: Tensor | None = None
    regions: Mapping[str, float | None] = field(default_factory=dict)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)


def write_report(
    path: Path,
    title: str,
    frames: Tensor,
    truth: Tensor,
    truth_name: str,
    variants: Sequence[VariantReport],
    notes: Sequence[str] = (),
) -> None:
    """Write the page: a table, notes on it, pictures of three frames, the error over time, and what variants have more.

    frames: (T,3,H,W). truth: (T,1,H,W), what errors are measured against, called `truth_name`.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mattecompress", "assets"), autoescape=True)
    shown = [0, len(frames) // 2, len(frames) - 1]
    rows = [
        {
            "frame": number,
            "pictures": [
                ("frame", picture(frames[number])),
                (truth_name, picture(truth[number])),
                *((f"{variant.name} alpha", picture(variant.alpha[number])) for variant in variants),
                *((f"{variant.name} composite", picture(variant.composite[number])) for variant in variants),
                *(
                    (f"{variant.name} mask", picture(marked(frames[number], variant.mask[number])))
                    for variant in variants
                    if variant.mask is not None
                ),
            ],
        }
        for number in dict.fromkeys(shown)
    ]
    labels = [label for label, _ in variants[0].facts]
    table = [(label, [dict(variant.facts)[label] for variant in variants]) for label in labels]
    page = environment.get_template(TEMPLATE).render(
        title=title,
        names=[variant.name for variant in variants],
        table=table,
        notes=notes,
        rows=rows,
        truth_name=truth_name,
        curves=curves(variants),
        ceiling=f"{_ceiling(variants):.1f}",
        last=len(frames) - 1,
        regions=region_rows(variants),
        measured=[(variant.name, colour) for variant, colour in _coloured(variants) if variant.regions],
        histograms=[
            histogram(variant.name, name, values)
            for variant in variants
            for name, values in variant.numbers.items()
            if values
        ],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page)


def picture(frame: Tensor) -> str:
    """A frame (1 or 3,H,W) as a `data:` address of a PNG.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", "media") from error

    pixels = to_bytes(frame).permute(1, 2, 0)
    image = Image.fromarray((pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).contiguous().numpy())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def over_green(alpha: Tensor, foreground: Tensor) -> Tensor:
    """A clip (T,3,H,W) cut out by its alpha (T,1,H,W), over green."""
    return composite(alpha, foreground, parse_colour(GREEN))


def frame_errors(alpha: Tensor, truth: Tensor) -> list[float]:
    """The mean absolute error of each frame of (T,1,H,W), x 1e3."""
    errors: list[float] = ((alpha - truth).abs().mean(dim=(1, 2, 3)) * 1e3).tolist()
    return errors


def marked(frame: Tensor, mask: Tensor) -> Tensor:
    """A frame (3,H,W) tinted where a mask (1,h,w) of zeros and ones, each for a tile of the frame, is 1."""
    tiles = F.interpolate(mask[None], frame.shape[-2:], mode="nearest")[0]
    return composite(tiles * OPACITY, parse_colour(TINT)[:, None, None].expand_as(frame), frame)


def curves(variants: Sequence[VariantReport]) -> list[dict[str, str]]:
    """The error of each variant over time as the points of a line in a 100 x 40 field."""
    top = _ceiling(variants)
    drawn = []
    for variant, colour in _coloured(variants):
        across = torch.linspace(0, 100, len(variant.errors)).tolist()
        points = " ".join(
            f"{x:.2f},{40 - 40 * y / top:.2f}" for x, y in zip(across, variant.errors, strict=True)
        )
        drawn.append({"name": variant.name, "colour": colour, "points": points})
    return drawn


def region_rows(variants: Sequence[VariantReport]) -> list[dict[str, Any]]:
    """Each region and, of each variant that has it, its ratio in dB and the width of a bar, in percent."""
    top = max((ratio for variant in variants for ratio in variant.regions.values() if ratio), default=1.0)
    names = dict.fromkeys(name for variant in variants for name in variant.regions)
    return [
        {
            "name": name,
            "bars": [
                {
                    "variant": variant.name,
                    "colour": colour,
                    "ratio": variant.regions[name],
                    "width": f"{90 * max(0.0, variant.regions[name] or 0.0) / top:.1f}",
                }
                for variant, colour in _coloured(variants)
                if name in variant.regions
            ],
        }
        for name in names
    ]


def histogram(variant: str, name: str, values: Sequence[float]) -> dict[str, Any]:
    """How often values lie where: bars in a 100 x 40 field, between the smallest and the largest value."""
    low, high = min(values), max(values)
    counts = torch.histc(torch.tensor(values), BINS, low, high).tolist()
    width = 100 / BINS
    bars = [
        {
            "x": f"{place * width:.2f}",
            "y": f"{40 - 40 * count / max(counts):.2f}",
            "height": f"{40 * count / max(counts):.2f}",
        }
        for place, count in enumerate(counts)
    ]
    return {
        "variant": variant,
        "name": name,
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "mean": f"{sum(values) / len(values):.4g}",
        "count": len(values),
        "width": f"{0.9 * width:.2f}",
        "bars": bars,
    }


def _coloured(variants: Sequence[VariantReport]) -> Iterator[tuple[VariantReport, str]]:
    return zip(variants, itertools.cycle(COLOURS))


def _ceiling(variants: Sequence[VariantReport]) -> float:
    return max((error for variant in variants for error in variant.errors), default=0.0) or 1.0
