"""A teacher behind an HTTP endpoint, against the same teacher loaded here."""

import json
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import save_tiny_model
from support.model_server import ModelServer
from support.tiny_models import make_windows

from memaudit.cli.main import run
from memaudit.engines import API_KEY, EndpointOptions, endpoint
from memaudit.engines.endpoint import Endpoint, find_model, load_endpoint_engine
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, load_model
from memaudit.errors import ModelError, UsageError
from memaudit.progress import listening

SECRET = "sk-for-this-endpoint-only"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Try again at once, and as often as ever: of several threads one can be refused in a row."""
    monkeypatch.setattr(endpoint, "_WAITS", (0,) * len(endpoint._WAITS))
    monkeypatch.delenv(API_KEY, raising=False)


@pytest.fixture
def server(tiny_teacher):
    """Serve the tiny teacher."""
    with ModelServer(tiny_teacher).running() as served:
        yield served


@pytest.fixture
def predict(tmp_path, capsys, monkeypatch):
    """Return what predicts with a teacher."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 60))) for _ in range(20)]
    rows = "".join(
        json.dumps({"id": f"row-{i}", "text": text}) + "\n" for i, text in enumerate(texts)
    )
    (tmp_path / "corpus.jsonl").write_text(rows)

    def call(teacher, *arguments, out="out"):
        given = ["predict", "--teacher", str(teacher), "--data", "corpus.jsonl", "--out", out]
        sizes = ["--prefix-tokens", "20", "--suffix-tokens", "20", "--chunk-size", "4"]
        code = run([*given, *sizes, "--json", "--quiet", *arguments])
        captured = capsys.readouterr()
        assert not any(text[:20] in captured.err for text in texts)
        return code, json.loads(captured.out), captured.err

    return call


def load(served, **options):
    """Return an engine on a server."""
    client = Endpoint(served.url)
    model = find_model(client, EndpointOptions(**options), ModelOptions())
    return load_endpoint_engine(client, model, 40)[0]


@pytest.mark.parametrize("dialect", ["prompt_logprobs", "echo"])
def test_scores_are_those_of_the_model_itself(server, tiny_teacher, dialect):
    """Log-probabilities, argmaxes and margins; nothing is said of entropies."""
    server.dialect = dialect
    windows = [window % 256 for window in make_windows(30, longest=40)]
    expected = HfEngine(load_model(str(tiny_teacher)).model).score(windows)

    found = load(server).score(windows)

    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.teacher.logprobs, its.teacher.logprobs, atol=1e-5)
        np.testing.assert_allclose(mine.teacher.margin, its.teacher.margin, atol=2e-5)
        np.testing.assert_array_equal(mine.teacher.is_argmax, its.teacher.is_argmax)
        assert mine.teacher.entropy is None


def test_tokens_of_the_same_text_hide_no_recitation(server, tiny_teacher):
    """A server that tells tokens as texts loses one of two bytes that are no character each."""
    server.dialect, server.text = "echo", lambda k: "\ufffd"
    windows = [window % 256 for window in make_windows(30, longest=40)]
    expected = HfEngine(load_model(str(tiny_teacher)).model).score(windows)

    for mine, its in zip(load(server).score(windows), expected, strict=True):
        assert mine.teacher.is_argmax[its.teacher.is_argmax].all()


def test_a_token_of_nearly_all_probability_leaves_a_little(server):
    """Where no other token is told, its rival has what is left of 1: less than rounding shows."""
    echo = {"tokens": ["a", "b"], "token_logprobs": [None, -1e-17]}
    echo["top_logprobs"] = [None, {"b": -1e-17}]
    document = {"choices": [{"index": 0, "logprobs": echo}]}
    server.misbehave = lambda number, handler: handler.answer(200, document)

    ((own, rival),), _ = Endpoint(server.url).logprobs("m", [[1, 2]])

    assert own[0] == pytest.approx(-1e-17)
    assert rival[0] == pytest.approx(np.log(1e-17))


def test_a_run_is_that_of_the_model_itself(server, tiny_teacher, predict, tmp_path):
    """The shipped classifier needs nothing that an endpoint does not tell."""
    code, document, _ = predict(server.url, "--requests", "3")
    expected = predict(tiny_teacher, "--engine", "hf", out="here")[1]

    assert code == 0
    assert document["engine"] == "endpoint"
    assert document["expected_memorized"] == pytest.approx(expected["expected_memorized"], rel=1e-3)
    mine, its = (pq.read_table(tmp_path / out / "risk.parquet") for out in ("out", "here"))
    for name in ("probability", "teacher_suffix_logprob", "teacher_suffix_min_logprob"):
        np.testing.assert_allclose(mine[name], its[name], atol=1e-4)
    asked = server.n_completions
    assert predict(server.url)[0] == 0
    assert server.n_completions == asked  # it was finished


def break_off(number, handler):
    """Break off in the middle of an answer, now and then."""
    return number % 3 == 0 and handler.break_off()


def be_busy(number, handler):
    """Refuse every second request for now."""
    return number % 2 == 0 and handler.answer(429, {}, headers=[("Retry-After", "0")])


def fail(number, handler):
    """Have a fault that passes, and do not say in a number when."""
    return number % 2 == 0 and handler.answer(503, {}, headers=[("Retry-After", "²")])


@pytest.mark.parametrize("fault", [break_off, be_busy, fail])
def test_faults_that_pass_change_no_byte(server, predict, tmp_path, fault):
    """A server that is restarted, busy or torn off is asked again."""
    assert predict(server.url, out="whole")[0] == 0
    server.misbehave, told = fault, []

    with listening(lambda what, n: told.append((what, n))):
        assert predict(server.url)[0] == 0

    assert (f"wait for {server.url}/v1", 0) in told
    assert sum(n for what, n in told if what == "score") >= 20
    whole, found = (tmp_path / out / "risk.parquet" for out in ("whole", "out"))
    assert found.read_bytes() == whole.read_bytes()


def test_a_server_that_dies_leaves_a_run_that_goes_on(server, predict, tmp_path):
    """What was scored is kept."""
    server.misbehave = lambda number, handler: number > 5 and handler.answer(500, {})
    code, _, err = predict(server.url, "--requests", "1")
    assert code == 2
    assert "answers with status 500" in err
    kept = list((tmp_path / "out").rglob("chunks/*.parquet"))
    assert kept
    server.misbehave = None

    code, document, _ = predict(server.url)

    assert (code, document["scored"]) == (0, 20)
    assert document["kept_windows"] == 4 * len(kept)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 401}, "refuses the key"),
        ({"status": 403}, "refuses the key"),
        ({"status": 404}, "does not know the address or the model"),
        ({"status": 429}, "still too busy"),
        ({"status": 500}, "answers with status 500"),
        ({"status": 302, "headers": [("Location", "http://127.0.0.1:1/")]}, "status 302"),
        ({"status": 200, "content": b"<html>"}, "not of the OpenAI API"),
        ({"status": 200, "content": b"[" * 100_000}, "not of the OpenAI API"),
        ({"status": 200, "content": b'{"choices": []}'}, "0 answers to 1 prompts"),
        ({"status": 200, "content": b'{"choices": [{"index": 0}]}'}, "no log-probabilities"),
        ({"status": 200, "content": b" " * 4_000_000}, "an answer of more than"),
        (
            {"status": 200, "content": b'{"choices":[{"index":0,"prompt_logprobs":[null]}]}'},
            "log-probabilities of 1 tokens for a prompt of 40",
        ),
    ],
)
def test_every_other_answer_is_an_error(server, predict, answer, message):
    """Each with its message, and exit code 2."""
    answer = {"document": {}, **answer}
    server.misbehave = lambda number, handler: handler.answer(**answer)

    code, document, err = predict(server.url)

    assert code == 2
    assert message in document["error"]["message"]
    assert message in err


def test_an_error_does_not_wait_for_answers_that_never_come(server, predict, tmp_path):
    """Nor does Ctrl-C: the process ends while requests are under way."""
    released, of_canaries = threading.Event(), 3

    def hang(number, handler):
        if number <= of_canaries:
            return False
        if number == of_canaries + 1:
            released.wait(600)
        return handler.answer(401, {})

    server.misbehave = hang
    sizes = ["--prefix-tokens", "20", "--suffix-tokens", "20", "--chunk-size", "4"]
    given = ["predict", "--teacher", server.url, "--data", "corpus.jsonl", "--out", "out"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "memaudit", *given, *sizes, "--quiet"],
            cwd=tmp_path,
            timeout=300,
            capture_output=True,
            text=True,
        )
    finally:
        released.set()
    assert done.returncode == 2
    assert "refuses the key" in done.stderr
    assert server.n_completions > of_canaries + 1


def test_what_an_answer_says_about_the_corpus_is_not_shown(server, predict):
    """Servers quote the request in their errors."""

    def refuse(number, handler):
        return number > 4 and handler.answer(400, {"error": "the prompt was MY TEXT"})

    server.misbehave = refuse
    _, _, err = predict(server.url)
    assert "status 400" in err
    assert "MY TEXT" not in err
    server.misbehave = lambda number, handler: handler.answer(400, {"error": "too long"})
    assert "too long" in predict(server.url)[2]  # of a canary


def test_no_server_at_all(server, predict):
    """The address is in the message."""
    code, _, err = predict("http://127.0.0.1:9")

    assert code == 2
    assert "http://127.0.0.1:9/v1 does not answer" in err


def test_the_served_model_and_its_tokenizer_are_found_or_asked_for(server, predict, tiny_teacher):
    """Of several models one must be named; a name that is no folder needs a tokenizer."""
    server.names = ["one", "two"]
    assert "serves one, two" in predict(server.url)[2]
    assert "tokenizer of two is not found" in predict(server.url, "--served-model", "two")[2]
    given = ("--served-model", "two", "--tokenizer", str(tiny_teacher))
    assert predict(server.url, *given)[1]["teacher"] == f"{server.url}#two"


def test_another_tokenizer_is_refused(server, predict, tmp_path):
    """Its ids would be other words there."""
    other = save_tiny_model(tmp_path / "other", first_token="z")

    assert "have other texts at the endpoint" in predict(server.url, "--tokenizer", str(other))[2]


def test_another_model_is_refused_in_the_middle_and_afterwards(server, predict, tiny_student):
    """Behind the same name may stand another checkpoint tomorrow."""
    first, second = server.model, load_model(str(tiny_student)).model
    second.get_output_embeddings().weight.mul_(
        30
    )  # what has learnt nothing says the same whatever its weights

    def change(number, handler):
        server.model = second if number > 4 else first

    server.misbehave = change
    assert "disagrees with its own first answers" in predict(server.url, "--requests", "1")[2]
    server.misbehave, server.model = None, second
    code, _, err = predict(server.url)
    assert code == 2
    assert "the endpoint gave its canaries" in err


def test_the_key_goes_nowhere_else(server, predict, monkeypatch, tmp_path):
    """It comes from the environment, and no file and no output holds it."""
    server.key = SECRET
    assert "refuses the key" in predict(server.url)[2]
    monkeypatch.setenv(API_KEY, SECRET)
    code, document, err = predict(server.url)
    assert code == 0
    assert SECRET not in json.dumps(document) + err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    for address in ("http://models.example.org", "http://127.0.0.1.example.org"):
        with pytest.raises(UsageError, match="in the clear"):
            Endpoint(address)
    Endpoint("https://models.example.org")
    with pytest.raises(UsageError, match="--offline"):
        Endpoint("https://models.example.org", offline=True)
    Endpoint(server.url, offline=True)


def test_netrc_is_not_looked_into(server, predict, monkeypatch, tmp_path):
    """The password of another program would be sent."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    assert predict(server.url)[0] == 0
    assert not any("Authorization" in headers for _, headers, _ in server.requests)


@pytest.mark.parametrize(
    "url", ["http://me:pass@host", "http://", "https://host?key=1", "http://host#a", "http://[::1"]
)
def test_addresses_that_are_none(url):
    """A password would be shown in reports."""
    with pytest.raises(UsageError, match="an endpoint is"):
        Endpoint(url)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--student", "x"),
        ("--workers", "2"),
        ("--compile",),
        ("--engine", "hf"),
        ("--model-revision", "main"),
        ("--dry-run",),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused(server, predict, arguments):
    """Not passed over in silence."""
    code, _, err = predict(server.url, *arguments)

    assert code == 2
    assert "endpoint" in err
    assert server.n_completions == 0


def test_only_the_teacher_of_predict_is_an_endpoint(server, predict, tiny_teacher):
    """And options for one are refused without one."""
    assert "only the teacher" in predict(tiny_teacher, "--student", server.url)[2]
    assert "--tokenizer" in predict(tiny_teacher, "--tokenizer", str(tiny_teacher))[2]
    with pytest.raises(ModelError, match="needs the model itself"):
        load_model(server.url)
