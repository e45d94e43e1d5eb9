"""What a proxy has sent on each connection, and what the application saw there."""

from __future__ import annotations

import io
from typing import Any, Final

from .clients import Tally
from .exchanges import FORGED
from .messages import Message, read_reply, read_request
from .relay import Line
from .words import digest

__all__ = ["SMUGGLED", "compare"]

#: In the fault of a request that no proxy has sent, from where no client is.
SMUGGLED: Final = "a smuggled request"

#: What the server refuses without asking the application.
_REFUSED: Final = range(400, 506)


def compare(name: str, line: Line, calls: list[dict[str, Any]], tally: Tally) -> int:
    """Compare what the application saw on a connection with what was sent, and the replies.

    Args:
        name: The proxy's.
        line: The connection.
        calls: What the application saw on it, in order.
        tally: Gets the faults.

    Returns:
        How many requests there were.
    """
    found = _Comparison(name, line, tally)
    found.run(calls)
    return found.requests


class _Comparison:
    def __init__(self, name: str, line: Line, tally: Tally) -> None:
        self._name: Final = name
        self._line: Final = line
        self._tally: Final = tally
        self.requests = 0
        self._before = "nothing"  # the request before

    def run(self, calls: list[dict[str, Any]]) -> None:
        sent = io.BytesIO(bytes(self._line.sent))
        answered = io.BytesIO(bytes(self._line.answered))
        left = [*calls]
        if not self._line.is_closed:
            self._fault("the server has not closed it")
        while (request := read_request(sent)) is not None:
            self.requests += 1
            try:
                reply = read_reply(answered, request.method)
            except ValueError as error:
                self._fault(f"behind a reply: {error}")
                break
            call = left.pop(0) if left else None
            is_refused = reply is not None and reply.code in _REFUSED and not reply.value("x-token")
            if is_refused:
                assert reply is not None, "it was looked at"
                self._look_at_refusal(request, reply)
                if call is not None and call["token"] not in request.target:
                    left.insert(0, call)
                break
            if call is None:
                # A reset takes with it what the server has not read.
                is_reset = self._line.ended_by == "proxy's reset"
                if not is_reset and (request.is_whole or self._is_ended_by_server):
                    self._fault(
                        f"not given to the application: {_describe(request)}, behind {self._before}"
                    )
                break
            self._look_at_call(request, call)
            self._before = _describe(request)
            if reply is not None:
                self._look_at_reply(request, reply)
            if reply is None or not reply.is_whole:
                is_short = "/short/" in request.target
                if self._is_ended_by_server and not is_short and request.is_whole:
                    self._fault(f"no whole reply to {_describe(request)}")
                break
            if reply.code == 101 or "close" in reply.value("connection").lower():
                break
        else:
            if rest := answered.read():
                self._fault(f"a reply too many: {rest[:100]!r}")
        for each in left:
            what = SMUGGLED if each["from"] == FORGED else "a call too many"
            self._fault(f"{what}: {each['method']} {each['path']} from {each['from']}")

    @property
    def _is_ended_by_server(self) -> bool:
        return self._line.ended_by.startswith("server")

    def _look_at_refusal(self, request: Message, reply: Message) -> None:
        known = self._tally.asked.get(_token_of(request))
        self._tally.counts[f"{self._name}, refused by the server with {reply.code}"] += 1
        if "close" not in reply.value("connection").lower():
            self._fault(f"refused, but not closed: {_describe(request)}")
        if known is None:
            return
        exchange = known.exchange
        if exchange.kind == "ambiguous":
            self._tally.counts[f"{self._name}, ambiguous: refused by the server"] += 1
        elif reply.code not in exchange.statuses and request.is_whole:
            self._fault(f"refused with {reply.line}: {_describe(request)}")

    def _look_at_call(self, request: Message, call: dict[str, Any]) -> None:
        path, _, query = request.target.partition("?")
        if path.startswith("http://"):
            path = "/" + path.removeprefix("http://").partition("/")[2]
        origin = request.value("x-forwarded-for") or None
        seen = (call["method"], call["query"], call["from"])
        if seen != (request.method, query, origin) or (
            call["path"] != path and "%" not in path and path.isascii()
        ):
            kind = SMUGGLED if call["from"] == FORGED else "something else"
            self._fault(f"the application saw {kind} for {_describe(request)}: {call}")
            return
        known = self._tally.asked.get(call["token"])
        if known is not None and origin != known.address:
            self._fault(f"it comes from {known.address}: {_describe(request)}")
        if call["read"] is None:
            if call["wanted"] != "none" and request.is_whole and not call["error"]:
                self._fault(f"its body was not read: {_describe(request)}")
            return
        body = {"all": request.body, "part": request.body[:10], "none": b""}[call["wanted"]]
        if call["read"] != digest(body):
            self._fault(f"another body: {call['read']}, for {digest(body)}, {_describe(request)}")
        elif not request.is_whole and call["wanted"] == "all":
            self._fault(f"a body was cut, and taken for whole: {_describe(request)}")

    def _look_at_reply(self, request: Message, reply: Message) -> None:
        token = reply.value("x-token")
        if token and token not in request.target:
            self._fault(f"the reply to {token} for {_describe(request)}")

    def _fault(self, what: str) -> None:
        self._tally.faults.append(f"{self._name} and the server: {what}")


def _token_of(request: Message) -> str:
    return request.target.rpartition("/")[2].partition("?")[0]


def _describe(request: Message) -> str:
    fields = [f"{name}: {value}"[:60] for name, value in request.fields]
    return f"{request.line[:150]!r} {fields}"
