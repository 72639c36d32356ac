"""The command line's verbs as functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mattecompress.analysis.cost import Cost
from mattecompress.analysis.cost import cost as inspect
from mattecompress.backends import Artifact, load_backend
from mattecompress.capturing.tracing import capture as capture_module
from mattecompress.container import load, save
from mattecompress.inspection.difference import Difference, diff
from mattecompress.interface import Clip
from mattecompress.models import build_model
from mattecompress.models.signatures import fixed_options, model_signature
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature

__all__ = ["Cost", "Difference", "capture", "compile", "diff", "inspect", "load", "opt", "save"]


def capture(
    model: str | nn.Module,
    signature: Signature | None = None,
    checkpoint: str | Path | None = None,
    size: tuple[int, int] | None = None,
    ratio: float = 1,
    **options: Any,
) -> Program:
    """The float program of a named model, or of any module whose signature is given.

    size: (height, width) of the frame; None leaves sizes open, which networks of trimaps cannot.
    ratio: the downsample ratio of a named model; other than 1 it needs a size.
    options: go to the model's builder, such as `refiner="fast_guided_filter"`.

    Raises:
        CaptureError, CheckpointError, UnknownModelError, SizeError
    """
    if isinstance(model, nn.Module):
        if signature is None:
            raise TypeError(
                "a module needs a signature: mattecompress.signature.Signature(inputs, outputs, states)"
            )
        return capture_module(model, signature, type(model).__name__.lower())
    network = build_model(model, Path(checkpoint) if checkpoint else None, **options)
    return capture_module(network, model_signature(model, size, ratio), model, fixed_options(model, ratio))


def opt(
    program: Program,
    pipeline: str,
    clips: Sequence[Clip] = (),
    seed: int = 0,
    folder: str | Path | None = None,
) -> Program:
    """Run a pipeline's text over a program.

    clips: calibration clips, (T,3,H,W) in 0..1 each, or as `mattecompress.running.feed.Feed` takes them.
    folder: where long passes keep what they did, and go on from it.

    Raises:
        PipelineError, OptionError, PreconditionError
    """
    kept = Path(folder) if folder else None
    return parse_pipeline(pipeline).run(program, Context(clips=clips, seed=seed, folder=kept))


def compile(program: Program, backend: str = "reference", **options: Any) -> Artifact:
    """Compile a program with a backend; `options` are the backend's own.

    Raises:
        UnsupportedError: the backend is unknown or cannot compile some node.
    """
    return load_backend(backend)(**options).compile(program)
