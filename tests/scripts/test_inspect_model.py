"""The page of one forward pass: its figures against the model, its program in a browser, and the short form."""

import base64
import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from config import ROOT
from model.generation.sampling import apply_temperature, sampling_probabilities
from model.gpt import GPT
from model.interpretation import inspect_page
from model.interpretation.forward_pass import trace_forward
from model.storage.model_file import save_model
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.errors import UsageError, UserError
from plumbing.text import cell_width
from scripts import inspect_model

TEXT = "def add(a, b):\n\treturn a + b  # naïve 日本 & </script><b>\n"
TOKENIZERS = {
    "char": Tokenizer(make_character_tokenizer(TEXT).to_str()),
    "bpe": Tokenizer(train_bpe_tokenizer([TEXT * 2, "return added, adding"], vocab_size=300).to_str()),
}
BLOCK = 64
NUMPY = {"Float32Array": "<f4", "Uint16Array": "<u2", "Uint32Array": "<u4"}


def make_model(kind):
    torch.manual_seed(7)
    model = GPT(TOKENIZERS[kind].vocab_size, block_size=BLOCK, n_layer=2, n_head=2, n_embd=16)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.4)
    return model.eval()


def unpack(packed):
    array = np.frombuffer(base64.b64decode(packed["data"]), NUMPY[packed["type"]])
    return torch.from_numpy(array.reshape(packed["shape"]).astype(np.float64))


@pytest.fixture(params=["char", "bpe"])
def kind(request):
    return request.param


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Run the script: inspect(kind, prompt, *flags). Returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(kind, prompt, *flags):
        model_file = tmp_path / f"{kind}.pt"
        if not model_file.exists():
            save_model(model_file, make_model(kind), TOKENIZERS[kind], {"steps": 3, "val_bits_per_byte": 1.5})
        argv = ["--prompt", prompt, "--model", str(model_file), "--device", "cpu", *map(str, flags)]
        inspect_model.main(argv)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of TEXT, of a model of each kind."""
    found = {}
    for kind, tokenizer in TOKENIZERS.items():
        folder = tmp_path_factory.mktemp(kind)
        save_model(folder / "m.pt", make_model(kind), tokenizer, {"steps": 3, "val_bits_per_byte": 1.5})
        found[kind] = folder / "page.html"
        given = {"--prompt": TEXT, "--model": folder / "m.pt", "--device": "cpu", "--html": found[kind]}
        inspect_model.main([str(part) for pair in given.items() for part in pair])
    return found


def data_of(path):
    return json.loads(re.search(r"id=data>(.*?)</script>", path.read_text("utf-8"), re.DOTALL)[1])


# --- the figures ------------------------------------------------------------------------------------------------------


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=atol)


def test_every_figure_of_the_page_is_the_models(pages, kind):
    data, model, tokenizer = data_of(pages[kind]), make_model(kind), TOKENIZERS[kind]
    ids = tokenizer.encode(TEXT).astype(int)
    T = len(ids)
    assert data["ids"] == ids.tolist()
    assert [bytes.fromhex(text) for text in data["bytes"]] == [tokenizer.token_bytes(token) for token in ids]
    weights = []
    with torch.no_grad():
        logits = model(torch.tensor(ids)[None], weights=weights)[0]
    log_p = F.log_softmax(logits, dim=-1)

    # attention, by the path that the parity tests hold against the fused one
    triangle = torch.zeros(2, 2, T, T, dtype=torch.float64)
    triangle[..., *np.tril_indices(T)] = unpack(data["attention"]) / 65535
    close(triangle, torch.stack([w[0] for w in weights]))
    # the logit lens: its last row is the model's own prediction
    close(unpack(data["lens_p"])[-1], log_p.exp().topk(5).values)
    assert torch.equal(unpack(data["lens_ids"])[-1].long(), log_p.topk(5).indices)
    own = log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None])
    close(unpack(data["next_p"])[-1], own[:, 0].exp())
    assert torch.equal(unpack(data["next_rank"])[-1].long(), 1 + (log_p[:-1] > own).sum(-1))
    first = F.linear(F.rms_norm(model.embedding.weight[ids], (16,), model.norm.weight, 1e-6), model.head.weight)
    close(unpack(data["lens_p"])[0], first.softmax(-1).topk(5).values)
    # the attributions of a token add up to its logit
    attributed, added = unpack(data["attributed_ids"]).long(), unpack(data["attribution"])
    close(added.sum(0), logits.gather(1, attributed))
    assert attributed[:-1, -1].tolist() == ids[1:].tolist()
    # candidates and surprise
    close(unpack(data["logits"]), logits)
    close(unpack(data["surprise"]), -own[:, 0] / math.log(2))
    # neighbours
    table = F.normalize(model.embedding.weight, dim=-1)
    for token, row in data["neighbours"].items():
        cosines = table @ table[int(token)]
        assert [c for _, c in row] == pytest.approx(cosines.sort(descending=True).values[1:9].tolist(), abs=1e-4)
        assert all(c == pytest.approx(cosines[other].item(), abs=1e-4) for other, c in row)
    named = set(map(int, data["texts"]))
    assert named >= {*ids.tolist(), *attributed.flatten().tolist(), *unpack(data["promoted"]).long().flatten().tolist()}


def test_a_long_prompt_counts_by_its_end_as_in_generating(inspect, tmp_path):
    out = inspect("char", TEXT * 3, "--html", "page.html")
    assert f"the last {BLOCK} count" in out
    assert data_of(tmp_path / "page.html")["ids"] == TOKENIZERS["char"].encode(TEXT * 3)[-BLOCK:].tolist()
    inspect("char", "", "--html", "page.html")
    assert data_of(tmp_path / "page.html")["ids"] == [0]
    assert "read as <|unk|>: '€'" in inspect("char", "€")


def test_the_page_is_one_file_without_addresses_and_its_data_cannot_end_its_script(pages):
    source = pages["bpe"].read_text("utf-8")
    assert source.count("</script>") == 2  # its data and its program
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\(|<link|src=", source) == []
    assert "%%" not in source
    template = (ROOT / "scripts" / "pages" / "inspect_model.html").read_text("utf-8")
    assert "default-src 'none'" in template


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_the_short_form(inspect, kind):
    out = inspect(kind, TEXT, "--text", "--head", "l1h0", "--show", 3)
    assert "The logit lens" in out and "layer 1" in out
    assert "Head L1H0: " in out
    model, tokenizer = make_model(kind), TOKENIZERS[kind]
    with torch.no_grad():
        p = model(torch.tensor(tokenizer.encode(TEXT).astype(int))[None])[0, -1].softmax(-1).topk(3)
    shown = re.findall(r"^   id +(\d+) .* ([\d.]+)%$", out, re.MULTILINE)
    assert [int(token) for token, _ in shown] == p.indices.tolist()
    assert [float(share) for _, share in shown] == pytest.approx((100 * p.values).tolist(), abs=0.0051)
    assert "give a --prompt of several" not in out
    assert "give a --prompt of several" in inspect(kind, "d", "--text")  # one token


@pytest.mark.parametrize("width", [70, 80, 200])
@pytest.mark.parametrize("layers", [1, 2, 30])
def test_the_short_form_fits_into_the_terminal(tmp_path, monkeypatch, capsys, width, layers):
    monkeypatch.setenv("COLUMNS", str(width))
    model = GPT(TOKENIZERS["bpe"].vocab_size, block_size=24, n_layer=layers, n_head=2, n_embd=16)
    save_model(tmp_path / "m.pt", model, TOKENIZERS["bpe"], {"steps": 3, "val_bits_per_byte": 1.5})
    monkeypatch.setattr(inspect_model, "token_text", lambda tokenizer, token: f"日{token}" + "y" * (token % 30))
    inspect_model.main(["--prompt", TEXT, "--model", str(tmp_path / "m.pt"), "--text", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line for line in lines if cell_width(line) > width and not line.startswith("The logit lens")] == []
    titles = next(line for line in lines if line.startswith("  after"))
    assert "embedding" in titles and f"layer {layers - 1} " in titles
    assert (f"of {layers + 1}; the page has all" in "".join(lines)) == (layers == 30)


def test_what_it_refuses(inspect, tmp_path, capsys):
    with pytest.raises(UsageError, match="L0H0 to L1H1"):
        inspect("char", "d", "--head", "L2H0")
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="would replace"):
        inspect("char", "d", "--html", tmp_path / "char.pt")
    with pytest.raises(UsageError, match="--show"):
        inspect("char", "d", "--show", 0)
    with pytest.raises(UserError, match="not UTF-8"):
        inspect("char", "caf\udce9")


# --- the browser ------------------------------------------------------------------------------------------------------

# Of a tokenizer the page's program reads the texts of tokens, the kind, for one sentence, and the merges of BPE. So one
# kind is enough to show most of what it does.


@pytest.fixture
def page(pages, open_page):
    return open_page(pages["bpe"])


def ids_of(kind):
    return TOKENIZERS[kind].encode(TEXT).astype(int).tolist()


def test_choosing_a_token_by_click_and_by_keyboard(pages, open_page, kind):
    page = open_page(pages[kind])
    tokens = page.locator("#tokens .token")
    texts = [token_text(TOKENIZERS[kind], token) for token in ids_of(kind)]
    assert tokens.all_inner_texts() == texts
    tokens.nth(2).click()
    assert page.locator("#tokens [aria-selected=true]").count() == 1
    assert f"is token 3 of {len(texts)}, id {ids_of(kind)[2]}," in page.inner_text("#token-facts")
    page.keyboard.press("ArrowRight")
    assert "is token 4 of" in page.inner_text("#token-facts")
    page.keyboard.press("End")
    assert f"is token {len(texts)} of" in page.inner_text("#token-facts")
    page.keyboard.press("Home")
    assert "is token 1 of" in page.inner_text("#token-facts")
    assert page.locator("#neighbours tr").count() == 8
    assert page.evaluate("document.activeElement.id") == "t0"
    if kind == "bpe":
        assert page.locator("#merges tr").count() >= 1


def test_heads_enlarge_on_click_and_show_the_row_under_the_pointer(page):
    heads = page.locator("#heads button")
    assert heads.count() == 4
    heads.nth(3).click()
    assert heads.nth(3).get_attribute("aria-pressed") == "true"
    assert page.inner_text("#row-title").startswith("L1H1:")
    seen = trace_forward(make_model("bpe"), ids_of("bpe"))
    T = len(ids_of("bpe"))
    box = page.locator("#large").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] * 6.5 / T)
    assert page.inner_text("#row-title") == "L1H1: where token 7 looks"
    assert page.locator("#row .token").count() == 7
    best = seen.attention[1, 1, 6, :7].max().item()
    share = re.search(r"([\d.]+)%", page.locator("#row-top li").first.inner_text())[1]
    assert float(share) == pytest.approx(100 * best, abs=0.051)
    page.locator("#large").focus()
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#row-title").endswith("token 8 looks")
    heads.nth(3).focus()
    page.keyboard.press("ArrowUp")  # to the layer before
    assert page.inner_text("#row-title").startswith("L0H1:")
    # The large picture has a pixel for each pair of tokens.
    assert page.evaluate("[byId('large').width, byId('large').height]") == [T, T]


def test_components_add_up_on_the_page(page):
    page.locator("#tokens .token").nth(5).click()
    logits = trace_forward(make_model("bpe"), ids_of("bpe")).logits[5]
    top = logits.topk(2)
    assert float(page.inner_text("#sum")) == pytest.approx(top.values[0].item(), abs=0.0051)
    page.select_option("#towards", index=1)
    assert float(page.inner_text("#sum")) == pytest.approx(top.values[1].item(), abs=0.0051)
    assert page.locator("#components tbody tr").count() == 1 + 2 * 3 + 1


def test_the_lens_tells_ranks_on_hover(page):
    ids = ids_of("bpe")
    cell = page.locator("#lens tbody tr").nth(4).locator("td").nth(3)
    cell.hover()
    logits = trace_forward(make_model("bpe"), ids).logits[4]
    rank = 1 + int((logits > logits[ids[5]]).sum())
    assert f"has rank {rank}," in page.inner_text("#lens-detail")
    assert "After layer 1" in page.inner_text("#lens-detail")
    cell.click()
    page.keyboard.press("ArrowDown")
    assert "at token 6" in page.inner_text("#lens-detail")


def test_the_sliders_do_what_generating_does(page):
    logits = trace_forward(make_model("bpe"), ids_of("bpe")).logits[-1].double().sort(descending=True).values.numpy()
    for temperature, k, p in [(1, 0, 1), (0.5, 0, 0.8), (1.5, 4, 1), (0, 0, 1), (0.8, 10, 0.5)]:
        for name, value in (("temperature", temperature), ("top_k", k), ("top_p", p)):
            page.locator(f"#{name}").fill(str(value))
        expected, _ = sampling_probabilities(apply_temperature(logits, temperature), k, p)
        drawn = page.eval_on_selector_all("#candidates .drawn", "all => all.map((td) => Number(td.dataset.p))")
        assert drawn == pytest.approx(expected[:15].tolist(), abs=1e-5)
        possible = re.match(r"([\d,]+) of", page.inner_text("#left"))[1]
        assert int(possible.replace(",", "")) == np.count_nonzero(expected)


def test_the_candidates_are_those_after_the_chosen_token(page):
    """As everything on the page is about the chosen one."""
    ids = ids_of("bpe")
    logits = trace_forward(make_model("bpe"), ids).logits.float()
    for at in (3, len(ids) - 1, 0):
        page.locator("#tokens .token").nth(at).click()
        assert page.inner_text("#after").startswith(f"After token {at + 1} of {len(ids)}, ")
        top = logits[at].softmax(-1).topk(15)
        shown = page.locator("#candidates tbody tr td:first-child").all_inner_texts()
        assert shown == [token_text(TOKENIZERS["bpe"], token) for token in top.indices.tolist()]
        drawn = page.eval_on_selector_all("#candidates .drawn", "all => all.map((td) => Number(td.dataset.p))")
        assert drawn == pytest.approx(top.values.tolist(), abs=1e-5)


def test_of_a_long_prompt_the_last_tokens_have_candidates(inspect, open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_page, "MOST_LOGITS", 3 * TOKENIZERS["bpe"].vocab_size)
    inspect("bpe", TEXT, "--html", "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.locator("#candidates tbody tr").count() == 15
    page.locator("#tokens .token").nth(2).click()
    assert page.inner_text("#left") == "The page holds the logits of the last 3 tokens. Choose one of these."
    assert page.locator("#candidates tbody tr").count() == 0


def test_a_page_of_one_token(inspect, open_page, tmp_path):
    inspect("char", "d", "--html", "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.locator("#tokens .token").all_inner_texts() == ["d"]
    assert page.inner_text("#after").startswith("After token 1 of 1, ")


def test_the_large_matrix_has_labels_and_takes_taps(pages, open_page):
    """Of characters: the same text is more tokens, and not every one has room for a label."""
    page = open_page(pages["char"])
    ids, seen = ids_of("char"), trace_forward(make_model("char"), ids_of("char"))
    texts, T = [token_text(TOKENIZERS["char"], token) for token in ids], len(ids)
    for box in ("#rows", "#columns"):
        labels = page.locator(f"{box} span")
        assert 5 <= labels.count() <= 21
        assert set(labels.all_text_contents()) <= set(texts)
    box = page.locator("#large").bounding_box()
    at = {"clientX": box["x"] + box["width"] * 2.5 / T, "clientY": box["y"] + box["height"] * 5.5 / T}
    page.locator("#large").dispatch_event("pointerdown", {**at, "pointerType": "touch"})
    assert page.inner_text("#row-title") == "L0H0: where token 6 looks"
    p = seen.attention[0, 0, 5, 2].item()
    said = re.fullmatch(r"(.+) takes (<?[\d.]+)% from (.+)\.", page.text_content("#cell"))
    assert (said[1], said[3]) == (texts[5], texts[2])
    assert float(said[2].strip("<")) == pytest.approx(100 * p, abs=0.11)
    assert page.locator("#rows .here").text_content() == texts[5]
    assert page.locator("#columns .here").text_content() == texts[2]


def test_no_table_is_cut_on_a_phone(pages, open_page):
    """What cannot fit, such as a table of all layers, scrolls in its own box, the rest fits."""
    page = open_page(pages["bpe"], width=390)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#tokens .token").nth(3).click()
    for table in ("#neighbours", "#candidates", "#components"):
        assert page.evaluate(f"document.querySelector('{table}').getBoundingClientRect().right") <= 390, table
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


CONTRAST = """() => {
  const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((c) => text.startsWith("color(")
    ? c : c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  return Array.from({length: 101}, (_, i) => {
    const span = add(document.body, "span", "x");
    shade(span, i / 100);
    const {color, backgroundColor} = getComputedStyle(span), [a, b] = [light(color), light(backgroundColor)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""  # by the definition of WCAG 2.1


def test_the_page_in_the_dark_and_on_paper(pages, open_page):
    light, dark = open_page(pages["bpe"]), open_page(pages["bpe"], dark=True)
    colours = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in (light, dark)]
    assert colours == ["rgb(255, 255, 255)", "rgb(19, 19, 22)"]
    corner = "c => [...c.getContext('2d').getImageData(0, 0, 1, 1).data]"  # the first token looks at itself alone
    assert light.locator("#large").evaluate(corner) == [0x45, 0x27, 0xA0, 255]
    assert dark.locator("#large").evaluate(corner) == [0xFF, 0xC2, 0x4B, 255]
    for page in (light, dark):  # letters can be read on every shade
        contrasts = page.evaluate(CONTRAST)
        assert min(contrasts) >= 4.5
        assert max(contrasts) <= 21
    assert len(dark.pdf()) > 10_000  # printed, in light colours
