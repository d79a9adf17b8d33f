"""The runs behind the paper's tables and figures: which they are, whether they fit, and making them."""
