"""The page of passes and named pipelines, from their docstrings, options and promises, with an example of each pass."""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Iterator

from samples import SAMPLES, Sample, difference

from mattecompress.named_pipelines import PIPELINES, NamedPipeline
from mattecompress.options import format_value
from mattecompress.passes import PASSES
from mattecompress.pipeline import Pass
from mattecompress.pipeline_text import load_pass

HEAD = """\
# Pass catalogue

Made by `make docs` from the passes themselves; edit their docstrings, not this page. The same list is printed by
`mattecompress passes` and `mattecompress pipelines`.

A pass is written `name{option=value option=value}`; passes are joined by commas. A named pipeline is written like a
pass and unfolds into passes. Lists are written `[a,b]`, truth values `true` and `false`, an absent value `none`.

Below each pass is what it makes of a small network ([docs/samples.py](samples.py) has them): lines of the
[text form](text-form.md) that go (`-`) and come (`+`), and tensors that get other values (`~`).
"""


def catalogue() -> str:
    """The page."""
    parts = [HEAD, "## Passes\n"]
    parts += [_describe_pass(name, load_pass(name)) for name in PASSES]
    parts.append("## Named pipelines\n")
    parts += [_describe_pipeline(name, kind) for name, kind in PIPELINES.items()]
    return "\n".join(parts)


def _describe_pass(name: str, kind: type[Pass]) -> str:
    module = importlib.import_module(kind.__module__)
    lines = [f"### {name}\n", f"{_prose(kind)}\n"]
    lines += [f"```text\n{inspect.getdoc(module)}\n```\n"]
    lines += [*_option_table(kind)]
    for promise, method in (("Requires", kind.requires), ("Ensures", kind.ensures)):
        if method is not getattr(Pass, promise.lower()):
            lines.append(f"{promise}: {_join(inspect.getdoc(method))}\n")
    lines.append(_example(SAMPLES[name]))
    return "\n".join(lines)


def _example(sample: Sample) -> str:
    behind = f", behind `{sample.before}`" if sample.before else ""
    return f"`{sample.text}`{behind}:\n\n```diff\n{difference(sample)}\n```\n"


def _describe_pipeline(name: str, kind: type[NamedPipeline]) -> str:
    return "\n".join(
        [f"### {name}\n", f"{_prose(kind)}\n", *_option_table(kind), f"```text\n{kind().passes()}\n```\n"]
    )


def _prose(kind: type) -> str:
    """A class's docstring, its list of options as one."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    names = {field.name for field in dataclasses.fields(kind)}
    return "\n\n".join(_as_list(paragraph, names) for paragraph in paragraphs)


def _as_list(paragraph: str, names: set[str]) -> str:
    """A paragraph of `option: meaning` lines as a Markdown list; any other as one line."""
    lines = paragraph.splitlines()
    keys = {key.strip() for key in lines[0].partition(":")[0].split(",")}
    if not keys <= names:
        return _join(paragraph)
    items: list[str] = []
    for line in lines:
        if line.startswith(" "):
            items[-1] += f" {line.strip()}"
        else:
            option, _, meaning = line.partition(":")
            spelled = ", ".join(f"`{name.strip().replace('_', '-')}`" for name in option.split(","))
            items.append(f"- {spelled}: {meaning.strip()}")
    return "\n".join(items)


def _option_table(kind: type) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    if fields:
        yield "| option | type | default |\n|---|---|---|"
    for field in fields:
        default = "required" if field.default is dataclasses.MISSING else f"`{format_value(field.default)}`"
        yield f"| `{field.name.replace('_', '-')}` | {_type_text(hints[field.name])} | {default} |"
    if fields:
        yield ""


def _type_text(hint: object) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"list of {_type_text(arguments[0])}"
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if arguments:
        return " or ".join("none" if arm is type(None) else _type_text(arm) for arm in arguments)
    return getattr(hint, "__name__", str(hint))


def _join(text: str | None) -> str:
    return " ".join((text or "").split())
