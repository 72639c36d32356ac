"""Verbs that say what there is: models, passes, pipelines, targets, doctor."""

import dataclasses
import inspect

import typer

from mattecompress.cli.options import Json, print_json


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    for verb in (models, passes, pipelines, targets, doctor):
        app.command()(verb)


def models() -> None:
    """List the models that can be captured by name."""
    from mattecompress.models import MODELS, SHIPPED

    for name in MODELS:
        typer.echo(f"{name:20} {'weights shipped' if name in SHIPPED else 'needs --checkpoint'}")


def passes() -> None:
    """List the passes, what each gives, and its options."""
    from mattecompress.passes import PASSES
    from mattecompress.pipeline_text import load_pass

    for name in PASSES:
        kind = load_pass(name)
        typer.echo(f"{name}\n    {_summary(kind)}{_options(kind)}")


def pipelines() -> None:
    """List the named pipelines and the passes that each stands for."""
    from mattecompress.named_pipelines import PIPELINES

    for name, kind in PIPELINES.items():
        typer.echo(f"{name}\n    {_summary(kind)}{_options(kind)}\n    = {kind().passes()}")


def targets() -> None:
    """List the targets that programs compile for."""
    from mattecompress.backends.tvm.targets import TARGETS

    for name, target in TARGETS.items():
        typer.echo(f"{name:15} {target.triple:28} {target.cpu}")


def doctor(json: Json = False) -> None:
    """Say what is installed, which targets can be linked and emulated, and how to mend what is missing."""
    from mattecompress.doctor import examine

    findings = examine()
    if json:
        print_json([dataclasses.asdict(finding) for finding in findings])
        return
    for finding in findings:
        mend = f"\n      mend: {finding.mend}" if finding.mend else ""
        typer.echo(f"{'ok ' if finding.good else 'NO '} {finding.subject:24} {finding.detail}{mend}")


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _options(kind: type) -> str:
    fields = [field for field in dataclasses.fields(kind) if field.init]
    shown = [
        f"{field.name.replace('_', '-')}"
        + ("" if field.default is dataclasses.MISSING else f"={field.default}")
        for field in fields
    ]
    return f"\n    options: {', '.join(shown)}" if shown else ""
