"""The public listener without a socket."""

from __future__ import annotations

from pathlib import Path

from support_public import document, header, service


def test_health_tells_alive_and_ready(tmp_path: Path) -> None:
    """/healthz says that the process lives; /readyz whether it can write, with a true status for load balancers."""
    with service(tmp_path, address_limit_per_minute=1) as public:
        for _ in range(5):
            assert public.ask(path="/healthz").status == 200
            assert public.ask(path="/readyz").status == 200
        public.app._is_ready = lambda: False
        answer = public.ask(path="/readyz")
        assert (answer.status, header(answer, "cache-control")) == (503, "no-store")
        assert document(answer) == {"status": "cannot write"}
        public.app._sealing_lag = lambda: 65_536
        assert document(public.ask(path="/readyz")) == {"status": "cannot write", "sealing": {"lag_entries": 65_536}}
        public.app._is_ready = lambda: True
        assert document(public.ask(path="/readyz")) == {"status": "ready", "sealing": {"lag_entries": 65_536}}
