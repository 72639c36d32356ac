"""Compiling C and linking kernels into programs and libraries, with whatever tool chain is at hand.

Tool chains, in order: the one named, a C compiler for the target on PATH, `python -m ziglang` (a pip wheel that
brings a compiler and a C library for every target). Programs for other machines are static. Output depends on the
input bytes alone: no build identifiers, time stamps, paths or debug information.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mattecompress.backends.tvm.targets import Target
from mattecompress.errors import UserError
from mattecompress.files import atomic_path

COMPILE_FLAGS = ("-std=c11", "-O2", "-ffp-contract=off", "-g0", "-fno-ident", "-Wall", "-Wextra")
SECONDS = 600


class LinkError(UserError):
    """No tool chain for a target, or it failed."""


@dataclass(frozen=True)
class Availability:
    """What this machine can do for a target: whether it links and runs its programs, and with what or why not."""

    links: bool
    links_with: str
    runs: bool
    runs_with: str


@dataclass(frozen=True)
class Linker:
    """A C compiler that also links: its command and which dialect of options it speaks."""

    command: tuple[str, ...]
    kind: Literal["gcc", "clang", "zig"]

    @property
    def name(self) -> str:
        """The command in one line."""
        return "ziglang" if self.kind == "zig" else " ".join(self.command)

    def cc(self, target: Target) -> list[str]:
        """The start of a compile or link command."""
        if self.kind == "zig":
            return [*self.command, "cc", "-target", target.link_triple]
        if self.kind == "clang" and not target.is_host:
            return [*self.command, f"--target={target.triple}"]
        return list(self.command)

    def link_flags(self, target: Target, symbols: bool) -> list[str]:
        """Options of the last step, which keeps names or not; Apple's C library cannot be linked statically."""
        if target.is_apple:
            return [] if symbols else ["-Wl,-x"]
        static = ["-static"] if self.kind == "zig" or not target.is_host else []
        return [*static, *([] if symbols else ["-s"]), "-Wl,--build-id=none", "-Wl,--gc-sections"]

    def archiver(self) -> list[str]:
        """The command that makes static libraries."""
        if self.kind == "zig":
            return [*self.command, "ar"]
        *wrapper, compiler = self.command
        for compiler_name, tool in (("gcc", "ar"), ("clang", "llvm-ar")):
            candidate = compiler.removesuffix(compiler_name) + tool
            if compiler.endswith(compiler_name) and shutil.which(candidate):
                return [*wrapper, candidate]
        return ["ar"]


def find_linker(target: Target, named: str | None = None) -> Linker:
    """The tool chain for a target.

    named: a compiler's path or its name on PATH, or `ziglang` for the wheel.

    Raises:
        LinkError: the named one does not exist, or none is installed.
    """
    if named is not None:
        return _named(named)
    for compiler in target.compilers:
        if shutil.which(compiler):
            return Linker((compiler,), "clang" if compiler.endswith("clang") else "gcc")
    if importlib.util.find_spec("ziglang") is not None:
        return _ziglang()
    raise LinkError(
        f"nothing links for {target.name}: run `pip install ziglang`, install {target.compilers[0]}, "
        "or name a compiler with --linker"
    )


def available(target: Target) -> Availability:
    """Whether programs for a target can be made here, and whether they can run here."""
    try:
        links, links_with = True, find_linker(target).name
    except LinkError as error:
        links, links_with = False, str(error)
    if target.is_host:
        return Availability(links, links_with, True, "this machine")
    if target.emulator is None:
        return Availability(links, links_with, False, f"nothing emulates {target.name}: copy programs to one")
    if shutil.which(target.emulator) is None:
        return Availability(links, links_with, False, f"{target.emulator} is not on PATH (Debian: qemu-user)")
    return Availability(links, links_with, True, target.emulator)


def compile_and_link(
    sources: Sequence[Path],
    objects: Sequence[Path],
    target: Target,
    out: Path,
    linker: Linker,
    symbols: bool = False,
) -> None:
    """Compile C and assembly sources, link them with objects, and write the program to `out`.

    Sources find headers and included binaries in their own folders. symbols: the program keeps its functions' names.

    Raises:
        LinkError: the tool chain failed; the message holds the first line that says why.
    """
    with _workplace(linker) as (folder, environment):
        compiled = _compile(sources, target, linker, folder, environment)
        program = folder / "program"
        files = [*map(str, compiled), *(str(path.resolve()) for path in objects)]
        command = [
            *linker.cc(target),
            *files,
            *linker.link_flags(target, symbols),
            "-lm",
            "-lpthread",
            "-o",
            str(program),
        ]
        _run(command, environment, f"{linker.name} cannot link {out.name} for {target.name}")
        with atomic_path(out) as temporary:
            shutil.copy(program, temporary)
            temporary.chmod(0o755)


def compile_and_archive(
    sources: Sequence[Path], objects: Sequence[Path], target: Target, out: Path, linker: Linker
) -> None:
    """Compile C and assembly sources and write them, with objects, as the static library `out`.

    Raises:
        LinkError: the tool chain failed.
    """
    with _workplace(linker) as (folder, environment):
        compiled = _compile(sources, target, linker, folder, environment)
        library = folder / "library.a"
        files = [*map(str, compiled), *(str(path.resolve()) for path in objects)]
        command = [*linker.archiver(), "rcsD", str(library), *files]
        _run(command, environment, f"{linker.name} cannot archive {out.name} for {target.name}")
        with atomic_path(out) as temporary:
            shutil.copy(library, temporary)


def shared_linker(target: Target, linker: Linker) -> Callable[..., None]:
    """What TVM's `export_library` takes as `fcompile`: it links objects as a shared object.

    The function raises LinkError where the tool chain fails, and leaves nothing then.
    """

    def link(out: str, objects: Sequence[str]) -> None:
        with _workplace(linker) as (folder, environment):
            library = folder / "library.so"
            command = [*_shared_command(target, linker), *objects, "-lm", "-o", str(library)]
            _run(command, environment, f"{linker.name} cannot link {Path(out).name} for {target.name}")
            with atomic_path(Path(out)) as temporary:
                shutil.copy(library, temporary)

    return link


def _shared_command(target: Target, linker: Linker) -> list[str]:
    """The start of a command that makes a shared object for a program with a C library of its own."""
    cc = [*linker.command, "cc", "-target", target.triple] if linker.kind == "zig" else linker.cc(target)
    return [*cc, "-shared", "-fPIC"]


def compile_and_share(
    sources: Sequence[Path], objects: Sequence[Path], target: Target, out: Path, linker: Linker
) -> None:
    """Compile C sources, which lie in one folder, and link them with objects as the shared object `out`.

    Raises:
        LinkError: the tool chain failed.
    """
    with _workplace(linker) as (_, environment):
        files = [*(path.name for path in sources), *(str(path.resolve()) for path in objects)]
        command = [
            *_shared_command(target, linker),
            *COMPILE_FLAGS,
            *files,
            "-lm",
            "-lpthread",
            "-o",
            str(out),
        ]
        _run(command, environment, f"{linker.name} cannot link {out.name}", sources[0].parent)


def compile_plugin(
    source: Path, definitions: Mapping[str, object], target: Target, out: Path, linker: Linker
) -> None:
    """Compile one C file as the shared object `out`, for a program of the same machine that has its own C library.

    definitions: the file's macros.

    Raises:
        LinkError: the tool chain failed.
    """
    with _workplace(linker) as (_, environment):
        macros = [f"-D{name}={value}" for name, value in definitions.items()]
        command = [*_shared_command(target, linker), *COMPILE_FLAGS, *macros, str(source), "-o", str(out)]
        _run(command, environment, f"{linker.name} cannot compile {source.name}")


def _compile(
    sources: Sequence[Path], target: Target, linker: Linker, folder: Path, environment: Mapping[str, str]
) -> list[Path]:
    compiled = []
    for source in sources:
        result = folder / f"{source.stem}.o"
        command = [*linker.cc(target), *COMPILE_FLAGS, "-c", source.name, "-o", str(result)]
        _run(command, environment, f"{linker.name} cannot compile {source.name}", source.parent)
        compiled.append(result)
    return compiled


def _run(
    command: Sequence[str], environment: Mapping[str, str], task: str, folder: Path | None = None
) -> None:
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LinkError(
            f"{task}: no end after {SECONDS} s; choose another tool chain with --linker"
        ) from error
    except OSError as error:
        raise LinkError(f"{task}: {error.strerror}; choose another tool chain with --linker") from error
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        telling = next((line for line in lines if "error" in line.lower()), (lines or ["no message"])[-1])
        raise LinkError(f"{task}: {telling}; choose another tool chain with --linker")


def _named(named: str) -> Linker:
    if named in ("zig", "ziglang") and shutil.which(named) is None:
        if importlib.util.find_spec("ziglang") is None:
            raise LinkError("ziglang is not installed: run `pip install ziglang`")
        return _ziglang()
    if shutil.which(named) is None:
        raise LinkError(f"no compiler {named} on PATH: install it, or give another --linker")
    stem = Path(named).name
    kind: Literal["gcc", "clang", "zig"] = "zig" if stem == "zig" else "clang" if "clang" in stem else "gcc"
    return Linker((named,), kind)


def _ziglang() -> Linker:
    return Linker((sys.executable, "-m", "ziglang"), "zig")


def cache_folder() -> Path:
    """Where the compiler keeps the C libraries it has built: `$XDG_CACHE_HOME/mattecompress`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mattecompress"


@contextmanager
def _workplace(linker: Linker) -> Iterator[tuple[Path, dict[str, str]]]:
    """A temporary folder, and an environment in which a compiler writes nothing elsewhere but to its cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = dict(os.environ, LC_ALL="C", SOURCE_DATE_EPOCH="0", ZERO_AR_DATE="1")
        if linker.kind == "zig":
            environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache_folder() / "zig"))
            environment["ZIG_LOCAL_CACHE_DIR"] = str(folder / "zig")
        yield folder, environment
