"""The report in a real browser: silent, self-contained, for a phone, for the dark, on paper, for keyboard and ear."""

import datetime
import functools
import http.server
import itertools
import json
import shutil
import threading

import pytest

from ammd.pipeline.report import render_report
from ammd.pipeline.run_log import StageMemory
from ammd.pipeline.runs_report import ReportedRun, render_runs

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver, which .ci/device_tools installs"
)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE, DESK = 360, 1280  # CSS pixels
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
# What the page's policy has refused, which is not on the console.
REFUSALS = """
window.refused = [];
addEventListener("securitypolicyviolation", event => window.refused.push(event.effectiveDirective));
"""
# The least contrast of any text with what is behind it, and that text; colours as the browser has resolved them.
CONTRAST = """
const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  return [...paint.getImageData(0, 0, 1, 1).data];
}
function light(colour) {
  const [r, g, b] = colour.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
let worst = [Infinity, ""];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const owner = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
  if (!text || owner.closest("script, style, svg, option") || !owner.checkVisibility()) continue;
  let behind = owner;
  while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(owner).color, getComputedStyle(behind).backgroundColor].map(c => light(rgba(c)));
  const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (contrast < worst[0]) worst = [contrast, text];
}
return worst;
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the pages and remembers what was asked for."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser with nothing in its profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": REFUSALS})
    yield driver
    driver.quit()


@pytest.fixture
def served(tmp_path):
    """A folder of pages behind a server: its address, and what was asked of it."""
    asked: list[str] = []
    handler = type("Recorder", (Handler,), {"asked": asked})
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def show(browser, served):
    """Open a page and return the browser."""
    folder, address, _ = served

    def show(text, *, width=DESK, scheme="light", media=""):
        browser.get_log("browser")
        browser.get_log("performance")
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        name = f"page{len(list(folder.iterdir()))}.html"  # not one that the browser has kept
        (folder / name).write_text(text, encoding="utf-8")
        browser.get(f"{address}/{name}")
        return browser

    return show


@pytest.fixture
def one_run(report_case):
    """The page of one run, with everything on it."""
    case = report_case()
    row = {"metric": "bytes", "unit": "bytes", "limit": 90 << 20, "value": 87 << 20, "why": "noisy"}
    rows = [
        row | {"artifact": name, "met": over is None, "over_by": over}
        for name, over in (("gguf-q4_k_m", None), ("onnx-int4", 7 << 20))
    ]
    case["summary"]["budget"] = {"met": False, "rows": rows}
    memory = [StageMemory(stage="distill", seconds=(2.0, 4.0), rss_bytes=(1 << 30, 2 << 30))]
    return render_report(**case, memory=memory)


@pytest.fixture
def several_runs(report_case):
    """The page of several runs."""
    return render_runs([reported(report_case(number), number) for number in range(4)])


def reported(case, number):
    first = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return ReportedRun(
        name=case["summary"]["run"],
        link=f"{number}/report.html",
        made=first + datetime.timedelta(days=number),
        summary=case["summary"],
        curves=case["curves"],
        answers=case["answers"],
    )


@pytest.fixture(params=["one_run", "several_runs"])
def page(request):
    """Each kind of page."""
    return request.getfixturevalue(request.param)


def test_page_asks_for_nothing_and_says_nothing_on_the_console(show, page, served):
    browser = show(page)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert requested == [browser.current_url]
    assert served[2] == ["/page0.html"]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.refused") == []


def test_page_is_no_wider_than_a_phone(show, page):
    browser = show(page, width=PHONE)
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, pre, svg, .skip, .unseen')"
        f" && one.getBoundingClientRect().right > {PHONE} + .5).map(one => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(show, page, scheme):
    browser = show(page, scheme=scheme)
    backgrounds = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (backgrounds == "rgb(255, 255, 255)") == (scheme == "light")
    contrast, text = browser.execute_script(CONTRAST)
    assert contrast >= LEAST_CONTRAST, text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_checker_finds_nothing(show, page, scheme):
    axe = pytest.importorskip("axe_core_python.selenium", reason="needs axe-core-python").Axe()
    found = axe.run(show(page, scheme=scheme))
    assert len(found["passes"]) > 20  # rules that had something to look at
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []


def test_headings_go_down_one_step_at_a_time_and_tables_have_heads(show, page):
    browser = show(page)
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map(one => +one.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    bad = browser.execute_script(
        "return [...document.querySelectorAll('table')].filter(one => !one.caption?.textContent.trim() ||"
        " one.querySelector('thead :not(th, tr, a, small)') || one.querySelector('thead th:not([scope=col])') ||"
        " [...one.tBodies[0].rows].some(row => row.cells[0].scope !== 'row')).map(one => one.outerHTML.slice(0, 99))"
    )
    assert bad == []
    for selector in ("html[lang=en]", "main", "nav[aria-label]", "header", "a.skip[href='#content']"):
        assert len(browser.find_elements(By.CSS_SELECTOR, selector)) == 1


def test_point_shows_its_numbers_on_focus_and_on_pointing(show, one_run):
    browser = show(one_run)
    panel = browser.find_element(By.CLASS_NAME, "facts")
    assert not panel.is_displayed()
    body = browser.find_element(By.TAG_NAME, "body")
    for _ in range(60):  # by keyboard alone
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if "point" in browser.switch_to.active_element.get_attribute("class"):
            break
    first = browser.switch_to.active_element
    assert first.aria_role == "option"
    assert first.accessible_name.startswith("gguf-q4_k_m: size 87 MiB, KL to teacher 0.579 nats")
    lines = panel.text.splitlines()
    assert lines[:3] == ["gguf-q4_k_m", "size", "87 MiB"]
    assert lines[lines.index("decode") + 1] == "128 tok/s"

    seen = [lines[0]]
    for _ in range(7):
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        seen.append(panel.text.splitlines()[0])
    assert seen[-1] == "teacher"  # the largest
    assert len(set(seen)) == 8
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not panel.is_displayed()

    webdriver.ActionChains(browser).move_to_element(
        browser.find_element(By.CSS_SELECTOR, ".point circle")
    ).perform()
    assert panel.text.splitlines()[0] == "teacher"  # the first in the page
    webdriver.ActionChains(browser).move_to_element(body).perform()


def test_panel_stays_on_a_phone(show, one_run):
    browser = show(one_run, width=PHONE)
    for point in browser.find_elements(By.CLASS_NAME, "point"):
        browser.execute_script("arguments[0].focus()", point)
        left, right = browser.execute_script(
            "const box = document.querySelector('.facts').getBoundingClientRect(); return [box.left, box.right]"
        )
        assert 0 <= left < right <= PHONE


def test_front_is_the_best_for_every_choice_of_axes(show, one_run, report_case):
    browser = show(one_run)
    found = browser.execute_script("""
        const form = document.querySelector(".tradeoff form"), keys = [...form.elements.up.options].map(o => o.value);
        const found = [];
        for (const across of keys) for (const up of keys) {
          form.elements.across.value = across; form.elements.up.value = up;
          form.dispatchEvent(new Event("change"));
          const points = [...document.querySelectorAll(".point")].filter(one => one.style.display !== "none");
          const of = list => list.map(one => one.getAttribute("aria-label").split(":")[0]);
          found.push([across, up, of(points), of(points.filter(one => one.classList.contains("best"))),
                      points.every(one => /^translate\\([\\d.]+ [\\d.]+\\)$/.test(one.getAttribute("transform")))]);
        }
        return found;
    """)
    summary = report_case()["summary"]
    rows = {row["name"]: row for row in (*summary["models"], *summary["artifacts"])}

    def cost(name, key):
        parts = [rows[name], *(rows[name].get(part) or {} for part in ("quality", "parity", "bench"))]
        (value,) = [part[key] for part in parts if key in part][:1] or [None]
        return value if value is None or key not in ("rouge_l", "decode_tokens_per_s") else -value

    assert len(found) == 81
    for across, up, shown, best, are_placed in found:
        costs = {name: (cost(name, across), cost(name, up)) for name in rows}
        known = {name: pair for name, pair in costs.items() if None not in pair}
        assert set(shown) == set(known)
        beaten = {
            name
            for name, (x, y) in known.items()
            if any(a <= x and b <= y and (a, b) != (x, y) for a, b in known.values())
        }
        assert set(best) == set(known) - beaten, (across, up)
        assert are_placed


def test_paper_has_no_controls_and_shows_what_is_folded(show, one_run):
    browser = show(one_run, media="print")
    for control in ("nav", ".skip", ".tradeoff form"):
        assert browser.find_element(By.CSS_SELECTOR, control).value_of_css_property("display") == "none"
    folded = "document.querySelector('details:not([open]) .answers')"
    assert browser.execute_script(f"return {folded}.checkVisibility() && {folded}.offsetHeight") > 50
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]
    assert pdf.startswith("JVBERi0")  # %PDF-
    assert browser.find_elements(By.CSS_SELECTOR, "details:not([open])")  # folded again afterwards


def test_hostile_text_does_not_run(show, report_case):
    case = report_case()
    attack = "</script></title><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\"'"
    text = json.dumps(case).replace("gguf-q8_0", json.dumps(attack)[1:-1])
    case = json.loads(text)
    case["recipe_text"] = case["answers"][0]["prompt"] = case["summary"]["run"] = attack
    browser = show(render_report(**case))
    assert browser.execute_script("return window.ran") is None
    assert browser.title == f"{attack}: report"
    assert browser.get_log("browser") == []

    # Should the template ever let something through, the page's policy stops it.
    broken = render_report(**report_case()).replace("</main>", f"{attack}</main>")
    browser = show(broken)
    assert browser.execute_script("return window.ran") is None
    refused = browser.execute_script("return window.refused")
    assert {"script-src-elem", "script-src-attr", "img-src"} == set(refused)
