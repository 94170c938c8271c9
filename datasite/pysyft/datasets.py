"""The datasets that PySyft's clients see: description, schema and mock, never the rows."""

from syft.client.datasite_client import add_default_uploader
from syft.server.datasite import Datasite
from syft.service.context import AuthedServiceContext
from syft.service.dataset.dataset import CreateAsset, CreateDataset, Dataset
from syft.types.errors import SyftException
from syft.types.twin_object import TwinObject

from core.exceptions import DataSiteError
from datasite.publishing import PublishedDataset


class Datasets:
    """The datasets kept in PySyft's database.

    Args:
        datasite: The open datasite.
        root: Its root account's authority.
    """

    def __init__(self, datasite: Datasite, root: AuthedServiceContext) -> None:
        self._datasite = datasite
        self._services = datasite.services
        self._root = root

    def publish(self, dataset: PublishedDataset) -> None:
        """Make `dataset` the PySyft dataset of its name; the same version again changes nothing.

        Raises:
            DataSiteError: PySyft could not store it; the message says why.
        """
        shown = self._shown().get(dataset.name)
        if shown is not None and str(shown.description) == dataset.page():
            return
        if shown is not None:
            self.unpublish(dataset.name)
        try:
            self._services.dataset.add(self._root, self._draft(dataset))
        except SyftException as exc:
            message = f"dataset {dataset.name!r} was not published: {exc.public_message}"
            raise DataSiteError(message) from exc

    def unpublish(self, name: str) -> None:
        """Remove the PySyft dataset `name` with its mock; nothing happens without one."""
        dataset = self._shown().get(name)
        if dataset is None:
            return
        self._services.dataset.delete(self._root, dataset.id)
        # PySyft only marks it as deleted, and keeps the name under another.
        self._services.dataset.stash.delete_by_uid(self._root.credentials, dataset.id).unwrap()

    def names(self) -> list[str]:
        """Name the datasets that a PySyft client sees, in alphabetical order."""
        return sorted(self._shown())

    def _shown(self) -> dict[str, Dataset]:
        datasets = self._services.dataset.stash.get_all_active(self._root.credentials).unwrap()
        return {dataset.name: dataset for dataset in datasets}

    def _draft(self, dataset: PublishedDataset) -> CreateDataset:
        """Store manifest and mock as one twin object, and describe it."""
        twin = TwinObject(
            private_obj=dataset.private,
            mock_obj=dataset.mock,
            syft_server_location=self._datasite.id,
            syft_client_verify_key=self._datasite.verify_key,
        )
        twin._save_to_blob_storage().unwrap()  # noqa: SLF001  PySyft's own upload does the same
        self._services.action.set(self._root, twin)
        asset = CreateAsset(
            name=dataset.name,
            data=dataset.private,
            mock=dataset.mock,
            mock_is_real=False,
            action_id=twin.id,
            server_uid=self._datasite.id,
        )
        draft = CreateDataset(name=dataset.name)
        draft.set_description(dataset.page())
        operator = self._services.user.get_current_user(self._root)
        draft.asset_list = [add_default_uploader(operator, asset)]
        return add_default_uploader(operator, draft)
