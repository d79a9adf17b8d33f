"""The Chemistry or Biology rows with a small real language model, on the CPU."""
