"""A page of queries and their nearest neighbours: one HTML file for a browser."""
