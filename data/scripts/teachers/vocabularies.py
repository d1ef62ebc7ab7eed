"""A tokenizer of 64 ids for each family, of the kind that the family has: letters alone, so that every lower-case English word is known."""

import json
from pathlib import Path
from string import ascii_lowercase

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SIZE, LONGEST = 64, 64
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
ROBERTA |= {"cls_token": "<s>", "sep_token": "</s>"}
ALBERT = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
PUNCTUATION = ".,!?'-:;\"("


def fill(*groups: list[str], last: list[str] | None = None) -> list[str]:
    """The groups, then as much punctuation as there is room for, then `last`: 64 tokens."""
    last = last or []
    tokens = [token for group in groups for token in group]
    tokens += PUNCTUATION[: SIZE - len(tokens) - len(last)]
    assert len(tokens + last) == SIZE == len(set(tokens + last)), tokens
    return tokens + last


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: identifier for identifier, token in enumerate(tokens)}


def word_pieces(special: list[str], unknown: str) -> Tokenizer:
    """BERT's kind: letters that begin a word, and letters that go on."""
    tokens = fill(special, list(ascii_lowercase), [f"##{letter}" for letter in ascii_lowercase])
    tokenizer = Tokenizer(models.WordPiece(numbered(tokens), unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer


def byte_pairs(special: list[str], unknown: str, space: str, last: list[str] | None = None) -> Tokenizer:
    """GPT-2's and Llama's kind: letters, and letters merged with the space before them."""
    tokens = fill(special, [space], list(ascii_lowercase), [space + letter for letter in ascii_lowercase], last=last)
    merges = [(space, letter) for letter in ascii_lowercase]
    return Tokenizer(models.BPE(numbered(tokens), merges, unk_token=unknown))


def pieces(special: list[str], unknown: str, last: list[str] | None = None) -> Tokenizer:
    """SentencePiece's kind: a score for each."""
    tokens = fill(special, ["▁"], list(ascii_lowercase), [f"▁{letter}" for letter in ascii_lowercase], last=last)
    scores = [0.0 if token in special or token in (last or []) else -2.0 - 0.01 * place for place, token in enumerate(tokens)]
    return Tokenizer(models.Unigram(list(zip(tokens, scores)), unk_id=tokens.index(unknown)))


def sentence_piece_style(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()


def template(tokenizer: Tokenizer, single: str, pair: str, special: list[str]) -> None:
    ends = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def make(family: str) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer, and its special tokens by role."""
    if family in ("bert", "distilbert", "electra"):
        names, tokenizer = BERT, word_pieces(list(BERT.values()), "[UNK]")
        template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ["[CLS]", "[SEP]"])
    elif family == "mpnet":
        names, tokenizer = ROBERTA, word_pieces(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<unk>")
        template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ["<s>", "</s>"])
    elif family == "roberta":
        names, tokenizer = ROBERTA, byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<unk>", "Ġ")
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ["<s>", "</s>"])
    elif family == "xlm-roberta":
        names, tokenizer = ROBERTA, pieces(["<s>", "<pad>", "</s>", "<unk>"], "<unk>", last=["<mask>"])
        sentence_piece_style(tokenizer)
        template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ["<s>", "</s>"])
    elif family == "albert":
        names, tokenizer = ALBERT, pieces(list(ALBERT.values()), "<unk>")
        sentence_piece_style(tokenizer)
        template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ["[CLS]", "[SEP]"])
    elif family == "llama":
        names, tokenizer = LLAMA, byte_pairs(["<unk>", "<s>", "</s>"], "<unk>", "▁")
        sentence_piece_style(tokenizer)
        template(tokenizer, "<s> $A", "<s> $A <s> $B", ["<s>"])
    else:
        names, tokenizer = GPT2, byte_pairs([], "<|endoftext|>", "Ġ", last=["<|endoftext|>"])
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    special = {token: AddedToken(token, special=True, normalized=False) for token in names.values()}
    tokenizer.add_special_tokens(list(special.values()))
    assert tokenizer.get_vocab_size() == SIZE
    return tokenizer, names


def save_tokenizer(family: str, directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer, names = make(family)
    tokenizer.save(str(directory / "tokenizer.json"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if family in ("bert", "albert", "electra") else ["input_ids", "attention_mask"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, "model_input_names": inputs, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
