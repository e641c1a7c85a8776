"The server's page in headless Chromium: type, see tokens arrive, look at a token, pick and change units; by mouse and keyboard."
import re
import shutil

import pytest
from test_serve import learner, live

import rnn_fastai.all as rf
from rnn_fastai.ship.explore import compare, explore

sync_api = pytest.importorskip('playwright.sync_api', reason='the page is tested with playwright, which is not installed')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if CHROMIUM is None: pytest.skip('the page is tested in Chromium, and PATH has none', allow_module_level=True)
expect = sync_api.expect
expect.set_options(timeout=30_000)   # a machine may be busy
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()
LOOKS = [(400, 'dark'), (800, 'light'), (1400, 'dark'), (1400, 'light')]

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()

@pytest.fixture()
def open_page(browser):
    "Opens the page of a server; at the end, no script complained (refusals are no fault), and nobody else was asked."
    complaints,pages = [],[]
    def go(s, width=1400, scheme='light', path='/'):
        page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        page.on('console', lambda m: complaints.append(m.text) if m.type in ('error', 'warning') and not re.search('load resource|getImageData', m.text) else None)
        page.on('pageerror', lambda e: complaints.append(str(e)))
        page.on('request', lambda r: None if r.url.startswith(s.url) else complaints.append(r.url))
        page.goto(s.url + path)
        pages.append(page)
        return page
    yield go
    for page in pages: page.close()
    assert complaints == []

def done(page): expect(page.locator('#status')).to_have_text(re.compile('^Done'), timeout=20_000)

def write(page, prompt='a film', n_words=30, seed=3):
    page.get_by_label('Prompt').fill(prompt)
    page.get_by_label('New tokens').fill(str(n_words))
    page.get_by_label('Seed').fill(str(seed))
    page.get_by_role('button', name='Write').click()

def tokens_of(page): return page.locator('#tokens').get_by_role('option')

def percent(p): return f'{100*p:.0f} %' if p >= 0.1 else f'{100*p:.1f} %' if p >= 0.001 else '< 0.1 %'

def fits(page, width):
    "Nothing is wider than the page, and no control than its section."
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert page.evaluate('''[...document.querySelectorAll('#explorer, #el > div')].flatMap(h => [...h.shadowRoot.querySelectorAll('section *')])
        .filter(e => e.checkVisibility() && !e.closest('.scroll') && e.getBoundingClientRect().right > e.closest('section').getBoundingClientRect().right + 1)
        .map(e => e.outerHTML)''') == []

def drawn(page, canvas):
    "Colours in a canvas."
    return page.locator(canvas).evaluate('''c => new Set(new Uint32Array(
        c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size''')

@pytest.mark.parametrize('width,scheme', LOOKS)
def test_a_text_grows_and_is_looked_into(open_page, width, scheme):
    with live('lm') as s:
        page = open_page(s, width, scheme)
        expect(page.locator('#facts')).to_contain_text('A model that writes')
        write(page)
        done(page)
        want = learner('lm').generate('a film', 30, seed=3, no_bar=True)[0]
        whole = ['xxbos', 'a', 'film', *want.tokens]
        expect(tokens_of(page)).to_have_count(len(whole) - whole.count('xxpad'))   # padding is no step
        told, = explore(learner('lm'), [tuple(whole)])
        labels = [f'{t}, probability {percent(p)}' for t,p in zip(told['tokens'][1:], told['p'][1:], strict=True)]
        assert tokens_of(page).evaluate_all('els => els.map(e => e.ariaLabel)') == [told['tokens'][0], *labels]
        tokens_of(page).nth(4).click()
        expect(page.locator('#detail')).to_contain_text(f"The model gave {told['tokens'][4]} a probability of {percent(told['p'][4])}")
        bars = page.locator('#detail').get_by_role('img')
        assert bars.evaluate_all('els => els.map(e => e.ariaLabel)') == [f'{t}, {percent(p)}' for at in ('alternatives', 'next') for t,p in told[at][4]]
        units = page.locator('#units').get_by_role('radio')
        expect(units).to_have_count(10)   # of the first layer's 12, those that vary most
        units.nth(2).click()
        expect(units.nth(2)).to_have_attribute('aria-checked', 'true')
        expect(page.locator('#unit-text')).to_have_attribute('aria-label', re.compile(r'^Unit \d+ over the text'))
        expect(page.locator('#traces')).to_have_attribute('aria-label', re.compile(r'h from .* reset from .* update from .* new from'))
        assert drawn(page, '#map') > 20 and drawn(page, '#traces') > 5
        fits(page, width)

def test_the_tokens_that_were_written_are_looked_into(open_page):
    "Tokens are read as they are: three unknown words in a row would be one repeated word for the rules."
    with live('lm') as s:
        page = open_page(s)
        write(page, 'a film zza zzb zzc', n_words=30)
        done(page)
        made = learner('lm').generate('a film zza zzb zzc', 30, seed=3, no_bar=True)[0].tokens
        want = ['xxbos', 'a', 'film', *['xxunk']*3, *(t for t in made if t != 'xxpad')]   # padding is no step
        expect(page.locator('#unit-text .token')).to_have_text(want)

@pytest.mark.parametrize('width,scheme', LOOKS)
def test_a_unit_is_held_removed_and_let_go(open_page, width, scheme):
    learn = learner('lm')
    with live('lm') as s:
        page = open_page(s, width, scheme)
        write(page, 'the story', 9)
        done(page)
        tokens = page.locator('#unit-text .token').all_text_contents()
        def check(edits, said):
            expect(page.locator('#status')).to_have_text(said)
            (told,),(both,) = (explore(learn, [tuple(tokens)], edits=edits), compare(learn, ['the story'], edits, 9, 3, temperature=1.))
            labels = [f'{t}, probability {percent(p)}, changed {percent(q)}' for t,p,q in zip(told['tokens'][1:], told['p'][1:], told['changed']['p'][1:], strict=True)]
            assert tokens_of(page).evaluate_all('els => els.map(e => e.ariaLabel)')[1:] == labels
            expect(page.locator('#compared')).to_contain_text(f"Perplexity of the text: {told['perplexity']:.2f}, changed {told['changed']['perplexity']:.2f}")
            expect(page.locator('#old-text')).to_have_text(re.sub(r'\s+', ' ', both['old']['text']))
            expect(page.locator('#new-text')).to_have_text(re.sub(r'\s+', ' ', both['new']['text']))
        page.get_by_label('Unit to change').fill('3')
        page.get_by_label('Value').fill('2.5')
        page.get_by_role('button', name='Hold').click()
        held,removed = ({'layer': 0, 'unit': u, 'part': 'h', 'value': v} for u,v in ((3, 2.5), (5, None)))
        check((held,), 'Changed.')
        page.get_by_label('Unit to change').fill('5')
        page.get_by_role('button', name='Remove').click()
        expect(page.get_by_role('switch')).to_have_count(2)
        expect(page.get_by_role('switch').nth(1)).to_have_accessible_name(re.compile('^Unit 5 of .*, h: removed'))
        check((held, removed), 'Changed.')
        fits(page, width)
        page.get_by_role('switch').first.click()
        check((removed,), 'Changed.')
        page.get_by_role('switch').nth(1).click()
        expect(page.locator('#status')).to_have_text('As it is.')
        assert not any('changed' in l for l in tokens_of(page).evaluate_all('els => els.map(e => e.ariaLabel)'))
        expect(page.locator('#texts')).to_be_hidden()
        page.get_by_role('button', name=re.compile('^Forget: Unit 3')).click()
        expect(page.get_by_role('switch')).to_have_count(1)

FOCUSED = '''let e = document.activeElement; while (e.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;'''

@pytest.mark.parametrize('width', [400, 1400])
def test_all_by_keyboard(open_page, width):
    with live('lm') as s:
        page = open_page(s, width)
        expect(page.locator('#facts')).to_contain_text('A model that writes')
        def go_to(where):
            for _ in range(40):
                page.keyboard.press('Tab')
                if page.evaluate(f'where => {{ {FOCUSED} return e.closest(where) !== null; }}', where): return
            raise AssertionError(f"Tab does not reach {where}")
        go_to('#text')
        page.keyboard.type('a film')
        page.keyboard.press('Control+Enter')
        done(page)
        go_to('#tokens [role=option]')   # the last token
        page.keyboard.press('Home')
        page.keyboard.press('ArrowRight')
        second = tokens_of(page).nth(1)
        expect(second).to_have_attribute('aria-selected', 'true')
        expect(page.locator('#detail code').first).to_have_text(second.get_attribute('aria-label').split(', probability')[0])
        go_to('#units [role=radio]')
        page.keyboard.press('End')
        expect(page.locator('#units').get_by_role('radio').nth(9)).to_have_attribute('aria-checked', 'true')
        go_to('#map')
        page.keyboard.press('ArrowRight')
        expect(tokens_of(page).nth(2)).to_have_attribute('aria-selected', 'true')
        page.keyboard.press('ArrowUp')
        expect(page.locator('#units').get_by_role('radio').nth(8)).to_have_attribute('aria-checked', 'true')   # in the order of the list
        unit = page.locator('#units').get_by_role('radio').nth(8).get_attribute('aria-label')
        expect(page.locator('#unit-said')).to_contain_text(unit.lower())
        go_to('#edit-unit')
        expect(page.get_by_label('Unit to change')).to_have_value(unit.removeprefix('Unit '))
        go_to('#remove')
        page.keyboard.press('Enter')
        expect(page.locator('#status')).to_have_text('Changed.')
        go_to('[role=switch]')
        page.keyboard.press('Space')
        expect(page.locator('#status')).to_have_text('As it is.')

def test_the_order_of_the_focus(open_page):
    with live('lm') as s:
        page = open_page(s)
        expect(page.locator('#facts')).to_contain_text('A model that writes')
        def focused(): return page.evaluate(f'() => {{ {FOCUSED} return e.id || e.ariaLabel || e.textContent; }}')
        def walk(n):
            order = []
            for _ in range(n):
                page.keyboard.press('Tab')
                order.append(focused())
            return order
        assert walk(9) == ['Skip to the model', 'HTTP interface', 'text', 'n-words', 'temperature', 'top-p', 'seed', 'go', 'read']
        page.locator('#text').focus()
        page.keyboard.type('the story')
        page.keyboard.press('Control+Enter')
        done(page)
        tokens_of(page).last.focus()
        rest = walk(12)   # one stop for all tokens, and one for all units
        assert rest[:4] == ['layer', 'part', 'unit', 'order'] and rest[4].startswith('Unit ')
        assert rest[5:] == ['map', 'edit-unit', 'edit-part', 'edit-value', 'hold', 'remove', rest[-1]]

def test_names_and_roles(open_page):
    "Each control has a name, each section a heading, and what changes is said."
    with live('lm') as s:
        page = open_page(s)
        write(page)
        done(page)
        page.get_by_role('button', name='Hold').click()
        expect(page.locator('#status')).to_have_text('Changed.')
        controls = page.locator('#explorer').locator('input, select, button, textarea, canvas, [role=listbox], [role=radiogroup]')
        for c in controls.all():
            if c.is_visible() and not c.evaluate('e => e.tagName == "CANVAS" && e.closest("button") !== null'):
                expect(c).to_have_accessible_name(re.compile('.'))
        assert page.get_by_role('region').evaluate_all('els => els.map(e => e.id)') == ['ask', 'answer', 'inside', 'change', 'near']
        for live_region in ('#status', '#detail', '#unit-said', '#compared', '#contexts'): expect(page.locator(live_region)).to_have_attribute('aria-live', 'polite')
        snapshot = page.locator('#change').aria_snapshot()
        assert 'switch' in snapshot and '[checked]' in snapshot

def test_tokens_are_seen_before_the_text_is_done_and_stop_stops(open_page):
    from rnn_fastai.ship.requests import Limits
    with live('lm', Limits(max_words=10**6)) as s:
        page = open_page(s)
        write(page, n_words=10**6)
        expect(page.locator('#tokens')).to_have_text(re.compile(r'(\S+\s+){20}'))
        expect(page.locator('#status')).to_have_text(re.compile('^Writing'))
        page.get_by_role('button', name='Stop').click()
        expect(page.locator('#status')).to_have_text('Stopped.')
        for _ in range(200):
            if s.client.get('/health').json()['waiting'] == 0: break
            page.wait_for_timeout(20)
        assert s.client.get('/health').json()['waiting'] == 0

def test_a_long_text_is_sampled_and_says_so(open_page):
    with live('lm') as s:
        page = open_page(s, 400)
        page.get_by_label('Prompt').fill('a good film and a bad film '*100)
        page.get_by_role('button', name='Only read').click()
        done(page)
        told, = explore(learner('lm'), ['a good film and a bad film '*100])
        assert told['n_tokens'] > 600 and len(told['steps']) <= 256 and told['steps'][-1] == told['n_tokens'] - 1
        expect(tokens_of(page)).to_have_count(len(told['steps']))
        expect(page.locator('#answer-help')).to_contain_text(f"The text has {told['n_tokens']} tokens, and all were read; {len(told['steps'])} of them are shown")
        fits(page, 400)

def test_contexts_of_a_recording(open_page):
    learn = learner('lm')
    rec = learn.record(['a good film, the actors are fine', 'the story is awful'])
    with live('lm', recording=rec) as s:
        page = open_page(s, 400)
        page.get_by_label('Prompt').fill('the film')
        page.get_by_role('button', name='Only read').click()
        done(page)
        expect(page.locator('#near-help')).to_contain_text('tokens of 2 texts')
        tokens_of(page).nth(1).click()
        page.get_by_role('button', name='Find contexts').click()
        layer = rec.layers[0]
        want = rf.nearest_contexts(rec, learn.record('the film', layer, 'h')[0, 'h', 0][1], layer, 'h', 8)
        expect(page.locator('#contexts td:last-child')).to_have_text(want.context.tolist())
        fits(page, 400)

def test_without_a_recording_the_page_says_how_to_give_one(open_page):
    with live('lm') as s:
        page = open_page(s)
        write(page)
        done(page)
        expect(page.locator('#near-help')).to_contain_text('rnn_fastai serve FOLDER --recording FOLDER')
        expect(page.get_by_role('button', name='Find contexts')).to_be_disabled()

def test_a_text_is_never_taken_for_html(open_page):
    with live('classifier') as s:
        page = open_page(s)
        page.get_by_role('textbox', name='Text').fill('<img src=x onerror="document.title=1"> <script>document.title=2</script> good')
        page.get_by_role('button', name='Classify').click()
        done(page)
        assert page.locator('#tokens img, #tokens script').count() == 0
        expect(page).to_have_title('rnn_fastai: a model that classifies texts')

def test_classes_and_what_they_rest_on(open_page):
    with live('classifier') as s:
        page = open_page(s, 400)
        page.get_by_role('textbox', name='Text').fill('a good film, the story')
        page.get_by_role('button', name='Classify').click()
        done(page)
        with learner('classifier').no_bar(): label = learner('classifier').predict('a good film, the story')[0]
        classes = page.get_by_role('radio', name=re.compile('^(neg|pos), '))
        expect(classes).to_have_count(2)
        expect(page.locator('#classes [aria-checked=true] .name')).to_have_text(label)
        other = {'neg': 'pos', 'pos': 'neg'}[label]
        page.get_by_role('radio', name=re.compile(f'^{other}')).click()
        expect(page.locator('#answer-help')).to_contain_text(f'speak for {other}')
        tokens_of(page).nth(2).click()
        expect(page.locator('#detail')).to_contain_text(re.compile(f'good adds -?[0-9.]+ to the score of {other}'))
        expect(page.locator('#unit-text .token')).to_have_count(7)
        page.get_by_label('Unit to change').fill('1')
        page.get_by_role('button', name='Remove').click()
        expect(page.locator('#status')).to_have_text('Changed.')
        told, = explore(learner('classifier'), ['a good film, the story'], edits=({'layer': 0, 'unit': 1, 'part': 'h', 'value': None},))
        want = [f'{n}, {percent(p)}, changed {percent(q)}' for (n,p),q in
                zip(told['answer']['probabilities'].items(), told['changed']['answer']['probabilities'].values(), strict=True)]
        assert classes.evaluate_all('els => els.map(e => e.ariaLabel)') == want
        fits(page, 400)

def tagged(page):
    "A page of a tagger, which has read a sentence."
    page.get_by_label('Sentence').fill('the small dog runs')
    page.get_by_role('button', name='Tag').click()
    done(page)
    return page

def test_tags_and_what_they_rest_on(open_page):
    with live('tagger') as s:
        page = tagged(open_page(s))
        words = tokens_of(page)
        want = [f'{w}, {t}' for w,t in learner('tagger').predict('the small dog runs')]
        assert words.evaluate_all('els => els.map(e => e.getAttribute("aria-label"))') == want
        words.nth(2).click()
        expect(page.locator('#detail')).to_contain_text('What adds most to its score')
        assert max(words.evaluate_all('els => els.map(e => +e.style.getPropertyValue("--v"))')) == 1
        expect(page.locator('#layer option')).to_have_count(2)   # layers that read letters are not offered
        page.get_by_label('Unit to change').fill('1')
        page.get_by_label('Value').fill('3')
        page.get_by_role('button', name='Hold').click()
        expect(page.locator('#status')).to_have_text('Changed.')
        told, = explore(learner('tagger'), ['the small dog runs'], edits=({'layer': 0, 'unit': 1, 'part': 'h', 'value': 3.},))
        pairs = list(zip(*(told['answer'][k] for k in ('words', 'tags')), told['changed']['answer']['tags'], strict=True))
        assert words.evaluate_all('els => els.map(e => e.ariaLabel)') == [f'{w}, {t}' + (f', changed {u}' if t != u else '') for w,t,u in pairs]
        assert any(t != u for _,t,u in pairs)

def test_refusals_are_shown(open_page):
    with live('lm') as s:
        page = open_page(s)
        alert = page.locator('#problem')
        page.get_by_label('Top p').fill('0.5')
        write(page, 'zzz qqq')
        expect(alert).to_contain_text('holds no word that the model knows')
        write(page, 'a film')
        done(page)
        expect(alert).to_be_hidden()
        page.get_by_label('Unit', exact=True).fill('99')
        page.get_by_label('Unit', exact=True).press('Enter')
        expect(alert).to_have_text('Unit 99 is not there; the numbers are 0 to 11.')
        page.get_by_label('Unit', exact=True).fill('3')
        page.get_by_label('Unit', exact=True).press('Enter')
        expect(alert).to_be_hidden()
    page.get_by_role('button', name='Write').click()   # the server has ended
    expect(page.get_by_role('alert').filter(visible=True)).to_contain_text('The server does not answer')

def test_the_interface_is_described(open_page):
    with live('tagger') as s:
        page = open_page(s, 400, path='/docs')
        expect(page.locator('h2')).to_have_text(['GET /health', 'POST /tag', 'POST /states', 'POST /explore', 'POST /traces', 'POST /nearest'])
        expect(page.locator('section').nth(1)).to_contain_text('Sentences to tag')
        expect(page.locator('section').nth(3)).to_contain_text('objects with layer, unit, part, value')
        assert page.evaluate('document.documentElement.scrollWidth') <= 400

def test_labels_that_are_numbers_keep_their_numbers_and_the_text_that_was_asked_is_explained(open_page):
    with live('numbers') as s:
        page = open_page(s)
        page.get_by_role('textbox', name='Text').fill('a good film')
        page.get_by_role('button', name='Classify').click()
        done(page)
        page.get_by_role('textbox', name='Text').fill('the story is bad')   # not asked yet
        for label in ('10', '2'):   # in the order of the vocabulary, in which a script's object has them not
            page.get_by_role('radio', name=re.compile(f'^{label}, ')).click()
            expect(page.locator('#answer-help')).to_contain_text(f'speak for {label},')
        expect(page.locator('#classes .name')).to_have_text(['10', '2'])
        assert tokens_of(page).all_text_contents() == ['xxbos', 'a', 'good', 'film']

@pytest.mark.parametrize('width,scheme', LOOKS)
def test_the_page_that_stands_still(browser, tmp_path, width, scheme):
    "A recording as a file: labels stay with their menus, and both pictures have axes."
    rec = learner('lm').record(['a good film, the actors are fine', 'the story is awful'], parts=('states', 'logits'))
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    complaints = []
    page.on('console', lambda m: complaints.append(m.text) if 'getImageData' not in m.text else None)   # which this test calls
    page.on('pageerror', lambda e: complaints.append(str(e)))
    page.goto(f"file://{rf.write_page(rec, tmp_path/'page.html')}")
    for menu in ('#array', '#doc', '#unit', '#order'):   # label and menu are one block
        text,box = (page.locator(at).bounding_box() for at in (f'label:has({menu})', menu))
        assert text['x'] <= box['x'] + 1 and box['x'] + box['width'] <= min(text['x'] + text['width'], width) + 1
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    for canvas in ('#line', '#map'):   # something is written on the left and below
        inked = page.locator(canvas).evaluate('''c => { const s = devicePixelRatio, g = c.getContext('2d');
            const some = (x, y, w, h) => g.getImageData(x*s, y*s, w*s, h*s).data.some(v => v); return [some(0, 0, 44, c.height/s - 20), some(60, c.height/s - 18, 100, 16)]; }''')
        assert inked == [True, True]
    page.locator('#map').click(position=dict(x=60, y=40))
    page.keyboard.press('ArrowRight')
    expect(page.locator('#said')).to_contain_text('Step 1, a')
    assert complaints == []
    page.close()

def requests_of(page, kinds='explore|traces|compare|generate|classify|tag'):
    "What a page asks from now on: a list of pairs, which grows."
    asked = []
    page.on('request', lambda r: asked.append((r.url.rsplit('/', 1)[1], r.post_data_json)) if re.search(f'/({kinds})$', r.url) else None)
    return asked

def test_a_text_is_read_while_it_is_typed(open_page):
    with live('lm') as s:
        page = open_page(s)
        expect(page.locator('#text-help')).to_contain_text('A text of up to 1,500 characters is read while you type')
        asked = requests_of(page)
        text = page.get_by_label('Prompt')
        text.press_sequentially('the story is', delay=30)
        expect(page.locator('#status')).to_have_text('Read.')
        expect(tokens_of(page)).to_have_count(4)
        assert [name for name,_ in asked] == ['explore', 'traces'] and asked[0][1]['texts'] == ['the story is']   # no request for each key
        for live_region in ('#detail', '#unit-said'): expect(page.locator(live_region)).to_have_attribute('aria-live', 'off')
        text.press_sequentially(' bad')
        expect(tokens_of(page)).to_have_count(5)
        text.press('End'); text.press_sequentially(' '); text.press('Backspace')
        page.wait_for_timeout(700)
        assert [name for name,_ in asked] == ['explore', 'traces']*2   # the same text is not read again
        page.get_by_label('Unit to change').fill('3')
        expect(page.locator('#detail')).to_have_attribute('aria-live', 'polite')
        page.get_by_role('button', name='Hold').click()
        expect(page.locator('#texts')).to_be_visible()
        del asked[:]
        text.press_sequentially(', a film')
        expect(tokens_of(page)).to_have_count(8)
        assert {name for name,_ in asked} == {'explore', 'traces'} and asked[0][1]['edits']   # changed too, but nothing is written
        expect(page.locator('#texts')).to_be_hidden()
        text.fill('')
        page.wait_for_timeout(700)
        expect(page.locator('#problem')).to_be_hidden()
        expect(tokens_of(page)).to_have_count(8)
        text.fill('a film '*300)
        expect(page.locator('#status')).to_have_text('A text of more than 1,500 characters is not read while you type; choose Only read.')
        expect(tokens_of(page)).to_have_count(8)

@pytest.mark.parametrize('kind,label,text', [('classifier', 'Text', 'a good film'), ('tagger', 'Sentence', 'the small dog')])
def test_other_models_read_while_one_types_too(open_page, kind, label, text):
    with live(kind) as s:
        page = open_page(s)
        page.get_by_role('textbox', name=label).press_sequentially(text)
        expect(page.locator('#status')).to_have_text('Read.')
        expect(page.locator('#answer-title')).to_have_text({'classifier': 'Class', 'tagger': 'Tags'}[kind])
        expect(tokens_of(page)).to_have_count({'classifier': 4, 'tagger': 3}[kind])

def test_a_text_that_is_written_is_not_replaced_by_one_that_was_typed(open_page):
    with live('lm') as s:
        page = open_page(s)
        page.get_by_label('Prompt').fill('a film')
        expect(page.locator('#status')).to_have_text('Read.')
        page.get_by_label('Prompt').fill('the story')
        page.wait_for_timeout(395)   # as it begins to be read
        write(page, 'the story', 20)
        done(page)
        page.wait_for_timeout(700)
        expect(page.locator('#status')).to_have_text(re.compile('^Done: 20 tokens'))
        assert tokens_of(page).count() > 10

def test_what_is_missing_is_said_beside_it(open_page):
    with live('lm') as s:
        page = open_page(s)
        page.get_by_role('button', name='Only read').click()
        expect(page.locator('#problem')).to_have_text('There is nothing to read yet. Type a text first.')
        page.get_by_label('Prompt').fill('the story is bad')
        page.get_by_role('button', name='Only read').click()
        done(page)
        value,missing = page.get_by_label('Value'),page.locator('#edit-problem')
        expect(missing).to_be_hidden()
        value.fill('')
        page.get_by_role('button', name='Hold').click()
        expect(missing).to_have_text('Value is empty: type the number that the unit is to hold, or choose Remove.')
        expect(missing).to_have_attribute('role', 'alert')
        expect(value).to_have_attribute('aria-invalid', 'true')
        expect(value).to_be_focused()
        assert page.get_by_role('switch').count() == 0
        value.fill('2.5')
        expect(missing).to_be_hidden()
        page.get_by_label('Unit to change').fill('3')
        page.get_by_role('button', name='Hold').click()
        expect(page.locator('#status')).to_have_text('Changed.')
        h = learner('lm').record('the story is bad', 0)[0, 'h', 0][-1, 3]
        expect(page.locator('#unit-said')).to_have_text(f'After bad, unit 3 holds {h:.3f}; changed, 2.500.')
        value.fill('')
        page.get_by_role('button', name='Remove').click()   # needs no value
        expect(page.locator('#unit-said')).to_have_text(f'After bad, unit 3 holds {h:.3f}; changed, 0.000.')
        page.get_by_role('button', name=re.compile('^Forget')).click()
        expect(page.locator('#unit-said')).to_have_text(f'After bad, unit 3 holds {h:.3f}.')

def test_the_word_that_is_selected_first_is_explained(open_page):
    with live('tagger') as s:
        page = tagged(open_page(s))
        last = tokens_of(page).last
        expect(last).to_have_attribute('aria-selected', 'true')
        expect(page.locator('#detail')).to_contain_text('runs is tagged')
        assert max(tokens_of(page).evaluate_all('els => els.map(e => +e.style.getPropertyValue("--v"))')) == 1
    with live('classifier') as s:
        page = open_page(s)
        page.get_by_role('textbox', name='Text').fill('a good film')
        page.get_by_role('button', name='Classify').click()
        done(page)
        expect(page.locator('#detail')).to_contain_text(re.compile('^film adds'))

@pytest.mark.parametrize('kind,label,button', [('lm', 'Prompt', 'Only read'), ('classifier', 'Text', 'Classify'), ('tagger', 'Sentence', 'Tag')])
def test_unknown_words_are_shown_as_typed(open_page, kind, label, button):
    with live(kind) as s:
        page = open_page(s, 400)
        page.get_by_role('textbox', name=label).fill('the 안녕 مرحبا 🙂')
        page.get_by_role('button', name=button, exact=True).click()
        done(page)
        expect(page.locator('#unit-text .unknown')).to_have_text(['안녕', 'مرحبا', '🙂'])
        assert page.locator('#unit-text .unknown').first.get_attribute('title').startswith('안녕 (unknown to the model): ')
        expect(page.locator('#unit-said')).to_contain_text('After 🙂')
        if kind == 'lm':
            expect(tokens_of(page).last).to_have_attribute('aria-label', re.compile('^🙂, unknown to the model, probability'))
            expect(page.locator('#detail')).to_contain_text('🙂 is unknown to the model, which reads xxunk in its place. The model gave xxunk a probability')
        fits(page, 400)
