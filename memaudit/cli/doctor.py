"""`memaudit doctor`: what is found on this machine, and whether it computes what it should."""

import click

from memaudit.cli import options
from memaudit.cli.command import Command, Shown
from memaudit.reports.page import Column, Page, Section, Table, Words, facts, name

_KINDS = {"good": "good", "bad": "risk", "skipped": "quiet"}


@click.command(cls=Command)
@options.shown
@click.pass_context
def doctor(context: click.Context, shown: Shown) -> int:
    """Show versions, devices, what 'auto' chooses here, and which variables are listened to.

    Engines score a tiny model whose scores are known. Exit code 0 if all is well, else 2.
    """
    with shown.working("score a tiny model"):
        from memaudit.doctor import examine

        options.prepare_libraries()
        group = context.find_root().command
        assert isinstance(group, click.Group)
        listened = {
            f"MEMAUDIT_{command}_{called}".upper()
            for command, one in group.commands.items()
            for param in one.params
            if isinstance(param, click.Option) and param.allow_from_autoenv
            for called in (param.name or "", param.opts[0].lstrip("-").replace("-", "_"))
        }
        found = examine(listened)
    checks = tuple(
        (check.name, Words(check.status, _KINDS[check.status]), name(check.said, max_len=1000))  # type: ignore[arg-type]
        for check in found.checks
    )
    variables = {
        "listened to": ", ".join(found.variables) or "none",
        "ignored": ", ".join(found.ignored),
    }
    verdict = Words("All is well", "good") if found.is_well else Words("Something is wrong", "risk")
    page = Page(
        title="Doctor",
        verdict=(verdict, "."),
        sections=(
            Section(blocks=(Table(columns=(Column(breaks="nowhere"), Column(), Column()), rows=checks),)),
            Section(blocks=(facts({key: name(value, max_len=2000) for key, value in found.facts.items()}),)),
            Section(blocks=(facts(variables, title="Variables that are set"),)),
        ),
    )  # fmt: skip
    shown.tell(found.document(), page)
    # Not 1, which means that a gate has failed.
    return 0 if found.is_well else 2
