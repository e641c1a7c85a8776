"Builds the wheel, installs it alone into build/wheel and imports every module from there."
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, pathlib, pkgutil, rnn_fastai
home = pathlib.Path(rnn_fastai.__file__).parent
assert home.parent == pathlib.Path.cwd(), f'imported from {home}, not from the wheel'
names = [m.name for m in pkgutil.walk_packages(rnn_fastai.__path__, 'rnn_fastai.')]
for name in names: importlib.import_module(name)
print(f'{len(names)} modules of the wheel import')
"""


def files(folder: Path) -> set[Path]:
    "Modules, the server's page, the rules of English words, the examples, and the model that comes with the package."
    data = [p for pattern in ("ship/page/*", "data/english/*", "data/examples/*", "pretrained/*") for p in folder.glob(pattern)]
    return {p.relative_to(folder) for p in (*folder.rglob("*.py"), *data)}


def main() -> None:
    "Raises where the wheel cannot be built, installed or imported, or lacks a file that the tree has."
    build, target = ROOT/"build", ROOT/"build"/"wheel"
    shutil.rmtree(build, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", build/"dist", ROOT], check=True)
    wheel = next((build/"dist").glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    src, got = (files(d/"rnn_fastai") for d in (ROOT, target))
    if src != got: raise SystemExit(f"the wheel lacks or adds files: {src ^ got}")
    subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=target, check=True)


if __name__ == "__main__": main()
