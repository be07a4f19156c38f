"""The edge of the program: what starts fast, what goes where, and which code it ends with."""

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from support.imports import COMMAND, loaded_after

from memaudit.cli import main
from memaudit.cli.command import HEADINGS
from memaudit.cli.main import run
from memaudit.cli.signals import Stopped
from memaudit.errors import MemauditError

HEAVY = {"torch", "transformers", "sklearn", "datasets", "pyarrow", "numpy", "vllm", "rich"}


@pytest.fixture
def failing_command():
    """A command that raises what a test puts into it."""
    errors = []

    @click.command()
    @click.option("--json", is_flag=True)
    def fail(json):
        raise errors.pop()

    main.cli.add_command(fail)
    yield errors
    del main.cli.commands["fail"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["predict", "--help"],
        ["predict", "--foo"],
        ["verify", "--help"],
        [],
    ],
)
def test_nothing_heavy_is_imported_before_there_is_work(arguments):
    """Help that takes seconds is help that nobody reads."""
    assert not loaded_after(COMMAND, *arguments)[1] & HEAVY


def test_what_commands_need_imports_no_library_that_runs_models():
    """A gate, a report or a run that is there already must not wait for torch."""
    program = "import memaudit.cli.predict, memaudit.cli.main as it; list(it.cli.commands.values())"

    assert not loaded_after(program)[1] & {*main.NOT_FOR_A_GATE}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("memaudit.corpus", {"pyarrow", "datasets", "zstandard", "torch", "numpy"}),
        ("memaudit.engines.model_files", {"torch", "transformers", "safetensors"}),  # it runs first
        ("memaudit.engines.models", {"torch", "transformers", "safetensors", "jinja2"}),
        ("memaudit.classifier", {"sklearn", "scipy", "torch", "pyarrow"}),
    ],
)
def test_what_many_commands_need_loads_nothing_heavy(module, heavy):
    """A folder is scanned before a library reads it, and whoever predicts need not have fitted."""
    assert not loaded_after(f"import {module}")[1] & heavy


def test_help_names_every_command_and_option(capsys):
    """An option without help is one that nobody can use."""
    assert run(["--help"]) == 0
    assert "predict" in capsys.readouterr().out
    for command in main.cli.commands.values():
        assert command.help
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert all(option.help for option in options)


def test_no_command_shows_the_help_and_fails(capsys):
    """As click does it: to do nothing is not what anyone meant."""
    assert run([]) == 2
    assert "Usage: memaudit" in capsys.readouterr().err


def test_a_usage_error_names_the_help(capsys):
    """The template of every error: what is wrong, a blank line, what to do."""
    assert run(["predict", "--teacher", "t"]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: missing option '--data'\n\nhint: see 'memaudit predict --help'\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemauditError("it broke", hint="mend it"), 2, "error: it broke\n\nhint: mend it\n"),
        (MemauditError("it broke"), 2, "error: it broke\n"),
        (
            MemauditError("a\x1b]0;b\x07c\n::error::d"),
            2,
            "error: a\\u001b]0;b\\u0007c\\u000a::error::d\n",
        ),
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
        (Stopped(signal.SIGTERM), 143, "error: terminated\n"),
    ],
)
def test_errors_become_text_and_a_code(failing_command, capsys, error, code, message):
    """Scripts read the code, people the text; a terminal is steered by neither."""
    failing_command.append(error)

    assert run(["fail"]) == code

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_a_crash_shows_its_traceback_and_is_not_a_failed_gate(failing_command, capsys):
    """Exit code 1 is taken: it means that a gate failed."""
    failing_command.append(ZeroDivisionError("the text of a row"))

    assert run(["fail"]) == 2

    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert "the text of a row" not in captured  # a library may quote what it failed at
    assert "error: internal error: ZeroDivisionError\n" in captured


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemauditError("it broke", hint="mend it"), {"message": "it broke", "hint": "mend it"}),
        (ZeroDivisionError(), {"message": "internal error: ZeroDivisionError"}),
    ],
)
def test_a_failure_is_one_document_too(failing_command, capsys, error, expected):
    """A program that reads standard output never has to guess."""
    failing_command.append(error)

    assert run(["fail", "--json"]) == 2

    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert expected.items() <= document["error"].items()


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["predict", "--json", "--foo"], {}),
        (["predict", "--foo"], {"MEMAUDIT_PREDICT_JSON": "1"}),
    ],
)
def test_arguments_that_cannot_be_parsed_give_a_document_if_one_is_wanted(
    monkeypatch, capsys, arguments, variables
):
    """Even when the wish for one stands among the arguments that cannot be parsed."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert run(arguments) == 2

    assert "--foo" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_options_can_be_set_by_variables(monkeypatch, capsys):
    """In CI, settings live in the environment."""
    monkeypatch.setenv("MEMAUDIT_PREDICT_TEACHER", "t")
    monkeypatch.setenv("MEMAUDIT_PREDICT_WINDOWS", "neither")

    assert run(["predict", "--data", "d"]) == 2

    assert "'neither' is not one of 'auto', 'first', 'tile'" in capsys.readouterr().err


def test_a_closed_pipe_ends_the_command_quietly():
    """As `head` ends any tool: not a success, and nothing to tell anyone."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "memaudit", "--help"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)

    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_something_else_is_told(failing_command, capsys):
    """A worker that has gone away is not a reader who has had enough."""
    failing_command.append(BrokenPipeError("a worker"))

    assert run(["fail"]) == 2
    assert "internal error: BrokenPipeError" in capsys.readouterr().err


class Panic(BaseException):
    """What the tokenizers library raises from Rust: no `Exception`."""


@pytest.mark.parametrize("error", [Panic("boom"), SystemExit(0), SystemExit(1), GeneratorExit()])
def test_nothing_that_is_raised_ends_with_an_answer(failing_command, capsys, error):
    """0 says passed and 1 says failed: neither may come about by accident."""
    failing_command.append(error)

    assert run(["fail"]) == 2
    assert f"internal error: {type(error).__name__}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variables",
    [
        {"MEMAUDIT_VERSION": "1"},
        {"MEMAUDIT_HELP": "1", "MEMAUDIT_GATE_HELP": "1"},
        {"_MEMAUDIT_COMPLETE": "bash_source"},
        {"_MEMAUDIT_COMPLETE": "bash_complete", "COMP_WORDS": "memaudit ga", "COMP_CWORD": "1"},
    ],
)
def test_no_variable_makes_a_gate_pass(monkeypatch, capsys, tmp_path, variables):
    """It would print its version or its help, and end with 0."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert run(["gate", "--run", str(tmp_path)]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("variable", ["MEMAUDIT_STATUS_JSON", "MEMAUDIT_STATUS_AS_JSON"])
def test_a_variable_is_called_like_its_option(monkeypatch, capsys, tmp_path, variable):
    """The older name, after the parameter, goes on working."""
    monkeypatch.setenv(variable, "1")

    assert run(["status", str(tmp_path)]) == 2
    assert "error" in json.loads(capsys.readouterr().out)


def test_every_group_of_options_is_a_known_one():
    """A reader who knows the groups of one command knows them all."""
    for command in main.cli.commands.values():
        headings = {getattr(param, "heading", None) for param in command.params}
        assert headings - {None} <= {*HEADINGS}, command.name


@pytest.mark.parametrize("name", ["predict", "verify"])
def test_help_begins_with_some_ten_options(name, capsys):
    """Nobody reads fifty to find the three that are needed."""
    assert run([name, "--help"]) == 0

    help_text = capsys.readouterr().out
    first = help_text.partition("Most used:")[2].partition("\n\n")[0]
    assert 10 <= first.count("\n  --") <= 12
    assert all(f"\n{heading}:" in help_text for heading in ("Models", "Corpus", "Windows"))


def test_sigterm_ends_a_run_with_its_code(tmp_path):
    """A scheduler that stops a run must not leave a half-written file or a traceback."""
    script = (
        "import sys, time, memaudit.__main__ as entry, memaudit.cli.main as main, click\n"
        "@click.command()\n"
        "def wait():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('tidied', flush=True)\n"
        "main.cli.add_command(wait)\n"
        "sys.argv[1:] = ['wait']; entry.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()

    assert (process.returncode, out, err) == (143, "tidied\n", "error: terminated\n")


def test_what_was_begun_is_ended_before_the_process_is():
    """Python is not taken apart at the end, but threads and exit handlers have their turn."""
    script = (
        "import atexit, sys, threading, time, memaudit.__main__ as entry\n"
        "atexit.register(lambda: print('tidied', flush=True))\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('worked'))).start()\n"
        "sys.argv[1:] = ['--version']; entry.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0
    assert "worked" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "tidied"


def test_a_broken_installation_does_not_look_like_a_failed_gate():
    """Python itself ends with 1 at an error that nobody catches."""
    script = (
        "import sys, memaudit.__main__ as entry\n"
        "sys.modules['memaudit.cli.main'] = None\n"
        "entry.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 2
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [
        (["report", "--run", "gone"], "--html", "--annex"),
        (["report", "--run", "gone"], "--annex", "--markdown"),
        (["gate", "--run", "gone"], "--output", "--attest"),
        (["gate", "--run", "gone"], "--write-baseline", "--write-policy"),
    ],
)
def test_two_outputs_cannot_have_one_name(command, first, second, tmp_path, monkeypatch, capsys):
    """The second would replace the first, whatever way the name is written; a device takes both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("one")

    for name in ("one", "./one", str(tmp_path / "one"), "link"):
        assert run([*command, first, "one", second, name]) == 2
        said = capsys.readouterr().err
        assert first in said
        assert second in said
        assert "name the same file" in said
    assert run([*command, first, os.devnull, second, os.devnull]) == 2
    assert "name the same file" not in capsys.readouterr().err


def test_what_fails_at_the_very_end_is_no_verdict():
    """Python itself would end with 1, which means that a gate has failed, or with 120."""
    script = "import sys, threading; threading._shutdown = lambda: 1 / 0\n"
    script += "sys.argv = ['memaudit', '--help']\nfrom memaudit.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)

    assert done.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--teacher", "t", "--data", ""],
        ["predict", "--data=", "--teacher", "t"],
        ["gate", "--run", "", "--max-rate", "1"],
        ["status", ""],
        ["explain", "--run", "r", ""],
    ],
)
def test_a_value_that_is_empty_is_refused(arguments, capsys):
    """As a path it is the working folder: all that lies there would be the corpus."""
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert " is empty\n" in said
    assert "nobody has set" in said


def test_a_locale_without_the_letters_does_not_end_a_command():
    """Bars, dashes and ids are written out where the output is not UTF-8."""
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    script = "import sys; from memaudit.cli import main as m; import click\n"
    script += "m.cli.add_command(click.command('say')(lambda: click.echo('\u2588 \xfc')))\n"
    script += "sys.exit(m.run(['say']))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)

    assert (done.returncode, done.stdout) == (0, b"\\u2588 \xfc\n")
