"""Benchmarks to veRL's parquet files; the command is ``python -m srpo_verl data`` (see ``--help``)."""
