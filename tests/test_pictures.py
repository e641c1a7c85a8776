"All pictures are of one family: found by inspection, drawn at many sizes with many texts, looked at as the colour-blind do."
import importlib
import inspect
import itertools
import json
import pkgutil
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("agg")
import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Text

import rnn_fastai
from rnn_fastai.inside import labels, plots
from rnn_fastai.inside.recording import Recording
from rnn_fastai.inside.style import ink_on, luminance, picture_colors, picture_style, save_plot
from rnn_fastai.models.calibration import reliability
from rnn_fastai.models.ensemble import ManyNets

NBS = Path(__file__).parent.parent/"nbs"
TEXTS = dict(words="one hundred thousand twenty-one , a".split(),
             long=["Donaudampfschifffahrtsgesellschaft", "W"*30, "$x^2$ costs $5", "  ", "\\frac", "a\nb"],
             scripts=["가나다", "안녕하세요", "مرحبا", "שלום", "🙂", "漢字かな", "é", "Ω"])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def recording(words, n=28, units=9):
    "Made-up states, gates and logits of two documents."
    rng, vocab = np.random.default_rng(0), [*words, "."]
    arrays = {("rnn", p): rng.uniform(-1, 1, (n, units)) for p in ("h", "c")}
    arrays |= {("rnn", p): rng.uniform(0, 1, (n, units)) for p in ("input", "forget", "output")}
    arrays["output", "logits"] = rng.normal(size=(n, len(vocab)))*3
    return Recording.from_arrays({k: v.astype(np.float32) for k, v in arrays.items()}, [n - 8, 8],
                                 ids=rng.integers(0, len(vocab), n), vocab=vocab)


def losses():
    return SimpleNamespace(losses=list(np.geomspace(5, 0.3, 90)), ends=[30, 60, 90], frame=pd.DataFrame({"valid_loss": [2., 0.5, 0.7]}))


def found(bins=15):
    p = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)).mul(2).softmax(1)
    return [reliability(q/q.sum(1, keepdim=True), p.multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0], bins)
            for q in (p, p**2)]


def nets(**args):
    x = torch.eye(4)[torch.arange(20) % 4]
    return lambda ax=None: plots.plot_nets(ManyNets("RNN", 4, 3, 4, n_nets=5), x, ax=ax, **args)


def probs(words, ax=None):
    p = torch.linspace(-2, 2, 12*len(words)).view(12, -1).sin().softmax(-1)
    return plots.plot_probs(p, words, [words[i % len(words)] for i in range(12)], ax=ax)



CASES = {   # name -> draws it; those that show tokens take them
    "plots.plot_states": lambda words, ax=None: plots.plot_states(recording(words), ax=ax),
    "plots.plot_states_probs": lambda words, ax=None: plots.plot_states_probs(recording(words), ax=ax),
    "plots.plot_gates": lambda words, ax=None: plots.plot_gates(recording(words), ax=ax),
    "plots.plot_path": lambda words, ax=None: plots.plot_path(recording(words), docs=[0, 1], ax=ax),
    "plots.plot_next": lambda words, ax=None: plots.plot_next(recording(words), steps=slice(3, 15), ax=ax),
    "plots.plot_grid": lambda words, ax=None: plots.plot_grid(recording(words), ax=ax),
    "plots.plot_losses": lambda words, ax=None: plots.plot_losses(losses(), ax=ax),
    "plots.plot_probs": probs,
    "plots.plot_nets": lambda words, ax=None: nets()(ax),
    "plots.plot_reliability": lambda words, ax=None: plots.plot_reliability(*found(), ax=ax),
}
MORE = {   # other ways to draw some
    "a gate": lambda words, ax=None: plots.plot_states(recording(words), part="forget", units=[1, 2], ax=ax),
    "many units": lambda words, ax=None: plots.plot_states(recording(words, 300, 120), ax=ax),
    "next, long": lambda words, ax=None: plots.plot_next(recording(words), ax=ax),
    "nets, targets": lambda words, ax=None: nets(y=torch.arange(20) % 4, last=8)(ax),
}
EVERY = CASES | MORE
LEARNER = {"plot_reliability": "draws by plots.plot_reliability: test_calibration"}


def plot_functions():
    "All that plots: functions of modules, and methods of classes, written here."
    for m in pkgutil.walk_packages(rnn_fastai.__path__, "rnn_fastai."):
        module = importlib.import_module(m.name)
        for name, f in vars(module).items():
            here = getattr(f, "__module__", "") == m.name
            if name.startswith("plot_") and here: yield f"{m.name.split('.')[-1]}.{name}", f
            if inspect.isclass(f) and here:
                for k, method in vars(f).items():
                    if k.startswith("plot") and callable(method): yield f"{name}.{k}", method


FUNCTIONS = dict(plot_functions())


def drawn_axes(axs):
    "The axes that a function gave, as a list."
    assert isinstance(axs, Axes) or (isinstance(axs, np.ndarray) and all(isinstance(a, Axes) for a in axs)), axs
    return list(np.ravel(axs))


def shown_texts(fig):
    "All texts of a picture that are seen."
    fig.canvas.draw()
    texts = []
    for t in fig.findobj(Text):
        if not t.get_text().strip() or not t.get_visible(): continue
        axes = t.axes
        if axes is not None and not axes.axison and t not in axes.texts: continue
        texts.append(t)
    ticks = [(axis, tick) for ax in fig.findobj(Axes) for axis in (ax.xaxis, ax.yaxis)
             for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
    owned = {id(t) for _, tick in ticks for t in (tick.label1, tick.label2)}
    drawn = set()
    for ax in (a for a in fig.findobj(Axes) if a.axison):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis._update_ticks():
                if low <= tick.get_loc() <= high or np.isclose(tick.get_loc(), (low, high)).any():
                    drawn |= {id(t) for t, on in ((tick.label1, tick.label1.get_visible()), (tick.label2, tick.label2.get_visible())) if on}
    return [t for t in texts if id(t) not in owned or id(t) in drawn]


def covered(fig):
    "Pairs of texts that cover each other by more than half a pixel each way."
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown_texts(fig)]
    def by(a, b): return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))
    return [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if by(x, y) > 0.5]


def outside(fig):
    "Texts that leave the picture."
    edge = fig.bbox
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown_texts(fig)]
    return [t for t, b in boxes if b.x0 < edge.x0 - 1 or b.y0 < edge.y0 - 1 or b.x1 > edge.x1 + 1 or b.y1 > edge.y1 + 1]


def test_no_plot_function_is_left_out():
    methods = {k for k in FUNCTIONS if k not in CASES and not k.split(".")[0].islower()}
    assert {k for k in FUNCTIONS if k not in methods} == {*CASES} | {"calibration.plot_reliability"} & {*FUNCTIONS}
    assert {k.split(".")[1] for k in methods} <= {*LEARNER}, "give it a case above"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_takes_ax_and_gives_axes(name):
    s = inspect.signature(FUNCTIONS[name])
    assert s.parameters["ax"].default is None
    assert s.return_annotation in (Axes, np.ndarray)


@pytest.mark.parametrize("name", CASES)
def test_draws_in_the_style(name):
    assert hasattr(FUNCTIONS[name], "__wrapped__")
    before = dict(mpl.rcParams)
    axs = drawn_axes(CASES[name](TEXTS["words"]))
    assert dict(mpl.rcParams) == before
    style = picture_style()
    for ax in axs:
        assert ax.title.get_size() == style["axes.titlesize"] and ax.xaxis.label.get_size() == style["axes.labelsize"]
        size = style["xtick.labelsize"]
        for t in (*ax.get_xticklabels(), *ax.get_yticklabels()):   # a comma has so little ink that it is written larger
            assert t.get_size() == size or t.get_size() == 1.5*size and t.get_text() in (",", "."), t
    assert axs[0].figure.figure.get_layout_engine() is not None


@pytest.mark.parametrize("name", EVERY)
def test_draws_in_axes_that_are_given(name):
    plt.close("all")   # what another test has left open
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    axs = drawn_axes(EVERY[name](TEXTS["words"], right))
    assert plt.get_fignums() == [fig.number] and left in fig.axes
    assert not left.has_data() and all(ax.has_data() and ax.figure.figure is fig for ax in axs)
    assert all(ax.get_window_extent().x0 > left.get_window_extent().x1 for ax in axs)   # in its place
    assert not covered(fig)


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("name", EVERY)
def test_no_text_covers_another_or_leaves_the_picture(name, texts, monkeypatch):
    monkeypatch.setattr(labels, "_told", [0])   # said
    fig = drawn_axes(EVERY[name](TEXTS[texts]))[0].figure.figure
    assert not covered(fig) and not outside(fig)


@pytest.mark.parametrize("size", [(6, 4), (4, 3)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_no_text_covers_another_in_a_small_picture(name, size):
    fig, ax = plt.subplots(figsize=size, layout="constrained")
    EVERY[name](TEXTS["long"], ax)
    assert not covered(fig)


def test_the_check_itself_sees_what_covers():
    fig, ax = plt.subplots()
    ax.text(0.5, 0.5, "one")
    ax.text(0.51, 0.5, "two")
    ax.text(1.2, 0.5, "three")
    assert covered(fig) == [("one", "two")] and outside(fig) == ["three"]


@pytest.mark.parametrize("name", EVERY)
def test_a_title_says_something(name):
    axs = drawn_axes(EVERY[name](TEXTS["words"]))
    title = " ".join((axs[0].figure.get_suptitle() or axs[0].get_title()).split())
    assert re.search(r"\d", title), title   # a finding has a number


@pytest.mark.parametrize("name", EVERY)
def test_dark_paper(name):
    with plt.style.context(picture_style(dark=True)): axs = drawn_axes(EVERY[name](TEXTS["words"]))
    fig = axs[0].figure.figure
    paper = picture_colors(dark=True).paper
    assert mpl.colors.to_hex(fig.get_facecolor(), False) == paper.lower()
    inside = [t for ax in axs for t in ax.texts]
    for t in shown_texts(fig):
        if t not in inside: assert contrast(t.get_color(), paper) > 7, t
    assert all(mpl.colors.to_hex(im.cmap(im.norm(0.))) == paper.lower() for ax in axs for im in ax.images)


@pytest.mark.parametrize("name", EVERY)
def test_colours_are_those_of_the_style_wherever_it_is_drawn(name):
    "'C0' and the like would be looked up when the picture is drawn or saved, after the style has ended."
    fig = drawn_axes(EVERY[name](TEXTS["words"]))[0].figure.figure
    def pixels():
        fig.canvas.draw()
        return np.asarray(fig.canvas.buffer_rgba()).copy()
    pixels()
    fig.set_layout_engine("none")   # which may move things by a pixel each time
    before = pixels()
    with mpl.rc_context({"axes.prop_cycle": mpl.cycler(color=["#FF00FF"])}): assert (pixels() == before).all()


@pytest.mark.parametrize("name", EVERY)
def test_dark_axes_that_are_given(name):
    with plt.style.context("dark_background"): fig, ax = plt.subplots(layout="constrained")
    axs = drawn_axes(EVERY[name](TEXTS["words"], ax))
    assert all(luminance(im.cmap(im.norm(0.))) < 0.1 for a in axs for im in a.images)


# Colours, as the colour-blind see them: Machado, Oliveira and Fernandes (2009), full strength

BLIND = dict(none=np.eye(3),
    protanopia=[[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    deuteranopia=[[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    tritanopia=[[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]])


def lab(color, seen):
    "A colour in CIELAB, as it is seen."
    c = np.array(mpl.colors.to_rgb(color))
    c = np.clip(np.array(seen) @ np.where(c <= 0.04045, c/12.92, ((c + 0.055)/1.055)**2.4), 0, 1)
    xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]] @ c
    x, y, z = np.where((t := xyz/[0.95047, 1, 1.08883]) > 0.008856, np.cbrt(t), 7.787*t + 16/116)
    return np.array([116*y - 16, 500*(x - y), 200*(y - z)])


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05)/(low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("seen", BLIND)
def test_the_colour_blind_tell_colours_apart(seen, dark):
    c = picture_colors(dark)
    def far(a, b): return np.linalg.norm(lab(a, BLIND[seen]) - lab(b, BLIND[seen]))
    for a, b in itertools.combinations((*c.lines, c.paper), 2): assert far(a, b) > 20, (a, b)   # 2.3 can just be seen
    assert far(c.signed(0.), c.signed(1.)) > 30 and far(c.signed(0.25), c.signed(0.75)) > 30
    for m in (c.signed, c.share, c.time):   # equal steps can be seen: lightness falls or rises along each half
        l = np.array([lab(m(x), BLIND[seen])[0] for x in np.linspace(0, 1, 9)])
        for half in ((l[:5], l[4:]) if m is c.signed else (l,)): assert (np.diff(half) > 0).all() or (np.diff(half) < 0).all()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(dark):
    c = picture_colors(dark)
    assert contrast(c.ink, c.paper) > 7 and contrast(c.faint, c.paper) > 3
    assert min(contrast(x, c.paper) for x in c.lines) > 3
    assert min(contrast(ink_on(c.share(x)), c.share(x)) for x in np.linspace(0, 1, 50)) > 4.5


# Titles and words

def test_what_the_title_of_states_says_holds_for_every_recording():
    "The numbers of the title, computed in another way: they are means of the unit that varies most."
    pattern = re.compile(r"unit (\d+) varies most, (-?[\d.]+) on average after “(.+)”, (-?[\d.]+) over all$")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, units = int(rng.integers(2, 30)), int(rng.integers(1, 6))
        a, ids = rng.normal(size=(n, units)).cumsum(0).astype(np.float32), rng.integers(0, 4, n)   # drifts, as a cell state may
        ax = plots.plot_states(Recording.from_arrays({("rnn", "c"): a}, [n], ids=ids, vocab=list("abcd")), part="c")
        unit, after, token, over = pattern.search(" ".join(ax.get_title().split())).groups()
        frame = pd.DataFrame(a).groupby(np.array(list("abcd"))[ids])
        assert int(unit) == pd.DataFrame(a).var().argmax()
        assert abs(frame.mean().loc[token, int(unit)] - float(after)) < 0.006 and abs(a[:, int(unit)].mean() - float(over)) < 0.006
        plt.close("all")


def test_cells_of_the_next_token_hold_no_zero():
    rec = recording(TEXTS["words"])
    axs = plots.plot_next(rec, steps=slice(0, 6))
    shown, written = axs[1].images[0].get_array(), [t.get_text().split("\n") for t in axs[1].texts]
    assert len(written) == (shown >= 0.005).sum() < shown.size and all(float(p.strip("%")) >= 1 for _, p in written)


@pytest.mark.parametrize("n", [16, 17])
def test_the_next_token_says_where_words_are_left_out(n):
    axs = plots.plot_next(recording(TEXTS["words"]), steps=slice(0, n))
    assert ("words: up to 16 steps" in " ".join(axs[0].get_title().split())) == (not axs[1].texts) == (n == 17)


@pytest.mark.parametrize("low", [0., -0.5])
def test_a_map_of_probabilities_has_no_negative_scale(low):
    ax = plots.plot_probs(np.array([[low, 1.]]), ["a", "b"])
    bar = next(a for a in ax.figure.axes if a.get_label() == "<colorbar>")
    assert (ax.images[0].get_clim(), "".join(bar.get_ylabel().split())) == (((0, 1), "probability") if low == 0 else ((-1, 1), "value"))


# Files

@pytest.mark.parametrize("name", CASES)
def test_vector_files_keep_text(name, tmp_path):
    axs = CASES[name](TEXTS["words"])
    svg = save_plot(axs, tmp_path/"a.svg").read_text(encoding="utf8")
    assert save_plot(axs, tmp_path/"new"/"deep"/"a.png").exists()
    with pytest.raises(OSError, match="cannot be made a folder: .*a.svg is a file"): save_plot(axs, tmp_path/"a.svg"/"b.png")
    title = drawn_axes(axs)[0].get_title() or drawn_axes(axs)[0].figure.get_suptitle()
    lines = re.findall(r">([^<]+)</t(?:ext|span)>", svg)
    assert {" ".join(line.split()) for line in title.split("\n")} <= {" ".join(x.replace("&lt;", "<").replace("&gt;", ">").split()) for x in lines}
    with mpl.rc_context({"pdf.compression": 0}): pdf = save_plot(axs, tmp_path/"a.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf and b"/ToUnicode" in pdf


# Scripts

def test_right_to_left_is_kept():
    "Letters of a word stand from right to left: drawn, the word is the picture of its letters in reverse order."
    if not mpl.ft2font.__dict__.get("__libraqm_version__"): pytest.skip("this matplotlib draws from left to right")
    def ink(word):
        fig = plt.figure(figsize=(2, 0.6), dpi=60)
        fig.text(0.1, 0.3, labels.token_label(word), size=20, family=labels.label_fonts([word]))
        fig.canvas.draw()
        return np.asarray(fig.canvas.buffer_rgba())[..., 0] < 128
    word = "שלום"   # Hebrew letters stand apart; the override draws them from left to right
    assert (ink(word) == ink("\u202d" + word[::-1])).all() and (ink(word) != ink("\u202d" + word)).any()
    page = str(plots.ColoredText(["שלום", ",", "עולם"], [0.1, 0.2, 0.3]))
    assert '<div dir="auto">' in page and page.index("שלום") < page.index("עולם")


def test_one_warning_for_all_that_no_font_has(monkeypatch):
    monkeypatch.setattr(labels, "_told", [])
    monkeypatch.setattr(labels, "_family", lambda code, n: None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        axs = drawn_axes(plots.plot_states(recording(["가", "漢", "🙂", "म", "a"])))
        plots.plot_next(recording(["ก", "a"]))
        for number in plt.get_fignums(): plt.figure(number).canvas.draw()
    assert len(said) == 1 and "Install fonts that have them" in str(said[0].message)
    assert {"U+AC00", "U+1F642", "."} <= {t.get_text() for t in axs[0].get_xticklabels()}


# The family beyond the package: notebooks and lessons

DRAWS = re.compile(r"plt\.(subplots|figure)\(")


@pytest.mark.parametrize("path", sorted(NBS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_pictures_of_notebooks_are_of_the_family(path):
    cells = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf8"))["cells"] if c["cell_type"] == "code"]
    draws = [i for i, s in enumerate(cells) if DRAWS.search(s) and "#| export" not in s]
    styled = [i for i, s in enumerate(cells) if "plt.style.use(picture_style())" in s]
    if not path.stem.endswith(("inside.style", "inside.plots")): assert not draws or (styled and styled[0] <= draws[0])
    assert not [s for s in cells if re.search(r"'(bwr|RdBu_r|tab:\w+|steelblue|C7-)'", s)], "colours of the style: picture_colors()"


def test_gates_of_a_document_and_of_some_steps():
    rec = recording(TEXTS["words"])
    def points(**args): return [ax.collections[0].get_offsets().data for ax in plots.plot_gates(rec, **args)]
    for args in (dict(doc=1), dict(doc=-1), dict(doc=0, steps=slice(0, 10)), dict(steps=slice(0, 10)), dict(steps=slice(10, None))):
        docs = [args["doc"]] if "doc" in args else [0, 1]
        for got, gate in zip(points(**args), ("input", "forget", "output"), strict=True):
            a = np.concatenate([rec["rnn", gate, d][args.get("steps", slice(None))] for d in docs])
            np.testing.assert_allclose(got, np.stack([(a < 0.1).mean(0), (a > 0.9).mean(0)], 1))
    with pytest.raises(ValueError, match="leaves none of the 8 steps of document 1"): plots.plot_gates(rec, doc=1, steps=slice(10, None))
    with pytest.raises(ValueError, match=r"no values of 'input' in this recording at steps=slice\(90, None, None\)"): plots.plot_gates(rec, steps=slice(90, None))
    with pytest.raises(IndexError) as refused: plots.plot_states(rec, doc=2)
    with pytest.raises(IndexError, match=re.escape(str(refused.value))): plots.plot_gates(rec, doc=2)
