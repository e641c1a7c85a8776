"Writes README.md from nbs/index.ipynb: markdown, code and text outputs; cells marked `#| hide` are left out."
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _output(o: dict) -> str:
    "The text of one output of a cell; HTML tables stay HTML, which GitHub shows."
    data = o.get("data", {})
    if "text/markdown" in data: return "".join(data["text/markdown"])
    if "text/html" in data: return "".join(data["text/html"])
    text = "".join(o.get("text", data.get("text/plain", [])))
    return "\n".join("    " + line for line in text.rstrip().splitlines())


def _cell(c: dict) -> str:
    "One cell as markdown; directives (`#| ...`) are dropped, hidden cells are empty."
    src = "".join(c["source"])
    if c["cell_type"] == "markdown": return src
    directives = re.findall(r"^#\|\s*(.+)$", src, re.M)
    if "hide" in directives: return ""
    src = re.sub(r"^#\|.*\n?", "", src, flags=re.M).strip()
    outputs = [o for o in map(_output, c.get("outputs", [])) if o.strip()]
    code = [] if "echo: false" in directives else [f"```python\n{src}\n```"]
    return "\n\n".join(code + outputs)


def make_readme(nb: Path = ROOT/"nbs"/"index.ipynb") -> str:
    "The text of the README."
    cells = json.loads(nb.read_text(encoding="utf8"))["cells"]
    note = "<!-- made from nbs/index.ipynb by `make readme`; do not edit -->"
    return "\n\n".join([note] + [s for s in map(_cell, cells) if s.strip()]) + "\n"


if __name__ == "__main__":
    (ROOT/"README.md").write_text(make_readme(), encoding="utf8")
    sys.exit(0)
