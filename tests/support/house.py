"""How large and how tangled the package is: `python -m tests.support.house [CHECKOUT]`.

The same figures are limits in `tests/test_house.py`, so that the package cannot grow by accident.
"""

import ast
import re
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "memaudit"
EQUAL_LINES = 12
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path

    @cached_property
    def source(self):
        """Its text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def lines(self):
        """All of them, blank ones too."""
        return self.source.splitlines()

    @cached_property
    def tree(self):
        """Its syntax tree."""
        return ast.parse(self.source)

    @property
    def is_package(self):
        """Whether it stands for a folder."""
        return self.path.name == "__init__.py"

    @cached_property
    def functions(self):
        """Functions and methods, at any depth."""
        return [node for node in ast.walk(self.tree) if isinstance(node, FUNCTION)]


class House:
    """The modules of a checkout."""

    def __init__(self, root=ROOT):
        self.root = Path(root)
        self.modules = {}
        for path in sorted((self.root / PACKAGE).rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            self.modules[name] = Module(name, path)

    @cached_property
    def n_lines(self):
        """Lines of the package."""
        return sum(len(module.lines) for module in self.modules.values())

    def imported_by_one(self):
        """Modules, packages aside, that exactly one other module imports, at any place."""
        users = defaultdict(set)
        for module in self.modules.values():
            for name in _imported(module.tree, self.modules):
                users[name].add(module.name)
        return sorted(
            name
            for name, module in self.modules.items()
            if not module.is_package and len(users[name] - {name}) == 1
        )

    def helpers_used_once(self):
        """Private functions at the top of a module that are named once in it."""
        once = []
        for module in self.modules.values():
            named = Counter(_names(module.tree))
            helpers = [node.name for node in module.tree.body if isinstance(node, FUNCTION)]
            once += [
                f"{module.name}.{helper}"
                for helper in helpers
                if helper.startswith("_") and named[helper] == 1
            ]
        return once

    def imports_in_functions(self):
        """Import statements within functions, as module:line."""
        found = set()
        for module in self.modules.values():
            for function in module.functions:
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        found.add(f"{module.name}:{node.lineno}")
        return sorted(found)

    def n_comments(self):
        """Comments, at the end of a line or on lines of their own."""
        count = 0
        for module in self.modules.values():
            with tokenize.open(module.path) as file:
                tokens = tokenize.generate_tokens(file.readline)
                count += sum(token.type == tokenize.COMMENT for token in tokens)
        return count

    def largest_function(self):
        """(lines, where) of the longest function, its decorators left out."""
        return max(
            (node.end_lineno - node.lineno + 1, f"{module.name}.{node.name}")
            for module in self.modules.values()
            for node in module.functions
        )

    def largest_module(self):
        """(lines, name) of the longest module."""
        return max((len(module.lines), module.name) for module in self.modules.values())

    def duplicates(self):
        """Pairs of places with more than `EQUAL_LINES` equal lines in a row, blank ones aside."""
        places = defaultdict(list)
        for module in self.modules.values():
            code = [(i, x.strip()) for i, x in enumerate(module.lines, 1) if x.strip()]
            for at in range(len(code) - EQUAL_LINES):
                lines = tuple(text for _, text in code[at : at + EQUAL_LINES + 1])
                places[lines].append((module.name, at, code[at][0]))
        pairs, starts = set(), {}
        for same in places.values():
            for (one, i, line), (two, j, other) in combinations(same, 2):
                pairs.add((one, i, two, j))
                starts[one, i, two, j] = f"{one}:{line} = {two}:{other}"
        # A longer run of equal lines is one pair, not one for each of its windows.
        return sorted(
            starts[a, i, b, j] for a, i, b, j in pairs if (a, i - 1, b, j - 1) not in pairs
        )

    def files_naming_an_option(self):
        """For each option with a dash in its name, the modules that name it or its parameter.

        Names of one word, such as --data, are words of the domain that stand everywhere.
        """
        declared = set()
        for module in self.modules.values():
            if ".cli." in module.name:
                declared.update(re.findall(r'"--([a-z]+(?:-[a-z]+)+)[/"]', module.source))
        found = {}
        for option in declared:
            word = re.compile(rf"--{option}\b|\b{option.replace('-', '_')}\b")
            naming = [name for name, module in self.modules.items() if word.search(module.source)]
            found[f"--{option}"] = naming
        return found

    def naming(self, *files):
        """Modules that name one of the files of a run as a string: who writes or reads it."""
        return sorted(
            module.name
            for module in self.modules.values()
            if any(
                isinstance(node, ast.Constant) and node.value in files
                for node in ast.walk(module.tree)
            )
        )

    def figures(self):
        """Every figure by name."""
        n_once = len(self.helpers_used_once())
        naming = [len(modules) for modules in self.files_naming_an_option().values()]
        return {
            "modules": len(self.modules),
            "lines": self.n_lines,
            "modules imported by one other": len(self.imported_by_one()),
            "private helpers used once": n_once,
            "private helpers used once per 1,000 lines": round(1000 * n_once / self.n_lines, 1),
            "imports in functions": len(self.imports_in_functions()),
            "comments per 100 lines": round(100 * self.n_comments() / self.n_lines, 1),
            "lines of the largest function": self.largest_function()[0],
            "lines of the largest module": self.largest_module()[0],
            "pairs of more than 12 equal lines": len(self.duplicates()),
            "files that name one option, at most": max(naming),
            "files that name one option, on average": round(sum(naming) / len(naming), 1),
            "modules that name summary.json": len(self.naming("summary.json")),
            "modules that name what verify wrote": len(
                self.naming("verification.json", "verification.parquet")
            ),
        }


def _imported(tree, modules):
    """Names of our modules that a module imports, at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def _names(tree):
    """Every name that is read or reached as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def main(root=ROOT):
    """Print the figures, and what stands behind those that name places."""
    house = House(root)
    lines = [f"{figure:>9,}  {name}" for name, figure in house.figures().items()]
    lines += ["", f"largest: {house.largest_function()[1]}, {house.largest_module()[1]}"]
    lines += [f"equal: {pair}" for pair in house.duplicates()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
