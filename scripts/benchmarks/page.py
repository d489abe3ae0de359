"""The page of a model (scripts/export_html.py) in Chromium without a window: tokens per second, and its first token."""

import contextlib
import shutil
import sys
from pathlib import Path

from config import BPE, CHAR, ROOT, Model
from model.gpt import GPT
from model.storage.model_file import save_model
from model.tokenization.tokenizer import BareIds
from plumbing.settings import values_of
from scripts.benchmarks.common import medians, run_silently
from scripts.benchmarks.models import MODELS

# The default models, with the vocabularies of the quickstart, and nanoGPT's shape for a GPU.
PAGES = {
    "characters": {"vocab_size": 156, **values_of(CHAR, Model)},
    "BPE": {"vocab_size": 4096, **values_of(BPE, Model)},
    "10.7M": MODELS["10.7M"],
}
TOKENS = 100
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
RATES = """async (count) => {
  const rate = async (work) => {
    const start = performance.now();
    for (let i = 0; i < count; i++) await work();
    return 1000 * count / (performance.now() - start);
  };
  await rate(one);  // the engine compiles what is used often
  const drawn = await rate(one);
  const recorded = await rate(async () => {
    append(upcoming);
    await prepare();
  });
  return {recorded, drawn, "first token": Number(document.documentElement.dataset.ready)};
}"""


def measure_page(browser, path: Path) -> dict[str, float]:
    page = browser.new_page()
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-ready]")
    figures = page.evaluate(RATES, TOKENS)
    page.close()
    return figures


@contextlib.contextmanager
def open_browser():
    """Chromium, driven by Playwright, or None where there is no Chromium or no Playwright."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])


def measure_pages(rounds: int, folder: Path) -> list[dict]:
    """A row for each model and precision, in the columns of measure_generating(): tokens per second with everything
    recorded and nothing drawn, and with the candidates of each token drawn. Prints the time to the first token."""
    rows = []
    with open_browser() as browser:
        if browser is None:
            print("The page is not measured: that needs Chromium and the package playwright.")
            return rows
        for name, shape in PAGES.items():
            for precision in ("float16", "int8"):
                path = write_model_page(shape, precision, folder)
                rate = medians([measure_page(browser, path) for _ in range(rounds)])
                size, first = path.stat().st_size / 1e6, rate["first token"]
                print(f"page, {name}, {precision}: {size:.2f} MB, {first:.0f} ms to the first token")
                rows.append({"shape": f"page, {name}, {precision}", **page_columns(rate)})
    return rows


def page_columns(rate: dict) -> dict:
    columns = {"ours, tokens/s": f"{rate['recorded']:,.0f}", "with candidates": f"{rate['drawn']:,.0f}"}
    return columns | dict.fromkeys(("peer", "peer, tokens/s", "ratio", "limit", "fraction"), "")


def write_model_page(shape: dict, precision: str, folder: Path) -> Path:
    """The page of a model with random weights, whose texts are ids."""
    model_file, path = folder / "page.pt", folder / "page.html"
    save_model(model_file, GPT(**shape), BareIds(shape["vocab_size"]), {"steps": 0, "val_bits_per_byte": None})
    export = [sys.executable, "scripts/export_html.py", "--model", model_file.absolute(), "--prompt", "1"]
    run_silently([*export, "--precision", precision, "--output", path.absolute()], ROOT)
    return path
