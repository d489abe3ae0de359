"""The page that is a model: its numbers against Python's, its program in a browser, and that it is one safe file."""

import hashlib
import json
import math
import re
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import wait_until
from faults import runs
from models import random_model

from config import CHAR, Sampling
from model.generation.sampling import choose, find_candidates, random_numbers
from model.generation.writer import Writer
from model.gpt import GPT
from model.interpretation.forward_pass import attribution, logit_lens, trace_forward
from model.interpretation.surprise import score_text
from model.monitoring.log import Log
from model.storage.model_file import load_model, save_model
from model.storage.page_file import row_scales, stored_weights
from model.tokenization.bpe_encoder import BPEEncoder
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.display import surprise_level, token_text
from model.tokenization.pre_tokens import join_documents
from model.tokenization.tokenizer import BareIds, Tokenizer, make_character_tokenizer
from plumbing.errors import UsageError, UserError
from plumbing.settings import values_of
from scripts import export_html

TEXT = "def add(a, b):\n\treturn a + b  # naïve 日本 😀 & </script><b>\n"
CORPUS = [TEXT * 3, Path(json.__file__).read_text("utf-8"), "It's they're we'll 12 ½ x² ٣ e\u0301 \x85 \ufeff"]
NASTY = [
    "👩‍👩‍👧 🏳️‍🌈 e\u0301\u0323 a\u0300\u0301",
    "one\r\ntwo\r\n\r\n\tthree  \r",
    "\x85\xa0\u2028\u3000 \ufeff x \u200b\u200d y",
    "it's I'LL we're 'tis can't''s ' s",
    "½ ² ٣ ④ Ⅷ 千 ǅ ª",
    "\x00\x01\x7f\x80\xad",
    "<|endoftext|> <|unk|> <|",
    "\U00010000\U0010ffff\U0001d4b3\U0001d7d9",
    "   \n\n   x   \n ",
    "__proto__ constructor toString 0 1 2 10",
    "",
]
TOKENIZERS = {
    "char": Tokenizer(make_character_tokenizer("".join(CORPUS)).to_str()),
    "bpe": Tokenizer(train_bpe_tokenizer(CORPUS, vocab_size=600).to_str()),
    "none": BareIds(40),
}
SHAPE = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
PROMPT = {"char": "def add", "bpe": "def add", "none": "3 1 4 1 5"}
READY = "html[data-ready]"


def make_model(kind: str, **shape) -> GPT:
    model = random_model({"vocab_size": TOKENIZERS[kind].vocab_size, **SHAPE, **shape})
    with torch.no_grad():
        model.head.weight.mul_(3)  # some tokens are likely, and others are not
    return model


def rounded(weight: np.ndarray, dtype: str) -> np.ndarray:
    """The weight in fp32 as the page reads it."""
    if dtype == "int8" and weight.ndim > 1:
        scales = row_scales(weight)
        return np.rint(weight / scales) * scales
    return weight.astype(dtype if weight.ndim > 1 else "float32").astype(np.float32)


@pytest.fixture
def export(tmp_path, monkeypatch):
    """export(kind, *flags) writes a page and gives its path, with the model as the page has it, rounded."""
    monkeypatch.chdir(tmp_path)

    def run(kind, *flags, training=None, **shape):
        path = tmp_path / f"{kind}.pt"
        training = {"steps": 3, "val_bits_per_byte": None if kind == "none" else 1.5} | (training or {})
        save_model(path, make_model(kind, **shape), TOKENIZERS[kind], training)
        export_html.main(["--model", str(path), "--output", "page.html", *map(str, flags)])
        precision = flags[flags.index("--precision") + 1] if "--precision" in flags else "float16"
        model = load_model(path)[0]
        weights = {name: torch.from_numpy(rounded(w, precision)) for name, w in stored_weights(model).items()}
        model.load_state_dict(weights, strict=not model.architecture["tie_embeddings"])
        return tmp_path / "page.html", model

    return run


@pytest.fixture
def opened(export, open_page):
    """opened(kind, *flags) exports a model and opens its page: (page, the model as rounded)."""

    def run(kind, *flags, dark=False, width=1280, **more):
        path, model = export(kind, *flags, **more)
        page = open_page(path, dark=dark, width=width)
        page.wait_for_selector(READY)
        return page, model

    return run


# --- the engine -------------------------------------------------------------------------------------------------------

LOGITS = """([texts, plain]) => {
  const weights = loadWeights(model.tensors, decodeBase64(byId("weights").textContent));
  if (!weights.memory.product) throw new Error("this browser refused the WebAssembly");
  if (plain) weights.memory.product = undefined;
  const engine = new GPT(model.architecture, weights);
  return texts.map((ids) => {
    const cache = engine.newCache();
    for (const _ of engine.read(ids, cache));
    return ids.map((_, t) => Array.from(engine.logitLens(cache, t)));
  });
}"""


@pytest.mark.parametrize(("precision", "tied"), [("float32", True), ("float16", False), ("int8", True)])
def test_logits_are_the_models(opened, precision, tied):
    """All positions of some texts, with the same rounded weights. Each tensor is read by itself, so not every precision
    has to be tied and untied."""
    page, model = opened("bpe", "--precision", precision, tie_embeddings=tied, rotary_base=50.0, n_layer=3)
    compare_logits(page, model)


@pytest.mark.parametrize("n_embd", [32, 20])
def test_logits_without_webassembly(opened, n_embd):
    """As in a browser that has none, and with vectors that are no whole number of its steps."""
    page, model = opened("bpe", "--precision", "float32", n_embd=n_embd, n_head=2)
    compare_logits(page, model, plain=True)
    compare_logits(page, model)


def compare_logits(page, model, plain=False):
    lengths = 1, 2, 5, 16, SHAPE["block_size"]
    texts = [
        torch.randint(model.vocab_size, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths
    ]
    for ids, found in zip(texts, page.evaluate(LOGITS, [texts, plain]), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(found), model(torch.tensor([ids]))[0], rtol=0, atol=1e-4)


def test_rounding_is_as_fine_as_it_says():
    weight = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
    assert np.array_equal(rounded(weight, "float32"), weight)
    assert np.abs(rounded(weight, "float16") / weight - 1).max() < 2**-11
    assert (np.abs(rounded(weight, "int8") - weight) <= np.abs(weight).max(1, keepdims=True) / 127 / 2 * 1.0001).all()
    assert len(np.unique(rounded(weight, "int8")[0])) > 30
    assert not rounded(np.zeros((2, 2), np.float32), "int8").any()


STEPS = """async (given) => {
  const ids = promptIds.slice(), found = [];
  for (let i = 0; i < given.tokens; i++) {
    const step = await ask("step", {...given, ids, prompt: promptIds.length});
    ids.push(step.token);
    const [shown, sampledP, modelP] = [step.ids, step.sampledP, step.modelP].map((array) => Array.from(array));
    found.push({...step, ids: shown, sampledP, modelP});
  }
  return found;
}"""
SETTINGS = {
    "plain": replace(CHAR, seed=1),
    "greedy": replace(CHAR, temperature=0.0),
    "all at once": replace(CHAR, temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=-5),
    "hot": replace(CHAR, temperature=1.5, top_k=0, seed=2**63),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_same_seed_writes_the_same_text(opened, kind):
    """100 tokens in a block of 32, so that it forgets its older half several times; and every figure on display. The
    tokenizer has no part in it, so one kind is enough for all settings."""
    page, model = opened(kind, "--precision", "float32", "--prompt", PROMPT[kind])
    for name in SETTINGS if kind == "bpe" else ["plain"]:
        compare_steps(page, model, kind, SETTINGS[name])


def compare_steps(page, model, kind, settings):
    writer = Writer(model, TOKENIZERS[kind])
    writer.read(PROMPT[kind])
    expected = [step for (step,) in writer.steps(replace(settings, tokens=100, samples=1, show=10))]
    given = {"sampling": values_of(settings, Sampling), "seed": str(settings.seed), "show": 10, "tokens": 100}
    found = page.evaluate(STEPS, given)
    assert [step["token"] for step in found] == [step.token for step in expected]
    for ours, step in zip(found, expected, strict=True):
        assert (ours["rank"], ours["randomNumber"], tuple(ours["kept"])) == (step.rank, step.random_number, step.kept)
        assert (ours["p"], ours["entropy"]) == pytest.approx((step.p, step.entropy), abs=1e-5)
        n = min(10, len(step.ids))
        assert ours["ids"][:n] == step.ids[:n].tolist()
        assert ours["sampledP"][:n] == pytest.approx(step.sampled_p[:n].tolist(), abs=1e-5)
        assert ours["modelP"][:n] == pytest.approx(step.model_p[:n].tolist(), abs=1e-5)


def test_random_numbers_are_torchs_and_ties_and_extremes_are_drawn_as_in_python(opened):
    page, _ = opened("char")
    take = "seed => { const next = randomNumbers(seed); return Array.from({length: 1500}, () => next.next().value); }"
    for seed in (0, 1337, 2**32 + 7, 2**64 - 1, -1):
        numbers = random_numbers(seed)
        assert page.evaluate(take, str(seed)) == [next(numbers) for _ in range(1500)]
    logits = np.float32([0, -0.0, 3, -2, 3, -5, 1e-40, 1e30, -1e30, 3])
    for penalty, k, p, minimum in [(1, 0, 1, 0), (2, 5, 1, 0), (1, 0, 0.5, 0), (1, 8, 1, 0.4)]:
        sampling = Sampling(0.7, k, p, minimum, penalty)
        for number in (0.0, 0.3, 0.999999):
            step = choose(find_candidates(logits, sampling, np.isin(np.arange(10), [2, 7])), number, sampling)
            given = {"logits": logits.tolist(), "number": number, "sampling": vars(sampling)}
            found = page.evaluate(
                "g => { const s = choose("
                " findCandidates(Float32Array.from(g.logits), g.sampling, new Set([2, 7])), g.number, g.sampling);"
                " return [s.token, Array.from(s.ids), s.kept]; }",
                given,
            )
            assert found == [step.token, step.ids.tolist(), list(step.kept)]


ENCODE = """async (texts) => {
  const found = [];
  for (const text of texts) {
    const digest = await crypto.subtle.digest("SHA-256", Uint16Array.from(tokenizer.encode(text)));
    found.push(Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join(""));
  }
  return found;
}"""


def standard_library(number: int) -> list[str]:
    """So many of its files, or all, as text."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts]
    return [path.read_bytes().decode("utf-8", errors="replace") for path in files[:: max(1, len(files) // number)]]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_are_the_tokenizers(opened, kind):
    tokenizer = TOKENIZERS[kind]
    page, _ = opened(kind)
    texts = page.evaluate("Array.from({length: tokenizer.vocab_size}, (_, id) => textOf(id))")
    assert texts == [token_text(tokenizer, id) for id in range(tokenizer.vocab_size)]
    bits = [0, 0.99, 1, 3, 4, 8, 11.9, 12, 99]
    assert page.evaluate("bits => bits.map(level)", bits) == list(map(surprise_level, bits))
    if kind != "none":
        halves = page.evaluate("tokenizer.encode('a\\ud83d b\\ude00')")  # of surrogate pairs
        assert halves == tokenizer.encode("a\ufffd b\ufffd").tolist()


@runs(30, 100_000)
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_ids_are_the_tokenizers(opened, kind, number):
    """On files of the standard library, and on nasty Unicode."""
    page, _ = opened(kind)
    tokenizer, texts = TOKENIZERS[kind], standard_library(number)
    encoder = BPEEncoder(tokenizer) if kind == "bpe" else CharacterEncoder(tokenizer)  # the fast ones, for so much
    ids = [np.concatenate(list(encoder.encode(join_documents([text.encode()]))))[:-1] for text in texts]
    texts, ids = [*texts, *NASTY, *CORPUS], [*ids, *map(tokenizer.encode, [*NASTY, *CORPUS])]
    expected = [hashlib.sha256(found.astype("<u2").tobytes()).hexdigest() for found in ids]
    found = []
    for first in range(0, len(texts), 200):
        found += page.evaluate(ENCODE, texts[first : first + 200])
    assert len(texts) > min(number, 100)
    assert [text[:80] for text, a, b in zip(texts, expected, found, strict=True) if a != b] == []


# --- write ------------------------------------------------------------------------------------------------------------


def texts_of(page, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def expected_steps(model, kind: str, prompt: str, count: int, **changes):
    writer = Writer(model, TOKENIZERS[kind])
    writer.read(prompt)
    return [step for (step,) in writer.steps(replace(CHAR, tokens=count, show=10, **changes))]


def taken(page) -> list[int]:
    return page.evaluate("steps.map(({token}) => token)")


@pytest.mark.parametrize("kind", ["bpe", "none"])
def test_it_writes_steps_back_and_starts_over(opened, kind):
    page, model = opened(kind, "--prompt", PROMPT[kind])
    assert page.input_value("#prompt") == PROMPT[kind]
    expected = expected_steps(model, kind, PROMPT[kind], 3)
    for count in (1, 2, 3):
        page.click("#one")
        wait_until(page, f"steps.length === {count} && upcoming !== null")
    assert taken(page) == [step.token for step in expected[:3]]
    page.click("#back")
    wait_until(page, "steps.length === 2 && upcoming !== null")
    assert page.evaluate("upcoming.token") == expected[2].token
    page.select_option("#speed", "0")
    said = page.evaluate("() => { byId('play').click(); return byId('play').textContent; }")
    assert said.endswith("Pause")
    wait_until(page, "steps.length >= 20 || ended")
    page.evaluate("playing && document.getElementById('play').click()")  # at once: the text may be about to end
    wait_until(page, "!playing")
    if not page.evaluate("ended"):
        count = len(taken(page))
        page.click("#one")
        wait_until(page, f"steps.length === {count + 1} && (upcoming !== null || ended)")
    tokens = taken(page)
    assert tokens == [step.token for step in expected_steps(model, kind, PROMPT[kind], len(tokens))]
    shown = page.evaluate("paper.parts.slice(1).join('')")
    assert page.inner_text("#paper").startswith(PROMPT[kind])
    if not page.evaluate("ended"):
        whole = TOKENIZERS[kind].decode(taken(page))
        assert whole.rstrip("\ufffd").startswith(shown.rstrip("\ufffd")) and shown
    page.click("#restart")
    wait_until(page, "steps.length === 0 && upcoming !== null")
    assert page.evaluate("upcoming.token") == expected[0].token


COLOURS = """async (ids) => {
  const wrong = [];
  const check = () => paper.lines.forEach(({first, texts}, i) => texts.forEach((text, k) => {
    const {className: name, textContent} = paper.box.children[i].children[k], part = first + k;
    const here = shown === part - 1 ? " here" : "";
    const expected = part ? "l" + level(-Math.log2(steps[part - 1].p)) + here : "given";
    if (name !== expected || textContent !== text) wrong.push([steps.length, part, name, expected]);
  }));
  for (const [i, id] of ids.entries()) {
    append({...upcoming, token: id, p: 2 ** -(i % 14)});
    shown = steps.length - 1;
    if (!await prepare()) throw new Error("overtaken");
    if (i % 3) showStep();
    if (i % 3) check();
  }
  for (const count of [20, 19, 3]) {
    await back(count);
    check();
  }
  shown = 1;
  showStep();
  check();
  return wrong;
}"""


def test_each_token_keeps_its_colour_while_lines_are_added(opened):
    page, _ = opened("char", "--prompt", "def\n  add")
    ids = TOKENIZERS["char"].encode("(a,\n\n  b):\n return a\n\n\n + b\n" * 2).tolist()
    assert page.evaluate(COLOURS, ids) == []


INTERRUPTED = """async () => {
  const original = ask, wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  ask = async (name, given, progress) => {
    const result = await original(name, given, progress);
    if (name === "step" && result) result.after = given.ids.join();
    return result;
  };
  await startOver();
  const wrong = [], actions = [one, pause, startOver, () => back(steps.length - 3), () => branch(drawn?.step.ids[1]),
    () => { pause(); play(); }, () => { one(); one(); }];
  for (let i = 0; i < 28; i++) {  // each action at each speed, after different times
    byId("speed").value = ["60", "0", "15"][i % 3];
    play();
    await wait(i % 8);
    actions[i % actions.length]();
    await wait(20);
    playing = null;
    await wait(20);
    steps.forEach(({after}, k) => {
      if (after !== written().slice(0, promptIds.length + k).join()) wrong.push([i, k, steps.length]);
    });
  }
  return wrong;
}"""


def test_each_token_was_computed_for_the_text_before_it(opened):
    """Whatever a user does while the page writes: what comes too late does not count."""
    page, _ = opened("bpe", "--prompt", "def")
    assert page.evaluate(INTERRUPTED) == []


def test_a_candidate_is_that_of_the_step_which_is_drawn(opened):
    """At full speed the text is ahead of what is drawn."""
    page, _ = opened("bpe", "--prompt", "def")
    ahead = """async () => {
      for (let i = 0; i < 12; i++) {
        if (!upcoming && !await prepare()) throw new Error("overtaken");
        append(upcoming);
        shown = steps.length - 1;
        if (i === 5) showStep();
      }
      const other = drawn.step.ids[1];
      await branch(other);
      return [steps.length, steps[5].token === other];
    }"""
    assert page.evaluate(ahead) == [6, True]


def test_a_slower_speed_counts_from_the_next_token(opened):
    page, _ = opened("char", "--prompt", "def")
    page.select_option("#speed", "0")
    page.click("#play")
    wait_until(page, "steps.length > 20 || ended")
    if not page.evaluate("ended"):
        page.select_option("#speed", "3")
        page.wait_for_timeout(100)
        count = page.evaluate("steps.length")
        wait_until(page, f"steps.length > {count} || ended", tries=60)


def test_candidates_show_both_probabilities_and_where_the_number_falls(opened):
    page, model = opened("bpe", "--prompt", "def", "--precision", "float32")
    (step,) = expected_steps(model, "bpe", "def", 1)
    rows = page.locator("#candidates button")
    count = rows.count()
    assert count == 10 + (step.rank > 10)
    for i in range(10):
        texts = rows.nth(i).locator("code, .number").all_text_contents()
        assert texts[0] == token_text(TOKENIZERS["bpe"], step.ids[i])
        for shown, p in zip(texts[1:], (step.sampled_p[i], step.model_p[i]), strict=True):
            assert shown in ("<0.1%", "0%") or float(shown.rstrip("%")) == pytest.approx(100 * p, abs=0.0501)
    assert (
        f"random number {step.random_number:.4f} falls on {token_text(TOKENIZERS['bpe'], step.token)}."
        in page.inner_text("#line-words")
    )
    assert f"{step.kept[2]} of {len(TOKENIZERS['bpe'].library.get_vocab())} tokens" in page.inner_text("#step-words")
    assert page.locator("#candidates .chosen").get_attribute("data-id") == str(step.token)


def test_another_candidate_branches_and_settings_change_while_it_writes(opened):
    page, _ = opened("bpe", "--prompt", "def")
    for count in (1, 2, 3):
        page.click("#one")
        wait_until(page, f"steps.length === {count} && upcoming !== null")
    first = taken(page)[0]
    page.locator("#paper span").nth(2).click()  # the second token
    assert page.inner_text("#step-title") == "Token 2"
    other = page.locator("#candidates button:not(.chosen)").first
    wanted = int(other.get_attribute("data-id"))
    other.click()
    wait_until(page, "steps.length === 2 && upcoming !== null")
    assert taken(page) == [first, wanted]
    # the number that decides the third token is still the third
    numbers = random_numbers(CHAR.seed)
    assert page.evaluate("upcoming.randomNumber") == [next(numbers) for _ in range(3)][2]
    page.fill("#temperature", "0")
    wait_until(page, "upcoming?.kept[0] === 50 && upcoming.sampledP[0] === 1")
    assert page.locator("#temperature-shown").text_content() == "0.00"
    page.fill("#seed", "7")
    wait_until(
        page, f"upcoming?.randomNumber === {[n for n, _ in zip(random_numbers(7), range(3), strict=False)][2]!r}"
    )
    page.fill("#seed", "seven")
    assert page.get_attribute("#seed", "aria-invalid") == "true"
    # the slider goes through the steps
    page.locator("#moment").focus()
    page.keyboard.press("Home")
    assert page.inner_text("#step-title") == "Token 1"
    assert page.inner_text("#moment-shown") == "1 of 2"


def test_a_prompt_is_read_as_generating_reads_it(opened):
    page, _ = opened("char")
    assert page.evaluate("promptIds") == [0]
    page.fill("#prompt", "x" * 40 + "€")
    wait_until(page, "promptIds.length === 32 && upcoming !== null")
    assert page.inner_text("#prompt-note") == (
        "The prompt has 41 tokens. The model sees 32: the last 32 count. "
        "Some of its characters were never seen in training."
    )
    page, _ = opened("none")
    page.fill("#prompt", "17 400")
    wait_until(page, "byId('prompt-note').textContent !== ''")
    assert "its texts are ids from 0 to 39" in page.inner_text("#prompt-note")


# --- read -------------------------------------------------------------------------------------------------------------


# Of each token the classes of the elements that show it: one, or one on every line that it is on
DRAWN_LEVELS = """() => {
  const found = readIds.map(() => new Set());
  for (const span of byId("coloured-text").querySelectorAll("span")) {
    found[coloured.partOf(span)].add(span.className.slice(0, 2));
  }
  return found.map((classes) => Array.from(classes));
}"""


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_it_reads_as_the_surprise_map_does(opened, kind):
    """More than two windows; then edits at the end, in the middle and at the start give what reading afresh gives."""
    page, model = opened(kind, "--precision", "float32")
    page.click("#tab-read")
    text = TEXT * 3 if kind == "bpe" else (TEXT * 3)[:75]
    for given in (text, text + "x", text[:50] + "q" + text[53:], "", text[20:]):
        page.fill("#given", given)
        tokens = len(TOKENIZERS[kind].encode(given))
        wait_until(page, f"readIds.length === {tokens} && readRows.length === {tokens + 1}")
        if not given:
            continue
        found = score_text(model, TOKENIZERS[kind], given, 10)
        rows = page.evaluate("readRows")
        bits = [row["bits"] for row in rows[:-1]]
        assert bits == pytest.approx(found.scores.bits.tolist(), abs=1e-4)
        assert [row["rank"] for row in rows[:-1]] == found.scores.rank.tolist()
        assert "bits" not in rows[-1] and len(rows[-1]["ids"]) == 10
        per_byte = sum(bits) / len(given.encode())
        assert page.inner_text("#read-words").endswith(f"bits: {per_byte:.3f} bits per byte")
        wait_until(page, "coloured.parts === parts")
        assert "\n".join(texts_of(page, "#coloured-text > div")) == given
        levels = page.evaluate(DRAWN_LEVELS)
        assert levels == [[f"l{surprise_level(b)}"] for b in bits]
    page.evaluate("byId('given').setSelectionRange(5, 5); atCursor()")
    at = next(i for i in range(len(bits)) if page.evaluate(f"parts.slice(0, {i} + 1).join('').length > 5"))
    assert texts_of(page, "#expected code") == [token_text(TOKENIZERS[kind], id) for id in rows[at]["ids"]]
    assert f"surprise of {bits[at]:.2f} bits" in page.inner_text("#cursor-words")


def test_typing_is_shown_at_once(opened):
    page, _ = opened("bpe")
    page.click("#tab-read")
    wait_until(page, "byId('expected').children.length === 10")  # what it expects before any text
    shown = page.evaluate(
        "() => { given.value = 'abc'; given.dispatchEvent(new Event('input'));"
        " return byId('coloured-text').textContent; }"
    )
    assert shown.startswith("abc")
    wait_until(page, "readRows.length > 1")


def test_typing_draws_only_the_line_that_changes(opened):
    """In a text of thousands of characters, only the line that changes is drawn again. How long that takes is for a
    machine that does nothing else."""
    page, _ = opened("bpe")
    page.click("#tab-read")
    text = (TEXT * 120)[:2200]
    page.fill("#given", text)
    wait_until(page, "readRows.length === readIds.length + 1 && coloured.parts === parts && parts.length > 400")
    page.evaluate("byId('coloured-text').childNodes.forEach((line) => { line.wasThere = true; })")
    for at in (0, 1100, len(text)):
        page.evaluate(f"given.focus(); given.setSelectionRange({at}, {at})")
        page.keyboard.type("for x", delay=20)
    page.wait_for_timeout(100)
    new = page.evaluate("Array.from(byId('coloured-text').childNodes).filter((line) => !line.wasThere).length")
    assert new == 0 and page.input_value("#given").count("for x") == 3
    assert page.evaluate(
        "Array.from(byId('coloured-text').childNodes, (line) => line.textContent).join('\\n') === given.value"
    )


STALE = """async () => {
  const original = ask, late = [];
  ask = (name, given, progress) => original(name, given, (sent) => late.push(() => progress(sent)));
  for (const text of ["one", "one two"]) {
    given.value = text;
    read();
    await new Promise((resolve) => setTimeout(resolve, 150));  // what the worker said is here, and not yet drawn
    if (text === "one") continue;
    late.shift()();  // the ids of the first text
    return byId("coloured-text").textContent;
  }
}"""


def test_an_answer_about_an_earlier_text_is_not_drawn(opened):
    page, _ = opened("bpe")
    page.click("#tab-read")
    assert page.evaluate(STALE) == "one two"


# --- look -------------------------------------------------------------------------------------------------------------


def test_every_figure_of_a_pass_is_pythons(opened):
    page, model = opened("bpe", "--precision", "float32", "--prompt", TEXT[:18])
    page.click("#tab-look")
    ids = TOKENIZERS["bpe"].encode(TEXT[:18]).tolist()
    T, L, H = len(ids), SHAPE["n_layer"], SHAPE["n_head"]
    wait_until(page, f"looked.lens.length === {T} && looked.lens[0] && looked.drawn && byId('sum')")
    forward = trace_forward(model, ids)
    found = page.evaluate(
        "Array.from({length: pass.L * pass.H}, (_, h) =>"
        " pass.ids.map((_, i) => pass.ids.map((_, j) => pass.weight(h, i, j))))"
    )
    torch.testing.assert_close(torch.tensor(found), forward.attention.flatten(0, 1), rtol=0, atol=1e-5)
    for layer in range(L + 1):
        p = logit_lens(model, forward.residual[layer]).softmax(-1)
        for i in range(T):
            row = page.evaluate(
                "([l, i]) => { const {ids, p, rank, nextP} = pass.lens(l, i); return {ids, p, rank, nextP}; }",
                [layer, i],
            )
            assert row["ids"] == p[i].topk(5).indices.tolist()
            assert row["p"] == pytest.approx(p[i].topk(5).values.tolist(), abs=1e-5)
            if i + 1 < T:
                assert row["rank"] == 1 + (p[i] > p[i, ids[i + 1]]).sum()
                assert row["nextP"] == pytest.approx(p[i, ids[i + 1]].item(), abs=1e-5)
    for i in (T - 1, 2):
        page.locator("#tokens .token").nth(i).click()
        wait_until(page, f"lookAt === {i}")
        found = page.evaluate(
            "([i, actual]) => ask('attribute', {position: i, actual: actual ?? undefined, show: 5})",
            [i, ids[i + 1] if i + 1 < T else None],
        )
        assert [one["name"] for one in found["components"]] == forward.components
        for c, one in enumerate(found["components"]):
            adds = attribution(model, forward, c)[i]
            assert one["adds"] == pytest.approx(adds[torch.tensor(found["ids"])].tolist(), abs=1e-4)
            assert one["promotes"] == adds.topk(3).indices.tolist()
            norm = (forward.outputs[c, i].norm() / forward.residual[-1, i].norm()).item()
            assert one["size"] == pytest.approx(norm, abs=1e-4)
        sums = [sum(one["adds"][k] for one in found["components"]) for k in range(5)]
        assert sums == pytest.approx(forward.logits[i, torch.tensor(found["ids"][:5])].tolist(), abs=1e-4)
    assert page.locator("#heads button").count() == L * H
    assert page.inner_text("#head-words").count(". ") >= 1 and page.inner_text("#head-words").endswith(".")


def test_it_looks_at_what_it_writes_and_reads(opened):
    page, _ = opened("bpe", "--prompt", "def")
    page.click("#tab-look")
    wait_until(page, "looked.lens[0] !== undefined && looked.drawn")
    before = page.locator("#tokens .token").count()
    page.click("#look-one")
    wait_until(page, f"looked.ids.length === {before + 1} && looked.lens[0] !== undefined && looked.drawn")
    assert page.locator("#tokens .token").count() == before + 1
    page.click("#tab-read")
    page.fill("#given", TEXT)
    tokens = len(TOKENIZERS["bpe"].encode(TEXT))
    wait_until(page, f"readRows.length === {tokens + 1}")
    page.click("#tab-look")
    page.select_option("#source", "read")
    wait_until(
        page,
        f"looked.ids.length === {min(tokens + 1, SHAPE['block_size'])} && looked.lens[0] !== undefined && looked.drawn",
    )
    heads = page.locator("#heads button")
    heads.nth(5).click()
    assert page.inner_text("#row-title").startswith("L1H1:")
    assert page.locator("#look-one").is_hidden()


# --- know -------------------------------------------------------------------------------------------------------------


def test_it_knows_what_it_is(opened, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    log = Log(run, None)
    for step, loss in ((1, 4.5), (2, 3.5), (3, 2.5)):
        log.write(step=step, loss=loss, val_loss=loss)
    training = {
        "val_loss": 2.5,
        "tokens_seen": 12345,
        "data": {"source": "my <b>data</b>.txt", "documents": 7, "utf8_bytes": 1000},
    }
    page, model = opened("bpe", "--run", run, "--precision", "int8", training=training)
    page.click("#tab-know")
    counts = model.parameter_counts()
    assert [int(text.replace(",", "")) for text in texts_of(page, "#parameters .number")] == list(counts.values())
    assert "2 layers of 4 heads, 32 channels" in page.inner_text("#about")
    facts = page.inner_text("#training")
    assert (
        "12,345" in facts
        and "2.5000 nats per token" in facts
        and "my <b>data</b>.txt, 7 documents, 1,000 bytes" in facts
    )
    assert "int8" in page.inner_text("#file")
    assert page.locator("#curve svg circle").count() == 3
    page, _ = opened("bpe", "--run", run, training=training | {"val_loss": 2.4})  # the log of another model
    page.click("#tab-know")
    assert page.locator("#curve svg").count() == 0


# --- one safe file ----------------------------------------------------------------------------------------------------


def test_a_damaged_page_says_so(export, open_page, tmp_path):
    path, _ = export("bpe")
    source = path.read_text("utf-8")
    at = source.index("id=weights>") + 2000
    damages = {
        "a weight": source[:at] + ("A" if source[at] != "A" else "B") + source[at + 1 :],
        "the vocabulary": source.replace('"n_layer":2', '"n_layer":1'),
        "cut off in the weights": source[: at + 4000],
        "cut off before them": source[: at - 2100],
        "letters that are not base64": source[:at] + "!!!!" + source[at + 4 :],
    }
    for name, damaged in damages.items():
        assert damaged != source
        other = tmp_path / "damaged.html"
        other.write_text(damaged, "utf-8")
        page = open_page(other)
        page.wait_for_selector("#alert:not([hidden])")
        assert page.inner_text("#alert").startswith("This page is damaged and cannot be used: "), name
        assert page.locator("#play").is_disabled()


def test_it_is_one_file_without_addresses_and_nothing_in_it_becomes_markup(opened, tmp_path, monkeypatch):
    page, _ = opened("char", "--prompt", "</script><script>alert(1)</script><b>")
    source = (tmp_path / "page.html").read_text("utf-8")
    assert source.count("</script>") == 5
    assert re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+|@import|url\(|<link|src=", source) == []
    assert "%%" not in source and "default-src 'none'" in source
    assert page.input_value("#prompt").startswith("</script>")
    wait_until(page, "upcoming !== null")
    page.click("#tab-read")
    page.fill("#given", "<b>&amp;</b> <img>")
    wait_until(page, "readRows.length > 10")
    assert page.locator("main b:not(#line b), main img, #coloured-text b").count() == 0


def test_a_prompt_that_is_no_text_does_not_damage_the_page(opened):
    page, _ = opened("bpe", "--prompt", "a\udc80")
    assert page.evaluate("promptIds") == TOKENIZERS["bpe"].encode("a\ufffd").tolist()
    # What the model is, in a part that nobody has opened: it would be printed.
    wait_until(page, "byId('about').textContent.includes('parameters')")


def test_nothing_sticks_out(opened):
    """In the dark, which changes colours only, so that there is a page of a dark screen too."""
    page, _ = opened("bpe", "--prompt", "def", dark=True, width=390)
    page.click("#one")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        for tab in ("write", "read", "look", "know"):
            page.click(f"#tab-{tab}")
            assert page.locator(f"#{tab}").is_visible()
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 700, "height": 1000})  # about A4
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_everything_works_by_keyboard(opened):
    page, _ = opened("bpe", "--prompt", "def")
    page.locator("#tab-write").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#read").is_visible() and page.locator("#write").is_hidden()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.locator("#candidates button").nth(1).focus()
    page.keyboard.press("Enter")
    wait_until(page, "steps.length === 1 && upcoming !== null")
    for name in page.evaluate(
        "Array.from(document.querySelectorAll('button, input, select, textarea'), (e) =>"
        " e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label') ? '' : e.outerHTML)"
    ):
        assert name == ""


def test_what_cannot_be_exported_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model("bpe")
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    save_model(tmp_path / "large.pt", model, TOKENIZERS["bpe"], {"steps": 1, "val_bits_per_byte": 1.0})
    with pytest.raises(UserError, match="too large for float16. Try --precision float32"):
        export_html.main(["--model", "large.pt", "--output", "page.html"])
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UsageError, match="--output would replace large.pt"):
        export_html.main(["--model", "large.pt", "--output", "large.pt"])
    export_html.main(["--model", "large.pt", "--output", "page.html", "--precision", "int8"])
    assert "Next: open page.html" in capsys.readouterr().out


def test_a_page_is_small(export):
    """The program is below 150 KB, the page of the default BPE model 5 MB at most, that of characters 2.5 MB."""
    source = export("bpe")[0].read_text("utf-8")
    contents = re.search(r"id=data [^>]*>(.*?)</script>.*id=weights>(.*?)</script>", source, re.DOTALL)
    code = len(source.encode()) - len(contents[1].encode()) - len(contents[2])
    assert code < 150_000
    assert len(contents[2]) == math.ceil(json.loads(contents[1])["bytes"] / 3) * 4
    for vocab_size, layers, limit in ((4096, 3, 5e6), (156, 4, 2.5e6)):
        weights = sum(w.numel() for w in GPT(vocab_size, n_layer=layers).parameters())
        tokenizer = 30 * vocab_size  # bytes of JSON: a token and a merge
        assert 4 / 3 * 2 * weights + tokenizer + code < limit
