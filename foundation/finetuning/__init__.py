"""One file per RL family; its hyperparameters are in `configs/algo/`."""
