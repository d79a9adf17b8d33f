"""The paper's tables and figures from one's own runs, as one page: ``python -m srpo_verl report RUN [RUN...]``."""
