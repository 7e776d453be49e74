"""The paper's tables: `python -m cgd.tables`."""
