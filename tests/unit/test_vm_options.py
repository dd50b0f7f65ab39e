"""How a VM is named on the command line, and what is said of names that cannot be one."""

from __future__ import annotations

import pytest

from vfio_intx.cli import main as program


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("detach", "05:00.0", "--qmp", ""), "--qmp: the path is empty"),
        (("status", "--qmp", ""), "--qmp: the path is empty"),
        (("status", "--libvirt", ""), "domain"),
        (("status", "--pid", ""), "pid"),
        (("status", "--proxmox", ""), "VMID"),
    ],
)
def test_an_empty_name_is_a_usage_error(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("attach", "05:00.0", "--qmp", "nowhere", "--scheme", "edge"), "with kernel-irqchip=split\n"),
        (("attach", "05:00.0", "--qmp", "nowhere", "--scheme", "fast"), "one of irqfd, trap\n"),
        (("switch", "05:00.0", "split", "--qmp", "nowhere"), "one of irqfd, ack-eventfd, trap\n"),
    ],
)
def test_a_scheme_that_the_verb_cannot_use_is_refused_before_anything_is_read(
    words: tuple[str, ...], offered: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(words) == 2
    assert capsys.readouterr().err.endswith(offered)
