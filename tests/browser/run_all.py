"""Open every chapter of the course in JupyterLab, in a real browser, run it and look at it as a reader would.

    python tests/browser/run_all.py [CHAPTER …] [--screens DIR]

For each chapter, in a temporary copy of the repository: open it as saved; clear it; Run All Cells; wait for the kernel;
look for errors, stuck widgets and missing pictures; move the slider and see whether it redraws; save, close, shut the
kernel down, open it again and look for stale widgets. A line a chapter; the exit code is 1 if anything was wrong.

Not collected by pytest: needs JupyterLab, ipywidgets and selenium, Chromium or Chrome and its chromedriver, and some
minutes. CHAPTER is the beginning of a file name, such as 05. --screens writes PNG pictures of each page.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
import contents  # noqa: E402

PACKAGES = ("jupyterlab", "ipykernel", "ipywidgets", "selenium")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1100,1500",
)  # fmt: skip
LEAVE_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs")
LIMIT = 300  # seconds a chapter may take in the browser
# JupyterLab attaches only the cells in view to the page unless told otherwise.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
STARTED = """
const done = arguments[0], timer = setInterval(() => {
    if (window.jupyterapp && window.jupyterapp.commands.hasCommand('docmanager:open')) {
        clearInterval(timer);
        window.jupyterapp.restored.then(done);
    }
}, 100);
"""
# The open notebook of a path.
FIND = """
const path = arguments[0];
const widget = [...window.jupyterapp.shell.widgets('main')].find(w => w.context && w.context.path === path);
const page = widget.node;
"""
ACTIVATE = FIND + "window.jupyterapp.shell.activateById(widget.id); widget.content.activate();"
CLOSE = (
    FIND
    + """
const done = arguments[1];
widget.context.save().then(() => widget.sessionContext.shutdown()).then(() => { widget.dispose(); done(); });
"""
)
# The pictures beside a slider, and the text.
BESIDE = """
const beside = arguments[0].closest('.jp-Cell-outputArea');
return [[...beside.querySelectorAll('img')].map(p => p.src).join(), beside.innerText];
"""
# Show the page's k-th part; whether there is more below it.
SCROLL = (
    FIND
    + """
const panel = page.querySelector('.jp-WindowedPanel-outer');
panel.scrollTop = arguments[1] * (panel.clientHeight - 40);
return panel.scrollTop + panel.clientHeight + 1 < panel.scrollHeight;
"""
)
# What its page and its model say.
LOOK = (
    FIND
    + """
const code = widget.content.widgets.filter(c => c.model.type === 'code' && c.model.sharedModel.getSource().trim());
const outputs = code.flatMap(c => c.model.outputs.toJSON());
const text = [...page.querySelectorAll('.jp-OutputArea-output')].map(o => o.textContent);
const pictures = [...page.querySelectorAll('.jp-OutputArea-output img')];
const kernel = widget.sessionContext.session && widget.sessionContext.session.kernel;
return {
    kernel: kernel ? kernel.status : 'none',
    code: code.length,
    executed: code.filter(c => c.model.executionCount).length,
    errors: outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
    stderr: outputs.filter(o => o.name === 'stderr').map(o => [o.text].flat().join('').trim()),
    stale: text.filter(t => /Error displaying widget|Loading widget|model not found/i.test(t)).length,
    fallback: text.filter(t => /interactive\\(children=/.test(t)).length,
    pictures: pictures.filter(p => p.complete && p.naturalWidth > 0).length,
    broken: pictures.filter(p => p.complete && p.naturalWidth === 0).length,
    described: pictures.filter(p => p.alt.length >= 40).length,
    sliders: page.querySelectorAll('.jp-OutputArea .noUi-handle').length,
};
"""
)


def missing():
    """What this script needs and does not find, as sentences."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        yield f'{", ".join(lacking)}: pip install -e ".[notebooks]" jupyterlab selenium'
    if not any(map(shutil.which, BROWSERS)):
        yield f"a browser on PATH, one of {', '.join(BROWSERS)}"
    if not shutil.which("chromedriver"):
        yield "chromedriver on PATH, of the browser's version (Debian: apt install chromium chromium-driver)"


@contextlib.contextmanager
def jupyterlab(folder):
    """A JupyterLab of this Python over `folder`/course; gives its address as a function of a path. It neither reads nor
    writes the user's own settings, kernels and workspaces; this Python's kernel it finds without them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    for name, values in SETTINGS.items():
        path = folder / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Kernels from here: ROOT's compiled ones are cached beside the package, so the copy is read and not imported.
    environment = {k: v for k, v in os.environ.items() if k != "TINYVIT_STATIC"} | own | {"PYTHONPATH": paths}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder / 'course'}",
    ]  # fmt: skip
    log = folder / "jupyterlab.log"
    with open(log, "w", encoding="utf-8") as out:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
    try:
        status = f"http://127.0.0.1:{port}/api/status?token={token}"
        for _ in range(240):
            with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(status, timeout=5):
                break
            if server.poll() is not None:
                break
            time.sleep(0.25)
        else:
            server.terminate()
        if server.poll() is not None:
            raise SystemExit(f"JupyterLab does not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
        yield lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?reset&token={token}"
    finally:
        server.terminate()  # which ends its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@contextlib.contextmanager
def browser(folder):
    """A headless Chromium with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A chapter in JupyterLab."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path

    def command(self, name, **options):
        """Run one of JupyterLab's commands, as its menu does, and wait for it."""
        done = self.driver.execute_async_script(
            "const [name, options, done] = arguments;"
            "window.jupyterapp.commands.execute(name, options).then(() => done(''), e => done(String(e)));",
            name, options,
        )  # fmt: skip
        if done:
            raise RuntimeError(f"{name}: {done}")

    def look(self):
        return self.driver.execute_script(LOOK, self.path)

    def wait(self, what, true, limit=60):
        """Look until `true(what is seen)`; returns that. Raises TimeoutError."""
        from selenium.common.exceptions import WebDriverException

        start, seen = time.monotonic(), None
        while time.monotonic() - start < limit:
            with contextlib.suppress(WebDriverException):  # nothing there to look at yet
                seen = self.look()
                if true(seen):
                    return seen
            time.sleep(0.5)
        raise TimeoutError(f"{what} not within {limit} s; seen last: {seen}")

    def open(self):
        self.command("docmanager:open", path=self.path)
        self.wait("the kernel", lambda seen: seen["kernel"] == "idle" and seen["code"])
        self.driver.execute_script(ACTIVATE, self.path)  # commands go to the notebook in front
        time.sleep(1)  # pictures are drawn, widgets ask the kernel

    def run(self):
        self.command("notebook:clear-all-cell-outputs")
        self.driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")  # does not wait
        self.wait(
            "all cells executed",
            lambda seen: seen["kernel"] == "idle" and (seen["executed"] == seen["code"] or seen["errors"]),
            LIMIT,
        )
        time.sleep(1)
        return self.look()

    def move_slider(self, number):
        """Move a slider by one step with the arrow key; returns why the picture below it has not changed, or ''."""
        from selenium.webdriver.common.keys import Keys

        handle = self.driver.find_elements("css selector", ".jp-OutputArea .noUi-handle")[number]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
        before, _ = self.driver.execute_script(BESIDE, handle)
        handle.send_keys(Keys.ARROW_RIGHT)
        for _ in range(40):
            time.sleep(0.5)
            after, text = self.driver.execute_script(BESIDE, handle)
            if after and after != before:
                return ""
        # `slider` puts an error in the picture's place; often a later cell has bound a name to something else.
        return "the picture stays as it is" if after else text.strip()

    def close(self):
        """Save, shut the kernel down, close the tab."""
        self.driver.execute_async_script(CLOSE, self.path)

    def screens(self, folder, name):
        """The whole page as PNG files, a window's height each."""
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(60):
            more = self.driver.execute_script(SCROLL, self.path, k)
            time.sleep(0.3)
            self.driver.save_screenshot(str(folder / f"{name}-{k:02}.png"))
            if not more:
                break


def visit(page, chapter, screens):
    """Read, run and reopen a chapter; returns (what is wrong, what is worth saying)."""
    name, figures, wrong, notes = chapter.path.stem, len(chapter.figures()), [], []
    uses_slider = any("\nslider(" in f"\n{chapter.source(i)}" for i in chapter.code())

    def inspect(when, seen):
        wrong.extend(f"{when}: {error[:500]}" for error in seen["errors"])
        wrong.extend(f"{when}: stderr: {text[:500]}" for text in seen["stderr"])
        if seen["stale"]:
            wrong.append(f"{when}: {seen['stale']} boxes 'Error displaying widget' or 'Loading widget'")
        if seen["pictures"] < figures or seen["broken"]:
            wrong.append(f"{when}: {seen['pictures']} pictures of {figures}, {seen['broken']} broken")

    page.open()
    inspect("as saved", page.look())
    start = time.monotonic()
    seen = page.run()
    seconds = time.monotonic() - start
    inspect("after Run All Cells", seen)
    if seen["executed"] != seen["code"]:
        wrong.append(f"only {seen['executed']} of {seen['code']} code cells were executed")
    if bool(seen["sliders"]) != uses_slider:
        wrong.append(f"{seen['sliders']} sliders, although the chapter has {'one' if uses_slider else 'none'}")
    for k in range(seen["sliders"]):
        if reason := page.move_slider(k):
            wrong.append(f"slider {k + 1} does not redraw: {reason}")
    if screens:
        page.screens(screens, name)
    notes.append(f"{seen['code']} code cells in {seconds:.0f} s, {seen['pictures']} pictures for {figures} figures")
    notes.append(f"{seen['described']} with alt text, {seen['sliders']} sliders")
    page.close()
    page.open()
    again = page.look()
    if again["stale"] or again["fallback"]:
        notes.append(f"reopened without its kernel: {again['stale']} stale widgets, {again['fallback']} as text")
        if screens:
            page.screens(screens, f"{name}-again")
    page.close()
    return wrong, notes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="the beginning of a file name, such as 05")
    parser.add_argument("--screens", type=Path, metavar="DIR", help="write pictures of the pages there")
    options = parser.parse_args()
    if lacking := list(missing()):
        parser.exit(2, "This test needs\n" + "".join(f"  {line}\n" for line in lacking))
    try:
        chapters = contents.chapters(options.chapters)
    except ValueError as error:
        parser.error(str(error))
    from selenium.common.exceptions import WebDriverException  # here, after saying what is missing

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the browser end too
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tinyvit-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        shutil.copytree(ROOT, folder / "course", ignore=LEAVE_OUT)
        with jupyterlab(folder) as address, browser(folder) as driver:
            driver.get(address("notebooks"))
            driver.execute_async_script(STARTED)
            for chapter in chapters:
                page = Page(driver, f"notebooks/{chapter.path.name}")
                try:
                    wrong, notes = visit(page, chapter, options.screens)
                except (TimeoutError, RuntimeError, WebDriverException) as error:
                    wrong, notes = [str(error)], []
                failed += bool(wrong)
                print(f"{chapter.path.stem}: {'FAILED' if wrong else 'ok'}; {'; '.join(notes)}", flush=True)
                for line in wrong:
                    print(f"    {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # an error's √ in a pipe on Windows
    sys.exit(main())
