"""Language models that grow, and the baseline they are measured against."""

from models.tokenformer import TokenFormer
from models.transformer import Transformer

__all__ = ["TokenFormer", "Transformer"]
