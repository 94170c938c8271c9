"""A site that answers by a script: what the transports' contract is tested against.

In memory it is called; live it is served by PySyft in a process of its own:

    python scripted.py '{"state": ..., "port": ..., "email": ..., "password": ...}'

Both sides of the script are files, so that the test and the process see the same.
"""

import json
import sys
from pathlib import Path

from core import wire
from core.messages import Message
from core.wire import Parcel

SITE = "factory-1"


class ScriptedSite:
    """Trains by adding one, or answers what the test has laid ready.

    Args:
        folder: Where the script is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._callers = folder / "callers"
        self._next_reply = folder / "next_reply"
        self.forget()

    def __call__(self, request: Parcel, email: str) -> Parcel:
        """Answer one request."""
        with self._callers.open("a", encoding="utf-8") as callers:
            callers.write(f"{email}\n")
        if self._next_reply.exists():
            return Parcel.of(self._next_reply.read_bytes())
        message = wire.decode(request)
        if message["kind"] != "train":
            raise AssertionError(message["kind"])
        return wire.encode(
            {
                "kind": "update",
                "datasite_id": SITE,
                "round_num": message["round_num"],
                "num_samples": 3,
                "num_steps": 1,
                "metrics": {"train_loss": 0.5},
                "parameters": {name: t + 1 for name, t in message["parameters"].items()},
            }
        )

    @property
    def callers(self) -> list[str]:
        """Who called, in order."""
        return self._callers.read_text(encoding="utf-8").split()

    def will_answer(self, message: Message | bytes) -> None:
        """Lay the answer to the next requests ready."""
        blob = message if isinstance(message, bytes) else wire.encode(message).joined()
        self._next_reply.write_bytes(blob)

    def forget(self) -> None:
        """Start the script anew."""
        self._callers.write_text("", encoding="utf-8")
        self._next_reply.unlink(missing_ok=True)


def main() -> None:
    """Serve the site until told to stop."""
    from datasite.operator_door import DoorActions, open_door  # noqa: PLC0415 - for the process
    from datasite.serving import PySyftServer  # noqa: PLC0415 - likewise

    options = json.loads(sys.argv[1])
    state = Path(options["state"])
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    scripted = ScriptedSite(state)
    server = PySyftServer(
        site_id=SITE,
        state=state,
        host="127.0.0.1",
        port=options["port"],
        operator_email=options["email"],
        operator_password=options["password"],
        handle=lambda request, caller: scripted(request, caller.email),
    )
    server.open()
    actions = DoorActions(status=dict, accounts=server.accounts, publish=list)
    with open_door(actions, state):
        server.run()


if __name__ == "__main__":
    main()
