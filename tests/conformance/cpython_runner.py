"""Run tests of CPython's own, and write down what comes of each: a child of `test_cpythons_own`.

It is called with the path of JOURNAL, in a process that is patched already: what is imported
here must not come before. On the standard input it gets, in JSON, the names of what is to
run, as unittest has them, and the ids of the tests that are to be left out.

To JOURNAL is written a JSON object a line, ``{"test": id, "outcome": word}``: `STARTED` before
each test, and what came of it afterwards. A test that takes longer than `HANGS_AFTER_SECONDS`
ends the process, by a thread in C that no patch reaches: then the last line says which it was.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import tempfile
import unittest
from typing import Any, Final

STARTED: Final = "started"

#: As test.support has it for what is waited for on a loopback; a slow class of tests here,
#: not a test, takes as long.
HANGS_AFTER_SECONDS: Final = 20

#: The outcome of a test that ends the process, in a reader of the journal.
ENDED: Final = "hangs or dies"


class Journal(unittest.TestResult):
    """Writes down the outcome of each test; the worst of several."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._worst: dict[str, str] = {}

    def _write(self, test: str, outcome: str) -> None:
        if os.getpid() == self._pid:  # and not what a test has forked
            os.write(self._descriptor, json.dumps({"test": test, "outcome": outcome}).encode())
            os.write(self._descriptor, b"\n")

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's
        super().startTest(test)
        self._write(test.id(), STARTED)
        faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's
        super().stopTest(test)
        self._write(test.id(), self._worst.pop(test.id(), "passes"))
        # Between tests are the fixtures of classes and modules, which may hang as well.
        faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True)

    def _came(self, test: Any, outcome: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._worst[test.id()] = outcome
        else:  # a fixture of a class or a module: no test is started for it
            self._write(test.id(), outcome)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802  # unittest's
        super().addFailure(test, err)
        self._came(test, "fails")
        sys.stderr.write(self.failures[-1][1])

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802  # unittest's
        super().addError(test, err)
        self._came(test, "fails")
        sys.stderr.write(self.errors[-1][1])

    def addSubTest(  # noqa: N802  # unittest's
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any
    ) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._came(test, "fails")
            sys.stderr.write((self.errors + self.failures)[-1][1])

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's
        super().addUnexpectedSuccess(test)
        self._came(test, "fails")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802  # unittest's
        super().addSkip(test, reason)
        self._came(test, "is skipped")


class Suite(unittest.TestSuite):
    """Leaves tests out, and has no other loader make one."""

    left_out: frozenset[str] = frozenset()

    def addTest(self, test: unittest.TestCase | unittest.TestSuite) -> None:  # noqa: N802
        if not isinstance(test, unittest.TestCase) or test.id() not in self.left_out:
            super().addTest(test)


def main() -> None:
    wanted = json.load(sys.stdin)
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    from test import support  # type: ignore[import-not-found]  # typeshed has none

    # Of what regrtest asks leave for: sockets on loopback, and no minutes of load.
    support.use_resources = ["network"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the tests make files
        Suite.left_out = frozenset(wanted["left_out"])
        loader = unittest.TestLoader()
        loader.suiteClass = Suite
        faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True)
        suite = loader.loadTestsFromNames(wanted["names"])
        gc.collect()
        gc.freeze()  # they collect three times each
        suite.run(Journal(descriptor))
        faulthandler.cancel_dump_traceback_later()
        os.chdir("/")
    # Threads that a failed test has left would hold it up.
    os.write(descriptor, b'{"test": "", "outcome": "done"}\n')
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
