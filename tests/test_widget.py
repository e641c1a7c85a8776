"The explorer of a notebook in headless Chromium: its front end with a small host in place of a notebook, on the Python side."
import json
import re
from importlib.resources import files

import pytest
from test_page import LOOKS, browser, drawn, expect, fits, percent, tokens_of  # noqa: F401
from test_serve import learner

import rnn_fastai.all as rf
from rnn_fastai.ship.batching import list_layers
from rnn_fastai.ship.explore import compare, explore, nearest
from rnn_fastai.ship.widget import answer_message

HOST = '''<!doctype html><html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"></head>
<body style="margin:0;padding:8px"><div id="el"></div><script type="module">
import widget from './explorer.js';
const heard = new Set(), traits = await window.traits();
const model = {get: n => traits[n], set() {}, save_changes() {}, on: (e, f) => heard.add(f), off: (e, f) => heard.delete(f),
  send: async m => { const reply = JSON.parse(await window.python(JSON.stringify(m))); for (const f of heard) f(reply); }};
window.leave = await widget.render({model, el: document.getElementById('el')});
window.heard = heard;
</script></body></html>'''   # what anywidget gives a front end, without a notebook

@pytest.fixture()
def show(browser):  # noqa: F811
    "Shows `learn.explore()`; gives the page, and the messages that went through it."
    pages,complaints = [],[]
    def go(kind, text='', recording=None, width=1000, scheme='light'):
        view,asked = learner(kind).explore(text, recording),[]
        page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        page.on('console', lambda m: complaints.append(m.text) if m.type in ('error', 'warning') and 'getImageData' not in m.text else None)
        page.on('pageerror', lambda e: complaints.append(str(e)))
        def answer(message):
            made = answer_message(learner(kind), json.loads(message), recording)
            asked.append((json.loads(message), made))
            return json.dumps(made)
        page.expose_function('python', answer)
        page.expose_function('traits', lambda: dict(facts=view.facts, text=view.text))
        code = (files('rnn_fastai')/'ship'/'page'/'explorer.js').read_text(encoding='utf8')
        assert view._esm == code   # one front end
        page.route('**/*', lambda r: r.fulfill(body=code, content_type='text/javascript') if r.request.url == 'http://host/explorer.js' else
                   r.fulfill(body=HOST, content_type='text/html') if r.request.url == 'http://host/' else complaints.append(r.request.url) or r.abort())
        page.goto('http://host/')
        pages.append(page)
        return page,asked
    yield go
    for page in pages: page.close()
    assert complaints == []

def done(page): expect(page.locator('#status')).to_have_text(re.compile('^Done'))

def labels(page): return tokens_of(page).evaluate_all('els => els.map(e => e.ariaLabel)')

@pytest.mark.parametrize('width,scheme', LOOKS)
def test_type_pick_clamp_compare(show, width, scheme):
    learn = learner('lm')
    rec = learn.record(['a good film, the actors are fine', 'the story is awful'])
    page,asked = show('lm', 'the story', rec, width, scheme)
    done(page)   # a text to begin with is read at once
    assert labels(page)[0] == 'xxbos' and len(labels(page)) == 3
    page.get_by_label('Prompt').fill('a good film')
    page.get_by_label('New tokens').fill('7')
    page.get_by_label('Seed').fill('5')
    page.get_by_role('button', name='Write').click()
    expect(page.locator('#status')).to_have_text('Done: 7 tokens, as that many were asked for. Seed 5.')
    made = learn.generate('a good film', 7, seed=5, no_bar=True)[0].tokens
    whole = ('xxbos', 'a', 'good', 'film', *made)
    told, = explore(learn, [whole])
    assert labels(page)[1:] == [f'{t}, probability {percent(p)}' for t,p in zip(told['tokens'][1:], told['p'][1:], strict=True)]
    page.get_by_label('Layer').select_option(index=1)
    expect(page.locator('#unit-title')).to_have_text(re.compile(re.escape(list_layers(learn)[1]['name'])))
    tokens_of(page).nth(3).click()
    page.get_by_role('button', name='Find contexts').click()
    want, = nearest(learn, [whole], 3, 1, 'h', 8, rec)
    expect(page.locator('#contexts td:last-child')).to_have_text([c['context'] for c in want['contexts']])
    page.get_by_label('Unit to change').fill('4')
    page.get_by_label('Value').fill('-2')
    page.get_by_role('button', name='Hold').click()
    expect(page.locator('#status')).to_have_text('Changed.')
    edit = dict(layer=1, unit=4, part='h', value=-2)
    told, = explore(learn, [whole], 1, edits=(edit,))
    both, = compare(learn, ['a good film'], (edit,), 7, 5, temperature=1.)
    assert labels(page)[1:] == [f'{t}, probability {percent(p)}, changed {percent(q)}' for t,p,q in
                                zip(told['tokens'][1:], told['p'][1:], told['changed']['p'][1:], strict=True)]
    assert page.locator('#new-text').inner_text() == both['new']['text'] and page.locator('#old-text').inner_text() == both['old']['text']
    answers = {m['task']: a['answer']['answers'] for m,a in asked}
    assert answers['explore'] == json.loads(json.dumps([told])) and answers['compare'] == json.loads(json.dumps([both]))
    assert drawn(page, '#map') > 10 and drawn(page, '#traces') > 5
    fits(page, width)

def test_what_the_kernel_refuses_is_shown(show):
    page,_ = show('lm')
    page.get_by_label('Prompt').fill('zzz qqq')
    page.get_by_role('button', name='Write').click()
    expect(page.get_by_role('alert')).to_contain_text('holds no word that the model knows')
    assert page.get_by_role('button', name='Stop').count() == 0   # there is no stream to stop
    expect(page.locator('#inside')).to_be_hidden()

def test_without_a_recording_it_says_how_to_give_one(show):
    page,_ = show('lm', 'a film')
    done(page)
    expect(page.locator('#near-help')).to_contain_text('learn.explore(recording=learn.record(texts))')

@pytest.mark.parametrize('kind,text,button', [('classifier', 'a good film', 'Classify'), ('tagger', 'the small dog runs', 'Tag')])
def test_other_learners(show, kind, text, button):
    page,_ = show(kind, width=400)
    page.get_by_role('textbox').first.fill(text)
    page.get_by_role('button', name=button, exact=True).click()
    done(page)
    page.get_by_label('Unit to change').fill('2')
    page.get_by_role('button', name='Remove').click()
    expect(page.locator('#status')).to_have_text('Changed.')
    expect(page.locator('#compared')).to_contain_text('As it is: ')
    fits(page, 400)

def test_it_follows_the_notebook_and_not_the_system(show):
    page,_ = show('lm', 'a film', scheme='light')
    done(page)
    section = page.locator('#inside')
    def shade(): return section.evaluate('e => getComputedStyle(e).backgroundColor')
    light,map_light = shade(),page.locator('#map').evaluate('c => c.toDataURL()')
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    expect(section).not_to_have_css('background-color', light)
    assert page.locator('#map').evaluate('c => c.toDataURL()') != map_light   # canvases too
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    expect(section).to_have_css('background-color', light)

def test_a_view_that_is_closed_listens_no_more(show):
    page,_ = show('lm', 'a film')
    done(page)
    assert page.evaluate('heard.size') == 1
    page.evaluate('leave()')
    assert page.evaluate('heard.size') == 0

def test_without_anywidget_a_page_stands_still(browser, tmp_path, monkeypatch):  # noqa: F811
    import sys

    from rnn_fastai.ship.widget import _widget_class
    _widget_class.cache_clear()
    monkeypatch.setitem(sys.modules, 'anywidget', None)
    view = learner('lm').explore('a good film')
    assert 'pip install &quot;rnn_fastai[explore]&quot;' in view._repr_html_()
    (tmp_path/'page.html').write_text(f'<meta charset="utf-8">{view._repr_html_()}', encoding='utf8')
    page = browser.new_page(viewport=dict(width=400, height=900))
    page.goto(f"file://{tmp_path/'page.html'}")
    frame = page.frame_locator('iframe')
    expect(frame.locator('#text span')).to_have_text(['xxbos', 'a', 'good', 'film'])
    expect(frame.locator('#said')).to_contain_text('Step 0, xxbos')
    assert page.evaluate('document.documentElement.scrollWidth') <= 400
    page.close()
    quiet = browser.new_page(java_script_enabled=False)
    quiet.goto(f"file://{tmp_path/'page.html'}")
    assert quiet.locator('td:first-child').all_inner_texts() == ['xxbos', 'a', 'good', 'film']   # where no script runs: a table
    expect(quiet.locator('body')).to_contain_text('install anywidget')
    quiet.close()

def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match='text=None must be a text'): learner('lm').explore(None)
    with pytest.raises(TypeError, match='recording is of type list; pass what learn.record'): learner('lm').explore('a', [rf.Recording()])

def test_a_text_is_read_while_it_is_typed(show):
    page,asked = show('lm', 'a film')
    done(page)
    del asked[:]
    page.get_by_label('Prompt').press_sequentially(', the story', delay=20)
    expect(page.locator('#status')).to_have_text('Read.')
    assert [m['task'] for m,_ in asked] == ['explore', 'traces'] and asked[0][0]['body']['texts'] == ['a film, the story']
    assert len(labels(page)) == 6
