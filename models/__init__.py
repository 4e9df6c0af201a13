"""Pure `nn.Module`s: tensors in, tensors or distributions out.

Axis alphabet used in every shape comment of the project:

    b batch   t time   s state   a action   d width   h, w, c image   n heads
    e ensemble   k choices (keys, classes, bins)   z latent   g goal
"""
