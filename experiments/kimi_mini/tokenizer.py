"""kimi_mini's tokenizer: byte-level BPE with 4096 entries, trained on every fourth training document.

Small, because the embedding and the output head would otherwise outweigh the experts; digits stand alone, as in Kimi's
own vocabulary the number of ways to write a number is limited too. Writes tokenizer.json and tokenizer_config.json as a
stock `mlx_lm.load` reads them, and the tokens as flat uint16 arrays with an end-of-text after each document.
About three minutes on two cores.

    python -m experiments.kimi_mini.tokenizer --corpus corpus --out experiments/kimi_mini/checkpoint
"""

import argparse
import json
import lzma
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import DOCUMENT_END

VOCAB_SIZE = 4096
END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PAD_ID = 0, 1


def train_tokenizer(documents: list[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents one after the other, each closed by the end-of-text token. uint16."""
    parts = []
    for begin in range(0, len(documents), 1000):
        for encoding in tokenizer.encode_batch_fast(documents[begin : begin + 1000]):
            parts.append(np.array([*encoding.ids, END_OF_TEXT_ID], dtype=np.uint16))
    return np.concatenate(parts)


def read_held_out(path: Path) -> list[str]:
    return lzma.decompress(path.read_bytes()).decode().split(DOCUMENT_END)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json")
    arguments = parser.parse_args()
    documents = (arguments.corpus / "train.txt").read_text().split(DOCUMENT_END)
    tokenizer = train_tokenizer(documents[::4])
    save_tokenizer(tokenizer, arguments.out)
    tokens = encode(tokenizer, documents)
    np.save(arguments.corpus / "tokens.npy", tokens)
    held_out = read_held_out(arguments.corpus / "heldout.txt.xz")
    held_out_bytes = sum(len(text.encode()) for text in held_out)
    np.savez(arguments.corpus / "heldout_tokens.npz", tokens=encode(tokenizer, held_out), bytes=held_out_bytes)
    size = sum(len(text.encode()) for text in documents)
    print(f"{len(tokens) / 1e6:.1f} M tokens of {size / len(tokens):.2f} bytes")
