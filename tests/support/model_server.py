"""A server of the completions API around a real tiny model, which can be made to misbehave."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from memaudit.engines.models import load_model


class ModelServer:
    """What is served, and what has been asked."""

    def __init__(self, folder, *, name=None, dialect="prompt_logprobs", key=None):
        """Serve the model in a folder.

        Args:
            folder: of the model.
            name: of the model, as clients must say. None: the folder.
            dialect: `prompt_logprobs`, `echo` or none at all.
            key: which clients must have.
        """
        self.model = load_model(str(folder)).model
        self.tokenizer = load_model(str(folder)).tokenizer
        self.names = [name or str(folder)]
        self.dialect, self.key = dialect, key
        self.requests = []
        """Path, headers and body of each."""
        self.text = "t{}".format
        """Of the k-th likeliest token, where it is told as a text."""
        self.misbehave = None
        """Is given the number of the completion request and its handler; True: it has answered."""
        self.n_completions = 0
        self.url = None
        self._lock = threading.Lock()

    @contextmanager
    def running(self):
        """Serve on a port of its own."""
        handler = type("Handler", (_Handler,), {"server_of": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def count(self):
        """Return the number of a completion request, from 1."""
        with self._lock:
            self.n_completions += 1
            return self.n_completions

    @torch.inference_mode()
    def choice(self, index, prompt):
        """Return what the model says about a prompt, in the dialect."""
        logprobs = self.model(torch.tensor([prompt])).logits[0, :-1].log_softmax(dim=-1)
        tops = logprobs.topk(2)
        rows = []
        for own, row, values, ids in zip(prompt[1:], logprobs, *map(list, tops), strict=True):
            rows.append(
                {own: row[own].item()} | dict(zip(ids.tolist(), values.tolist(), strict=True))
            )
        texts = self.tokenizer.decode([[i] for i in prompt])
        choice = {"index": index, "text": "!", "logprobs": None, "prompt_logprobs": None}
        if self.dialect == "prompt_logprobs":
            choice["prompt_logprobs"] = [
                None,
                *(
                    {str(i): {"logprob": v, "rank": 1, "decoded_token": text}}
                    | {str(j): {"logprob": w, "rank": 2} for j, w in row.items() if j != i}
                    for row, text in zip(rows, texts[1:], strict=True)
                    for i, v in [next(iter(row.items()))]
                ),
            ]
        elif self.dialect == "echo":
            owns = [next(iter(row.values())) for row in rows]
            top = [
                {self.text(k): v for k, v in enumerate(sorted(row.values(), reverse=True)[:2])}
                for row in rows
            ]
            choice["logprobs"] = {
                "tokens": [*texts, "!"],
                "token_logprobs": [None, *owns, -1.0],
                "top_logprobs": [None, *top, {"!": -1.0}],
            }
        return choice


class _Handler(BaseHTTPRequestHandler):
    server_of = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        """List the models."""
        models = [{"id": name, "max_model_len": 256} for name in self.server_of.names]
        self.answer(200, {"object": "list", "data": models})

    def do_POST(self):
        """Complete prompts."""
        served = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served.requests.append((self.path, dict(self.headers), body))
        number = served.count()
        if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
            return self.answer(401, {"error": "no"})
        if served.misbehave is not None and served.misbehave(number, self):
            return None
        if body["model"] not in served.names:
            return self.answer(404, {"error": f"no model {body['model']}"})
        choices = [served.choice(i, prompt) for i, prompt in enumerate(body["prompt"])]
        return self.answer(200, {"choices": choices[::-1]})

    def answer(self, status, document=None, *, headers=(), content=None):
        """Send an answer; True: nothing more is to be said."""
        content = json.dumps(document).encode() if content is None else content
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return True

    def break_off(self):
        """Promise more than is sent, and close the connection."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.wfile.flush()
        time.sleep(0.01)
        self.close_connection = True
        self.connection.close()
        return True
