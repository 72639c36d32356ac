from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="the extra tvm is not installed")

from mattecompress.data.video import read_info
from mattecompress.demo import run_demo


@pytest.mark.slow
@pytest.mark.needs("qemu-aarch64")
def test_fills_the_folder_and_may_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        lines = list(run_demo(tmp_path, None, None, (64, 96), 4, 7, lambda line: None))
    for name in ("w8a8", "bivm"):
        assert any(name in line and "cortex-a76 against host: 0.0e+00" in line for line in lines)
    made = {path.name for path in tmp_path.iterdir()}
    assert {
        "report.html",
        "clip.mp4",
        "float.mcg",
        "w8a8.mcg",
        "dist",
        "float-alpha.mp4",
        "w8a8-green.mp4",
    } <= made
    assert {path.name for path in (tmp_path / "dist").iterdir()} >= {
        "float-host",
        "w8a8-cortex-a76",
        "float.so",
    }
    assert read_info(tmp_path / "float-alpha.mp4").frames == 4
    assert read_info(tmp_path / "float-alpha-cortex-a76").frames == 2
    assert {"bivm.mcg", "bivm-alpha.mp4", "bivm-green.mp4", "bivm-alpha-cortex-a76"} <= made
    assert "bivm mask" in (tmp_path / "report.html").read_text()
