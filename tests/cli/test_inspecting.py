import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from mattecompress import container
from mattecompress.passes import PASSES
from mattecompress.pipeline import Context, Pass
from mattecompress.program import Program
from tests.inspection.choosing import Masked, program_of

Cli = Callable[..., Any]
CLIP = ("--calibration", "procedural:3", "--clips", 1, "--frames", 2)


def test_inspect_json(done: Cli, tiny_file: str) -> None:
    document = json.loads(done("inspect", tiny_file, "--json").out)
    assert document.keys() == {"totals", "regions", "nodes", "peak"}
    assert document["totals"].keys() >= {"parameters", "macs", "binary_macs", "paper_gflops", "size_mib"}
    assert sum(node["macs"] for node in document["nodes"]) == document["totals"]["macs"] > 0
    assert sum(region["macs"] for region in document["regions"]) == document["totals"]["macs"]


def test_inspect_table(done: Cli, tiny_file: str) -> None:
    shown = done("inspect", tiny_file).out
    assert "tiny: float" in shown and "parameters" in shown


def test_inspect_fixes_the_size(done: Cli, open_file: str) -> None:
    assert "f32[1,3,20,24]" in done("inspect", open_file, "--text", "--size", "20x24").out
    assert "f32[1,3,2*h,2*w]" in done("inspect", open_file, "--text").out


def test_diff_shows_what_was_done(done: Cli, tiny_file: str) -> None:
    done("opt", tiny_file, "-p", "mse{weights=4}", *CLIP, "-o", "q.mcg")
    shown = done("diff", tiny_file, "q.mcg").out
    assert "replaced" in shown and "quantize{weights=4" in shown and "M MACs" in shown
    listed = done("diff", tiny_file, "q.mcg", "--nodes").out
    assert "  > %conv2d conv2d, %stem_1 BatchNorm2d -> %conv2d_default conv2d by fold-batch-norm" in listed


def test_diff_lists_what_is_asked_for(done: Cli, quantized_file: str, tiny_file: str) -> None:
    words = ("diff", tiny_file, quantized_file, "--where", "maker=quantize and after~weight")
    assert "FakeQuantize by quantize" in done(*words).out
    (found,) = json.loads(done(*words, "--json").out)["differences"]
    assert {node["status"] for node in found["nodes"]} == {"added"} and len(found["nodes"]) == 3


def test_pages_are_written_whole(done: Cli, quantized_file: str, tiny_file: str, tmp_path: Path) -> None:
    said = done("inspect", quantized_file, "--html", "one.html")
    assert (said.out, said.err) == ("", "one.html\n")
    said = done("diff", tiny_file, quantized_file, "--html", "two.html", "--json")
    assert len(json.loads(said.out)["differences"]) == 1
    for name, versions in (("one.html", 1), ("two.html", 2)):
        page = (tmp_path / name).read_text()
        assert page.endswith("</html>\n") and page.count("<figure>") == versions


def test_a_page_cannot_be_a_folder(refused: Callable[..., str], tiny_file: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for words in (("inspect", tiny_file), ("diff", tiny_file, tiny_file)):
        assert "it is a folder" in refused(*words, "--html", "folder")


def test_diff_json_of_three(done: Cli, tiny_file: str) -> None:
    done("opt", tiny_file, "-p", "fold-batch-norm", "-o", "folded.mcg")
    document = json.loads(done("diff", tiny_file, "folded.mcg", "folded.mcg", "--json").out)
    assert document["programs"] == [tiny_file, "folded.mcg", "folded.mcg"]
    assert [len(each["nodes"]) for each in document["differences"]] == [1, 0]


def test_diff_of_nothing(done: Cli, tiny_file: str) -> None:
    assert "nothing differs" in done("diff", tiny_file, tiny_file).out


def test_diff_refuses(refused: Callable[..., str], tiny_file: str) -> None:
    assert "is one program: name another" in refused("diff", tiny_file)
    assert "no such file" in refused("diff", tiny_file, "absent.mcg")


@pytest.fixture
def quantized_file(done: Cli, tiny_file: str) -> str:
    done("opt", tiny_file, "-p", "mse{weights=4}", *CLIP, "-o", "q.mcg")
    return "q.mcg"


def test_inspect_selects_and_sorts(done: Cli, quantized_file: str) -> None:
    words = ("inspect", quantized_file, "--where", "op=conv2d and bits<8", "--sort", "macs")
    nodes = json.loads(done(*words, "--json").out)["nodes"]
    assert [node["bits"] for node in nodes] == [4, 4] and nodes[0]["macs"] >= nodes[1]["macs"]
    assert "2 of 23 nodes" in done(*words).out


def test_inspect_refuses_a_query_with_the_column(refused: Callable[..., str], tiny_file: str) -> None:
    message = refused("inspect", tiny_file, "--where", "op=conv2d and regon~x")
    assert "column 15: unknown field 'regon'; did you mean region" in message
    assert "unknown field 'mac'" in refused("inspect", tiny_file, "--sort", "mac")
    assert "add --error" in refused("inspect", tiny_file, "--reference", tiny_file)


@pytest.mark.parametrize(
    "words",
    [["--html", "x.html"], ["--dot", "x.dot"], ["--where", "op=conv2d"], ["--frames", 4], ["--json"]],
)
def test_inspect_options_beside_text(
    refused: Callable[..., str], tiny_file: str, words: list[object]
) -> None:
    message = refused("inspect", tiny_file, "--text", *words)
    assert (
        message
        == f"{words[0]} does not go with --text, which prints the program alone: leave one of them out"
    )


@pytest.mark.parametrize("option", [["--nodes"], ["--where", "op=conv2d"], ["--sort", "macs"], ["--memory"]])
@pytest.mark.parametrize("file", [["--html", "x.html"], ["--dot", "x.dot"], ["--model-explorer", "x"]])
def test_inspect_lists_beside_a_whole(
    refused: Callable[..., str], tiny_file: str, option: list[str], file: list[str]
) -> None:
    message = refused("inspect", tiny_file, *option, *file)
    assert message == f"{option[0]} does not go with {file[0]}, which shows every node: leave one of them out"


def test_inspect_writes_all_and_prints_some(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    said = done("inspect", tiny_file, "--html", "x.html", "--json", "--where", "op=conv2d")
    assert {node["op"] for node in json.loads(said.out)["nodes"]} == {"conv2d"}
    assert (tmp_path / "x.html").exists()


@pytest.mark.parametrize("option", [["--nodes"], ["--where", "status=added"]])
def test_diff_lists_beside_a_page(refused: Callable[..., str], tiny_file: str, option: list[str]) -> None:
    message = refused("diff", tiny_file, tiny_file, *option, "--html", "x.html")
    assert message == f"{option[0]} does not go with --html, which shows every node: leave one of them out"


def test_frames_without_a_clip(refused: Callable[..., str], tiny_file: str) -> None:
    for words in (("inspect", tiny_file), ("diff", tiny_file, tiny_file)):
        message = refused(*words, "--frames", 2)
        assert message == "--frames is about a clip: add --error or --masks with one"


def test_inspect_memory_marks_the_peak(done: Cli, tiny_file: str) -> None:
    shown = done("inspect", tiny_file, "--memory").out
    document = json.loads(done("inspect", tiny_file, "--json").out)
    (line,) = {line for line in shown.splitlines() if f" {document['peak']['node']} < peak" in line}
    assert f"{document['peak']['bytes'] / 1024:.1f} KiB" in line


def test_inspect_memory_has_the_peak_of_all_nodes(done: Cli, tiny_file: str) -> None:
    whole = done("inspect", tiny_file, "--memory").out.splitlines()
    some = done("inspect", tiny_file, "--memory", "--where", "op=sigmoid").out.splitlines()
    assert some[0] == whole[0] and 1 < len(some) < len(whole)
    assert set(some) < set(whole)
    none = done("inspect", tiny_file, "--memory", "--where", "op=absent").out.splitlines()
    assert none == whole[:1]


def test_inspect_error(done: Cli, refused: Callable[..., str], tiny_file: str, quantized_file: str) -> None:
    words = ("inspect", quantized_file, "--error", "procedural:3", "--frames", 2, "--json")
    nodes = json.loads(done(*words, "--reference", tiny_file).out)["nodes"]
    measured = {node["name"]: node["sqnr"] for node in nodes if node["error"]}
    assert all(5 < sqnr < 100 for sqnr in measured.values()) and len(measured) > 5
    alone = {node["name"]: node["sqnr"] for node in json.loads(done(*words).out)["nodes"] if node["error"]}
    assert alone.keys() <= measured.keys()
    assert "own dB" in done("inspect", quantized_file, "--error", "procedural:3", "--sort", "own_sqnr").out
    assert "holds no float form" in refused("inspect", tiny_file, "--error", "procedural:3")


@pytest.fixture
def masked_file(tmp_path: Path) -> str:
    container.save(program_of(Masked(), 16, 24), tmp_path / "masked.mcg")
    return "masked.mcg"


def test_inspect_masks(done: Cli, refused: Callable[..., str], masked_file: str, tiny_file: str) -> None:
    words = ("inspect", masked_file, "--masks", "procedural:3", "--frames", 2)
    assert "mask" in done(*words).out and "8x12" in done(*words).out
    document = json.loads(done(*words, "--json").out)
    (mask,) = document["masks"]
    assert (mask["kind"], mask["size"], len(mask["by_frame"])) == ("mask", [8, 12], 2)
    assert {node["name"] for node in document["nodes"] if node["density"] is not None} > {mask["node"]}
    assert "density" in done(*words, "--where", "density<1 and op=conv2d").out
    assert "has neither masks nor routers" in refused("inspect", tiny_file, "--masks", "procedural:3")


def test_diff_masks(done: Cli, masked_file: str, tmp_path: Path) -> None:
    done("opt", masked_file, "-p", "lower", "-o", "lowered.mcg")
    words = ("diff", masked_file, "lowered.mcg", "--masks", "procedural:3", "--frames", 1)
    assert "what is computed in places, of 1 frames" in done(*words).out
    document = json.loads(done(*words, "--json").out)
    masks = [[(each["kind"], len(each["by_frame"])) for each in choices] for choices in document["masks"]]
    assert masks == [[("mask", 1)], [("mask", 1)]] and len(document["nodes"]) == 2
    pytest.importorskip("PIL")
    done(*words, "--html", "page.html")
    assert (tmp_path / "page.html").read_text().count("data-choice=") == 2


def test_diff_error_names_the_worst(done: Cli, quantized_file: str, tiny_file: str) -> None:
    words = ("diff", tiny_file, quantized_file, "--error", "procedural:3", "--frames", 1)
    shown = done(*words).out
    assert "the nodes that add most error" in shown and "own dB" in shown
    document = json.loads(done(*words, "--json").out)
    before, after = document["nodes"]
    assert "masks" not in document
    assert all(row["own_sqnr"] is None for row in before) and any(row["own_sqnr"] for row in after)
    assert "nodes" not in json.loads(done("diff", tiny_file, quantized_file, "--json").out)


def test_diff_fits_programs_of_open_size(done: Cli, open_file: str, tiny_file: str) -> None:
    shown = done("diff", open_file, tiny_file, "--error", "procedural:3").out
    assert "nothing differs" in shown and "no node adds error" in shown


def test_diff_refuses_masks_where_there_are_none(refused: Callable[..., str], tiny_file: str) -> None:
    message = refused("diff", tiny_file, tiny_file, "--masks", "procedural:3", "--html", "page.html")
    assert "none of these programs has masks or routers" in message


def test_inspect_exports(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    told = done("inspect", tiny_file, "--dot", "net.dot", "--model-explorer", "explorer").err
    assert "net.dot" in told and "explorer/graph.json" in told
    assert (tmp_path / "net.dot").read_text().startswith("digraph")
    assert json.loads((tmp_path / "explorer" / "graph.json").read_text())["graphs"]


def test_opt_records(done: Cli, refused: Callable[..., str], tiny_file: str, tmp_path: Path) -> None:
    done("opt", tiny_file, "-p", "canonicalize,fold-batch-norm", "--record", "history")
    index = json.loads((tmp_path / "history" / "index.json").read_text())
    assert index["finished"] and len(index["steps"]) == 3
    (tmp_path / "history" / "index.json").unlink()
    words = ("opt", tiny_file, "-p", "canonicalize", "--record", "history")
    assert "history holds no history" in refused(*words)


def test_inspect_shows_a_recording(
    done: Cli, refused: Callable[..., str], tiny_file: str, tmp_path: Path
) -> None:
    done("opt", tiny_file, "-p", "canonicalize,fold-batch-norm", "--record", "history")
    shown = done("inspect", "history").out
    assert "tiny: 2 passes" in shown and "as given" in shown and ">1" in shown
    said = done("inspect", "history", "--html", "history.html", "--json")
    assert [step["pass"] for step in json.loads(said.out)["steps"]] == ["", "canonicalize", "fold-batch-norm"]
    assert said.err == "history.html\n"
    assert (tmp_path / "history.html").read_text().endswith("</html>\n")
    assert "--error is about one program" in refused("inspect", "history", "--error", "procedural:3")
    (tmp_path / "empty").mkdir()
    assert "empty holds no history; make one with" in refused("inspect", "empty", "--html", "page.html")


@dataclass(frozen=True)
class Spoil(Pass):
    """Half everywhere."""

    name: ClassVar[str] = "spoil"

    def apply(self, program: Program, context: Context) -> str | None:
        program.graph_module.get_parameter("head.weight").data[:] = 0
        program.graph_module.get_parameter("head.bias").data[:] = 0.5
        return "spoilt"


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mattecompress.passes.spoil")
    module.Spoil = Spoil  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(PASSES, "spoil", "spoil:Spoil")


@pytest.mark.usefixtures("spoil")
def test_bisect_finds_it_and_says_how_to_see_it_again(cli: Cli, done: Cli, tiny_file: str) -> None:
    words = ("bisect", tiny_file, "-p", "canonicalize,spoil,fold-batch-norm", "--input", "procedural:3")
    outcome = cli(*words, "--frames", 2, "--json")
    document = json.loads(outcome.out)
    assert (outcome.code, document["number"], document["steps"][-1]["text"]) == (1, 2, "spoil")
    assert document["culprit"]["before"] == "conv2d_2"
    first, _, second = document["reproduce"].partition(" && ")
    for command in (first, second):
        done(*shlex.split(command)[1:])
    assert container.load(Path("left.mcg")).history[-1].text == "spoil"
    shown = cli(*words, "--frames", 2)
    assert "pass 2, spoil, leaves an error of 0.05" in shown.out and "first at %conv2d_2" in shown.out
    assert "error 0  canonicalize" in shown.err


def test_bisect_of_a_good_pipeline(done: Cli, tiny_file: str) -> None:
    words = ("bisect", tiny_file, "-p", "canonicalize,fold-batch-norm", "--input", "procedural:3")
    assert "no pass leaves an error of 0.05" in done(*words).out
