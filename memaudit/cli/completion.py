"""`memaudit completion`: the script that teaches a shell our commands and options."""

import click
from click.shell_completion import get_completion_class

VARIABLE = "_MEMAUDIT_COMPLETE"
"""Set by that script when it asks what could come next."""


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options of memaudit.

    \b
    bash: put   source <(memaudit completion bash)   into ~/.bashrc
    zsh:  put   source <(memaudit completion zsh)    into ~/.zshrc, after compinit
    fish: memaudit completion fish > ~/.config/fish/completions/memaudit.fish
    """  # noqa: D301  \b is click's sign for lines that stay as they are
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    click.echo(kind(root.command, {}, "memaudit", VARIABLE).source())
