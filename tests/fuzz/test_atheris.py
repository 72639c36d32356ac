"""Coverage-guided fuzzing of the text reader, where atheris is installed: `python tests/fuzz/test_atheris.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


def one_input(data: bytes) -> None:
    """Read bytes as a program's text, as a pipeline and as a query."""
    from mattecompress.errors import UserError
    from mattecompress.inspection.query import parse_query
    from mattecompress.pipeline_text import parse_pipeline
    from mattecompress.text_parser import parse_program

    text = data.decode(errors="replace")
    for read in (
        lambda: parse_program(f"matte 1\n{text}", {}),
        lambda: parse_pipeline(text),
        lambda: parse_query(text, {"op": str, "bits": float}),
    ):
        try:
            read()
        except UserError:
            continue


@pytest.mark.slow
def test_fuzz_for_a_while(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    words = [sys.executable, __file__, "-max_total_time=30", str(tmp_path)]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[2])


if __name__ == "__main__":
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["mattecompress"]):
        import mattecompress.pipeline_text
        import mattecompress.text_parser  # noqa: F401

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
