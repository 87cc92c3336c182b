"""From options to a baseline ready to run; what it measures is measured here, once."""

from collections.abc import Callable

from torch import Tensor

from llmfold.methods.baselines.data_free import MagnitudePruner, RandomPruner
from llmfold.methods.baselines.flap import FlapPruner, measure_fluctuations
from llmfold.methods.baselines.llm_pruner import TaylorPruner, taylor_importances
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.replan import check_biases
from llmfold.methods.baselines.wanda import WandaPruner
from llmfold.methods.source import Setting, token_source
from llmfold.models import Role, tensor_name
from llmfold.runtime.hidden_states import STATE_FOLDER, stored_tensors


def build_baseline(setting: Setting, say: Callable[[str], None]) -> Pruner:
    """Prepare the baseline of ``setting.config.method``; tokens and statistics are stored in the work folder.

    Args:
        setting: where to work.
        say: told of every stage.

    Raises:
        LlmfoldError: unusable data, or a bias that the family's config cannot hold.
    """
    config, shape, device = setting.config, setting.shape, setting.device
    if config.method == "random":
        return RandomPruner(shape, device, config.seed)
    if config.method == "magnitude":
        return MagnitudePruner(shape, device)
    is_flap = config.method.startswith("flap")
    if is_flap and config.bias:
        check_biases(shape.architecture)
    source = token_source(setting, say)

    def read_layer(index: int) -> dict[Role, Tensor]:
        roles = shape.layer_roles(shape.layers[index])
        return {role: setting.checkpoint.read(tensor_name(index, role)) for role, _ in roles}

    folder = setting.work / STATE_FOLDER
    if config.method == "wanda-sp":
        return WandaPruner(source.on, source.facts)
    if is_flap:
        statistics = stored_tensors(
            folder / "fluctuations.safetensors", lambda: measure_fluctuations(source.on, read_layer, say)
        )
        return FlapPruner(shape, device, statistics, source.facts, bias=config.bias)
    importances = stored_tensors(
        folder / "importances.safetensors",
        lambda: taylor_importances(source.on, source.tokens, setting.checkpoint, read_layer, say),
    )
    return TaylorPruner(shape, device, importances, source.facts)
