"""Every setting of TinyLittleGPT, once. Edit the values here, or give any of them as a flag for one run.

A field `n_layer` is the flag `--n-layer` of every script that uses it, and the comment after it is that flag's help.
`CHAR` holds the settings of the character pipeline (train.py, generate.py), `BPE` those of the byte-pair pipeline
(trainv2.py, generatev2.py): the same fields, with a few other values. The default files are in the project's folder,
wherever you run a script from; relative paths that you give count from the current folder.
"""

from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"
MODEL_NAME = "gpt_model.pt"  # the newest model of all runs, and in each checkpoint folder the model of its run


@dataclass(frozen=True)
class Files:
    parquet_dir: Path = DATA / "parquet"  # folder of parquet files: ingestion writes it, extraction reads it
    corpus: Path = DATA / "corpus.txt"  # the text to learn from, documents separated by a line <|endoftext|>
    tokenizer_file: Path = DATA / "tokenizer_char.json"  # a file of the tokenizers library
    train_file: Path = DATA / "train.bin"  # token ids to train on, uint16; or a folder of such files
    val_file: Path = DATA / "val.bin"  # token ids to validate on, uint16; or a folder of such files
    checkpoint_dir: Path = ROOT / "checkpoints" / "char"  # folder of step_*.pt and log.jsonl; a run resumes from here
    model_file: Path = ROOT / MODEL_NAME  # the trained model, all that generation needs


@dataclass(frozen=True)
class Data:
    val_fraction: float = 0.1  # fraction of the documents kept for validation, 0 to 1
    vocab_size: int = 4096  # number of BPE ids; more ids mean fewer tokens, but a larger model
    tokenizer_megabytes: float = 100.0  # BPE merges are learned from a sample of at most this much text, in MB
    workers: int = 0  # threads that prepare data at once (0: one per core)


@dataclass(frozen=True)
class Model:
    """The architecture, together with the size of the tokenizer's vocabulary. A run that resumes must not change it."""

    block_size: int = 128  # tokens the model sees at once; try 256 with more time
    n_layer: int = 4  # transformer blocks; 6 to 12 on a GPU
    n_head: int = 4  # attention heads in each block; n_embd / n_head is even, usually 32 to 128
    n_embd: int = 128  # width of the residual stream, in channels; 384 to 768 on a GPU
    rotary_base: float = 30.0  # how slowly rotary positions turn: 10 to 100 for short blocks, 10000 for long ones
    dropout: float = 0.0  # fraction of activations dropped in training; 0.1 to 0.2 if the data is seen many times
    tie_embeddings: bool = False  # use one matrix for the token embedding and the head: fewer parameters


@dataclass(frozen=True)
class Training:
    initial_weights: str = "previous"  # heads look at the tokens before; bigram: and counted pairs, unless tied; random
    batch_size: int = 16  # sequences of block_size tokens per step, over all processes; 32 to 64 on a GPU
    accumulate: int = 1  # micro-batches per step, computed one after another: less memory, the same step
    max_steps: int = 2000  # length of the run, in steps; the learning rate decays towards this end
    minutes: float = 0.0  # length of the run in minutes instead: steps are timed, then their number is fixed
    learning_rate: float = 0.01  # peak learning rate of AdamW: embedding, head and norms
    muon_rate: float = 0.02  # peak learning rate of Muon: the matrices in the blocks; halve it if the loss is jumpy
    warmup_steps: int = 20  # steps over which the learning rate rises to its peak
    decay_fraction: float = 0.9  # fraction of the run, at its end, over which the learning rate falls linearly to zero
    weight_decay: float = 0.1  # pull of the weight matrices towards zero
    momentum: float = 0.9  # Muon: decay of the mean gradient; 0.85 for 200 steps, 0.95 for many thousands
    beta1: float = 0.9  # AdamW: decay of the mean gradient
    beta2: float = 0.95  # AdamW: decay of the mean squared gradient; 0.99 for small batches
    grad_clip: float = 1.0  # gradients are scaled down to at most this norm (0: off)
    seed: int = 1337  # initial weights, data order, random numbers; on a CPU the same seed repeats the run exactly
    eval_every: int = -1  # steps between evaluations (-1: a tenth of the run; 0: only the last one, of all tokens)
    eval_tokens: int = 32_768  # validation tokens to score before the end, spread over the file (0: all of them)
    sample_tokens: int = 120  # tokens of generated text to print at each evaluation (0: none)
    checkpoint_every: int = 250  # steps between checkpoints
    keep_checkpoints: int = 3  # newest checkpoints to keep, at least 2
    log_every: int = 50  # steps between lines of output
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto takes the fastest available
    dtype: str = "auto"  # auto, float32 or bfloat16; auto takes bfloat16 if a short timing shows that it is faster
    shard_model: bool = False  # under torchrun: each process holds a shard of the weights, for what no device can hold
    deterministic: bool = False  # on a GPU: the same bits each time, so a resumed run is the same run; a bit slower
    compile: str = "auto"  # auto, on or off: let torch compile the layers; auto: in long runs on a CPU, unless in C


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in generation and in the samples that training prints."""

    temperature: float = 0.8  # below 1: safer; above 1: wilder; 0: always the most likely token
    top_k: int = 50  # sample only from the k most likely tokens (0: all)
    top_p: float = 1.0  # sample only from the most likely tokens that together reach this probability (1: all)
    min_p: float = 0.0  # sample only from tokens at least this fraction as likely as the most likely (0: all); try 0.05
    repetition_penalty: float = 1.0  # above 1: tokens already in the text become less likely; try 1.2


@dataclass(frozen=True)
class Generation(Sampling):
    tokens: int = 200  # tokens to generate
    samples: int = 1  # texts to generate from the prompt, in one batch; text i is that of --seed SEED + i
    show: int = 5  # candidates to print at each step


@dataclass(frozen=True)
class Settings(Generation, Training, Model, Data, Files):  # a dataclass lists the fields of its last base first
    """All of them, each under its own name: settings.n_layer, settings.tokens."""

    debug: bool = True  # show the work as it is done; --quiet turns it off
    explain_step: bool = False  # training: below each printed step its gradients, updates and hardest tokens


CHAR = Settings()

BPE = replace(
    CHAR,
    tokenizer_file=DATA / "tokenizer_bpe.json",
    train_file=DATA / "train_bpe.bin",
    val_file=DATA / "val_bpe.bin",
    checkpoint_dir=ROOT / "checkpoints" / "bpe",
    # A BPE token is rarer and carries more text. So the embedding begins with what can be counted, its learning rate is
    # higher, and there is a layer less.
    initial_weights="bigram",
    n_layer=3,
    learning_rate=0.03,
)

if __name__ == "__main__":
    print(f"config.py only holds the {len(vars(CHAR))} settings. Edit it, then run a script, such as python train.py.")
