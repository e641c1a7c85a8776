"""Makes outputs of notebooks smaller and the same at every run: pictures of 64 colours, or up to 256 where they show ramps
of colours, no remains of progress bars, no names of temporary folders. Run it after notebooks ran."""
import base64
import io
import json
import re
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).parent.parent
FAR = 0.6   # mean difference of a picture from itself with fewer colours, of 255: beyond, steps of a ramp are seen

def with_palette(image: Image.Image, colors: int) -> Image.Image:
    "A picture with that many colours, none of them far from its own."
    return image.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)

def distance(a: Image.Image, b: Image.Image) -> float:
    "How far pictures are from each other: the mean over pixels and channels, of 255."
    return sum(ImageStat.Stat(ImageChops.difference(a, b.convert("RGB"))).mean)/3

def small_png(png: str) -> str:
    "A PNG, base64, with a palette; the same where it has one, or where that is no smaller."
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P": return png
    image, out = image.convert("RGB"), io.BytesIO()
    for colors in (64, 128, 256):
        few = with_palette(image, colors)
        if distance(image, few) <= FAR: break
    few.save(out, "png", optimize=True)
    new = base64.b64encode(out.getvalue()).decode()
    return new if len(new) < len(png) else png

def shown(text: str) -> str:
    "Text as a terminal shows it in the end: what a line was before the cursor went back to its start is gone."
    lines = [next((p for p in reversed(line.split("\r")) if p.strip()), "") for line in text.split("\n")]
    return "\n".join(line for line in lines if not re.search(r"\|[█-]*\|.*%", line)).replace("█", "")

def settled(output: dict) -> dict:
    "An output with one name for all temporary folders."
    return json.loads(re.sub(r"/tmp/tmp[a-z0-9_]{8}", "/tmp/tmp", json.dumps(output)))

def small(output: dict) -> dict | None:
    "An output without what a page does not need; None where nothing is left."
    if "\r" in "".join(output.get("text", "")):
        text = shown("".join(output["text"]))
        return {**output, "text": text.splitlines(keepends=True)} if text.strip() else None
    data = dict(output.get("data", {}))
    if data.pop("application/vnd.jupyter.widget-view+json", None): data.pop("text/plain", None)   # the kernel that it asks is gone
    html = "".join(data.get("text/html", "x"))
    if 'class="fastprogress"' in html: data.pop("text/markdown", None)   # the source of the table once more
    if not re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL).strip(): return None   # the style of a bar, or a bar that is gone
    if "data" not in output: return output
    if "image/png" not in data: return {**output, "data": data}
    return {**output, "data": {**data, "image/png": small_png(data["image/png"].strip())}}

def shrink(path: Path) -> None:
    "Shrink all outputs of a notebook."
    nb = json.loads(path.read_text(encoding="utf8"))
    for c in nb["cells"]:
        if "outputs" in c: c["outputs"] = [settled(o) for o in map(small, c["outputs"]) if o is not None]
    path.write_text(json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf8")

if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or sorted((ROOT/"nbs").glob("*.ipynb"))): shrink(file)
