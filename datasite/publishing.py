"""What a site shows of a dataset (name, description, schema, mock rows) and what it keeps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedDataset:
    """A dataset as researchers find it.

    `name` and `version` together say what it is: publishing the same pair again changes nothing,
    and another version of a name replaces the one before.

    Attributes:
        name: The dataset's name at this site.
        version: Counts the registrations of this name, from 1.
        description: What the data are, for people.
        schema_text: The schema as YAML or JSON, shown as it is.
        mock: Rows made from the schema alone; every account of the site may read them.
        private: What PySyft keeps beside the mock, which no account but the operator's may read: a
            manifest of the rows, which themselves never go there (see `datasite.serve`).
    """

    name: str
    version: int
    description: str
    schema_text: str
    mock: "DataFrame"
    private: "DataFrame"

    def page(self) -> str:
        """Give the Markdown text shown with the dataset: description, version and schema."""
        return (
            f"{self.description.strip()}\n\nVersion {self.version}; its rows are not in PySyft\n\n"
            f"```\n{self.schema_text.strip()}\n```\n"
        )
