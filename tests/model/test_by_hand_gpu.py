"""The passes by hand for a GPU against the layers in torch: outputs and gradients, part by part and of a whole model.

Where there is no GPU, Triton's interpreter runs the kernels in numpy: slowly, so the shapes are small.
"""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_by_hand import randomise, results

pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from config import CHAR, ROOT
from model import by_hand_gpu, gpt, layers
from model.by_hand_gpu import losses_and_gradients
from model.gpt import GPT
from model.layers import Attention, RMSNorm, SwiGLU, rotary_table
from model.training.optimizer import Optimizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch):
    """Layers that use the kernels here, too, cut so small that each needs several programs."""
    monkeypatch.setattr(by_hand_gpu, "ROWS", 4)
    monkeypatch.setattr(by_hand_gpu, "TILE", 8)
    monkeypatch.setattr(by_hand_gpu, "TILES", 2)
    monkeypatch.setattr(by_hand_gpu, "LOGITS", 8)
    monkeypatch.setattr(by_hand_gpu, "CHUNK_LOGITS", 128)
    for module in (layers, gpt):
        monkeypatch.setattr(module, "by_hand", lambda x: None)

    def use(kernels: bool) -> None:
        for module in (layers, gpt):
            monkeypatch.setattr(module, "on_gpu", lambda x: by_hand_gpu if kernels else None)

    return use


def compare(kernels, module, x, *args) -> None:
    module, x, args = module.to(DEVICE), x.to(DEVICE), [arg.to(DEVICE) for arg in args]
    kernels(True)
    hand = results(module, x, *args)
    kernels(False)
    plain = results(module, x, *args)
    for ours, autograds in zip(hand, plain, strict=True):
        assert autograds.abs().max() > 0
        torch.testing.assert_close(ours, autograds, rtol=1e-4, atol=1e-5 * autograds.abs().max().item())


@pytest.mark.parametrize(("n_embd", "n_head", "T"), [(24, 3, 9), (8, 4, 6), (30, 3, 5)])
def test_attention(kernels, n_embd, n_head, T):
    """Heads of 8, 2 and 10 channels: half of ten is no power of two, so every kernel masks."""
    x = torch.randn(2, T, n_embd, generator=torch.Generator().manual_seed(2))
    module = randomise(Attention(n_embd, n_head, dropout=0.0))
    compare(kernels, module, x, *rotary_table(T, n_embd // n_head, 100.0))


def test_gradients_in_any_layout(kernels):
    """Attention's backward pass gives them as (B, H, T, D) in memory, or as (B, T, H, D)."""
    qkv = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(5)).to(DEVICE).requires_grad_()
    norms, (cos, sin) = torch.rand(2, 4).to(DEVICE), (table.to(DEVICE) for table in rotary_table(3, 4, 10.0))
    dy = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    found = []
    for layout in (dy.transpose(1, 2), dy.transpose(1, 2).contiguous(), dy.mT.contiguous().mT.transpose(1, 2)):
        parts = by_hand_gpu.SplitHeadsOnGPU.apply(qkv, norms, cos, sin, 2, 1e-6)
        found.append(torch.autograd.grad(parts, qkv, [layout] * 3)[0])
    assert found[0].abs().max() > 0
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("size", [8, 20])
def test_norm(kernels, size):
    """Of rows that are no multiple of a program's, and no power of two long."""
    compare(kernels, randomise(RMSNorm(size)), torch.randn(2, 5, size, generator=torch.Generator().manual_seed(1)) * 3)


def test_swiglu(kernels):
    compare(kernels, randomise(SwiGLU(12)), torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3)) * 3)


@pytest.mark.parametrize(("V", "columns"), [(31, 40), (5, 5), (8, 16), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients(kernels, V, columns, dtype):
    """With and without columns behind the vocabulary, and a logit that outweighs all others."""
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(6, columns, generator=generator) * 4).to(dtype).to(DEVICE)
    logits[0, 3], logits[:, V:] = 300.0, 1000.0
    targets = torch.tensor([3, 0, V - 1, 1, 2, 4]).to(DEVICE)
    exact = logits[:, :V].float().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    expected.sum().backward()
    found = losses_and_gradients(logits, targets, V)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(logits[:, :V].float(), exact.grad, rtol=tolerance, atol=1e-6)
    assert not logits[:, V:].any()


LOW = pytest.param(torch.bfloat16, 6e-2, marks=pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU"))


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), LOW])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_add_up(kernels, tied, dtype, allowed):
    """Of two micro-batches, in the gradients that the optimizer has made, as autograd's do; and none where a block is
    frozen."""
    shape = {"vocab_size": 31, "block_size": 3, "n_layer": 2, "n_head": 2, "n_embd": 8, "tie_embeddings": tied}
    idx, targets = torch.randint(31, (2, 3, 3), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    found = []
    for use in (True, False):
        kernels(use)
        model = randomise(GPT(**shape)).to(DEVICE).compute_in(dtype)
        model.blocks[0].requires_grad_(False)
        optimizer = Optimizer(model, CHAR)
        losses = [model.loss(idx[rows], targets[rows]) for rows in ([0, 1], [2])]
        for loss in losses:
            (loss / 2).backward()
        assert not any(weight.grad.any() for weight in model.blocks[0].parameters())
        assert all(weight.grad.any() for weight in model.blocks[1].parameters())
        found.append((torch.stack(losses).detach(), optimizer.grads))
    for ours, autograds in zip(*found, strict=True):
        assert torch.linalg.vector_norm(ours - autograds) < allowed * torch.linalg.vector_norm(autograds)


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler."), ImportError("No module named 'triton'")])
def test_a_gpu_that_runs_no_kernel_takes_the_plain_layers(monkeypatch, capsys, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(by_hand_gpu, "norm_beside", broken)
    layers.gpu_kernels.cache_clear()
    assert [layers.gpu_kernels(torch.device("cpu")) for _ in range(2)] == [None, None]
    assert capsys.readouterr().err == f"The kernels for a GPU do not work here, so it computes more slowly: {error}\n"
    monkeypatch.undo()
    layers.gpu_kernels.cache_clear()


@pytest.mark.skipif(DEVICE == "cuda", reason="the other tests compile them")
def test_every_kernel_compiles(tmp_path, torch_server):
    """The interpreter knows no types, so it runs what a GPU refuses."""
    files = ROOT / "model/by_hand_gpu.py", ROOT / "model/generation/one_token_gpu.py"
    launched = {name for file in files for name in re.findall(r"(\w+)\[(?:grid|\(.+\))\]\(", file.read_text("utf-8"))}
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernels.py"
    done = torch_server.run([str(script)], ROOT, env | {"TRITON_CACHE_DIR": str(tmp_path)}, 300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == launched and len(launched) > 10


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
def test_a_whole_model(monkeypatch, dtype, allowed, compiled):
    """Its loss and all gradients, against the CPU in fp32, in several chunks of tokens."""
    monkeypatch.setattr(by_hand_gpu, "CHUNK_LOGITS", 1 << 17)
    model = randomise(GPT(vocab_size=300, block_size=128, n_layer=2, n_head=2, n_embd=64))
    idx, targets = torch.randint(300, (2, 6, 128), generator=torch.Generator().manual_seed(4))
    expected = model.loss(idx, targets)
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.to("cuda").compute_in(dtype)
    loss = (torch.compile(model.loss) if compiled else model.loss)(idx.cuda(), targets.cuda())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=allowed)
    for name, weight in model.named_parameters():
        difference = torch.linalg.vector_norm(weight.grad.cpu() - gradients[name])
        assert difference < allowed * torch.linalg.vector_norm(gradients[name]), name
