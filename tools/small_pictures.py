"Makes the pictures in notebooks smaller: PNGs of at most 256 colours. Run it after notebooks were executed."
import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent


def small_png(png: str) -> str:
    "A PNG, base64, with a palette; the same where that is no smaller."
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P": return png
    out = io.BytesIO()
    few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(out, "png", optimize=True)
    new = base64.b64encode(out.getvalue()).decode()
    return new if len(new) < len(png) else png


def shrink(path: Path) -> None:
    "Shrink all pictures of a notebook."
    nb = json.loads(path.read_text(encoding="utf8"))
    found = [o["data"] for c in nb["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    for data in found: data["image/png"] = small_png(data["image/png"].strip())
    if found: path.write_text(json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf8")


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or sorted((ROOT/"nbs").glob("*.ipynb"))): shrink(file)
