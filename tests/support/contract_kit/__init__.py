"""Backends that are broken in one way each, and the contract kits that must catch them."""
