"""`cocoon.trust` and `--tee`: the words by which people choose what is proven."""

from __future__ import annotations

import pytest

from cocoon import trust
from cocoon.adapters.clock import SystemClock
from cocoon.adapters.tee.opening import open_enclave
from cocoon.attest.statement import MODE_SIMULATED
from cocoon.errors import ConfigError
from cocoon.types import Network, TrustLevel


def test_nothing_is_chosen_silently():
    with pytest.raises(ConfigError, match="no default"):
        trust.from_label(None)


@pytest.mark.parametrize("label", ["confidential", "cpu-confidential"])
def test_a_hardware_level_without_a_policy_of_images_is_refused(label):
    with pytest.raises(ConfigError, match="policy file"):
        trust.from_label(label)


@pytest.mark.parametrize("label", ["", "none", "OPEN", "yes", "open "])
def test_other_words_are_no_trust_levels(label):
    with pytest.raises(ConfigError):
        trust.from_label(label)


@pytest.mark.parametrize("network", [Network.MAINNET, Network.TESTNET])
def test_simulated_trust_and_simulated_enclaves_exist_on_the_devnet_alone(network, tmp_path):
    with pytest.raises(ConfigError, match=network.label):
        trust.Simulated().rules(network)
    with pytest.raises(ConfigError, match=network.label):
        trust.Simulated().software_anchors(network)
    with pytest.raises(ConfigError, match=network.label):
        enclave("simulated", tmp_path, network=network)


def test_the_weak_levels_warn_and_say_who_can_read():
    for policy in (trust.Open(), trust.Simulated()):
        assert "operator of a provider can read" in policy.warning


def test_a_policy_file_gives_its_level_and_an_empty_one_accepts_no_image(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('level = "confidential"\n')
    policy = trust.from_label(str(path))
    assert policy.level is TrustLevel.CONFIDENTIAL
    assert policy.warning == ""
    rules = policy.rules(Network.MAINNET)
    assert rules.level is TrustLevel.CONFIDENTIAL
    assert not rules.images.releases
    assert policy.software_anchors(Network.MAINNET) is None


@pytest.mark.parametrize("text", ["", "level = 7", 'level = "best"', "level ="])
def test_a_policy_file_without_a_level_is_refused(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        _ = trust.PolicyFile(path).level


def test_a_missing_policy_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        trust.PolicyFile("nowhere.toml").rules(Network.DEVNET)


def enclave(kind, folder, *, network=Network.DEVNET, image=None):
    return open_enclave(
        kind,
        network=network,
        model=bytes(32),
        clock=SystemClock(),
        folder=folder,
        image_hex=image,
        config_hex=image,
    )


def test_a_provider_without_an_enclave_has_none_and_a_simulated_one_says_so(tmp_path):
    assert enclave("none", tmp_path) is None
    simulated = enclave("simulated", tmp_path)
    assert simulated is not None
    assert simulated.mode == MODE_SIMULATED


@pytest.mark.parametrize(("kind", "image"), [("sgx", None), ("tdx", None), ("tdx", "00" * 31), ("tdx", "xyz")])
def test_an_enclave_that_is_not_described_is_refused(tmp_path, kind, image):
    with pytest.raises(ConfigError):
        enclave(kind, tmp_path, image=image)
