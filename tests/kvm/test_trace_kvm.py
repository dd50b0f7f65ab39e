"""Tracing the real KVM: the micro VM's own count against the spans, and what is left of a tracer however it ends."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvm.starving import starved_vcpus
from tests.kvm.tracefs import tracefs_or_skip
from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli.trace_cost import measure_added_us
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.bench import Ceiling
from vfio_intx.names import Bdf, Gsi
from vfio_intx.observe.collect import Report, Tracer
from vfio_intx.observe.events import Enable, Kind, Target, Tracepoint, plan
from vfio_intx.observe.target import resolve, threads_of
from vfio_intx.observe.traced import Traced
from vfio_intx.observe.tracefs import CLOCK, sweep
from vfio_intx.observe.tracing import Instance
from vfio_intx.qemu.process import read_descriptors

pytestmark = pytest.mark.kvm

ROOT = HostRoot()
#: Not the one that other users of the micro VM take: events carry no VM, so theirs would be foreign interrupts of ours.
GSI = 22
GLOBAL_FILES = ("tracing_on", "trace_clock", "current_tracer", "set_event", "trace_options", "buffer_size_kb")


@pytest.fixture(scope="module", autouse=True)
def tracefs() -> Iterator[Path]:
    """Where it is; mounted for these tests where nobody has."""
    with tracefs_or_skip() as place:
        yield place


@pytest.fixture(autouse=True)
def unharmed(tracefs: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does: the global buffer's settings are as before, and no instance of ours is left."""
    if "other_tool" in request.fixturenames:
        request.getfixturevalue("other_tool")  # what it does to the global buffer is not ours
    before = {name: (tracefs / name).read_text() for name in GLOBAL_FILES}
    yield
    sweep(ROOT)
    assert {name: (tracefs / name).read_text() for name in GLOBAL_FILES} == before
    assert ours(tracefs, os.getpid()) == []


@pytest.fixture
def ceiling() -> Iterator[Ceiling]:
    """The micro VM whose irqfd fires itself, in this process."""
    fd = kvm.open_kvm("/dev/kvm")
    vm = Ceiling(fd, gsi=GSI)
    yield vm
    vm.close()
    close_all(fd)


def ours(tracefs: Path, pid: int) -> list[str]:
    return [path.name for path in (tracefs / "instances").iterdir() if path.name.startswith(f"vfio-intx-{pid}-")]


def traced(
    ceiling: Ceiling, count: int, *, poll: bool = True, size_kb: int | None = None, starve: bool = False
) -> tuple[Report, int]:
    """Trace *count* interrupts or some more; the report, and the guest's count of the same time.

    :param starve: let the guest have hardly any CPU time while its line is taken away.
    """
    target, pid = resolve(ROOT, pid=os.getpid(), gsi=Gsi(ceiling.figures.gsi), bdf=None)
    before = ceiling.total()
    with Tracer(target, root=ROOT, pid=pid, size_kb=size_kb) as tracer:
        ceiling.begin()
        deadline = Deadline.after("the interrupts", 80.0)
        while ceiling.progress() < count and not deadline.passed():
            time.sleep(tracer.pause_s)
            if poll:
                tracer.poll()
        with starved_vcpus() if starve else contextlib.nullcontext():
            ceiling.end()
            after = ceiling.total()
            return tracer.finish(), after - before


@pytest.mark.parametrize("starve", [False, True], ids=["", "starved"])
def test_every_interrupt_of_the_guest_is_a_span(ceiling: Ceiling, starve: bool) -> None:
    # Room for some seconds: nothing is to be lost where this process gets no CPU time and the guest does.
    report, counted = traced(ceiling, 20_000, size_kb=1 << 16, starve=starve)
    assert report.lost_events == 0
    assert report.anomaly_counts == {}
    assert report.summary.interrupts == report.injected == counted
    evidence = report.summary.evidence()
    assert evidence is not None
    assert evidence.speaks_for is Scheme.IRQFD
    assert report.summary.wakeups_per_interrupt == 0
    assert report.cost.events >= 5 * report.summary.interrupts
    assert report.cost.cpu_s > 0


def test_a_vcpu_that_is_younger_than_the_recording_is_followed() -> None:
    target, pid = resolve(ROOT, pid=os.getpid(), gsi=Gsi(GSI), bdf=None)
    with Tracer(target, root=ROOT, pid=pid) as tracer, contextlib.ExitStack() as stack:
        tracer.poll()
        fd = kvm.open_kvm("/dev/kvm")
        stack.callback(close_all, fd)
        ceiling = Ceiling(fd, gsi=GSI)
        stack.callback(ceiling.close)

        def knows() -> bool:
            tracer.poll()
            return set(tracer.target.threads) >= set(threads_of(ROOT, os.getpid()))

        assert Deadline.after("the new thread is known", 30.0).poll(knows)
        ceiling.run(20.0, count=2000)
        report = tracer.finish()
        assert report.summary.interrupts == ceiling.total()
        assert report.anomaly_counts == {}


def test_a_buffer_too_small_is_a_loss_that_is_told(ceiling: Ceiling) -> None:
    report, counted = traced(ceiling, 20_000, poll=False, size_kb=64)
    counts = report.anomaly_counts
    assert report.lost_events > 0
    assert counts["lost-events"] > 0
    assert 0 < report.summary.interrupts < counted
    assert report.injected == report.summary.interrupts + counts.get("torn", 0) + counts.get("unfinished", 0)


def test_a_full_buffer_is_read_to_its_end(ceiling: Ceiling) -> None:
    target, pid = resolve(ROOT, pid=os.getpid(), gsi=Gsi(ceiling.figures.gsi), bdf=None)
    with Tracer(target, root=ROOT, pid=pid, size_kb=1024) as tracer:
        ceiling.run(20.0, count=60_000)
        tracer.finish()
        left = [cpu.entries for cpu in tracer.instance.statistics().values()]
    assert not any(left)


def test_the_instance_is_private_and_runs_on_the_clock_that_was_chosen(tracefs: Path) -> None:
    with Instance(ROOT, plan(Target(Gsi(20))), size_kb=128) as instance:
        place = tracefs / "instances" / instance.name
        assert f"[{CLOCK}]" in (place / "trace_clock").read_text()
        instance.verify_clock()
        assert (place / "tracing_on").read_text().strip() == "0"
        instance.start()
        assert (place / "events/kvm/kvm_set_irq/filter").read_text().strip() == "gsi == 20"
        assert (place / "events/kvm/kvm_set_irq/enable").read_text().strip() == "1"
        assert (tracefs / "events/kvm/kvm_set_irq/enable").read_text().strip() == "0"
        assert sum(cpu.entries for cpu in instance.statistics().values()) >= 0
    assert not place.exists()


@pytest.fixture
def other_tool(tracefs: Path) -> Iterator[Path]:
    """The switch of an event that somebody records into the global buffer; the kernel expands that buffer for it."""
    enable = tracefs / "events/kvm/kvm_msi_set_irq/enable"
    enable.write_text("1")
    yield enable
    enable.write_text("0")


def test_another_tool_with_the_global_buffer_is_not_disturbed(other_tool: Path, ceiling: Ceiling) -> None:
    report, _ = traced(ceiling, 500)
    assert report.summary.interrupts >= 500
    assert other_tool.read_text().strip() == "1"


def test_an_event_that_cannot_be_leaves_no_instance(tracefs: Path) -> None:
    absent = Enable(Tracepoint(Kind.EOI, "kvm", "kvm_of_tomorrow", ()), None)
    with pytest.raises(MissingError, match="no tracepoint kvm/kvm_of_tomorrow"), Instance(ROOT, [absent], size_kb=64):
        pass
    optional = Enable(Tracepoint(Kind.EOI, "kvm", "kvm_of_tomorrow", (), optional=True), None)
    with Instance(ROOT, [optional], size_kb=64) as instance:
        instance.start()
        assert instance.without == ["kvm/kvm_of_tomorrow"]
    nonsense = Enable(Tracepoint(Kind.EOI, "kvm", "kvm_eoi", ("vector",)), "vector === )")
    with pytest.raises(KernelError, match="kvm_eoi/filter failed"), Instance(ROOT, [nonsense], size_kb=64):
        pass
    assert ours(tracefs, os.getpid()) == []


TRACE = [sys.executable, "-m", "vfio_intx", "trace"]


def start_tracer(tracefs: Path, pid: int, *words: str) -> subprocess.Popen[str]:
    """``vfio-intx trace`` on a GSI of process *pid*, recording."""
    tracer = subprocess.Popen(
        [*TRACE, "--pid", str(pid), "--gsi", "20", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert Deadline.after("the tracer records", 60.0).poll(lambda: records(tracefs, tracer.pid))
    return tracer


def records(tracefs: Path, pid: int) -> bool:
    """Whether the instance of that process records; while the kernel makes it, it has not all of its files."""
    for name in ours(tracefs, pid):
        with contextlib.suppress(FileNotFoundError):
            return (tracefs / "instances" / name / "tracing_on").read_text().strip() == "1"
    return False


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a VM which does nothing."""
    idle = "import time; from vfio_intx.abi import kvm; vm = kvm.create_vm(kvm.open_kvm('/dev/kvm')); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", idle])

    def has_vm() -> bool:
        held = read_descriptors(ROOT, process.pid).value
        return held is not None and held.kvm_vm

    assert Deadline.after("the VM", 60.0).poll(has_vm)
    yield process
    process.kill()
    process.wait()


def test_after_sigkill_the_next_run_sweeps_and_spares_the_living(
    tracefs: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    killed = start_tracer(tracefs, sleeper.pid, "--seconds", "600")
    alive = start_tracer(tracefs, sleeper.pid, "--seconds", "600")
    killed.kill()
    killed.communicate()
    assert len(ours(tracefs, killed.pid)) == 1
    with Instance(ROOT, [], size_kb=64):
        assert ours(tracefs, killed.pid) == []
        assert len(ours(tracefs, alive.pid)) == 1
    alive.send_signal(signal.SIGTERM)
    alive.communicate(timeout=60)
    assert ours(tracefs, alive.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_reports_and_cleans_up(
    tracefs: Path, sleeper: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    tracer = start_tracer(tracefs, sleeper.pid, "--seconds", "600", "--json")
    tracer.send_signal(number)
    out, err = tracer.communicate(timeout=60)
    found = json.loads(out)
    assert (found["schema"], found["ended"], found["interrupts"]) == ("vfio-intx/trace/1", "stopped", 0)
    assert tracer.returncode == 1  # no interrupt was seen
    assert err == ""
    assert ours(tracefs, tracer.pid) == []


def test_a_vm_that_dies_ends_the_run_with_what_was_seen(tracefs: Path, sleeper: subprocess.Popen[bytes]) -> None:
    tracer = start_tracer(tracefs, sleeper.pid, "--seconds", "600", "--json")
    sleeper.kill()
    sleeper.wait()
    out, _ = tracer.communicate(timeout=60)
    assert json.loads(out)["ended"] == "vm-gone"
    assert tracer.returncode == 1


def test_a_full_disk_ends_the_run_with_one_message(tracefs: Path, ceiling: Ceiling, tmp_path: Path) -> None:
    spans = tmp_path / "spans"
    words = [
        *TRACE,
        "--pid",
        str(os.getpid()),
        "--gsi",
        str(ceiling.figures.gsi),
        "--seconds",
        "600",
        "--spans",
        str(spans),
    ]
    tracer = subprocess.Popen(
        ["prlimit", "--fsize=8192", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert Deadline.after("the tracer records", 60.0).poll(lambda: records(tracefs, tracer.pid))
    ceiling.run(80.0, count=5000)
    out, err = tracer.communicate(timeout=60)
    assert tracer.returncode == 1
    assert "EFBIG" in err
    assert "resample" in out  # what was measured until then is told
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert ours(tracefs, tracer.pid) == []


def without_tracefs(script: str, pid: int) -> subprocess.CompletedProcess[str]:
    """Run the tracer of process *pid* in a mount namespace of its own, prepared by *script*."""
    command = ["unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", *TRACE, "--pid", str(pid), "--gsi", "20"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_no_tracefs_is_one_clear_message(sleeper: subprocess.Popen[bytes]) -> None:
    hidden = "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug"
    done = without_tracefs(hidden, sleeper.pid)
    assert done.returncode == 1
    assert "tracefs is not mounted" in done.stderr
    assert "mount -t tracefs" in done.stderr


def test_without_root_it_says_what_is_needed() -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*as_nobody, sys.executable, "-c", "import vfio_intx"], capture_output=True).returncode:
        pytest.skip("the project or its Python lies below a folder that only root may enter; clone it elsewhere")
    command = [*as_nobody, *TRACE, "--pid", "1", "--gsi", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "tracing needs root" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_thread_is_a_thread_of_the_vm() -> None:
    assert os.getpid() in threads_of(ROOT, os.getpid())
    with pytest.raises(MissingError, match="no process"):
        threads_of(ROOT, 4_194_304)


def test_the_added_time_is_measured_and_leaves_nothing() -> None:
    assert math.isfinite(measure_added_us(ROOT))


def test_a_line_that_cannot_be_traced_is_left_out_with_the_reason() -> None:
    absent = Bdf.parse("0000:ff:1f.7")
    with Traced(ROOT) as traced:
        traced.follow([absent])
        assert "0000:ff:1f.7" in traced.why_not[absent]
        assert traced.latencies() == {}
        traced.follow([])


def test_lockdown_is_named_where_the_kernel_refuses(tracefs: Path, tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/security").mkdir(parents=True)
    (tmp_path / "sys/kernel/security/lockdown").write_text("none integrity [confidentiality]\n")
    (tmp_path / "sys/kernel/tracing").mkdir()
    # No folder can be made below events: the kernel answers as it does to all of tracefs when it is locked down.
    (tmp_path / "sys/kernel/tracing/instances").symlink_to(tracefs / "events")
    with pytest.raises(KernelError, match=r"EPERM|EACCES") as caught, Instance(HostRoot(tmp_path), [], size_kb=64):
        pass
    assert "locked down" in str(caught.value.hint)
