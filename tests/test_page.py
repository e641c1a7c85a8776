"The server's page in headless Chromium: type, see tokens arrive, look at a token, pick a unit; by mouse and keyboard."
import re
import shutil

import pytest
from test_serve import learner, live

sync_api = pytest.importorskip('playwright.sync_api', reason='the page is tested with playwright, which is not installed')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if CHROMIUM is None: pytest.skip('the page is tested in Chromium, and PATH has none', allow_module_level=True)
expect = sync_api.expect
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()

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
        page.on('console', lambda m: complaints.append(m.text) if m.type in ('error', 'warning') and 'load resource' not in m.text else None)
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
    page.get_by_label('Words').fill(str(n_words))
    page.get_by_label('Seed').fill(str(seed))
    page.get_by_role('button', name='Write').click()

@pytest.mark.parametrize('width,scheme', [(400, 'dark'), (1400, 'light')])
def test_a_text_grows_and_is_looked_into(open_page, width, scheme):
    with live('lm') as s:
        page = open_page(s, width, scheme)
        expect(page.locator('#facts')).to_contain_text('A model that writes')
        write(page)
        done(page)
        tokens = page.locator('#tokens').get_by_role('option')
        expect(tokens).to_have_count(30)
        want = learner('lm').generate('a film', 30, seed=3, no_bar=True)[0]
        assert [t.split(', probability')[0] for t in tokens.evaluate_all('els => els.map(e => e.getAttribute("aria-label"))')] == want.tokens
        tokens.nth(4).click()
        expect(page.locator('#detail')).to_contain_text(f'The model gave {want.tokens[4]} a probability of')
        expect(page.locator('#detail .bar')).to_have_count(8)
        page.get_by_role('button', name='Look inside').click()
        units = page.locator('#units').get_by_role('radio')
        expect(units).to_have_count(10)   # of the first layer's 12, those that vary most
        units.nth(2).click()
        expect(units.nth(2)).to_have_attribute('aria-checked', 'true')
        expect(page.locator('#unit-text')).to_have_attribute('aria-label', re.compile(r'^Unit \d+ over the text'))
        assert page.evaluate('document.documentElement.scrollWidth') <= width

def test_the_tokens_that_were_written_are_looked_into(open_page):
    "Tokens are read as they are: three unknown words in a row would be one repeated word for the rules."
    with live('lm') as s:
        page = open_page(s)
        write(page, 'a film zza zzb zzc', n_words=30)
        done(page)
        page.get_by_role('button', name='Look inside').click()
        shown = page.locator('#tokens').get_by_role('option').evaluate_all('els => els.map(e => e.ariaLabel.split(", probability")[0])')
        want = ['xxbos', 'a', 'film', *['xxunk']*3, *(t for t in shown if t != 'xxpad')]   # padding is no step
        expect(page.locator('#unit-text .token')).to_have_text(want)

@pytest.mark.parametrize('width', [400, 1400])
def test_all_by_keyboard(open_page, width):
    with live('lm') as s:
        page = open_page(s, width)
        expect(page.locator('#facts')).to_contain_text('A model that writes')
        def go_to(where):
            for _ in range(30):
                page.keyboard.press('Tab')
                if page.evaluate('where => document.activeElement.closest(where) !== null', where): return
            raise AssertionError(f"Tab does not reach {where}")
        go_to('#prompt')
        page.keyboard.type('a film')
        page.keyboard.press('Control+Enter')
        done(page)
        go_to('#tokens [role=option]')
        page.keyboard.press('ArrowRight')
        second = page.locator('#tokens').get_by_role('option').nth(1)
        expect(second).to_have_attribute('aria-selected', 'true')
        expect(page.locator('#detail code').first).to_have_text(second.get_attribute('aria-label').split(', probability')[0])
        go_to('#look')
        page.keyboard.press('Enter')
        expect(page.locator('#units').get_by_role('radio')).to_have_count(10)
        go_to('#units [role=radio]')
        page.keyboard.press('End')
        expect(page.locator('#units').get_by_role('radio').nth(9)).to_have_attribute('aria-checked', 'true')

def test_tokens_are_seen_before_the_text_is_done_and_stop_stops(open_page):
    from rnn_fastai.ship.requests import Limits
    with live('lm', Limits(max_words=10**6)) as s:
        page = open_page(s)
        write(page, n_words=10**6)
        tokens = page.locator('#tokens').get_by_role('option')
        expect(tokens.nth(20)).to_be_visible(timeout=20_000)
        expect(page.locator('#status')).to_have_text(re.compile('^Writing'))
        page.get_by_role('button', name='Stop').click()
        expect(page.locator('#status')).to_have_text('Stopped.')
        for _ in range(200):
            if s.client.get('/health').json()['waiting'] == 0: break
            page.wait_for_timeout(20)
        assert s.client.get('/health').json()['waiting'] == 0

def test_by_keyboard_alone(open_page):
    with live('lm') as s:
        page = open_page(s)
        expect(page.locator('#facts')).to_contain_text('A model that writes')
        def focused(): return page.evaluate('document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.textContent')
        order = []
        for _ in range(8):
            page.keyboard.press('Tab')
            order.append(focused())
        assert order == ['Skip to the model', 'HTTP interface', 'prompt', 'n-words', 'temperature', 'top-p', 'seed', 'Write']
        page.locator('#prompt').focus()
        page.keyboard.type('the story')
        page.keyboard.press('Control+Enter')
        done(page)
        first = page.locator('#tokens').get_by_role('option').first
        first.focus()
        before = page.locator('#detail').text_content()
        page.keyboard.press('ArrowRight')
        page.keyboard.press('End')
        last = page.locator('#tokens').get_by_role('option').last
        expect(last).to_be_focused()
        expect(last).to_have_attribute('aria-selected', 'true')
        assert page.locator('#detail').text_content() != before
        page.keyboard.press('Tab')
        assert focused() == 'layer'   # one stop for all tokens

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
        page.locator('#tokens').get_by_role('option').nth(2).click()
        expect(page.locator('#detail')).to_contain_text(re.compile(f'good adds -?[0-9.]+ to the score of {other}'))
        page.get_by_role('button', name='Look inside').click()
        expect(page.locator('#unit-text .token')).to_have_count(7)

def test_tags_and_what_they_rest_on(open_page):
    with live('tagger') as s:
        page = open_page(s)
        page.get_by_label('Sentence').fill('the small dog runs')
        page.get_by_role('button', name='Tag').click()
        done(page)
        words = page.locator('#tokens').get_by_role('option')
        want = [f'{w}, {t}' for w,t in learner('tagger').predict('the small dog runs')]
        assert words.evaluate_all('els => els.map(e => e.getAttribute("aria-label"))') == want
        words.nth(2).click()
        expect(page.locator('#detail')).to_contain_text('What adds most to its score')
        assert max(words.evaluate_all('els => els.map(e => +e.style.getPropertyValue("--v"))')) == 1
        expect(page.locator('#layer option')).to_have_count(2)   # layers that read letters are not offered

def test_refusals_are_shown(open_page):
    with live('lm') as s:
        page = open_page(s)
        page.get_by_label('Top p').fill('0.5')
        write(page, 'zzz qqq')
        expect(page.get_by_role('alert')).to_contain_text('holds no word that the model knows')
        write(page, 'a film')
        done(page)
        expect(page.get_by_role('alert')).to_be_hidden()
    page.get_by_role('button', name='Write').click()   # the server has ended
    expect(page.get_by_role('alert')).to_contain_text('The server does not answer')

def test_the_interface_is_described(open_page):
    with live('tagger') as s:
        page = open_page(s, 400, path='/docs')
        expect(page.locator('h2')).to_have_text(['GET /health', 'POST /tag', 'POST /states'])
        expect(page.locator('section').nth(1)).to_contain_text('Sentences to tag')
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
        assert page.locator('#tokens').get_by_role('option').all_text_contents() == ['xxbos', 'a', 'good', 'film']
