"""Steps and their undo: all or nothing, in exact reverse, whatever interrupts."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.errors import KernelError, PeerTimeout
from vfio_intx.wiring.undoable import Step, Wired, perform

NAMES = "abcde"


class Recorder:
    """Steps that note what was done; some of them fail."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.do_fails: dict[str, BaseException] = {}
        self.undo_fails: dict[str, BaseException] = {}

    def steps(self) -> tuple[Step, ...]:
        return tuple(Step(name, name, lambda n=name: self._do(n), lambda n=name: self._undo(n)) for name in NAMES)  # type: ignore[misc]

    def _do(self, name: str) -> None:
        if name in self.do_fails:
            raise self.do_fails[name]
        self.log.append(name)

    def _undo(self, name: str) -> None:
        self.log.append(f"-{name}")
        if name in self.undo_fails:
            raise self.undo_fails[name]


@given(broken=st.sampled_from(NAMES), sour=st.sets(st.sampled_from(NAMES)))
def test_a_failed_step_takes_back_all_before_it_even_where_an_undo_fails(broken: str, sour: set[str]) -> None:
    recorder = Recorder()
    recorder.do_fails[broken] = KernelError("KVM_IRQFD", "GSI 10", errno.EBUSY)
    recorder.undo_fails = {name: KernelError("undo", name, errno.EIO) for name in sour}
    with pytest.raises(KernelError) as caught:
        perform(recorder.steps())
    before = NAMES[: NAMES.index(broken)]
    assert recorder.log == [*before, *(f"-{name}" for name in reversed(before))]
    assert caught.value.operation == "KVM_IRQFD", "the first cause is the one that is told"
    notes = caught.value.__notes__
    assert f"'{broken}'" in notes[0]
    assert len(notes) == 1 + len(sour & set(before)), "each undo that failed is told too"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), PeerTimeout("QEMU", "wiring", 5.0), MemoryError()])
def test_a_step_that_may_have_happened_is_undone_as_well(failure: BaseException) -> None:
    recorder = Recorder()
    recorder.do_fails["c"] = failure
    with pytest.raises(type(failure)):
        perform(recorder.steps())
    assert recorder.log == ["a", "b", "-c", "-b", "-a"]


class InterruptedBetween(tuple[Step, ...]):
    """Steps whose user presses Ctrl-C, once, when two are done and the third has not begun."""

    pressed = False

    def __iter__(self) -> Iterator[Step]:
        for number, step in enumerate(super().__iter__()):
            if number == 2 and not self.pressed:
                self.pressed = True
                raise KeyboardInterrupt
            yield step


def test_ctrl_c_between_two_steps_takes_back_those_before() -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        perform(InterruptedBetween(recorder.steps()))
    assert recorder.log == ["a", "b", "-b", "-a"]


def test_unwiring_is_the_exact_reverse_and_happens_once() -> None:
    recorder = Recorder()
    with perform(recorder.steps()) as wired:
        assert wired.steps == tuple(NAMES)
    assert recorder.log[5:] == ["-e", "-d", "-c", "-b", "-a"]
    wired.unwire()
    assert len(recorder.log) == 10
    assert wired.steps == ()


@given(sour=st.sets(st.sampled_from(NAMES), min_size=1))
def test_an_undo_that_fails_does_not_keep_the_others_standing(sour: set[str]) -> None:
    recorder = Recorder()
    recorder.undo_fails = {name: KernelError("undo", name, errno.EIO) for name in sour}
    wired: Wired = perform(recorder.steps())
    with pytest.raises(KernelError) as caught:
        wired.unwire()
    assert recorder.log[5:] == ["-e", "-d", "-c", "-b", "-a"]
    assert caught.value.target == max(sour), "the first that failed, in the order of undoing"
    assert len(caught.value.__notes__) == len(sour), "where it failed, and each other failure"


def test_ctrl_c_during_the_undo_still_undoes_the_rest() -> None:
    recorder = Recorder()
    recorder.undo_fails["d"] = KeyboardInterrupt()
    wired = perform(recorder.steps())
    with pytest.raises(KeyboardInterrupt):
        wired.unwire()
    assert recorder.log[5:] == ["-e", "-d", "-c", "-b", "-a"]
