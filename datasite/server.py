"""`PySyftSite`, imported as quickly as PySyft can be.

Importing this module imports PySyft, which takes seconds, so `datasite.serving` does it late. It
takes with it what draws plots and what talks to clusters and clouds, a fifth of the time and 60 MB.
A site has no use for them: its only workers are `datasite.training`, its only store is its disk.
"""

from core.imports import stand_ins, uncollected

_UNUSED = ("azure", "boto3", "botocore", "docker", "kr8s", "matplotlib")

with uncollected(), stand_ins(_UNUSED):
    from datasite.pysyft.edge import PySyftSite

__all__ = ["PySyftSite"]
