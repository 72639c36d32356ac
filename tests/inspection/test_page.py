import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.inspection.difference import diff
from mattecompress.inspection.page import Version, write_page
from mattecompress.inspection.page_rows import align_rows, grow_tree
from mattecompress.inspection.page_template import short
from mattecompress.inspection.rows import node_rows
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature
from tests.inspection.browser import Tab

CLIP = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(2))
VOID = {"meta", "input", "br", "link", "img"}
HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert('2')">&amp;{{ 7 * 7 }}"""


@pytest.fixture(scope="module")
def versions(tiny: Program) -> list[Program]:
    quantized = parse_pipeline("mse{weights=4}").run(tiny, Context(clips=[CLIP]))
    return [tiny, quantized, parse_pipeline("lower").run(quantized, Context())]


class Page(HTMLParser):
    """What stands in a page; elements have to close in the order in which they opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.document: dict[str, Any] = json.loads(self.text["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        place = self.elements[-1][1].get("id") if self.elements else None
        if place:
            self.text[place] = self.text.get(place, "") + data

    def values(self, attribute: str) -> list[str]:
        return [str(found[attribute]) for _, found in self.elements if attribute in found]


def written(path: Path, programs: list[Program], label: str = "a.mcg") -> Page:
    found = [diff(*pair) for pair in pairwise(programs)]
    write_page(path, [Version(label, program, node_rows(program)) for program in programs], found)
    return Page(path)


def test_every_node_of_every_version_once(versions: list[Program], tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", versions)
    names = [
        f"v{number}-{node.name}"
        for number, program in enumerate(versions, 1)
        for node in (*program.inputs, *program.operations())
    ]
    assert Counter(page.values("data-node")) == Counter(names)
    assert Counter(value for value in page.values("id") if value in names) == Counter(names)
    assert Counter(page.values("href")) == Counter(f"#{name}" for name in names)
    nodes = [node for program in page.document["programs"] for node in program["nodes"]]
    assert [node["id"] for node in nodes] == names
    cells = [name for row in page.document["rows"] for cell in row["cells"] for name in cell]
    assert Counter(cells) == Counter(names)


def test_holds_the_difference_and_the_rows(versions: list[Program], tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", versions)
    expected = [diff(*pair).as_json() for pair in pairwise(versions)]
    assert page.document["differences"] == json.loads(json.dumps(expected))
    for program, shown in zip(versions, page.document["programs"], strict=True):
        known = {node["name"]: node for node in shown["nodes"]}
        for row in node_rows(program):
            assert known[row["name"]].items() >= row.items()


def test_marks_agree_with_the_difference(versions: list[Program], tmp_path: Path) -> None:
    before, after = written(tmp_path / "page.html", versions[:2]).document["programs"]
    (found,) = [diff(*versions[:2])]
    for status in ("changed", "replaced", "added", "removed"):
        for side, shown in (("before", before), ("after", after)):
            names = {name for each in found.nodes if each.status == status for name in getattr(each, side)}
            assert {node["name"] for node in shown["nodes"] if status in node["marks"]} == names


def test_counterparts_stand_in_one_row(versions: list[Program]) -> None:
    found = [diff(*pair) for pair in pairwise(versions)]
    rows = align_rows(versions, found)
    for number, each in enumerate(found):
        for old, new in each.alignment.kept.items():
            (row,) = [row for row in rows if old in row.cells[number]]
            assert new in row.cells[number + 1]
        for group in each.alignment.replaced:
            (row,) = [row for row in rows if group.after[0] in row.cells[number + 1]]
            assert {*group.before} <= {*row.cells[number]}


def test_tree_sums_what_is_inside(tiny: Program) -> None:
    rows = align_rows([tiny], [])
    known = {row["name"]: row for row in node_rows(tiny)}
    nodes = {name: {"marks": (), **known.get(name, {})} for row in rows for name in row.cells[0]}
    tree = grow_tree(rows, [nodes])
    assert tree.sums[0]["nodes"] == len(nodes)
    assert tree.sums[0]["macs"] == sum(row["macs"] for row in known.values()) > 0
    assert sum(inner.sums[0]["nodes"] for inner in tree.branches.values()) == len(nodes)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(*[nn.Tanh() for _ in range(40)]) for _ in range(4)]
        self.net = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList(blocks)})})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.net["encoder"]["layer"]:
            x = block(x)
        return x


def test_scopes_that_many_nodes_share_are_told_apart() -> None:
    rows = align_rows([capture(Deep(), Signature((("x", (1, 2)),), ("y",)), "deep")], [])
    assert Counter(row.path for row in rows) == {
        "": 1,
        **{f"net.encoder.layer.{each}": 40 for each in range(4)},
    }


def test_one_program_has_no_marks(tiny: Program, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", [tiny])
    assert page.document["differences"] == []
    assert all(node["marks"] == [] for node in page.document["programs"][0]["nodes"])


def test_open_sizes_have_no_figures(tiny_open: Program, tmp_path: Path) -> None:
    write_page(
        tmp_path / "page.html",
        [Version("a", tiny_open), Version("b", tiny_open)],
        [diff(tiny_open, tiny_open)],
    )
    document = Page(tmp_path / "page.html").document
    assert document["programs"][0]["totals"] is None
    assert all("macs" not in node for node in document["programs"][0]["nodes"])


def test_numbers_that_json_lacks_are_null(tiny: Program, tmp_path: Path) -> None:
    rows = [{**row, "sqnr": float("nan"), "error": float("inf")} for row in node_rows(tiny)]
    write_page(tmp_path / "page.html", [Version("a", tiny, rows)])
    operation = Page(tmp_path / "page.html").document["programs"][0]["nodes"][-1]
    assert operation["sqnr"] is None and operation["error"] is None


def hostile(program: Program) -> Program:
    copy = program.clone()
    copy.name = HOSTILE
    for number, node in enumerate((*copy.inputs, *copy.operations())):
        facts = copy.facts(node)
        node.meta["facts"] = facts.but(scope=HOSTILE, region=HOSTILE)
        node.name = f"{number}{HOSTILE}"
    return copy


def test_hostile_names_stay_text(tiny: Program, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", [hostile(tiny)], HOSTILE)
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["script"] == 2 and tags["img"] == 0
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    first, *_ = page.document["programs"][0]["nodes"]
    assert first["name"] == f"0{HOSTILE}" and first["region"] == HOSTILE
    assert f"v1-0{HOSTILE}" in page.values("id")
    assert page.document["programs"][0]["label"] == HOSTILE


def test_loads_nothing(versions: list[Program], tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", versions)
    assert not page.values("src")
    assert all(value.startswith("#") for value in page.values("href"))
    assert "default-src 'none'" in " ".join(page.values("content"))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_whole_network_twice_is_small(rvm: Program, tmp_path: Path) -> None:
    written(tmp_path / "page.html", [rvm, rvm])
    assert (tmp_path / "page.html").stat().st_size < 2.5e6


def test_a_whole_network_twice_is_painted_at_once(rvm: Program, tmp_path: Path, tab: Tab) -> None:
    written(tmp_path / "page.html", [rvm, rvm])
    tab.open((tmp_path / "page.html").as_uri())
    assert tab.first_paint() < 2000


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0, "0"), (8, "8"), (1234, "1.23 k"), (4.7e8, "470 M"), (2e9, "2 G")]
)
def test_short(value: float | None, text: str) -> None:
    assert short(value) == text


def test_short_with_a_unit() -> None:
    assert [short(272, "B"), short(2720, "B")] == ["272 B", "2.72 kB"]


def test_works_in_a_browser(tab: Tab, versions: list[Program], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    before, after = written(path, versions[:2]).document["programs"]
    chosen = "[...document.querySelectorAll('.box.chosen')].map((box) => box.dataset.node)"
    tab.open(f"{path.as_uri()}#conv2d")
    assert tab.evaluate(chosen) == ["v1-conv2d", "v1-stem_1", "v2-conv2d_default"]
    tab.press("ArrowLeft")
    assert tab.evaluate(chosen) == ["v1-src", "v2-src"]
    tab.press("Escape")
    assert tab.evaluate(chosen) == []
    tab.press("/", *"added quantizer")
    nodes = (*before["nodes"], *after["nodes"])
    expected = [node["id"] for node in nodes if "added" in node["marks"] and "quantizer" in node["name"]]
    hits = "[...document.querySelectorAll('.box.hit')].map((box) => box.dataset.node)"
    assert tab.evaluate(hits) == expected != []
    tab.press("Enter")
    assert tab.evaluate(chosen) == expected[:1]
    tab.evaluate("overlay.value = 'macs', overlay.dispatchEvent(new Event('change'))")
    shares = "[...document.querySelectorAll('.box')].map((box) => parseFloat(box.style.getPropertyValue('--share')))"
    assert max(tab.evaluate(shares)) > 80


VIEW = "document.querySelector('svg').getAttribute('viewBox').split(' ').map(Number)"
PLACE = "(({left, top, width, height}) => [left, top, width, height])(document.querySelector('svg').getBoundingClientRect())"


@pytest.fixture
def seen(tab: Tab, versions: list[Program], tmp_path: Path) -> Tab:
    """A tab that shows a page of two versions."""
    written(tmp_path / "page.html", versions[:2])
    tab.open((tmp_path / "page.html").as_uri())
    return tab


def test_the_wheel_zooms_where_the_pointer_is(seen: Tab) -> None:
    left, top, width, height = seen.evaluate(PLACE)
    before = seen.evaluate(VIEW)
    across, down = 0.25, 0.75
    seen.turn_wheel(left + across * width, top + down * height, by=-200)
    after = seen.evaluate(VIEW)
    assert after[2] / before[2] == pytest.approx(math.exp(-200 / 400), rel=1e-3)
    for start, size, share in ((0, 2, across), (1, 3, down)):
        fixed = [view[start] + share * view[size] for view in (before, after)]
        assert fixed[0] == pytest.approx(fixed[1], abs=1.5)


def test_dragging_moves(seen: Tab) -> None:
    left, top, width, _ = seen.evaluate(PLACE)
    before = seen.evaluate(VIEW)
    seen.drag(left + 5, top + 5, across=60, down=40)
    after = seen.evaluate(VIEW)
    scale = before[2] / width
    assert after == pytest.approx([before[0] - 60 * scale, before[1] - 40 * scale, *before[2:]], abs=1)
    assert seen.evaluate("location.hash") == ""


def test_a_click_chooses(seen: Tab) -> None:
    middle = "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
    box = "document.querySelector('[data-node=v2-conv2d_default]').getBoundingClientRect()"
    x, y = seen.evaluate(f"{middle}({box})")
    seen.drag(x, y, across=0, down=0)
    assert seen.evaluate("location.hash") == "#v2-conv2d_default"


def test_buttons_show_the_whole_and_the_top(seen: Tab) -> None:
    begun = seen.evaluate(VIEW)
    for name in ("begin", "1.5", "whole"):
        seen.evaluate(f"document.querySelector('[data-zoom=\"{name}\"]').click()")
        moved = seen.evaluate(VIEW)
        assert (moved == begun) == (name == "whole")


def test_keys_zoom_every_graph(seen: Tab) -> None:
    widths = "[...document.querySelectorAll('svg')].map((svg) => svg.viewBox.baseVal.width)"
    begun = seen.evaluate(widths)
    seen.press("+")
    assert seen.evaluate(widths) == pytest.approx([width / 1.5 for width in begun], rel=1e-3)
    seen.press("0")
    assert seen.evaluate(widths) == pytest.approx(begun)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out(seen: Tab, scheme: str) -> None:
    seen.prefer(scheme)
    style = "getComputedStyle(document.body)"
    letters, ground = (seen.evaluate(f"{style}.{name}") for name in ("color", "backgroundColor"))
    brightness = [sum(map(int, re.findall(r"\d+", colour))) / 765 for colour in (letters, ground)]
    assert abs(brightness[0] - brightness[1]) > 0.7 and (brightness[1] > 0.5) == (scheme == "light")
