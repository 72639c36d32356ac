"""The site: README and all pages as HTML, by Sphinx, in which a broken link or anchor is an error; run `make site`."""

from sphinx.application import Sphinx

project = "mattecompress"
copyright = "the authors of mattecompress"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "examples/*.md", "examples/*/*.md"]
exclude_patterns = [".venv", "build", "demo", "mattecompress", "tests"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = project
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_additional_pages = {"index": "index.html"}
templates_path = ["templates"]
pygments_style = "friendly"
pygments_dark_style = "monokai"

CONTENTS = {
    "Use": "docs/quick-start docs/inspecting docs/deploying-on-arm docs/training-bivm docs/training-mematte "
    "docs/datasets",
    "Examples": "examples/README examples/*/README",
    "Look up": "docs/command-line docs/pass-catalogue docs/text-form docs/numerics docs/token-memory docs/post-training "
    "docs/ablation docs/mask-time CHANGELOG",
    "Extend": "docs/writing-a-pass docs/writing-a-kernel",
}


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """README is the first page; the list of the others is needed by the site alone."""
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            entries = pages.replace(" ", "\n")
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{entries}\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
