"""What the sections of an experiment and of a sites file have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a file: nothing unknown in it, no infinities, and never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
