"""The pages in a real browser: Chromium without a window, driven by Playwright."""

import shutil

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chromium():
    """A browser for the tests of a file. Skips them where there is none."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine to open the page with")
    sync = pytest.importorskip("playwright.sync_api")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """open_page(path, dark=False) gives the page of a file. In the end: nothing on its console, and no request but the
    one for the file itself. (blob: is the address of a text that the page has made itself.)"""
    opened = []

    def open(path, dark=False, width=1280):
        scheme = "dark" if dark else "light"
        page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        errors, requests = [], []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        opened.append((page, errors, requests, path.as_uri()))
        return page

    yield open
    for page, errors, requests, address in opened:
        page.close()
        assert errors == []
        assert [url for url in requests if not url.startswith("blob:")] == [address]


def wait_until(page, condition: str, *, tries: int = 400) -> None:
    """Until a JavaScript expression is true. (Playwright's own way needs eval, which the page forbids.)"""
    for _ in range(tries):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")
