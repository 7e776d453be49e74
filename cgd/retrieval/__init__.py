"""Descriptors of a data set, exact Recall@K and nearest neighbours, pictures of what is retrieved."""
