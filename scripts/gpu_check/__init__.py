"""One command for whoever has a GPU: ``python -m scripts.gpu_check``; see __main__.py."""
