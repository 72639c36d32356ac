import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mattecompress.report import VariantReport, curves, marked, picture, region_rows, write_report


def variant(name: str, errors: list[float]) -> VariantReport:
    count = len(errors)
    facts = [("MAD <x>", f"{sum(errors):.1f}"), ("MiB", "1.00")]
    return VariantReport(name, torch.rand(count, 1, 4, 6), torch.rand(count, 3, 4, 6), errors, facts)


def test_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    frames, truth = torch.rand(5, 3, 4, 6), torch.rand(5, 1, 4, 6)
    variants = [variant("float", [1.0, 2, 3, 4, 5]), variant("w8a8", [2.0, 2, 2, 2, 2])]
    write_report(tmp_path / "deep" / "report.html", "A & B", frames, truth, "the truth", variants)
    page = (tmp_path / "deep" / "report.html").read_text()
    assert "A &amp; B" in page and "MAD &lt;x&gt;" in page and "15.0" in page
    assert page.count("data:image/png;base64,") == 3 * (2 + 2 * 2)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_notes_and_masks_are_on_the_page(tmp_path: Path) -> None:
    frames, truth = torch.rand(3, 3, 32, 48), torch.rand(3, 1, 32, 48)
    masked = replace(variant("bivm", [1.0, 2, 3]), mask=torch.ones(3, 1, 2, 3))
    write_report(
        tmp_path / "r.html", "t", frames, truth, "truth", [variant("float", [0.0] * 3), masked], ["a < b"]
    )
    page = (tmp_path / "r.html").read_text()
    assert "<p>a &lt; b</p>" in page
    assert page.count("bivm mask</figcaption>") == 3 and "float mask" not in page


def test_a_mask_tints_its_tiles() -> None:
    frame, mask = torch.rand(3, 32, 48), torch.zeros(1, 2, 3)
    mask[0, 1, 2] = 1
    changed = (marked(frame, mask) != frame).any(0)
    assert changed[16:, 32:].all()
    assert changed.sum() == 16 * 16


def test_short_clips(tmp_path: Path) -> None:
    write_report(
        tmp_path / "r.html",
        "t",
        torch.rand(1, 3, 4, 6),
        torch.rand(1, 1, 4, 6),
        "truth",
        [variant("a", [0.0])],
    )
    assert (tmp_path / "r.html").read_text().count("data:image/png") == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_picture(channels: int) -> None:
    frame = torch.rand(channels, 4, 6)
    data = base64.b64decode(picture(frame).removeprefix("data:image/png;base64,"))
    image = Image.open(io.BytesIO(data))
    assert image.size == (6, 4) and image.mode == ("L" if channels == 1 else "RGB")
    first = image.getpixel((0, 0))
    assert first == (
        int(frame[0, 0, 0] * 255) if channels == 1 else tuple(int(v * 255) for v in frame[:, 0, 0])
    )


def test_curves_span_the_field() -> None:
    first, second = curves([variant("a", [0.0, 4.0]), variant("b", [2.0, 2.0])])
    assert first["points"] == "0.00,40.00 100.00,0.00"
    assert second["points"] == "0.00,20.00 100.00,20.00"
    assert first["colour"] != second["colour"]


@pytest.mark.parametrize("count", [7, 20])
def test_no_variant_is_left_out(count: int) -> None:
    names = [f"v{number}" for number in range(count)]
    variants = [replace(variant(name, [1.0, 2.0]), regions={"stem": 20.0}) for name in names]
    assert [curve["name"] for curve in curves(variants)] == names
    (row,) = region_rows(variants)
    assert [bar["variant"] for bar in row["bars"]] == names
    assert [bar["colour"] for bar in row["bars"]] == [curve["colour"] for curve in curves(variants)]


def test_eight_variants_have_eight_colours() -> None:
    variants = [variant(f"v{number}", [1.0, 2.0]) for number in range(8)]
    assert len({curve["colour"] for curve in curves(variants)}) == 8


def test_only_variants_that_have_a_region_are_shown_in_it(tmp_path: Path) -> None:
    first = replace(variant("a", [1.0]), regions={"x": 20.0, "y": None})
    second = replace(variant("b", [2.0]), regions={"y": 20.0})
    rows = {row["name"]: [bar["variant"] for bar in row["bars"]] for row in region_rows([first, second])}
    assert rows == {"x": ["a"], "y": ["a", "b"]}
    frames, truth = torch.rand(1, 3, 4, 6), torch.rand(1, 1, 4, 6)
    write_report(tmp_path / "r.html", "t", frames, truth, "truth", [first, second])
    page = (tmp_path / "r.html").read_text()
    assert page.count("exact") == 1
    assert re.findall(r'"key".*?</span>(\w)', page) == ["a", "b", "a", "b"]
