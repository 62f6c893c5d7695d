"""The learner on Megatron-Core: tensor, pipeline and data parallel. See ``docs/megatron.md``."""
