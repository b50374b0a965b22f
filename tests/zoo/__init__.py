"""Small random-weight models whose forward pass really executes transposed convolutions.

The ordered tuple of entries is ``ZOO`` in :mod:`tests.zoo.models`; third-party packages are
imported only when an entry is built, so collecting the zoo needs nothing besides torch.
"""
