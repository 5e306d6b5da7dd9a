"""The Hub's probe, against endpoints of the test's own on this machine."""

import http.server
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from xlcore.errors import InputError
from xlcore.hub import hub_available, require_hub


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    """Give a function that makes the Hub's endpoint answer with a status."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(status: int) -> None:
        handler = type("Handler", (Answer,), {"status": status})
        servers.append(http.server.HTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "available"), [(200, True), (404, True), (503, False)])
def test_answer_below_500_means_available(endpoint, status, available):
    endpoint(status)
    assert hub_available() is available


def test_offline_switch_is_honoured(endpoint, monkeypatch):
    endpoint(200)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_available()


def test_silent_endpoint_does_not_hang(endpoint, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        start = time.monotonic()
        assert not hub_available(timeout=0.3)
        assert time.monotonic() - start < 2


def test_missing_hub_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"model 'x' needs the Hub.*HF_HUB_OFFLINE; give a folder"):
        require_hub("model 'x'", "give a folder")


def test_present_hub_is_no_error(endpoint):
    endpoint(200)
    require_hub("model 'x'")
