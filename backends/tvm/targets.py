"""The processors that artifacts are built for: names, code generation, linking and emulation.

This module does not import tvm until a `tvm.target.Target` is asked for, so listing targets is fast.
"""

import functools
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mattecompress.errors import MissingExtraError, UserError
from mattecompress.options import nearest

X86_REGISTERS = {512: 32, 256: 16, 128: 16}
SLOW_FEATURES = frozenset({"sse4a"})
"""Not to be generated: SSE4a has no encoding for code that uses AVX, and each switch costs hundreds of cycles."""


class TargetError(UserError):
    """A target is unknown, or this machine cannot do what was asked for it."""


@dataclass(frozen=True)
class Target:
    """One processor, frozen.

    name: what the command line calls it; title: one line for people.
    triple, cpu, features: LLVM's `-mtriple`, `-mcpu` and `-mattr`; an empty cpu means this machine's.
    link_triple: what `zig cc` calls the same platform.
    compilers: C compilers that link for it, as found on PATH, in order.
    vector_bits, vector_registers: width and number of the vector registers.
    dot_product: has 4-way int8 dot products (`sdot`, `vpdpbusd`); half: computes in float16.
    emulator, emulated_cpu: the program that runs its executables elsewhere and the `-cpu` it gets; the emulated
    processor has the same instructions, though it may be another one.
    """

    name: str
    title: str
    triple: str
    cpu: str
    link_triple: str
    compilers: tuple[str, ...]
    vector_bits: int = 128
    vector_registers: int = 32
    dot_product: bool = False
    half: bool = False
    features: tuple[str, ...] = ()
    emulator: str | None = None
    emulated_cpu: str | None = None

    @property
    def is_host(self) -> bool:
        """Whether executables run here as they are."""
        return not self.cpu

    @property
    def is_apple(self) -> bool:
        """Whether objects are Mach-O."""
        return "macos" in self.link_triple

    def lanes(self, bits: int = 32) -> int:
        """Elements of `bits` bits in one vector register."""
        return self.vector_bits // bits

    def configuration(self) -> dict[str, Any]:
        """What `tvm.target.Target` takes: a JSON dict."""
        cpu, features = self.cpu, list(self.features)
        if self.is_host:
            cpu, features = _host_cpu()
        result: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": cpu}
        if features:
            result["mattr"] = features
        if "eabihf" in self.triple:
            result["mfloat-abi"] = "hard"
        return result

    def tvm(self) -> Any:
        """The `tvm.target.Target`.

        Raises:
            MissingExtraError: tvm is not installed.
        """
        return _import_target()(self.configuration())


_AARCH64 = Target(
    name="",
    title="",
    triple="aarch64-linux-gnu",
    cpu="",
    link_triple="aarch64-linux-musl",
    compilers=("aarch64-linux-gnu-gcc", "aarch64-linux-musl-gcc", "aarch64-linux-gnu-clang"),
    emulator="qemu-aarch64",
)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets that Linux reports for this machine; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _host() -> Target:
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    apple = platform.system() == "Darwin"
    flags = cpu_flags()
    bits, registers = 128, 32
    if machine == "x86_64":
        bits = next((width for width, flag in ((512, "avx512f"), (256, "avx2")) if flag in flags), 128)
        registers = X86_REGISTERS[bits]
    return Target(
        name="host",
        title="this machine",
        triple=f"{machine}-apple-macos" if apple else f"{machine}-linux-gnu",
        cpu="",
        link_triple=f"{machine}-macos" if apple else f"{machine}-linux-musl",
        compilers=("cc", "gcc", "clang"),
        vector_bits=bits,
        vector_registers=registers,
        dot_product=apple or bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"}),
        half=apple or bool(flags & {"avx512_fp16", "asimdhp"}),
    )


TARGETS: dict[str, Target] = {
    "host": _host(),
    "cortex-a53": replace(
        _AARCH64,
        name="cortex-a53",
        title="ARMv8.0 little core (Raspberry Pi 3, low-end phones)",
        cpu="cortex-a53",
        emulated_cpu="cortex-a53",
    ),
    "cortex-a55": replace(
        _AARCH64,
        name="cortex-a55",
        title="ARMv8.2 little core of phones: int8 dot products, float16",
        cpu="cortex-a55",
        emulated_cpu="cortex-a76",
        dot_product=True,
        half=True,
    ),
    "cortex-a72": replace(
        _AARCH64,
        name="cortex-a72",
        title="ARMv8.0 big core (Raspberry Pi 4)",
        cpu="cortex-a72",
        emulated_cpu="cortex-a72",
    ),
    "cortex-a76": replace(
        _AARCH64,
        name="cortex-a76",
        title="ARMv8.2 big core (Raspberry Pi 5, phones): int8 dot products, float16",
        cpu="cortex-a76",
        emulated_cpu="cortex-a76",
        dot_product=True,
        half=True,
    ),
    "neoverse-n1": replace(
        _AARCH64,
        name="neoverse-n1",
        title="ARMv8.2 server core (Graviton 2, Ampere Altra): int8 dot products, float16",
        cpu="neoverse-n1",
        emulated_cpu="neoverse-n1",
        dot_product=True,
        half=True,
    ),
    "apple-m1": Target(
        name="apple-m1",
        title="Apple M1 under macOS: int8 dot products, float16",
        triple="aarch64-apple-macos",
        cpu="apple-m1",
        link_triple="aarch64-macos",
        compilers=("arm64-apple-darwin-clang", "oa64-clang"),
        dot_product=True,
        half=True,
    ),
    "armv7-a": Target(
        name="armv7-a",
        title="32-bit ARMv7-A with NEON and VFPv4 (Cortex-A7, A15, A17)",
        triple="armv7a-linux-gnueabihf",
        cpu="cortex-a7",
        link_triple="arm-linux-musleabihf",
        compilers=("arm-linux-gnueabihf-gcc", "arm-linux-musleabihf-gcc", "arm-linux-gnueabihf-clang"),
        vector_registers=16,
        emulator="qemu-arm",
        emulated_cpu="cortex-a7",
    ),
}


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetError: no such target; the message names the nearest.
    """
    if name not in TARGETS:
        raise TargetError(f"unknown target '{name}'{nearest(name, TARGETS)}")
    return TARGETS[name]


def _import_target() -> Any:
    try:
        from tvm.target import Target as TvmTarget
    except ImportError as error:
        raise MissingExtraError("tvm", "tvm") from error
    return TvmTarget


@functools.cache
def _host_cpu() -> tuple[str, list[str]]:
    """This machine's processor as LLVM names it, less what is withheld or slow."""
    target = _import_target()
    from tvm.target import codegen

    cpu = str(codegen.llvm_get_system_cpu())
    if platform.machine() not in ("x86_64", "AMD64") or not cpu_flags():
        return cpu, []
    known = codegen.llvm_get_cpu_features(target({"kind": "llvm", "mcpu": cpu}))
    return cpu, features_to_avoid(known, cpu_flags())


def features_to_avoid(known: Iterable[str], flags: frozenset[str]) -> list[str]:
    """`-feature` for extensions that LLVM expects of the processor: vectors Linux does not report, and slow ones."""
    reported = {flag.replace("_", "") for flag in flags}
    vector = {name for name in known if name.startswith("avx") or name in ("fma", "f16c")}
    return sorted(f"-{name}" for name in vector - reported | SLOW_FEATURES.intersection(known))
