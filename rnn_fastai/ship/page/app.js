// The page of the server: the explorer, on what this server serves.
import {describe, mount, server} from './explorer.js';

try {
  const to = await server(), words = describe(to.facts);
  document.getElementById('facts').textContent = words;
  document.title = `rnn_fastai: ${words[0].toLowerCase()}${words.slice(1).split(':')[0]}`;
  mount(document.getElementById('explorer'), to);
} catch (e) {
  const box = document.getElementById('gone');
  box.textContent = e.message;
  box.hidden = false;
}
