"""A site that echoes, served by PySyft in this process: what the PySyft edges are tested against.

Usage: python echo_site.py '{"state": ..., "port": ..., "email": ..., "password": ...}'
"""

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from core.wire import Parcel
from datasite.caller import Caller
from datasite.operator_door import DoorActions, open_door
from datasite.publishing import PublishedDataset
from datasite.serving import PySyftServer

PRIVATE_VALUE: Final = 1234.5678
MOCK_VALUE: Final = 20.25


def answer(request: Parcel, caller: Caller) -> Parcel:
    """Give the request back, or say who asks."""
    if request.joined() == b"who am I?":
        return Parcel.of(f"{caller.email} {caller.role.value}".encode())
    if request.joined() == b"fail":
        raise ValueError(PRIVATE_VALUE)
    return request


def dataset(name: str, rows: int) -> PublishedDataset:
    """Give a dataset of one column, whose first private value is `PRIVATE_VALUE`."""
    values = np.random.default_rng(seed=7).normal(20, 5, size=(2, rows))
    values[:, 0] = PRIVATE_VALUE, MOCK_VALUE
    return PublishedDataset(
        name=name,
        version=1,
        description="Temperatures of the pumps in hall 2.",
        schema_text="columns:\n  temperature_c: {unit: degC, range: [-40, 200]}",
        mock=pd.DataFrame({"temperature_c": values[1]}),
        private=pd.DataFrame({"temperature_c": values[0]}),
    )


def main() -> None:
    """Serve until told to stop; `publish` at the operator's door publishes two datasets."""
    options = json.loads(sys.argv[1])
    state = Path(options["state"])
    refused: list[list[str]] = []
    server = PySyftServer(
        site_id="factory-1",
        state=state,
        host="127.0.0.1",
        port=options["port"],
        operator_email=options["email"],
        operator_password=options["password"],
        handle=answer,
        on_refused=lambda email, path: refused.append([email, path]),
    )

    def publish() -> list[str]:
        server.publish(dataset("pumps", rows=5))
        server.publish(dataset("many-pumps", rows=200_000))  # 1.6 MB: PySyft keeps it as a file
        return server.published_names()

    server.open()
    actions = DoorActions(
        status=lambda: {"refused": list(refused), "published": list(server.published_names())},
        accounts=server.accounts,
        publish=publish,
    )
    with open_door(actions, state):
        server.run()


if __name__ == "__main__":
    main()
