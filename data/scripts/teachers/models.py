"""The random models: two or three layers, 16 wide, 64 ids."""

import torch
import transformers
from transformers import PreTrainedModel

from .vocabularies import LONGEST, SIZE

WIDTH = 16
ENCODER = dict(hidden_size=WIDTH, num_attention_heads=2, intermediate_size=24, vocab_size=SIZE)
ROBERTA = dict(num_hidden_layers=2, max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
# Prefix of the class names in transformers, and the settings.
FAMILIES = {
    "bert": ("Bert", dict(num_hidden_layers=2, max_position_embeddings=LONGEST, **ENCODER)),
    "roberta": ("Roberta", dict(**ROBERTA, **ENCODER)),
    "xlm-roberta": ("XLMRoberta", dict(**ROBERTA, **ENCODER)),
    "distilbert": ("DistilBert", dict(n_layers=2, dim=WIDTH, n_heads=2, hidden_dim=24, vocab_size=SIZE, max_position_embeddings=LONGEST)),
    # Three layers that share one LayerNorm: the order of the nodes alone tells them apart.
    "albert": ("Albert", dict(num_hidden_layers=3, embedding_size=8, max_position_embeddings=LONGEST, **ENCODER)),
    "electra": ("Electra", dict(num_hidden_layers=2, embedding_size=8, max_position_embeddings=LONGEST, **ENCODER)),
    "mpnet": ("MPNet", dict(num_hidden_layers=2, max_position_embeddings=LONGEST + 2, **ENCODER)),
    "gpt2": ("GPT2", dict(n_layer=2, n_embd=WIDTH, n_head=2, n_inner=24, vocab_size=SIZE, n_positions=LONGEST, bos_token_id=63, eos_token_id=63)),
    # Two query heads for each head of keys and values.
    "llama": (
        "Llama",
        dict(
            num_hidden_layers=2, hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, vocab_size=SIZE,
            max_position_embeddings=LONGEST, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        ),
    ),
}  # fmt: skip
CAUSAL = ("gpt2", "llama")
TOKEN_TYPES = ("bert", "albert", "electra")


def make_model(family: str, head: str, seed: int = 0, **settings) -> PreTrainedModel:
    """A model whose every parameter is random and differs from every other: exporters merge equal initialisers, and names vanish.

    `head` is the end of the class's name: ForMaskedLM, LMHeadModel, Model, ...
    """
    prefix, sizes = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**sizes, **settings)
    config._attn_implementation = "eager"
    # A pooler that nothing reads would not be exported; one that the class does not have is no setting of it.
    options = {"add_pooling_layer": False} if head == "Model" and family not in ("distilbert", "electra") else {}
    torch.manual_seed(sum(map(ord, family + head)) + seed)
    model = getattr(transformers, prefix + head)(config, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight")
            parameter.copy_((1.0 if is_scale else 0.0) + 0.2 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    return model.eval()
