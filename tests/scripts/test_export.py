"""Exported models: transformers and the GGUF file give the same logits, ids and text; --init-from reads them back."""

import json
import os
import random
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from faults import Faults, end_of, left_over, start
from models import SMALL, random_model
from runs import same
from stored_runs import LINUX, peak_growth

import train
from config import CHAR
from dataset import open_tokens
from model.generation.sampling import generate, read
from model.gpt import GPT
from model.layers import mlp_size
from model.storage.huggingface import read_folder
from model.storage.model_file import load_model, save_model
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.byte_letters import LETTER_TO_BYTE
from model.tokenization.tokenizer import Tokenizer, load_tokenizer, make_character_tokenizer
from plumbing.corpus import END_OF_TEXT
from plumbing.errors import UsageError, UserError
from scripts import export_huggingface

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="transformers, the reference, is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors, the extra `export`, is not installed")

STANDARD_LIBRARY = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
ODD = ["", " ", "\n\n", f"a\n{END_OF_TEXT}\nb", f"x {END_OF_TEXT} y", "don't  I'll\tcafé 日本 🙂\r\n", "a , b ."]
ODD += ["e\u0301 \u00a0 \x00"]


def texts(every: int) -> list[str]:
    """Files of Python's standard library that are UTF-8."""
    found = []
    for path in STANDARD_LIBRARY[::every]:
        try:
            found.append(path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            continue
    return found


@pytest.fixture(scope="module", params=["char", "bpe"])
def exported(request, tmp_path_factory):
    """(folder, our model, our tokenizer), every weight away from its initial value."""
    folder = tmp_path_factory.mktemp(request.param)
    some = texts(100)
    library = make_character_tokenizer("".join(some)) if request.param == "char" else train_bpe_tokenizer(some, 700)
    tokenizer = Tokenizer(library.to_str(pretty=True))
    shape = {**SMALL, "vocab_size": tokenizer.vocab_size, "rotary_base": 30.0, "dropout": 0.1}
    model = random_model({**shape, "tie_embeddings": request.param == "char"})
    training = {"steps": 7, "val_bits_per_byte": 2.5, "data": {"source": "data/corpus.txt", "utf8_bytes": 4_000}}
    save_model(folder / "model.pt", model, tokenizer, training)
    run_export(folder / "model.pt", folder / "out")
    return folder / "out", model, tokenizer


# For tests of writing and reading the folder's files, in which a tokenizer is bytes like any others. The char model is
# the one with tied embeddings, which config.json has to say.
CHAR_ALONE = pytest.mark.parametrize("exported", ["char"], indirect=True)


def run_export(model: Path, folder: Path, *more: str) -> None:
    export_huggingface.main(["--model", str(model), "--output", str(folder), *more])


@torch.no_grad()
def test_logits_and_greedy_text_equal(exported):
    folder, model, _ = exported
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    idx = torch.randint(model.vocab_size, (3, model.block_size), generator=torch.Generator().manual_seed(2))
    logits = theirs(idx).logits
    assert logits.dtype == torch.float32 and logits.std() > 0.5
    torch.testing.assert_close(model(idx), logits, rtol=1e-4, atol=1e-4)

    config = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": -1, "pad_token_id": 0}
    written = []
    for prompt in idx[:, :4].tolist():
        cache = model.new_cache()
        logits = read(model, prompt, cache)[-1]
        steps = generate(model, prompt, logits, cache, replace(CHAR, tokens=16, temperature=0.0))
        written.append(prompt + [step.token for (step,) in steps])
        assert theirs.generate(torch.tensor([prompt]), **config)[0].tolist() == written[-1]
    assert len({token for ids in written for token in ids[4:]}) > 2, "the same token every time would prove little"


def check_ids(folder: Path, tokenizer: Tokenizer, documents: list[str]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs(documents, return_attention_mask=False)["input_ids"]
    for document, their_ids, our_ids in zip(documents, ids, map(tokenizer.encode, documents), strict=True):
        assert their_ids == our_ids.tolist(), document[:80]
        assert theirs.decode(their_ids[:2000]) == tokenizer.decode(our_ids[:2000])  # which takes longer


def test_ids_and_text_equal(exported):
    folder, _, tokenizer = exported
    check_ids(folder, tokenizer, ODD + texts(150))


@pytest.mark.slow
def test_ids_equal_on_the_whole_standard_library(exported):
    folder, _, tokenizer = exported
    check_ids(folder, tokenizer, texts(1))


@torch.no_grad()
def test_a_batch_of_texts_is_continued_as_each_alone(exported):
    """In the usual way of all versions of transformers: generate(**tokenizer(...))."""
    folder, _, _ = exported
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts, how = ["def ", "import os"], {"do_sample": False, "max_new_tokens": 9, "eos_token_id": -1}
    together = model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), **how)
    for prompt, written in zip(prompts, together, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), **how)[0]
        assert written[-len(alone) :].tolist() == alone.tolist()


def test_transformer_lens_opens_the_folder(exported):
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 3 is not installed")
    folder, model, _ = exported
    theirs = bridge.TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    idx = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx), model(idx), rtol=1e-3, atol=1e-3)


def test_special_tokens_chat_template_and_model_card(exported):
    folder, model, tokenizer = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == model.vocab_size
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == tokenizer.end_of_text_id
    said = [{"role": "user", "content": "def "}]
    assert theirs.apply_chat_template(said, tokenize=False) == "def "
    config = transformers.GenerationConfig.from_pretrained(folder)
    assert (config.temperature, config.top_k, config.do_sample) == (0.8, 50, True)
    card = (folder / "README.md").read_text("utf-8")
    assert "'corpus.txt'" in card and "4,000 bytes" in card and "2.5000" in card and "## Licence" in card
    assert not list(folder.glob("*.py"))


def test_an_export_replaces_an_export_and_nothing_else(exported, tmp_path, capsys):
    folder, _, _ = exported
    model = folder.parent / "model.pt"
    run_export(model, folder)
    assert "read back: the same" in capsys.readouterr().out
    (folder / "model.safetensors.0123456789abcdef.tmp").touch()  # left by one that was killed
    run_export(model, folder)
    assert not list(folder.glob("*.tmp"))
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="something other than an exported model"):
        run_export(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@CHAR_ALONE
@pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")
def test_an_export_that_was_killed_runs_again(exported, tmp_path):
    model, folder = exported[0].parent / "model.pt", tmp_path / "out"
    calls = 0
    for n in range(1, 200, 5):

        def killed(n=n):
            with Faults(at_call=n)():
                run_export(model, folder, "--quiet")

        if end_of(start(killed)) == 0:
            break
        calls = n
        run_export(model, folder, "--quiet")
        assert left_over(folder) == []
    assert calls > 30


def test_a_model_card_that_was_edited_is_kept(exported, tmp_path, capsys):
    model, folder = exported[0].parent / "model.pt", tmp_path / "out"
    card = folder / "README.md"
    run_export(model, folder)
    first = card.read_text("utf-8")
    card.write_text(first.replace("layers", "Layers").replace("Layers", "layers"), "utf-8")  # the same
    run_export(model, folder)
    assert card.read_text("utf-8") == first and "Next: edit" in capsys.readouterr().out
    for edited in (first.replace("Name their licences", "MIT"), "My own card\n", "", first + "\nMore.\n", "\udcff"):
        card.write_text(edited, "utf-8", errors="surrogateescape")
        run_export(model, folder)
        assert card.read_text("utf-8", errors="surrogateescape") == edited
        assert "kept as you edited it" in capsys.readouterr().out
    card.unlink()
    run_export(model, folder)
    assert card.read_text("utf-8") == first


def test_a_folder_gives_the_model_back(exported):
    folder, model, _ = exported
    architecture, weights, _ = read_folder(folder, model.block_size)
    assert {**architecture, "dropout": 0.1} == load_model(folder.parent / "model.pt")[0].architecture
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


# --- and back: --init-from --------------------------------------------------------------------------------------------


def train_on(settings, folder, **changed) -> list[dict]:
    """Train with --init-from in a new checkpoint folder. Returns the log's evaluations."""
    settings = replace(settings, checkpoint_dir=settings.checkpoint_dir / "more", eval_tokens=0, **changed)
    assert train.main(settings, fresh=False, init_from=folder) == 0
    lines = (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "val_loss" in entry]


def test_training_goes_on_from_a_folder(char, tmp_path, capsys):
    train.main(char, fresh=False)
    _, _, training = load_model(char.model_file)
    assert training["data"]["utf8_bytes"] > 0 and training["init_from"] == ""
    run_export(char.model_file, tmp_path / "exported")
    capsys.readouterr()
    # The flags say nothing of the architecture, the tokenizer's file is gone: the folder has both.
    char.tokenizer_file.unlink()
    plain = {name: getattr(CHAR, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    log = train_on(char, tmp_path / "exported", model_file=tmp_path / "more.pt", **plain)
    assert log[0]["step"] == 0 and log[0]["val_loss"] == pytest.approx(training["val_loss"], abs=1e-6)
    assert log[-1]["val_loss"] != log[0]["val_loss"]
    output = capsys.readouterr().out
    assert "The initial weights come from" in output and "equally likely" not in output
    model, _, training = load_model(tmp_path / "more.pt")
    assert model.block_size == char.block_size and training["init_from"] == "exported"
    run_export(tmp_path / "more.pt", tmp_path / "again")
    assert "starting from the weights of 'exported'" in (tmp_path / "again" / "README.md").read_text("utf-8")


def test_a_run_that_began_with_a_folder_no_longer_needs_it(char, tmp_path, capsys):
    train.main(char, fresh=False)
    run_export(char.model_file, tmp_path / "exported")
    char.tokenizer_file.unlink()
    plain = {name: getattr(CHAR, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    settings = replace(char, checkpoint_dir=tmp_path / "more", model_file=tmp_path / "more.pt", **plain)
    train.main(settings, init_from=tmp_path / "exported")
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"changed")
    capsys.readouterr()
    train.main(replace(settings, max_steps=12), init_from=tmp_path / "exported")
    assert "exported is not read again" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "exported")
    train.main(replace(settings, max_steps=14), init_from=tmp_path / "exported")
    model, _, training = load_model(tmp_path / "more.pt")
    assert (training["steps"], model.block_size) == (14, char.block_size)
    with pytest.raises(UserError, match="n_layer was 2, is 7"):
        train.main(replace(settings, n_layer=7), init_from=tmp_path / "exported")


def test_a_run_that_began_without_a_folder_does_not_go_on_with_one(char, tmp_path):
    train.main(char, fresh=False)
    run_export(char.model_file, tmp_path / "exported")
    with pytest.raises(UserError, match="the --init-from folder has changed .SHA-256 was of none"):
        train.main(replace(char, max_steps=12), init_from=tmp_path / "exported")


def test_training_goes_on_from_what_transformers_saved(char, tmp_path):
    """It writes the tokenizer in its own way. Token files that say only the hash of our file, as old ones do, fit too;
    and a run that began with one of these folders is resumed with what the other has."""
    train.main(char, fresh=False)
    run_export(char.model_file, tmp_path / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    tokenizer(["def", "import os"], padding=True, truncation=True, max_length=20)  # which is saved as well
    tokenizer.save_pretrained(tmp_path / "theirs")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    theirs = load_tokenizer(tmp_path / "theirs" / "tokenizer.json")
    assert theirs.sha256 != load_tokenizer(char.tokenizer_file).sha256
    assert "tokenizer_meaning" not in open_tokens(char.train_file).facts
    log = train_on(char, tmp_path / "theirs", model_file=tmp_path / "more.pt")
    assert log[0]["val_loss"] == pytest.approx(load_model(char.model_file)[2]["val_loss"], abs=1e-6)
    settings = replace(char, max_steps=12, tokenizer_file=tmp_path / "theirs" / "tokenizer.json")
    assert train.main(settings, fresh=False) == 0


def test_flags_and_data_that_contradict_the_folder_are_refused(char, tmp_path):
    train.main(char, fresh=False)
    folder = tmp_path / "exported"
    run_export(char.model_file, folder)
    with pytest.raises(UsageError, match=r"--n-layer is 7, and the model in .* has 2\. Leave the flag out"):
        train_on(char, folder, n_layer=7)
    with pytest.raises(UsageError, match="--block-size is 99, and the model"):
        train_on(char, folder, block_size=99)
    with pytest.raises(UserError, match="is a char tokenizer; train.py trains on it"):
        train.main(char, fresh=False, kind="bpe", init_from=folder)
    other = Tokenizer(make_character_tokenizer("abc").to_str())
    (folder / "tokenizer.json").write_text(other.json_text, "utf-8")
    with pytest.raises(UserError, match=r"has 5 ids, but the model beside it"):
        train_on(char, folder)
    content = json.loads(char.tokenizer_file.read_text("utf-8"))
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["d"] = vocab["d"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match="made with a different tokenizer than .*tokenizer.json"):
        train_on(char, folder)


QWEN3 = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1_000,
}


def their_model(folder: Path, **changed):
    """A model made and saved by transformers, as others publish theirs."""
    torch.manual_seed(3)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**QWEN3, **changed})).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=weight.dim() == 1, std=0.3)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_folder_that_transformers_saved(tmp_path, tied):
    """Grouped-query attention, several files, a longer context, half precision: the logits are the same."""
    theirs = their_model(tmp_path, tie_word_embeddings=tied, dtype=torch.bfloat16)
    assert len(list(tmp_path.glob("model*.safetensors"))) > 1
    if tied:  # some files hold a head all the same
        safetensors.save_file({"lm_head.weight": torch.zeros(50, 32)}, tmp_path / "model-head.safetensors")
    architecture, weights, _ = read_folder(tmp_path, 24)
    assert architecture["block_size"] == 24 and architecture["tie_embeddings"] == tied
    model = GPT(**architecture).eval()
    model.load_state_dict(weights)
    idx = torch.randint(50, (2, 24))
    torch.testing.assert_close(model(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"head_dim": 16}, "its head_dim is 16"),
        ({"intermediate_size": 64}, "its intermediate_size is 64, but with n_embd 32 .* always has 96"),
        ({"vocab_size": 70_000}, "vocab_size must be a whole number from 1 to 65,536"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is linear"),
    ],
)
def test_models_that_ours_cannot_represent_are_refused(tmp_path, changed, reason):
    their_model(tmp_path, **changed)
    with pytest.raises(UserError, match=f"Training cannot start from .*{reason}"):
        read_folder(tmp_path, 24)


def test_damaged_and_hostile_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder in Hugging Face's layout"):
        read_folder(tmp_path, 24)
    their_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    damages = [
        "",
        "[1]",
        "{" * 100_000,
        "[" * 100_000,
        " " * 2_000_000,
        json.dumps({**config, "model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}),
        json.dumps({**config, "hidden_size": 1e99}),
        json.dumps({**config, "hidden_size": "32"}),
        json.dumps({**config, "hidden_size": 10**400}),
        json.dumps({**config, "num_hidden_layers": 10**9}),
        json.dumps({**config, "num_attention_heads": 0}),
        json.dumps({**config, "num_key_value_heads": 3}),
        json.dumps({**config, "rope_parameters": None, "rope_theta": None}),
        json.dumps({**config, "rope_parameters": 7}),
        json.dumps({**config, "tie_word_embeddings": "no"}),
        json.dumps({**config, "vocab_size": 51}),
    ]
    for text in damages:
        (tmp_path / "config.json").write_text(text, "utf-8")
        with pytest.raises(UserError, match="Training cannot start from"):
            read_folder(tmp_path, 24)
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    read_folder(tmp_path, 24)
    file = min(tmp_path.glob("model*.safetensors"))
    whole = file.read_bytes()
    for data in (b"", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], whole[:-4] + b"\x00\x00\xc0\x7f"):
        file.write_bytes(data)
        with pytest.raises(UserError, match="Training cannot start from"):
            read_folder(tmp_path, 24)


@CHAR_ALONE
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_flipped_bit_of_an_export_is_used(exported, tmp_path, name):
    """Training that starts from a folder refuses it, or gets exactly the model that was exported."""
    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder)
    expected, good, rng, refused = read_folder(folder, 24), (folder / name).read_bytes(), random.Random(1), 0
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(bad)
        try:
            architecture, weights, _ = read_folder(folder, 24)
            assert architecture == expected[0] and same(weights, expected[1])
        except UserError:
            refused += 1
    assert refused > (290 if name == "model.safetensors" else 100)


@LINUX
def test_folders_that_ask_for_much_memory_or_never_end_are_refused(tmp_path):
    """Half a MB that would become 34 GB: one key-value head, to be copied for 32,768 heads."""
    wide = {"hidden_size": 65_536, "num_attention_heads": 32_768, "num_key_value_heads": 1, "head_dim": 2}
    config = {**QWEN3, **wide, "model_type": "qwen3", "num_hidden_layers": 1, "rms_norm_eps": 1e-6, "vocab_size": 2}
    config |= {"intermediate_size": mlp_size(65_536), "hidden_act": "silu", "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    attention = "model.layers.0.self_attn."
    tensors = {f"{attention}{name}_proj.weight": torch.zeros(2, 65_536, dtype=torch.float16) for name in "kv"}

    def refused_with(reason):
        with pytest.raises(UserError, match=f"Training cannot start from .*{reason}"):
            read_folder(tmp_path, 24)

    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert peak_growth(lambda: refused_with("embed_tokens.weight is missing")) < 64
    entries = {f"a name {i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    header = json.dumps(entries).encode()  # by hand, because save_file() takes seconds for so many tensors
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert peak_growth(lambda: refused_with("lists far more tensors")) < 64
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    refused_with("model.safetensors is not a file")


# --- one file for llama.cpp -------------------------------------------------------------------------------------------


def test_gguf_in_the_folder_or_nowhere(exported, tmp_path):
    pytest.importorskip("gguf", reason="gguf, the extra `export`, is not installed")
    model = exported[0].parent / "model.pt"
    with pytest.raises(UserError, match="is not a file that can be replaced"):
        run_export(model, tmp_path / "out", "--gguf", str(tmp_path))
    assert not (tmp_path / "out").exists()
    for _ in range(2):
        run_export(model, tmp_path / "out", "--gguf", str(tmp_path / "out" / "tiny.gguf"))


def test_gguf_holds_the_model_and_its_tokenizer(exported, tmp_path, capsys):
    """The file, read back with the package, has what llama.cpp's qwen3 needs, and its merges cut text as ours do."""
    gguf = pytest.importorskip("gguf", reason="gguf, the extra `export`, is not installed")
    folder, model, tokenizer = exported
    with pytest.raises(UserError, match="--gguf would replace"):
        run_export(folder.parent / "model.pt", folder, "--gguf", str(folder.parent / "model.pt"))
    run_export(folder.parent / "model.pt", folder, "--gguf", str(tmp_path / "tiny.gguf"))
    assert ("drops characters" in capsys.readouterr().out) == (tokenizer.kind == "char")
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "qwen3"
    a = model.architecture
    expected = {
        "context_length": a["block_size"],
        "embedding_length": a["n_embd"],
        "block_count": a["n_layer"],
        "feed_forward_length": model.blocks[0].mlp.down.weight.size(1),
        "attention.head_count": a["n_head"],
        "attention.head_count_kv": a["n_head"],
        "attention.key_length": a["n_embd"] // a["n_head"],
        "attention.value_length": a["n_embd"] // a["n_head"],
        "rope.freq_base": a["rotary_base"],
    }
    assert {name: value[f"qwen3.{name}"] for name in expected} == expected
    assert value["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert value["tokenizer.ggml.bos_token_id"] == value["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text_id

    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    attention = model.blocks[1].attention
    q, k, v = attention.qkv.weight.detach().chunk(3)
    ours = {"attn_q": q, "attn_k": k, "attn_v": v, "attn_q_norm": attention.query_norm.weight.detach()}
    for name, weight in ours.items():
        assert (tensors[f"blk.1.{name}.weight"] == weight.numpy()).all()
    assert (tensors["token_embd.weight"] == model.embedding.weight.detach().numpy()).all()
    assert ("output.weight" in tensors) != a["tie_embeddings"]
    assert len(tensors) == len(model.state_dict()) + 3 * a["n_layer"] - a["tie_embeddings"]

    # GPT-2's byte-level BPE with these tokens and merges cuts text as our tokenizer does.
    vocab = {token: i for i, token in enumerate(value["tokenizer.ggml.tokens"])}
    assert len(vocab) == tokenizer.vocab_size
    merges = [tuple(merge.split(" ")) for merge in value["tokenizer.ggml.merges"]]
    # The library wants every product of a merge to have an id, llama.cpp does not: the first two bytes of 日, say.
    known = {**vocab}
    for letter in LETTER_TO_BYTE:
        known.setdefault(letter, len(known))
    for left, right in merges:
        known.setdefault(left + right, len(known))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(known, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ODD + texts(150):
        ids = tokenizer.encode(text)
        left = ids[ids != (tokenizer.unknown_id or -1)]  # llama.cpp drops what has no id
        assert [token for token in theirs.encode(text).ids if token < len(vocab)] == left.tolist()
