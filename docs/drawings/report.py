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
WIDTH, GAP, COLOURS = 1000, 40, 128

SECOND_HALF = """
return [...document.querySelectorAll("h2")].find(heading => heading.textContent === "Block by block").offsetTop
"""


def main() -> None:
    """Write the picture: the first part of the page, and beside it the part that follows."""
    with tempfile.TemporaryDirectory() as folder:
        page = write_run_report(RUN, Path(folder) / "report.html")
        with started(Path(folder) / "profile") as browser:
            browser.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            browser.open(page.as_uri(), width=WIDTH, height=5000)
            height = int(browser.run(SECOND_HALF)) - GAP
            whole = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    picture = Image.new("RGB", (2 * WIDTH, height), whole.getpixel((0, 0)))
    picture.paste(whole.crop((0, 0, WIDTH, height)), (0, 0))
    picture.paste(whole.crop((0, height + GAP // 2, WIDTH, 2 * height + GAP // 2)), (WIDTH, 0))
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
