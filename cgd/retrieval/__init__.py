"""Evaluation, exact Recall@K and nearest neighbours, image sheets of retrieved neighbours."""
