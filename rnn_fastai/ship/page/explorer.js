// The explorer: a text goes in, and one sees how a net reads it, and what changes when units are held or removed.
// One front end for two places: the page of a server (`mount`) and a notebook (the default export, for anywidget). It is
// plain JavaScript without a build step, asks nobody but its model, and puts texts in by textContent alone.

const STYLE = `
:host { color-scheme: light dark; display: block; container-type: inline-size;
  --paper: light-dark(#fbfaf7, #14161a); --card: light-dark(#ffffff, #1d2026); --ink: light-dark(#1b1c1e, #eceef1);
  --soft: light-dark(#55595f, #abb1ba); --line: light-dark(#8b9098, #7d848f); --hair: light-dark(#dddad2, #333842);
  --accent: light-dark(#0b5cad, #8ec2ff); --on-accent: light-dark(#ffffff, #0c1a2a); --warm: light-dark(#ee8a76, #b0432f);
  --cool: light-dark(#7fa9e8, #2f62b5); --changed: light-dark(#a2480a, #ffb066); --wrong: light-dark(#a3180f, #ffb4ab);
  --wrong-paper: light-dark(#fdeceb, #3b1a18);
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color: var(--ink); font: 1rem/1.5 var(--sans); }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
.all { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
section { background: var(--card); border: 1px solid var(--hair); border-radius: .6rem; padding: 1rem 1.2rem 1.2rem; min-width: 0; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; } h3 { font-size: .95rem; margin: .9rem 0 .3rem; }
label { display: block; font-weight: 600; font-size: .9rem; margin-bottom: .2rem; }
.help { color: var(--soft); font-size: .9rem; margin: .2rem 0 .8rem; }
textarea, input, select, button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .45rem .6rem; }
textarea { width: 100%; resize: vertical; font-family: var(--mono); font-size: .95rem; display: block; }
input { width: 100%; } select { width: 100%; max-width: 100%; text-overflow: ellipsis; }
input, select { min-height: 2.6rem; } input[type=checkbox] { width: 1.2rem; min-height: 1.2rem; margin: 0; flex: none; accent-color: var(--accent); }
::placeholder { color: var(--soft); opacity: 1; }
.options { display: flex; flex-wrap: wrap; gap: .6rem .8rem; align-items: end; margin-bottom: .8rem; }
.options > div { flex: 1 1 7rem; min-width: 0; max-width: 12rem; }
.options > .wide { flex-basis: 14rem; max-width: 22rem; } .options > .plain { flex: 0 0 auto; }
.buttons { display: flex; flex-wrap: wrap; gap: .6rem; }
button { cursor: pointer; font-weight: 600; min-height: 2.5rem; }
button:hover:not(:disabled) { border-color: var(--accent); }
button.main { background: var(--accent); color: var(--on-accent); border-color: var(--accent); }
button:disabled { color: var(--soft); border-color: var(--hair); cursor: default; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
#status { margin: 0; min-height: 1.5rem; color: var(--soft); }
.problem { margin: 0; color: var(--wrong); background: var(--wrong-paper); border: 1px solid var(--wrong);
  border-radius: .4rem; padding: .6rem .8rem; overflow-wrap: anywhere; }
/* --v is how strongly something is coloured, from 0 to 1; \`against\` turns to the cool colour. */
.tokens { font: 1.02rem/2.1 var(--mono); overflow-wrap: anywhere; white-space: pre-wrap; }
.token { border-radius: .25rem; padding: .12em .14em; cursor: default; box-decoration-break: clone; -webkit-box-decoration-break: clone;
  background: color-mix(in srgb, var(--warm) calc(var(--v, 0) * 100%), transparent); }
.token.against { background: color-mix(in srgb, var(--cool) calc(var(--v, 0) * 100%), transparent); }
.token.given { color: var(--soft); }
.token.special { font-size: .78em; border: 1px dashed var(--line); }
.token.unknown { text-decoration: underline dotted var(--wrong); text-underline-offset: .2em; }
[role=option] { cursor: pointer; }
[role=option]:hover, .token[aria-selected=true], .token.at { box-shadow: 0 0 0 2px var(--accent); }
.tagged { display: inline-block; text-align: center; line-height: 1.35; margin: .2rem .15rem; padding: .15rem .3rem; }
.tagged small { display: block; font: 600 .72rem/1.3 var(--sans); } .tagged .new { color: var(--changed); }
.legend { display: flex; align-items: center; gap: .5rem; font-size: .82rem; color: var(--soft); margin: .6rem 0 0; }
.ramp { flex: 0 1 9rem; height: .7rem; border-radius: .35rem; border: 1px solid var(--hair);
  background: linear-gradient(to right, transparent, var(--warm)); }
.ramp.both { background: linear-gradient(to right, var(--cool), transparent, var(--warm)); }
.detail { margin-top: .9rem; border-top: 1px solid var(--hair); padding-top: .8rem; }
.detail:empty, .bars:empty, .units:empty, .tokens:empty, #edits:empty { display: none; }
.detail p { margin: 0 0 .5rem; overflow-wrap: anywhere; }
code { font-family: var(--mono); }
.two { display: grid; gap: 0 1.6rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.bars { display: grid; gap: .3rem; margin: .2rem 0 .8rem; }
.bar { display: grid; grid-template-columns: minmax(4rem, 28%) 1fr 3.8rem; gap: .1rem .6rem; align-items: center;
  border: 1px solid transparent; border-radius: .3rem; padding: .15rem .4rem; width: 100%; text-align: left; min-height: 0;
  background: none; font-weight: 400; }
.bar .name { font-family: var(--mono); font-size: .92rem; overflow-wrap: anywhere; }
.bar .track { height: .75rem; border-radius: .4rem; background: color-mix(in srgb, var(--ink) 9%, transparent); overflow: hidden; }
.bar .fill { display: block; height: 100%; width: calc(var(--v, 0) * 100%); background: var(--accent); border-radius: .4rem; }
.bar .value { font-variant-numeric: tabular-nums; text-align: right; font-size: .9rem; }
.bar .new { color: var(--changed); } .bar .fill.new { background: var(--changed); }
.bar.chosen .name, .bar[aria-checked=true] .name { font-weight: 700; }
button.bar:hover, .bar[aria-checked=true] { border-color: var(--line); }
.key { font-size: .85rem; color: var(--soft); margin: 0 0 .3rem; }
.key b { color: var(--accent); } .key b.new { color: var(--changed); }
.units { display: grid; gap: .1rem; margin: .4rem 0 .9rem; }
.unit { display: grid; grid-template-columns: 6rem minmax(0, 1fr); gap: .6rem; align-items: center; width: 100%; text-align: left;
  border: 1px solid transparent; padding: .1rem .4rem; min-height: 1.9rem; background: none; font-weight: 400; }
.unit[aria-checked=true] { border-color: var(--accent); font-weight: 700; }
canvas { display: block; width: 100%; } .unit canvas { height: 1.3rem; border: 1px solid var(--hair); border-radius: .25rem; }
.scroll { max-height: 22rem; overflow: auto; border: 1px solid var(--hair); border-radius: .3rem; }
#map { cursor: crosshair; }
#edit-problem { margin-bottom: .8rem; }
#edits { list-style: none; margin: 0 0 .8rem; padding: 0; display: grid; gap: .4rem; }
#edits li { display: flex; gap: .6rem; align-items: center; }
#edits label { display: flex; gap: .6rem; align-items: center; margin: 0; font-weight: 400; overflow-wrap: anywhere; min-width: 0; }
#edits button { min-height: 2rem; padding: .1rem .6rem; flex: none; }
.said { font: .95rem/1.6 var(--mono); overflow-wrap: anywhere; white-space: pre-wrap; margin: 0; }
.said .new { color: var(--changed); font-weight: 600; }
caption { text-align: left; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--hair); overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
td:last-child { font-family: var(--mono); }
@container (min-width: 1150px) {
  .all { grid-template-columns: minmax(18rem, 24rem) minmax(0, 1fr); align-items: start; }
  #ask { grid-column: 1; grid-row: 1 / span 8; position: sticky; top: 1rem; }
  #status, #problem, #answer, #inside, #change, #near { grid-column: 2; }
}
@media (forced-colors: active) { .token[aria-selected=true] { outline: 2px solid Highlight; } }
`;

const PAGE = `
<div class="all">
  <section id="ask" aria-labelledby="ask-title">
    <h2 id="ask-title">Write</h2>
    <form id="ask-form">
      <label for="text" id="text-label">Prompt</label>
      <textarea id="text" rows="3" spellcheck="false" aria-describedby="text-help"></textarea>
      <p class="help" id="text-help">What the model goes on from; an empty one begins a text.</p>
      <div class="options" id="rules">
        <div><label for="n-words">New tokens</label><input id="n-words" type="number" min="1" max="1000" value="30" required></div>
        <div><label for="temperature">Temperature</label><input id="temperature" type="number" min="0" max="100" step="any" value="1" required></div>
        <div><label for="top-p">Top p</label><input id="top-p" type="number" min="0.001" max="1" step="any" placeholder="all"></div>
        <div><label for="seed">Seed</label><input id="seed" type="number" min="0" max="9007199254740991" placeholder="any"></div>
      </div>
      <div class="buttons">
        <button type="submit" class="main" id="go">Write</button>
        <button type="button" id="read">Only read</button>
        <button type="button" id="stop" disabled>Stop</button>
      </div>
    </form>
  </section>
  <p id="status" role="status" aria-live="polite"></p>
  <p id="problem" class="problem" role="alert" hidden></p>
  <section id="answer" aria-labelledby="answer-title" hidden>
    <h2 id="answer-title">Text</h2>
    <p class="help" id="answer-help"></p>
    <div id="classes" class="bars" role="radiogroup" aria-label="Classes, and which one is explained"></div>
    <div id="tokens" class="tokens" role="listbox" aria-label="Tokens" aria-describedby="answer-help" tabindex="-1"></div>
    <p id="legend" class="legend" aria-hidden="true"><span class="low"></span><span class="ramp"></span><span class="high"></span></p>
    <div id="detail" class="detail" aria-live="polite"></div>
  </section>
  <section id="inside" aria-labelledby="inside-title" hidden>
    <h2 id="inside-title">Inside</h2>
    <p class="help" id="inside-help"></p>
    <div class="options">
      <div class="wide"><label for="layer">Layer</label><select id="layer"></select></div>
      <div><label for="part">State or gate</label><select id="part"></select></div>
      <div><label for="unit">Unit</label><input id="unit" type="number" min="0" value="0"></div>
      <div><label for="order">Order</label><select id="order"><option value="spread">most varied first</option><option value="number">by number</option></select></div>
    </div>
    <h3 id="units-title">Units that vary most</h3>
    <div id="units" class="units" role="radiogroup" aria-labelledby="units-title"></div>
    <h3 id="map-title">All units</h3>
    <div class="scroll"><canvas id="map" tabindex="0" role="application" aria-labelledby="map-title" aria-describedby="map-help"></canvas></div>
    <p class="help" id="map-help">Tokens from left to right, units from top to bottom. A click, or the arrow keys, pick a token and a unit.</p>
    <h3 id="unit-title">Unit</h3>
    <div id="unit-text" class="tokens" role="img" aria-label=""></div>
    <p id="unit-legend" class="legend" aria-hidden="true"><span class="low"></span><span class="ramp both"></span><span class="high"></span></p>
    <h3 id="traces-title">Its states and gates</h3>
    <canvas id="traces" role="img" aria-labelledby="traces-title"></canvas>
    <p class="help" id="traces-help"></p>
    <p id="unit-said" class="help" aria-live="polite"></p>
  </section>
  <section id="change" aria-labelledby="change-title" hidden>
    <h2 id="change-title">Change units</h2>
    <p class="help">Hold a unit of the layer above at a value, or remove it: then it holds 0 after each token. Everything is shown beside what it was.</p>
    <form id="edit-form" class="options">
      <div><label for="edit-unit">Unit to change</label><input id="edit-unit" type="number" min="0" value="0" required></div>
      <div><label for="edit-part">State</label><select id="edit-part"></select></div>
      <div><label for="edit-value">Value</label><input id="edit-value" type="number" step="any" value="1" min="-1000000000" max="1000000000" aria-describedby="edit-problem"></div>
      <div class="plain"><button type="submit" id="hold">Hold</button></div>
      <div class="plain"><button type="button" id="remove">Remove</button></div>
    </form>
    <p id="edit-problem" class="problem" role="alert" hidden></p>
    <ul id="edits" aria-label="Changes"></ul>
    <div id="compared" aria-live="polite"></div>
    <div id="texts" class="two" hidden>
      <div><h3>As it is</h3><p class="said" id="old-text"></p></div>
      <div><h3>Changed</h3><p class="said" id="new-text"></p></div>
    </div>
  </section>
  <section id="near" aria-labelledby="near-title" hidden>
    <h2 id="near-title">Nearest contexts</h2>
    <p class="help" id="near-help"></p>
    <button type="button" id="find">Find contexts</button>
    <div id="contexts" aria-live="polite"></div>
  </section>
</div>`;

const ENDS = {length: 'that many were asked for', time: 'the time was up', 'stop token': 'a token ended it', 'stop string': 'a string ended it'};
const CAN = {generate: 'writes', classify: 'classifies texts', tag: 'tags words'};
const MOST_COMPARED = 200, LISTED = 10;   // words of two continuations; units that are listed
const PAUSE = 400, MOST_TYPED = 1500;   // a text is read so many ms after the last key; the longest one, in characters

// What is the same for all: small makers and words.
function make(tag, cls, text) {
  const el = document.createElement(tag);
  if (cls) el.className = cls;
  if (text !== undefined) el.textContent = text;
  return el;
}
const percent = p => p >= 0.1 ? `${(100*p).toFixed(0)} %` : p >= 0.001 ? `${(100*p).toFixed(1)} %` : '< 0.1 %';
const short = x => Math.abs(x) >= 1000 || (x && Math.abs(x) < 0.001) ? x.toExponential(1) : x.toFixed(2);
const isSpecial = t => /^xx[a-z]+$/.test(t);
const visible = t => t.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/^ +$/, b => '␣'.repeat(b.length)) || '·';
const most = values => values.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9);
export const describe = facts => `A model that ${CAN[task(facts)]}: ${facts.parameters.toLocaleString('en')} parameters, ${facts.layers.length} recurrent layer${facts.layers.length === 1 ? '' : 's'}`;
const task = facts => facts.tasks.find(t => CAN[t]);

function paint(el, v, least = 0) {   // v from -1 to 1: strength of the colour, and which one
  el.style.setProperty('--v', Math.min(1, least + (1 - least)*Math.abs(v)).toFixed(3));
  el.classList.toggle('against', v < 0);
}
function floats(text) {   // from base64: float32, least byte first
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Float32Array.from({length: bytes.length/4}, (_, i) => view.getFloat32(4*i, true));
}
function tokenSpan(token, text, unknown = false) {
  const el = make('span', unknown ? 'token unknown' : 'token', visible(text));
  if (isSpecial(token) && !unknown) { el.classList.add('special'); el.textContent = token; }
  return el;
}
function bar(name, p, tag = 'div', changed) {   // a second bar for the changed net
  const row = make(tag, 'bar');
  const add = (label, v, cls) => {
    const track = make('span', 'track'), fill = make('span', `fill${cls}`);
    fill.style.setProperty('--v', v.toFixed(4));
    track.append(fill);
    row.append(label, track, make('span', `value${cls}`, percent(v)));
  };
  add(make('span', 'name', visible(name)), p, '');
  if (changed !== undefined) add(make('span'), changed, ' new');
  return row;
}

// One of many, by mouse and keyboard: arrows move, and what has the focus is chosen.
function choose(box, item, attribute) {
  for (const other of box.querySelectorAll(`[${attribute}]`)) {
    other.setAttribute(attribute, other === item);
    other.tabIndex = other === item ? 0 : -1;
  }
}
function roving(box, attribute, onChoose) {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1};
  const item = e => e.target.closest(`[${attribute}]`);
  box.addEventListener('keydown', e => {
    const all = [...box.querySelectorAll(`[${attribute}]`)], at = all.indexOf(item(e));
    if (at < 0) return;
    let to = at + (step[e.key] || 0);
    if (e.key === 'Home') to = 0;
    else if (e.key === 'End') to = all.length - 1;
    else if (!step[e.key]) return;
    e.preventDefault();
    all[Math.max(0, Math.min(to, all.length - 1))].focus();
  });
  box.addEventListener('focusin', e => { const el = item(e); if (el) { choose(box, el, attribute); onChoose(el); } });
  box.addEventListener('pointerdown', e => { const el = item(e); if (el) { el.focus(); e.preventDefault(); } });
}

// Light or dark: as the notebook says, which may differ from the system.
function notebookScheme() {
  const body = document.body, light = body.dataset.jpThemeLight, colab = document.documentElement.getAttribute('theme');
  if (light !== undefined) return light === 'true' ? 'light' : 'dark';
  if (colab) return colab === 'dark' ? 'dark' : 'light';
  if (body.classList.contains('vscode-dark')) return 'dark';
  return body.classList.contains('vscode-light') ? 'light' : 'light dark';
}

// ---- Pictures on a canvas ----
function sized(canvas, height) {
  const width = Math.max(canvas.clientWidth, 120), scale = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  const w = Math.round(width*scale), h = Math.round(height*scale);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const g = canvas.getContext('2d');
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, width, height);
  return [g, width, height];
}
const rgb = css => css.match(/[\d.]+/g).slice(0, 3).map(Number);
function ramp(low, mid, high) {   // 255 colours from -1 to 1, as numbers for an Uint32Array
  const made = new Uint32Array(256);
  for (let i = 0; i < 255; i++) {
    const v = (i - 127)/127, to = v < 0 ? low : high, s = Math.abs(v);
    const [r, g, b] = mid.map((m, k) => Math.round(m + (to[k] - m)*s));
    made[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return made;
}
function cells(values, rows, columns, scale, colours, at) {   // a picture with one pixel for each number
  const c = document.createElement('canvas');
  c.width = Math.max(columns, 1); c.height = Math.max(rows.length, 1);
  const g = c.getContext('2d'), image = g.createImageData(c.width, c.height), pixels = new Uint32Array(image.data.buffer);
  const n = values.length/Math.max(columns, 1), factor = 127/scale;
  for (let y = 0; y < rows.length; y++) for (let t = 0; t < columns; t++) {
    const v = values[t*n + rows[y]];
    pixels[y*columns + t] = v === v ? colours[Math.max(0, Math.min(254, Math.round(v*factor) + 127))] : 0;
  }
  g.putImageData(image, 0, 0);
  return c;
}
// Labels of tokens along the bottom: as many as have room.
function tokenAxis(g, tokens, left, width, top) {
  const w = width/tokens.length, every = Math.max(1, Math.ceil(44/w)), room = w*every - 4;
  g.textAlign = 'left'; g.textBaseline = 'top';
  for (let t = 0; t < tokens.length; t += every) {
    let name = visible(tokens[t]);
    while (name.length > 1 && g.measureText(name).width > room) name = name.length > 2 ? `${name.slice(0, -2)}…` : name.slice(0, 1);
    g.fillText(name, left + t*w + 1, top + 3);
  }
}

// ---- The explorer ----
export function mount(host, transport, {text = ''} = {}) {
  const root = host.attachShadow({mode: 'open'}), sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];
  root.append(new DOMParser().parseFromString(PAGE, 'text/html').body.firstElementChild);
  host.setAttribute('data-lm-suppress-shortcuts', 'true');   // keys are ours, not those of JupyterLab's cells
  const $ = id => root.getElementById(id);
  const facts = transport.facts, kind = task(facts), writes = kind === 'generate';
  let running = null;        // how to stop a text that is written
  let source = null;         // what is explored: {texts} or {tokens}
  let prompt = '', seed = null;
  let looking = 0, seen = text;   // readings that are under way; the text that was read last
  let data = null, values = null, order = [], scale = 1, columns = 0;   // the answer, and its numbers
  let at = 0, unit = 0, lines = null;   // the token and the unit that are chosen; states and gates of the unit
  let picked = false;   // whether the reader chose the unit: another text leaves it then
  let edits = [], colours = null, picture = null;
  const turns = {};          // only the newest answer of a kind is shown
  const abort = new AbortController();

  const say = words => { $('status').textContent = words; };
  function problem(error) {
    $('problem').hidden = !error;
    $('problem').textContent = error ? error.message : '';
    if (error) say('');
  }
  async function newest(name, work) {
    const mine = turns[name] = (turns[name] || 0) + 1, made = await work();
    return mine === turns[name] ? made : null;
  }
  const ask = async (name, body) => (await transport.ask(name, body)).answers;
  const active = () => edits.filter(e => e.on).map(({layer, unit, part, value}) => ({layer, unit, part, value}));
  function legend(el, low, high, both) {
    el.hidden = false;
    el.querySelector('.low').textContent = low;
    el.querySelector('.high').textContent = high;
    el.querySelector('.ramp').classList.toggle('both', both);
  }
  function option(el, label) {
    el.setAttribute('role', 'option');
    el.setAttribute('aria-selected', 'false');
    el.setAttribute('aria-label', label);
    el.title = label;
    el.tabIndex = -1;
    return el;
  }
  function clear() {
    for (const id of ['classes', 'tokens', 'detail', 'contexts', 'compared']) $(id).replaceChildren();
    for (const id of ['inside', 'change', 'near', 'texts', 'legend']) $(id).hidden = true;
    for (const name of ['explore', 'classify', 'traces', 'compare']) turns[name] = (turns[name] || 0) + 1;   // what is under way comes too late
    clearTimeout(turns.typing);
    data = lines = null;
  }
  function quiet(on) {   // while a text is typed, what is shown of it is not read out
    for (const id of ['detail', 'unit-said', 'compared']) $(id).setAttribute('aria-live', on ? 'off' : 'polite');
  }

  // ---- Writing ----
  const rules = () => {
    const made = {temperature: Number($('temperature').value)};
    if ($('top-p').value && made.temperature > 0) made.top_p = Number($('top-p').value);
    return made;
  };
  async function write() {
    if (running) return;
    problem(null); clear(); quiet(false);
    prompt = seen = $('text').value;
    $('answer-help').textContent = '';
    $('answer').hidden = false;
    running = new AbortController();
    $('stop').disabled = !transport.stream;
    say('Writing…');
    const body = {n_words: Number($('n-words').value), ...rules()};
    if ($('seed').value) body.seed = Number($('seed').value);
    let grown = [];
    try {
      const streams = transport.stream && facts.streams;
      const done = await (streams ? stream : whole)(body, t => { grown = t; });
      seed = done.seed;
      await explore({what: {tokens: grown}, words: prompt});
      say(`Done: ${done.tokens.length} tokens, as ${ENDS[done.ended] || done.ended}. Seed ${done.seed}.`);
    } catch (e) {
      if (e.name === 'AbortError') await explore({what: {tokens: grown}, words: prompt}).then(() => say('Stopped.')).catch(problem);
      else { problem(e); if (!$('tokens').children.length) $('answer').hidden = true; }
    }
    running = null;
    $('stop').disabled = true;
  }
  async function stream(body, keep) {
    let n = 0, grown = [];
    for await (const [name, e] of transport.stream({prompt, ...body}, running.signal)) {
      if (name === 'start') { grown = e.tokens; $('tokens').append(make('span', 'token given', e.text)); }
      else if (name === 'token') {
        grown.push(e.token);
        $('tokens').append(e.text);
        if (++n % 10 === 0) say(`Writing: ${n} tokens.`);
      } else if (name === 'failed') throw new Error(e.error);
      else return {seed: e.seed, ...e.texts[0]};
      keep(grown);
    }
    throw new Error('The server stopped before the text was done.');
  }
  async function whole(body, keep) {   // in a notebook, and of a model that writes from the end to the beginning
    const [a] = await ask('compare', {texts: [prompt], ...body, n_words: Math.min(body.n_words, MOST_COMPARED)});
    keep([...a.start, ...a.old.tokens]);
    return {seed: a.seed, ...a.old};
  }
  // ---- Reading ----
  async function look(gently = false) {   // as asked; or gently, while the text is typed
    clearTimeout(turns.typing);
    const words = $('text').value;
    if (running || (gently && (looking || words === seen || !words.trim()))) return;
    if (gently && words.length > MOST_TYPED) {
      say(`A text of more than ${MOST_TYPED.toLocaleString('en')} characters is not read while you type; choose ${$(writes ? 'read' : 'go').textContent}.`);
      return;
    }
    if (!gently) {
      problem(null); clear(); quiet(false);
      $('answer').hidden = !words.trim();
      if (!words.trim()) { problem(new Error('There is nothing to read yet. Type a text first.')); return; }
      say('Reading…');
    }
    seen = words;
    looking += 1;
    try {
      const about = kind === 'classify' ? await newest('classify', () => classify(words)) : true;
      if (about && await explore({what: {texts: [words]}, words, about, gently})) say(gently ? 'Read.' : 'Done.');
    } catch (e) {
      if (gently) say(e.message);
      else { problem(e); $('answer').hidden = true; }
    }
    looking -= 1;
    if (!looking && $('text').value !== seen) typed();
  }
  function typed() {
    clearTimeout(turns.typing);
    turns.typing = setTimeout(() => look(true), PAUSE);
  }

  // ---- Classes and tags ----
  let explained = null;   // saliency of a text's tokens, or why there is none
  async function classify(text, label) {
    const body = {texts: [text]};
    if (label !== undefined) body.label = label;
    try { return (await ask('classify', facts.explains ? {...body, saliency: true} : body))[0]; }
    catch (e) {
      if (!facts.explains || label !== undefined) throw e;
      return {...(await ask('classify', body))[0], why: e.message};
    }
  }
  function drawClasses() {
    const a = data.answer, box = $('classes'), changed = data.changed && data.changed.answer;
    const best = [].concat(changed ? changed.label : []);
    if (a.values) {
      const words = v => v.map(x => x.toFixed(3)).join(', ');
      box.replaceChildren(make('p', '', words(a.values) + (changed ? `; changed: ${words(changed.values)}` : '')));
      return;
    }
    box.replaceChildren(...facts.labels.map((name, i) => {   // in the order of their numbers; an object's names that are numbers come sorted
      const p = a.probabilities[name], q = changed ? changed.probabilities[name] : undefined, row = bar(name, p, 'button', q);
      const chosen = facts.explains && explained.explained !== undefined ? i === explained.explained : [].concat(a.label).includes(name);
      row.type = 'button';
      row.dataset.label = i;
      row.setAttribute('role', 'radio');
      row.setAttribute('aria-checked', chosen);
      row.setAttribute('aria-label', `${name}, ${percent(p)}${changed ? `, changed ${percent(q)}` : ''}`);
      row.tabIndex = i === (explained.explained ?? 0) ? 0 : -1;
      row.classList.toggle('chosen', [].concat(a.label).includes(name) || best.includes(name));
      return row;
    }));
  }
  function drawSaliency() {   // over the tokens that are shown, where all are
    const els = [...$('tokens').children], s = explained.saliency;
    if (!s || s.length !== els.length) {
      $('answer-help').textContent = explained.why || 'Choose a token to see what the units hold after it.';
      $('legend').hidden = true;
      return;
    }
    const name = explained.values ? 'the value' : facts.labels[explained.explained], top = most(s);
    $('answer-help').textContent = `Warm words speak for ${name}, cool words against it (gradient times input).`;
    els.forEach((el, i) => {
      paint(el, s[i]/top);
      el.setAttribute('aria-label', `${data.names[i]}, adds ${s[i].toFixed(3)}`);
      el.title = el.getAttribute('aria-label');
      el.detail = `${data.names[i]} adds ${s[i].toFixed(4)} to the score of ${name}.`;
    });
    legend($('legend'), 'against', 'for', true);
  }
  async function explainWord(el) {
    const i = Number(el.dataset.word), [a] = await ask('tag', {texts: [prompt], saliency_of: i});
    if (!el.isConnected || el.getAttribute('aria-selected') !== 'true') return;   // another word was chosen meanwhile, or another text
    const els = [...$('tokens').querySelectorAll('.tagged')], top = most(a.saliency);
    els.forEach((w, k) => paint(w, a.saliency[k]/top));
    const first = a.saliency.map((s, k) => [s, k]).sort((x, y) => Math.abs(y[0]) - Math.abs(x[0])).slice(0, 5);
    const list = make('p'), head = make('p');
    list.append('What adds most to its score: ');
    first.forEach(([s, k], j) => list.append(j ? ', ' : '', make('code', '', a.words[k]), ` ${s.toFixed(3)}`));
    head.append(make('code', '', a.words[i]), ` is tagged ${a.tags[i]}.`);
    $('detail').replaceChildren(head, list);
  }

  // ---- What is explored ----
  async function explore(next = {}) {   // the same text; or another: `what`, made of `words`
    const what = next.what || source, body = {...what, layer: Number($('layer').value), part: $('part').value || 'h', edits: active()};
    const made = await newest('explore', () => ask('explore', body));
    if (!made) return false;
    problem(null);
    [data] = made;
    data.names = data.shown.map((name, i) => data.typed[i] ?? name);
    lines = null;
    if (next.what) {
      [source, prompt, explained] = [what, next.words, next.about];
      at = Infinity;   // the last token
      if (!picked) unit = null;   // the one that varies most
      $('texts').hidden = true;
    }
    values = floats(data.values);
    columns = data.steps.length;
    at = Math.max(0, Math.min(at, columns - 1));
    rank();
    drawAll();
    const chosen = options().find(el => el.getAttribute('aria-selected') === 'true');
    await Promise.all([trace(), chosen && tell(chosen).catch(problem), next.gently || continueBoth()]);   // no text is written while one is typed
    return true;
  }
  async function tell(el) {   // of a token that is chosen
    if (kind === 'classify') $('detail').textContent = el.detail || '';
    else if (kind === 'tag' && facts.explains) await explainWord(el);
  }
  function rank() {   // units by how much they vary over the text, and the scale of the colours
    const n = data.units.length, spread = new Float64Array(n);
    scale = 1e-9;
    for (let u = 0; u < n; u++) {
      let s = 0, ss = 0;
      for (let t = 0; t < columns; t++) { const v = values[t*n + u] || 0; s += v; ss += v*v; scale = Math.max(scale, Math.abs(v)); }
      spread[u] = ss/columns - (s/columns)**2;
    }
    order = [...Array(n).keys()];
    const varied = [...order].sort((a, b) => spread[b] - spread[a]);
    if ($('order').value === 'spread') order = varied;
    picture = null;
    if (!data.units.includes(unit)) $('edit-unit').value = unit = data.units[varied[0]];
    drawUnits(varied.slice(0, LISTED));
  }

  // ---- Tokens ----
  function tokenLabel(i) {
    const name = data.names[i] + (data.typed[i] === null ? '' : ', unknown to the model'), p = data.p && data.p[i], q = data.changed && data.changed.p && data.changed.p[i];
    if (p === null || p === undefined) return name;
    return `${name}, probability ${percent(p)}${data.changed ? `, changed ${percent(q)}` : ''}`;
  }
  function drawTokens() {
    const box = $('tokens'), sampled = data.n_tokens > columns;
    if (kind === 'tag') drawTags();
    else {
      const els = data.tokens.map((t, i) => option(tokenSpan(t, data.names[i], data.typed[i] !== null), tokenLabel(i)));
      box.replaceChildren(...els.flatMap(el => [el, ' ']).slice(0, -1));
      if (writes) els.forEach((el, i) => paint(el, colourOf(i)));
    }
    const help = {generate: `The stronger the colour of a token, the ${data.changed ? 'more the change takes from it (warm) or gives it (cool)' : 'less likely the model found it'}. Choose a token to see what else it may have been.`,
      tag: facts.explains ? 'Choose a word to see which words its tag rests on: warm ones speak for it, cool ones against.' : ''}[kind];
    if (kind !== 'classify') $('answer-help').textContent = help;
    if (kind === 'classify') { drawClasses(); drawSaliency(); }
    else if (writes) legend($('legend'), data.changed ? 'likelier than before' : 'likely', data.changed ? 'less likely than before' : 'one in 1,000', !!data.changed);
    else if (facts.explains) legend($('legend'), 'against', 'for', true);
    if (writes && facts.backwards) $('answer-help').textContent += ' This model reads and writes from the end to the beginning.';
    if (sampled) $('answer-help').textContent += ` The text has ${data.n_tokens.toLocaleString('en')} tokens, and all were read; ${columns} of them are shown, evenly spaced, with the last.`;
    $('answer').hidden = false;
    const all = options();
    if (all.length) choose(box, all[Math.min(at, all.length - 1)], 'aria-selected');
  }
  const options = () => [...$('tokens').querySelectorAll('[role=option]')];
  function colourOf(i) {   // surprise; with a change, how much of it the change makes
    const p = data.p[i];
    if (p === null) return 0;
    const lost = Math.log(p || 1e-9);
    return Math.max(-1, Math.min(1, (data.changed ? lost - Math.log(data.changed.p[i] || 1e-9) : -lost)/Math.log(1000)));
  }
  function drawTags() {
    const a = data.answer, changed = data.changed && data.changed.answer;
    $('tokens').replaceChildren(...a.words.map((word, i) => {
      const differs = changed && changed.tags[i] !== a.tags[i];
      const el = option(make('span', 'token tagged', word), `${word}, ${a.tags[i]}${differs ? `, changed ${changed.tags[i]}` : ''}`);
      el.append(make('small', '', a.tags[i]));
      if (differs) el.append(make('small', 'new', changed.tags[i]));
      el.dataset.word = i;
      return el;
    }));
  }
  function chance(box, title, list, chosen) {   // likeliest tokens, before and after the change
    if (!list || !list.length) return;
    const part = make('div'), bars = make('div', 'bars');
    for (const [token, p, q] of list) {
      const row = bar(token, p, 'div', q);
      row.classList.toggle('chosen', token === chosen);
      row.setAttribute('role', 'img');
      row.setAttribute('aria-label', `${token}, ${percent(p)}${q === undefined ? '' : `, changed ${percent(q)}`}`);
      bars.append(row);
    }
    part.append(make('h3', '', title));
    if (data.changed) {
      const key = make('p', 'key');
      key.append(make('b', '', 'as it is'), ' and ', make('b', 'new', 'changed'));
      part.append(key);
    }
    part.append(bars);
    box.append(part);
  }
  function drawDetail() {
    const box = $('detail');
    if (!writes) return;
    const head = make('p'), p = data.p[at], bars = make('div', 'two'), name = data.shown[at];
    if (data.typed[at] !== null) head.append(make('code', '', data.names[at]), ' is unknown to the model, which reads ', make('code', '', name), ' in its place. ');
    if (p === null) head.append(make('code', '', name), ' begins the text.');
    else head.append('The model gave ', make('code', '', name), ` a probability of ${percent(p)}`, data.changed ? `; changed, ${percent(data.changed.p[at])}.` : '.');
    chance(bars, 'What it may have been', data.alternatives[at], name);
    chance(bars, 'What may come next', data.next[at], data.shown[at + 1]);
    box.replaceChildren(head, bars);
  }

  // ---- Units ----
  const held = (t, u) => values[t*data.units.length + u];
  function theme() {   // colours as they are in this scheme
    const probe = make('i');
    root.append(probe);
    const colour = name => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
    colours = Object.fromEntries(['ink', 'soft', 'hair', 'accent', 'changed', 'card', 'warm', 'cool'].map(n => [n, colour(n)]));
    probe.remove();
    colours.ramp = ramp(rgb(colours.cool), rgb(colours.card), rgb(colours.warm));
    picture = null;
  }
  function drawUnits(listed) {
    if (!colours) theme();
    const row = k => data.units.indexOf(unit) === k;
    $('units').replaceChildren(...listed.map((k, i) => {
      const el = make('button', 'unit'), strip = make('canvas');
      el.type = 'button';
      el.dataset.unit = data.units[k];
      el.setAttribute('role', 'radio');
      el.setAttribute('aria-checked', row(k));
      el.setAttribute('aria-label', `Unit ${data.units[k]}`);
      el.tabIndex = row(k) || (i === 0 && !listed.some(row)) ? 0 : -1;
      const small = cells(values, [k], columns, scale, colours.ramp);
      strip.width = small.width; strip.height = 1;
      strip.style.imageRendering = 'pixelated';
      strip.getContext('2d').drawImage(small, 0, 0);
      el.append(make('span', '', `Unit ${data.units[k]}`), strip);
      return el;
    }));
  }
  const LEFT = 46, FOOT = 20;
  const rowHeight = () => Math.max(1, Math.min(14, 300/order.length));
  function drawMap() {
    const h = rowHeight(), [g, width, height] = sized($('map'), order.length*h + FOOT), w = (width - LEFT)/columns;
    picture ||= cells(values, order, columns, scale, colours.ramp);
    g.imageSmoothingEnabled = false;
    g.drawImage(picture, LEFT, 0, width - LEFT, height - FOOT);
    g.font = '11px system-ui, sans-serif'; g.fillStyle = colours.soft; g.textAlign = 'right'; g.textBaseline = 'middle';
    const every = Math.max(1, Math.ceil(14/h));
    for (let y = 0; y < order.length; y += every) g.fillText(data.units[order[y]], LEFT - 5, Math.max((y + .5)*h, 6));
    tokenAxis(g, data.names, LEFT, width - LEFT, height - FOOT);
    const y = order.indexOf(data.units.indexOf(unit));
    g.strokeStyle = colours.ink; g.lineWidth = 1.5;
    g.strokeRect(LEFT + at*w, 0, Math.max(w, 2), height - FOOT);
    g.strokeRect(LEFT, y*h - .5, width - LEFT, Math.max(h, 2) + 1);
  }
  function drawUnit() {   // the text, coloured by the unit
    const k = data.units.indexOf(unit), box = $('unit-text');
    let low = Infinity, high = -Infinity;
    for (let t = 0; t < columns; t++) { const v = held(t, k); low = Math.min(low, v); high = Math.max(high, v); }
    const top = Math.max(Math.abs(low), Math.abs(high), 1e-9);
    if (box.children.length !== columns || box.of !== data) {
      box.replaceChildren(...data.tokens.flatMap((t, i) => [tokenSpan(t, data.names[i], data.typed[i] !== null), ' ']).slice(0, -1));
      box.of = data;
    }
    [...box.children].forEach((el, t) => {
      const v = held(t, k);
      paint(el, v/top);
      el.title = `${data.names[t]}${data.typed[t] === null ? '' : ' (unknown to the model)'}: ${v.toFixed(3)}`;
      el.classList.toggle('at', t === at);
    });
    $('unit-title').textContent = `Unit ${unit} of ${data.layer}, ${data.part}`;
    box.setAttribute('aria-label', `Unit ${unit} over the text: from ${low.toFixed(2)} to ${high.toFixed(2)}`);
    sayUnit();
    legend($('unit-legend'), (-top).toFixed(2), top.toFixed(2), true);
    if (Number($('unit').value) !== unit) $('unit').value = unit;
  }
  function sayUnit() {   // with a change, when its numbers are there
    const changed = lines && lines.unit === unit && lines.new && lines.new[data.part];
    if (data.changed && !changed) return;
    const now = held(at, data.units.indexOf(unit)).toFixed(3);
    $('unit-said').textContent = `After ${data.names[at]}, unit ${unit} holds ${now}${changed ? `; changed, ${changed[at].toFixed(3)}` : ''}.`;
  }
  async function trace() {
    const body = {...source, units: [unit], layer: Number($('layer').value), edits: active()};
    const made = await newest('traces', () => ask('traces', body));
    if (!made || !made[0].traces.length) return;
    lines = made[0].traces[0];
    drawTraces(); sayUnit();
  }
  function drawTraces() {
    if (!lines || !colours) return;
    const parts = Object.keys(lines.old), H = 58, [g, width] = sized($('traces'), parts.length*H + FOOT), w = (width - LEFT)/columns;
    g.font = '11px system-ui, sans-serif';
    parts.forEach((p, i) => {
      const all = [...lines.old[p], ...(lines.new ? lines.new[p] : [])], top = i*H + 17, height = H - 22;
      let low = Math.min(...all), high = Math.max(...all);
      if (high - low < 1e-6) { low -= .5; high += .5; }
      const y = v => top + (high - v)/(high - low)*height;
      g.fillStyle = colours.ink; g.textAlign = 'left'; g.textBaseline = 'alphabetic';
      g.fillText(p, LEFT, top - 5);
      g.fillStyle = colours.soft; g.textAlign = 'right'; g.textBaseline = 'middle';
      g.fillText(short(high), LEFT - 5, top + 3); g.fillText(short(low), LEFT - 5, top + height - 3);
      g.strokeStyle = colours.hair; g.lineWidth = 1; g.strokeRect(LEFT + .5, top - .5, width - LEFT - 1, height + 1);
      const line = (v, colour, dash) => {
        g.strokeStyle = colour; g.lineWidth = 1.6; g.setLineDash(dash); g.beginPath();
        v.forEach((x, t) => g.lineTo(LEFT + (t + .5)*w, y(x)));
        g.stroke(); g.setLineDash([]);
      };
      line(lines.old[p], colours.accent, []);
      if (lines.new) line(lines.new[p], colours.changed, [5, 3]);
      g.fillStyle = colours.soft; g.globalAlpha = .22; g.fillRect(LEFT + at*w, top, Math.max(w, 2), height); g.globalAlpha = 1;
    });
    g.fillStyle = colours.soft;
    tokenAxis(g, data.names, LEFT, width - LEFT, parts.length*H);
    const range = v => `${Math.min(...v).toFixed(2)} to ${Math.max(...v).toFixed(2)}`;
    $('traces').setAttribute('aria-label', `Unit ${lines.unit}: ${parts.map(p => `${p} from ${range(lines.old[p])}${lines.new ? `, changed ${range(lines.new[p])}` : ''}`).join('; ')}`);
    $('traces-help').textContent = `Each line goes from the least to the largest value that is written beside it.${lines.new ? ' Solid as it is, dashed changed.' : ''}`;
  }
  function pickUnit(u) {
    if (!data.units.includes(u)) {
      problem(new Error(`Unit ${u} is not there${data.n_units > data.units.length ? ', or not among those shown' : ''}; the numbers are 0 to ${data.n_units - 1}.`));
      $('unit').value = unit;
      return;
    }
    problem(null);
    picked = true;
    unit = u;
    $('edit-unit').value = u;
    drawCursor();
    clearTimeout(turns.timer);
    turns.timer = setTimeout(() => trace().catch(problem), 60);   // not for each unit that is passed
  }
  function pickToken(t) {
    at = Math.max(0, Math.min(t, columns - 1));
    const all = options();
    if (all.length === columns) choose($('tokens'), all[at], 'aria-selected');
    $('contexts').replaceChildren();
    drawDetail(); drawCursor(); drawTraces();
  }
  function drawCursor() {
    drawMap(); drawUnit();
    for (const el of $('units').children) {
      const mine = Number(el.dataset.unit) === unit;
      el.setAttribute('aria-checked', mine);
      if (mine) choose($('units'), el, 'aria-checked');
    }
  }
  function drawAll() {
    if (!colours) theme();
    const parts = $('part'), states = $('edit-part');
    if (parts.of !== data.layer) {
      for (const [el, names] of [[parts, data.parts], [states, data.states]]) el.replaceChildren(...names.map(p => new Option(p, p)));
      parts.of = data.layer;
    }
    parts.value = data.part;
    const hidden = data.n_units - data.units.length;
    $('inside-help').textContent = `What the ${data.n_units.toLocaleString('en')} units of a layer hold after each token.` +
      (hidden ? ` The ${data.units.length.toLocaleString('en')} that vary most are shown.` : '');
    $('unit').max = $('edit-unit').max = data.n_units - 1;
    for (const id of ['inside', 'change', 'near']) $(id).hidden = false;
    $('find').disabled = !facts.recording;
    drawTokens(); drawDetail(); drawCursor(); drawTraces(); drawChange();
  }

  // ---- Changes ----
  function editProblem(words) {
    $('edit-problem').hidden = !words;
    $('edit-problem').textContent = words;
    $('edit-value').setAttribute('aria-invalid', !!words);
    if (words) $('edit-value').focus();
  }
  function hold() {
    if ($('edit-value').value === '') editProblem('Value is empty: type the number that the unit is to hold, or choose Remove.');
    else addEdit(Number($('edit-value').value));
  }
  function addEdit(value) {
    editProblem('');
    const n = Number($('edit-unit').value);
    if (!$('edit-form').reportValidity()) return;
    const edit = {layer: Number($('layer').value), name: data.layer, unit: n, part: $('edit-part').value, value, on: true};
    edits = [...edits.filter(e => !(e.layer === edit.layer && e.unit === n && e.part === edit.part)), edit];
    drawEdits();
    if (data.units.includes(n)) pickUnit(n);
    again();
  }
  function drawEdits() {
    $('edits').replaceChildren(...edits.map((e, i) => {
      const li = make('li'), label = make('label'), box = make('input'), drop = make('button', '', '×');
      const name = `Unit ${e.unit} of ${e.name}, ${e.part}: ${e.value === null ? 'removed' : `held at ${e.value}`}`;
      box.type = 'checkbox'; box.checked = e.on;
      box.setAttribute('role', 'switch');
      box.addEventListener('change', () => { e.on = box.checked; again(); });
      drop.type = 'button';
      drop.setAttribute('aria-label', `Forget: ${name}`);
      drop.addEventListener('click', () => {
        edits.splice(i, 1);
        drawEdits(); again();
        ($('edits').querySelector('button') || $('edit-unit')).focus();
      });
      label.append(box, name);
      li.append(label, drop);
      return li;
    }));
  }
  function again() {
    say('Reading…');
    explore().then(() => say(data.changed ? 'Changed.' : 'As it is.')).catch(problem);
  }
  function drawChange() {
    const box = $('compared');
    box.replaceChildren();
    if (!data.changed) { $('texts').hidden = true; return; }
    if (!writes) {
      const words = a => a.values ? a.values.map(v => v.toFixed(3)).join(', ') : a.tags ? a.tags.join(' ') : [].concat(a.label).join(', ') || 'none';
      box.append(make('p', '', `As it is: ${words(data.answer)}. Changed: ${words(data.changed.answer)}.`));
      return;
    }
    const next = data.next[columns - 1], top = k => [...next].sort((a, b) => b[k] - a[k])[0], [o, n] = [top(1), top(2)];
    const perplexity = x => x === null ? 'not known' : x < 1e5 ? x.toFixed(2) : x.toExponential(1);
    box.append(make('p', '', `Perplexity of the text: ${perplexity(data.perplexity)}, changed ${perplexity(data.changed.perplexity)}. ` +
      `Likeliest next token: ${visible(o[0])} (${percent(o[1])}), changed ${visible(n[0])} (${percent(n[2])}).`));
  }
  async function continueBoth() {
    if (!writes || !active().length) return;
    const body = {texts: [prompt], edits: active(), n_words: Math.min(Number($('n-words').value) || 20, MOST_COMPARED), ...rules()};
    const chosen = $('seed').value ? Number($('seed').value) : seed;
    if (chosen !== null) body.seed = chosen;
    const made = await newest('compare', () => ask('compare', body));
    if (!made || !active().length) return;
    const [{old, new: changed, seed: used}] = made;
    seed = used;
    $('old-text').textContent = old.text;
    let same = 0;
    while (same < old.text.length && old.text[same] === changed.text[same]) same++;
    $('new-text').replaceChildren(changed.text.slice(0, same), make('span', 'new', changed.text.slice(same)));
    $('texts').hidden = false;
  }

  // ---- Contexts ----
  async function find() {
    const body = {...source, step: data.steps[at], layer: Number($('layer').value), part: data.part};
    $('contexts').replaceChildren(make('p', 'help', 'Looking…'));
    try {
      const made = await newest('nearest', () => ask('nearest', body));
      if (!made) return;
      const table = make('table'), head = make('tr'), caption = make('caption', 'help', `Where ${data.part} of ${data.layer} was nearest to what it is after ${visible(data.names[at])}`);
      for (const [name, cls] of [['Distance', 'number'], ['Text', 'number'], ['Token', 'number'], ['Context', '']]) head.append(make('th', cls, name));
      table.append(caption, head);
      for (const c of made[0].contexts) {
        const row = make('tr');
        row.append(make('td', 'number', short(c.distance)), make('td', 'number', c.doc), make('td', 'number', c.step), make('td', '', c.context));
        table.append(row);
      }
      $('contexts').replaceChildren(table);
    } catch (e) { $('contexts').replaceChildren(); problem(e); }
  }

  // ---- Start ----
  function names() {
    $('answer-title').textContent = {classify: 'Class', tag: 'Tags'}[kind] || 'Text';
    if (!writes) {
      $('rules').hidden = $('read').hidden = $('stop').hidden = true;
      const word = kind === 'classify' ? 'Classify' : 'Tag';
      $('ask-title').textContent = $('go').textContent = word;
      $('text-label').textContent = kind === 'classify' ? 'Text' : 'Sentence';
      $('text-help').textContent = '';
    }
    $('text-help').append(` A text of up to ${MOST_TYPED.toLocaleString('en')} characters is read while you type. Ctrl+Enter ${writes ? 'writes' : 'asks the model'}.`);
    $('stop').hidden = !transport.stream || !writes;
    $('n-words').max = transport.stream && facts.streams ? facts.limits.max_words : Math.min(facts.limits.max_words, MOST_COMPARED);
    $('text').maxLength = facts.limits.max_chars;
    $('text').value = text;
    $('layer').replaceChildren(...facts.layers.map((l, i) => new Option(`${l.name} (${l.units} units)`, i)));
    $('near-help').textContent = facts.recording ? `Where a recording of ${facts.recording} held a state like the one after the chosen token.` :
      transport.remedy;
  }
  const submit = () => writes ? write() : look();
  names();
  $('ask-form').addEventListener('submit', e => { e.preventDefault(); submit(); });
  $('ask-form').addEventListener('keydown', e => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) $('ask-form').requestSubmit(); });
  $('stop').addEventListener('click', () => running && running.abort());
  $('read').addEventListener('click', () => look());
  $('text').addEventListener('input', () => { quiet(true); typed(); });
  $('text').addEventListener('blur', () => quiet(false));
  $('layer').addEventListener('change', () => { $('part').value = 'h'; $('contexts').replaceChildren(); explore().catch(problem); });
  $('part').addEventListener('change', () => { $('contexts').replaceChildren(); explore().catch(problem); });
  $('order').addEventListener('change', () => { rank(); drawCursor(); });
  $('unit').addEventListener('change', () => { if ($('unit').value !== '') pickUnit(Number($('unit').value)); });
  $('edit-form').addEventListener('submit', e => { e.preventDefault(); hold(); });
  $('edit-value').addEventListener('input', () => editProblem(''));
  $('remove').addEventListener('click', () => addEdit(null));
  $('find').addEventListener('click', find);
  roving($('tokens'), 'aria-selected', el => {
    const i = options().indexOf(el);
    if (options().length === columns) pickToken(i);
    tell(el).catch(problem);
  });
  roving($('classes'), 'aria-checked', el => facts.explains && classify(prompt, Number(el.dataset.label)).then(a => { explained = a; drawSaliency(); }).catch(problem));
  roving($('units'), 'aria-checked', el => pickUnit(Number(el.dataset.unit)));
  $('map').addEventListener('pointerdown', e => {
    const box = $('map').getBoundingClientRect(), t = Math.floor((e.clientX - box.left - LEFT)/(box.width - LEFT)*columns);
    const y = Math.floor((e.clientY - box.top)/rowHeight());
    if (t >= 0) pickToken(t);
    if (y >= 0 && y < order.length) pickUnit(data.units[order[y]]);
  });
  $('map').addEventListener('keydown', e => {
    const y = order.indexOf(data.units.indexOf(unit)), to = d => data.units[order[Math.max(0, Math.min(y + d, order.length - 1))]];
    const act = {ArrowLeft: () => pickToken(at - 1), ArrowRight: () => pickToken(at + 1), Home: () => pickToken(0), End: () => pickToken(columns - 1),
      ArrowUp: () => pickUnit(to(-1)), ArrowDown: () => pickUnit(to(1)), PageUp: () => pickUnit(to(-10)), PageDown: () => pickUnit(to(10))}[e.key];
    if (act) { e.preventDefault(); act(); }
  });
  const redraw = () => { if (data) { theme(); rank(); drawCursor(); drawTraces(); } };
  const sizes = new ResizeObserver(() => { if (data) { drawMap(); drawTraces(); } });
  sizes.observe(host);
  const follow = () => { host.style.colorScheme = notebookScheme(); colours = null; redraw(); };
  const watch = new MutationObserver(follow);
  watch.observe(document.body, {attributes: true, attributeFilter: ['class', 'data-jp-theme-light']});
  watch.observe(document.documentElement, {attributes: true, attributeFilter: ['theme']});
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', follow, {signal: abort.signal});
  follow();
  if (text) look();
  return {redraw, close() { clearTimeout(turns.typing); sizes.disconnect(); watch.disconnect(); abort.abort(); if (running) running.abort(); }};
}

// ---- To a server ----
export async function server() {
  const gone = () => new Error('The server does not answer. Is it still running?');
  async function post(path, body, signal) {
    let res;
    try { res = await fetch(path, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body), signal}); }
    catch (e) { throw e.name === 'AbortError' ? e : gone(); }
    if (!res.ok) throw new Error((await res.json().catch(() => ({}))).error || `The server answered ${res.status}.`);
    return res;
  }
  async function* stream(body, signal) {
    const res = await post('generate', {...body, stream: true}, signal), reader = res.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      const parts = (rest + value).split('\n\n');
      rest = parts.pop();
      for (const part of parts) {
        const rows = part.split('\n').filter(Boolean);
        if (rows.length === 2) yield [rows[0].slice(7), JSON.parse(rows[1].slice(6))];
      }
    }
  }
  let facts;
  try { facts = await (await fetch('health')).json(); } catch { throw gone(); }
  return {facts, stream, ask: async (name, body) => (await post(name, body)).json(),
    remedy: 'There is no recording to look in. Start the server with one: rnn_fastai serve FOLDER --recording FOLDER.'};
}

// ---- To a notebook's kernel ----
function kernel(model) {
  const view = Math.random().toString(36).slice(2), waiting = new Map();   // a widget may be shown twice
  let n = 0;
  const hear = message => {
    const open = waiting.get(message.id);
    if (!open) return;
    waiting.delete(message.id);
    if (message.error !== undefined) open.reject(new Error(message.error));
    else open.resolve(message.answer);
  };
  model.on('msg:custom', hear);
  return {facts: model.get('facts'), close: () => model.off('msg:custom', hear),
    ask: (name, body) => new Promise((resolve, reject) => {
      const id = `${view}-${n += 1}`;
      waiting.set(id, {resolve, reject});
      model.send({id, task: name, body});
    }),
    remedy: 'There is no recording to look in. Make the explorer with one: learn.explore(recording=learn.record(texts)).'};
}
export default {
  render({model, el}) {
    const to = kernel(model), host = document.createElement('div');
    el.append(host);
    const made = mount(host, to, {text: model.get('text')});
    return () => { made.close(); to.close(); };
  },
};
