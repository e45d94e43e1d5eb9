"""`python -m loadtests.mutants`: it finds nothing in ours, and finds what is wrong in others."""

from __future__ import annotations

import random
from typing import Any

import pytest
from click.testing import CliRunner

from glb.pywsgi import WSGIHandler
from loadtests import mutants
from loadtests.http.serve import ByHooks
from loadtests.mutants import Found, Server, faults_of, main, make, mutate

GET = b"GET /echo/a HTTP/1.1\r\nHost: a\r\n\r\n"


def test_it_finds_nothing() -> None:
    """Both loops read, and reply, the same."""
    result = CliRunner().invoke(main, ["--requests", "2000", "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert "0 connections wrong" in result.output


def test_what_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pieces, and what each of both has made of them."""

    class Other(ByHooks):
        def get_environ(self) -> dict[str, Any]:
            return {**super().get_environ(), "PATH_INFO": "/ignore"}

    monkeypatch.setattr(mutants, "ByHooks", Other)
    result = CliRunner().invoke(main, ["--requests", "50", "--seed", "1"])
    assert result.exit_code == 1
    assert "WRONG [b'" in result.output and "lean was asked" in result.output


def test_a_reply_too_many_is_found() -> None:
    """And one too few, one whose framing is broken, and what was reported."""
    found = Server().serve(WSGIHandler, [GET, GET])
    assert len(found.seen) == 2 and [*faults_of(found, found)] == []
    for reply in (found.reply * 2, b"", found.reply + b"x", found.reply[20:]):
        assert [*faults_of(Found(reply, found.seen), found)]
    assert [*faults_of(Found(found.reply, found.seen, ["an error"]), found)]
    assert [*faults_of(Found(found.reply, found.seen, [], ["a line"]), found)]


def test_a_seed_makes_the_same_again() -> None:
    """What was found can be looked at."""
    one, other = (random.Random(5) for _ in range(2))
    assert [make(one) for _ in range(50)] == [make(other) for _ in range(50)]
    assert any(mutate(GET, one) != GET for _ in range(10))
