"""One file per pretraining method; its hyperparameters are in `configs/method/`."""
