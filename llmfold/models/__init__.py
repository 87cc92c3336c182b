"""What a model is made of, told by its stock class; families that may be written in more ways stand in families.py."""

from llmfold.models.base import EMBEDDING as EMBEDDING
from llmfold.models.base import FINAL_NORM as FINAL_NORM
from llmfold.models.base import HEAD as HEAD
from llmfold.models.base import WINDOW_KEYS as WINDOW_KEYS
from llmfold.models.base import Architecture as Architecture
from llmfold.models.base import LayerShape as LayerShape
from llmfold.models.base import ModelShape as ModelShape
from llmfold.models.base import Role as Role
from llmfold.models.base import embedding_name as embedding_name
from llmfold.models.base import head_name as head_name
from llmfold.models.base import tensor_name as tensor_name
from llmfold.models.registry import ARCHITECTURES as ARCHITECTURES
from llmfold.models.registry import architecture_of as architecture_of
from llmfold.models.registry import register_architecture as register_architecture
from llmfold.models.registry import shape_of as shape_of
from llmfold.models.registry import stock_config as stock_config
