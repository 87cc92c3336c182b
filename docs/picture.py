"""Draw docs/report.png, the page of docs/demo/report.json in two columns: python docs/picture.py

Needs Chromium, and Pillow for a small file.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from llmfold.report.html import page

DOCS = Path(__file__).parent
WIDTH, HEIGHT, GAP, COLOURS = 800, 1010, 16, 256
SHRINK = 0.75
COLUMN = '<div><iframe src="page.html" style="margin-top:-{}px"></iframe></div>'
STYLE = f"""
body {{ margin: 0; background: #d8dee4; display: flex; gap: {GAP}px; padding: {GAP}px }}
div {{ width: {WIDTH}px; height: {HEIGHT}px; overflow: hidden; border-radius: 10px; background: #fff }}
iframe {{ border: 0; width: {WIDTH}px; height: {3 * HEIGHT}px; display: block }}
"""


def main() -> None:
    """Draw the picture."""
    browser = shutil.which("chromium") or "google-chrome"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = json.loads((DOCS / "demo" / "report.json").read_text(encoding="utf-8"))
        (folder / "page.html").write_text(page(report), encoding="utf-8")
        columns = "".join(COLUMN.format(HEIGHT * number) for number in range(2))
        (folder / "frame.html").write_text(f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{columns}')
        size = f"{2 * WIDTH + 3 * GAP},{HEIGHT + 2 * GAP}"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files"]
        shot = folder / "shot.png"
        subprocess.run(
            [browser, *options, f"--window-size={size}", f"--screenshot={shot}", f"file://{folder}/frame.html"],
            check=True,
        )
        whole = Image.open(shot).convert("RGB")
        small = whole.resize([round(SHRINK * side) for side in whole.size], Image.Resampling.LANCZOS)
        drawn = small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        drawn.save(DOCS / "report.png", optimize=True)


if __name__ == "__main__":
    main()
