"""The documentation: every block runs, every output is what comes out, every link leads somewhere."""

import re
import shutil
import subprocess
import sys

import click
import pytest
from support.doc_blocks import PAGES, ROOT, Block, blocks_of, missing_lines, run_block

from memaudit.cli.main import cli

PREDICT = "memaudit predict --teacher models/demo-teacher --data sample_data/demo.jsonl"
PAGES_THAT_RUN = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder with programs named as the documentation names them."""
    folder = tmp_path_factory.mktemp("programs")
    for name, arguments in {
        "memaudit": '-c "import sys; from memaudit.__main__ import main; sys.exit(main())"',
        "python": "",
        "python3": "",
    }.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        program.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def audited(tmp_path_factory, programs):
    """A folder with the sample data, the models and a finished run on the demo."""
    folder = tmp_path_factory.mktemp("audited")
    for name in ("models", "sample_data"):
        (folder / name).symlink_to(ROOT / name)
    run_block(Block("fixture", 1, "sh", PREDICT, ()), folder, programs)
    return folder


@pytest.fixture
def place(audited, tmp_path):
    """A copy of it for one page."""
    return shutil.copytree(audited, tmp_path / "place", symlinks=True)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.name)
def test_every_block_runs(page, place, programs):
    """What a reader copies must work, and must print what the page shows; distillations, too."""
    wrong, printed = [], None
    for block in blocks_of(page):
        if block.is_run:
            printed = run_block(block, place, programs)
        elif block.is_output and printed is not None:
            wrong += [f"{block.page}:{block.line}: {x}" for x in missing_lines(block.code, printed)]
    assert not wrong, "\n".join(["shown, and not printed:", *wrong, "printed:", printed or ""])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_says_why(page):
    """A mark without a reason is how examples rot."""
    for block in blocks_of(page):
        reasons = [mark for mark in block.marks if mark.startswith("not run")]
        assert all(re.fullmatch(r"not run: \w.{9,}", reason) for reason in reasons), block
        named = block.language or page.name == "README.md"
        assert named, f"{block.page}:{block.line}: name the language of the block"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_leads_somewhere(page):
    """The site is built strictly, README.md is not part of it."""
    content = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", content)

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation():
    """A page that nothing leads to is not read."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    named = set(re.findall(r"[\w-]+\.md", navigation.partition("\nnav:")[2]))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.fixture(scope="module")
def site():
    """The site, built as CI builds it: beside its configuration, where git ignores it."""
    pytest.importorskip("zensical")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "site"


@pytest.mark.slow
@pytest.mark.ci
def test_the_site_fetches_nothing_from_elsewhere(site):
    """Who reads about a private corpus tells nobody."""
    loading = re.compile(
        r"<(?:script|img|iframe|source|video|audio|object|embed)\b[^>]*\b(?:src|data)=[\"']?(?:https?:)?//"
        r"|<link\b[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon|manifest)[^>]*href=[\"']?(?:https?:)?//"
        r"|@import\s+[\"'(]|url\([\"']?(?:https?:)?//",
        re.IGNORECASE,
    )
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]

    found = {page.name: loading.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert len(pages) > 15
    assert not any(found.values()), found


@pytest.mark.slow
@pytest.mark.ci
def test_the_reference_has_every_option_of_every_command(site):
    """It is made from the code, so nothing may be lost on the way."""
    reference = (site / "cli.html").read_text(encoding="utf-8")
    assert "Sentinel" not in reference  # what click says of a default that is not there
    for name, command in cli.commands.items():
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert f"memaudit {name}" in reference
        assert all(option.opts[0] in reference for option in options)
