"""The pages in a real browser: Chromium without a window, driven by Playwright."""

import shutil

import pytest

from scripts.benchmarks.page import BROWSERS

# The first is Chromium without the parts that draw windows, which opens a page in half the time.
BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", *BROWSERS))), None)


@pytest.fixture(scope="module")
def chromium():
    """A browser for the tests of a file. Skips them where there is none. (Not for all files: while Playwright runs, no
    test could start it again, and one measures pages with a browser of its own.)"""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine to open the page with")
    sync = pytest.importorskip("playwright.sync_api")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def spare_pages(chromium):
    """The empty page that the last test has left, if any: to make one takes longer than to open a file in it."""
    return []


@pytest.fixture
def open_page(chromium, spare_pages):
    """open_page(path, dark=False) gives the page of a file. In the end: nothing on its console, and no request but the
    one for the file itself. (blob: is the address of a text that the page has made itself.)"""
    opened = []

    def open(path, dark=False, width=1280):
        page = spare_pages.pop() if spare_pages else chromium.new_page()
        # What a test may have set. All else goes with the file that it opened: the pages store nothing in the browser.
        page.emulate_media(color_scheme="dark" if dark else "light", media="null")
        page.set_viewport_size({"width": width, "height": 900})
        page.mouse.move(0, 0)
        errors, requests = [], []
        listeners = {
            "console": lambda message: errors.append(message.text),
            "pageerror": lambda error: errors.append(str(error)),
            "request": lambda request: requests.append(request.url),
        }
        for event, listener in listeners.items():
            page.on(event, listener)
        page.goto(path.as_uri())
        opened.append((page, listeners, errors, requests, path.as_uri()))
        return page

    yield open
    for page, listeners, *_ in opened:
        if spare_pages or not is_emptied(page):
            page.close()
            continue
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        spare_pages.append(page)
    for *_, errors, requests, address in opened:
        assert errors == []
        assert [url for url in requests if not url.startswith("blob:")] == [address]


def is_emptied(page) -> bool:
    """Empty a page for the next test. A page whose program hangs cannot be."""
    from playwright.sync_api import Error

    try:
        page.goto("about:blank", timeout=5000)
    except Error:
        return False
    return True


def wait_until(page, condition: str, *, tries: int = 400) -> None:
    """Until a JavaScript expression is true. (Playwright's own way needs eval, which the page forbids.)"""
    for _ in range(tries):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")
