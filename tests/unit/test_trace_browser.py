"""The HTML page in a real browser, which is cut off from any network: light, dark and narrow. Screenshots are kept."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from vfio_intx.observe.collect import Cost, Report
from vfio_intx.observe.recording import load
from vfio_intx.observe.spans import Joiner
from vfio_intx.observe.summary import Summary
from vfio_intx.observe.timeline import Timeline, render

TREE = Path(__file__).parents[2]
ARTEFACTS = TREE / "artefacts"
TRAP = TREE / "tests/golden/tracefs/6.1/trap"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1280, 500)
OFFLINE = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
PROBE = (
    "<script>addEventListener('error', (event) => { document.body.dataset.error = event.message; });</script>",
    "<script>document.body.dataset.width = document.documentElement.scrollWidth;"
    "document.body.dataset.room = innerWidth;</script>",
)


@pytest.fixture(scope="module", autouse=True)
def browser() -> None:
    """A machine without one skips these, or fails where VFIO_INTX_REQUIRE names the need ``browser``."""
    if BROWSER is None:
        lack = pytest.fail if "browser" in os.environ.get("VFIO_INTX_REQUIRE", "").split(",") else pytest.skip
        lack("browser: nothing to look at the page with; apt-get install --no-install-recommends chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a recorded line under trap, with an element that tells of errors and of its width."""
    recording = load(TRAP)
    joiner = Joiner(recording.target)
    joiner.feed(recording.events)
    joiner.finish()
    summary, timeline = Summary(), Timeline()
    summary.add(joiner.done)
    timeline.add(joiner.done)
    cost = Cost(0.1, len(recording.events))
    counts = {oddity.value: count for oddity, count in joiner.counts.items()}
    odd = tuple(joiner.anomalies)
    report = Report(recording.target, 4.0, "time", summary, odd, counts, joiner.handled, joiner.injected, 0, 0, cost)
    text = render(report, timeline, "0000:00:10.0 of process 187", "Linux 6.1.0, recorded in the lab.")
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(text.replace("<body>", "<body>" + PROBE[0]).replace("</body>", PROBE[1] + "</body>"), "utf-8")
    return path


class View(NamedTuple):
    """What a browser printed of the page, its DOM, and drew, a PNG."""

    dom: str
    picture: bytes


def browse(page: Path, width: int, dark: bool) -> View:
    """Open the page in a browser of its own; its picture is kept."""
    assert BROWSER is not None
    name = f"{'dark' if dark else 'light'}-{width}"
    shot = ARTEFACTS / f"trace-page-{name}.png"
    shot.unlink(missing_ok=True)
    argv = [*OFFLINE, BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    argv += [f"--user-data-dir={page.parent / name}", f"--window-size={width},2000", "--virtual-time-budget=3000"]
    argv += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", f"--screenshot={shot}"]
    done = subprocess.run([*argv, page.as_uri()], capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    return View(done.stdout, shot.read_bytes())


Views = Callable[[int, bool], View]


@pytest.fixture(scope="module")
def view(page: Path) -> Iterator[Views]:
    """The page at a width, in light or dark. Each takes a browser's start, so it is looked at once, two at a time."""
    ARTEFACTS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        views = {(width, dark): pool.submit(browse, page, width, dark) for width in WIDTHS for dark in (False, True)}
        yield lambda width, dark: views[width, dark].result()


def test_the_page_builds_itself_without_an_error_or_a_network(view: Views) -> None:
    dom = view(1280, False).dom
    assert "data-error" not in dom
    assert '<h1 id="title">0000:00:10.0 of process 187</h1>' in dom
    stages = re.search(r'<div id="stages">(.*?)</section>', dom, re.DOTALL)
    assert stages
    assert [name for name in ("handle", "eoi", "resample", "unmask") if name in stages[1]] == [
        "handle", "eoi", "resample", "unmask",
    ]  # fmt: skip
    assert len(re.findall(r'class="bar"', dom)) == 10
    assert "trapped access" in dom


def test_on_a_narrow_window_nothing_sticks_out(view: Views) -> None:
    dom = view(500, False).dom
    found = re.search(r'data-width="(\d+)" data-room="(\d+)"', dom)
    assert found
    assert int(found[1]) <= int(found[2])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_drawn_in_light_and_dark(view: Views, width: int, dark: bool) -> None:
    picture = view(width, dark).picture
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24])[0] == width
    assert len(picture) > 20_000  # an empty page compresses to next to nothing


@pytest.mark.parametrize("width", WIDTHS)
def test_light_and_dark_differ(view: Views, width: int) -> None:
    assert view(width, False).picture != view(width, True).picture


def test_the_histograms_share_one_axis_and_the_slowest_tell_their_stages(view: Views) -> None:
    dom = view(1280, False).dom
    boxes = set(re.findall(r'class="histogram" viewBox="([^"]*)"', dom))
    assert len(boxes) == 1
    labels = re.findall(r'<span class="(?:first|last|)" style="left:[^"]*">([^<]*)</span>', dom)
    assert (labels[0], labels[-1]) == ("10 µs", "100 ms")
    slowest = re.search(r'<div id="slowest">(.*?)</section>', dom, re.DOTALL)
    assert slowest
    assert re.search(r"from host-irq: \S+ [\d.]+ \S+, then .*, then eoi 827 µs", slowest[1])
    assert "Linux 6.1.0, recorded in the lab." in dom
