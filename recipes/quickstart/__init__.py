"""The embedded default: a task, a tokenizer and a model small enough to train on two CPU cores in minutes."""
