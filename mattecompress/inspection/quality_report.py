"""A page on what quantization did to a clip: programs side by side, set beside the float program they come from."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mattecompress.analysis.cost import cost
from mattecompress.data.sources import SourceClip, clip_inputs
from mattecompress.inspection.quality import affine_numbers, find_uncalibrated, region_ratios
from mattecompress.measuring.evaluation import METRICS, predict
from mattecompress.measuring.metrics import evaluate_clip
from mattecompress.program import Program
from mattecompress.report import VariantReport, frame_errors, over_green, write_report
from mattecompress.running.watching import Progress


def write_quality_report(
    path: Path,
    programs: Mapping[str, Program],
    reference: Program,
    clip: SourceClip,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Measure every program on a clip and write the page.

    programs: by the name that the page calls them. reference: float, of the same size, inputs and states.

    Raises:
        CalibrationError, ResolutionError, MatteOutputError: a program cannot take the clip, or has no alpha.
        NoReferenceError: a program and the reference take different inputs.
    """
    truth, _ = predict(reference, reference.run, clip)
    variants = []
    for number, (name, program) in enumerate(programs.items()):
        progress(number, len(programs), "programs measured")
        variants.append(_measure(name, program, programs, reference, clip, truth))
    progress(len(programs), len(programs), "programs measured")
    title = f"{reference.name}, quantized"
    write_report(path, title, clip.frames, truth, "the float program", variants, [f"Clip: {clip.name}."])


def _measure(
    name: str,
    program: Program,
    programs: Mapping[str, Program],
    reference: Program,
    clip: SourceClip,
    truth: Tensor,
) -> VariantReport:
    alpha, foreground = predict(program, program.run, clip)
    metrics = evaluate_clip(alpha, truth)
    before = find_uncalibrated(program, list(programs.values()))
    affine = affine_numbers(before, program) if before else None
    return VariantReport(
        name,
        alpha,
        over_green(alpha, clip.frames if foreground is None else foreground),
        frame_errors(alpha, truth),
        [
            *((metric, f"{metrics[metric]:.3f}") for metric in METRICS if metric in metrics),
            ("weights, MiB", f"{cost(program).totals.size_mib:.2f}"),
            ("passes", ", ".join(record.text for record in program.history)),
        ],
        regions=region_ratios(program, reference, [clip_inputs(program, clip)]),
        numbers={"gamma": list(affine.gamma.values()), "beta": list(affine.beta.values())} if affine else {},
    )
