"""The process that renders chat templates: JSON lines in, JSON lines out, and little else.

Not to be imported by the package: it runs as a script, and imports only jinja2.
"""

import json
import resource
import sys

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY_LIMIT = 512 * 2**20


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said; the text is the same without it."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without escaping it for HTML, as chat templates expect."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what templates are written for, but for `strftime_now`: a text has no date of today."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def main() -> None:
    """Compile the template of the first line, then render the conversation of each other line."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setup = json.loads(sys.stdin.readline())
    try:
        template = _environment().from_string(setup["template"])
    except (TemplateError, RecursionError) as error:
        _reply({"broken": type(error).__name__})
        return
    _reply({"text": ""})
    for line in sys.stdin:
        try:
            text = template.render(
                **setup["special_tokens"], messages=json.loads(line), add_generation_prompt=False
            )
        except (ArithmeticError, LookupError, TypeError, ValueError, TemplateError) as error:
            # Not what the error says: it could hold the text of the corpus.
            _reply({"refused": type(error).__name__})
        else:
            _reply({"text": text})


def _reply(reply: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
