"""What the logs of CI systems read as a command, and lines that try to be one."""

import re

import numpy as np

_LINES = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def _github(output):
    """Runner: two colons at the start of a line, or `##[` anywhere in one."""
    lines = (_COLOUR.sub("", line).lstrip() for line in _LINES.split(output))
    return "##[" in output or any(line.startswith("::") for line in lines)


def _contains(pattern):
    return lambda output: re.search(pattern, output, re.IGNORECASE) is not None


SYSTEMS = {
    "github": _github,
    "azure": _contains(r"##(vso)?\["),
    "gitlab": _contains(r"section_(start|end):"),
    "teamcity": _contains(r"##teamcity\["),
}
"""By name, whether an output holds a command."""

_COMMANDS = {
    "github": ("::error::x", "::set-output name=a::b", "::stop-commands::t", "##[group]x", "##[add-mask]"),
    "azure": ("##vso[task.setvariable variable=a]b", "##VSO[task.complete]", "##[section]x", "##[error]"),
    "gitlab": ("section_start:1560896352:a[collapsed=true]\r\x1b[0Kx", "section_end:1:a\r\x1b[0K"),
    "teamcity": ("##teamcity[buildStop comment='x']", "##teamcity[setParameter name='a' value='b']"),
}  # fmt: skip
_BEFORE = (
    "",
    "",
    "",
    " ",
    "\t",
    "#",
    "##",
    ":",
    "\n",
    "\r\n",
    "\x1b[31m",
    "\u2028",
    "\x0b",
    "\xa0",
    "a\n",
)


def hostile_lines(system, seed=0):
    """Yield strings that hold a command of a system, cut or doubled now and then."""
    rng = np.random.default_rng(seed)
    commands = _COMMANDS[system]
    while True:
        command = str(commands[rng.integers(len(commands))])
        before = "".join(str(_BEFORE[i]) for i in rng.integers(len(_BEFORE), size=rng.integers(4)))
        again = command if rng.random() < 0.3 else ""
        start = int(rng.integers(3)) if rng.random() < 0.2 else 0
        yield before + command[start:] + again
