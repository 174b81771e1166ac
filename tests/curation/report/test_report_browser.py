"""The report as people see it: in a browser, on a phone, in the dark, by keyboard."""

from __future__ import annotations

import pytest

from curation.build.build import build
from tests.curation.report.report_build import write_inputs, write_shared_tables

pytestmark = pytest.mark.browser

OVERFLOWING = """
(() => {
  const room = document.documentElement.clientWidth;
  const inside = (one) => one.closest(".wide, svg");  // these scroll, or scale, by themselves
  return [...document.querySelectorAll("body *")].filter((one) => !inside(one) && one.getBoundingClientRect().right > room + 1)
    .map((one) => `${one.tagName}.${one.className}`).slice(0, 5);
})()
"""
CONTRASTS = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((part) => part / 255).map((x) => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(one.tagName)) continue;
    const style = getComputedStyle(one), drawn = one instanceof SVGElement;
    const [a, b] = [light(drawn ? style.fill : style.color), light(behind(one))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (!drawn || !/^on/.test(one.getAttribute("class"))) found[`${one.tagName}.${one.getAttribute("class")}`] = ratio;
  }
  return found;
})()
"""

SHADES = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number).slice(0, 3);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => part / 255).map((x) => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const text = document.querySelector("svg.heat text[class^=on]"), cell = text.previousElementSibling;
  const paper = channels(getComputedStyle(document.body).backgroundColor);
  return [1, 2, 3, 4, 5, 6].map((shade) => {
    text.setAttribute("class", `on${shade}`);
    cell.setAttribute("class", `heat${shade}`);
    const style = getComputedStyle(cell), much = Number(style.fillOpacity);
    const behind = channels(style.fill).map((part, at) => part * much + paper[at] * (1 - much));
    const [a, b] = [light(channels(getComputedStyle(text).fill)), light(behind)].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  });
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every section in it, with hostile and with very long texts."""
    folder = tmp_path_factory.mktemp("report")
    build(write_inputs(folder), folder / "b")
    return write_shared_tables(folder / "b")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_fits_and_loads_without_complaint(tab, report, width, dark):
    tab.problems.clear()
    tab.requests.clear()
    tab.open(report, width, dark=dark)
    for opened in (False, True):
        if opened:
            tab.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert tab.value("document.documentElement.scrollWidth") == width
        assert tab.value(OVERFLOWING) == []
    assert tab.problems == []
    assert tab.requests == [report.resolve().as_uri()]
    assert tab.value("document.compatMode") == "CSS1Compat"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_contrast(tab, report, dark):
    tab.open(report, 1280, dark=dark)
    tab.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    ratios = tab.value(CONTRASTS)
    assert len(ratios) > 20
    assert {what: round(ratio, 1) for what, ratio in ratios.items() if ratio < 4.5} == {}
    shades = tab.value(SHADES)
    assert len(shades) == 6
    assert min(shades) >= 4.5, shades


def test_dark_is_dark(tab, report):
    pictures, papers = [], []
    for dark in (False, True):
        tab.open(report, 1280, dark=dark)
        pictures.append(tab.picture())
        papers.append(tab.value("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 22, 25)"]
    assert pictures[0] != pictures[1]
    assert all(len(picture) > 20_000 for picture in pictures), "an empty page compresses to less"


def test_texts_run_nothing(tab, report):
    tab.open(report, 1280)
    assert tab.value("document.title") == "small: what the build holds"
    assert tab.value("document.querySelectorAll('script').length") == 1
    assert tab.value("document.querySelectorAll('img, iframe, object, form, marquee').length") == 0
    assert "</script><script>document.title='taken'</script>" in tab.value("document.querySelector('main').textContent")


def test_contents_fold_on_a_phone_and_lead_to_a_source(tab, report):
    tab.open(report, 390)
    assert tab.value("document.querySelector('nav details').open") is False
    tab.value("document.querySelector('nav summary').click()")
    tab.value("document.querySelector('nav a[href=\"#source-topics\"]').click()")
    assert tab.value("document.querySelector('nav details').open") is False
    assert tab.value("location.hash") == "#source-topics"
    tab.open(report, 1280)
    assert tab.value("document.querySelector('nav details').open") is True


def test_keyboard_reaches_what_scrolls_and_what_folds(tab, report):
    tab.open(report, 390)
    reached = set()
    for _ in range(80):
        tab.press("Tab")
        reached.add(tab.value("(document.activeElement.closest('.wide') ? 'wide' : '') + document.activeElement.tagName"))
    assert {"wideDIV", "SUMMARY", "wideA"} <= reached


def test_every_link_inside_leads_somewhere(tab, report):
    tab.open(report, 1280)
    lost = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((one) => !document.getElementById(decodeURIComponent(one.hash.slice(1)))).length"
    assert tab.value(lost) == 0


def test_print_shows_whole_texts_on_white(tab, report):
    tab.open(report, 1280, dark=True)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.call("Emulation.setEmulatedMedia", media="")
