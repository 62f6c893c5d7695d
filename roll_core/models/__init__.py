"""Language models in plain torch: architecture, Hugging Face files, tokenizer, chat templates."""

from roll_core.models.chat import ChatTemplate
from roll_core.models.checkpoint import load_hf, load_hf_config, save_hf
from roll_core.models.qwen import CausalLM, ModelConfig, parameter_shapes
from roll_core.models.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "CausalLM",
    "ChatTemplate",
    "ModelConfig",
    "Tokenizer",
    "load_hf",
    "load_hf_config",
    "parameter_shapes",
    "save_hf",
    "train_tokenizer",
]
