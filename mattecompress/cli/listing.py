"""Verbs that say what there is: models, recipes, passes, pipelines, targets, doctor."""

import dataclasses
import inspect

import typer

from mattecompress.cli.options import Json, print_json
from mattecompress.options import format_value


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    for verb in (models, recipes, passes, pipelines, targets, doctor):
        app.command()(verb)


def models() -> None:
    """List the models that can be captured by name.

    mattecompress models
    """
    from mattecompress.models import MODELS, SHIPPED

    for name in MODELS:
        typer.echo(f"{name:20} {'weights shipped' if name in SHIPPED else 'needs --checkpoint'}")


def recipes() -> None:
    """List the recipes that `mattecompress train` knows.

    mattecompress recipes
    """
    from mattecompress.training.recipes import RECIPES

    for name, recipe in RECIPES.items():
        typer.echo(f"{name:16} {recipe.model}, {recipe.steps} steps in {len(recipe.stages)} stages")


def passes() -> None:
    """List the passes, what each gives, and its options.

    mattecompress passes
    """
    from mattecompress.passes import PASSES
    from mattecompress.pipeline_text import load_pass

    for name in PASSES:
        kind = load_pass(name)
        typer.echo(f"{name}\n    {_summary(kind)}{_options(kind)}")


def pipelines() -> None:
    """List the named pipelines and the passes that each stands for.

    mattecompress pipelines
    """
    from mattecompress.named_pipelines import PIPELINES

    for name, kind in PIPELINES.items():
        typer.echo(f"{name}\n    {_summary(kind)}{_options(kind)}\n    = {kind().passes()}")


def targets() -> None:
    """List the targets that programs compile for.

    mattecompress targets
    """
    from mattecompress.backends.tvm.targets import TARGETS

    for name, target in TARGETS.items():
        typer.echo(f"{name:13} {target.triple:24} {target.title}")


def doctor(json: Json = False) -> None:
    """Say what is installed, which targets can be linked and emulated, and how to mend what is missing.

    mattecompress doctor
    """
    from mattecompress.doctor import examine

    findings = examine()
    if json:
        print_json([dataclasses.asdict(finding) for finding in findings])
        return
    for finding in findings:
        mend = f"\n      mend: {finding.mend}" if finding.mend else ""
        typer.echo(f"{'ok' if finding.good else 'NO'} {finding.subject:23} {finding.detail}{mend}")


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _options(kind: type) -> str:
    shown = [
        field.name.replace("_", "-")
        + ("" if field.default is dataclasses.MISSING else f"={format_value(field.default)}")
        for field in dataclasses.fields(kind)
        if field.init
    ]
    return f"\n    options: {', '.join(shown)}" if shown else ""
