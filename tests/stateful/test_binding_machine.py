"""Any sequence of verbs, failures, kills and holders: the function is never lost, and restore always brings it home."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes.crash import dies_at, no_power_cut
from tests.fakes.kernel import Fail, nic_host
from vfio_intx.errors import WorldError
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import Machine
from vfio_intx.wiring.drivers import bind, restore, unbind
from vfio_intx.wiring.journal import open_state

BDF = Bdf.parse("0000:00:10.0")
FIRST, VFIO = ("e1000", ""), ("vfio-pci", "vfio-pci")
VERBS = ("bind", "unbind", "restore")
FAILURES = (
    ("vfio-pci", Fail.PROBE),
    ("e1000", Fail.PROBE),
    ("e1000", Fail.UNBIND_ERROR),
    ("vfio-pci", Fail.UNBIND_ERROR),
    ("e1000", Fail.UNBIND_HANGS),
    ("vfio-pci", Fail.UNBIND_HANGS),
    ("override", Fail.OVERRIDE_ERROR),
)


def run_verb(machine: Machine, state: Path, verb: str) -> None:
    if verb == "bind":
        bind(machine, state, [BDF])
    else:
        {"unbind": unbind, "restore": restore}[verb](machine, state, BDF)


class DriverMachine(RuleBasedStateMachine):
    """One NIC, one state directory, and everything that can go wrong with them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.kernel = nic_host(self.folder / "host")
        self.state = self.folder / "state"
        self.held = False
        self.patches = ExitStack()
        self.patches.enter_context(no_power_cut())

    def teardown(self) -> None:
        with self.patches:
            self._come_home()

    def _come_home(self) -> None:
        self.kernel.fails.clear()
        self._let_go()
        if self.state.exists():
            restore(self.kernel, self.state, BDF)
        assert self.kernel.state(str(BDF)) == FIRST
        shutil.rmtree(self.folder)

    def _let_go(self) -> None:
        shutil.rmtree(self.folder / "host/proc/4711", ignore_errors=True)
        self.held = False

    @rule(verb=st.sampled_from(VERBS))
    def use(self, verb: str) -> None:
        before = self.kernel.state(str(BDF))
        log = len(self.kernel.log)
        try:
            run_verb(self.kernel, self.state, verb)
        except WorldError as error:
            undone = not hasattr(error, "__notes__") and not any(
                fails & Fail.UNBIND_HANGS for fails in self.kernel.fails.values()
            )
            assert not undone or self.kernel.state(str(BDF)) == before, "a failed verb left something changed"
            return
        now = self.kernel.state(str(BDF))
        assert now == {"bind": VFIO, "unbind": ("", ""), "restore": FIRST}[verb]
        assert before != now or not self.kernel.log[log:], "a verb that had nothing to do wrote something"

    @rule(verb=st.sampled_from(VERBS), boundary=st.integers(0, 40))
    def die(self, verb: str, boundary: int) -> None:
        def attempt(machine: Machine) -> None:
            try:
                run_verb(machine, self.state, verb)
            except WorldError:
                return

        dies_at(boundary, self.kernel, attempt)

    @rule(failure=st.sampled_from(FAILURES))
    def break_something(self, failure: tuple[str, Fail]) -> None:
        name, how = failure
        self.kernel.fails[name] = self.kernel.fails.get(name, Fail.NONE) | how

    @rule()
    def mend_everything(self) -> None:
        self.kernel.fails.clear()

    @precondition(lambda self: not self.held and self.kernel.state(str(BDF))[0] == "vfio-pci")
    @rule()
    def a_vm_opens_the_group(self) -> None:
        self.kernel.tree.process(4711, "qemu", ["/dev/vfio/4"])
        self.held = True

    @precondition(lambda self: self.held)
    @rule()
    def the_vm_ends(self) -> None:
        self._let_go()

    @invariant()
    def only_drivers_that_it_may_have(self) -> None:
        driver, override = self.kernel.state(str(BDF))
        assert driver in ("e1000", "vfio-pci", "")
        assert override in ("e1000", "vfio-pci", "")

    @invariant()
    def a_vm_keeps_its_device(self) -> None:
        assert not self.held or self.kernel.state(str(BDF))[0] == "vfio-pci"

    @invariant()
    def away_from_home_there_is_a_record(self) -> None:
        if self.kernel.state(str(BDF)) != FIRST:
            with open_state(self.state) as state:
                record = state.read(BDF)
            assert record is not None
            assert (record.first.driver, record.first.override) == FIRST


DriverMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDriverMachine = DriverMachine.TestCase
