"""Policies: read by name, and the least loaded of the ready is found."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glb.model.policy import Policy, least_loaded


@pytest.mark.parametrize("policy", list(Policy))
def test_a_policy_is_read_by_its_name(policy: Policy) -> None:
    """The name and the policy itself are both spellings of it."""
    assert Policy.of(policy.value) is policy
    assert Policy.of(policy) is policy


def test_the_names_are_what_users_write() -> None:
    """The names are a promise: configurations hold them."""
    assert [each.value for each in Policy] == ["round_robin", "least_connections", "first"]


def test_none_is_no_wish() -> None:
    """Nothing asked for is nothing, and not the default."""
    assert Policy.of(None) is None


@pytest.mark.parametrize("name", ["", "random", "ROUND_ROBIN", "round-robin"])
def test_an_unknown_name_is_a_value_error(name: str) -> None:
    """The text has the name, and those that would do."""
    with pytest.raises(ValueError, match=re.escape(repr(name))) as caught:
        Policy.of(name)
    for policy in Policy:
        assert repr(policy.value) in str(caught.value)


@pytest.mark.parametrize("value", [0, 1.5, b"round_robin", ("round_robin",), True])
def test_what_is_no_name_is_a_type_error(value: object) -> None:
    """The text has the value."""
    with pytest.raises(TypeError, match=re.escape(repr(value))):
        Policy.of(value)  # type: ignore[arg-type]  # that is the test


@dataclass(eq=False)
class Clone:
    load: int


def test_of_none_there_is_no_least_loaded() -> None:
    """An empty ring gives no clone the connection."""
    assert least_loaded([]) is None


def test_of_equals_the_first_is_taken() -> None:
    """The clone that has waited longest wins a tie, so idle clones still go in turn."""
    clones = [Clone(2), Clone(1), Clone(1)]
    assert least_loaded(clones) is clones[1]
    assert least_loaded(iter(clones)) is clones[1]


@settings(deadline=None, database=None, print_blob=True)
@given(st.lists(st.integers(0, 5), min_size=1))
def test_no_clone_has_less_to_do_than_the_chosen(loads: list[int]) -> None:
    """The chosen is the first of those with the lowest load."""
    clones = [Clone(load) for load in loads]
    assert least_loaded(clones) is clones[loads.index(min(loads))]
