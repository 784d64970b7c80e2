"""Make a tiny model with random weights that vLLM serves: for tests where the words of an answer don't matter.

usage: tiny_model.py OUT_DIR [--seed 0]        (run it with the engine environment's python; about 5 s, 0.3 MB)

A Llama of 2 layers and about 100,000 parameters, a byte-level tokenizer (one token a byte, no merges) and a chat
template. At temperature 0 it says the same printable characters each time, and it never ends by itself: `max_tokens`
decides the length of an answer. The same seed gives the same bytes on disk. OUT_DIR appears only when it is complete.
"""

from __future__ import annotations

import argparse
import shutil
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

SPECIAL = ["<|end|>", "<|start|>"]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes and SPECIAL, whose ids come first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    end, start = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end, chat_template=TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights that says printable ASCII: parts of UTF-8 characters would hold a stream back.

    Its heads are 32 values wide, the least that vLLM's CPU attention takes.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=0,
        bos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    said = set(tokenizer.convert_tokens_to_ids([*string.ascii_letters, *string.digits, *".,;:!?-"]))
    silent = [number for number in range(len(tokenizer)) if number not in said]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0  # so their logits are 0, below the greatest of the others
    return model.to(torch.bfloat16)


def main() -> None:
    """Read the command line and make the folder."""
    parser = argparse.ArgumentParser(description="Make a tiny random chat model.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.out / "config.json").is_file():
        return
    logging.disable_progress_bar()
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = make_tokenizer()
    make_model(tokenizer, args.seed).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(args.out)


if __name__ == "__main__":
    main()
