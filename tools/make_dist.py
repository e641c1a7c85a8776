"""Builds the wheel and the sdist in dist/ and checks them. With names of Pythons (`python3.10`, say), installs the wheel in a
fresh environment of each, in build/, and runs tools/smoke.py there."""
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT/"dist"


def build() -> tuple[Path, Path]:
    "Build the sdist, and the wheel from it, so that the sdist is known to be whole."
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", DIST, ROOT], check=True)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir()], check=True)
    return next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))


def check_files(wheel: Path, sdist: Path) -> None:
    "Raises where the wheel lacks a file of the package that is in the repository, or either holds what nobody asked for."
    listed = subprocess.run(["git", "ls-files", "rnn_fastai"], cwd=ROOT, check=True, capture_output=True, text=True)
    ours = set(listed.stdout.split())
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    if held != ours: raise SystemExit(f"{wheel.name} lacks or adds files: {sorted(held ^ ours)}")
    with tarfile.open(sdist) as tar: names = {n.partition("/")[2] for n in tar.getnames()}
    missing = {*ours, "settings.ini", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"} - names
    if missing: raise SystemExit(f"{sdist.name} lacks {sorted(missing)}; MANIFEST.in names what it holds.")


def try_wheel(wheel: Path, python: str) -> None:
    "Install the wheel in a fresh environment of a Python, and do there what a newcomer does."
    env = ROOT/"build"/f"try-{Path(python).name}"
    shutil.rmtree(env, ignore_errors=True)
    subprocess.run([python, "-m", "venv", env], check=True)
    own = env/("Scripts" if sys.platform == "win32" else "bin")/"python"
    for cmd in (["-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel], ["-m", "pip", "check"],
                [ROOT/"tools"/"smoke.py"]):
        subprocess.run([own, "-I", *cmd], check=True, cwd=env)   # -I: nothing of the repository is seen


def main(pythons: list[str]) -> None:
    "Builds, checks and tries."
    wheel, sdist = build()
    check_files(wheel, sdist)
    print(f"{wheel.name} of {wheel.stat().st_size/1e6:.1f} MB and {sdist.name} of {sdist.stat().st_size/1e6:.1f} MB in {DIST}")
    for python in pythons: try_wheel(wheel, python)


if __name__ == "__main__": main(sys.argv[1:])
