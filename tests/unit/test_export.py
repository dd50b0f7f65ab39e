"""What a run leaves: sums, percentiles, files. Each file is whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.script import BARE, DEVICE, MAIN, Script, join
from vfio_intx.chain.evidence import Kind as EvidenceKind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.chain.stage import Stage
from vfio_intx.errors import KernelError
from vfio_intx.observe.collect import Cost, Report
from vfio_intx.observe.export import PerfettoFile, SpansFile, WholeFile
from vfio_intx.observe.histogram import Latencies
from vfio_intx.observe.report import to_json
from vfio_intx.observe.spans import Joiner
from vfio_intx.observe.summary import SLOWEST, Summary
from vfio_intx.observe.timeline import Timeline, render


def many(count: int) -> Joiner:
    script = Script()
    for number in range(count):
        script.at += number % 97
        script.irqfd()
    return join(script)


def report_of(joiner: Joiner) -> Report:
    summary = Summary()
    summary.add(joiner.done)
    counts = {oddity.value: count for oddity, count in joiner.counts.items()}
    return Report(
        BARE, 2.0, "time", summary, tuple(joiner.anomalies), counts, joiner.handled, joiner.injected, 0, 0,
        Cost(0.5, 1000),
    )  # fmt: skip


# Sums


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300))
def test_percentiles_are_within_a_thousandth_and_the_rest_is_exact(durations: list[int]) -> None:
    latencies = Latencies()
    latencies.extend(durations[:100])
    latencies.extend(durations[100:])
    found = latencies.microseconds()
    ordered = sorted(durations)
    for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        exact = ordered[max(1, int(part * len(ordered) + 0.5)) - 1] / 1000  # HdrHistogram rounds the rank
        assert found[name] == pytest.approx(exact, rel=0.002, abs=0.002)
    assert found["max"] == round(ordered[-1] / 1000, 3)
    assert (latencies.count, latencies.total) == (len(durations), sum(durations))
    assert sum(count for _, count in latencies.buckets()) == len(durations)


def test_a_long_run_needs_no_more_room_than_the_values_differ() -> None:
    latencies = Latencies()
    dice = random.Random(5)
    for _ in range(20):
        latencies.extend([int(dice.lognormvariate(10, 2)) for _ in range(5000)])
    assert latencies.count == 100_000
    assert len(latencies.counts) < 20_000


def test_nothing_counted_is_nothing_said() -> None:
    assert Latencies().microseconds() == {}
    assert Latencies().buckets() == []
    assert Summary().evidence() is None
    assert Summary().wakeups_per_interrupt is None
    found = to_json(report_of(join(Script())))
    assert found["interrupts"] == 0
    assert found["handler_to_ack_us"] is None
    assert found["stages"] == []


def test_the_stages_add_up_to_the_whole() -> None:
    summary = Summary()
    summary.add(many(500).done)
    assert sum(stage.share for stage in summary.stages()) == pytest.approx(1.0, abs=0.001)
    assert [stage.stage for stage in summary.stages()] == [Stage.ROUTE, Stage.DELIVER, Stage.EOI, Stage.RESAMPLE]
    assert summary.interrupts == 500


def test_the_slowest_are_kept_whole_and_in_order() -> None:
    script = Script()
    for number in range(60):
        script.up()
        script.at += (number * 37) % 60 * 1000
        script.eoi().down()
    summary = Summary()
    for span in join(script).done:
        summary.add([span])
    kept = [span.end - span.start for span in summary.slowest()]
    assert len(kept) == SLOWEST
    assert kept == sorted(kept, reverse=True)
    assert min(kept) >= 50_000


@pytest.mark.parametrize(
    ("script", "target", "scheme", "wakeups"),
    [
        (Script().irqfd().irqfd(), BARE, Scheme.IRQFD, 0.0),
        (Script().host(wakes=MAIN).trap(), DEVICE, Scheme.TRAP, 2.0),
        (Script().up(MAIN, 0).eoi().down(MAIN, 0), BARE, Scheme.ACK_EVENTFD, 2.0),
        (Script().irqfd().trap(), BARE, None, 1.0),
    ],
)
def test_the_injections_are_evidence_for_one_scheme_or_none(
    script: Script, target: Any, scheme: Scheme | None, wakeups: float
) -> None:
    summary = Summary()
    summary.add(join(script, target).done)
    evidence = summary.evidence()
    assert evidence is not None
    assert evidence.kind is EvidenceKind.TRACE
    assert evidence.speaks_for is scheme
    assert summary.wakeups_per_interrupt == wakeups


def test_the_json_of_a_run_has_the_keys_that_were_promised() -> None:
    found = to_json(report_of(join(Script().irqfd().up())))
    promised = {"seconds", "interrupts", "lost_events", "stages", "anomalies", "cost"}
    assert promised <= found.keys()
    stage = found["stages"][0]  # type: ignore[index]
    assert stage.keys() >= {"stage", "us", "share"}
    assert stage["us"].keys() == {"p50", "p90", "p99", "p999", "max"}
    assert found["cost"].keys() >= {"cpu_s", "events"}  # type: ignore[attr-defined]
    assert json.loads(msgspec.json.encode(found))["anomalies"][0]["kind"] == "unfinished"


# Files


def test_spans_are_one_object_a_line(tmp_path: Path) -> None:
    with SpansFile(tmp_path / "spans") as export:
        export.add(many(3).done)
        assert not (tmp_path / "spans").exists()
    lines = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    assert [line["n"] for line in lines] == [1, 2, 3]
    assert lines[0]["scheme"] == "irqfd"
    assert list(lines[0]["us"]) == ["inject", "route", "deliver", "eoi", "resample"]
    assert [path.name for path in tmp_path.iterdir()] == ["spans"]


class Metadata(msgspec.Struct, tag_field="ph", tag="M", forbid_unknown_fields=True):
    """Names a process or track."""

    name: Literal["process_name", "thread_name", "thread_sort_index"]
    pid: int
    tid: int
    ts: float
    args: dict[str, str | int]


class Complete(msgspec.Struct, tag_field="ph", tag="X", forbid_unknown_fields=True):
    """Something with a beginning and a duration, in microseconds."""

    name: str
    cat: str
    pid: int
    tid: int
    ts: Annotated[float, msgspec.Meta(ge=0)]
    dur: Annotated[float, msgspec.Meta(ge=0)]
    args: dict[str, int]


class Instant(msgspec.Struct, tag_field="ph", tag="i", forbid_unknown_fields=True):
    """A moment. Scope g, p or t."""

    name: str
    s: Literal["g", "p", "t"]
    pid: int
    tid: int
    ts: Annotated[float, msgspec.Meta(ge=0)]
    args: dict[str, str]


class ChromeTrace(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON object form of the Chrome trace-event format."""

    displayTimeUnit: Literal["ms", "ns"]
    traceEvents: list[Metadata | Complete | Instant]


def test_a_perfetto_file_keeps_to_the_trace_event_format(tmp_path: Path) -> None:
    script = Script().up(MAIN, 0).down(101, 0).up(MAIN, 0).eoi().down(101, 0).eoi().irqfd()
    for _ in range(4):  # all ended by one EOI
        script.up(MAIN, 0).down(101, 0)
    script.eoi().irqfd().up()
    joiner = join(script)
    with PerfettoFile(tmp_path / "p.json", 'line "1"') as export:
        export.add(joiner.done)
        export.note(joiner.anomalies)
    trace = msgspec.json.decode((tmp_path / "p.json").read_bytes(), type=ChromeTrace)
    named = {event.tid for event in trace.traceEvents if isinstance(event, Metadata) and event.name == "thread_name"}
    slices = [event for event in trace.traceEvents if isinstance(event, Complete)]
    assert {event.tid for event in slices} <= named
    assert sum(event.name == "interrupt" for event in slices) == 8
    assert [event.name for event in trace.traceEvents if isinstance(event, Instant)][-1] == "unfinished"
    for track in named:  # slices of one track must not overlap: a viewer would nest them
        ends = 0.0
        for event in sorted((event for event in slices if event.tid == track), key=lambda event: event.ts):
            assert event.ts >= ends - 1e-6
            ends = event.ts + event.dur


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a page in this block: writes fail with EFBIG, as they fail with ENOSPC on a full disk.

    A block and no fixture: pytest's own output may be a file, too, and is written before a fixture ends.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("make", [SpansFile, lambda path: PerfettoFile(path, "line")])
def test_a_full_disk_is_an_error_with_its_file_and_leaves_nothing(make: Any, tmp_path: Path) -> None:
    spans = many(400).done
    with pytest.raises(KernelError, match="EFBIG") as caught, full_disk(), make(tmp_path / "out") as export:
        export.add(spans)
    assert caught.value.target.endswith("out")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_does_not_fit_spares_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("of yesterday")
    with pytest.raises(KernelError, match="EFBIG"), full_disk(), WholeFile(tmp_path / "page.html") as page:
        page.put(b"x" * 10_000)
    assert (tmp_path / "page.html").read_text() == "of yesterday"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_that_fails_leaves_no_half_file_and_spares_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("of yesterday")
    export = SpansFile(tmp_path / "out")
    export.__enter__()
    export.add(many(1).done)
    export.__exit__(ValueError, ValueError("the VM's page is damaged"), None)
    assert (tmp_path / "out").read_text() == "of yesterday"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    # As root, a file renamed over /dev/null would take it away from the whole machine.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_text("of yesterday")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in ("pipe", "link"):
            with SpansFile(tmp_path / name) as export:
                export.add(many(2).done)
        assert os.read(reader, 1 << 16) == (tmp_path / "file").read_bytes()
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


def test_a_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="EISDIR"):
        SpansFile(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_what_has_failed_once_is_not_whole_although_its_block_ends_well(tmp_path: Path) -> None:
    with SpansFile(tmp_path / "out") as export:
        with pytest.raises(KernelError), full_disk():
            export.add(many(400).done)
        assert export.failure is not None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="ENOENT"), SpansFile(tmp_path / "no" / "out"):
        pass


# The page


def test_the_sample_is_spread_over_the_run_in_bounded_space() -> None:
    timeline = Timeline(most=100)
    for span in many(5000).done:
        timeline.add([span])
    numbers = [span.number for span in timeline.sample]
    assert 40 <= len(numbers) < 100
    assert {after - before for before, after in pairwise(numbers)} == {timeline.every}
    assert numbers[-1] > 5000 - timeline.every


def test_the_page_needs_nothing_else_and_holds_the_data_unharmed() -> None:
    joiner = many(50)
    timeline = Timeline()
    timeline.add(joiner.done)
    page = render(report_of(joiner), timeline, "<!--<script></script><b>GSI 20")
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace('http-equiv="Content', "")
    assert "default-src 'none'" in page
    assert "{{" not in page
    assert page.count("</script>") == 2
    data = page.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    found = json.loads(data)
    assert found["title"] == "<!--<script></script><b>GSI 20"
    assert "<" not in data
    assert len(found["sample"]) == 50
    assert found["report"]["interrupts"] == 50
