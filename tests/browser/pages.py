"""Open a run's report and a comparison in a real browser, on a desk and on a phone, in light and in the dark.

    python tests/browser/pages.py [PAGE …] [--screens DIR]

PAGE is an HTML file, such as runs/digits-1/report.html; by default pages of runs that nobody trained. Each must fit the
width of the window, show all of its pictures, ask the network for nothing, break none of its own rules, and have
letters that stand out from what is behind them (WCAG's 4.5 to 1). A line a page; the exit code is 1 if anything was
wrong. Needs selenium, Chromium or Chrome and its chromedriver; not collected by pytest.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
import run_all  # noqa: E402

WINDOWS = {"desk": 1200, "phone": 390}
LOOK = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function behind(element) {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(rgb(getComputedStyle(e).backgroundColor));
    const over = (below, [r, g, b, a = 1]) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
    return layers.reduce(over, [255, 255, 255]);
}
function contrast(element) {
    const style = getComputedStyle(element), svg = element.namespaceURI.endsWith('svg');
    const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
const letters = [...document.body.querySelectorAll('*')].filter(
    e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.tagName !== 'style');
const faint = letters.map(e => [contrast(e), e.textContent.trim().slice(0, 30)]).sort((a, b) => a[0] - b[0])[0];
const page = document.documentElement, pictures = [...document.images];
return {
    width: page.scrollWidth, height: page.scrollHeight, faint: faint,
    pictures: pictures.length + document.querySelectorAll('svg').length,
    broken: pictures.filter(p => !p.complete || !p.naturalWidth).length,
    fetched: performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).map(e => e.name),
};
"""


def made_up(folder):
    """Pages of a finished run, of one that goes on, of one with many classes, and of all three compared."""
    from made_up_runs import CONFIG, RECIPE, TEST, epochs, images, make_run

    from tinyvit.cli import main
    from tinyvit.cli.reporting import write_report

    names = tuple(f"<b>class</b> with a long name, {i}" for i in range(50))
    colour = images(names, (24, 24, 3), 100, "photos")
    large = replace(CONFIG, image_size=(24, 24), patch=4, channels=3, classes=50)
    runs = [
        (make_run(folder / "done", epochs(10), TEST), images()),
        (make_run(folder / "going", epochs(3), recipe=replace(RECIPE, lr=0.1, seed=1)), images()),
        (make_run(folder / "many classes", epochs(200), TEST, config=large, dataset=colour), colour),
    ]
    for run, dataset in runs:
        write_report(run, dataset)
        yield run / "report.html"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["compare", *(str(run) for run, _ in runs), "--out", str(folder)])
    yield folder / "compare.html"


def visit(driver, path, screens):
    """What is wrong with a page, and how many pictures it has."""
    wrong, seen = [], {}
    for window, width in WINDOWS.items():
        for scheme in ("light", "dark", "paper"):
            features = [{"name": "prefers-color-scheme", "value": "light" if scheme == "light" else "dark"}]
            media = {"media": "print" if scheme == "paper" else "", "features": features}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            size = dict(width=width, height=900, deviceScaleFactor=1, mobile=window == "phone")
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(path.as_uri())
            seen, where = driver.execute_script(LOOK), f"{window}, {scheme}"
            if seen["width"] > width and scheme != "paper":
                wrong.append(f"{where}: {seen['width']} pixels wide in a window of {width}")
            if seen["broken"] or seen["fetched"]:
                wrong.append(f"{where}: {seen['broken']} broken pictures, fetched {seen['fetched']}")
            if seen["faint"][0] < 4.5:
                wrong.append(f"{where}: contrast {seen['faint'][0]:.1f} of {seen['faint'][1]!r}")
            wrong += [f"{where}: {entry['message']}" for entry in driver.get_log("browser")]
            if screens:
                screens.mkdir(parents=True, exist_ok=True)
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": seen["height"]})
                driver.save_screenshot(str(screens / f"{path.parent.name}-{path.stem}-{window}-{scheme}.png"))
    return wrong, seen["pictures"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", type=Path, help="HTML files")
    parser.add_argument("--screens", type=Path, metavar="DIR", help="write pictures of the pages there")
    options = parser.parse_args()
    lacking = [line for line in run_all.missing() if "jupyterlab" not in line or "selenium" in line.split(":")[0]]
    if lacking:
        parser.exit(2, "This test needs\n" + "".join(f"  {line}\n" for line in lacking))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tinyvit-", ignore_cleanup_errors=True) as folder:
        pages = options.pages or made_up(Path(folder))
        with run_all.browser(Path(folder)) as driver:
            for path in pages:
                wrong, pictures = visit(driver, path.resolve(), options.screens)
                failed += bool(wrong)
                print(f"{path.parent.name}/{path.name}: {'FAILED' if wrong else 'ok'}; {pictures} pictures", flush=True)
                for line in wrong:
                    print(f"    {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.exit(main())
