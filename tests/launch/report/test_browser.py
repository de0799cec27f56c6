"""The page in a real browser: it draws, asks for nothing, and works by keyboard and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from outmodal.launch.report.build import write_report
from tests.launch.report.browser import Browser, executable
from tests.launch.report.runs import by_hand, line

EVIL = "</script><img src=http://192.0.2.1/x onerror=alert(1)><b>&\"'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def page(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([runs["cox"], runs["align"]], out, 0, True).path


def test_a_missing_browser_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssertionError, match="apt-get install chromium"):
        executable()


def test_the_checks_see_what_they_are_for(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://192.0.2.1/x'><script>console.error(1); nothing()</script>")
    browser.load(bad)
    assert len(browser.complaints()) >= 2
    assert "http://192.0.2.1/x" in browser.requests()


def test_it_loads_without_complaint_or_request(browser: Browser, page: Path) -> None:
    browser.load(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    titles = browser.value("[...document.querySelectorAll('section h2')].map((h) => h.textContent)")
    assert titles == [
        "Summary",
        "Configuration",
        "Results",
        "Curves",
        "Confusion",
        "Embedding map",
        "Modality gap",
        "Agreement and disagreement",
        "Between epochs",
        "Data stream",
        "Hardware",
    ]


def test_every_figure_is_drawn_and_has_a_name(browser: Browser, page: Path) -> None:
    browser.load(page)
    figures = "[...document.querySelectorAll('figure')]"
    assert browser.value(f"{figures}.length") > 15
    assert browser.value(f"{figures}.every((f) => f.querySelector('svg[role=img] path'))")
    named = "document.getElementById(f.getAttribute('aria-labelledby')).textContent.length > 2"
    assert browser.value(f"{figures}.every((f) => {named})")
    pictures = "[...document.querySelectorAll('svg[role=img]')]"
    assert browser.value(f"{pictures}.every((s) => s.getAttribute('aria-label').length > 10)")
    ids = browser.value("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids)
    assert browser.value("document.querySelectorAll('[data-kind=map] .spot[data-i]').length") == 80
    # every frame that scrolls, and every control, can be reached and is named
    unnamed = "[...document.querySelectorAll('button, [tabindex=\"0\"]')].filter("
    unnamed += "(e) => !(e.getAttribute('aria-label') || e.textContent).trim()).length"
    assert browser.value(unnamed) == 0


def test_keys_read_values_hide_lines_zoom_and_change_the_scale(
    browser: Browser, page: Path
) -> None:
    browser.load(page)
    browser.value("document.querySelector('main').focus()")
    for _ in range(60):  # by Tab alone, to the first plot
        browser.press("Tab")
        if browser.value("document.activeElement.classList.contains('plot')"):
            break
    plot = "document.activeElement.closest('figure')"
    assert browser.value(f"{plot}.querySelector('h3').textContent") == "Training loss"
    browser.press("ArrowRight")
    assert browser.value(f"{plot}.querySelector('output').textContent").startswith("step 1\ncox: ")
    browser.press("End")
    assert browser.value(f"{plot}.querySelector('output').textContent").startswith("step 16\n")
    before = browser.value(f"{plot}.querySelector('path').getAttribute('d')")
    browser.press("l")
    assert (
        browser.value(f"{plot}.querySelector('[aria-pressed]').getAttribute('aria-pressed')")
        == "true"
    )
    assert browser.value(f"{plot}.querySelector('path').getAttribute('d')") != before
    label = f"{plot}.querySelector('svg[role=img]').getAttribute('aria-label')"
    browser.press("+")
    assert "step 1 to 16" not in browser.value(label)
    browser.press("0")
    assert "step 1 to 16" in browser.value(label)
    for _ in range(2):
        browser.press("Tab")
    hidden = "document.activeElement.getAttribute('aria-pressed')"
    assert browser.value(hidden) == "true"
    drawn = f"{plot}.querySelectorAll('[data-series]').length"
    assert browser.value(drawn) == 2
    browser.press("Enter")
    assert (browser.value(hidden), browser.value(drawn)) == ("false", 1)


def test_the_mouse_reads_values_and_drags_a_stretch(browser: Browser, page: Path) -> None:
    browser.load(page)
    plot = "document.querySelector('figure .plot')"
    browser.value(f"{plot}.scrollIntoView({{block: 'center'}})")
    box = browser.value(f"(({{x, y, width}}) => [x, y, width])({plot}.getBoundingClientRect())")
    x, y, width = (float(v) for v in box)
    browser.mouse("mouseMoved", x + width / 2, y + 90)
    assert "cox: " in browser.value(f"{plot}.querySelector('output').textContent")
    browser.mouse("mousePressed", x + width * 0.4, y + 90, held=True)
    browser.mouse("mouseMoved", x + width * 0.7, y + 90, held=True)
    assert browser.value(f"{plot}.querySelectorAll('.brush').length") == 1
    browser.mouse("mouseReleased", x + width * 0.7, y + 90, held=True)
    label = browser.value(f"{plot}.querySelector('svg').getAttribute('aria-label')")
    assert "step 1 to" not in label


def test_a_figure_gives_its_values_as_a_table(browser: Browser, page: Path) -> None:
    browser.load(page)
    browser.value("document.querySelector('figure details.values summary').click()")
    rows = "document.querySelectorAll('figure details.values tbody tr').length"
    browser.until(f"{rows} === 16")


def test_the_map_is_walked_and_coloured(browser: Browser, page: Path) -> None:
    browser.load(page)
    figure = "document.querySelector('[data-kind=map]')"
    browser.value(f"{figure}.querySelector('.plot').focus()")
    browser.press("ArrowRight")
    tip = browser.value(f"{figure}.querySelector('output').textContent")
    assert tip.split(", ")[0] in ("force", "pose")
    hues = (
        f"new Set([...{figure}.querySelectorAll('.spot[data-i]')].map((s) => s.classList[1])).size"
    )
    assert browser.value(hues) == 3
    browser.value(f"{figure}.querySelector('.tools button').click()")
    assert browser.value(hues) == 2
    browser.value(f"{figure}.querySelector('.legend button').click()")
    assert browser.value(f"{figure}.querySelectorAll('.spot[data-i]').length") == 20


def test_light_and_dark(browser: Browser, page: Path, tmp_path: Path) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    browser.load(page, scheme="dark")
    assert browser.value(back) == "rgb(20, 23, 27)"
    assert browser.complaints() == []
    browser.picture(tmp_path / "dark.png")
    browser.value("document.getElementById('theme').focus()")
    browser.press("Enter")
    assert browser.value("document.getElementById('theme').textContent") == "Theme: light"
    assert browser.value(back) == "rgb(255, 255, 255)"
    browser.press("Enter")
    browser.press("Enter")
    assert browser.value(back) == "rgb(20, 23, 27)"
    browser.load(page, scheme="light")
    assert browser.value(back) == "rgb(255, 255, 255)"
    assert (tmp_path / "dark.png").stat().st_size > 10_000


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.load(page, width=width, height=740)
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    plots = "[...document.querySelectorAll('.plot')].map((p) => p.clientWidth)"
    assert browser.value(f"Math.min(...{plots})") > 250
    assert browser.value("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    small = (
        "[...document.querySelectorAll('.plot text')].map((t) => t.getBoundingClientRect().height)"
    )
    assert browser.value(f"Math.min(...{small})") >= 11


CONTRAST = """
(front, back) => {
  const pixel = document.createElement('canvas').getContext('2d');
  const light = (colour) => {
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
"""
COLOUR = """
(name) => {
  const probe = document.createElement('i');
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out(browser: Browser, page: Path, scheme: str) -> None:
    """At least 3:1 for lines and 4.5:1 for text (WCAG 2.2, 1.4.11 and 1.4.3)."""
    browser.load(page, scheme=scheme)
    lines = {f"--c{i}": 3.0 for i in range(8)}
    for name, least in (lines | {"--ink": 4.5, "--soft": 4.5, "--accent": 4.5}).items():
        found = browser.value(f"({CONTRAST})(({COLOUR})('{name}'), ({COLOUR})('--panel'))")
        assert found >= least, (name, found)
    cells = "[...document.querySelectorAll('.confusion tbody td')].map((c) => getComputedStyle(c))"
    worst = f"Math.min(...{cells}.map((c) => ({CONTRAST})(c.color, c.backgroundColor)))"
    assert browser.value(worst) >= 4.5
    shades = f"new Set({cells}.map((c) => c.backgroundColor)).size"
    assert browser.value(shades) >= 2


def test_text_of_a_run_stays_text(browser: Browser, tmp_path: Path) -> None:
    metrics = line(1, "train", **{EVIL: 1.0, "loss": 1.0}) + line(1, "eval", **{f"{EVIL}/a": 0.5})
    config = f"seed: 0\ndata: {{path: '{EVIL.replace(chr(39), '')}'}}\n"
    folder = by_hand(tmp_path / "<i onclick=x>&amp;", metrics, config)
    out = write_report([folder], tmp_path / "r.html", 0, False).path
    browser.load(out)
    assert browser.complaints() == []
    assert browser.requests() == [out.as_uri()]
    assert browser.value("document.querySelectorAll('img, b, i').length") == 0
    assert browser.value("document.querySelector('th[scope=col]:nth-child(2)').textContent") == (
        "<i onclick=x>&amp;"
    )


def test_a_run_that_is_being_written_says_so(
    browser: Browser, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "half"
    shutil.copytree(runs["erm"], run)
    (run / "result.json").unlink()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 3, "spl')
    browser.load(write_report([run], None, 0, True).path)
    assert browser.complaints() == []
    note = browser.value("document.querySelector('.note').textContent")
    assert "half is not finished" in note
    assert "half written and left out" in note
    assert browser.value("document.querySelectorAll('figure').length") > 4
