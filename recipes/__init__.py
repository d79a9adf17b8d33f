"""Launchers and their evidence; each recipe is a folder of its own."""
