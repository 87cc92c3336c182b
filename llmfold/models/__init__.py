"""Model families as data. A new family is one short file and one entry in the registry."""

from llmfold.models.base import (
    ATTENTION_ROLES,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    MLP_ROLES,
    Architecture,
    LayerShape,
    ModelShape,
    Role,
    embedding_name,
    head_name,
    tensor_name,
)
from llmfold.models.registry import (
    ARCHITECTURES,
    architecture_of,
    check_tensors,
    count_parameters,
    expected_tensors,
    register_architecture,
    shape_of,
    stock_config,
)

__all__ = [
    "ARCHITECTURES",
    "ATTENTION_ROLES",
    "EMBEDDING",
    "FINAL_NORM",
    "HEAD",
    "MLP_ROLES",
    "Architecture",
    "LayerShape",
    "ModelShape",
    "Role",
    "architecture_of",
    "check_tensors",
    "count_parameters",
    "embedding_name",
    "expected_tensors",
    "head_name",
    "register_architecture",
    "shape_of",
    "stock_config",
    "tensor_name",
]
