"""Units by the norm of their weights."""

from llmfold.methods.base import FoldContext, Weights
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.structures import Units, coupled_sums
from llmfold.methods.method import Notify
from llmfold.models import LayerShape


class MagnitudePruner(Pruner):
    """Smallest L2 norm of the coupled structure goes first ("L2" of LLM-Pruner, arXiv 2305.11627, section 4).

    LLM-Pruner's code scores with the mean over gate, up and down of the squared norms: the same order. FLAP's
    magnitude baseline looks at columns of down_proj and o_proj alone and is another method.
    """

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """L2 norms of the structures."""
        structures = self.structures(index)
        entries = {role: weights[role].float().square() for role in structures.matrices}
        squares = coupled_sums(entries, structures, layer)
        return Units(squares.neurons.sqrt(), squares.heads.sqrt())


def build(context: FoldContext, notify: Notify) -> MagnitudePruner:
    """See :meth:`llmfold.methods.method.Method.build`."""
    return MagnitudePruner(context)
