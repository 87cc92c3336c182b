"""Triton kernels for clustering and repair, each with a plain torch twin that says what it computes.

Every public function picks Triton for tensors on CUDA and its twin elsewhere; the package imports without triton.
Configurations are fixed, never tuned at run time: a tuner's choice can differ from run to run, and with it the bytes.
"""

from llmfold_kernels.assign import assign_rows, nearest_centre
from llmfold_kernels.centroids import Segments, from_groups, segment_sums, segments
from llmfold_kernels.dispatch import on_triton
from llmfold_kernels.elimination import eliminate
from llmfold_kernels.gram import Gram, gram
from llmfold_kernels.ward import merge_greedily

__all__ = [
    "Gram",
    "Segments",
    "assign_rows",
    "eliminate",
    "from_groups",
    "gram",
    "merge_greedily",
    "nearest_centre",
    "on_triton",
    "segment_sums",
    "segments",
]
