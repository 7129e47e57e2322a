"""What README and docs/ say of the commands: every command line quoted there parses, every flag exists."""

import argparse
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main
from flwr.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
PLACEHOLDERS = {"LAYOUT": "msd", "NUMBER": "7", "N": "7", "HOST:PORT": "localhost:8000"}
"""words in capitals that stand for a value of a certain kind; any other may stay as it is"""


def parser_of(script: str) -> argparse.ArgumentParser:
    parser = importlib.import_module(SCRIPTS[script].split(":")[0]).build_parser()
    assert isinstance(parser, argparse.ArgumentParser) and parser.prog == script
    return parser


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Its own and those of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from flags_of(each)


def quotations(page: Path) -> list[list[str]]:
    """The words of every line of a code block (a backslash joins lines) and of every piece of code within text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?$(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [words for code in (*lines, *inline) if (words := code.split())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_command_lines_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for script, *words in quotations(page):
        if script not in SCRIPTS or not words:  # a name alone is a mention, not a command line
            continue
        arguments = [PLACEHOLDERS.get(word, word) for word in (word.strip("[]") for word in words)]
        try:
            parser_of(script).parse_args(arguments)
        except SystemExit as ended:
            assert ended.code == 0, f"{page.name}: {script} {' '.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_flags_exist(page: Path) -> None:
    known = {flag for script in SCRIPTS for flag in flags_of(parser_of(script))}
    quoted = {word for words in quotations(page) if words[0].startswith("-") for word in words if re.fullmatch(r"--?[a-z_]+", word)}
    assert quoted <= known


def test_quoted_lines_of_flower_exist() -> None:
    """``flwr``'s subcommands and their arguments, judged by Flower's own parser. The SuperLink's and SuperNode's lines stand in the kit."""
    flwr = typer.main.get_command(app)
    found = [words for page in PAGES for words in quotations(page) if words[0] == "flwr" and len(words) > 1]
    assert ["flwr", "supernode", "list", "hospitals"] in found
    for _, *words in found:
        command, context = flwr, click.Context(flwr)
        while isinstance(command, click.Group):
            name, chosen, words = command.resolve_command(context, words)
            assert chosen is not None
            command, context = chosen, click.Context(chosen, parent=context, info_name=name)
        command.make_parser(context).parse_args(list(words))


def test_the_readme_has_a_line_for_every_command() -> None:
    named = re.findall(r"^\| `(fedsam_\w+)[^`]*` \|", PAGES[0].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(SCRIPTS)


def test_the_quotations_are_found() -> None:
    """Guards the tests above: they say nothing where no command line is read."""
    found = [words for page in PAGES for words in quotations(page) if words[0] in SCRIPTS]
    assert ["fedsam_predict", "-i", "imgs", "-o", "masks"] in found
    assert {words[0] for words in found} == SCRIPTS.keys()


def test_the_fault_matrix_names_tests_that_there_are() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    lost = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")]
    assert not lost
