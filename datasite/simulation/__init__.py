"""Sites without a factory: many in one process, as a rehearsal of a federation or as a study.

They train as a real site does, bit for bit, with its code, its messages and its seeds. They have no
ledger, no audit log and no operator: every plan is approved at once, and still binds.
"""

from datasite.simulation.lanes import SimulatedFederation
from datasite.simulation.sites import Setup

__all__ = ["Setup", "SimulatedFederation"]
