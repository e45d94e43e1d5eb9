"""The environment says how many clones and hubs a worker has, and what it says is checked."""

from __future__ import annotations

import pytest

pytest.importorskip("gunicorn")

from glb.gunicorn.variables import Variables


def test_without_variables_there_are_four_clones_on_one_hub() -> None:
    """As with a server of glb's own."""
    assert Variables.read({}) == Variables(4, 1, None)


def test_each_variable_is_read() -> None:
    """Empty ones are as if they weren't there."""
    given = {"GLB_CLONES": "6", "GLB_HUBS": "2", "GLB_REQUEST_TIMEOUT": "2.5"}
    assert Variables.read(given) == Variables(6, 2, 2.5)
    assert Variables.read({"GLB_CLONES": " ", "GLB_REQUEST_TIMEOUT": ""}) == Variables(4, 1, None)


def test_many_hubs_have_a_clone_each() -> None:
    """Hubs alone are enough to ask for."""
    assert Variables.read({"GLB_HUBS": "8"}) == Variables(8, 8, None)


def test_no_seconds_are_for_ever() -> None:
    """As with gunicorn's own timeout."""
    assert Variables.read({"GLB_REQUEST_TIMEOUT": "0"}).request_timeout is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GLB_CLONES", "0"),
        ("GLB_CLONES", "four"),
        ("GLB_HUBS", "-1"),
        ("GLB_HUBS", "1.5"),
        ("GLB_HUBS", "²"),
        ("GLB_REQUEST_TIMEOUT", "-1"),
        ("GLB_REQUEST_TIMEOUT", "nan"),
        ("GLB_REQUEST_TIMEOUT", "soon"),
    ],
)
def test_a_wrong_variable_is_refused_with_its_value(name: str, value: str) -> None:
    """The error names both."""
    with pytest.raises(ValueError, match=f"^{name} must be .*, got '{value}'$"):
        Variables.read({name: value})


def test_fewer_clones_than_hubs_are_refused() -> None:
    """A hub without a clone would never have a turn."""
    with pytest.raises(ValueError, match="GLB_CLONES must be at least GLB_HUBS, 3, got 2"):
        Variables.read({"GLB_CLONES": "2", "GLB_HUBS": "3"})
