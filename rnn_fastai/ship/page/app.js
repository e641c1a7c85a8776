// The page of the server: it asks for what the model can do, and shows that. All texts go in by textContent.
'use strict';

const $ = id => document.getElementById(id);
let facts = null, running = null, shown = '';   // what is served; how to stop a text; the text, or the tokens, that are looked into
let grown = [];   // tokens of the text that is written, with those of its prompt

function make(tag, cls, text) {
  const el = document.createElement(tag);
  if (cls) el.className = cls;
  if (text !== undefined) el.textContent = text;
  return el;
}
const percent = p => p >= 0.1 ? `${(100*p).toFixed(0)} %` : p >= 0.001 ? `${(100*p).toFixed(1)} %` : '< 0.1 %';
const isSpecial = t => /^xx[a-z]+$/.test(t);
const say = text => { $('status').textContent = text; };

function problem(error) {
  $('problem').hidden = !error;
  $('problem').textContent = error ? error.message : '';
  if (error) say('');
}

function paint(el, v, least = 0) {   // v from -1 to 1: strength of the colour, and which one
  el.style.setProperty('--v', Math.min(1, least + (1 - least)*Math.abs(v)).toFixed(3));
  el.classList.toggle('against', v < 0);
}

async function ask(path, body, signal) {
  let res;
  try {
    res = await fetch(path, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body), signal});
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    throw new Error('The server does not answer. Is it still running?');
  }
  if (!res.ok) throw new Error((await res.json().catch(() => ({}))).error || `The server answered ${res.status}.`);
  return res;
}
const answers = async (path, body) => (await (await ask(path, body)).json()).answers;

function legend(el, low, high, both) {
  el.hidden = false;
  el.querySelector('.low').textContent = low;
  el.querySelector('.high').textContent = high;
  el.querySelector('.ramp').classList.toggle('both', both);
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
  const items = () => [...box.querySelectorAll(`[${attribute}]`)];
  const take = item => { choose(box, item, attribute); onChoose(item); };
  box.addEventListener('keydown', e => {
    const all = items(), at = all.indexOf(e.target.closest(`[${attribute}]`));
    if (at < 0) return;
    let to = at + (step[e.key] || 0);
    if (e.key === 'Home') to = 0;
    else if (e.key === 'End') to = all.length - 1;
    else if (!step[e.key]) return;
    e.preventDefault();
    all[Math.max(0, Math.min(to, all.length - 1))].focus();
  });
  box.addEventListener('focusin', e => { const item = e.target.closest(`[${attribute}]`); if (item) take(item); });
  box.addEventListener('pointerdown', e => { const item = e.target.closest(`[${attribute}]`); if (item) { item.focus(); e.preventDefault(); } });
}

function bar(name, p, tag = 'div') {
  const row = make(tag, 'bar'), track = make('span', 'track'), fill = make('span', 'fill');
  fill.style.setProperty('--v', p.toFixed(4));
  track.append(fill);
  row.append(make('span', 'name', name), track, make('span', 'value', percent(p)));
  return row;
}

function tokenSpan(token, text) {
  const el = make('span', 'token', text ? text.trim() || text.replace(/\n/g, '↵\n') : token);
  if (isSpecial(token)) { el.classList.add('special'); el.textContent = token; }
  return el;
}
function option(el, label) {
  el.setAttribute('role', 'option');
  el.setAttribute('aria-selected', 'false');
  el.setAttribute('aria-label', label);
  el.title = label;
  const first = !$('tokens').querySelector('[role=option]');
  el.tabIndex = first ? 0 : -1;
  return el;
}

function openAnswer(title, help) {
  for (const id of ['classes', 'tokens', 'detail', 'units', 'unit-text']) $(id).replaceChildren();
  $('unit-legend').hidden = true;
  $('answer-title').textContent = title;
  $('answer-help').textContent = help;
  $('answer').hidden = false;
  $('inside').hidden = true;
}
function openInside(what) {
  shown = what;
  $('inside').hidden = !(what.trim ? what.trim() : what).length || !facts.layers.length;
}

// ---- Writing ----
function addToken(e) {
  const el = option(tokenSpan(e.token, e.text), `${e.token}, probability ${percent(e.p)}`);
  paint(el, Math.min(1, -Math.log(e.p || 1e-9)/Math.log(1000)));   // a token of one in a thousand has the full colour
  el.detail = e;
  $('tokens').append(e.text.trim() ? e.text.match(/^\s*/)[0] : '', el);   // blanks before a word have no colour
}
function showToken(el) {
  const e = el.detail, box = $('detail');
  const head = make('p');
  head.append('The model gave ', make('code', '', e.token), ` a probability of ${percent(e.p)}.`);
  box.replaceChildren(head);
  if (!e.candidates || !e.candidates.length) return;
  const bars = make('div', 'bars');
  for (const [token, p] of e.candidates) {
    const row = bar(token, p);
    row.classList.toggle('chosen', token === e.token);
    bars.append(row);
  }
  box.append(make('p', 'help', 'The likeliest tokens here, before temperature and other rules:'), bars);
}

function writeBody() {
  const body = {prompt: $('prompt').value, n_words: Number($('n-words').value), temperature: Number($('temperature').value), candidates: 8};
  if ($('top-p').value && body.temperature > 0) body.top_p = Number($('top-p').value);
  if ($('seed').value) body.seed = Number($('seed').value);
  return body;
}
async function* events(res) {
  const reader = res.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split('\n').filter(Boolean);
      if (lines.length === 2) yield [lines[0].slice(7), JSON.parse(lines[1].slice(6))];
    }
  }
}
async function streamText(body, signal) {
  let n = 0;
  grown = [];
  for await (const [kind, e] of events(await ask('generate', {...body, stream: true}, signal))) {
    if (kind === 'start') { grown = e.tokens; $('tokens').append(make('span', 'token given', e.text)); }
    else if (kind === 'token') { addToken(e); grown.push(e.token); n += 1; if (n % 10 === 0) say(`Writing: ${n} words.`); }
    else if (kind === 'failed') throw new Error(e.error);
    else return {seed: e.seed, ...e.texts[0]};
  }
  throw new Error('The server stopped before the text was done.');
}
async function wholeText(body, signal) {   // of a model that writes from the end to the beginning
  const res = await (await ask('generate', body, signal)).json(), t = res.texts[0];
  t.tokens.forEach((token, i) => addToken({token, text: ` ${token}`, p: Math.exp(t.logps[i]), candidates: []}));
  $('tokens').prepend(...[...$('tokens').childNodes].reverse());
  return {seed: res.seed, ...t};
}
const ENDS = {length: 'the number of words was reached', time: 'the time was up', 'stop token': 'a token ended it', 'stop string': 'a string ended it'};

async function write() {
  if (running) return;
  problem(null);
  const help = facts.streams ? 'The stronger the colour of a token, the less likely the model found it.' : 'This model writes from the end to the beginning.';
  openAnswer('Text', `${help} Choose a token to see what else it may have been.`);
  legend($('legend'), 'likely', 'one in 1,000', false);
  running = new AbortController();
  $('stop').disabled = false;
  say('Writing…');
  try {
    const body = writeBody();
    const done = await (facts.streams ? streamText : wholeText)(body, running.signal);
    say(`Done: ${done.tokens.length} words, as ${ENDS[done.ended] || done.ended}. Seed ${done.seed}.`);
    openInside(facts.streams ? grown : done.text);
  } catch (e) {
    if (e.name === 'AbortError') { say('Stopped.'); openInside(grown); }
    else { problem(e); if (!$('tokens').children.length) $('answer').hidden = true; }
  }
  running = null;
  $('stop').disabled = true;
}

// ---- Reading: classes and tags ----
function showSaliency(tokens, saliency, els) {
  const most = Math.max(...saliency.map(Math.abs), 1e-9);
  els.forEach((el, i) => {
    paint(el, saliency[i]/most);
    const label = `${tokens[i]}, adds ${saliency[i].toFixed(3)}`;
    el.setAttribute('aria-label', label);
    el.title = label;
  });
}
async function classify(text, label) {
  const body = {texts: [text], ...(facts.explains ? {saliency: true} : {})};
  if (label !== undefined) body.label = label;
  const [a] = await answers('classify', body);
  if (label === undefined) showClasses(a);
  if (!facts.explains) return;
  const names = facts.labels, name = a.values ? 'the value' : names[a.explained];
  $('answer-help').textContent = `Warm words speak for ${name}, cool words against it (gradient times input).`;
  $('tokens').replaceChildren();
  const els = a.tokens.map(t => option(tokenSpan(t), t));
  els.forEach(el => $('tokens').append(el, ' '));
  showSaliency(a.tokens, a.saliency, els);
  els.forEach((el, i) => { el.detail = `${a.tokens[i]} adds ${a.saliency[i].toFixed(4)} to the score of ${name}.`; });
  legend($('legend'), 'against', 'for', true);
}
function showClasses(a) {
  const box = $('classes');
  if (a.values) { box.append(make('p', '', a.values.map(v => v.toFixed(3)).join(', '))); return; }
  const best = [].concat(a.label);
  facts.labels.forEach((name, i) => {   // in the order of their numbers; an object's names that are numbers come sorted
    const p = a.probabilities[name], row = bar(name, p, 'button');
    row.type = 'button';
    row.dataset.label = i;
    row.setAttribute('role', 'radio');
    row.setAttribute('aria-checked', facts.explains ? i === a.explained : best.includes(name));
    row.setAttribute('aria-label', `${name}, ${percent(p)}`);
    row.tabIndex = i === (a.explained ?? 0) ? 0 : -1;
    row.classList.toggle('chosen', best.includes(name));
    box.append(row);
  });
}
async function tagText(text) {
  const [a] = await answers('tag', {texts: [text]});
  a.words.forEach((word, i) => {
    const el = option(make('span', 'token tagged', word), `${word}, ${a.tags[i]}`);
    el.append(make('small', '', a.tags[i]));
    el.dataset.word = i;
    $('tokens').append(el);
  });
  if (!facts.explains) return;
  $('answer-help').textContent = 'Choose a word to see which words its tag rests on: warm ones speak for it, cool ones against.';
  legend($('legend'), 'against', 'for', true);
}
async function explainWord(el) {
  const i = Number(el.dataset.word), [a] = await answers('tag', {texts: [shown], saliency_of: i});
  if (el.getAttribute('aria-selected') !== 'true') return;   // another word was chosen meanwhile
  const els = [...$('tokens').querySelectorAll('.tagged')], most = Math.max(...a.saliency.map(Math.abs), 1e-9);
  els.forEach((w, k) => paint(w, a.saliency[k]/most));
  const top = a.saliency.map((s, k) => [s, k]).sort((x, y) => Math.abs(y[0]) - Math.abs(x[0])).slice(0, 5);
  const box = $('detail'), list = make('p');
  list.append('What adds most to its score: ');
  top.forEach(([s, k], j) => list.append(j ? ', ' : '', make('code', '', a.words[k]), ` ${s.toFixed(3)}`));
  const head = make('p');
  head.append(make('code', '', a.words[i]), ` is tagged ${a.tags[i]}.`);
  box.replaceChildren(head, list);
}
async function read() {
  problem(null);
  const classes = facts.tasks.includes('classify');
  openAnswer(classes ? 'Class' : 'Tags', '');
  $('legend').hidden = true;
  say('Reading…');
  try {
    const text = $('text').value;   // may be edited meanwhile
    await (classes ? classify : tagText)(text);
    say('Done.');
    openInside(text);
  } catch (e) { problem(e); $('answer').hidden = true; }
}

// ---- Inside ----
let recorded = null;
async function look() {
  problem(null);
  const what = typeof shown === 'string' ? {texts: [shown]} : {tokens: shown};
  const body = {...what, layer: Number($('layer').value), n_units: 10};
  if ($('unit').value) body.unit = Number($('unit').value);
  try {
    [recorded] = await answers('states', body);
    $('units').replaceChildren();
    recorded.units.forEach((unit, k) => {
      const row = make('button', 'unit'), strip = make('span', 'strip');
      row.type = 'button';
      row.dataset.k = k;
      row.setAttribute('role', 'radio');
      row.setAttribute('aria-checked', k === 0);
      row.tabIndex = k === 0 ? 0 : -1;
      row.setAttribute('aria-label', `Unit ${unit}`);
      scaled(recorded.values[k]).forEach(v => { const s = make('span'); paint(s, v); strip.append(s); });
      row.append(make('span', '', `Unit ${unit}`), strip);
      $('units').append(row);
    });
    showUnit(0);
  } catch (e) { problem(e); }
}
function scaled(values) {
  const most = Math.max(...values.map(Math.abs), 1e-9);
  return values.map(v => v/most);
}
function showUnit(k) {
  const values = recorded.values[k], unit = recorded.units[k], most = Math.max(...values.map(Math.abs));
  $('unit-text').setAttribute('aria-label', `Unit ${unit} over the text: from ${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`);
  $('unit-text').replaceChildren();
  scaled(values).forEach((v, i) => {
    const el = tokenSpan(recorded.tokens[i]);
    paint(el, v);
    el.title = `${recorded.tokens[i]}: ${values[i].toFixed(3)}`;
    $('unit-text').append(el, ' ');
  });
  legend($('unit-legend'), (-most).toFixed(2), most.toFixed(2), true);
}

// ---- Start ----
async function start() {
  try { facts = await (await fetch('health')).json(); }
  catch { problem(new Error('The server does not answer. Is it still running?')); return; }
  const can = {generate: 'writes', classify: 'classifies texts', tag: 'tags words'}, task = facts.tasks.find(t => can[t]);
  $('facts').textContent = `A model that ${can[task]}: ${facts.parameters.toLocaleString('en')} parameters, ${facts.layers.length} recurrent layer${facts.layers.length === 1 ? '' : 's'}`;
  document.title = `rnn_fastai: a model that ${can[task]}`;
  $('write').hidden = task !== 'generate';
  $('read').hidden = task === 'generate';
  if (task === 'tag') { $('read-title').textContent = 'Tag'; $('ask').textContent = 'Tag'; $('text-label').textContent = 'Sentence'; }
  $('n-words').max = facts.limits.max_words;
  for (const id of ['prompt', 'text']) $(id).maxLength = facts.limits.max_chars;
  facts.layers.forEach((l, i) => { const o = make('option', '', `${l.name} (${l.units} units)`); o.value = i; $('layer').append(o); });

  $('write-form').addEventListener('submit', e => { e.preventDefault(); write(); });
  $('read-form').addEventListener('submit', e => { e.preventDefault(); read(); });
  for (const form of document.forms) form.addEventListener('keydown', e => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) form.requestSubmit(); });
  $('stop').addEventListener('click', () => running && running.abort());
  $('look').addEventListener('click', look);
  $('layer').addEventListener('change', () => { $('unit').value = ''; look(); });
  $('unit').addEventListener('keydown', e => { if (e.key === 'Enter') look(); });
  roving($('tokens'), 'aria-selected', el => {
    if (task === 'generate') showToken(el);
    else if (task === 'classify') $('detail').textContent = el.detail;
    else if (facts.explains) explainWord(el).catch(problem);
  });
  roving($('classes'), 'aria-checked', el => facts.explains && classify(shown, Number(el.dataset.label)).catch(problem));
  roving($('units'), 'aria-checked', el => showUnit(Number(el.dataset.k)));
}
start();
