"""What leaves the house: a model as safetensors with its lineage and a card."""

from limbeck.export.folder import load_weights, read_lineage, rebuild, save_model

__all__ = ["load_weights", "read_lineage", "rebuild", "save_model"]
