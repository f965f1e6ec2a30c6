"""Pages opened in a headless Chromium: what went wrong, what they asked for, how wide they are, and their figures."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

Scheme = Literal["light", "dark"]

_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what would leave the machine fails at once
)

# what a reader takes for a picture; smaller drawings are a theme's icons
_FIGURES = """
for (const image of document.querySelectorAll("img[loading=lazy]")) image.loading = "eager";
await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
const name = element => element.getAttribute("alt") || element.getAttribute("aria-label")
  || [...element.children].find(child => child.tagName.toLowerCase() === "title")?.textContent || "";
return [...document.querySelectorAll("img, canvas, svg")].map(element => ({
  element, box: element.getBoundingClientRect(), role: element.getAttribute("role"),
})).filter(({element, box, role}) =>
  role !== "presentation" && !element.parentElement.closest("svg")
  && (element.tagName !== "svg" || role === "img" || box.width > 64 || element.closest("figure"))
).map(({element, box}) => ({
  source: element.getAttribute("src") || element.id || element.outerHTML.slice(0, 80), text: name(element).trim(),
  width: element.tagName === "IMG" && !element.naturalWidth ? 0 : box.width, height: box.height,
}));
"""

# the widest ends of what sticks out, without what scrolls in a box of its own
_OVERFLOW = """
const wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= wide) return [];
const boxed = element => {
  for (let e = element.parentElement; e && e !== document.body; e = e.parentElement)
    if (getComputedStyle(e).overflowX !== "visible") return true;
  return false;
};
return [...document.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > wide + 1 && !boxed(e))
  .map(e => e.outerHTML.slice(0, 120)).concat(`${document.documentElement.scrollWidth} of ${wide} pixels`);
"""

_CUT_CODE = """
return [...document.querySelectorAll("pre, pre > code")].filter(e => {
  const style = getComputedStyle(e);
  return e.scrollWidth > e.clientWidth + 1 && !["auto", "scroll"].includes(style.overflowX);
}).map(e => e.textContent.slice(0, 80));
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture on a page, with its alternative text and its size in pixels."""

    source: str
    text: str
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Page:
    """What a page was like once it had loaded."""

    errors: tuple[str, ...]
    """Errors in the console, among them files that are missing."""

    foreign_requests: tuple[str, ...]
    """Addresses that it asked another machine for."""

    overflow: tuple[str, ...]
    """What makes the page wider than the window; none where it does not scroll sideways."""

    cut_code: tuple[str, ...]
    """Starts of code blocks that are cut off and cannot be scrolled."""

    figures: tuple[Figure, ...]
    background: str
    text: str

    @property
    def unreadable_figures(self) -> tuple[Figure, ...]:
        """Figures without a text alternative, or without a size."""
        return tuple(f for f in self.figures if not f.text or not f.width or not f.height)

    @property
    def faults(self) -> dict[str, tuple[object, ...]]:
        """All that is wrong with the page, by kind; a good page has none."""
        kinds: dict[str, tuple[object, ...]] = {
            "errors": self.errors,
            "foreign requests": self.foreign_requests,
            "wider than the window": self.overflow,
            "code cut off": self.cut_code,
            "figures without text or size": self.unreadable_figures,
        }
        return {kind: found for kind, found in kinds.items() if found}


class Browser:
    """A headless Chromium. `missing()` says why there is none; `started` gives one."""

    def __init__(self, driver: "WebDriver") -> None:
        self.driver = driver

    def open(self, address: str, *, width: int = 1440, height: int = 900, scheme: Scheme = "light") -> Page:
        """Load an address as a new reader would, in a window of a size and a colour scheme, and look at it."""
        self._set_window(width, height)
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get("about:blank")
        if address.startswith("http"):
            self._command("Storage.clearDataForOrigin", origin=address, storageTypes="all")
        self._logs()
        self.driver.get(address)
        return self._look()

    def resize(self, width: int, height: int = 900) -> Page:
        """Give the window another size, and look at the page that is open again."""
        self._set_window(width, height)
        return self._look()

    def run(self, script: str) -> Any:
        """Return what a script gives on the page that is open."""
        return self.driver.execute_script(script)

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as a PNG file."""
        self.driver.save_screenshot(str(path))

    def _set_window(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", **metrics)

    def _look(self) -> Page:
        figures = self.driver.execute_async_script(_awaited(_FIGURES))
        errors, requested = self._logs()
        return Page(
            errors=errors,
            foreign_requests=tuple(url for url in requested if _is_foreign(url)),
            overflow=tuple(self.driver.execute_script(_OVERFLOW)),
            cut_code=tuple(self.driver.execute_script(_CUT_CODE)),
            figures=tuple(Figure(**figure) for figure in figures),
            background=self.driver.execute_script("return getComputedStyle(document.body).backgroundColor"),
            text=self.driver.execute_script("return document.body.innerText"),
        )

    def _command(self, name: str, **arguments: Any) -> None:
        self.driver.execute_cdp_cmd(name, arguments)

    def _logs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the errors and the requests since the last call."""
        messages, events = (self.driver.get_log(kind) for kind in ("browser", "performance"))  # type: ignore[no-untyped-call]
        errors = tuple(entry["message"] for entry in messages if entry["level"] == "SEVERE")
        events = [json.loads(entry["message"])["message"] for entry in events]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        opened = [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]
        return errors, tuple(sent + opened)


def missing() -> str:
    """Return what is not installed for a browser to start, or nothing."""
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    packages = [name for name in ("selenium",) if find_spec(name) is None]
    return " and ".join(programs + packages)


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a fresh profile in a folder, and end it afterwards."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for switch in (*_SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, ChromeService(str(shutil.which("chromedriver"))))
    try:
        driver.set_script_timeout(60)
        yield Browser(driver)
    finally:
        driver.quit()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone, and give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def _awaited(script: str) -> str:
    return f"const done = arguments[arguments.length - 1]; (async () => {{{script}}})().then(done);"


def _is_foreign(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")
