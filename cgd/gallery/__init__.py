"""Queries and their nearest neighbours to look at: a page for a browser, and an image."""
