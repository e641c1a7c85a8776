"Package metadata: read once from `settings.ini`; the version stands in `rnn_fastai/__init__.py`."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here/"settings.ini", encoding="utf8")
meta = cfg["DEFAULT"]
version = re.search(r'__version__ = "(.+)"', (here/"rnn_fastai"/"__init__.py").read_text(encoding="utf8"))[1]

names = "hub", "onnx", "serve", "explore", "ranks", "vectors", "big", "docs", "dev"
pages = {"Documentation": "#readme", "Changes": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
extras = {name: meta[f"{name}_requirements"].split() for name in names}
extras["dev"] += [p for name, packages in extras.items() if name not in ("dev", "vectors") for p in packages]


def absolute(readme: str) -> str:
    "Links of the front page lead to the repository, since PyPI shows the page alone."
    return re.sub(r"\]\((?!https?:|#|mailto:)", f"]({meta['git_url']}/blob/main/", readme)

setup(
    name=meta["name"], version=version, description=meta["description"], author=meta["author"],
    license=meta["license"], keywords=meta["keywords"].split(),
    classifiers=meta["classifiers"].strip().splitlines(), python_requires=f">={meta['min_python']}",
    url=meta["git_url"], project_urls={name: meta["git_url"] + path for name, path in pages.items()},
    long_description=absolute((here/"README.md").read_text(encoding="utf8")), long_description_content_type="text/markdown",
    packages=find_packages(include=["rnn_fastai", "rnn_fastai.*"]), package_data={"rnn_fastai": ["py.typed", "ship/page/*", "data/english/*", "data/examples/*", "pretrained/*"]},
    install_requires=meta["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": meta["console_scripts"].split()}, zip_safe=False,
)
