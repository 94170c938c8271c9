"""A site with data, for the tests of what it answers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sites import inline, register, site_settings

from datasite.configuration import SiteConfig
from datasite.ledger import Ledger
from datasite.site import FactoryDataSite
from datasite.trainer import Trainer


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., FactoryDataSite]]:
    """Give a function that opens a site in `tmp_path`; its arguments are settings."""
    opened: list[FactoryDataSite] = []

    def open_(
        start_trainer: Callable[[SiteConfig], Trainer] = inline, **changes: object
    ) -> FactoryDataSite:
        site = FactoryDataSite(start_trainer)
        opened.append(site)
        site.initialize_datasite(site_settings(tmp_path, **changes))
        return site

    yield open_
    for site in opened:
        site.close()


@pytest.fixture
def site(open_site: Callable[..., FactoryDataSite], tmp_path: Path) -> FactoryDataSite:
    """A site with `press` registered, which approves the researcher's plans by rule."""
    opened = open_site()
    register(opened, tmp_path)
    return opened


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger at `tmp_path / "ledger.db"`."""
    opened = Ledger(tmp_path / "ledger.db", site_id="factory-1")
    yield opened
    opened.close()
