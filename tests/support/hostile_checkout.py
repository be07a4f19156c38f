"""Files that a pull request could bring to run its own code in a gate, or to loosen it."""

_CODE = """
import os, pathlib
pathlib.Path({marker!r}).write_text(repr(dict(os.environ)))
for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
    if os.environ.get(name):
        with open(os.environ[name], "a") as stream:
            stream.write("verdict=pass\\n")
"""

_MODULES = (
    "venv", "json", "sitecustomize", "usercustomize", "conftest", "pip", "click", "encodings",
    "numpy", "msgspec", "os", "site", "memaudit", "runpy", "setup", "pyarrow",
)  # fmt: skip
_LOOSE = (
    "max-rate = 1.0\nmax-expected = 1e9\ninconclusive = 'pass'\nallow-custom-classifier = true\n"
)


def hostile_files(marker):
    """Return the content of each file by its name; all code touches the marker.

    Args:
        marker: path that exists once some of it has run.
    """
    code = _CODE.format(marker=str(marker))
    shell = f"#!/bin/sh\ntouch {marker}\necho verdict=pass >> $GITHUB_OUTPUT\n"
    packages = {f"{name}/__init__.py": code for name in ("memaudit", "pip", "venv", "rich")}
    packages |= {f"{name}/__main__.py": code for name in ("memaudit", "pip", "venv")}
    return packages | {f"{name}.py": code for name in _MODULES if name not in ("memaudit",)} | {
        "hostile.pth": f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n",
        "pyproject.toml": f"[tool.memaudit]\nexit_zero = true\n[tool.memaudit.gate]\n{_LOOSE}",
        "memaudit.toml": f"[gate]\n{_LOOSE}",
        "setup.cfg": f"[memaudit:gate]\n{_LOOSE}[options]\npy_modules = json\n",
        "tox.ini": f"[memaudit]\n{_LOOSE}",
        "pip.conf": "[global]\nindex-url = http://127.0.0.1:9/\nno-deps = true\n",
        ".pypirc": "[distutils]\n",
        ".pydistutils.cfg": "[install]\nprefix = .\n",
        "uv.toml": 'index-url = "http://127.0.0.1:9/"\n',
        ".python-version": "2.7\n",
        ".gitattributes": "* filter=evil diff=evil text eol=crlf\n",
        ".gitconfig": f"[core]\n\tfsmonitor = {marker}\n[filter \"evil\"]\n\tsmudge = touch {marker}\n",
        "action.yml": f"runs:\n  using: composite\n  steps: [{{shell: bash, run: touch {marker}}}]\n",
        "screen.json": "{}",
        "models/teacher/classifier.json": "{}",
        "constraints.txt": "click==0.1\n",
        "gate.json": '{"verdict": "pass"}',
        "key": "00" * 32 + "\n",
        "bin/python": shell, "bin/memaudit": shell, "venv/bin/python": shell, "git": shell, "cat": shell,
        ".env": "MEMAUDIT_GATE_MAX_RATE=1\nMEMAUDIT_GATE_INCONCLUSIVE=pass\nMEMAUDIT_VERSION=1\n",
        ".envrc": shell, ".bashrc": shell, ".bash_profile": shell, "sitecustomize": shell,
        "python3": shell, "python": shell, "mktemp": shell, "memaudit.sh": shell,
        "pyvenv.cfg": "home = .\ninclude-system-site-packages = true\n",
        ".memaudit-key": "00" * 32 + "\n",
        ".memaudit-baseline.json": "{}",
        "requirements.txt": "evil @ file:///evil\n",
        "python311._pth": ".\n",
    }  # fmt: skip


def infest(folder, marker, only=None):
    """Write those files into a folder, or one kind of them alone."""
    for name, content in hostile_files(marker).items():
        if only is None or name.startswith(only):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o755)
