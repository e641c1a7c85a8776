"The site as browsers get it: made without the network, no link broken, nothing loaded from elsewhere, wide and narrow."
import re
import shutil
import time
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from test_project import MODULES, module_name
from test_site import make_site, read_module

pytestmark = pytest.mark.slow
for package in ("sphinx", "furo", "myst_parser"): pytest.importorskip(package, reason="the site needs the extra `docs`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the site, made once. Any warning of Sphinx, such as a link that leads nowhere, is an error."
    folder = tmp_path_factory.mktemp("made")
    before = time.perf_counter()
    make_site.make_site(folder/"pages", folder/"site")
    print(f"made in {time.perf_counter() - before:.0f} s")
    return folder/"site"


class Links(HTMLParser):
    "What a page leads to, what it loads, and which places it has."
    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        held = dict(attrs)
        if "id" in held: self.ids.add(held["id"])
        if tag == "a" and held.get("href"): self.links.append(held["href"])
        if tag == "link" and held.get("rel") in ("stylesheet", "icon", "preload"): self.loads.append(held["href"])
        if tag in ("script", "img", "iframe", "source") and held.get("src"): self.loads.append(held["src"])


@pytest.fixture(scope="module")
def pages(site): return {p.resolve(): Links(p.read_text(encoding="utf8")) for p in site.rglob("*.html")}


def test_every_link_within_the_site_leads_to_a_place(pages):
    broken = []
    for page, found in pages.items():
        for link in (*found.links, *found.loads):
            to = urlsplit(link)
            if to.scheme or to.netloc: continue
            target = (page.parent/unquote(to.path)).resolve() if to.path else page
            there = target.exists() and (not to.fragment or target not in pages or unquote(to.fragment) in pages[target].ids)
            if not there: broken.append((page.name, link))
    assert not broken, broken[:20]


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for page, found in pages.items(): assert not [x for x in found.loads if re.match(r"(https?:)?//", x)], page
    for file in (*site.rglob("*.css"), *site.rglob("*.js")):
        if file.name == "searchindex.js": continue
        text = file.read_text(encoding="utf8")
        assert not re.search(r"""(url\(|@import|fetch\(|import\()\s*['"]?https?:""", text), file


def test_every_name_has_a_place_on_the_page_of_its_module(site, pages):
    for p in MODULES:
        page = pages[(site/"api"/f"{module_name(p)}.html").resolve()]
        lacking = [t.name for t in read_module(p) if f"rnn_fastai.{module_name(p)}.{t.name}" not in page.ids]
        assert not lacking, (p, lacking)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pages are opened with playwright, which is not installed")
    if CHROMIUM is None: pytest.skip("pages are opened in Chromium, and PATH has none")
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


# How far a page is wider than the window, what its layout moved while it loaded, and pictures without a size.
LOOK = """() => new Promise(done => {
    let moved = 0
    new PerformanceObserver(list => { for (const e of list.getEntries()) moved += e.value }).observe({type: 'layout-shift', buffered: true})
    setTimeout(() => done([document.documentElement.scrollWidth - innerWidth, moved,
                           document.querySelectorAll('article img:not([width][height])').length]), 50)})"""


@pytest.mark.parametrize("width,scheme", [(400, "dark"), (800, "light"), (1400, "light")])
def test_no_page_overflows_or_shifts_or_asks_anybody(browser, site, width, scheme):
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    complaints: list[str] = []
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
    wide, moved, sizeless = [], [], []
    for file in sorted(site.rglob("*.html")):
        page.goto(f"file://{file}")
        over, shift, pictures = page.evaluate(LOOK)
        if over > 0: wide.append((file.name, over))
        if shift > 0.01: moved.append((file.name, shift))   # below 0.1, Chromium calls a page stable
        if pictures: sizeless.append(file.name)
    page.close()
    assert (complaints, wide, moved, sizeless) == ([], [], [], [])


# Of the boxes whose table is wider than they are: how high the scroll bar is, and whether an edge is shaded.
BARS = """() => [...document.querySelectorAll('.output, .table-wrapper')].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => [e.offsetHeight - e.clientHeight, getComputedStyle(e).backgroundImage.includes('gradient')])"""


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_a_wide_table_shows_that_it_scrolls(browser, site, width):
    with_bars = browser.browser_type.launch(executable_path=CHROMIUM, args=FLAGS, ignore_default_args=["--hide-scrollbars"])
    page = with_bars.new_page(viewport=dict(width=width, height=900))
    page.goto(f"file://{site}/lessons/first.html")
    bars = page.evaluate(BARS)
    over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    with_bars.close()
    assert bars and all(height > 5 and shaded for height, shaded in bars) and over <= 0, (bars, over)


class Slowly(SimpleHTTPRequestHandler):
    "Sends a page in parts, as a slow line or a busy machine does."
    def log_message(self, *args: object) -> None: pass

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.suffix != ".html": return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        data = file.read_bytes()
        for i in range(0, len(data), step := len(data)//5 + 1):
            self.wfile.write(data[i:i + step])
            self.wfile.flush()
            time.sleep(0.25)


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_no_page_shifts_while_it_comes_in_parts(browser, site, width):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slowly, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(viewport=dict(width=width, height=900))
    moved = []
    for name in ("index", "genindex", "lessons/index", "lessons/imdb", "api/root", "api/models.recurrent", "project/results"):
        page.goto(f"http://127.0.0.1:{server.server_port}/{name}.html")
        if (shift := page.evaluate(LOOK)[1]) > 0.001: moved.append((name, shift))
    page.close()
    server.shutdown()
    assert not moved


def test_the_course_keeps_its_labels_on_a_phone(browser, site):
    page = browser.new_page(viewport=dict(width=400, height=900))
    page.goto(f"file://{site}/lessons/index.html")
    said = page.evaluate("[...document.querySelectorAll('table.course tbody tr')].map(r => "
                         "[...r.cells].slice(2).map(c => getComputedStyle(c, '::before').content + getComputedStyle(c).display))")
    page.close()
    assert len(said) > 10 and {tuple(row) for row in said} == {('"You learn: "block', '"You need: "block', '"Time: "block')}


# What is typed, and the page that is to be among the first results.
NAMES = ["Recurrent", "language_model_learner", "TextDataLoaders", "plot_states", "rank_units", "keep_top_p", "LSTMCell", "Corpus.build",
         "export_onnx", "OnnxModel", "load_bundle", "Checkpoint", "tagger_learner", "NeuralCache", "beam_search", "AWD_QRNN", "CRF",
         "edit_states", "linear_cross_entropy", "read_conllu"]
PHRASES = {
    "a cell of your own": "lessons/own_cell", "hidden state": "lessons/review", "gradient clipping": "lessons/human_numbers", "teacher forcing": "lessons/generate",
    "wrap my own nn.GRU model": "guides/cells",
    "own data csv": "guides/data", "padding right lengths": "lessons/shapes", "stop tokens": "guides/generation",
    "beam search": "api/generate.beam", "word vectors": "lessons/characters", "byte level subwords": "api/data.subwords",
    "mixed precision": "api/callback.precision", "out of memory": "api/devices", "resume training": "guides/devices",
    "neural cache": "api/generate.adapt", "honest split": "lessons/human_numbers", "integrated gradients": "lessons/review",
    "nucleus sampling": "guides/generation", "named entities": "lessons/tags", "hugging face hub": "api/ship.hub",
    "from fastai": "guides/fastai", "human numbers": "lessons/human_numbers", "CUDA graphs": "api/generate.graphs",
    "contributing": "project/contributing", "confusion matrix": "lessons/imdb", "class imbalance": "api/data.balance",
    "early stopping": "guides/data", "missing values": "guides/data", "empty cells": "guides/data", "save picture": "guides/inside",
    "excel": "guides/data", "accuracy per class": "guides/data", "show mistakes": "guides/data", "pretrained": "project/small-model",
    "generate text": "guides/generation"}


def found(page, site: Path, query: str) -> list[str]:
    "The pages that a search lists, from the file, without a server."
    page.goto(f"file://{site}/search.html?q={query}")
    page.wait_for_function("document.querySelector('.search-summary')?.textContent.includes('found') || "
                           "document.querySelector('.search-summary')?.textContent.includes('did not match')", timeout=10_000)
    return page.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))")


def test_search_finds_names_without_a_server(browser, site):
    page = browser.new_page()
    lacking = [name for name in NAMES if not any(hit.endswith(f".{name}") for hit in found(page, site, name)[:3])]
    page.close()
    assert not lacking


def test_search_finds_phrases_without_a_server(browser, site):
    page = browser.new_page()
    hits = {query: found(page, site, query)[:8] for query in PHRASES}
    lacking = {query: hits[query] for query, want in PHRASES.items() if not any(h.startswith(want) for h in hits[query])}
    page.close()
    assert not lacking, lacking
