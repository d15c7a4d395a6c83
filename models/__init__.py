"""Language models that grow, and the baseline they are measured against."""

from models.palm import Palm
from models.tokenformer import TokenFormer
from models.transformer import Transformer

__all__ = ["Palm", "TokenFormer", "Transformer"]
