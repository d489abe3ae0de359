"""The one-token step as an ONNX graph: what onnxruntime computes is what the model computes."""

import json

import numpy as np
import pytest
import torch
from models import SMALL, random_model

from model.gpt import GPT
from model.storage import onnx_file
from model.storage.model_file import save_model
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.errors import UserError
from scripts import export_onnx

pytest.importorskip("onnxscript", reason="onnxscript, of the extra `onnx`, is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, of the extra `onnx`, is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(file, our model, its tokenizer), every weight away from its initial value."""
    folder = tmp_path_factory.mktemp("onnx")
    tokenizer = Tokenizer(make_character_tokenizer("abcdefgh é\n").to_str())
    model = random_model({**SMALL, "vocab_size": tokenizer.vocab_size, "rotary_base": 30.0})
    save_model(folder / "model.pt", model, tokenizer, {"steps": 1, "val_bits_per_byte": 2.5})
    flags = ["--model", str(folder / "model.pt"), "--output", str(folder / "tiny.onnx")]
    export_onnx.main(flags)
    return folder / "tiny.onnx", model, tokenizer


def test_greedy_text_and_logits_are_the_models(exported):
    """A full block of text, each token from the cache that the last call returned, against full recomputation."""
    path, model, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    keys = values = np.zeros(session.get_inputs()[2].shape, np.float32)
    ids = [3]
    for position in range(model.block_size):
        inputs = {"token": np.array(ids[-1:]), "position": np.array([position]), "keys": keys, "values": values}
        logits, keys, values = session.run(None, inputs)
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0, -1].numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        assert logits.argmax() == expected.argmax()
        ids.append(int(logits.argmax()))
    assert expected.std() > 0.1  # logits that are all alike would prove nothing


def test_the_file_contains_its_tokenizer(exported):
    path, model, tokenizer = exported
    found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(found["tokenizer"]) == json.loads(tokenizer.json_text)
    assert found["block_size"] == str(model.block_size)


def test_a_graph_that_computes_something_else_is_not_written(exported, tmp_path, monkeypatch):
    """The check after the export, with the graph of a model that differs in its angles: alike for the first token of
    a text, and for no other."""
    path, model, tokenizer = exported
    other = GPT(**{**model.architecture, "rotary_base": 300.0})
    other.load_state_dict(model.state_dict())
    save_model(tmp_path / "other.pt", other, tokenizer, {"steps": 1, "val_bits_per_byte": 2.5})
    graph = path.read_bytes()
    monkeypatch.setattr(onnx_file, "to_onnx", lambda model, metadata: graph)
    flags = ["--model", str(tmp_path / "other.pt"), "--output", str(tmp_path / "wrong.onnx")]
    with pytest.raises(UserError, match="--output would replace"):
        export_onnx.main([*flags[:3], flags[1]])
    with pytest.raises(UserError, match="differ from the model"):
        export_onnx.main(flags)
    assert not (tmp_path / "wrong.onnx").exists()


def test_a_missing_package_is_one_sentence(exported, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match="onnxscript is missing.*--extra onnx .*install onnx onnxscript onnxruntime"):
        onnx_file.to_onnx(exported[1], {})


def test_a_model_too_large_for_one_file_is_one_sentence(exported, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_WEIGHTS", 1000)
    with pytest.raises(UserError, match="at most 2 GiB"):
        onnx_file.to_onnx(exported[1], {})
