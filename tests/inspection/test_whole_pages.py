"""The pages of whole networks; `--update-golden` takes the pictures of the documents anew."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mattecompress import api
from mattecompress.data.sources import clip_inputs, load_clips
from mattecompress.inspection.decisions import Decisions, record_decisions
from mattecompress.inspection.difference import Difference, diff
from mattecompress.inspection.history import load_history
from mattecompress.inspection.history_page import write_history_page
from mattecompress.inspection.page import Version, write_page
from mattecompress.inspection.recording import Recorder
from mattecompress.inspection.rows import node_rows
from mattecompress.interface import frame_size
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from tests.conftest import ROOT
from tests.inspection.browser import Tab

pytestmark = pytest.mark.slow

IMAGES = ROOT / "docs" / "images"
MOST_BYTES, MOST_PAINT_MS, MOST_PICTURE_BYTES = 5e6, 2000, 150_000
CHOSEN = "document.querySelector('.box.chosen')?.dataset.node"
Picture = Callable[[Tab, str], None]


class Whole(NamedTuple):
    """A page of a network and what became of it."""

    path: Path
    difference: Difference


@pytest.fixture(scope="module")
def rvm_whole() -> Program:
    return api.capture("rvm-mobilenetv3", size=(288, 512))


@pytest.fixture(scope="module")
def rvm_page(rvm_whole: Program, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    versions = [_version("rvm", rvm_whole), _version("bivm", api.opt(rvm_whole, "bivm"))]
    return _written(tmp_path_factory.mktemp("rvm") / "page.html", versions)


@pytest.fixture(scope="module")
def vitmatte_page(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    torch.manual_seed(0)
    given = api.capture("vitmatte-small", size=(512, 512), untrained=True)
    routed = api.opt(given, "mematte")
    versions = [_version("vitmatte", given), _version("mematte", routed, _choices(routed, frames=1))]
    return _written(tmp_path_factory.mktemp("vitmatte") / "page.html", versions)


def _version(label: str, program: Program, decisions: Decisions | None = None) -> Version:
    densities = decisions.densities if decisions else None
    return Version(label, program, node_rows(program, densities=densities), decisions)


def _choices(program: Program, frames: int) -> Decisions:
    (clip,) = load_clips("procedural:3", frame_size(program), 1, frames)
    return record_decisions(program, clip_inputs(program, clip))


def _written(path: Path, versions: list[Version]) -> Whole:
    difference = diff(*(version.program for version in versions))
    write_page(path, versions, [difference])
    return Whole(path, difference)


@pytest.fixture(params=["rvm_page", "vitmatte_page"])
def whole(request: pytest.FixtureRequest) -> Iterator[Whole]:
    found: Whole = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Picture:
    """Keeps what is in the window in docs/images, in few colours."""

    def keep(tab: Tab, name: str) -> None:
        path = IMAGES / f"{name}.png"
        if request.config.getoption("--update-golden"):
            from PIL import Image

            IMAGES.mkdir(exist_ok=True)
            few = {"method": Image.Quantize.FASTOCTREE, "dither": Image.Dither.NONE}
            Image.open(io.BytesIO(tab.take_picture())).convert("RGB").quantize(**few).save(
                path, optimize=True
            )
        assert path.stat().st_size < MOST_PICTURE_BYTES

    return keep


def test_is_small_and_is_painted_at_once(whole: Whole, tab: Tab) -> None:
    assert whole.path.stat().st_size < MOST_BYTES
    tab.open(whole.path.as_uri())
    assert tab.first_paint() < MOST_PAINT_MS


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_works_with_the_keyboard(whole: Whole, tab: Tab, scheme: str) -> None:
    tab.prefer(scheme)
    tab.open(whole.path.as_uri())
    tab.press("/", *"replaced")
    replaced = [node for node in whole.difference.nodes if node.status == "replaced"]
    names = {
        (side, name) for node in replaced for side in ("before", "after") for name in getattr(node, side)
    }
    assert tab.evaluate("document.getElementById('hits').textContent") == f"{len(names)} nodes"
    tab.press("Enter")
    first = tab.evaluate(CHOSEN)
    tab.press("Enter", "Enter")
    assert first and tab.evaluate(CHOSEN)
    tab.press("Escape", "ArrowDown", "ArrowRight")
    assert tab.evaluate(CHOSEN) and tab.evaluate("location.hash")


def test_pictures_of_versions(rvm_page: Whole, vitmatte_page: Whole, tab: Tab, picture: Picture) -> None:
    tab.open(rvm_page.path.as_uri())
    picture(tab, "rvm-bivm")
    tab.prefer("dark")
    tab.open(vitmatte_page.path.as_uri())
    tab.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    picture(tab, "vitmatte-mematte")


def test_picture_of_a_mask(tab: Tab, tmp_path: Path, picture: Picture) -> None:
    pytest.importorskip("PIL")
    (clip,) = load_clips("procedural:3", (288, 512), 1, 3)
    trained = api.opt(api.capture("bivm", size=(288, 512)), "calibrate-mask{density=0.2}", [clip.frames])
    write_page(tmp_path / "page.html", [_version("bivm", trained, _choices(trained, frames=3))])
    tab.open((tmp_path / "page.html").as_uri())
    tab.evaluate("frame.value = 2, frame.dispatchEvent(new Event('input'))")
    tab.evaluate("overlay.value = 'density', overlay.dispatchEvent(new Event('change'))")
    tab.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    picture(tab, "bivm-mask")


def test_picture_of_a_history(rvm_whole: Program, tab: Tab, tmp_path: Path, picture: Picture) -> None:
    pipeline = parse_pipeline("bivm,lower")
    recorder = Recorder(tmp_path / "history", rvm_whole, pipeline)
    pipeline.run(rvm_whole, Context(), after_each=[recorder])
    recorder.finish()
    path = tmp_path / "history.html"
    write_history_page(path, load_history(tmp_path / "history"))
    assert path.stat().st_size < MOST_BYTES
    tab.open(f"{path.as_uri()}#6")
    assert tab.first_paint() < MOST_PAINT_MS
    tab.press("/", *"decoder.decode0")
    assert tab.evaluate("document.querySelector('#step h2').textContent").startswith("binarize")
    picture(tab, "history")
