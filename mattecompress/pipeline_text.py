"""From a pipeline's text to its passes: `fold-batch-norm,quantize{weights=4 activations=8}`."""

import importlib
from collections.abc import Iterator

from mattecompress.errors import UserError
from mattecompress.named_pipelines import PIPELINES
from mattecompress.options import nearest, parse_options
from mattecompress.passes import PASSES
from mattecompress.pipeline import Pass, Pipeline


class PipelineError(UserError):
    """A pipeline's text names an unknown pass or cannot be read."""


def parse_pipeline(text: str) -> Pipeline:
    """The passes that a text names; a named pipeline unfolds into its passes.

    Raises:
        PipelineError: an unknown pass, or text that cannot be read, with its column and the nearest names.
        OptionError: an unknown or ill-typed option.
    """
    passes: list[Pass] = []
    for column, item in _split(text):
        name, _, options = item.partition("{")
        where = f"column {column}: {name}"
        if name in PIPELINES:
            named = parse_options(PIPELINES[name], options.removesuffix("}"), where)
            passes += parse_pipeline(named.passes()).passes
        elif name in PASSES:
            passes.append(parse_options(load_pass(name), options.removesuffix("}"), where))
        else:
            raise PipelineError(
                f"column {column}: unknown pass '{name}'{nearest(name, [*PASSES, *PIPELINES])}"
            )
    if not passes:
        raise PipelineError("the pipeline is empty; `mattecompress passes` lists the passes")
    return Pipeline(tuple(passes))


def load_pass(name: str) -> type[Pass]:
    """The class of a registered pass."""
    module, _, kind = PASSES[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(f"mattecompress.passes.{module}"), kind)
    return found


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Items between commas outside braces, each with the column (from 1) at which it starts."""
    depth, start = 0, 0
    for position, character in enumerate([*text, ","]):
        depth += (character == "{") - (character == "}")
        if depth < 0 or (depth > 1):
            raise PipelineError(f"column {position + 1}: unexpected '{character}'")
        if character == "," and depth == 0:
            item = text[start:position]
            if item.strip():
                yield start + 1 + len(item) - len(item.lstrip()), item.strip()
            start = position + 1
    if depth:
        raise PipelineError(f"column {len(text)}: a '{{' is not closed")
