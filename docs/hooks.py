"""What the site shows of files outside `docs/`, so that nothing is written twice.

The README is its first page, notebooks are pages with the outputs that they are committed with, the options of the
command come from the command, and other files that a page links to are copied.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any, get_args

import nbconvert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from typer.models import OptionInfo

from emmi_jax.cli import app

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
COPIES = ["LICENSE", *(str(path.relative_to(ROOT)) for path in (ROOT / "emmi_jax/training").glob("*/*.toml"))]
ORIGINS = {page: source for source, page in PAGES.items()}
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([\w/]+\.png)\)")
FIGURE = re.compile(r"!\[([^\]]*)\]\((figures/\w+)\.svg\)")
OPTIONS = re.compile(r"^<!-- options of (\w+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and copies."""
    for source, page in PAGES.items():
        if source.endswith(".ipynb"):
            add_notebook(files, config, ROOT / source, page)
        else:
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for source in COPIES:
        files.append(File.generated(config, f"files/{source}.txt", content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links of the repository at pages of the site, and fills in options and dark figures."""
    source = page.file.src_uri
    folder = (ROOT / ORIGINS.get(source, f"docs/{source}")).parent

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder.relative_to(ROOT).as_posix(), match[1]))
        if target in COPIES:
            target = f"files/{target}.txt"
        elif target in PAGES or target.startswith("docs/"):
            target = PAGES.get(target, target.removeprefix("docs/"))
        else:
            return match[0]
        return posixpath.relpath(target, posixpath.dirname(source) or ".")

    parts = FENCED.split(markdown)
    # A picture opens in full, which a phone needs.
    parts[::2] = [PICTURE.sub(r"[\g<0>](\1)", FIGURE.sub(light_and_dark, part)) for part in parts[::2]]
    parts[::2] = [LINK.sub(site_link, part) for part in parts[::2]]
    return OPTIONS.sub(lambda match: options_table(match[1]), "".join(parts))


def light_and_dark(match: re.Match[str]) -> str:
    """Shows the figure that fits the reader's choice."""
    return f"![{match[1]}]({match[2]}.svg#only-light)\n![{match[1]}]({match[2]}_dark.svg#only-dark)"


def add_notebook(files: Files, config: MkDocsConfig, source: Path, page: str) -> None:
    """Adds a notebook and its pictures."""
    resources: dict[str, Any] = {"unique_key": source.stem, "output_files_dir": f"{source.stem}_files"}
    exporter = nbconvert.MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    text, resources = exporter.from_filename(str(source), resources=resources)
    files.append(File.generated(config, page, content=text))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, posixpath.join(posixpath.dirname(page), name), content=picture))


def options_table(name: str) -> str:
    """Returns arguments and options of a command as a table."""
    command = next(command.callback for command in app.registered_commands if command.name == name)
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, info = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
        required = parameter.default is parameter.empty
        option, value = "", info.metavar or ("NUMBER" if {kind, *get_args(kind)} & {int, float} else "NAME")
        if isinstance(info, OptionInfo):
            option = f"`{info.default}`<br>"  # which is where typer has the name
        meaning = info.help.replace(", see above", "") + " Required." * (required and bool(option))
        if not required and parameter.default not in (None, False) and "default" not in meaning:
            meaning += f" Default: `{parameter.default}`."
        rows.append(f"| {option}{'' if kind is bool else f'`{value}`'} | {meaning} |")
    return "\n".join(rows)
