"""A node, a provider and a gateway of one home, as `cocoon status`, `cocoon top` and Prometheus see them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.slow
LISTEN = "/ip4/127.0.0.1/tcp/0"


def scrape(url: str, key: str | None) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as response:
        text: str = response.read().decode()
        return text


def test_status_shows_what_runs_and_prometheus_the_same(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.run("status").returncode == 1, "nothing runs yet"
    with world.service("node", "--listen", LISTEN) as node:
        bootstrap = node.ready["addresses"][0]
        joined = ("--bootstrap", bootstrap)
        with (
            world.service("serve", "cocoon-tiny", "--listen", LISTEN, "--price-out", "2", *joined),
            world.service("gateway", "--port", "0", "--trust", "open", *joined) as gateway,
        ):
            base, key_path = gateway.ready["base_url"], Path(gateway.ready["api_key_path"])
            key = key_path.read_text().strip()
            body = {"model": "cocoon-tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
            request = urllib.request.Request(
                f"{base}/chat/completions",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
            )
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
                tokens = json.load(response)["usage"]["completion_tokens"]
            said = world.run("status", "--json")
            assert said.returncode == 0
            found = {one["role"]: one for one in json.loads(said.stdout)["processes"]}
            assert set(found) == {"node", "provider", "gateway"}
            assert found["provider"]["serving"]["requests"] == 1
            assert found["provider"]["serving"]["completion_tokens"] == tokens
            assert found["provider"]["offer"]["price_output_nano"] == 2 * 10**9
            assert found["gateway"]["spending"]["completion_tokens"] == tokens
            assert found["node"]["peers"]["inbound"] >= 1
            shown = world.run("status").stdout
            assert "number 1 of 1 by price" in shown
            assert f"{tokens} out" in shown
            looks = world.run("top", "--count", "2", "--every", "0.2", "--json").stdout.splitlines()
            assert len(looks) == 2
            assert world.run("top", "--count", "1").stdout.count("─") > 10
            page = scrape(base.removesuffix("/v1") + "/metrics", key)
            assert f"cocoon_gateway_tokens_total {tokens}" in page
            with pytest.raises(urllib.error.HTTPError) as refused:
                scrape(base.removesuffix("/v1") + "/metrics", None)
            refused.value.close()
            assert refused.value.code == 401
    assert world.run("status").returncode == 1
    assert world.survivors() == []
