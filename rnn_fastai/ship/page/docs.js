// Shows openapi.json as tables. All texts go in by textContent.
'use strict';

function make(tag, text, ...children) {
  const el = document.createElement(tag);
  if (text) el.textContent = text;
  el.append(...children);
  return el;
}
function allowed(s) {
  const kind = [].concat(s.type).join(' or ');
  if (s.items) {
    const fields = s.items.properties ? ` with ${Object.keys(s.items.properties).join(', ')}` : '';
    return `${kind} of ${s.minItems} to ${s.maxItems} ${s.items.type}s${fields}`;
  }
  const low = s.minimum ?? s.minLength ?? s.exclusiveMinimum, high = s.maximum ?? s.maxLength;
  return low === undefined ? kind : `${kind}, ${s.exclusiveMinimum === undefined ? "" : "above "}${low} to ${high}${s.maxLength === undefined ? '' : ' characters'}`;
}
function table(schema) {
  const head = make('tr', '', ...['Field', 'Holds', 'Default', 'For'].map(t => make('th', t))), body = make('tbody');
  for (const [name, s] of Object.entries(schema.properties)) {
    const given = schema.required.includes(name) ? 'required' : JSON.stringify(s.default);
    body.append(make('tr', '', make('td', '', make('code', name)), make('td', allowed(s)), make('td', given), make('td', s.description)));
  }
  const box = make('div', '', make('table', '', make('thead', '', head), body));
  box.className = 'scroll';
  return box;
}
async function start() {
  const doc = await (await fetch('openapi.json')).json();
  for (const [path, methods] of Object.entries(doc.paths)) {
    for (const [method, about] of Object.entries(methods)) {
      const section = make('section', '', make('h2', '', make('code', `${method.toUpperCase()} ${path}`)), make('p', about.summary + '.'));
      if (about.requestBody) section.append(table(about.requestBody.content['application/json'].schema));
      document.getElementById('docs').append(section);
    }
  }
}
start().catch(() => {
  const box = document.getElementById('problem');
  box.hidden = false;
  box.textContent = 'The server does not answer. Is it still running?';
});
