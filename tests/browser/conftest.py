"""One JupyterLab and one Chromium for all browser tests, ended before other tests run."""

import os

import pytest
from jupyter import HOW_TO_INSTALL, Lab, browser, chromium, server
from stage import Stage


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def chrome():
    if chromium() is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_INSTALL)
        pytest.skip(HOW_TO_INSTALL)
    with browser() as chrome:
        yield chrome


@pytest.fixture(scope="package")
def lab_server(chrome, tmp_path_factory):
    with server(tmp_path_factory.mktemp("lab") / "server") as running:
        yield running


@pytest.fixture
def lab(chrome, lab_server):
    page = Lab(chrome, lab_server)
    yield page
    page.close()


@pytest.fixture
def stage(chrome):
    """Puts widgets on bare pages; afterwards no page may have had an error."""
    stages = []

    def put(widget, **options):
        stages.append(Stage(chrome, widget, **options))
        return stages[-1]

    yield put
    for one in stages:
        one.close()
