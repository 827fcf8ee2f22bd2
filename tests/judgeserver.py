"""A server with OpenAI's chat completions API that judges by a known truth, with the faults that real ones have.

It knows the questions' form alone: the texts between <answer…> tags. All chance is drawn from the texts, so that the same question is
always answered alike. `python -m tests.judgeserver --port 8000 --words happy,kind --bad-words sad` runs it by itself.
"""

import argparse
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Truth = Callable[[str], float]
_ANSWER = re.compile(r"<(answer(?:-[AB])?)-([0-9a-f]{12})>\n(.*?)\n</\1-\2>", re.DOTALL)


@dataclass
class Knobs:
    """How the server errs.

    position_bias: share of comparisons that the first answer wins whatever it is. length_bias: share that the longer one wins. noise: share
    of pairs of answers of which it takes the worse one, in both orders. unparsable: share of requests with a text that is no verdict.
    busy: of every ten requests, how many get 429 with Retry-After. dies_after: answers after which all connections are closed without one.
    status, words: answer all requests with an error. latency: seconds. usage: tell the tokens. reply: raw bytes in the place of an answer.
    """

    position_bias: float = 0.0
    length_bias: float = 0.0
    noise: float = 0.0
    unparsable: float = 0.0
    busy: int = 0
    retry_after: str = "0.01"
    dies_after: int | None = None
    status: int = 200
    words: str = ""
    latency: float = 0.0
    usage: bool = True
    reply: Callable[[BaseHTTPRequestHandler], None] | None = None
    key: str | None = None


@dataclass
class JudgeServer:
    """A running server. requests, answered: how often each body was sent, and was answered. authorization: headers that came."""

    truth: Truth
    knobs: Knobs
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    authorization: set[str | None] = field(default_factory=set)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def calls(self) -> int:
        """Requests that came."""
        return self.requests.total()

    def verdict(self, body: dict[str, Any]) -> str:
        """What it says to a request."""
        text = body["messages"][-1]["content"]
        answers = [found[2] for found in _ANSWER.findall(text)]
        if chance("unparsable", text) < self.knobs.unparsable:
            return "Answer 1 is better than 2 of 10 others, I think."
        if len(answers) == 1:
            return json.dumps({"score": max(1, min(10, round(self.truth(answers[0]))))})
        first, second = answers
        pair = "\0".join(sorted(answers))
        if chance("position", pair) < self.knobs.position_bias:
            return '{"winner": "A"}'
        ours, theirs = self.truth(first), self.truth(second)
        if chance("length", pair) < self.knobs.length_bias:
            ours, theirs = float(len(first)), float(len(second))
        if chance("noise", pair) < self.knobs.noise:
            ours, theirs = theirs, ours
        return json.dumps({"winner": "tie" if ours == theirs else "A" if ours > theirs else "B"})


def chance(what: str, text: str) -> float:
    """A number in [0, 1) that a text decides."""
    return int.from_bytes(hashlib.sha256(f"{what}\0{text}".encode()).digest()[:6], "big") / 2**48


def distinct_words(good: set[str], bad: set[str]) -> Truth:
    """Different good words of a text, less different bad ones."""

    def truth(text: str) -> float:
        words = set(re.findall(r"\w+", text.lower()))
        return float(len(words & good) - len(words & bad))

    return truth


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: JudgeServer

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:  # the client died while it sent this, which is no request then
            self.close_connection = True
            return
        judge, knobs = self.judge, self.judge.knobs
        key = hashlib.sha256(content).hexdigest()
        with judge.lock:
            judge.requests[key] += 1
            judge.authorization.add(self.headers.get("Authorization"))
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
            number, dead = judge.calls, knobs.dies_after is not None and judge.answered.total() >= knobs.dies_after
        try:
            time.sleep(knobs.latency)
            if dead:
                self.close_connection = True
            elif knobs.reply is not None:
                knobs.reply(self)
            elif self.path != "/v1/chat/completions":
                self.answer(404, {"error": {"message": f"no route {self.path}"}})
            elif knobs.key is not None and self.headers.get("Authorization") != f"Bearer {knobs.key}":
                self.answer(401, {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}"}})
            elif knobs.status != 200:
                self.answer(knobs.status, {"error": {"message": knobs.words}})
            elif number % 10 < knobs.busy:
                self.answer(429, {"error": {"message": "slow down"}}, {"Retry-After": knobs.retry_after})
            else:
                self.judge_it(content, key)
        finally:
            with judge.lock:
                judge.at_once -= 1

    def judge_it(self, content: bytes, key: str) -> None:
        text = self.judge.verdict(json.loads(content))
        tokens = (len(content) + len(text)) // 4
        body: dict[str, Any] = {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
        }
        if self.judge.knobs.usage:
            body["usage"] = {"total_tokens": tokens}
        with self.judge.lock:
            self.judge.answered[key] += 1
            self.judge.tokens += tokens
        self.answer(200, body)

    def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone, as when it was killed, is no news."""


def start(truth: Truth, knobs: Knobs, port: int = 0) -> tuple[JudgeServer, _Server]:
    """A server that listens, and what serves it: serve_forever has to be called."""
    judge = JudgeServer(truth, knobs)
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"judge": judge}))
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return judge, server


@contextmanager
def serving(truth: Truth, **knobs: Any) -> Iterator[JudgeServer]:
    """A server for the duration of a test."""
    judge, server = start(truth, Knobs(**knobs))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--words", default="")
    parser.add_argument("--bad-words", default="")
    for name in ("position_bias", "length_bias", "noise", "unparsable", "latency"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=0.0)
    given = vars(parser.parse_args())
    port, good, bad = given.pop("port"), set(given.pop("words").split(",")), set(given.pop("bad_words").split(","))
    judge, server = start(distinct_words(good - {""}, bad - {""}), Knobs(**given), port)
    print(judge.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
