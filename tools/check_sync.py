"Fails when exporting and cleaning the notebooks, or making the README and the page of results, changes a file."
import hashlib
import subprocess
import sys

from readme import ROOT, make_readme
from results import PAGE, make_results

def _digests() -> dict:
    "File -> digest of its bytes, for all that is made from notebooks, and the notebooks."
    files = sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("rnn_fastai/**/*.py"), ROOT/"README.md", PAGE])
    return {f.relative_to(ROOT): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def main() -> int:
    "Exit status: 0 where all is in step."
    before = _digests()
    for cmd in ("nbdev-export", "nbdev-clean"): subprocess.run([cmd], cwd=ROOT, check=True)
    (ROOT/"README.md").write_text(make_readme(), encoding="utf8")
    PAGE.write_text(make_results(), encoding="utf8")
    after = _digests()
    changed = [str(f) for f in sorted(before.keys() | after.keys()) if before.get(f) != after.get(f)]
    if changed: print("Not in step with the notebooks (now made again; commit them):", *changed, sep="\n  ")
    return int(bool(changed))


if __name__ == "__main__": sys.exit(main())
