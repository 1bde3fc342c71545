"""What tests of several rooms share."""

import shutil
import socket

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # machines are shared; no test asserts a time
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module")
def no_network():
    """Every connection fails, and the Hub's client does not even try."""

    def refuse(*_):
        raise AssertionError("a test that needs no network connected to it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
