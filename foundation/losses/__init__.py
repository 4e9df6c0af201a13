"""Pure functions from tensors to tensors, one published equation each."""
