"""Clustering rows into k groups where k is close to n, in Gram space."""

from llmfold.clustering.cluster import Clustering as Clustering
from llmfold.clustering.cluster import Method as Method
from llmfold.clustering.cluster import cluster as cluster
from llmfold.clustering.cluster import cluster_at as cluster_at
from llmfold.clustering.gram import gram as gram
from llmfold.clustering.gram import squared_distances as squared_distances
from llmfold.clustering.kmeans import hartigan as hartigan
from llmfold.clustering.kmeans import kmeans as kmeans
from llmfold.clustering.kmeans import kmeans_plus_plus as kmeans_plus_plus
from llmfold.clustering.kmeans import lloyd as lloyd
from llmfold.clustering.quality import inertia as inertia
from llmfold.clustering.quality import inertia_of_rows as inertia_of_rows
from llmfold.clustering.quality import mst_bound as mst_bound
from llmfold.clustering.ward import Dendrogram as Dendrogram
from llmfold.clustering.ward import ward as ward
