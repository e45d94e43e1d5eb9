"""Stats: plain data, and sums of it."""

from __future__ import annotations

from glb.model.stats import CloneStats, DrainReport, RollReport

NOTHING = DrainReport(0, 0, 0, 0.0)


def test_a_total_is_the_sum_of_each_column() -> None:
    """But for the time, which passes for all at once: it is what the caller has measured."""
    reports = [DrainReport(1, 20, 300, 4.0), DrainReport(5, 60, 700, 8.0)]
    assert DrainReport.total(reports, 9.5) == DrainReport(6, 80, 1000, 9.5)


def test_a_total_of_none_is_nothing() -> None:
    """In whatever time."""
    assert DrainReport.total([], 0.0) == NOTHING
    assert DrainReport.total([], 2.5) == DrainReport(0, 0, 0, 2.5)


def test_a_total_of_one_is_that_one() -> None:
    """With the time that is given."""
    assert DrainReport.total([DrainReport(1, 2, 3, 4.0)], 4.0) == DrainReport(1, 2, 3, 4.0)


def test_a_total_takes_what_can_be_gone_through_once() -> None:
    """All three columns are of the same reports."""
    assert DrainReport.total(iter([DrainReport(1, 2, 3, 0.0)] * 4), 1.0) == DrainReport(4, 8, 12, 1)


def test_a_total_of_totals_is_the_total() -> None:
    """Whichever way the reports are put together."""
    reports = [DrainReport(number, number * 2, number * 3, 1.0) for number in range(6)]
    halves = [DrainReport.total(reports[:2], 1.0), DrainReport.total(reports[2:], 2.0)]
    assert DrainReport.total(halves, 3.0) == DrainReport.total(reports, 3.0)


def test_a_roll_has_a_report_for_each_clone() -> None:
    """By index, and how long all of it took."""
    report = RollReport((NOTHING, DrainReport(1, 0, 0, 0.5)), 0.75)
    assert (report.clones[1].finished, report.seconds) == (1, 0.75)


def test_old_code_that_makes_clone_stats_still_does() -> None:
    """The hub and the state came later, and are what they were then."""
    stats = CloneStats(0, 1, 0, 1, 0, True)
    assert (stats.hub, stats.state) == (0, "accepting")
