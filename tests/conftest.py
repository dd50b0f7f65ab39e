"""What the markers need, and what happens where a machine lacks it.

``kvm`` needs a usable /dev/kvm; where there is none, the lab's L1 stands in. ``l1`` and ``lab`` need a machine that can
boot the lab. A missing need is a skip that says what to install, or, if VFIO_INTX_REQUIRE names the need, a failure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

from tests.lab import batches, handed_back
from tests.lab.losses import LOST, in_words
from vfio_intx.errors import LabLost
from vfio_intx.lab.run import missing_needs

_STATUS_LAB_LOST = 3
_TABLE = pytest.StashKey[dict[str, batches.Batch]]()
_KVM_BY = pytest.StashKey[str]()


def _required() -> set[str]:
    return {word.strip() for word in os.environ.get("VFIO_INTX_REQUIRE", "").split(",") if word.strip()}


def _kvm_usable() -> bool:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort out which tests can run here, which in L1, and which not at all; those in L1 come last."""
    config.stash[LOST] = []
    config.stash[_TABLE] = {}
    if batches.inside_l1():
        return
    kvm, lacking = _kvm_usable(), missing_needs()
    away = [item for item in items if item.get_closest_marker("l1") or (item.get_closest_marker("kvm") and not kvm)]
    if any(item.get_closest_marker("kvm") for item in items):
        config.stash[_KVM_BY] = "/dev/kvm" if kvm else "nothing" if lacking else "the lab's L1"
    for item in items:
        needs_lab = item in away or item.get_closest_marker("lab")
        if needs_lab and lacking:
            _lack(item, "kvm" if item.get_closest_marker("kvm") else "lab", ", ".join(lacking))
        elif item.get_closest_marker("hardware") and not os.environ.get("VFIO_INTX_DEVICE"):
            _lack(item, "hardware", "a BDF in VFIO_INTX_DEVICE that the tests may play with")
    if not lacking:
        config.stash[_TABLE] = batches.gather(away)
        for item in away:
            # The time that a lab takes is no test's; in L1 each test has its own timeout.
            item.add_marker(pytest.mark.timeout(0))
        here = [item for item in items if item.nodeid not in config.stash[_TABLE]]
        items[:] = [*here, *away]


def _lack(item: pytest.Item, need: str, what: str) -> None:
    """Skip, or fail if the need is required."""
    text = f"{need}: this machine lacks {what}; tools/setup installs what can be installed"
    if need in _required():
        item.user_properties.append(("missing need", text))
    else:
        item.add_marker(pytest.mark.skip(reason=text))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose required need is missing."""
    for name, text in item.user_properties:
        if name == "missing need":
            pytest.fail(f"required by VFIO_INTX_REQUIRE, but missing: {text}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that lost its lab failed in nothing: it has no verdict."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, LabLost):
        item.config.stash[LOST].append(item.nodeid)
        report.longrepr = in_words(call.excinfo.value)
    return report


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """A test of L1: run its whole batch at the first of them, then replay the reports that came back."""
    batch = item.config.stash[_TABLE].get(item.nodeid)
    if batch is None:
        return None
    hook = item.ihook
    if not batch.ran:
        terminal = item.config.pluginmanager.get_plugin("terminalreporter")

        def say(text: str) -> None:
            if terminal is not None:
                terminal.ensure_newline()
                terminal.write_line(f"lab: {text}")

        batches.run(batch, item.config, say)
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = batch.reports.get(item.nodeid)
    if reports is None:
        reports = [batches.lost_report(item, batch.lost or "LAB LOST")]
        item.config.stash[LOST].append(item.nodeid)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class _InL1:
    """The plugin of a pytest that runs in L1."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        batches.write_report(report, self._config)


def pytest_configure(config: pytest.Config) -> None:
    """In L1, report to the machine as well; elsewhere, let no generated example fail for being slow."""
    # A shell without job control lets what it starts in the background ignore Ctrl-C, and so do our children then.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not batches.inside_l1():
        from hypothesis import settings

        # No test asserts a time. (L1 does not load hypothesis.)
        settings.register_profile("vfio-intx", deadline=None)
        settings.load_profile("vfio-intx")
        return
    config.pluginmanager.register(handed_back)
    if batches.REPORTS in os.environ:
        config.pluginmanager.register(_InL1(config))


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """A run in which nothing failed but a lab was lost has an exit status of its own: 3."""
    lost = session.config.stash.get(LOST, [])
    if lost and session.testsfailed == len(lost):
        session.exitstatus = _STATUS_LAB_LOST
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say by what the need for KVM was met."""
    met = terminalreporter.config.stash.get(_KVM_BY, None)
    if met is not None:
        terminalreporter.write_line(f"kvm need met by: {met}")
    lost = terminalreporter.config.stash.get(LOST, [])
    if lost:
        terminalreporter.write_line(f"LAB LOST: {len(lost)} tests have no verdict; run them again", red=True)
