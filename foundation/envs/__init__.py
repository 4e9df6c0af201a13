"""Gymnasium environments and the scripted players that act in them."""
