"""The instance's edges that need no tracefs: owners, clocks, a tree that lacks what is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes import trace_pages as ring
from vfio_intx.abi.tracepoints import Event, PageDecoder, Wanted
from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.observe.events import LOST
from vfio_intx.observe.tracefs import check_clock, find_tracefs, read_start, sweep
from vfio_intx.observe.tracing import Instance


def test_the_clock_must_be_offered() -> None:
    check_clock("[local] global counter uptime perf mono mono_raw boot tai x86-tsc\n")
    check_clock("local global [mono]")
    with pytest.raises(MissingError, match="only local, global, mono_raw") as caught:
        check_clock("[local] global mono_raw\n")
    assert caught.value.hint


@pytest.fixture
def host(tmp_path: Path) -> HostRoot:
    """A host with an empty tracefs, whose process 7 started at tick 99; pid namespace as on this machine."""
    (tmp_path / "sys/kernel/tracing/instances").mkdir(parents=True)
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to(os.path.realpath("/proc/self/ns") + "/pid")
    (tmp_path / "proc/7").mkdir()
    fields = ["S", *["0"] * 18, "99", *["0"] * 30]
    (tmp_path / "proc/7/stat").write_text(f"7 (a ) S (b) {' '.join(fields)}\n")
    return HostRoot(tmp_path)


def test_a_start_time_is_read_past_any_name(host: HostRoot) -> None:
    assert read_start(host, 7) == 99
    assert read_start(host, 8) is None
    (host.at("proc/7/stat")).write_text("nonsense")
    assert read_start(host, 7) is None


def test_what_only_waits_to_be_reaped_lives_no_more(host: HostRoot) -> None:
    # Its parent may never do so, as the first process of a bad container.
    fields = " ".join(["0"] * 16 + ["{threads}", "0", "99", *["0"] * 30])
    host.at("proc/7/stat").write_text(f"7 (q) Z {fields.format(threads=1)}\n")
    assert read_start(host, 7) is None
    # One whose first thread alone has ended still runs.
    host.at("proc/7/stat").write_text(f"7 (q) Z {fields.format(threads=3)}\n")
    assert read_start(host, 7) == 99


def test_only_instances_of_dead_owners_of_ours_are_swept(host: HostRoot) -> None:
    here = host.at("proc/self/ns/pid").stat().st_ino
    instances = find_tracefs(host) / "instances"
    kept = [f"vfio-intx-7-99-{here}-0", "vfio-intx-8-1-1-0", "vfio-intx-tool", "of-somebody", f"vfio-intx-8-1-{here}-x"]
    dead = [f"vfio-intx-7-98-{here}-0", f"vfio-intx-8-1-{here}-3"]
    for name in kept + dead:
        (instances / name).mkdir()
        (instances / name / "tracing_on").write_text("1")
    # rmdir of a plain folder with files fails, as that of an instance in use does: it is then left, switched off.
    assert sweep(host) == []
    for name in dead:
        assert (instances / name / "tracing_on").read_text() == "0"
        (instances / name / "tracing_on").unlink()
    assert sweep(host) == dead
    assert sorted(path.name for path in instances.iterdir()) == sorted(kept)
    assert all((instances / name / "tracing_on").read_text() == "1" for name in kept)


def test_no_tracefs_says_how_to_mount_it(tmp_path: Path) -> None:
    with pytest.raises((MissingError, KernelError)) as caught:
        find_tracefs(HostRoot(tmp_path))
    assert caught.value.hint


def test_debugfs_will_do(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/debug/tracing/instances").mkdir(parents=True)
    assert find_tracefs(HostRoot(tmp_path)) == tmp_path / "sys/kernel/debug/tracing"


def test_a_tracefs_that_is_none_is_an_error_and_leaves_nothing(host: HostRoot) -> None:
    with pytest.raises(KernelError, match="tracing_on"), Instance(host, [], size_kb=64):
        pass


def test_a_loss_is_put_where_its_page_begins_whatever_else_was_read(tmp_path: Path) -> None:
    # The second CPU's page has a record that runs over its end: no event tells its time, but the page does.
    whole = ring.page(9000, ring.record(1, ring.pair(40, 7, 20, 1)))
    cut = ring.page(500, ring.record(1, ring.pair(40, 7, 20, 1))[:-4], missed=3)
    instance = Instance(HostRoot(tmp_path), [], size_kb=64)
    instance._decoder = PageDecoder(ring.layout(), [Wanted(4, ring.pair_format(40), ("gsi", "level"))])
    instance._page = 4096
    for cpu, page in enumerate((whole, cut)):
        reader, writer = os.pipe2(os.O_NONBLOCK)
        os.write(writer, page.ljust(4096, b"\0"))
        os.close(writer)
        instance._fds[cpu] = reader
    events: list[Event] = []
    instance.drain(events)
    instance.close()
    assert events == [(9001, 4, 0, (7, 20, 1)), (500, LOST, 1, (0, 3, 1))]
    assert (instance.missed, instance.damaged) == (3, 1)
