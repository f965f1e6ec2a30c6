"""Takes README's picture of a report: `python docs/drawings/report.py` opens the one of the run in `digits_run`.

The run is a finished `python -m recipes.glit`, without its weights and what is made from the rest. Needs Chromium.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from nasx.pipeline.run_report import write_run_report
from tests.browser import started

HERE = Path(__file__).parent
RUN, PICTURE = HERE / "digits_run", HERE / "report.png"
WIDTH, COLOURS = 1200, 128

# One look instead of the whole page: the numbers, the networks, their blocks, and accuracy over MACs, without the text
# between them.
SHORT = """
body { padding-top: 1.6rem; padding-bottom: 1rem; }
nav, section, details, section > p, #found .panels, figcaption, figure:nth-child(n + 3) { display: none; }
section:is(#found, #blocks, #candidates) { display: block; }
h2 { margin-top: 1.8rem; }
h3 { margin-top: 0; }
.networks { grid-template-columns: repeat(3, 1fr); }
"""


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        page = write_run_report(RUN, Path(folder) / "report.html")
        with started(Path(folder) / "profile") as browser:
            browser.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            browser.open(page.as_uri(), width=WIDTH)
            browser.run(
                f"document.head.append(Object.assign(document.createElement('style'), {{textContent: `{SHORT}`}}))"
            )
            browser.resize(WIDTH, int(browser.run("return Math.ceil(document.body.getBoundingClientRect().height)")))
            picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
