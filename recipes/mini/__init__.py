"""Verifiable tasks that two CPU cores can learn, for comparing methods over seeds."""
