"""SRPO (Sample-Routed Policy Optimization) as a plugin for unmodified veRL."""

__version__ = "0.1.0"
