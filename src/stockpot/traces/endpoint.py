"""A model behind an OpenAI-compatible endpoint: asked patiently, never trusted, each answer paid for once."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from stockpot.shelf import Shelf
from stockpot.traces.minds import Question
from stockpot.types import StockpotError

LARGEST_REPLY = 2**24
"""Bytes of a reply that are read at most."""


@dataclass(frozen=True)
class Limits:
    """How long, how often and how much."""

    timeout: float = 60.0
    """Seconds that one call may take."""
    tries: int = 4
    """Calls for one question, the first one included."""
    pause: float = 1.0
    """Seconds before the second try; each further pause is twice as long, unless the endpoint names one."""
    longest_pause: float = 60.0
    """Seconds that a pause is at most, whatever the endpoint says."""
    calls: int = 0
    """Calls that may be made in all, those of earlier runs on the same store included; 0 is no limit."""
    tokens: int = 0
    """Tokens that may be used in all, as the endpoint counts them; 0 is no limit. The calls that run when it is
    reached may carry it over."""
    patience: int = 20
    """Calls in a row that may fail before nothing more is asked."""
    parallel: int = 4
    """Calls at a time."""

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.tries < 1 or self.patience < 1 or self.parallel < 1:
            raise StockpotError("timeout must be above 0; tries, patience and parallel at least 1.")
        if min(self.pause, self.longest_pause, self.calls, self.tokens) < 0:
            raise StockpotError("pause, calls and tokens must be 0 or more.")


class Failed(Exception):
    """A call without a usable answer: why, seconds to wait that the endpoint asked for, tokens that it took."""

    def __init__(self, why: str, wait: float = 0.0, tokens: int = 0) -> None:
        super().__init__(why)
        self.why, self.wait, self.tokens = why, wait, tokens


class Endpoint:
    """`url` ends before /chat/completions, as in http://localhost:8000/v1. Every call is a line on the shelf."""

    def __init__(
        self, url: str, model: str, shelf: Shelf, limits: Limits, *, key: str = "", temperature: float = 1.0,
        max_tokens: int = 512,
    ) -> None:  # fmt: skip
        if urlparse(url).scheme not in ("http", "https") or not urlparse(url).hostname:
            raise StockpotError(f"{url} is no address of an endpoint: one looks like http://localhost:8000/v1.")
        if not model:
            raise StockpotError(f"{url} must be told which model to use: name it with --endpoint-model.")
        self.url, self.model, self.limits = url.rstrip("/"), model, limits
        self.name, self.failures = f"{model} at {self.url}", Counter[str]()
        self._shelf, self._key = shelf, key
        self._body = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._lock = threading.Lock()
        self._calls = sum(line["calls"] for line in map(shelf.__getitem__, shelf))
        self._tokens = sum(line["tokens"] for line in map(shelf.__getitem__, shelf))
        self._begun = self._in_a_row = self._largest = 0
        here = urlparse(url).hostname in ("localhost", "127.0.0.1", "::1")  # no proxy leads back to this machine
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))

    def ask(self, questions: Sequence[Question], told: Callable[[int], None] = lambda count: None) -> dict[str, str]:
        """The answers that could be had, by the questions' names."""
        answers: dict[str, str] = {}
        with ThreadPoolExecutor(self.limits.parallel) as pool:
            for question, answer in zip(questions, pool.map(self._answer, questions), strict=True):
                told(1)
                if answer is not None:
                    answers[question.name] = answer
        return answers

    def _answer(self, question: Question) -> str | None:
        """From the shelf, or by calling until an answer is accepted or the tries are used up."""
        body = json.dumps(self._body | {"messages": list(question.messages)}, sort_keys=True)
        key = hashlib.sha256(f"{self.url}\n{body}".encode()).hexdigest()
        with self._lock:
            stored = self._shelf[key]["text"] if key in self._shelf else None
        if stored is not None and (accepted := question.accept(stored)) is not None:
            return accepted
        why = ""
        for turn in range(self.limits.tries):
            if stop := self._may_not_call():
                why = stop
                break
            wait = 0.0
            try:
                text, tokens = self._call(body)
                accepted = question.accept(text)
                if accepted is None:
                    raise Failed("garbage", tokens=tokens)
            except Failed as failure:
                why, wait = failure.why, failure.wait
                self._note(f"failed call {time.time_ns()} {key[:12]} {turn}", {"why": why, "tokens": failure.tokens})
            else:
                self._note(key, {"text": text, "tokens": tokens})
                return accepted
            if turn + 1 < self.limits.tries:
                time.sleep(min(wait or self.limits.pause * 2**turn, self.limits.longest_pause))
        with self._lock:
            self.failures[f"left out: {why}"] += 1
        return None

    def _may_not_call(self) -> str:
        """Why no further call may be made; empty when one may, which is then counted as begun."""
        with self._lock:
            if self._in_a_row >= self.limits.patience:
                return "gave up on the endpoint"
            if self.limits.calls and self._calls + self._begun >= self.limits.calls:
                return "budget of calls"
            if self.limits.tokens and self._tokens + self._begun * self._largest >= self.limits.tokens:
                return "budget of tokens"
            self._begun += 1
            return ""

    def _note(self, key: str, line: dict[str, Any]) -> None:
        """A call that was made, on the shelf before anything is done with its answer."""
        with self._lock:
            self._begun -= 1
            self._calls += 1
            self._tokens += line["tokens"]
            self._largest = max(self._largest, line["tokens"])
            self._in_a_row = 0 if "text" in line else self._in_a_row + 1
            if "why" in line:
                self.failures[f"tries: {line['why']}"] += 1
            self._shelf.append([(key, {"calls": 1, **line})])

    def _call(self, body: str) -> tuple[str, int]:
        """One call: the text and the tokens that it took."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", body.encode(), headers)
        ends = time.monotonic() + self.limits.timeout
        try:
            with self._opener.open(request, timeout=self.limits.timeout) as reply:
                told = b""
                while part := reply.read1(65536):
                    told += part
                    if time.monotonic() > ends:  # one that trickles never runs into the socket's own timeout
                        raise Failed("timeout")
                    if len(told) > LARGEST_REPLY:
                        raise Failed("garbage")
            return read(told)
        except urllib.error.HTTPError as error:
            kind = "busy" if error.code == 429 else "server error" if error.code >= 500 else "refused"
            raise Failed(f"{kind} (HTTP {error.code})", _seconds(error.headers.get("Retry-After"))) from error
        except TimeoutError as error:
            raise Failed("timeout") from error
        except urllib.error.URLError as error:
            raise Failed("timeout" if isinstance(error.reason, TimeoutError) else "no connection") from error
        except (OSError, http.client.HTTPException) as error:
            raise Failed("broken connection") from error


def read(reply: bytes) -> tuple[str, int]:
    """The text of a chat completion and the tokens that it took; anything else is garbage or a refusal."""
    try:
        told = json.loads(reply)
        choice = told["choices"][0]
        message = choice["message"]
        usage = told.get("usage") or {}
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
        tokens = tokens if isinstance(tokens, int) and tokens >= 0 else 0
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Failed("garbage") from error
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise Failed("declined", tokens=tokens)
    if choice.get("finish_reason") == "length":
        raise Failed("answer too long", tokens=tokens)
    if not isinstance(text, str) or not text.strip():
        raise Failed("garbage", tokens=tokens)
    return text, tokens


def _seconds(told: str | None) -> float:
    """What a Retry-After says, where it is a number of seconds."""
    try:
        return max(0.0, float(told or 0))
    except ValueError:
        return 0.0
