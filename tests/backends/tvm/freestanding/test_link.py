import importlib.util
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mattecompress.backends.tvm.freestanding import link
from mattecompress.backends.tvm.freestanding.link import (
    Linker,
    LinkError,
    available,
    compile_and_link,
    find_linker,
)
from mattecompress.backends.tvm.targets import find_target

ARM = find_target("cortex-a76")


@pytest.fixture
def bare_path(tmp_path, monkeypatch) -> Path:
    """An empty PATH, and no ziglang."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def install(folder: Path, name: str, script: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_cross_compiler_comes_before_ziglang(bare_path, monkeypatch):
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: object())
    assert find_linker(ARM).name == "ziglang"
    install(bare_path, "aarch64-linux-gnu-gcc")
    assert find_linker(ARM) == Linker(("aarch64-linux-gnu-gcc",), "gcc")


def test_the_named_one_comes_first(bare_path):
    install(bare_path, "aarch64-linux-gnu-gcc")
    install(bare_path, "aarch64-linux-android35-clang")
    assert find_linker(ARM, "aarch64-linux-android35-clang").kind == "clang"


def test_nothing_to_link_with(bare_path):
    with pytest.raises(LinkError, match=r"nothing links for cortex-a76: run `pip install ziglang`"):
        find_linker(ARM)
    with pytest.raises(LinkError, match="ziglang is not installed"):
        find_linker(ARM, "ziglang")
    with pytest.raises(LinkError, match="no compiler fast-gcc on PATH"):
        find_linker(ARM, "fast-gcc")
    assert not available(ARM).links
    assert "pip install ziglang" in available(ARM).links_with


def test_emulation_is_reported(bare_path):
    assert "qemu-aarch64 is not on PATH" in available(ARM).runs_with
    install(bare_path, "qemu-aarch64")
    assert (available(ARM).runs, available(ARM).runs_with) == (True, "qemu-aarch64")
    assert available(find_target("host")).runs
    assert not available(find_target("apple-m1")).runs


def test_a_failure_says_why_and_leaves_nothing(tmp_path):
    broken = install(tmp_path, "broken-gcc", "echo note >&2; echo 'x.c:1: error: no luck' >&2; exit 1")
    (tmp_path / "x.c").write_text("")
    with pytest.raises(LinkError, match=r"broken-gcc cannot compile x.c: x.c:1: error: no luck"):
        compile_and_link([tmp_path / "x.c"], [], ARM, tmp_path / "x", find_linker(ARM, str(broken)))
    assert not (tmp_path / "x").exists()


@pytest.mark.needs("gcc")
def test_host_programs_run(tmp_path):
    (tmp_path / "x.c").write_text("int main(void) { return 7; }")
    host = replace(find_target("host"), compilers=("gcc",))
    compile_and_link([tmp_path / "x.c"], [], host, tmp_path / "x", find_linker(host))
    assert subprocess.run([tmp_path / "x"], check=False).returncode == 7


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert link.cache_folder() == tmp_path / "mattecompress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert link.cache_folder() == Path("~").expanduser() / ".cache" / "mattecompress"


def test_ziglang_is_a_wheel():
    assert importlib.util.find_spec("ziglang") is None or find_linker(ARM, "ziglang").kind == "zig"
