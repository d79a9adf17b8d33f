"""Tools around the paper's runs."""
