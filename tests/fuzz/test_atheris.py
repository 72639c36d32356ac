"""Coverage-guided fuzzing of whatever reads a file, where atheris is installed: `python tests/fuzz/test_atheris.py`."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

MANIFEST = b'{"format": 1, "passes": []}'
NO_TENSORS = b"\x02\0\0\0\0\0\0\0{}"
SEEDS = [str(path) for path in (Path(__file__).parents[1] / "golden" / "test_text").glob("*.txt")]
SCRATCH = tempfile.TemporaryDirectory()


def one_input(data: bytes) -> None:
    """Read bytes as a program's text, alone and in a file, as a pipeline, as a query, and as checkpoints."""
    from mattecompress import container
    from mattecompress.errors import UserError
    from mattecompress.inspection.query import parse_query
    from mattecompress.models.checkpoints import read_checkpoint
    from mattecompress.pipeline_text import parse_pipeline
    from mattecompress.text_parser import parse_program
    from tests.fuzz.mutations import archive

    text = data.decode(errors="replace")
    members = {"manifest.json": MANIFEST, "program.txt": data, "weights.safetensors": NO_TENSORS}
    for read in (
        lambda: parse_program(text, {}),
        lambda: parse_pipeline(text),
        lambda: parse_query(text, {"op": str, "bits": float}),
        lambda: container.load(_written("program.mcg", archive(members))),
        lambda: container.load_manifest(
            _written("manifest.mcg", archive({**members, "manifest.json": data}))
        ),
        lambda: read_checkpoint(_written("weights.safetensors", data)),
        lambda: read_checkpoint(_written("weights.pth", data)),
    ):
        try:
            read()
        except UserError:
            continue


def _written(name: str, content: bytes) -> Path:
    path = Path(SCRATCH.name) / name
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_fuzz_for_a_while(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install 'mattecompress[fuzz]'")
    words = [
        sys.executable,
        __file__,
        "-max_total_time=30",
        "-timeout=5",
        "-rss_limit_mb=4096",
        str(tmp_path),
    ]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[2])


if __name__ == "__main__":
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["mattecompress"]):
        import mattecompress.container
        import mattecompress.models.checkpoints
        import mattecompress.pipeline_text
        import mattecompress.text_parser  # noqa: F401

    atheris.Setup([*sys.argv, f"-seed_inputs={','.join(SEEDS)}"], one_input)
    atheris.Fuzz()
