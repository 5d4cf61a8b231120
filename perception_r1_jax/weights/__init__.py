"""Checkpoints: Hugging Face directories, converted ones, and the ways between them."""

from perception_r1_jax.weights.convert import convert_huggingface, export_huggingface
from perception_r1_jax.weights.load import ModelSource, load_params, locate_model, model_files, stream_params
from perception_r1_jax.weights.safetensors_io import CheckpointError

__all__ = [
    "CheckpointError",
    "ModelSource",
    "convert_huggingface",
    "export_huggingface",
    "load_params",
    "locate_model",
    "model_files",
    "stream_params",
]
