"""Clustering rows into k groups where k is close to n, in Gram space."""

from llmfold.clustering.blocks import Blocks
from llmfold.clustering.cluster import Clustering, Method, cluster, cluster_at
from llmfold.clustering.gram import distance_from_gram, gram, squared_distances
from llmfold.clustering.kmeans import hartigan, kmeans, kmeans_plus_plus, lloyd
from llmfold.clustering.quality import inertia, inertia_of_rows, mst_bound
from llmfold.clustering.ward import Dendrogram, ward

__all__ = [
    "Blocks",
    "Clustering",
    "Dendrogram",
    "Method",
    "cluster",
    "cluster_at",
    "distance_from_gram",
    "gram",
    "hartigan",
    "inertia",
    "inertia_of_rows",
    "kmeans",
    "kmeans_plus_plus",
    "lloyd",
    "mst_bound",
    "squared_distances",
    "ward",
]
