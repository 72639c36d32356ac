"""The C of one program: a library of four functions, made from its plan, and a driver's view of it."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from mattecompress.backends.tvm.freestanding.plan import Place, Plan, Step, TensorSpec
from mattecompress.backends.tvm.targets import Target
from mattecompress.errors import UserError

HERE = Path(__file__).parent
CTYPES = {"bool": "uint8_t", "float16": "uint16_t", "float32": "float", "float64": "double"}
ALPHA_NAMES = ("pha", "alpha", "alphas")
MAX_RANK = 8
RESERVED = re.compile(
    "auto|break|case|char|class|const|continue|default|delete|do|double|else|enum|extern|float|for|goto|if|inline|int|"
    "long|new|register|restrict|return|self|short|signed|sizeof|static|struct|switch|this|typedef|union|unsigned|void|"
    "volatile|while"
)


class LibraryError(UserError):
    """A program whose tensors or names do not fit into C."""


@dataclass(frozen=True)
class Ports:
    """Where pictures go in and mattes come out: an index into the inputs and one into the outputs."""

    frame: int
    alpha: int


@dataclass(frozen=True)
class _Argument:
    """A tensor as the templates see it; slot: its expression in `process_frame`."""

    name: str
    dtype: str
    bytes: int
    shape: tuple[int, ...]
    state: bool
    argument: str
    slot: str
    ctype: str


def identifier(name: str) -> str:
    """A C identifier made of a name, which may hold letters, digits and `_.+-`.

    Raises:
        LibraryError: it holds something else, which may not get into C or a path.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", name, flags=re.ASCII):
        raise LibraryError(f"{name!r} cannot be a name in C: use letters, digits and _.+-")
    result = re.sub(r"\W", "_", name, flags=re.ASCII)
    if result[0].isdigit():
        result = f"_{result}"
    return f"{result}_" if RESERVED.fullmatch(result) else result


def find_ports(plan: Plan) -> Ports | None:
    """The input that is a frame and the output that is its matte, if the program is of that kind.

    The frame is the only input that is no state, float32 (1,C,H,W); the matte is the output called `pha` or `alpha`,
    else the only one of float32 (1,1,H,W).
    """
    taken = {state.input for state in plan.states}, {state.output for state in plan.states}
    frames = [i for i in range(len(plan.inputs)) if i not in taken[0]]
    mattes = [i for i in range(len(plan.outputs)) if i not in taken[1] and _is_picture(plan.outputs[i], 1)]
    named = [i for i in mattes if plan.outputs[i].name in ALPHA_NAMES]
    if len(frames) != 1 or not _is_picture(plan.inputs[frames[0]]) or len(named or mattes) != 1:
        return None
    return Ports(frames[0], (named or mattes)[0])


@dataclass(frozen=True)
class CKernel:
    """A kernel as C sees it: of each phase, its function and the iterations to divide among threads, or None."""

    phases: tuple[tuple[str, int | None], ...]


def write_library(
    folder: Path, name: str, target: Target, plan: Plan, kernels: Mapping[str, CKernel]
) -> list[Path]:
    """Write `name.h`, the C sources and the weights into a folder; return the sources to compile."""
    taken = {state.input for state in plan.states}, {state.output for state in plan.states}
    inputs = {spec.name for spec in plan.inputs}
    conversions = [step for state in plan.states for step in (state.enter, state.leave)]
    values = {
        "name": name,
        "target": target.name,
        "inputs": [_argument(spec, i in taken[0]) for i, spec in enumerate(plan.inputs)],
        "outputs": [_argument(spec, i in taken[1], inputs) for i, spec in enumerate(plan.outputs)],
        "states": [
            {
                "input": state.input,
                "output": state.output,
                "offsets": state.offsets,
                "bytes": state.bytes,
                "enter": _statement(state.enter, kernels),
                "leave": _statement(state.leave, kernels),
            }
            for state in plan.states
        ],
        "output_offsets": plan.output_offsets,
        "arena_bytes": plan.arena_bytes,
        "local_bytes": plan.local_bytes,
        "kernels": _declarations([*plan.steps, *conversions], kernels),
        "steps": [_statement(step, kernels) for step in plan.steps],
        "digest": hashlib.sha256(plan.weights).hexdigest(),
        "file": f"{name}.weights",
    }
    (folder / f"{name}.weights").write_bytes(plan.weights)
    results = {"library": "", "stream": "_stream", "threads": "_threads"}
    for template in sorted(HERE.glob("*.template.[ch]")):
        stem, _, suffix = template.name.split(".")
        (folder / f"{name}{results[stem]}.{suffix}").write_text(_render(template.name, values))
    return [folder / f"{name}.c", folder / f"{name}_threads.c"]


def write_driver(folder: Path, name: str, title: str, ports: Ports | None) -> list[Path]:
    """Write the driver's sources and its view of the library into the library's folder; return what to compile."""
    lines = (
        f'#include "{name}.h"',
        f'#define PROGRAM_NAME "{title}"',
        f"#define PROGRAM(symbol) {name}_##symbol",
        f"#define PROGRAM_INPUTS {name.upper()}_INPUTS",
        f"#define PROGRAM_OUTPUTS {name.upper()}_OUTPUTS",
        f"#define PROGRAM_HAS_MEDIA {int(ports is not None)}",
        f"#define PROGRAM_FRAME {ports.frame if ports else 0}",
        f"#define PROGRAM_ALPHA {ports.alpha if ports else 0}",
    )
    (folder / "program.h").write_text("\n".join(lines) + "\n")
    (folder / "media.h").write_bytes((HERE / "media.h").read_bytes())
    sources = []
    for source in ("driver.c", "media.c", "y4m.c", "png.c", "inflate.c"):
        sources.append(folder / source)
        sources[-1].write_bytes((HERE / source).read_bytes())
    return sources


def _is_picture(spec: TensorSpec, channels: int | None = None) -> bool:
    fits = len(spec.shape) == 4 and spec.shape[0] == 1 and spec.dtype == "float32"
    return fits and channels in (None, spec.shape[1])


def _argument(spec: TensorSpec, state: bool, others: Collection[str] = ()) -> _Argument:
    if len(spec.shape) > MAX_RANK:
        raise LibraryError(f"{spec.name} has {len(spec.shape)} dimensions; at most {MAX_RANK} are handed out")
    name = identifier(f"{spec.name}_out" if spec.name in others else spec.name)
    ctype = CTYPES.get(spec.dtype, f"{spec.dtype}_t")
    return _Argument(
        spec.name, spec.dtype, spec.bytes, spec.shape, state, name, "NULL" if state else name, ctype
    )


def _declarations(steps: Sequence[Step], kernels: Mapping[str, CKernel]) -> list[tuple[str, int, bool]]:
    """Of every function that is called: its name, how many tensors it takes, and whether it runs a range."""
    return sorted(
        {
            (symbol, len(step.arguments), extent is not None)
            for step in steps
            if step.function
            for symbol, extent in kernels[step.function].phases
        }
    )


def _statement(step: Step, kernels: Mapping[str, CKernel]) -> str:
    """The C that does a step, without its last semicolon."""
    arguments = ", ".join(_expression(place) for place in step.arguments)
    if not step.function:
        source, result = map(_expression, step.arguments)
        return f"memcpy({result}, {source}, {step.bytes}u)"
    local = _expression(step.local) if step.local else "NULL"
    calls = [
        f"{symbol}({arguments})"
        if extent is None
        else f"divide(pool, part_of_{symbol}, (void *const[]){{{arguments}}}, {local}, {extent})"
        for symbol, extent in kernels[step.function].phases
    ]
    return ";\n  ".join(calls)


def _expression(place: Place) -> str:
    if place.kind in ("arena", "constant"):
        return f"{'a' if place.kind == 'arena' else 'w'} + {place.value}u"
    if place.kind in ("old", "new"):
        return f"{place.kind}{place.value}"
    return f"(void *)in[{place.value}]" if place.kind == "input" else f"out[{place.value}]"


def _render(template: str, values: Mapping[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(values)
