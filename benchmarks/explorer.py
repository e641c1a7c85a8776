"""The explorer: how long the model takes to answer, and the front end to draw 60 tokens x 1,152 units, in headless
Chromium without a GPU; results go to results/explorer.json.

    python benchmarks/explorer.py [--turns 5]

The model is a default AWD_LSTM of random weights. `first draw` is from an answer that has come to the whole picture, with
its layout and the canvases' pixels; `pick` is the same for an arrow key on the map, which moves the chosen token or unit;
`frame` is from one picture on the screen to the next, while a key is pressed for each: 16.7 is all that the screen shows.
`processor` is the time of the page's main thread, to which other work on the machine adds nothing; so for the answers.
"""
import argparse
import json
import shutil
import statistics
import time
import warnings
from importlib.resources import files

import common
from playwright import sync_api

warnings.filterwarnings("ignore")
N_TOKENS = 60
HOST = """<!doctype html><html><head><meta charset="utf-8"></head><body><div id="el"></div><script type="module">
import {mount} from './explorer.js';
const ask = async (task, body) => JSON.parse(await window.python(task, JSON.stringify(body)));
const host = document.getElementById('el');
window.explorer = mount(host, {facts: await window.facts(), ask, remedy: ''}, {text: await window.text()});
window.root = host.shadowRoot;
</script></body></html>"""
MEASURE = """async ([keys, n]) => {
  const map = root.getElementById('map'), canvases = [map, root.getElementById('traces')];
  const drawn = () => { root.host.offsetHeight; canvases.forEach(c => c.getContext('2d').getImageData(0, 0, 1, 1)); };
  const press = key => map.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
  const timed = act => { const start = performance.now(); act(); drawn(); return performance.now() - start; };
  const frame = () => new Promise(requestAnimationFrame);
  const picks = [], frames = [], draws = [];
  drawn();
  for (let i = 0; i < n; i++) { picks.push(timed(() => press(keys[i % 2 + 2*(i >= n/2)]))); await frame(); }
  await frame();
  let last = performance.now();
  for (let i = 0; i < n; i++) { press(keys[2*(i % 20 >= 10)]); await frame(); const now = performance.now(); frames.push(now - last); last = now; }
  for (let i = 0; i < 10; i++) draws.push(timed(() => explorer.redraw()));
  return {picks, frames, draws};
}"""

KEYS = """async n => {
  const map = root.getElementById('map'), key = k => map.dispatchEvent(new KeyboardEvent('keydown', {key: k, bubbles: true, cancelable: true}));
  for (let i = 0; i < n; i++) { key(i < n/2 ? 'ArrowLeft' : 'ArrowDown'); await new Promise(requestAnimationFrame); }
}"""


def make_learner():
    "A default AWD_LSTM: 1,152 units in each of the first two layers; 4,000 words."
    from rnn_fastai.all import AWD_LSTM, TextDataLoaders, language_model_learner, pd, set_seed
    set_seed(0)
    words = [f"word{i}" for i in range(4000)]
    df = pd.DataFrame(dict(text=[" ".join(words[i:i+100]) for i in range(0, 4000, 50)]*3))
    dls = TextDataLoaders.from_df(df, is_lm=True, text_col="text", bs=8, seq_len=20, min_freq=1, device="cpu", no_bar=True)
    return language_model_learner(dls, AWD_LSTM, pretrained=False), " ".join(words[:N_TOKENS - 1])


def answers(learn, text: str, turns: int) -> dict:
    "Milliseconds of each request."
    from rnn_fastai.ship.explore import ask
    from rnn_fastai.ship.requests import Limits
    edit = [dict(layer=0, unit=3)]
    asked = dict(explore=("explore", {}), changed=("explore", dict(edits=edit)), traces=("traces", dict(units=[3])),
                 compare=("compare", dict(edits=edit, n_words=20, seed=1)))
    def run(task, more): return lambda: ask(learn, task, dict(texts=[text], **more), Limits())
    wall, cpu = common.by_two_clocks({name: run(*a) for name, a in asked.items()}, turns)
    def ms(times): return {name: round(1000*statistics.median(t), 1) for name, t in times.items()}
    return dict(ms=ms(wall), processor_ms=ms(cpu))


def per_key(page, n: int) -> float:
    "Seconds of the main thread's processor time for a key on the map, with its picture."
    cdp = page.context.new_cdp_session(page)
    cdp.send("Performance.enable", dict(timeDomain="threadTicks"))
    def spent(): return next(m["value"] for m in cdp.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")
    start = spent()
    page.evaluate(KEYS, n)
    return (spent() - start)/n


def draw(learn, text: str, width: int, turns: int) -> dict:
    "Milliseconds of the front end."
    from rnn_fastai.ship.explore import ask, learner_facts
    from rnn_fastai.ship.requests import Limits
    code = (files("rnn_fastai")/"ship"/"page"/"explorer.js").read_text(encoding="utf8")
    known = {}
    def python(task, body):   # the model's time is not the front end's
        key = task, body
        if key not in known: known[key] = json.dumps(ask(learn, task, json.loads(body), Limits()))
        return known[key]
    with sync_api.sync_playwright() as p:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        picks, frames, draws, busy = [], [], [], []
        for _ in range(turns):
            page = browser.new_page(viewport=dict(width=width, height=900))
            for name, f in dict(python=python, facts=lambda: learner_facts(learn, Limits()), text=lambda: text).items(): page.expose_function(name, f)
            page.route("**/*", lambda r: r.fulfill(body=code, content_type="text/javascript") if r.request.url.endswith(".js")
                       else r.fulfill(body=HOST, content_type="text/html"))
            page.goto("http://host/")
            sync_api.expect(page.locator("#status")).to_have_text("Done.", timeout=60_000)
            time.sleep(1)
            assert page.locator("#unit-text .token").count() == N_TOKENS and page.locator("#unit").get_attribute("max") == "1151"
            busy.append(1000*per_key(page, 100))
            made = page.evaluate(MEASURE, [["ArrowLeft", "ArrowLeft", "ArrowDown", "ArrowDown"], 100])
            picks += made["picks"]; frames += made["frames"]; draws += made["draws"]
            page.close()
        version = browser.version
        browser.close()
    def ms(values, at=0.5): return round(sorted(values)[int(at*(len(values) - 1))], 1)
    return {"pick, processor (ms)": ms(busy), "whole redraw (ms)": ms(draws), "pick (ms)": ms(picks), "pick, 95 of 100 (ms)": ms(picks, 0.95), "frame (ms)": ms(frames),
            "frame, 95 of 100 (ms)": ms(frames, 0.95), "chromium": version}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    learn, text = make_learner()
    rows = [dict(what=f"{N_TOKENS} tokens x 1,152 units, {width} pixels wide", **draw(learn, text, width, turns)) for width in (400, 1400)]
    rows.append(dict(what=f"answers, {N_TOKENS} tokens, AWD_LSTM of 3 layers", **answers(learn, text, turns)))
    for row in rows: print(json.dumps(row))
    common.save("explorer", rows)
