"""Evaluation, exact Recall@K and nearest neighbours, the index, similarity maps."""
